//! The white-box audit of the aggregator (Nasr et al., "Tight Auditing of Differentially Private Machine Learning", 2023).
//!
//! Canary clients send orthogonal updates, four times as long as the clipping norm and claiming the largest weight, and half
//! of them are in a release by coins. The attacker sees that release, and another one without any canary, and knows
//! every canary and the noise's deviation: as much as the guarantee allows for. It scores a canary by its inner product
//! with the first release, and with the difference of the two (which tells noise that was used twice).
//!
//! It is one release that is audited, and the claim is that of one release without help from sampling: the coins are the
//! auditor's. It sees the sum and the noise, not the ledger's arithmetic over many rounds, which has tests of its own.

use privacy::audit::{Threshold, gaussian_lower_bound};
use privacy::{Lattice, NormBound};
use protocol::{Seed, Spec, Weighting};

use super::{AuditError, AuditKind, AuditReport, Canaries, Scores};
use crate::aggregator::{Aggregator, AggregatorError, Entropy, Promise};

/// How much longer than allowed a canary's update is, before the client clips it.
const OVERSHOOT: f64 = 4.0;
const ADVERSARY: &str = "one who knows every update but the coins, and sees two releases of the aggregator";

/// An audit of one release.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GdpAudit {
    /// Parameters of the model.
    pub dimension: usize,
    /// Canary clients; a power of two not above `dimension` tells the most.
    pub canaries: usize,
    /// The clipping norm.
    pub norm_max: f64,
    /// The most one client can count; 1 where all count the same.
    pub weight_max: u32,
    /// Standard deviation of the noise over the clipping norm.
    pub noise_multiplier: f64,
    /// What the noise is multiplied by, at least 1, where it is correlated between rounds.
    pub noise_scale: f64,
    /// The fixed denominator of the mean.
    pub denominator: f64,
    /// The delta of the claim.
    pub delta: f64,
    /// The chance that the bound is wrong.
    pub significance: f64,
}

impl GdpAudit {
    /// The audit of what `spec` promises its clients, with 1024 canaries and a significance of 0.05, for a model of
    /// `dimension` shared parameters.
    ///
    /// # Errors
    /// [`AuditError::NoClaim`] when it promises them nothing; [`AuditError::Plan`].
    pub fn of(spec: &Spec, dimension: usize) -> Result<Self, AuditError> {
        let central = spec.privacy.central.as_ref().ok_or(AuditError::NoClaim)?;
        let most = if dimension == 0 { 0 } else { 1 << dimension.ilog2() };
        let lattice = spec.lattice(dimension)?;
        let sensitivity = u64::from(lattice.weight_max()) * u64::from(lattice.reach().unsigned_abs());
        Ok(Self {
            dimension,
            canaries: most.min(1024),
            norm_max: spec.update.norm_max.value(),
            weight_max: match spec.update.weights {
                Weighting::Examples => spec.update.weight_max,
                Weighting::Uniform => 1,
            },
            noise_multiplier: central.noise_multiplier.value(),
            noise_scale: central.noise_scale(dimension, sensitivity)?,
            denominator: central.denominator.value(),
            delta: central.delta,
            significance: 0.05,
        })
    }

    /// Makes the two releases and judges them.
    ///
    /// # Errors
    /// [`AuditError`] for canaries that do not fit the model, or a release that is refused.
    pub fn run(&self, seed: Seed, entropy: &mut Entropy<'_>) -> Result<AuditReport, AuditError> {
        let canaries = Canaries::new(self.canaries, self.dimension, seed)?;
        let mut aggregator = self.aggregator()?;
        let updates = canaries.members().map(|number| canaries.update(number, OVERSHOOT * self.norm_max));
        let with = aggregator.release(updates, entropy)?;
        let without = aggregator.release([], entropy)?;
        audit_scores(self, &canaries, &with, &without)
    }

    /// What one release claims for one client: not the two together, since no canary is in the second.
    ///
    /// # Errors
    /// [`AuditError::Release`] for numbers that the accountants refuse.
    pub fn claim(&self) -> Result<f64, AuditError> {
        Ok(Aggregator::open(self.lattice()?, &self.promise(1))?.epsilon())
    }

    pub(super) fn aggregator(&self) -> Result<Aggregator, AuditError> {
        Ok(Aggregator::open(self.lattice()?, &self.promise(2))?)
    }

    fn lattice(&self) -> Result<Lattice, AuditError> {
        let bound = NormBound::new(self.norm_max).map_err(AggregatorError::from)?;
        let lattice = Lattice::plan(bound, self.canaries.max(1) as u64, self.weight_max, self.dimension);
        Ok(lattice.map_err(AggregatorError::from)?)
    }

    fn promise(&self, releases: u64) -> Promise {
        Promise {
            noise_multiplier: self.noise_multiplier,
            noise_scale: self.noise_scale,
            denominator: self.denominator,
            releases,
            delta: self.delta,
        }
    }
}

/// Judges two noised means that somebody else made, `with` the canaries and `without`.
///
/// The better of the two ways to score counts, at half the significance each.
///
/// # Errors
/// [`AuditError::Dimension`] when a mean has another length than the canaries.
pub fn audit_scores(
    audit: &GdpAudit,
    canaries: &Canaries,
    with: &[f64],
    without: &[f64],
) -> Result<AuditReport, AuditError> {
    let expected = canaries.dimension();
    if let Some(wrong) = [with, without].into_iter().find(|mean| mean.len() != expected) {
        return Err(AuditError::Dimension { expected, found: wrong.len() });
    }
    // A canary that went in scores 1, one that did not 0.
    let unit = audit.denominator / audit.norm_max;
    let direct: Vec<f64> = with.iter().map(|value| value * unit).collect();
    let difference: Vec<f64> = with.iter().zip(without).map(|(one, other)| (one - other) * unit).collect();
    let mut epsilon_found = 0.0_f64;
    for seen in [direct, difference] {
        let Scores { members, others } = canaries.scores(&seen);
        let each = audit.significance / 2.0;
        let bound = gaussian_lower_bound(&members, &others, Threshold::Above(0.5), audit.delta, each)?;
        epsilon_found = epsilon_found.max(bound);
    }
    Ok(AuditReport {
        audit: AuditKind::Gdp,
        adversary: ADVERSARY,
        canaries: canaries.len(),
        members: canaries.members().count(),
        epsilon_claimed: audit.claim()?,
        epsilon_found,
        delta: audit.delta,
        significance: Some(audit.significance),
    })
}
