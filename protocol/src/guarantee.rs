//! What a run promises about privacy, as every site must know it: three guarantees, each for another adversary, that may
//! be stacked.
//!
//! - [`CentralPrivacy`]: the server adds noise to the sum of a cohort's clipped updates. Whoever sees models learns little
//!   about any one *client*; the server itself is trusted.
//! - [`LocalPrivacy`]: each client adds noise to its own update. The server learns little about any client.
//! - [`ExamplePrivacy`]: a client adds noise to each of its gradient steps. Whoever sees its updates, the server included,
//!   learns little about any one *record* of it.
//!
//! Here are the numbers and what they imply for an accountant. What may be claimed is checked here, too: a plan that
//! claims more than its sampling gives is refused.

use privacy::accounting::{
    Event, MULTIPLIER_MAX, Mechanism, Relation, promised_delta, promised_multiplier, tree,
};
use privacy::adaptive::update_noise_multiplier;
use privacy::correlation::Correlation;
use privacy::ledger::{Charge, Composition, Terms, Unit};
use privacy::{Lattice, Noising};
use serde::{Deserialize, Serialize};

use crate::{COHORT_MAX, Positive, SpecError, is_plain_name};

/// Everything a run promises about privacy; nothing by default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrivacySpec {
    /// Noise at the server, for the clients as wholes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub central: Option<CentralPrivacy>,
    /// Noise at each client, for the clients as wholes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalPrivacy>,
    /// Noise in each gradient step, for the records of a client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub examples: Option<ExamplePrivacy>,
}

/// Client-level privacy by noise at the server (McMahan et al. 2018; Kairouz et al. 2021 for correlated noise).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CentralPrivacy {
    /// The people behind the data: runs that name the same population share a budget.
    pub population: String,
    /// Which two federations must be hard to tell apart.
    pub relation: Relation,
    /// The delta of the guarantee, above 0, at most 0.01; well below one over the number of clients.
    pub delta: f64,
    /// The budget: no round begins that would bring epsilon at `delta` above it.
    pub epsilon_max: Positive,
    /// Standard deviation of the noise of one release over the clipping norm; for correlated noise, of the whole mechanism
    /// as one Gaussian release.
    pub noise_multiplier: Positive,
    /// Releases planned: the rounds of the run.
    pub rounds: u32,
    /// The fixed number of clients by which the noised sum is divided, whatever the number that answered: from 1 to 2^42.
    pub denominator: Positive,
    /// How cohorts come about.
    pub sampling: Sampling,
    /// Whether the noise of different rounds is independent.
    pub noise: NoiseCorrelation,
    /// How the clipping norm is chosen.
    pub clipping: Clipping,
    /// What is measured at sites and told to the server.
    pub metrics: MetricsRule,
    /// Answers without which a round releases nothing. 0 with secret sampling: a quorum would choose the rounds to release by
    /// their cohorts.
    pub clients_min: u32,
}

/// How cohorts come about: what may be claimed follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Sampling {
    /// The server flips a secret coin for every enrolled client, whether or not it is connected; who does not come counts
    /// as a zero. Amplification may be claimed towards those who do not see who took part.
    Poisson {
        /// Each client's chance, above 0, at most 1.
        rate: f64,
    },
    /// The server draws a cohort of a fixed size uniformly from the enrolled clients, whether or not they are connected.
    Fixed {
        /// Clients that are enrolled, at least.
        population: u64,
        /// Clients drawn.
        sample: u64,
    },
    /// Whoever is there. Nothing is claimed from chance; how often each client takes part is limited instead.
    Availability {
        /// The most releases that one client takes part in.
        participations_max: u32,
        /// The least difference between the numbers of two rounds that a client takes part in; 1 is each round.
        #[serde(default = "one")]
        separation_min: u32,
    },
}

fn one() -> u32 {
    1
}

impl Sampling {
    /// Whether cohorts come about by secret chance. Nothing that depends on the drawn cohort may then keep a client out or
    /// decide whether a round is released, and nothing may show who or how many took part.
    pub fn is_secret(&self) -> bool {
        match self {
            Self::Poisson { .. } | Self::Fixed { .. } => true,
            Self::Availability { .. } => false,
        }
    }
}

/// Whether the noise of different rounds is independent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NoiseCorrelation {
    /// Each release has its own.
    #[default]
    Independent,
    /// Noise of a binary tree over the rounds (Kairouz et al. 2021, DP-FTRL).
    Tree,
    /// Noise that takes back part of the noise of earlier rounds: the multipliers of the last rounds' noise, in units of
    /// 2^-20, most recent first. The noise of round t is `z_t - sum_j w_j z_(t-j)`.
    Banded {
        /// Weights in units of 2^-20, each from 0 to 2^20.
        weights: Vec<u32>,
    },
}

impl NoiseCorrelation {
    /// The same, as it is drawn.
    pub fn correlation(&self) -> Correlation {
        match self {
            Self::Independent => Correlation::Independent,
            Self::Tree => Correlation::Tree,
            Self::Banded { weights } => Correlation::Banded { weights: weights.clone() },
        }
    }
}

/// The unit of [`NoiseCorrelation::Banded`]'s weights.
pub const BAND_UNIT: u32 = 1 << 20;

/// How the clipping norm is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Clipping {
    /// The plan's `update.norm_max`, over the whole update.
    #[default]
    Fixed,
    /// Each tensor has an equal share of the squared `update.norm_max`, and noise of its own (McMahan et al. 2018).
    PerLayer,
    /// It follows a quantile of the updates' norms, from `update.norm_max` (Andrew et al. 2021).
    Adaptive {
        /// The share of clients whose update should be within the norm, 0 to 1.
        quantile: f64,
        /// Learning rate of the norm's logarithm.
        rate: f64,
        /// Standard deviation of the noise on the number of clients within the norm.
        count_noise: f64,
        /// The norm never goes below this.
        norm_min: Positive,
        /// The norm never goes above this.
        norm_max: Positive,
    },
}

/// What is measured at sites and told to the server beside updates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum MetricsRule {
    /// Nothing.
    #[default]
    Off,
    /// Everything, as without privacy: the statement of every release says that it is outside the guarantee.
    OutsideTheGuarantee,
}

impl MetricsRule {
    fn is_off(&self) -> bool {
        *self == Self::Off
    }
}

/// Client-level privacy by noise at each client.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalPrivacy {
    /// Standard deviation of the noise on one update over the clipping norm.
    pub noise_multiplier: Positive,
    /// The delta of the guarantee.
    pub delta: f64,
    /// No client answers once its epsilon at `delta` would be above this, over everything in the client's ledger.
    pub epsilon_max: Positive,
    /// What is measured at sites and told to the server.
    #[serde(default, skip_serializing_if = "MetricsRule::is_off")]
    pub metrics: MetricsRule,
}

/// Record-level privacy by noise in each gradient step (Abadi et al. 2016).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExamplePrivacy {
    /// Standard deviation of the noise on a sum of clipped gradients over `norm_max`.
    pub noise_multiplier: Positive,
    /// The largest norm of one example's gradient.
    pub norm_max: Positive,
    /// The delta of the guarantee; well below one over the number of records of a site.
    pub delta: f64,
    /// No client trains once the epsilon at `delta` of its records would be above this, over everything in its ledger.
    pub epsilon_max: Positive,
    /// What is measured at sites and told to the server.
    #[serde(default, skip_serializing_if = "MetricsRule::is_off")]
    pub metrics: MetricsRule,
}

impl PrivacySpec {
    /// Whether nothing is promised.
    pub fn is_none(&self) -> bool {
        self == &Self::default()
    }

    /// Checks what a single value cannot show.
    ///
    /// # Errors
    /// [`SpecError`] names the setting at fault.
    pub fn check(&self) -> Result<(), SpecError> {
        if let Some(central) = &self.central {
            central.check()?;
        }
        if let Some(local) = &self.local {
            check_delta(local.delta, "privacy.local.delta")?;
            check_multiplier(local.noise_multiplier, "privacy.local.noise_multiplier")?;
            if self.central.is_some() {
                let message = "updates that are noised at the clients cannot be noised centrally as well; \
                               keep [privacy.central] or [privacy.local]";
                return Err(SpecError::new("privacy.local", message));
            }
        }
        if let Some(examples) = &self.examples {
            check_delta(examples.delta, "privacy.examples.delta")?;
            check_multiplier(examples.noise_multiplier, "privacy.examples.noise_multiplier")?;
        }
        Ok(())
    }

    /// Whether clients vote on the clipping norm.
    pub fn is_adaptive(&self) -> bool {
        self.central.as_ref().is_some_and(|central| matches!(central.clipping, Clipping::Adaptive { .. }))
    }

    /// Whether every tensor of an update is clipped on its own.
    pub fn is_per_layer(&self) -> bool {
        self.central.as_ref().is_some_and(|central| central.clipping == Clipping::PerLayer)
    }

    /// Whether clients are drawn by secret chance: then nothing shows who or how many took part in a training, unless a seed is
    /// told to the sites.
    pub fn samples_secretly(&self) -> bool {
        self.central.as_ref().is_some_and(|central| central.sampling.is_secret())
    }

    /// Whether metrics of sites stay at the sites: every promise hides them unless it says otherwise itself.
    pub fn hides_metrics(&self) -> bool {
        self.metrics_rules().any(|rule| rule == MetricsRule::Off)
    }

    /// Whether metrics of sites are told beside a promise that does not cover them.
    pub fn tells_metrics_outside(&self) -> bool {
        !self.is_none() && !self.hides_metrics()
    }

    /// Whether something is promised that must hold against the server, too. Then whatever leaves a site (which answer,
    /// with which reason, how long, at which cost) must follow from the task, from public facts and from noised releases that
    /// are paid for.
    pub fn holds_against_server(&self) -> bool {
        self.local.is_some() || self.examples.is_some()
    }

    fn metrics_rules(&self) -> impl Iterator<Item = MetricsRule> {
        let rules = [
            self.central.as_ref().map(|central| central.metrics),
            self.local.map(|local| local.metrics),
            self.examples.map(|examples| examples.metrics),
        ];
        rules.into_iter().flatten()
    }
}

impl CentralPrivacy {
    /// How one client may take part.
    pub fn participation(&self) -> Option<(u32, u32)> {
        match self.sampling {
            Sampling::Availability { participations_max, separation_min } => {
                Some((participations_max, separation_min))
            }
            Sampling::Poisson { .. } | Sampling::Fixed { .. } => None,
        }
    }

    /// The factor by which the noise of one round is larger than `noise_multiplier` says, for sums of `dimension` coordinates
    /// that one client moves by at most `sensitivity` lattice units. 1 for independent noise; for a tree, of one node.
    ///
    /// # Errors
    /// [`SpecError`] when the weights have no bounded sensitivity.
    pub fn noise_scale(&self, dimension: usize, sensitivity: u64) -> Result<f64, SpecError> {
        let (times, apart) = self.participation().unwrap_or((self.rounds, 1));
        let scale = self.noise.correlation().noise_scale(self.rounds, times, apart, dimension, sensitivity);
        scale.map_err(|error| SpecError::new("privacy.central.noise", error.to_string()))
    }

    /// The noise over the clipping norm by which this noise is to be judged: of one release where each has its own, and where
    /// it is correlated of the whole run as one Gaussian release.
    ///
    /// # Errors
    /// [`SpecError`] for numbers that no accountant takes.
    pub fn noise_multiplier_of_mechanism(&self) -> Result<f64, SpecError> {
        let multiplier = self.noise_multiplier.value();
        if self.noise != NoiseCorrelation::Tree {
            return Ok(multiplier);
        }
        // The plan's number is that of one node, and a client is in many.
        let (times, apart) = self.participation().unwrap_or((self.rounds, 1));
        let squared = tree::sensitivity_squared(self.rounds.into(), times.into(), apart.into());
        let squared = squared.map_err(|error| SpecError::new("privacy.central.noise", error.to_string()))?;
        Ok(multiplier / squared.max(1.0).sqrt())
    }

    /// How sums on `lattice` are noised: what the server does, and what an audit attacks.
    ///
    /// # Errors
    /// [`SpecError`] when the weights of correlated noise have no bounded sensitivity.
    pub fn noising(&self, lattice: &Lattice) -> Result<Noising, SpecError> {
        let scale = self.noise_scale(lattice.dimension(), lattice.sensitivity())?;
        let noising = Noising::new(self.denominator.value()).with_scale(scale);
        Ok(match self.clipping {
            Clipping::Adaptive { count_noise, .. } => noising.with_votes(count_noise),
            Clipping::Fixed | Clipping::PerLayer => noising,
        })
    }

    /// What one release of this run costs, for one client at worst.
    pub fn charge(&self) -> Charge {
        let noise_multiplier = self.noise_multiplier.value();
        let (times, apart) = self.participation().unwrap_or((self.rounds, 1));
        let each = |mechanism, at_most| Charge { mechanism, composition: Composition::Each { at_most } };
        match (&self.noise, self.sampling) {
            (NoiseCorrelation::Independent, Sampling::Poisson { rate: sampling_rate }) => {
                each(Mechanism::PoissonGaussian { noise_multiplier, sampling_rate }, None)
            }
            (NoiseCorrelation::Independent, Sampling::Fixed { population, sample }) => {
                each(Mechanism::WithoutReplacementGaussian { noise_multiplier, population, sample }, None)
            }
            (NoiseCorrelation::Independent, Sampling::Availability { .. }) => {
                each(Mechanism::Gaussian { noise_multiplier }, Some(times.into()))
            }
            // Correlated noise is one mechanism over all rounds, paid for as a whole before the first.
            (NoiseCorrelation::Tree, _) => {
                let mechanism = Mechanism::Tree {
                    noise_multiplier,
                    steps: self.rounds.into(),
                    participations_max: times.into(),
                    separation_min: apart.into(),
                };
                Charge { mechanism, composition: Composition::Whole }
            }
            (NoiseCorrelation::Banded { .. }, _) => Charge {
                mechanism: Mechanism::Gaussian { noise_multiplier },
                composition: Composition::Whole,
            },
        }
    }

    /// The number of clients that share a sum, as far as the plan says: with secret sampling how many are drawn, or by how many
    /// a Poisson sum is divided; without, how many answers a release needs. It is what a site's rule for the least number is
    /// compared with: secret sampling cannot promise a least number without losing its secret.
    pub fn clients_expected(&self) -> u64 {
        match self.sampling {
            // A cast of a positive finite number saturates.
            Sampling::Poisson { .. } => self.denominator.value().floor() as u64,
            Sampling::Fixed { sample, .. } => sample,
            Sampling::Availability { .. } => self.clients_min.into(),
        }
    }

    /// What this run's first `releases` releases amount to, for one client at worst.
    ///
    /// # Errors
    /// [`SpecError`] for numbers that no accountant takes.
    pub fn events(&self, releases: u64) -> Result<Vec<Event>, SpecError> {
        if releases == 0 {
            return Ok(Vec::new());
        }
        let wrong = || SpecError::new("privacy.central", "these numbers make no event an accountant takes");
        Ok(vec![self.charge().event(releases).ok_or_else(wrong)?])
    }

    /// The budget, as a ledger keeps it.
    pub fn terms(&self) -> Terms {
        Terms {
            population: self.population.clone(),
            unit: Unit::Client,
            relation: self.relation,
            delta: self.delta,
            epsilon_max: self.epsilon_max.value(),
        }
    }

    fn check(&self) -> Result<(), SpecError> {
        self.check_bounds()?;
        check_delta(self.delta, "privacy.central.delta")?;
        check_multiplier(self.noise_multiplier, "privacy.central.noise_multiplier")?;
        if !(1.0..=DENOMINATOR_MAX).contains(&self.denominator.value()) {
            let message = "a sum is divided by a number of clients; give at least 1 and at most 2^42";
            return wrong("denominator", message);
        }
        if !is_plain_name(&self.population) {
            let message =
                "give a name of 1 to 64 letters, digits, '.', '_', '-', neither '.' nor '-' in front";
            return wrong("population", message);
        }
        self.check_sampling()?;
        self.check_noise()?;
        match (self.sampling.is_secret(), self.clients_min) {
            (false, 0) => return wrong("clients_min", "give at least 1"),
            (false, least) if u64::from(least) > COHORT_MAX => {
                return wrong(
                    "clients_min",
                    &format!("{least} is more than a cohort can have, {COHORT_MAX}"),
                );
            }
            (true, least) if least > 0 => {
                let message = "a quorum beside poisson or fixed sampling releases only rounds with large cohorts, and the \
                               amplification by sampling is lost; leave it out (every round is released, an empty one as \
                               noise), or take sampling = { availability = ... }";
                return wrong("clients_min", message);
            }
            _ => {}
        }
        self.events(u64::from(self.rounds))?;
        self.noise_scale(1, 1 << 20).map(|_| ())
    }

    /// Whether the claim goes with the way in which cohorts come about.
    fn check_sampling(&self) -> Result<(), SpecError> {
        match (self.sampling, self.relation) {
            (Sampling::Poisson { rate }, _) if !(rate > 0.0 && rate <= 1.0) => {
                return wrong("sampling", "a rate must be above 0 and at most 1");
            }
            (Sampling::Poisson { .. }, Relation::ReplaceOne) => {
                return wrong(
                    "relation",
                    "poisson sampling is accounted for under add_or_remove_one or zero_out",
                );
            }
            (Sampling::Fixed { population, sample }, _) if sample == 0 || sample > population => {
                return wrong("sampling", "a sample must be from 1 to the population");
            }
            (Sampling::Fixed { sample, .. }, _) if sample > COHORT_MAX => {
                return wrong("sampling", &format!("a sample must be at most {COHORT_MAX} clients"));
            }
            (Sampling::Fixed { .. }, Relation::AddOrRemoveOne | Relation::ZeroOut) => {
                return wrong("relation", "a sample of fixed size is accounted for under replace_one only");
            }
            (Sampling::Availability { participations_max, separation_min }, _)
                if participations_max == 0 || separation_min == 0 =>
            {
                return wrong("sampling", "participations_max and separation_min must be at least 1");
            }
            (Sampling::Availability { .. }, Relation::AddOrRemoveOne | Relation::ReplaceOne) => {
                return wrong("relation", "without secret sampling, who takes part is known: claim zero_out");
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether noise, clipping and sampling go together.
    fn check_noise(&self) -> Result<(), SpecError> {
        if self.noise != NoiseCorrelation::Independent && self.participation().is_none() {
            let message = "correlated noise makes no use of sampling; give sampling = { availability = ... } and claim nothing from chance";
            return wrong("sampling", message);
        }
        match &self.noise {
            NoiseCorrelation::Banded { weights }
                if weights.is_empty() || weights.len() > 64 || weights.iter().any(|w| *w > BAND_UNIT) =>
            {
                return wrong("noise", "give 1 to 64 weights, each from 0 to 2^20");
            }
            _ => {}
        }
        match self.clipping {
            Clipping::Adaptive { quantile, rate, count_noise, norm_min, norm_max } => {
                let sound = (0.0..=1.0).contains(&quantile)
                    && rate > 0.0
                    && rate <= 10.0
                    && count_noise > 0.0
                    && count_noise <= MULTIPLIER_MAX
                    && norm_min <= norm_max;
                if !sound {
                    return wrong(
                        "clipping",
                        "quantile is from 0 to 1, rate above 0 and at most 10, count_noise above 0 and at most 10^6, norm_min at most norm_max",
                    );
                }
                if let Err(error) = update_noise_multiplier(self.noise_multiplier.value(), count_noise) {
                    return wrong("clipping", &error.to_string());
                }
                if self.noise != NoiseCorrelation::Independent {
                    let message = "a norm that changes between rounds changes what the noise of earlier rounds was worth; \
                                   take fixed clipping with correlated noise";
                    return wrong("clipping", message);
                }
            }
            Clipping::Fixed | Clipping::PerLayer => {}
        }
        Ok(())
    }
}

/// The most clients a sum is divided by: as many as a lattice can hold.
const DENOMINATOR_MAX: f64 = (1u64 << 42) as f64;

/// A setting of `[privacy.central]` that is refused.
fn wrong<T>(key: &str, message: &str) -> Result<T, SpecError> {
    Err(SpecError::new(format!("privacy.central.{key}"), message.to_owned()))
}

fn check_delta(delta: f64, key: &str) -> Result<(), SpecError> {
    promised_delta(delta).map(|_| ()).map_err(|error| SpecError::new(key, error.to_string()))
}

fn check_multiplier(multiplier: Positive, key: &str) -> Result<(), SpecError> {
    let checked = promised_multiplier(multiplier.value());
    checked.map(|_| ()).map_err(|error| SpecError::new(key, error.to_string()))
}
