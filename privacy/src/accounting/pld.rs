//! Privacy loss distributions: the tighter accountant, numerical and on the safe side.
//!
//! The distribution of the privacy loss of one release is put on a grid so that every promise read from it is
//! at least as cautious as the truth (Doroshenko et al., "Connect the Dots", 2022); composition is convolution.
//! Both directions are kept, with and without the unit in question, and the worse one answers. Rates and
//! multipliers are of the conventions of [`Event`]: noise over the clipping norm C, also where a unit is
//! replaced and moves a sum by 2C.
//!
//! It refuses mechanisms it has no distribution for, a delta below [`DELTA_MIN`] (the noise of the transform
//! begins there) and more than [`COUNT_MAX`] sampled releases.

pub(crate) mod binomial;
mod dots;
mod masses;
pub(crate) mod step;

use masses::{LENGTH_MAX, Masses, TooLong, compose};
use step::{Direction, Step, directions};

use super::{AccountingError, Event, Mechanism, Relation};

/// The least delta that is answered. Over 1e5 sampled releases the transform's noise, counted as infinite loss, may reach
/// 1e-11: a delta below it is answered by infinity then.
pub const DELTA_MIN: f64 = 1e-12;
/// The most sampled releases that are composed.
pub const COUNT_MAX: u64 = 10_000_000;
/// The grid of the loss where no wider or finer one is called for.
pub const INTERVAL: f64 = 1e-4;

const ACCOUNTANT: &str = "the privacy loss accountant";

/// How the privacy loss of some releases is distributed.
#[derive(Clone, Debug)]
pub struct PrivacyLoss {
    directions: Vec<Masses>,
}

/// Epsilon at `delta` of all `events` together, by privacy loss distributions; infinite when one of them adds
/// no noise.
///
/// # Errors
/// [`AccountingError`] when `delta` is outside ([`DELTA_MIN`], 1), and when a mechanism has no distribution
/// here.
pub fn epsilon(events: &[Event], relation: Relation, delta: f64) -> Result<f64, AccountingError> {
    check_delta(delta)?;
    PrivacyLoss::new(events, relation)?.epsilon(delta)
}

/// Epsilon at `delta` of one release by the Poisson-sampled Gaussian, without a grid: the root of its exact
/// curve.
///
/// # Errors
/// [`AccountingError`] when a parameter or `delta` is out of range.
pub fn single_release_epsilon(
    noise_multiplier: f64,
    sampling_rate: f64,
    relation: Relation,
    delta: f64,
) -> Result<f64, AccountingError> {
    check_multiplier(noise_multiplier)?;
    check_rate(sampling_rate)?;
    if !(delta > 0.0 && delta < 1.0) {
        return Err(AccountingError::Delta { delta, least: 0.0 });
    }
    let steps = steps(noise_multiplier, sampling_rate, relation);
    if sampling_rate > 0.0 && steps.iter().any(Step::is_bare) {
        return Ok(f64::INFINITY);
    }
    let exact = |epsilon: f64| steps.iter().map(|step| step.delta(epsilon)).fold(0.0, worse);
    if sampling_rate == 0.0 || exact(0.0) <= delta {
        return Ok(0.0);
    }
    let (mut low, mut high) = (0.0, 1.0);
    while exact(high) > delta {
        (low, high) = (high, high * 2.0);
        if high == f64::INFINITY {
            return Ok(high);
        }
    }
    for _ in 0..80 {
        let middle = low + (high - low) / 2.0;
        if exact(middle) > delta { low = middle } else { high = middle }
    }
    Ok(high)
}

impl PrivacyLoss {
    /// The loss of all `events` together, on a grid of [`INTERVAL`], finer for many releases of little loss
    /// each and wider where the losses are too great for it. No events at all lose nothing.
    ///
    /// # Errors
    /// [`AccountingError`] when a mechanism has no distribution here, or there are more than [`COUNT_MAX`]
    /// sampled releases.
    pub fn new(events: &[Event], relation: Relation) -> Result<Self, AccountingError> {
        let phases = phases(events, relation)?;
        Ok(Self::of_phases(&phases, interval(&phases)))
    }

    /// The loss of one release by the Poisson-sampled Gaussian on a grid of `interval` (or wider, where it is
    /// too fine).
    ///
    /// # Errors
    /// [`AccountingError`] when a parameter is out of range: the multiplier at least 0, the rate in `[0, 1]`,
    /// the interval in `[1e-9, 1]`.
    pub fn poisson_gaussian(
        noise_multiplier: f64,
        sampling_rate: f64,
        relation: Relation,
        interval: f64,
    ) -> Result<Self, AccountingError> {
        check_multiplier(noise_multiplier)?;
        check_rate(sampling_rate)?;
        if !(1e-9..=1.0).contains(&interval) {
            return Err(AccountingError::Parameter {
                name: "the interval",
                value: interval,
                range: "1e-9 to 1",
            });
        }
        let steps = steps(noise_multiplier, sampling_rate, relation);
        let phases = [Phase::new(steps, 1)];
        Ok(Self::of_phases(&phases[..usize::from(sampling_rate > 0.0)], interval))
    }

    /// The exact loss of one release of an integer query with discrete Gaussian noise of parameter `sigma`,
    /// where one unit moves the query by at most `sensitivity` (Canonne, Kamath, Steinke, "The Discrete
    /// Gaussian for Differential Privacy", 2020, theorem 7): its losses lie on a grid of their own.
    ///
    /// # Errors
    /// [`AccountingError::Parameter`] when `sigma` is outside `(0, 1e5]` or `sensitivity` outside `1..=1000`.
    pub fn discrete_gaussian(sigma: f64, sensitivity: u32) -> Result<Self, AccountingError> {
        if !(sigma > 0.0 && sigma <= 1e5) {
            return Err(AccountingError::Parameter {
                name: "sigma",
                value: sigma,
                range: "0 (excluded) to 1e5",
            });
        }
        if !(1..=1000).contains(&sensitivity) {
            let value = f64::from(sensitivity);
            return Err(AccountingError::Parameter { name: "the sensitivity", value, range: "1 to 1000" });
        }
        let reach = (12.0 * sigma).ceil() as i64 + 1;
        let weight = |z: i64| (-0.5 * (z as f64 / sigma).powi(2)).exp();
        let total: f64 = (-reach..=reach).map(weight).sum();
        // The loss at z is (sensitivity - 2 z) half intervals of sensitivity / sigma^2 each.
        let mut finite = vec![0.0; 4 * reach as usize + 1];
        (-reach..=reach).for_each(|z| finite[2 * (reach - z) as usize] = weight(z) / total);
        let interval = f64::from(sensitivity) / (2.0 * sigma * sigma);
        let lowest = i64::from(sensitivity) - 2 * reach;
        Ok(Self { directions: vec![Masses { interval, lowest, finite, infinite: 1e-32 }] })
    }

    /// The least delta promised at `epsilon`.
    ///
    /// # Errors
    /// [`AccountingError::Parameter`] when `epsilon` is negative or NaN.
    pub fn delta(&self, epsilon: f64) -> Result<f64, AccountingError> {
        if epsilon.is_nan() || epsilon < 0.0 {
            return Err(AccountingError::Parameter { name: "epsilon", value: epsilon, range: "at least 0" });
        }
        Ok(self.directions.iter().map(|masses| masses.delta(epsilon)).fold(0.0, worse))
    }

    /// The least epsilon promised at `delta`; infinite when nothing is.
    ///
    /// # Errors
    /// [`AccountingError::Delta`] when `delta` is outside ([`DELTA_MIN`], 1).
    pub fn epsilon(&self, delta: f64) -> Result<f64, AccountingError> {
        check_delta(delta)?;
        Ok(self.directions.iter().map(|masses| masses.epsilon(delta)).fold(0.0, worse))
    }

    fn of_phases(phases: &[Phase], mut interval: f64) -> Self {
        if phases.is_empty() {
            return Self {
                directions: vec![Masses { interval, lowest: 0, finite: vec![1.0], infinite: 0.0 }],
            };
        }
        if phases.iter().flat_map(Phase::all_steps).any(Step::is_bare) {
            return Self::boundless();
        }
        loop {
            match try_phases(phases, interval) {
                Ok(directions) => return Self { directions },
                Err(TooLong { factor }) if factor * interval < 1e100 => {
                    interval *= factor.log2().ceil().max(1.0).exp2();
                }
                Err(TooLong { .. }) => return Self::boundless(),
            }
        }
    }

    fn boundless() -> Self {
        let masses = Masses { interval: INTERVAL, lowest: 0, finite: vec![0.0], infinite: 1.0 };
        Self { directions: vec![masses] }
    }
}

/// Equal releases: in each direction one step, or with chance `replaced` another.
struct Phase {
    steps: Vec<Step>,
    replaced: Option<(f64, Step)>,
    count: u64,
}

impl Phase {
    fn new(steps: Vec<Step>, count: u64) -> Self {
        Self { steps, replaced: None, count }
    }

    fn all_steps(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().chain(self.replaced.as_ref().map(|(_, step)| step))
    }

    /// About the standard deviation of the loss where it is small.
    fn spread(&self) -> f64 {
        let spread = |step: &Step| step.rate * (step.sigma.powi(-2).min(50.0)).exp_m1().sqrt();
        self.all_steps().map(spread).fold(f64::INFINITY, f64::min)
    }

    /// The loss of one release in the direction `i`; a mirrored pair is the same in both.
    fn masses(&self, i: usize, interval: f64) -> Masses {
        let masses = dots::connect(&self.steps[i.min(self.steps.len() - 1)], interval);
        match &self.replaced {
            None => masses,
            Some((chance, step)) => dots::connect(step, interval).mixed(&masses, *chance),
        }
    }
}

fn steps(sigma: f64, rate: f64, relation: Relation) -> Vec<Step> {
    directions(rate, relation).iter().map(|&direction| Step::new(sigma, rate, direction)).collect()
}

/// The larger of two promises, of which one that could not be computed is infinite.
fn worse(one: f64, other: f64) -> f64 {
    if one.is_nan() || other.is_nan() { f64::INFINITY } else { one.max(other) }
}

/// The events as phases; all releases in which every unit takes part become one.
fn phases(events: &[Event], relation: Relation) -> Result<Vec<Phase>, AccountingError> {
    let mut phases = Vec::new();
    let (mut precision, mut sampled) = (0.0_f64, 0_u64);
    for event in events {
        let count = event.count();
        match event.mechanism() {
            Mechanism::Gaussian { noise_multiplier }
            | Mechanism::PoissonGaussian { noise_multiplier, sampling_rate: 1.0 } => {
                precision += count as f64 / (noise_multiplier * noise_multiplier);
                continue;
            }
            Mechanism::PoissonGaussian { sampling_rate: 0.0, .. } => continue,
            Mechanism::PoissonGaussian { noise_multiplier, sampling_rate } => {
                phases.push(Phase::new(steps(noise_multiplier, sampling_rate, relation), count));
            }
            Mechanism::TruncatedPoissonGaussian { sampling_rate: 0.0, .. } => continue,
            Mechanism::TruncatedPoissonGaussian {
                noise_multiplier,
                sampling_rate,
                population,
                sample_max,
            } => {
                let mut phase = Phase::new(steps(noise_multiplier, sampling_rate, relation), count);
                phase.replaced = replaced(noise_multiplier, sampling_rate, population, sample_max)?;
                phases.push(phase);
            }
            mechanism @ (Mechanism::WithoutReplacementGaussian { .. } | Mechanism::Tree { .. }) => {
                let mechanism = mechanism.name();
                return Err(AccountingError::Unsupported { accountant: ACCOUNTANT, mechanism, relation });
            }
        }
        sampled = sampled.saturating_add(count);
    }
    if sampled > COUNT_MAX {
        let (name, value) = ("the number of sampled releases", sampled as f64);
        return Err(AccountingError::Parameter { name, value, range: "1 to 1e7" });
    }
    if precision > 0.0 {
        phases.push(Phase::new(steps(precision.sqrt().recip(), 1.0, relation), 1));
    }
    Ok(phases)
}

/// What truncation adds to Poisson sampling (Ganesh, arXiv 2508.15089, 2025): when
/// the cohort is full the unit's presence displaces another's, which is bounded by a replacement at twice the
/// sensitivity. The chance that the cohort is full, and the step that then takes place.
fn replaced(
    noise_multiplier: f64,
    rate: f64,
    population: u64,
    sample_max: u64,
) -> Result<Option<(f64, Step)>, AccountingError> {
    if population > binomial::TRIALS_MAX {
        let value = population as f64;
        return Err(AccountingError::Parameter { name: "the population", value, range: "1 to 1e10" });
    }
    let full = binomial::at_least(sample_max, population - 1, rate);
    if full == 0.0 {
        return Ok(None);
    }
    let cut = binomial::at_least(sample_max.saturating_add(1), population, rate);
    let chosen = cut * sample_max as f64 / (full * population as f64);
    Ok(Some((full, Step::new(noise_multiplier / 2.0, chosen, Direction::Replace))))
}

/// A grid fine enough that rounding adds little to the variance of the composed loss: under one part in fifty
/// of the true variance, or a standard deviation of 1e-4.
fn interval(phases: &[Phase]) -> f64 {
    let mut interval = INTERVAL;
    for phase in phases {
        let (spread, count) = (phase.spread(), phase.count as f64);
        let added = |interval: f64| count * (interval * interval / 4.0).min(interval * spread);
        while interval > 1e-9 && added(interval) > (0.02 * count * spread * spread).max(1e-8) {
            interval /= 2.0;
        }
    }
    interval
}

fn try_phases(phases: &[Phase], interval: f64) -> Result<Vec<Masses>, TooLong> {
    let cells = |step: &Step| {
        let (least, most) = dots::range(step);
        (most - least) / interval
    };
    let widest = phases.iter().flat_map(Phase::all_steps).map(cells).fold(0.0, worse);
    let factor = widest / (LENGTH_MAX / 8) as f64;
    if factor > 1.0 {
        return Err(TooLong { factor });
    }
    let directions = phases.iter().map(|phase| phase.steps.len()).max().unwrap_or(1);
    let mut composed = Vec::new();
    for i in 0..directions {
        let parts: Vec<_> = phases.iter().map(|phase| (phase.masses(i, interval), phase.count)).collect();
        let parts: Vec<_> = parts.iter().map(|(masses, count)| (masses, *count)).collect();
        composed.push(compose(&parts, interval)?);
    }
    Ok(composed)
}

fn check_delta(delta: f64) -> Result<(), AccountingError> {
    if (DELTA_MIN..1.0).contains(&delta) {
        Ok(())
    } else {
        Err(AccountingError::Delta { delta, least: DELTA_MIN })
    }
}

fn check_multiplier(value: f64) -> Result<(), AccountingError> {
    let range = "at least 0 and finite";
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(AccountingError::Parameter { name: "the noise multiplier", value, range })
}

fn check_rate(value: f64) -> Result<(), AccountingError> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(AccountingError::Parameter { name: "the sampling rate", value, range: "0 to 1" })
}
