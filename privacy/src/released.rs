//! The only thing that may move a model.
//!
//! There are two ways to it. [`Released::unprotected`] lets a sum go as it is. [`Released::noised`] asks for a
//! [`Permit`], which only a ledger gives, and adds the noise that the permit says before anything else can be read: the
//! sum is consumed, and its raw totals are never seen again.

use crate::adaptive::{AdaptiveError, update_noise_multiplier};
use crate::correlation::{CorrelatedNoise, Correlation};
use crate::kernels;
use crate::ledger::{Noised, Permit, PermitError};
use crate::noise::{EntropyError, NoiseError, NoiseSource, Provenance, Sigma, SigmaError, add_noise};
use crate::sum::{Sum, Unit};
use crate::wide::WideSum;

/// How many points of its lattice one vote moves their sum by. Noise on whole votes could be one point wide, and would then
/// tell more than is accounted for ([`crate::noise::SIGMA_LEAST`]); on this lattice it is never.
const VOTE_UNIT: u32 = 1 << 20;

/// A sum that may leave the aggregation.
#[derive(Debug)]
pub struct Released {
    totals: Vec<i64>,
    statistics: Vec<WideSum>,
    factor: f64,
    weight: u64,
    contributions: u64,
    votes: Option<f64>,
}

/// How a sum is to be noised; how much, the permit says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noising {
    denominator: f64,
    scale: f64,
    count_noise: Option<f64>,
    threads: usize,
}

impl Noising {
    /// Divides the noised sum by `denominator` contributions of the largest weight, above 0, whatever the number that
    /// came: dividing by that number would give it away, and make the mean more sensitive than its noise covers.
    pub fn new(denominator: f64) -> Self {
        Self { denominator, scale: 1.0, count_noise: None, threads: 1 }
    }

    /// Draws on this many threads; the result does not depend on it.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// Splits the noise between the update and the clients' votes on the clipping norm, whose number (in halves) gets
    /// noise of deviation `count_noise`; both together are as private as one release at the permit's multiplier.
    #[must_use]
    pub fn with_votes(self, count_noise: f64) -> Self {
        Self { count_noise: Some(count_noise), ..self }
    }

    /// Multiplies the noise of this release by `scale`, at least 1: the sensitivity of a mechanism that correlates noise.
    #[must_use]
    pub fn with_scale(self, scale: f64) -> Self {
        Self { scale, ..self }
    }
}

/// Why nothing was released. The sum is gone all the same.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The permit does not cover it.
    #[error(transparent)]
    Permit(#[from] PermitError),
    /// No entropy.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// Noise that cannot be drawn.
    #[error(transparent)]
    Sigma(#[from] SigmaError),
    /// Noise that does not fit.
    #[error(transparent)]
    Noise(#[from] NoiseError),
    /// The votes alone would use up the noise.
    #[error(transparent)]
    Votes(#[from] AdaptiveError),
    /// A sum of statistics, for which no noise is planned.
    #[error("a sum of statistics has no planned noise; it cannot be released with privacy")]
    Statistics,
    /// A sum of updates whose norms could not be checked, since they carry noise of their own.
    #[error(
        "updates that were noised at the clients have no checked norm; their sum cannot be noised centrally"
    )]
    LocallyNoised,
    /// A denominator or scale that means nothing.
    #[error("{name} is {value}; it must be a finite number of at least {least}")]
    Number {
        /// What it is.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The least it may be.
        least: f64,
    },
}

impl Released {
    /// Releases a sum as it is: no noise, no budget. `None` when the sum is empty, since it has no mean.
    ///
    /// The name is long so that every use of it stands out in review.
    pub fn unprotected(sum: Sum) -> Option<Self> {
        let Sum { totals, weight, contributions, unit, .. } = sum;
        let (factor, statistics) = match unit {
            Unit::Lattice(lattice) => (lattice.step() / weight as f64, Vec::new()),
            Unit::Statistics { sums, .. } => (1.0, sums),
        };
        (contributions > 0).then_some(Self { totals, statistics, factor, weight, contributions, votes: None })
    }

    /// Releases a sum with the noise that `permit` paid for: the discrete Gaussian whose sigma is the permit's multiplier
    /// times the sum's sensitivity, rounded up. An empty sum is released too, as noise alone: whether anybody came is not to be
    /// seen.
    ///
    /// `entropy` is asked once for each vector of noise; a source serves one vector.
    ///
    /// # Errors
    /// [`ReleaseError`]; nothing of the sum is left then, and the permit's release is used up once noise was drawn.
    pub fn noised(
        sum: Sum,
        permit: &mut Permit,
        noising: &Noising,
        entropy: &mut dyn FnMut() -> Result<NoiseSource, EntropyError>,
    ) -> Result<Self, ReleaseError> {
        let mut independent = CorrelatedNoise::new(Correlation::Independent, sum.totals.len());
        Self::correlated(sum, permit, noising, &mut independent, entropy)
    }

    /// [`Released::noised`] with noise that is correlated to that of the run's earlier releases. The scale of `noising` must be
    /// that of [`Correlation::noise_scale`].
    ///
    /// # Errors
    /// As [`Released::noised`].
    pub fn correlated(
        sum: Sum,
        permit: &mut Permit,
        noising: &Noising,
        noise: &mut CorrelatedNoise,
        entropy: &mut dyn FnMut() -> Result<NoiseSource, EntropyError>,
    ) -> Result<Self, ReleaseError> {
        let Unit::Lattice(lattice) = sum.unit else { return Err(ReleaseError::Statistics) };
        if lattice.is_noised() {
            return Err(ReleaseError::LocallyNoised);
        }
        let at_least = |name, value: f64, least: f64| {
            let fine = value.is_finite() && value >= least;
            if fine { Ok(()) } else { Err(ReleaseError::Number { name, value, least }) }
        };
        at_least("the denominator", noising.denominator, 1.0)?;
        at_least("the scale of the noise", noising.scale, 1.0)?;
        let multiplier = match noising.count_noise {
            Some(count_noise) => update_noise_multiplier(permit.noise_multiplier(), count_noise)?,
            None => permit.noise_multiplier(),
        };
        let sensitivity = lattice.sensitivity();
        let sigma = Sigma::covering(multiplier * noising.scale, sensitivity)?;
        let vote_sigma = noising
            .count_noise
            .map(|noise| Sigma::covering(2.0 * noise, u64::from(VOTE_UNIT)))
            .transpose()?;
        permit.take()?;
        let Sum { totals, contributions, votes, .. } = sum;
        let source = entropy()?;
        let mut source = Some(source);
        let (totals, mut provenance) = noise.release(totals, &mut |fresh| {
            let source = source.take().expect("noise is drawn once a release");
            add_noise(fresh, sigma, source, noising.threads)
        })?;
        let votes =
            vote_sigma.map(|sigma| noised_votes(votes, sigma, &mut provenance, entropy)).transpose()?;
        let weight_max = f64::from(lattice.weight_max());
        permit.note(Noised {
            norm_max: lattice.bound().value(),
            sensitivity,
            layers: lattice.layers().map(<[usize]>::len),
            sigma,
            vote_sigma: vote_sigma.map(in_votes).transpose()?,
            denominator: noising.denominator,
            provenance,
        });
        let factor = lattice.step() / (noising.denominator * weight_max);
        let weight = (noising.denominator * weight_max) as u64;
        Ok(Self { totals, statistics: Vec::new(), factor, weight, contributions, votes })
    }

    /// The weighted mean of the updates, one f64 a coordinate, in layout order.
    pub fn mean(&self) -> impl Iterator<Item = f64> {
        self.totals.iter().map(|total| *total as f64 * self.factor)
    }

    /// Replaces every value of `model`, in layout order, by `rule(value, mean)`, where the means are those of
    /// [`Released::mean`].
    pub fn apply(&self, model: &mut [f32], rule: impl Fn(f32, f64) -> f32) {
        kernels::apply(model, &self.totals, self.factor, rule);
    }

    /// The totals of a sum of statistics, one each; none of a sum of updates.
    pub fn totals(&self) -> &[WideSum] {
        &self.statistics
    }

    /// The noised sum of the clients' votes on the clipping norm, where they voted.
    pub fn votes(&self) -> Option<f64> {
        self.votes
    }

    /// What the mean was divided by: the sum of the weights, or with noise the planned one.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// How many updates it holds. Not protected by any noise.
    pub fn contributions(&self) -> u64 {
        self.contributions
    }

    /// Number of coordinates.
    pub fn len(&self) -> usize {
        self.totals.len()
    }

    /// Whether there are no coordinates.
    pub fn is_empty(&self) -> bool {
        self.totals.is_empty()
    }
}

/// The sum of the votes with noise of `sigma` points of their lattice.
fn noised_votes(
    votes: i64,
    sigma: Sigma,
    provenance: &mut Provenance,
    entropy: &mut dyn FnMut() -> Result<NoiseSource, EntropyError>,
) -> Result<f64, ReleaseError> {
    let points = votes.checked_mul(i64::from(VOTE_UNIT)).ok_or(NoiseError::Overflow { index: 0 })?;
    let mut one = [points];
    *provenance = provenance.worse(add_noise(&mut one, sigma, entropy()?, 1)?);
    Ok(one[0] as f64 / f64::from(VOTE_UNIT))
}

/// A sigma in points of the votes' lattice as one in votes, for the record.
fn in_votes(sigma: Sigma) -> Result<Sigma, SigmaError> {
    Sigma::ratio(sigma.parts().0, u64::from(VOTE_UNIT))
}
