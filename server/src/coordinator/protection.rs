//! What stands between a sum and the model where the plan promises client-level privacy: the ledger, the noise, and the
//! clipping norm that may follow the updates.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use privacy::adaptive::{AdaptiveError, QuantileClip, QuantileRule};
use privacy::chain::Link;
use privacy::correlation::{CorrelatedNoise, MemoryError, NoiseMemory};
use privacy::ledger::{Charge, Cohorts, Conduct, Ledger, LedgerError, Release, ReserveError, SiteMetrics};
use privacy::noise::{EntropyError, NoiseSource};
use privacy::{Lattice, Noising, Permit, ReleaseError, Released, Sum};
use protocol::{CentralPrivacy, Clipping, MetricsRule, Positive, Round, RunId, SpecError};

use super::messages::{Checkpoint, LedgerReservation};

/// Where noise takes its chance from: asked once for every vector of noise.
pub struct NoiseRng(Box<dyn FnMut() -> Result<NoiseSource, EntropyError> + Send>);

impl NoiseRng {
    /// The operating system.
    pub fn system() -> Self {
        Self::of(NoiseSource::from_entropy)
    }

    /// A chance of your own. A [`NoiseSource`] can be made from entropy only, except in builds for tests.
    pub fn of(draw: impl FnMut() -> Result<NoiseSource, EntropyError> + Send + 'static) -> Self {
        Self(Box::new(draw))
    }
}

impl NoiseRng {
    /// The same chance without its first `skipped` draws, and a count of all its draws, those included.
    pub fn counted(self, skipped: u64) -> (Self, Arc<AtomicU64>) {
        let count = Arc::new(AtomicU64::new(skipped));
        let (mut draw, mut left_out, counter) = (self.0, skipped, Arc::clone(&count));
        let counted = Self::of(move || {
            while left_out > 0 {
                draw()?;
                left_out -= 1;
            }
            counter.fetch_add(1, Ordering::Relaxed);
            draw()
        });
        (counted, count)
    }
}

impl fmt::Debug for NoiseRng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoiseRng")
    }
}

/// What a private run works with.
#[derive(Debug)]
pub struct DpContext {
    /// The book of the plan's population.
    pub ledger: Ledger,
    /// Where noise comes from.
    pub chance: NoiseRng,
    /// Threads that draw noise; the result does not depend on it.
    pub threads: usize,
}

/// Why a private run cannot begin or go on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtectionError {
    /// No ledger for a plan that needs one.
    #[error("the plan promises privacy, but there is no ledger to pay from")]
    NoDpContext,
    /// The ledger has other terms, or is damaged.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The clipping norm cannot follow.
    #[error(transparent)]
    Adaptive(#[from] AdaptiveError),
    /// The noise that was kept belongs to another release.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The plan contradicts itself.
    #[error(transparent)]
    Plan(#[from] SpecError),
}

/// See the module.
pub(super) struct Protection {
    central: CentralPrivacy,
    charge: Charge,
    dp_context: DpContext,
    noising: Noising,
    quantile: Option<QuantileClip>,
    noise: CorrelatedNoise,
    permit: Option<Permit>,
    /// Whether the permit's cohort has been drawn in secret: then it is paid for, whatever comes of it.
    is_drawn: bool,
    /// Records that are not on disk yet.
    links: Vec<Link>,
}

impl Protection {
    /// For a plan that promises `central`, from where `checkpoint` stands. What an earlier life reserved and did not spend
    /// has released nothing, since spendings are stored with their release: it is given back.
    pub(super) fn new(
        central: &CentralPrivacy,
        dp_context: Option<DpContext>,
        norm_first: Positive,
        lattice: &Lattice,
        checkpoint: &Checkpoint,
    ) -> Result<Self, ProtectionError> {
        let mut dp_context = dp_context.ok_or(ProtectionError::NoDpContext)?;
        dp_context.ledger.agree(&central.terms())?;
        let noising = central.noising(lattice)?.with_threads(dp_context.threads);
        let mut quantile = None;
        if let Clipping::Adaptive { quantile: share, rate, norm_min, norm_max, .. } = central.clipping {
            let rule = QuantileRule {
                quantile: share,
                rate,
                bound_min: norm_min.value(),
                bound_max: norm_max.value(),
                clients: central.denominator.value().round() as u64,
            };
            let norm = checkpoint.norm_max.unwrap_or(norm_first).value();
            quantile = Some(QuantileClip::new(rule, norm)?);
        }
        let (correlation, memory) = (central.noise.correlation(), checkpoint.noise.vectors().to_vec());
        let noise = CorrelatedNoise::restore(correlation, lattice.dimension(), checkpoint.releases, memory)?;
        let links = dp_context.ledger.settle();
        let (central, charge) = (central.clone(), central.charge());
        Ok(Self {
            central,
            charge,
            dp_context,
            noising,
            quantile,
            noise,
            permit: None,
            is_drawn: false,
            links,
        })
    }

    /// Declares that the cohorts of `run` are secret, where they are and nothing is declared yet: without it nothing would count
    /// as sampled. A plan that exists lets nothing bias them. Not for a seeded run.
    pub(super) fn declare_secret(&mut self, run: RunId) {
        let run = run.to_string();
        if !self.central.sampling.is_secret() || self.dp_context.ledger.conduct(&run).is_some() {
            return;
        }
        let metrics = match self.central.metrics {
            MetricsRule::Off => SiteMetrics::Hidden,
            MetricsRule::OutsideTheGuarantee => SiteMetrics::Told,
        };
        self.links
            .extend(self.dp_context.ledger.declare(&run, Conduct { cohorts: Cohorts::Secret, metrics }));
    }

    /// What the plan promises.
    pub(super) fn central(&self) -> &CentralPrivacy {
        &self.central
    }

    /// The book.
    pub(super) fn ledger(&self) -> &Ledger {
        &self.dp_context.ledger
    }

    /// The norm of the next round, where it is not the plan's.
    pub(super) fn norm_max(&self) -> Option<Positive> {
        self.quantile.as_ref().and_then(|clip| Positive::new(clip.bound()).ok())
    }

    /// What must be kept for later releases.
    pub(super) fn noise(&self) -> NoiseMemory {
        NoiseMemory::new(self.noise.memory().to_vec())
    }

    /// Records to be stored with the next commit.
    pub(super) fn take_reservation(&mut self) -> LedgerReservation {
        let population = self.central.population.clone();
        LedgerReservation { population, links: std::mem::take(&mut self.links) }
    }

    /// Reserves one release. The records are to be on disk before the round opens.
    pub(super) fn reserve(&mut self, run: RunId, round: Round) -> Result<(), ReserveError> {
        match self.dp_context.ledger.reserve(&run.to_string(), round.0, &self.charge, 1) {
            Ok((permit, link)) => {
                self.links.push(link);
                (self.permit, self.is_drawn) = (Some(permit), false);
                Ok(())
            }
            Err(ReserveError::Exhausted { population, spent, next, epsilon_max, delta, link }) => {
                self.links.push((*link).clone());
                Err(ReserveError::Exhausted { population, spent, next, epsilon_max, delta, link })
            }
            Err(other) => Err(other),
        }
    }

    /// The cohort of the reserved round is about to be drawn. Where it is a secret, the round is paid from here on: a refund for
    /// a round that was given up would let its cohort decide.
    pub(super) fn draw(&mut self) {
        self.is_drawn = self.central.sampling.is_secret();
    }

    /// Noises the sum. On an error nothing was released, and [`Protection::cancel`] gives the reservation back.
    pub(super) fn noised(&mut self, sum: Sum) -> Result<Released, ReleaseError> {
        let permit = self.permit.as_mut().expect("a round opens only after its reservation");
        Released::correlated(sum, permit, &self.noising, &mut self.noise, &mut *self.dp_context.chance.0)
    }

    /// Moves the clipping norm as the noised votes say.
    pub(super) fn follow(&mut self, released: &Released) {
        if let (Some(quantile), Some(votes)) = (&mut self.quantile, released.votes()) {
            // A count of votes is a number.
            let _ = quantile.update(votes);
        }
    }

    /// Books the release of the model with this hash; gives epsilon of everything so far.
    pub(super) fn spend(&mut self, sha256: String) -> Result<f64, LedgerError> {
        let permit = self.permit.take().expect("a round opens only after its reservation");
        let software = concat!("consortia ", env!("CARGO_PKG_VERSION")).to_owned();
        let norm_next = self.quantile.as_ref().map(QuantileClip::bound);
        let (epsilon, link) =
            self.dp_context.ledger.spend(permit, Release { sha256, software, norm_next })?;
        self.links.push(link);
        Ok(epsilon.best())
    }

    /// Gives the reservation of a round back that released nothing, unless its cohort was drawn in secret.
    pub(super) fn cancel(&mut self) {
        let is_drawn = std::mem::take(&mut self.is_drawn);
        let Some(permit) = self.permit.take() else { return };
        let kept = if is_drawn {
            permit
        } else {
            match self.dp_context.ledger.cancel(permit) {
                Ok(link) => return self.links.push(link),
                // Noise was drawn but nothing came out: it stays paid.
                Err(touched) => *touched,
            }
        };
        if let Ok((_, link)) = self.dp_context.ledger.spend(kept, Release::default()) {
            self.links.push(link);
        }
    }
}
