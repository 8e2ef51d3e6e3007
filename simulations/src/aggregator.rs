//! The server's way from updates to a release, and nothing else of the server: for attacks and audits, which need
//! releases by the thousand and no rounds.
//!
//! Every step is the deployment's own: [`clip`], [`Encoded`], [`Sum`], a permit of a [`Ledger`] and
//! [`Released::noised`]. It refuses what they refuse. It has no network, no cohort and no model.

use privacy::accounting::{AccountingError, Mechanism, Relation};
use privacy::ledger::{Charge, Composition, Ledger, LedgerError, ReserveError, Terms, Unit};
use privacy::noise::{EntropyError, NoiseSource};
use privacy::{
    Encoded, Inadmissible, Lattice, LatticeError, Noising, NormBound, NormBoundError, NotFinite, Permit,
    ReleaseError, Released, Sum, SumError, Weight, clip,
};

/// Where the noise of a release comes from: asked once for each vector of noise.
pub type Entropy<'a> = dyn FnMut() -> Result<NoiseSource, EntropyError> + 'a;

/// What an attack or an audit has no interest in: it never runs out of budget.
const EPSILON_MAX: f64 = 1e6;

/// Clips, sums and noises updates of one lattice.
#[derive(Debug)]
pub struct Aggregator {
    lattice: Lattice,
    noising: Noising,
    permit: Permit,
    epsilon: f64,
}

/// Why there is no release.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AggregatorError {
    /// A clipping norm that is none.
    #[error(transparent)]
    Norm(#[from] NormBoundError),
    /// No lattice for so many clients and coordinates.
    #[error(transparent)]
    Lattice(#[from] LatticeError),
    /// The book cannot be opened.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The book gives no permit.
    #[error(transparent)]
    Reserve(#[from] ReserveError),
    /// No accountant has a bound.
    #[error(transparent)]
    Accounting(#[from] AccountingError),
    /// An update is not finite.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// An update does not fit the lattice.
    #[error(transparent)]
    Inadmissible(#[from] Inadmissible),
    /// One update too many.
    #[error(transparent)]
    Sum(#[from] SumError),
    /// Nothing was released.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// A mean of no update.
    #[error("a release without noise needs at least one update; give one")]
    Empty,
}

/// What the releases of an [`Aggregator`] promise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Promise {
    /// Standard deviation of the noise over the clipping norm; above 0.
    pub noise_multiplier: f64,
    /// What the noise is multiplied by, at least 1: the sensitivity of correlated noise.
    pub noise_scale: f64,
    /// What the noised sum is divided by, at least 1.
    pub denominator: f64,
    /// How many releases one client is in.
    pub releases: u64,
    /// 0 to 1, both excluded.
    pub delta: f64,
}

/// A lattice for `clients_max` updates of `dimension` coordinates that weigh the same.
///
/// # Errors
/// [`AggregatorError`] for a norm that is none or a lattice that does not exist.
pub fn lattice_of(norm_max: f64, clients_max: u64, dimension: usize) -> Result<Lattice, AggregatorError> {
    Ok(Lattice::plan(NormBound::new(norm_max)?, clients_max, 1, dimension)?)
}

impl Aggregator {
    /// Opens a book of its own and reserves every release that `promise` names.
    ///
    /// # Errors
    /// [`AggregatorError`] for numbers that the ledger or its accountants refuse.
    pub fn open(lattice: Lattice, promise: &Promise) -> Result<Self, AggregatorError> {
        let terms = Terms {
            population: "simulated".to_owned(),
            unit: Unit::Client,
            relation: Relation::ZeroOut,
            delta: promise.delta,
            epsilon_max: EPSILON_MAX,
        };
        let (mut ledger, _) = Ledger::found(terms)?;
        let mechanism = Mechanism::Gaussian { noise_multiplier: promise.noise_multiplier };
        let charge = Charge { mechanism, composition: Composition::Each { at_most: None } };
        let (permit, _) = ledger.reserve("audit", 1, &charge, promise.releases)?;
        let noising = Noising::new(promise.denominator).with_scale(promise.noise_scale);
        Ok(Self { lattice, noising, permit, epsilon: ledger.epsilon()?.best() })
    }

    /// Epsilon of all releases together, for a client that is in each.
    pub fn epsilon(&self) -> f64 {
        self.epsilon
    }

    /// The lattice.
    pub fn lattice(&self) -> &Lattice {
        &self.lattice
    }

    /// The noised mean of `updates`, each clipped, with the largest weight, and divided by the fixed denominator.
    ///
    /// # Errors
    /// [`AggregatorError`]; a permit that is used up is one.
    pub fn release(
        &mut self,
        updates: impl IntoIterator<Item = Vec<f32>>,
        entropy: &mut Entropy<'_>,
    ) -> Result<Vec<f64>, AggregatorError> {
        let sum = summed(&self.lattice, updates)?;
        let released = Released::noised(sum, &mut self.permit, &self.noising, entropy)?;
        Ok(released.mean().collect())
    }
}

/// The mean of `updates` on `lattice` as a run without privacy releases it: clipped, exact, no noise.
///
/// # Errors
/// [`AggregatorError`] for no update at all, or one that the lattice refuses.
pub fn plain_mean(
    lattice: &Lattice,
    updates: impl IntoIterator<Item = Vec<f32>>,
) -> Result<Vec<f64>, AggregatorError> {
    let released = Released::unprotected(summed(lattice, updates)?).ok_or(AggregatorError::Empty)?;
    Ok(released.mean().collect())
}

fn summed(lattice: &Lattice, updates: impl IntoIterator<Item = Vec<f32>>) -> Result<Sum, AggregatorError> {
    let weight: Weight = lattice.weigh(u64::MAX);
    let mut sum = Sum::new(lattice);
    for update in updates {
        let clipped = clip(update, lattice.bound())?;
        sum.add(&Encoded::encode(&clipped, weight, lattice)?)?;
    }
    Ok(sum)
}
