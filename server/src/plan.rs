//! The plan of a run: what was typed in `federation.toml`, parsed into what it means.
//!
//! A [`Plan`] that exists is consistent: every number is in range and a lattice exists for its updates. The table
//! `[simulation]` may stand in the same file; it is the simulator's and means nothing to a deployed run.

mod aggregation;
mod coarse;
mod cohort;
mod method;
mod privacy;
mod strategy;
mod training;

use std::sync::Arc;

use protocol::{
    BroadcastCodec, DataSpec, EvaluationRecords, Layout, LearnerSpec, ModelSpec, PLAN_BYTES_MAX, Positive,
    Spec, SpecError, StepId, StepLabel, UpdateCodec, UpdateSpec, Weighting, check_rounds, is_plain_name,
};
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, read_toml};
use crate::methods::{MAGNITUDE_MAX, MethodPlan, Methods, check_magnitude};
use crate::optimizer::{Adaptive, AdaptiveKind, Averaging, ServerOptimizer};
use crate::schedule::Schedule;
use aggregation::check_beside;
pub use aggregation::{AggregationConfig, AggregationPlan, Named};
pub use cohort::{CohortConfig, CohortPlan, CohortSize};
use method::BesideMethod;
pub use privacy::{CentralConfig, ClippingConfig, NoiseConfig, PrivacyConfig};
#[cfg(feature = "net")]
pub(crate) use privacy::{calibrates, conduct_of, draws_secretly, typed_privacy};
pub use training::TrainingConfig;

/// What was typed. Only [`Plan`] means anything.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FederationConfig {
    /// A name for people: 1 to 64 letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// Training rounds.
    pub rounds: u32,
    /// The model; none beside a method.
    #[serde(default)]
    pub model: Option<ModelSpec>,
    /// The records; none beside an external model.
    #[serde(default, skip_serializing_if = "DataSpec::is_own")]
    pub data: DataSpec,
    /// Local training; none beside a method.
    #[serde(default)]
    pub training: Option<TrainingConfig>,
    /// What external learners are told.
    #[serde(default, skip_serializing_if = "LearnerSpec::is_absent")]
    pub learner: LearnerSpec,
    /// Something else than federated training: one table `[method.NAME]`.
    #[serde(default)]
    pub method: Option<toml::Table>,
    /// Bounds of an update.
    #[serde(default)]
    pub update: UpdateConfig,
    /// Layers that stay at the sites.
    #[serde(default)]
    pub personal_layers: Vec<String>,
    /// The algorithm.
    #[serde(default)]
    pub strategy: Strategy,
    /// A rule that sees every update, instead of their mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<AggregationConfig>,
    /// Who takes part.
    #[serde(default)]
    pub cohort: CohortConfig,
    /// Learning rate across rounds.
    #[serde(default)]
    pub schedule: Schedule,
    /// When and where the model is evaluated.
    #[serde(default)]
    pub evaluation: EvaluationPlan,
    /// What is promised about privacy.
    #[serde(default)]
    pub privacy: PrivacyConfig,
    /// The simulator's table.
    #[serde(default)]
    pub simulation: Option<toml::Table>,
}

/// Bounds of an update, as typed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateConfig {
    /// The largest L2 norm of one update; 100 by default.
    pub norm_max: Option<Positive>,
    /// How updates are weighted; by default by examples, and uniformly where the plan protects clients.
    pub weights: Option<Weighting>,
    /// The most one client can count, in examples; 131,072 by default, and 1000 where the plan protects clients.
    pub weight_max: Option<u32>,
    /// How updates travel; as they are by default.
    pub codec: UpdateCodec,
    /// How the model travels to sites; as it is by default.
    pub broadcast: BroadcastCodec,
}

/// The most that one client counts where a plan says nothing: more records than most hospitals have of a kind, and a lattice that is
/// fine enough for a million clients of such weight. Noise for clients is scaled to the largest weight, so there the default is lower.
const WEIGHT_MAX_USUAL: u32 = 1 << 17;

impl UpdateConfig {
    fn parse(&self, counts_alike: bool) -> UpdateSpec {
        let usual = UpdateSpec::default();
        let weights = if counts_alike { Weighting::Uniform } else { usual.weights };
        UpdateSpec {
            norm_max: self.norm_max.unwrap_or(usual.norm_max),
            weights: self.weights.unwrap_or(weights),
            weight_max: self.weight_max.unwrap_or(if counts_alike {
                usual.weight_max
            } else {
                WEIGHT_MAX_USUAL
            }),
            codec: self.codec,
            broadcast: self.broadcast,
        }
    }
}

/// An algorithm by name: a row of *client objective x aggregation rule x server optimizer*. The rule is the weighted
/// mean in every row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "lowercase", deny_unknown_fields)]
pub enum Strategy {
    /// Plain objective, mean, added as it is (McMahan et al. 2017).
    #[default]
    FedAvg,
    /// Proximal objective, mean, added as it is (Li et al. 2020).
    FedProx {
        /// Weight of the proximal term, at least 0.
        mu: f64,
    },
    /// Plain objective, mean, momentum (Hsu et al. 2019).
    FedAvgM {
        /// Step length at the server.
        #[serde(default = "one")]
        learning_rate: Positive,
        /// From 0 up to but not including 1.
        #[serde(default = "momentum")]
        momentum: f64,
    },
    /// Plain objective, mean, Adagrad (Reddi et al. 2021).
    FedAdagrad(AdaptiveConfig),
    /// Plain objective, mean, Adam (Reddi et al. 2021).
    FedAdam(AdaptiveConfig),
    /// Plain objective, mean, Yogi (Reddi et al. 2021).
    FedYogi(AdaptiveConfig),
}

/// Settings of the adaptive server optimizers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdaptiveConfig {
    /// Step length at the server.
    pub learning_rate: Positive,
    /// From 0 up to but not including 1.
    pub beta1: f64,
    /// From 0 up to but not including 1; without meaning to Adagrad.
    pub beta2: f64,
    /// Degree of adaptivity, above 0.
    pub tau: Positive,
}

impl Default for AdaptiveConfig {
    fn default() -> Self {
        Self { learning_rate: positive(0.1), beta1: 0.9, beta2: 0.99, tau: positive(1e-3) }
    }
}

fn positive(value: f64) -> Positive {
    Positive::new(value).expect("the defaults of this file are above 0")
}

fn one() -> Positive {
    positive(1.0)
}

fn momentum() -> f64 {
    0.9
}

impl Strategy {
    /// Every name, with the row it stands for: client objective, aggregation rule, server optimizer.
    pub const ROWS: [(&'static str, [&'static str; 3]); 6] = [
        ("fedavg", ["plain", "mean", "add"]),
        ("fedprox", ["proximal", "mean", "add"]),
        ("fedavgm", ["plain", "mean", "momentum"]),
        ("fedadagrad", ["plain", "mean", "adagrad"]),
        ("fedadam", ["plain", "mean", "adam"]),
        ("fedyogi", ["plain", "mean", "yogi"]),
    ];

    /// The server optimizer of the row.
    pub fn optimizer(&self) -> Box<dyn ServerOptimizer> {
        let adaptive = |kind, config: &AdaptiveConfig| {
            let AdaptiveConfig { learning_rate, beta1, beta2, tau } = *config;
            Box::new(Adaptive::new(kind, learning_rate.value(), beta1, beta2, tau.value()))
        };
        match self {
            Self::FedAvg | Self::FedProx { .. } => Box::new(Averaging::new(1.0, 0.0)),
            Self::FedAvgM { learning_rate, momentum } => {
                Box::new(Averaging::new(learning_rate.value(), *momentum))
            }
            Self::FedAdagrad(config) => adaptive(AdaptiveKind::Adagrad, config),
            Self::FedAdam(config) => adaptive(AdaptiveKind::Adam, config),
            Self::FedYogi(config) => adaptive(AdaptiveKind::Yogi, config),
        }
    }

    /// The settings of an adaptive server optimizer, where the row has one.
    pub(crate) fn adaptive(&self) -> Option<&AdaptiveConfig> {
        match self {
            Self::FedAdagrad(config) | Self::FedAdam(config) | Self::FedYogi(config) => Some(config),
            Self::FedAvg | Self::FedProx { .. } | Self::FedAvgM { .. } => None,
        }
    }

    fn proximal_mu(&self) -> f64 {
        if let Self::FedProx { mu } = self { *mu } else { 0.0 }
    }

    fn check(&self) -> Result<(), SpecError> {
        let below_one = |value: f64, key: String| {
            let fine = (0.0..1.0).contains(&value);
            if fine { Ok(()) } else { Err(SpecError::new(key, format!("{value} is not from 0 up to 1"))) }
        };
        let adaptive = |config: &AdaptiveConfig, name: &str| {
            below_one(config.beta1, format!("strategy.{name}.beta1"))?;
            below_one(config.beta2, format!("strategy.{name}.beta2"))?;
            check_magnitude(config.learning_rate, &format!("strategy.{name}.learning_rate"))?;
            check_magnitude(config.tau, &format!("strategy.{name}.tau"))
        };
        match self {
            Self::FedAvg => Ok(()),
            Self::FedProx { mu } if (0.0..=MAGNITUDE_MAX).contains(mu) => Ok(()),
            Self::FedProx { mu } => {
                Err(SpecError::new("strategy.fedprox.mu", format!("{mu} is not from 0 to {MAGNITUDE_MAX:e}")))
            }
            Self::FedAvgM { momentum, learning_rate } => {
                below_one(*momentum, "strategy.fedavgm.momentum".into())?;
                check_magnitude(*learning_rate, "strategy.fedavgm.learning_rate")
            }
            Self::FedAdagrad(config) => adaptive(config, "fedadagrad"),
            Self::FedAdam(config) => adaptive(config, "fedadam"),
            Self::FedYogi(config) => adaptive(config, "fedyogi"),
        }
    }
}

/// When and where the model is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationPlan {
    /// After every how many rounds; the last round is always evaluated; 0 evaluates only then.
    pub every: u32,
    /// Which sites evaluate the model.
    pub sites: Evaluators,
    /// Whether the server evaluates on a file of its own, where it has one.
    pub central: bool,
    /// On which of their records sites and server evaluate; what they measure chooses the best model.
    pub records: EvaluationRecords,
}

impl Default for EvaluationPlan {
    fn default() -> Self {
        Self { every: 1, sites: Evaluators::All, central: true, records: EvaluationRecords::Test }
    }
}

/// Which sites evaluate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evaluators {
    /// All that are connected.
    All,
    /// None.
    None,
}

impl EvaluationPlan {
    /// Whether the model is evaluated after round `round` of `rounds`.
    pub fn is_due(&self, round: u32, rounds: u32) -> bool {
        round == rounds || (self.every > 0 && round.is_multiple_of(self.every))
    }
}

/// What a run is to do. It exists only if it is consistent.
#[derive(Clone, Debug)]
pub struct Plan {
    /// A name for people.
    pub name: String,
    /// Training rounds, at least 1.
    pub rounds: u32,
    /// What every site must know.
    pub spec: Arc<Spec>,
    /// The algorithm.
    pub strategy: Strategy,
    /// Who takes part.
    pub cohort: CohortPlan,
    /// Learning rate across rounds.
    pub schedule: Schedule,
    /// When and where the model is evaluated.
    pub evaluation: EvaluationPlan,
    /// What is done instead of federated training.
    pub method: Option<MethodPlan>,
    /// What makes one vector of a round's updates, instead of their mean.
    pub aggregation: Option<AggregationPlan>,
}

impl Plan {
    /// Reads the text of a `federation.toml` that names no method; for one that may, see [`Methods::parse`].
    ///
    /// # Errors
    /// [`ConfigError`] with line, column and the value at fault.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        Self::parse_with(text, &Methods::default())
    }

    pub(crate) fn parse_with(text: &str, methods: &Methods) -> Result<Self, ConfigError> {
        if text.len() > PLAN_BYTES_MAX {
            let message = format!("the plan has {} bytes; at most {PLAN_BYTES_MAX} are allowed", text.len());
            return Err(ConfigError::at("", 0, message));
        }
        // Before it is read: who has typed what a method ignores need not type it right.
        method::check_typed(text, methods)?;
        let typed: FederationConfig = read_toml(text)?;
        Self::new(typed, methods).map_err(|error| ConfigError::of(text, &error))
    }

    /// As [`Plan::parse`], of a text that was accepted before: with the noise that was found for it then, where it asks for some to be
    /// found. That takes no time worth mentioning. `None` where noise is to be found and none is given.
    #[cfg(feature = "net")]
    pub(crate) fn parse_accepted(
        text: &str,
        methods: &Methods,
        found: Option<Positive>,
    ) -> Option<Result<Self, ConfigError>> {
        let mut typed: FederationConfig = match read_toml(text) {
            Ok(typed) => typed,
            Err(error) => return Some(Err(error)),
        };
        if let Some(central) = typed.privacy.central.as_mut().filter(|central| central.calibrates()) {
            central.set_noise(found?);
        }
        Some(Self::new(typed, methods).map_err(|error| ConfigError::of(text, &error)))
    }

    /// The same plan of an external model, with the tensors of its start file; of another model, the plan as it is.
    ///
    /// # Errors
    /// [`SpecError`] when the tensors cannot be a model.
    pub fn starting_with(mut self, layout: &Layout) -> Result<Self, SpecError> {
        if self.spec.external().is_some() {
            let tensors = layout.shared().map(|tensor| (tensor.name.clone(), tensor.shape.clone()));
            self.spec = Arc::new(Spec::clone(&self.spec).with_tensors(tensors)?);
        }
        Ok(self)
    }

    /// What logs call a step of the plan's method.
    pub(crate) fn label_of(&self, step: StepId) -> StepLabel {
        self.method.as_ref().map_or_else(StepLabel::default, |method| method.label_of(step))
    }

    /// Checks what was typed.
    ///
    /// # Errors
    /// [`SpecError`] names the setting at fault.
    pub fn new(mut typed: FederationConfig, methods: &Methods) -> Result<Self, SpecError> {
        if !is_plain_name(&typed.name) {
            let shown: String = typed.name.escape_debug().take(80).collect();
            let message = format!(
                "`{shown}` is not a name; use 1 to 64 letters, digits, '.', '_', '-', neither '.' nor '-' in front"
            );
            return Err(SpecError::new("name", message));
        }
        let alone = BesideMethod::of(&typed);
        // Before noise is calibrated and its bands are made: both take work for every round and band.
        check_rounds(typed.rounds, typed.privacy.bands())?;
        if typed.rounds == 0 {
            return Err(SpecError::new("rounds", "0 rounds train nothing; give at least 1"));
        }
        if typed.privacy.samples_secretly() {
            typed.cohort.check_secret_sampling()?;
        }
        check_beside(&typed, methods)?;
        let mut cohort = typed.cohort.parse()?;
        let aggregation = typed.aggregation.as_ref();
        let aggregation =
            aggregation.map(|table| table.parse(&mut cohort, typed.cohort.quorum, methods)).transpose()?;
        let counts_alike =
            typed.privacy.central.is_some() || typed.privacy.local.is_some() || aggregation.is_some();
        let update = typed.update.parse(counts_alike);
        let privacy = typed.privacy.parse(&typed.name, typed.rounds, &mut cohort, update.norm_max)?;
        let mut evaluation = typed.evaluation;
        if privacy.hides_metrics() || typed.method.is_some() {
            evaluation.sites = Evaluators::None;
        }
        evaluation.central &= typed.method.is_none();
        typed.schedule.check(typed.rounds)?;
        typed.strategy.check()?;
        let (method, model, training) = alone.resolve(&mut typed, methods, &privacy)?;
        let spec = Spec {
            model,
            data: typed.data,
            training,
            update,
            personal_layers: typed.personal_layers,
            proximal_mu: typed.strategy.proximal_mu(),
            cohort_max: cohort.cohort_max(),
            privacy,
            evaluation_records: evaluation.records,
            learner: typed.learner,
        }
        .checked()?;
        // The smallest model: a plan that has no lattice even for it is refused here, before any model is built.
        spec.lattice_within(spec.update.norm_max, &[1])?;
        Ok(Self {
            name: typed.name,
            rounds: typed.rounds,
            spec: Arc::new(spec),
            strategy: typed.strategy,
            cohort,
            schedule: typed.schedule,
            evaluation,
            method,
            aggregation,
        })
    }
}

/// Whether the model of a plan is external, so that its runs begin with a file. Nothing else of the plan is looked at.
#[cfg(feature = "net")]
pub(crate) fn begins_with_file(text: &str) -> Result<bool, ConfigError> {
    let typed: FederationConfig = read_toml(text)?;
    Ok(matches!(typed.model, Some(ModelSpec::External(_))))
}

#[cfg(test)]
mod tests;
