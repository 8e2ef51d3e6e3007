//! What a federation is measured by: each hospital alone, and all records pooled. Same model, rounds and settings.

use std::sync::Arc;

use ::client::{Lent, LocalState, Memory, SiteMethods};
use consortia::first_model;
use learning::device::Device;
use learning::{SiteData, Trainer};
use protocol::{
    ClientId, Metrics, Parameters, PrivacySpec, Round, RunId, Seed, Spec, Standardiser, StepId, Stop, Task,
    TaskId, Work,
};
use server::{CohortPlan, EvaluationPlan, Evaluators, Plan};
use simulations::{AvailabilityConfig, Population, Scenario, Simulator};

use crate::cli::failure::{Failure, Kind, OrFail};

/// Accuracies on the hospitals' test rows.
pub(super) struct Yardstick {
    pub(super) sites: Vec<SiteYardstick>,
    /// Each hospital's own model on its own test rows, over all rows.
    pub(super) alone: Option<f64>,
    /// The pooled model, over all rows.
    pub(super) pooled: Option<f64>,
    /// The federation's model on each hospital's own test rows, where the sites do not tell.
    pub(super) together: Vec<(ClientId, Metrics)>,
}

/// One hospital's accuracies on its own test rows.
pub(super) struct SiteYardstick {
    pub(super) name: ClientId,
    pub(super) alone: Option<f64>,
    pub(super) pooled: Option<f64>,
}

/// A model and what goes with it.
struct Trained {
    model: Arc<Parameters>,
    standardiser: Option<Arc<Standardiser>>,
}

pub(super) fn measure(scenario: &Scenario, population: &Population, seed: u64) -> Result<Yardstick, Failure> {
    let all = population.pooled().ok_or_else(|| Failure::new(Kind::Defect, "the demo has no hospitals"))?;
    let pooled_model = train(scenario, population, "pooled", all, seed)?;
    let (mut sites, mut alone_all, mut pooled_all) = (Vec::new(), Vec::new(), Vec::new());
    for (name, data) in population.sites() {
        let alone_model = train(scenario, population, name.as_str(), data.clone(), seed)?;
        let alone = test(&scenario.plan, &alone_model, data);
        let pooled = test(&scenario.plan, &pooled_model, data);
        let accuracy = |metrics: Option<Metrics>| metrics.and_then(|metrics| metrics.accuracy);
        sites.push(SiteYardstick { name: name.clone(), alone: accuracy(alone), pooled: accuracy(pooled) });
        alone_all.extend(alone);
        pooled_all.extend(pooled);
    }
    let overall =
        |all: &[Metrics]| Metrics::pooled(all.iter(), u64::MAX).and_then(|metrics| metrics.accuracy);
    let together = Vec::new();
    Ok(Yardstick { sites, alone: overall(&alone_all), pooled: overall(&pooled_all), together })
}

/// What the federation's model gives on each hospital's own test rows, by hospital: where a promise keeps what sites measure at the
/// sites, only this program, which made the hospitals, can say.
pub(super) fn together(
    plan: &Plan,
    population: &Population,
    model: Arc<Parameters>,
    standardiser: Option<Arc<Standardiser>>,
) -> Vec<(ClientId, Metrics)> {
    let trained = Trained { model, standardiser };
    let of = |(name, data): (&ClientId, &SiteData)| Some((name.clone(), test(plan, &trained, data)?));
    population.sites().filter_map(of).collect()
}

/// A federation of one.
fn train(
    scenario: &Scenario,
    population: &Population,
    name: &str,
    data: SiteData,
    seed: u64,
) -> Result<Trained, Failure> {
    let alone = population.alone(name, data).or_fail(Kind::Defect, name)?;
    let cohort = CohortPlan { deadline: scenario.plan.cohort.deadline, ..CohortPlan::default() };
    let evaluation =
        EvaluationPlan { every: 0, sites: Evaluators::None, central: false, ..EvaluationPlan::default() };
    let plan = Plan { cohort, evaluation, ..scenario.plan.clone() };
    let first =
        first_model(alone.models(), &plan.spec, Seed::from_number(seed)).or_fail(Kind::Defect, name)?;
    let simulator = Simulator::new(plan, first.shared, seed, AvailabilityConfig::default())
        .or_fail(Kind::Defect, name)?;
    let simulator = simulator.with_layout(&first.layout);
    let outcome = simulator.with_threads(1).run(&alone, &mut |_| {}).or_fail(Kind::Defect, name)?;
    Ok(Trained { model: outcome.model, standardiser: outcome.standardiser })
}

/// Metrics of a model on one hospital's test rows.
fn test(plan: &Plan, trained: &Trained, data: &SiteData) -> Option<Metrics> {
    let mut trainer = Trainer::without_data(Device::Cpu);
    trainer.set_site(data.clone());
    let id = TaskId::new(RunId(0), Round(plan.rounds), StepId::EVALUATE);
    let work = Work::Evaluate { model: Arc::clone(&trained.model) };
    let standardiser = trained.standardiser.clone();
    // The records are at hand here; a promise would keep the answer back.
    let spec = Arc::new(Spec { privacy: PrivacySpec::default(), ..(*plan.spec).clone() });
    let task = Task { id, spec, seed: None, standardiser, work };
    let name = ClientId::new("yardstick").ok()?;
    let entropy = Seed::from_number(0);
    let (personal, memory, methods) =
        (&mut LocalState::default(), &mut Memory::default(), &SiteMethods::default());
    let mut lent = Lent { id: &name, learner: &mut trainer, personal, memory, methods };
    lent.perform(&task, entropy, &Stop::default()).outcome.metrics()
}
