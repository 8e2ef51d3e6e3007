//! Canary clients in a whole simulated run, and what its last model says about them.
//!
//! They take part like any client: they are selected, clipped and noised by the plan. The attacker knows the canaries
//! and the first and the last model, and nothing between.

use std::sync::Arc;

use privacy::audit::{one_run_from_scores, one_shot_estimate};
use protocol::{
    ClientId, Decline, EvaluateOrder, Layout, LearnError, Learner, Metrics, Parameters, Seed, Spec,
    Statistic, Stop, TrainOrder, Trains,
};

use super::{AuditError, AuditKind, AuditReport, Canaries};
use crate::workers::{Worker, Workforce};

const ADVERSARY: &str = "one who knows every canary and sees the first and the last model";

/// A workforce with canary clients, named `canary-1` and so on, behind its own.
#[expect(missing_debug_implementations, reason = "a workforce holds learners")]
pub struct Canaried<'a> {
    inner: &'a dyn Workforce,
    canaries: &'a Canaries,
    /// The numbers of those that go in, one a canary client.
    members: Vec<usize>,
    norm: f64,
    layout: Layout,
    clients: Vec<ClientId>,
}

impl<'a> Canaried<'a> {
    /// Adds those of `canaries` that go in. Their updates have `norm` before clipping: a multiple of the plan's clipping
    /// norm, so that they have that afterwards. `layout` is the model's.
    ///
    /// # Errors
    /// [`AuditError::Dimension`] when the canaries were made for another model; [`AuditError::Name`] when there are more
    /// than names.
    pub fn new(
        inner: &'a dyn Workforce,
        canaries: &'a Canaries,
        norm: f64,
        layout: Layout,
    ) -> Result<Self, AuditError> {
        let (expected, found) = (canaries.dimension(), layout.shared_len());
        if expected != found {
            return Err(AuditError::Dimension { expected, found });
        }
        let members: Vec<usize> = canaries.members().collect();
        let mut clients = inner.clients().to_vec();
        for number in 1..=members.len() {
            clients.push(ClientId::new(&format!("canary-{number}"))?);
        }
        Ok(Self { inner, canaries, members, norm, layout, clients })
    }
}

impl Workforce for Canaried<'_> {
    fn trains(&self) -> Trains {
        self.inner.trains()
    }

    fn clients(&self) -> &[ClientId] {
        &self.clients
    }
    fn worker(&self) -> Box<dyn Worker + '_> {
        let canary = Canary { layout: self.layout.clone(), update: Vec::new() };
        Box::new(Handler { all: self, inner: self.inner.worker(), canary })
    }
    fn central(&self) -> Option<Box<dyn Learner>> {
        self.inner.central()
    }
    fn central_parts(&self) -> usize {
        self.inner.central_parts()
    }
    fn size(&self, client: usize) -> usize {
        if client < self.inner.clients().len() { self.inner.size(client) } else { 0 }
    }
}

/// One thread's worker: the inner one's, or a canary.
struct Handler<'a> {
    all: &'a Canaried<'a>,
    inner: Box<dyn Worker + 'a>,
    canary: Canary,
}

impl Worker for Handler<'_> {
    fn visit(&mut self, client: usize) -> &mut dyn Learner {
        let Some(place) = client.checked_sub(self.all.inner.clients().len()) else {
            return self.inner.visit(client);
        };
        self.canary.update = self.all.canaries.update(self.all.members[place], self.all.norm);
        &mut self.canary
    }
    fn visit_central(&mut self, part: usize) -> Option<&mut dyn Learner> {
        self.inner.visit_central(part)
    }
}

/// A client whose update is the same whatever the model. It claims as many examples as can be said.
struct Canary {
    layout: Layout,
    update: Vec<f32>,
}

impl Learner for Canary {
    fn prepare(&mut self, _: &Arc<Spec>) -> Result<(), LearnError> {
        Ok(())
    }
    fn layout(&self) -> &Layout {
        &self.layout
    }
    fn initialise(&mut self, _: Seed) -> Result<Vec<f32>, LearnError> {
        Ok(vec![0.0; self.layout.len()])
    }
    fn statistics(&mut self) -> Result<Vec<Statistic>, LearnError> {
        Err(LearnError::new(Decline::Data, "a canary has no records"))
    }
    fn train(&mut self, model: &mut [f32], _: &TrainOrder, _: &Stop) -> Result<Metrics, LearnError> {
        let mut shared = self.layout.gather_shared(model);
        shared.iter_mut().zip(&self.update).for_each(|(value, change)| *value += change);
        self.layout.scatter_shared(&shared, model);
        Ok(Metrics { examples: 1 << 32, ..Metrics::default() })
    }
    fn evaluate(&mut self, _: &[f32], _: &EvaluateOrder, _: &Stop) -> Result<Metrics, LearnError> {
        Err(LearnError::new(Decline::Data, "a canary has no records"))
    }
}

/// The one-run bound on a run's epsilon (Steinke, Nasr, Jagielski 2023), from its `first` and `last` model, beside the
/// `claimed` one: a quarter of the canaries, those that the model moved along most, are guessed to have been in.
///
/// # Errors
/// [`AuditError::Dimension`] when a model has another length than the canaries; [`AuditError::Bound`].
pub fn one_run(
    canaries: &Canaries,
    first: &Parameters,
    last: &Parameters,
    claimed: f64,
    delta: f64,
    significance: f64,
) -> Result<AuditReport, AuditError> {
    let scores = canaries.scores(&change(canaries, first, last)?);
    let guesses = (canaries.len() as u64 / 4).max(1);
    let epsilon_found = one_run_from_scores(&scores.members, &scores.others, guesses, delta, significance)?;
    Ok(AuditReport {
        audit: AuditKind::OneRun,
        adversary: ADVERSARY,
        canaries: canaries.len(),
        members: scores.members.len(),
        epsilon_claimed: claimed,
        epsilon_found,
        delta,
        significance: Some(significance),
    })
}

/// The one-shot estimate of a run's epsilon (Andrew et al. 2023), from its `first` and `last` model, beside the `claimed`
/// one. Canaries that stayed out are not used; take [`Canaries::all_in`], and many: without any leak, the estimate at delta
/// 1e-5 has a median of 1.3 with 64 canaries and of 0.3 with 1000, from the scatter of their cosines alone.
///
/// # Errors
/// [`AuditError::Dimension`] when a model has another length than the canaries; [`AuditError::Bound`].
pub fn one_shot(
    canaries: &Canaries,
    first: &Parameters,
    last: &Parameters,
    claimed: f64,
    delta: f64,
) -> Result<AuditReport, AuditError> {
    let change = change(canaries, first, last)?;
    let length = change.iter().map(|value| value * value).sum::<f64>().sqrt();
    let cosine = |score: f64| if length > 0.0 { (score / length).clamp(-1.0, 1.0) } else { 0.0 };
    let cosines: Vec<f64> = canaries.scores(&change).members.into_iter().map(cosine).collect();
    Ok(AuditReport {
        audit: AuditKind::OneShot,
        adversary: ADVERSARY,
        canaries: canaries.len(),
        members: cosines.len(),
        epsilon_claimed: claimed,
        epsilon_found: one_shot_estimate(&cosines, canaries.dimension() as u64, delta)?,
        delta,
        significance: None,
    })
}

fn change(canaries: &Canaries, first: &Parameters, last: &Parameters) -> Result<Vec<f64>, AuditError> {
    let expected = canaries.dimension();
    if let Some(wrong) = [first, last].into_iter().find(|model| model.len() != expected) {
        return Err(AuditError::Dimension { expected, found: wrong.len() });
    }
    let pairs = first.values().iter().zip(last.values());
    Ok(pairs.map(|(first, last)| f64::from(*last) - f64::from(*first)).collect())
}

#[cfg(test)]
mod tests;
