//! Training that protects single records: DP-SGD (Abadi et al., "Deep Learning with Differential Privacy", 2016, algorithm 1)
//! on the integer lattice.
//!
//! In every step each record enters the batch by a coin of its own, so a batch may be empty; each gradient is clipped and
//! rounded to the lattice, and their exact sum gets noise before anything reads it. What follows (the proximal term, momentum,
//! Adam, weight decay, the schedule) sees noised sums only. How many steps there are, the chance of a record, the divisor of
//! a sum and the lattice follow from the plan and from what is known outside of the number of records, never from the records;
//! two sites are neighbours when one record has, or has not, a gradient (zero-out).
//!
//! Nothing that a record does can be seen from outside but the time it takes: one whose gradient is not finite counts as a
//! zero, no batch stops a training early, and no record at all is noise alone. It refuses to begin without a permit for all
//! of its releases.

#[cfg(test)]
mod tests;

use privacy::accounting::Mechanism;
use privacy::noise::{EntropyError, NoiseSource};
use privacy::{Encoded, Lattice, Noising, NormBound, Permit, ReleaseError, Released, Sum, clip};
use protocol::{
    Decline, ExamplePrivacy, ExampleReleases, LearnError, Purpose, Round, Seed, Spec, Stop, TrainOrder,
};
use rand::RngCore;

use super::NoiseOf;
use super::engine::Engine;
use super::steps::{RunningMetrics, check_stop};
use crate::View;

/// Trains the resident model in place, as [`ExampleReleases`] says. The metrics are of the records as they are: it is outside the
/// guarantee.
///
/// # Errors
/// When the permit does not cover the training, there is no entropy for the noise, the work is stopped, or candle fails.
pub(super) fn train(
    records: Records<'_>,
    dimension: usize,
    releases: &ExampleReleases,
    order: &TrainOrder,
    noise: NoiseOf,
    stop: &Stop,
) -> Result<RunningMetrics, LearnError> {
    let Records { engine, data, spec } = records;
    let guarantee = spec.privacy.examples.as_ref().ok_or_else(unpaid)?;
    let mut permit = order.permit.as_ref().ok_or_else(unpaid)?.lock();
    check_permit(&permit, releases, guarantee)?;
    engine.begin(&unclipped(spec), order.learning_rate_scale)?;
    let mut batch = Batch::new(guarantee, dimension)?;
    let mut coins = Coins::new(releases.sampling_rate, order.seed);
    let mut running = RunningMetrics::new(spec.loss());
    let mut mean = vec![0.0; dimension];
    for step in 0..releases.steps {
        let seed = order.seed.derive(Purpose::Train, Round(step as u32), None);
        let mut chance = Draws { coins: &mut coins, seed };
        let sum = batch.sum(&mut *engine, data, &mut chance, &mut running, stop)?;
        let released = noised(sum, releases, &mut permit, &mut || noise(seed))?;
        mean.iter_mut().zip(released.mean()).for_each(|(value, mean)| *value = mean as f32);
        engine.follow(&mut mean)?;
    }
    Ok(running)
}

/// A site's records before the model that trains on them.
pub(super) struct Records<'a> {
    pub(super) engine: &'a mut dyn Engine,
    pub(super) data: &'a View,
    pub(super) spec: &'a Spec,
}

/// Clipping is each record's own here; the noised mean is not clipped again.
fn unclipped(spec: &Spec) -> Spec {
    let mut spec = spec.clone();
    spec.training.gradient_norm_max = None;
    spec
}

/// The one place where a sum of gradients is let out: with the noise that the permit paid for, divided by the expected size
/// of a batch whatever its size was.
fn noised(
    sum: Sum,
    releases: &ExampleReleases,
    permit: &mut Permit,
    source: &mut dyn FnMut() -> Result<NoiseSource, EntropyError>,
) -> Result<Released, LearnError> {
    let noising = Noising::new(releases.batch_size as f64);
    Released::noised(sum, permit, &noising, source).map_err(|error| {
        let reason = match error {
            ReleaseError::Permit(_) => Decline::Budget,
            _ => Decline::Failed,
        };
        LearnError::new(reason, error.to_string())
    })
}

fn unpaid() -> LearnError {
    let message = "the plan protects single records, and the order carries no permit of the site's ledger; nothing is \
                   trained without one";
    LearnError::new(Decline::Budget, message)
}

/// Whether the permit pays for what the training will release.
fn check_permit(
    permit: &Permit,
    releases: &ExampleReleases,
    guarantee: &ExamplePrivacy,
) -> Result<(), LearnError> {
    let ExampleReleases { steps, sampling_rate, .. } = *releases;
    let refuse = |message: String| Err(LearnError::new(Decline::Budget, message));
    if permit.left() < steps {
        return refuse(format!(
            "the permit is for {} releases and the training makes {steps}",
            permit.left()
        ));
    }
    let (paid, planned) = (permit.noise_multiplier(), guarantee.noise_multiplier.value());
    if paid < planned {
        return refuse(format!("the permit is for noise multiplier {paid} and the plan promises {planned}"));
    }
    match permit.reservation().charge.mechanism {
        Mechanism::Gaussian { .. } => Ok(()),
        Mechanism::PoissonGaussian { sampling_rate: paid, .. } if paid >= sampling_rate => Ok(()),
        other => refuse(format!(
            "the permit is for {other:?} and the training draws each record with probability {sampling_rate}"
        )),
    }
}

/// Independent coins, one a record and step.
struct Coins {
    /// The chance of heads in units of 2^-64, rounded down: never above what is accounted for.
    threshold: u128,
    generator: rand_chacha::ChaCha20Rng,
}

impl Coins {
    /// Coins that show heads with probability `rate`, 0 to 1.
    fn new(rate: f64, seed: Seed) -> Self {
        Self { threshold: (rate * 2f64.powi(64)) as u128, generator: seed.generator() }
    }

    fn flip(&mut self) -> bool {
        u128::from(self.generator.next_u64()) < self.threshold
    }
}

/// The memory in which the gradients of a batch become a sum: one gradient, as floats and as integers.
struct Batch {
    lattice: Lattice,
    gradient: Vec<f32>,
    points: Vec<i32>,
}

/// What is drawn in one step.
struct Draws<'a> {
    coins: &'a mut Coins,
    /// Of the step: dropout takes from it.
    seed: Seed,
}

/// No site has more records than this: readers refuse such files. The lattice has room for as many, whatever their number, so
/// that it says nothing of it.
const RECORDS_MAX: u64 = 1 << 32;

impl Batch {
    /// # Errors
    /// When no lattice exists for so many parameters.
    fn new(guarantee: &ExamplePrivacy, dimension: usize) -> Result<Self, LearnError> {
        let unsupported = |error: String| LearnError::new(Decline::Unsupported, error);
        let bound =
            NormBound::new(guarantee.norm_max.value()).map_err(|error| unsupported(error.to_string()))?;
        let lattice = Lattice::plan(bound, RECORDS_MAX, 1, dimension);
        let lattice = lattice.map_err(|error| unsupported(error.to_string()))?;
        Ok(Self { lattice, gradient: vec![0.0; dimension], points: Vec::with_capacity(dimension) })
    }

    /// The sum of the clipped gradients of the records whose coins show heads.
    ///
    /// # Errors
    /// When stopped, or the engine fails.
    fn sum(
        &mut self,
        engine: &mut dyn Engine,
        data: &View,
        chance: &mut Draws<'_>,
        running: &mut RunningMetrics,
        stop: &Stop,
    ) -> Result<Sum, LearnError> {
        let mut sum = Sum::new(&self.lattice);
        check_stop(stop)?;
        for row in (0..).take(data.len()) {
            if !chance.coins.flip() {
                continue;
            }
            check_stop(stop)?;
            let seen = engine.example(data, row, chance.seed, &mut self.gradient)?;
            if seen.loss.is_finite() {
                running.add(seen, 1);
            }
            self.add(&mut sum)?;
        }
        Ok(sum)
    }

    /// Clips the gradient at hand and adds it; one that is not finite is added as a zero.
    fn add(&mut self, sum: &mut Sum) -> Result<(), LearnError> {
        let broken = |error: String| LearnError::new(Decline::Failed, error);
        if self.gradient.iter().any(|value| !value.is_finite()) {
            self.gradient.fill(0.0);
        }
        let clipped = clip(std::mem::take(&mut self.gradient), self.lattice.bound())
            .map_err(|error| broken(error.to_string()))?;
        let (weight, points) = (self.lattice.weigh(1), std::mem::take(&mut self.points));
        let encoded = Encoded::encode_into(&clipped, weight, &self.lattice, points)
            .map_err(|error| broken(error.to_string()))?;
        sum.add(&encoded).map_err(|error| broken(error.to_string()))?;
        (self.points, self.gradient) = (encoded.into_points(), clipped.into_values());
        Ok(())
    }
}
