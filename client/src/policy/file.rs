//! `policy.toml` as it is typed. What is absent is denied by whoever asks; nothing is judged here.

use std::fmt;

use privacy::accounting::{Relation, promised_delta};
use protocol::{Name, Positive, SpecError, StepId, Task, Work};
use serde::Deserialize;

use super::{Metric, Mode};

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PolicyFile {
    pub(super) tasks: Vec<TaskRule>,
    pub(super) models: Option<ModelsRule>,
    pub(super) parameters_max: Option<Limit<u64>>,
    pub(super) clients_min: Option<u32>,
    pub(super) sites_min: Option<u32>,
    pub(super) rounds_per_day: Option<Limit<u64>>,
    pub(super) hours: Option<HoursRule>,
    pub(super) separation_min_seconds: Option<f64>,
    pub(super) metrics: Vec<Metric>,
    pub(super) outside_the_guarantee: bool,
    #[serde(rename = "rehearsals")]
    pub(super) seeded_runs: bool,
    pub(super) privacy: PrivacyRules,
}

/// `[privacy]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PrivacyRules {
    pub(super) require: Vec<Mode>,
    pub(super) noise_multiplier_min: Option<f64>,
    pub(super) norm_max_max: Option<Limit<Positive>>,
    pub(super) epsilon_max: Option<Limit<Positive>>,
    pub(super) delta: Option<f64>,
    pub(super) relations: Vec<Relation>,
}

/// What a site does: the word of a step of training, or `method:NAME`, whatever the steps of that method.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum TaskRule {
    Step(StepId),
    Method(Name),
}

impl TaskRule {
    /// The rule under which a task comes.
    pub(super) fn of(task: &Task) -> Self {
        match &task.work {
            Work::Method(work) => Self::Method(work.method.clone()),
            _ => Self::Step(task.id.step),
        }
    }
}

impl TryFrom<String> for TaskRule {
    type Error = String;
    fn try_from(typed: String) -> Result<Self, String> {
        let known = [StepId::TRAIN, StepId::EVALUATE, StepId::STATISTICS];
        match typed.strip_prefix("method:").map(str::parse) {
            Some(Ok(name)) => Ok(Self::Method(name)),
            Some(Err(error)) => Err(error.to_string()),
            None => known.into_iter().find(|step| step.name() == typed).map(Self::Step).ok_or_else(|| {
                format!(
                    "`{typed}` is no task; give \"train\", \"evaluate\", \"statistics\" or \"method:NAME\""
                )
            }),
        }
    }
}

impl fmt::Display for TaskRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(step) => f.write_str(&step.name()),
            Self::Method(name) => write!(f, "method:{name}"),
        }
    }
}

/// The word `any`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Anything {
    Any,
}

/// A largest value.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "give a number of at least 0, above 0 for norm_max_max and epsilon_max, or \"any\""
)]
pub(super) enum Limit<T> {
    Any(Anything),
    At(T),
}

impl<T> Limit<T> {
    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> Limit<U> {
        match self {
            Self::Any(any) => Limit::Any(any),
            Self::At(value) => Limit::At(change(value)),
        }
    }
}

/// Which models.
#[derive(Clone, Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "give a list of \"linear\", \"logistic\", \"mlp\", \"cnn\", \"layers\", \"external\", \"custom:NAME\", or \"any\""
)]
pub(super) enum ModelsRule {
    Any(Anything),
    Only(Vec<ModelName>),
}

/// A model, by its name.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct ModelName(pub(super) String);

impl TryFrom<String> for ModelName {
    type Error = String;
    fn try_from(name: String) -> Result<Self, String> {
        let known = ["linear", "logistic", "mlp", "cnn", "layers", "external"].contains(&name.as_str());
        let custom = name.strip_prefix("custom:").is_some_and(|custom| !custom.is_empty());
        if known || custom { Ok(Self(name)) } else { Err(format!("`{name}` is no model")) }
    }
}

/// When.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "give { from = 22, to = 6 }, two different hours of UTC from 0 to 23, or \"any\""
)]
pub(super) enum HoursRule {
    Any(Anything),
    Between(Hours),
}

/// From the beginning of one hour to the beginning of another, over midnight where the second is the earlier. UTC.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hours {
    pub(super) from: u64,
    pub(super) to: u64,
}

impl Hours {
    pub(super) fn holds(self, hour: u64) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&hour)
        } else {
            hour >= self.from || hour < self.to
        }
    }
}

impl PolicyFile {
    /// What a single value cannot show.
    pub(super) fn check(&self) -> Result<(), SpecError> {
        let wrong = |key: &str, message: String| Err(SpecError::new(key, message));
        if let Some(HoursRule::Between(Hours { from, to })) = self.hours
            && (from == to || from > 23 || to > 23)
        {
            return wrong("hours", format!("{from} to {to} are not two different hours from 0 to 23"));
        }
        let numbers = [
            ("separation_min_seconds", self.separation_min_seconds),
            ("privacy.noise_multiplier_min", self.privacy.noise_multiplier_min),
        ];
        for (key, value) in numbers {
            if value.is_some_and(|value| !(value.is_finite() && value >= 0.0)) {
                return wrong(key, "give a number of at least 0".into());
            }
        }
        match (self.privacy.epsilon_max, self.privacy.delta) {
            (Some(Limit::At(_)), None) => wrong(
                "privacy.epsilon_max",
                "an epsilon means nothing without its delta; give delta too".into(),
            ),
            (_, Some(delta)) => promised_delta(delta)
                .map(|_| ())
                .map_err(|error| SpecError::new("privacy.delta", error.to_string())),
            (None | Some(_), None) => Ok(()),
        }
    }
}
