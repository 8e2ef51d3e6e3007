//! Federated training: statistics first where the plan standardises by them, then rounds of local training, each with an evaluation
//! where one is due (McMahan et al. 2017, with server optimizers after Reddi et al. 2021).

use std::sync::Arc;

use privacy::Lattice;
use protocol::{Positive, Purpose, Round, SpecError, Standardiser, StepId, Work};

use super::{
    Aggregate, ClosePolicy, CohortRule, Conclusion, Effect, ExactSum, Keep, Measurements, RunState, StepPlan,
    Workflow,
};
use crate::optimizer::ModelUpdate;
use crate::plan::{AggregationPlan, Evaluators, Plan};

/// See the module.
#[derive(Debug)]
pub struct Training {
    plan: Arc<Plan>,
    /// How many values each part of an update has that may be clipped on its own.
    tensors: Vec<usize>,
    lattice: Lattice,
    /// The norm that the lattice was made for, where it is not the plan's.
    norm_max: Option<Positive>,
    /// Whether the server evaluates on records of its own.
    central: bool,
    /// The aggregate of the round before, where the plan's rule begins from it.
    previous: Option<Arc<Vec<f32>>>,
}

impl Training {
    /// The workflow of a plan for a model whose `tensors` have so many values each. With `central` the server evaluates, too.
    ///
    /// # Errors
    /// [`SpecError`] where the plan leaves no lattice for such a model.
    pub fn new(plan: Arc<Plan>, tensors: Vec<usize>, central: bool) -> Result<Self, SpecError> {
        if plan.aggregation.is_some() && plan.spec.privacy.central.is_some() {
            // A plan that was read has not both; one that a program has put together may.
            let message = "a rule that sees every update one by one is nothing that the noise of privacy.central covers; take one of the two";
            return Err(SpecError::new("aggregation", message));
        }
        let lattice = plan.spec.lattice_within(plan.spec.update.norm_max, &tensors)?;
        Ok(Self { plan, tensors, lattice, norm_max: None, central, previous: None })
    }

    /// The lattice of the next round, which follows the clipping norm.
    fn follow(&mut self, norm_max: Option<Positive>) {
        let Some(norm) = norm_max.filter(|_| norm_max != self.norm_max) else { return };
        self.norm_max = norm_max;
        // The plan had a lattice for this model, and its number of points does not depend on the norm.
        if let Ok(lattice) = self.plan.spec.lattice_within(norm, &self.tensors) {
            self.lattice = lattice;
        }
    }

    fn is_evaluation_due(&self, round: Round) -> bool {
        let evaluation = &self.plan.evaluation;
        evaluation.is_due(round.0, self.plan.rounds) && (evaluation.sites != Evaluators::None || self.central)
    }

    fn round(&self, state: &RunState<'_>) -> StepPlan {
        let (round, spec) = (state.checkpoint.round.next(), &self.plan.spec);
        let learning_rate_scale = self.plan.schedule.factor(round.0, self.plan.rounds);
        let model = Arc::clone(state.sent_model);
        let (codec, votes) = (spec.update.codec, spec.privacy.is_adaptive());
        StepPlan {
            step: StepId::TRAIN,
            round,
            cohort: CohortRule::Drawn,
            work: Work::Train { model, learning_rate_scale, norm_max: state.norm_max },
            collector: match &self.plan.aggregation {
                None => Box::new(ExactSum::of_updates(&self.lattice, codec, votes)),
                Some(AggregationPlan { rule, memory_max, .. }) => {
                    let chance = state.seed.derive(Purpose::Aggregation, round, None);
                    let (rule, previous) = (Arc::clone(rule), self.previous.clone());
                    Box::new(Keep::new(&self.lattice, codec, rule, *memory_max, previous, chance))
                }
            },
            quorum: self.plan.cohort.quorum,
            close: self.plan.cohort.close(state.connected),
            central: false,
            is_round: true,
        }
    }

    fn evaluation(&self, state: &RunState<'_>) -> StepPlan {
        StepPlan {
            step: StepId::EVALUATE,
            round: state.checkpoint.round,
            cohort: match self.plan.evaluation.sites {
                Evaluators::All => CohortRule::Connected,
                Evaluators::None => CohortRule::Nobody,
            },
            work: Work::Evaluate { model: Arc::clone(state.sent_model) },
            collector: Box::new(Measurements),
            quorum: 0,
            close: ClosePolicy::All,
            central: self.central,
            is_round: false,
        }
    }
}

impl Workflow for Training {
    fn next(&mut self, state: &RunState<'_>) -> Option<StepPlan> {
        if !state.checkpoint.evaluated {
            return Some(self.evaluation(state));
        }
        if let Some(statistics) = StepPlan::statistics(&self.plan, state) {
            return Some(statistics);
        }
        if self.is_finished(state) {
            return None;
        }
        self.follow(state.norm_max);
        Some(self.round(state))
    }

    fn concluded(&mut self, _: StepId, aggregate: Aggregate, state: &RunState<'_>) -> Conclusion {
        let over = |effect| Conclusion { effect, is_round_over: true };
        let moved = |update: ModelUpdate| {
            let is_round_over = !self.is_evaluation_due(state.checkpoint.round.next());
            Conclusion { effect: Effect::StepModel(update), is_round_over }
        };
        match aggregate {
            Aggregate::Mean(mean) => moved(ModelUpdate::Released(mean)),
            Aggregate::Vector(vector) => {
                let remembers =
                    self.plan.aggregation.as_ref().is_some_and(|plan| plan.rule.begins_from_previous());
                let kept = remembers.then(|| Arc::new(vector.iter().map(|value| *value as f32).collect()));
                let conclusion = moved(ModelUpdate::Unprotected(vector));
                self.previous = kept;
                conclusion
            }
            Aggregate::Totals(totals) => {
                over(Standardiser::from_totals(&totals).map_or(Effect::Nothing, Effect::Standardise))
            }
            Aggregate::Measured => over(Effect::Measured),
            Aggregate::Blocks(_) => over(Effect::Nothing),
        }
    }

    fn is_finished(&self, state: &RunState<'_>) -> bool {
        state.checkpoint.evaluated && state.checkpoint.round.0 >= self.plan.rounds
    }

    fn memory(&self) -> Vec<u8> {
        let previous = self.previous.iter().flat_map(|previous| previous.iter());
        previous.flat_map(|value| value.to_le_bytes()).collect()
    }

    fn recall(&mut self, memory: &[u8]) -> Result<(), String> {
        let (values, rest) = memory.as_chunks::<4>();
        let fits = rest.is_empty() && values.len() == self.lattice.dimension();
        match (memory, self.plan.aggregation.as_ref().map(|plan| plan.rule.begins_from_previous())) {
            ([], _) => Ok(()),
            (_, Some(true)) if fits => {
                self.previous =
                    Some(Arc::new(values.iter().map(|value| f32::from_le_bytes(*value)).collect()));
                Ok(())
            }
            (_, Some(_) | None) => Err(format!(
                "{} bytes are stored that are no aggregate of this plan's rule; was the plan changed under a run?",
                memory.len()
            )),
        }
    }
}
