//! The white-box audit of a plan's release (Nasr et al., "Tight Auditing of Differentially Private Machine Learning", 2023).
//!
//! A run of the plan is made thousands of times, over a few coordinates each: the plan's own clipping (layer by layer
//! where it clips so), weights, votes, noise, correlation between rounds and relation. One canary client sends an update four
//! times as long as allowed that claims the largest weight, in half of the runs; in the others its neighbour stands there, as
//! the relation says: nobody, or a client that sends the opposite. The attacker knows everything but which of the two it was,
//! and the deviation of every noise. It scores a run by the sum of what it sees, weighed by how little noise is in it.
//!
//! Where a plan draws its cohorts in secret, a coordinator of the plan draws them, and the share of released rounds that the
//! canary is in is bounded from below as well: a draw that asks it too often is found, and so is noise that is too little
//! for those who are drawn.
//!
//! It sees releases, not the ledger's arithmetic over many rounds: that is enumerated exactly in the server's tests.

mod cohorts;
mod filter;

use privacy::accounting::{self, Event, Mechanism, Relation};
use privacy::adaptive::update_noise_multiplier;
use privacy::audit::{Threshold, chance_lower_bound, gaussian_mu_lower_bound};
use privacy::correlation::{CorrelatedNoise, Correlation};
use privacy::ledger::{Ledger, Terms};
use privacy::{Encoded, Lattice, Permit, Released, Sum};
use protocol::{CentralPrivacy, Clipping, Sampling, Seed, Spec};
use server::Plan;

use super::{AuditError, AuditKind, AuditReport};
use crate::aggregator::{AggregatorError, Entropy};
use filter::Filter;

/// How much longer than allowed a canary's update is, before the client clips it.
const OVERSHOOT: f32 = 4.0;
/// Runs of each kind.
const RUNS: usize = 1000;
/// The most rounds of a run.
const ROUNDS_MAX: u32 = 16;
/// Runs that are made in one, each in coordinates of its own and with a canary of its own; votes cannot be told apart so.
const BLOCKS: usize = 250;
/// The most tensors of an update that is clipped tensor by tensor.
const TENSORS_MAX: usize = 16;
/// The chance that a bound is wrong.
const SIGNIFICANCE: f64 = 0.05;
const ADVERSARY: &str =
    "one who knows every update but the canary's, and sees every release and who was drawn";

/// An audit of what a plan promises its clients.
#[derive(Clone, Debug)]
pub struct GdpAudit {
    claimed: Plan,
    tensors: usize,
}

/// What a run shows of the canary, as it was and as its neighbour was.
struct Scores {
    members: Vec<f64>,
    others: Vec<f64>,
}

impl GdpAudit {
    /// The audit of what `plan` promises, for a model of `tensors` tensors.
    ///
    /// # Errors
    /// [`AuditError::NoClaim`] when it promises nothing to clients.
    pub fn of(plan: &Plan, tensors: usize) -> Result<Self, AuditError> {
        let mut claimed = plan.clone();
        let mut spec = (*plan.spec).clone();
        let central = spec.privacy.central.as_mut().ok_or(AuditError::NoClaim)?;
        central.rounds = central.rounds.min(ROUNDS_MAX);
        claimed.rounds = central.rounds;
        claimed.spec = spec.into();
        Ok(Self { claimed, tensors: tensors.clamp(1, TENSORS_MAX) })
    }

    /// Makes the runs and judges them.
    ///
    /// # Errors
    /// [`AuditError`] for a plan that no run can be made of.
    pub fn run(&self, seed: Seed, entropy: &mut Entropy<'_>) -> Result<AuditReport, AuditError> {
        self.run_as(&self.claimed, seed, entropy)
    }

    /// What is claimed for one client of a run.
    ///
    /// # Errors
    /// [`AuditError`] for numbers that the accountants refuse.
    pub fn claim(&self) -> Result<f64, AuditError> {
        let central = central(&self.claimed.spec)?;
        let events = central.events(central.rounds.into())?;
        epsilon(&events, central.relation, central.delta)
    }

    /// Judges runs of `plan` by what is claimed here, so that a plan that does not do what it claims can be shown to be found.
    ///
    /// # Errors
    /// As [`GdpAudit::run`].
    pub fn run_as(
        &self,
        plan: &Plan,
        seed: Seed,
        entropy: &mut Entropy<'_>,
    ) -> Result<AuditReport, AuditError> {
        let claims = central(&self.claimed.spec)?;
        let parts = if is_drawn(claims.sampling) { 3.0 } else { 2.0 };
        let each = SIGNIFICANCE / parts;
        let mut mu = 0.0_f64;
        for Scores { members, others } in self.scores(&plan.spec, entropy)? {
            let threshold = Threshold::Above(if claims.relation == Relation::ReplaceOne { 0.0 } else { 0.5 });
            mu = mu.max(gaussian_mu_lower_bound(&members, &others, threshold, each)?);
        }
        let epsilon_found = if is_drawn(claims.sampling) {
            let (drawn, rounds) = cohorts::drawn(plan, vec![1; self.lengths(&plan.spec)?.len()], seed)?;
            let sampling_rate = chance_lower_bound(drawn, rounds, each)?;
            let noise_multiplier = claims.relation.sensitivity() / mu.max(1e-6);
            let release = Mechanism::PoissonGaussian { noise_multiplier, sampling_rate };
            let events = Event::new(release, claims.rounds.into()).map_err(unheard)?;
            accounting::pld::epsilon(&[events], claims.relation, claims.delta)
                .map_err(AggregatorError::from)?
        } else {
            accounting::gaussian::epsilon(1.0 / mu.max(1e-6), claims.delta).map_err(AggregatorError::from)?
        };
        Ok(AuditReport {
            audit: AuditKind::Gdp,
            adversary: ADVERSARY,
            canaries: 2 * RUNS,
            members: RUNS,
            epsilon_claimed: self.claim()?,
            epsilon_found,
            delta: claims.delta,
            significance: Some(SIGNIFICANCE),
        })
    }

    /// How many values each tensor of the small update has.
    fn lengths(&self, spec: &Spec) -> Result<Vec<usize>, AuditError> {
        Ok(match central(spec)?.clipping {
            Clipping::PerLayer => vec![BLOCKS; self.tensors],
            Clipping::Fixed => vec![BLOCKS],
            Clipping::Adaptive { .. } => vec![1],
        })
    }

    /// The scores of runs of `spec` by each way to score them: of the run itself, and of what is left of its first round when
    /// another release without the canary is taken off, which shows noise that is used twice.
    fn scores(&self, spec: &Spec, entropy: &mut Entropy<'_>) -> Result<Vec<Scores>, AuditError> {
        let claims = central(&self.claimed.spec)?;
        let one_round = is_drawn(claims.sampling);
        let rounds = if one_round { 1 } else { claims.rounds };
        let mut schedule = schedule(claims, rounds);
        let independent = claims.noise.correlation() == Correlation::Independent;
        if independent {
            // Nothing that comes after its last round tells anything of the canary.
            schedule.truncate(schedule.iter().rposition(|takes_part| *takes_part).map_or(1, |last| last + 1));
        }
        let rounds = schedule.len() as u32;
        let scale = claims.relation.sensitivity();
        let mut runs = Runs::new(spec, &self.lengths(spec)?, rounds)?;
        let filter = Filter::new(&claims.noise.correlation(), &schedule);
        let single = Filter::new(&Correlation::Independent, &[true]);
        let precisions = precisions(claims, &runs.lattice)?;
        let mut all = [Scores::new(), Scores::new()];
        for member in [true, false] {
            for _ in 0..RUNS / runs.blocks {
                for seen in runs.make(claims.relation, member, &schedule, entropy)? {
                    let whole = filter.score(&seen[..rounds as usize], precisions) / scale;
                    let difference = seen[0].less(&seen[rounds as usize]);
                    let again = single.score(&[difference], precisions) / scale;
                    for (scores, score) in all.iter_mut().zip([whole, again]) {
                        if member { scores.members.push(score) } else { scores.others.push(score) }
                    }
                }
            }
        }
        Ok(all.into_iter().take(if independent { 2 } else { 1 }).collect())
    }
}

impl Scores {
    fn new() -> Self {
        Self { members: Vec::with_capacity(RUNS), others: Vec::with_capacity(RUNS) }
    }
}

/// What one release shows: how far it goes along the canary, in clipping norms, and the votes.
#[derive(Clone, Copy, Debug)]
struct Seen {
    update: f64,
    votes: f64,
}

impl Seen {
    fn less(self, other: &Self) -> Self {
        Self { update: self.update - other.update, votes: self.votes - other.votes }
    }
}

/// Runs of one plan, again and again.
struct Runs<'a> {
    central: &'a CentralPrivacy,
    lattice: Lattice,
    /// Runs that are made in one.
    blocks: usize,
    tensors: usize,
    permit: Permit,
    rounds: u32,
}

impl<'a> Runs<'a> {
    fn new(spec: &'a Spec, lengths: &[usize], rounds: u32) -> Result<Self, AuditError> {
        let central = central(spec)?;
        let lattice = spec.lattice_within(spec.update.norm_max, lengths)?;
        // A book of its own that never runs out: what is claimed is computed apart.
        let terms = Terms { epsilon_max: f64::MAX, ..central.terms() };
        let (mut ledger, _) = Ledger::found(terms).map_err(AggregatorError::from)?;
        let releases = 2 * RUNS as u64 * (u64::from(rounds) + 1);
        let reserved = ledger.reserve("audit", 1, &central.charge(), releases);
        let (permit, _) = reserved.map_err(AggregatorError::from)?;
        let (blocks, tensors) = (lengths.first().copied().unwrap_or(1), lengths.len());
        Ok(Self { central, lattice, blocks, tensors, permit, rounds })
    }

    /// The runs that are made in one, by run and round, and of each one release more without the canary.
    fn make(
        &mut self,
        relation: Relation,
        member: bool,
        schedule: &[bool],
        entropy: &mut Entropy<'_>,
    ) -> Result<Vec<Vec<Seen>>, AuditError> {
        let mut noise = CorrelatedNoise::new(self.central.noise.correlation(), self.lattice.dimension());
        let sides = [schedule, &[false]].concat();
        let mut seen = vec![Vec::with_capacity(sides.len()); self.blocks];
        for (round, takes_part) in sides.into_iter().enumerate() {
            if round == self.rounds as usize {
                noise = CorrelatedNoise::new(Correlation::Independent, self.lattice.dimension());
            }
            let side = match (takes_part, member, relation) {
                (true, true, _) => 1.0,
                (true, false, Relation::ReplaceOne) => -1.0,
                (true, false, Relation::AddOrRemoveOne | Relation::ZeroOut) | (false, _, _) => 0.0,
            };
            let released = self.release(side, &mut noise, entropy)?;
            seen.iter_mut().zip(released).for_each(|(seen, released)| seen.push(released));
        }
        Ok(seen)
    }

    /// A release with each run's canary in it: 1 as it is, -1 turned round, 0 not at all.
    fn release(
        &mut self,
        side: f32,
        noise: &mut CorrelatedNoise,
        entropy: &mut Entropy<'_>,
    ) -> Result<Vec<Seen>, AuditError> {
        let norm = self.lattice.bound().value();
        let mut sum = Sum::new(&self.lattice);
        if side != 0.0 {
            for block in 0..self.blocks {
                sum.add(&self.canary(block, side)?).map_err(AggregatorError::from)?;
                if matches!(self.central.clipping, Clipping::Adaptive { .. }) {
                    sum.count_vote(side > 0.0);
                }
            }
        }
        let noising = self.central.noising(&self.lattice)?;
        let released = Released::correlated(sum, &mut self.permit, &noising, noise, entropy);
        let released = released.map_err(AggregatorError::from)?;
        let (mean, votes): (Vec<f64>, _) = (released.mean().collect(), released.votes().unwrap_or(0.0));
        let unit = self.central.denominator.value() / norm / (self.tensors as f64).sqrt();
        let of = |block: usize| {
            let along: f64 = mean.iter().skip(block).step_by(self.blocks).sum();
            Seen { update: along * unit, votes }
        };
        Ok((0..self.blocks).map(of).collect())
    }

    /// The update of one run's canary, clipped and of the largest weight: the same in each tensor.
    fn canary(&self, block: usize, side: f32) -> Result<Encoded, AuditError> {
        let mut update = vec![0.0; self.lattice.dimension()];
        let size = side * OVERSHOOT * self.lattice.bound().value() as f32;
        update.iter_mut().skip(block).step_by(self.blocks).for_each(|value| *value = size);
        let clipped = self.lattice.clip(update).map_err(AggregatorError::from)?;
        let weight = self.lattice.weigh(u64::MAX);
        Ok(Encoded::encode(&clipped, weight, &self.lattice).map_err(AggregatorError::from)?)
    }
}

fn central(spec: &Spec) -> Result<&CentralPrivacy, AuditError> {
    spec.privacy.central.as_ref().ok_or(AuditError::NoClaim)
}

fn epsilon(events: &[Event], relation: Relation, delta: f64) -> Result<f64, AuditError> {
    Ok(accounting::epsilon(events, relation, delta).map_err(AggregatorError::from)?.best())
}

fn unheard(error: accounting::EventError) -> AuditError {
    AuditError::Plan(protocol::SpecError::new("privacy.central", error.to_string()))
}

/// How little noise the claims leave in a release along the canary, and in the votes: one over the squared deviations.
fn precisions(claims: &CentralPrivacy, lattice: &Lattice) -> Result<(f64, f64), AuditError> {
    let scale = claims.noise_scale(lattice.dimension(), lattice.sensitivity())?;
    let multiplier = claims.noise_multiplier.value();
    Ok(match claims.clipping {
        Clipping::Fixed | Clipping::PerLayer => ((multiplier * scale).powi(-2), 0.0),
        Clipping::Adaptive { count_noise, .. } => {
            let update = update_noise_multiplier(multiplier, count_noise)
                .map_err(|error| protocol::SpecError::new("privacy.central.clipping", error.to_string()))?;
            ((update * scale).powi(-2), (2.0 * count_noise).powi(-2))
        }
    })
}

/// In which rounds the canary takes part: as early and as often as it may.
fn schedule(claims: &CentralPrivacy, rounds: u32) -> Vec<bool> {
    let (times, apart) = match claims.sampling {
        Sampling::Poisson { .. } | Sampling::Fixed { .. } => (rounds, 1),
        Sampling::Availability { participations_max, separation_min } => (participations_max, separation_min),
    };
    (0..rounds).map(|round| round % apart == 0 && round / apart < times).collect()
}

/// Whether a plan's cohorts are drawn by chance.
fn is_drawn(sampling: Sampling) -> bool {
    match sampling {
        Sampling::Poisson { .. } | Sampling::Fixed { .. } => true,
        Sampling::Availability { .. } => false,
    }
}
