//! What a site takes part in: `policy.toml`, read once, and the one question it answers.
//!
//! A rule that is not written denies. A policy decides from the task, the clock's word and the site's own history; it reads
//! no file, keeps nothing and spends nothing: what a task costs is the ledger's matter ([`crate::SiteLedger`]). It cannot
//! be overridden by a server, whose plan is only what it is asked to judge. It does not judge models by their content.

mod file;
mod history;

use protocol::{
    CentralPrivacy, ConfigError, Metrics, ModelSpec, Positive, PrivacySpec, RecordCount, Spec, SpecError,
    StepId, Task, Time, Weighting, Work,
};
use serde::{Deserialize, Serialize};

pub use history::{History, Participation};

use file::{Hours, HoursRule, Limit, ModelsRule, PolicyFile, TaskRule};
use privacy::{counted, verb};

/// A policy that allows all of training and no method, as text.
pub const PLAIN_POLICY: &str = include_str!("policy/plain.toml");
/// A policy that allows training with noise within a budget, as text.
pub const PRIVATE_POLICY: &str = include_str!("policy/private.toml");
/// The text of a policy for sites that take part only in training whose noise hides each single record.
pub const RECORDS_POLICY: &str = include_str!("policy/records.toml");

/// Why a site's policy does not allow a task. For the site's eyes: the server is told that it was the policy, and no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy rule `{rule}`: {message}")]
pub struct Denied {
    /// The rule, by its key in `policy.toml`; `participation` is the limit that the plan itself promises, and `public_records`
    /// the number that `site.toml` may declare.
    pub rule: &'static str,
    /// What was asked and what is allowed.
    pub message: String,
}

/// A number that a site measures beside its update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The mean loss.
    Loss,
    /// The share of right answers.
    Accuracy,
    /// How many examples were used.
    Examples,
    /// How long it took.
    Seconds,
    /// What the site's own program measures beside that, by the plan's names.
    Further,
}

/// How a plan protects what it learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Not at all: the server sees each update, and models may show any record.
    None,
    /// Noise at the server: clients as wholes, towards those who see models.
    Central,
    /// Noise at the client: clients as wholes, towards the server too.
    Local,
    /// Noise in each gradient step: single records, towards the server too.
    Examples,
}

impl Mode {
    /// Its name in `policy.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Central => "central",
            Self::Local => "local",
            Self::Examples => "examples",
        }
    }

    /// All that a plan promises; [`Mode::None`] alone when it promises nothing.
    pub fn all_of(privacy: &PrivacySpec) -> Vec<Self> {
        let promised = [
            privacy.central.as_ref().map(|_| Self::Central),
            privacy.local.map(|_| Self::Local),
            privacy.examples.map(|_| Self::Examples),
        ];
        let modes: Vec<Self> = promised.into_iter().flatten().collect();
        if modes.is_empty() { vec![Self::None] } else { modes }
    }
}

/// What is known of a site outside of it, beside its policy and its books.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SiteFacts {
    /// Parameters of the task's model, those that stay at the site included, as far as they can be counted before memory is
    /// taken for them.
    pub parameters: u64,
    /// Training records, as far as anybody may know.
    pub records: RecordCount,
}

/// A site's policy.
#[derive(Clone, Debug)]
pub struct Policy {
    rules: PolicyFile,
}

impl Policy {
    /// Reads the text of a `policy.toml`.
    ///
    /// # Errors
    /// [`ConfigError`] with line, column and the value at fault.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let rules: PolicyFile = protocol::read_toml(text)?;
        rules.check().map_err(|error| ConfigError::of(text, &error))?;
        Ok(Self { rules })
    }

    /// Whether no task can ever pass, as in a policy that nobody has chosen yet.
    pub fn allows_nothing(&self) -> bool {
        self.rules.tasks.is_empty()
    }

    /// Whether the site does `task`. It follows from the task, from what is known of the site, and from its books.
    ///
    /// # Errors
    /// [`Denied`] names the first rule that stands against it.
    pub fn judge(&self, task: &Task, facts: &SiteFacts, now: Time, history: &History) -> Result<(), Denied> {
        self.judge_by(task, facts, now, history, || self.judge_frequency(now, history))
    }

    /// Whether the site lets an answer to `task` leave that it has computed before. How often it trains does not matter: that training is in
    /// its books.
    ///
    /// # Errors
    /// [`Denied`] names the first rule that stands against it.
    pub fn judge_again(
        &self,
        task: &Task,
        facts: &SiteFacts,
        now: Time,
        history: &History,
    ) -> Result<(), Denied> {
        self.judge_by(task, facts, now, history, || Ok(()))
    }

    fn judge_by(
        &self,
        task: &Task,
        facts: &SiteFacts,
        now: Time,
        history: &History,
        judge_frequency: impl FnOnce() -> Result<(), Denied>,
    ) -> Result<(), Denied> {
        self.judge_work(task)?;
        self.judge_size(facts.parameters)?;
        self.judge_hour(now)?;
        self.judge_cohort(&task.spec)?;
        self.judge_privacy(task)?;
        match &task.work {
            Work::Statistics { .. } => self.judge_what_follows(&task.spec, facts.records),
            Work::Train { norm_max, .. } => {
                self.judge_training(&task.spec, norm_max.or(Some(task.spec.update.norm_max)), facts.records)?;
                judge_frequency()?;
                judge_participation(task, history)
            }
            Work::Evaluate { .. } | Work::Method(_) => Ok(()),
        }
    }

    /// What the plan alone shows of each of its trainings. Without a norm that of the round is not known yet.
    fn judge_training(
        &self,
        spec: &Spec,
        norm_max: Option<Positive>,
        records: RecordCount,
    ) -> Result<(), Denied> {
        norm_max.map_or(Ok(()), |norm_max| self.judge_norm(norm_max))?;
        self.judge_weights(spec)?;
        judge_records(spec, records)
    }

    /// Whether the exchange for which statistics are the preparation can come to anything here: a site that will decline every other task of
    /// the plan tells nothing of its records for it.
    fn judge_what_follows(&self, spec: &Spec, records: RecordCount) -> Result<(), Denied> {
        let judged = if matches!(spec.model, ModelSpec::Values { .. }) {
            // Which method it is, the task does not say.
            let allows_one = self.rules.tasks.iter().any(|rule| matches!(rule, TaskRule::Method(_)));
            if allows_one { Ok(()) } else { denied("tasks", "no `method:NAME` is allowed".into()) }
        } else if !self.rules.tasks.contains(&TaskRule::Step(StepId::TRAIN)) {
            denied("tasks", "`train` is not allowed".into())
        } else {
            // A norm that follows the updates may have become another one by the first round.
            let norm_max = (!spec.privacy.is_adaptive()).then_some(spec.update.norm_max);
            self.judge_protection(&spec.privacy, &Mode::all_of(&spec.privacy))
                .and_then(|()| self.judge_training(spec, norm_max, records))
        };
        judged.map_err(|Denied { rule, message }| {
            let message =
                format!("the statistics are for a plan of which this site would do no other task: {message}");
            Denied { rule, message }
        })
    }

    /// Whether a model of so many parameters is not too large.
    ///
    /// # Errors
    /// [`Denied`] by `parameters_max`.
    pub(crate) fn judge_size(&self, parameters: u64) -> Result<(), Denied> {
        at_most(
            "parameters_max",
            "the model has this many parameters, those that stay at the site included",
            parameters,
            self.rules.parameters_max,
        )
    }

    /// The metrics that may leave the site with an answer to `task`: the others are 0, or absent. Beside a promise they leave
    /// only where plan and policy both say that they are outside of it.
    pub(crate) fn visible(&self, spec: &Spec, metrics: Metrics) -> Metrics {
        if !self.tells_metrics(spec) {
            return Metrics::default();
        }
        let may = |metric| self.allows_metric(metric);
        Metrics {
            loss: if may(Metric::Loss) { metrics.loss } else { 0.0 },
            accuracy: metrics.accuracy.filter(|_| may(Metric::Accuracy)),
            examples: if may(Metric::Examples) { metrics.examples } else { 0 },
            seconds: if may(Metric::Seconds) { metrics.seconds } else { 0.0 },
        }
    }

    /// Whether an evaluation under `spec` tells the server anything at all.
    pub(crate) fn tells_metrics(&self, spec: &Spec) -> bool {
        let outside = spec.privacy.is_none() || self.rules.outside_the_guarantee;
        !spec.privacy.hides_metrics() && outside && !self.rules.metrics.is_empty()
    }

    /// Whether what the site's own program measures beside loss and accuracy may leave.
    pub(crate) fn tells_further(&self, spec: &Spec) -> bool {
        self.tells_metrics(spec) && self.allows_metric(Metric::Further)
    }

    /// The site's own budget: epsilon and its delta; `None` where there is no limit.
    pub fn budget(&self) -> Option<(f64, f64)> {
        match (self.rules.privacy.epsilon_max, self.rules.privacy.delta) {
            (Some(Limit::At(epsilon)), Some(delta)) => Some((epsilon.value(), delta)),
            _ => None,
        }
    }

    /// What a task is called in the rule `tasks`: `train`, say, or `method:kmeans`.
    pub fn task_name(task: &Task) -> String {
        TaskRule::of(task).to_string()
    }

    fn allows_metric(&self, metric: Metric) -> bool {
        self.rules.metrics.contains(&metric)
    }

    fn judge_work(&self, task: &Task) -> Result<(), Denied> {
        let rules = &self.rules;
        let asked = TaskRule::of(task);
        if !rules.tasks.contains(&asked) {
            let allowed: Vec<_> = rules.tasks.iter().map(ToString::to_string).collect();
            return denied("tasks", format!("a task `{asked}` came; allowed are {allowed:?}"));
        }
        if task.seed.is_some() && !rules.seeded_runs {
            let message =
                "the task carries a seed, so the server knows this site's chance; allowed with `true`";
            return denied("rehearsals", message.into());
        }
        // What a method computes is no model of a family: the rule for tasks names methods, and judges their statistics, too.
        let is_of_method = matches!(task.work, Work::Statistics { .. } | Work::Method(_));
        if is_of_method && matches!(task.spec.model, ModelSpec::Values { .. }) {
            return Ok(());
        }
        let name = model_name(&task.spec.model);
        match &rules.models {
            Some(ModelsRule::Any(_)) => Ok(()),
            Some(ModelsRule::Only(names)) if names.iter().any(|allowed| allowed.0 == name) => Ok(()),
            Some(ModelsRule::Only(_)) | None => {
                denied("models", format!("the plan's model is `{name}`, which is not listed"))
            }
        }
    }

    fn judge_hour(&self, now: Time) -> Result<(), Denied> {
        let hour = now.as_micros() / 3_600_000_000 % 24;
        match self.rules.hours {
            Some(HoursRule::Any(_)) => Ok(()),
            Some(HoursRule::Between(hours)) if hours.holds(hour) => Ok(()),
            Some(HoursRule::Between(Hours { from, to })) => {
                denied("hours", format!("it is {hour} o'clock UTC; tasks are done from {from} to {to}"))
            }
            None => unwritten("hours"),
        }
    }

    fn judge_cohort(&self, spec: &Spec) -> Result<(), Denied> {
        let promised = spec.privacy.central.as_ref().map_or(1, CentralPrivacy::clients_expected);
        let promised = promised.min(spec.cohort_max);
        let rules = [("clients_min", self.rules.clients_min), ("sites_min", self.rules.sites_min)];
        for (rule, least) in rules {
            let Some(least) = least else { return unwritten(rule) };
            if promised < u64::from(least) {
                let message = format!(
                    "the plan shares a sum among {promised} clients; at least {least} are wanted (only [privacy.central] \
                     promises more than 1: by its clients_min, or with secret sampling by its sample or denominator)"
                );
                return denied(rule, message);
            }
        }
        Ok(())
    }

    fn judge_privacy(&self, task: &Task) -> Result<(), Denied> {
        let privacy = &task.spec.privacy;
        // The sums of statistics, and what a method asks for, carry no noise, whatever the plan says of updates.
        let modes = match task.id.step {
            StepId::TRAIN | StepId::EVALUATE => Mode::all_of(privacy),
            _ => vec![Mode::None],
        };
        self.judge_protection(privacy, &modes)
    }

    fn judge_protection(&self, privacy: &PrivacySpec, modes: &[Mode]) -> Result<(), Denied> {
        let rules = &self.rules.privacy;
        if !modes.iter().any(|mode| rules.require.contains(mode)) {
            let named = |modes: &[Mode]| modes.iter().map(|mode| mode.name()).collect::<Vec<_>>().join(", ");
            let message =
                format!("it is protected by `{}`; accepted are [{}]", named(modes), named(&rules.require));
            return denied("privacy.require", message);
        }
        let noises = noise_multipliers(privacy).map_err(|error| Denied {
            rule: "privacy.noise_multiplier_min",
            message: format!("the noise of the plan cannot be judged: {error}"),
        })?;
        for noise in noises {
            let Some(least) = rules.noise_multiplier_min else {
                return unwritten("privacy.noise_multiplier_min");
            };
            if noise < least {
                return denied(
                    "privacy.noise_multiplier_min",
                    format!("the plan's noise amounts to {noise}; at least {least}"),
                );
            }
        }
        if let Some(CentralPrivacy { relation, .. }) = &privacy.central
            && !rules.relations.contains(relation)
        {
            let message = format!("the plan claims `{relation}`, which is not listed");
            return denied("privacy.relations", message);
        }
        if modes != [Mode::None] && rules.epsilon_max.is_none() {
            return unwritten("privacy.epsilon_max");
        }
        Ok(())
    }

    fn judge_norm(&self, norm_max: Positive) -> Result<(), Denied> {
        let largest = norm_max.value();
        let limit = self.rules.privacy.norm_max_max.map(|limit| limit.map(Positive::value));
        at_most("privacy.norm_max_max", "updates may be this long", largest, limit)
    }

    fn judge_weights(&self, spec: &Spec) -> Result<(), Denied> {
        let told = weighs_by_records(spec) && !spec.privacy.holds_against_server();
        if told && !self.allows_metric(Metric::Examples) {
            let message = "updates are weighted by examples, which tells their number; list \"examples\", or ask for \
                           a plan with weights = \"uniform\"";
            return denied("metrics", message.into());
        }
        Ok(())
    }

    fn judge_frequency(&self, now: Time, history: &History) -> Result<(), Denied> {
        let Some(least) = self.rules.separation_min_seconds else {
            return unwritten("separation_min_seconds");
        };
        let since = history.since_the_last(now).map(|since| since.as_secs_f64());
        if let Some(since) = since.filter(|since| *since < least) {
            let message = format!("the last training began {since:.0} s ago; it must be at least {least} s");
            return denied("separation_min_seconds", message);
        }
        let count = history.of_the_day(now) as u64 + 1;
        at_most(
            "rounds_per_day",
            "with this one, trainings of the last 24 hours are",
            count,
            self.rules.rounds_per_day,
        )
    }
}

/// Whether an update's weight tells the number of records. One that is noised at the site weighs one.
fn weighs_by_records(spec: &Spec) -> bool {
    spec.update.weights == Weighting::Examples && spec.privacy.local.is_none()
}

/// Where single records are protected, their number is public because the site has declared it, or nothing follows from it.
fn judge_records(spec: &Spec, records: RecordCount) -> Result<(), Denied> {
    if spec.privacy.examples.is_none() || records != RecordCount::Hidden {
        return Ok(());
    }
    let hidden = "which this site does not tell; declare a number with `public_records` in site.toml, or ask for a plan with";
    if weighs_by_records(spec) {
        let message =
            format!("updates are weighted by the number of records, {hidden} weights = \"uniform\"");
        return denied("public_records", message);
    }
    if spec.training.batch_size == 0 {
        let message = format!("a step's sum is divided by the number of records, {hidden} a batch_size");
        return denied("public_records", message);
    }
    Ok(())
}

/// What the plan promises about how often one client takes part, which a server must not break.
fn judge_participation(task: &Task, history: &History) -> Result<(), Denied> {
    let Some(central) = &task.spec.privacy.central else { return Ok(()) };
    let (run, round) = (task.id.run, task.id.round);
    if round.0 > central.rounds {
        let message =
            format!("the plan promises {}, and this is round {round}", counted(central.rounds, "release"));
        return denied("participation", message);
    }
    let Some((times, apart)) = central.participation() else { return Ok(()) };
    let others = history.other_rounds(run, round);
    if others >= u64::from(times) {
        let message = format!(
            "the plan promises at most {} to each site, and {others} {} done",
            counted(times, "round"),
            verb(others, "is", "are")
        );
        return denied("participation", message);
    }
    if let Some(near) = history.round_near(run, round, apart) {
        let message = format!(
            "the plan promises {} between two of a site, and round {near} is done",
            counted(apart, "round")
        );
        return denied("participation", message);
    }
    Ok(())
}

/// By what each promise's noise is to be judged: of correlated noise, what the mechanism as a whole amounts to.
fn noise_multipliers(privacy: &PrivacySpec) -> Result<Vec<f64>, SpecError> {
    let central = privacy.central.as_ref().map(CentralPrivacy::noise_multiplier_of_mechanism).transpose()?;
    let promised = [
        central,
        privacy.local.map(|local| local.noise_multiplier.value()),
        privacy.examples.map(|examples| examples.noise_multiplier.value()),
    ];
    Ok(promised.into_iter().flatten().collect())
}

/// A model's name in `policy.toml`.
fn model_name(model: &ModelSpec) -> String {
    match model {
        ModelSpec::Linear => "linear".into(),
        ModelSpec::Logistic => "logistic".into(),
        ModelSpec::Mlp { .. } => "mlp".into(),
        ModelSpec::Cnn { .. } => "cnn".into(),
        ModelSpec::Layers(_) => "layers".into(),
        ModelSpec::Custom { name } => format!("custom:{name}"),
        ModelSpec::Values { .. } => "values".into(),
        ModelSpec::External(_) => "external".into(),
    }
}

fn denied(rule: &'static str, message: String) -> Result<(), Denied> {
    Err(Denied { rule, message })
}

fn unwritten(rule: &'static str) -> Result<(), Denied> {
    denied(rule, "it is not written, and what is not written is denied".into())
}

fn at_most<T: PartialOrd + std::fmt::Display>(
    rule: &'static str,
    what: &str,
    value: T,
    limit: Option<Limit<T>>,
) -> Result<(), Denied> {
    match limit {
        Some(Limit::Any(_)) => Ok(()),
        Some(Limit::At(most)) if value <= most => Ok(()),
        Some(Limit::At(most)) => denied(rule, format!("{what}: {value}; at most {most}")),
        None => unwritten(rule),
    }
}

#[cfg(test)]
mod tests;
