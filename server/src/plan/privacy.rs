//! What was typed under `[privacy]`, parsed into what is promised: gaps are filled in, noise is calibrated to a target
//! epsilon, and what could not be kept is refused.

use privacy::accounting::calibration::calibrate;
use privacy::accounting::{self, Relation};
use privacy::correlation::{buffered_weights, square_root_weights};
#[cfg(feature = "net")]
use privacy::ledger::{Cohorts, Conduct, SiteMetrics};
use protocol::{
    CentralPrivacy, Clipping, ExamplePrivacy, LocalPrivacy, MetricsRule, NoiseCorrelation, Positive,
    PrivacySpec, Sampling, SpecError,
};
use serde::{Deserialize, Serialize};

use super::CohortPlan;
#[cfg(feature = "net")]
use super::{ConfigError, FederationConfig, read_toml};

/// `[privacy]`, as typed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrivacyConfig {
    /// Noise at the server.
    pub central: Option<CentralConfig>,
    /// Noise at each client.
    pub local: Option<LocalPrivacy>,
    /// Noise in each gradient step.
    pub examples: Option<ExamplePrivacy>,
}

/// `[privacy.central]`, as typed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CentralConfig {
    /// The people behind the data; the plan's name by default. Runs that name the same population share a budget.
    pub population: Option<String>,
    /// By default `zero_out`; with a sample of fixed size `replace_one`.
    pub relation: Option<Relation>,
    /// 0 to 1, both excluded.
    pub delta: f64,
    /// The budget of the population at `delta`.
    pub epsilon_max: Positive,
    /// Noise over clipping norm; this or `epsilon`.
    pub noise_multiplier: Option<Positive>,
    /// What all rounds of this run may amount to at `delta`, from which the noise follows; this or `noise_multiplier`.
    pub epsilon: Option<Positive>,
    /// The number of clients by which the noised sum is divided.
    pub denominator: Positive,
    /// How cohorts come about.
    pub sampling: Sampling,
    /// Whether the noise of different rounds is independent.
    #[serde(default)]
    pub noise: NoiseConfig,
    /// How the clipping norm is chosen.
    #[serde(default)]
    pub clipping: ClippingConfig,
    /// What is measured at sites and told to the server.
    #[serde(default)]
    pub metrics: MetricsRule,
    /// Answers without which a round releases nothing; by default the plan's quorum. With secret sampling there is none, and
    /// any other number than 0 is refused.
    pub clients_min: Option<u32>,
}

/// Whether the noise of different rounds is independent, as typed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NoiseConfig {
    /// Each release has its own.
    #[default]
    Independent,
    /// A binary tree over the rounds.
    Tree,
    /// The first `bands` weights of the inverse of the prefix sums' square root (Fichtenberger, Henzinger, Upadhyay 2023).
    SquareRoot {
        /// How many earlier rounds' noise is taken back in part, 1 to 64.
        bands: usize,
    },
    /// The first `bands` weights of the inverse of a buffered linear Toeplitz matrix (Dvijotham et al. 2024): for each buffer
    /// its decay and its scale.
    Buffered {
        /// Decay and scale of each buffer.
        buffers: Vec<(f64, f64)>,
        /// How many earlier rounds' noise is taken back in part, 1 to 64.
        bands: usize,
    },
    /// Weights of your own in units of 2^-20, most recent first.
    Banded {
        /// Each from 0 to 2^20.
        weights: Vec<u32>,
    },
}

/// How the clipping norm is chosen, as typed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ClippingConfig {
    /// `update.norm_max` over the whole update.
    #[default]
    Fixed,
    /// An equal share of it for each tensor.
    PerLayer,
    /// It follows a quantile of the updates' norms, from `update.norm_max`.
    Adaptive {
        /// The share of clients within it.
        #[serde(default = "half")]
        quantile: f64,
        /// Learning rate of its logarithm.
        #[serde(default = "fifth")]
        rate: f64,
        /// Deviation of the noise on the count; by default a twentieth of the denominator (Andrew et al. 2021), and never so
        /// little that it takes more than a tenth of the noise's worth.
        count_noise: Option<f64>,
        /// Its least value; by default a millionth of the first.
        norm_min: Option<Positive>,
        /// Its largest value; by default a million times the first.
        norm_max: Option<Positive>,
    },
}

fn half() -> f64 {
    0.5
}

fn fifth() -> f64 {
    0.2
}

impl PrivacyConfig {
    /// Whether clients are drawn by secret chance.
    pub(super) fn samples_secretly(&self) -> bool {
        self.central.as_ref().is_some_and(|central| central.sampling.is_secret())
    }

    /// How many bands, or buffers to make bands of, the noise has.
    pub(super) fn bands(&self) -> usize {
        match self.central.as_ref().map(|central| &central.noise) {
            None | Some(NoiseConfig::Independent | NoiseConfig::Tree) => 0,
            Some(NoiseConfig::SquareRoot { bands }) => *bands,
            Some(NoiseConfig::Buffered { buffers, bands }) => (*bands).max(buffers.len()),
            Some(NoiseConfig::Banded { weights }) => weights.len(),
        }
    }

    /// What is promised by a plan of `rounds` rounds named `name` with these cohorts and this first clipping norm.
    pub(super) fn parse(
        &self,
        name: &str,
        rounds: u32,
        cohort: &mut CohortPlan,
        norm: Positive,
    ) -> Result<PrivacySpec, SpecError> {
        let central =
            self.central.as_ref().map(|central| central.parse(name, rounds, cohort, norm)).transpose()?;
        let spec = PrivacySpec { central, local: self.local, examples: self.examples };
        spec.check()?;
        Ok(spec)
    }
}

impl CentralConfig {
    fn parse(
        &self,
        name: &str,
        rounds: u32,
        cohort: &mut CohortPlan,
        norm: Positive,
    ) -> Result<CentralPrivacy, SpecError> {
        let relation = match self.sampling {
            Sampling::Fixed { .. } => Relation::ReplaceOne,
            Sampling::Poisson { .. } | Sampling::Availability { .. } => Relation::ZeroOut,
        };
        let least = if self.sampling.is_secret() { 0 } else { cohort.quorum as u32 };
        let clients_min = self.clients_min.unwrap_or(least);
        cohort.quorum = clients_min as usize;
        let mut central = CentralPrivacy {
            population: self.population.clone().unwrap_or_else(|| name.to_owned()),
            relation: self.relation.unwrap_or(relation),
            delta: self.delta,
            epsilon_max: self.epsilon_max,
            noise_multiplier: self.noise_multiplier.unwrap_or(norm),
            rounds,
            denominator: self.denominator,
            sampling: self.sampling,
            noise: self.noise.parse()?,
            clipping: Clipping::Fixed,
            metrics: self.metrics,
            clients_min,
        };
        central.noise_multiplier = self.multiplier(&central)?;
        central.clipping = self.clipping.parse(&central, norm)?;
        Ok(central)
    }

    /// The noise multiplier: as typed, or the least that keeps the target epsilon over all rounds.
    fn multiplier(&self, central: &CentralPrivacy) -> Result<Positive, SpecError> {
        let wrong = |message: String| SpecError::new("privacy.central", message);
        match (self.noise_multiplier, self.epsilon) {
            (Some(multiplier), None) => Ok(multiplier),
            (None, Some(target)) => {
                let epsilon_of = |multiplier: f64| {
                    let central =
                        CentralPrivacy { noise_multiplier: Positive::new(multiplier)?, ..central.clone() };
                    let events = central.events(central.rounds.into())?;
                    let epsilon = accounting::epsilon(&events, central.relation, central.delta);
                    epsilon.map(|epsilon| epsilon.best()).map_err(|error| wrong(error.to_string()))
                };
                let least =
                    calibrate(target.value(), epsilon_of).map_err(|error| wrong(error.to_string()))?;
                Positive::new(least)
            }
            _ => Err(wrong("give `noise_multiplier` or `epsilon`, not both and not neither".into())),
        }
    }
}

impl NoiseConfig {
    fn parse(&self) -> Result<NoiseCorrelation, SpecError> {
        Ok(match self {
            Self::Independent => NoiseCorrelation::Independent,
            Self::Tree => NoiseCorrelation::Tree,
            Self::SquareRoot { bands } => NoiseCorrelation::Banded { weights: square_root_weights(*bands) },
            Self::Buffered { buffers, bands } => {
                check_buffers(buffers)?;
                NoiseCorrelation::Banded { weights: buffered_weights(buffers, *bands) }
            }
            Self::Banded { weights } => NoiseCorrelation::Banded { weights: weights.clone() },
        })
    }
}

/// Whether bands can be made of these buffers. A number that is none would become a band of 0, unseen.
fn check_buffers(buffers: &[(f64, f64)]) -> Result<(), SpecError> {
    let wrong = |message: String| Err(SpecError::new("privacy.central.noise", message));
    if buffers.is_empty() {
        return wrong("buffers = [] makes no correlated noise; give each buffer as [decay, scale]".into());
    }
    let sound = |(decay, scale): &(f64, f64)| (0.0..1.0).contains(decay) && (0.0..=1.0).contains(scale);
    match buffers.iter().find(|buffer| !sound(buffer)) {
        None => Ok(()),
        Some((decay, scale)) => wrong(format!(
            "invalid buffer [{decay}, {scale}]: a decay is at least 0 and below 1, a scale from 0 to 1"
        )),
    }
}

impl ClippingConfig {
    fn parse(&self, central: &CentralPrivacy, norm: Positive) -> Result<Clipping, SpecError> {
        let Self::Adaptive { quantile, rate, count_noise, norm_min, norm_max } = *self else {
            return Ok(if *self == Self::PerLayer { Clipping::PerLayer } else { Clipping::Fixed });
        };
        // A tenth of the worth of the noise: (2 b)^-2 = z^-2 / 10.
        let fair = central.noise_multiplier.value() * 10f64.sqrt() / 2.0;
        let count_noise = count_noise.unwrap_or_else(|| (central.denominator.value() / 20.0).max(fair));
        let least = Positive::new(norm.value() * 1e-6)?;
        let most = Positive::new(norm.value() * 1e6)?;
        let (norm_min, norm_max) = (norm_min.unwrap_or(least), norm_max.unwrap_or(most));
        Ok(Clipping::Adaptive { quantile, rate, count_noise, norm_min, norm_max })
    }
}

#[cfg(feature = "net")]
impl CentralConfig {
    /// Whether the noise is to be found for a target epsilon, which takes seconds to minutes.
    pub(super) fn calibrates(&self) -> bool {
        self.noise_multiplier.is_none() && self.epsilon.is_some()
    }

    /// Takes this noise in the place of a search for it.
    pub(super) fn set_noise(&mut self, found: Positive) {
        (self.noise_multiplier, self.epsilon) = (Some(found), None);
    }
}

/// Whether reading the text of a plan searches for its noise.
#[cfg(feature = "net")]
pub(crate) fn calibrates(plan_toml: &str) -> bool {
    typed_privacy(plan_toml).is_ok_and(|typed| typed.central.is_some_and(|central| central.calibrates()))
}

/// What the text of a plan says of privacy, as typed: no noise is searched for.
///
/// # Errors
/// The text is no plan of this release.
#[cfg(feature = "net")]
pub(crate) fn typed_privacy(plan_toml: &str) -> Result<PrivacyConfig, ConfigError> {
    read_toml(plan_toml).map(|typed: FederationConfig| typed.privacy)
}

/// Whether the text of a plan draws clients by secret chance. A text that is not understood is taken as if it did: whoever asks
/// would show what must not be shown then.
#[cfg(feature = "net")]
pub(crate) fn draws_secretly(plan_toml: &str) -> bool {
    let typed: Result<FederationConfig, _> = read_toml(plan_toml);
    typed.map_or(true, |typed| typed.privacy.samples_secretly())
}

/// What the ledger must know of a run with this plan. Its cohorts are secret only if they are drawn so, no seed is told to the
/// sites, and nothing that earlier versions allowed kept drawn clients out or decided by them.
#[cfg(feature = "net")]
pub(crate) fn conduct_of(plan_toml: &str, is_seeded: bool) -> Conduct {
    let typed: Result<FederationConfig, _> = read_toml(plan_toml);
    let unknown = Conduct { cohorts: Cohorts::Known, metrics: SiteMetrics::Told };
    let Ok(FederationConfig { cohort, privacy: PrivacyConfig { central: Some(central), .. }, .. }) = typed
    else {
        return unknown;
    };
    let unbiased = cohort.check_secret_sampling().is_ok() && central.clients_min.unwrap_or(0) == 0;
    let cohorts = match central.sampling.is_secret() && unbiased && !is_seeded {
        true => Cohorts::Secret,
        false => Cohorts::Known,
    };
    let metrics = match central.metrics {
        MetricsRule::Off => SiteMetrics::Hidden,
        MetricsRule::OutsideTheGuarantee => SiteMetrics::Told,
    };
    Conduct { cohorts, metrics }
}
