//! A method of your own, registered by your own program: the mean record of each class over four hospitals, without gradients. At the server
//! `Method` reads the plan's `[method.class_means]` and `Workflow` says what is asked; at a site `SiteMethod` answers.
//!
//! ```text
//! $ cargo run --example custom_method
//! mean age of the healthy 49.7, of the ill 56.0
//! ```

use std::path::Path;
use std::sync::Arc;

use anyhow::{Error, Result};
use consortia::client::{MethodSite, SiteMethod};
use consortia::learning::device::Device;
use consortia::privacy::{Statistics, WORDS, WideSum};
use consortia::protocol::*;
use consortia::server::workflow::*;
use consortia::server::{Method, MethodStep, Plan, PlannedMethod};
use consortia::simulations::{Population, Scenario, Simulator};
use consortia::{first_model, methods::Registry};

const NAME: Name = Name::literal("class_means");
const CLASSES: usize = 2;
const PLAN: &str = "name = \"means\"\nrounds = 1\nmethod = { class_means = {} }\ncohort = { clients_min = 4 }\n\
    data = { table = { label = \"label\", target = { classes = 2 }, features = [\"age\"], standardise = \"none\" } }\n\
    [simulation]\npartition = { natural = { column = \"site\" } }\n\
    dataset = { files = { csv = { train = \"data/heart_disease.csv\", split_column = \"split\" } } }\n";

/// Of records of so many values; 0 before a plan is read.
#[derive(Clone, Copy, Debug)]
struct ClassMeans(usize);

impl Method for ClassMeans {
    fn name(&self) -> Name {
        NAME
    }
    fn version(&self) -> u16 {
        1
    }
    fn plan(&self, _: toml::Table, data: &DataSpec) -> Result<Arc<dyn PlannedMethod>, SpecError> {
        Ok(Arc::new(Self(data.input_shape().iter().product())))
    }
}

impl PlannedMethod for ClassMeans {
    fn shape(&self) -> Vec<usize> {
        vec![CLASSES, self.0]
    }
    fn steps(&self) -> Vec<MethodStep> {
        let answer = PayloadSpec::one(SUMS, DType::I64, CLASSES * (1 + self.0) * WORDS);
        vec![MethodStep { step: StepId::method(0), name: Name::literal("sum"), answer }]
    }
    fn workflow(&self, plan: &Arc<Plan>) -> Result<Box<dyn Workflow>, SpecError> {
        Ok(Box::new(Means(self.0, Arc::clone(plan))))
    }
}

/// One round: of every class the number of records and their sum, added exactly.
struct Means(usize, Arc<Plan>);

impl Workflow for Means {
    fn next(&mut self, state: &RunState<'_>) -> Option<StepPlan> {
        let work = MethodWork { method: NAME, version: 1, numbers: Vec::new(), blocks: Vec::new() };
        (!self.is_finished(state)).then(|| StepPlan {
            step: StepId::method(0),
            round: state.checkpoint.round.next(),
            cohort: CohortRule::Drawn,
            work: Work::Method(Arc::new(work)),
            collector: Box::new(ExactSum::of_totals(CLASSES * (self.0 + 1), Arc::new(|_| Ok(())))),
            quorum: self.1.cohort.quorum,
            close: ClosePolicy::All,
            central: false,
            is_round: true,
        })
    }
    fn concluded(&mut self, _: StepId, aggregate: Aggregate, _: &RunState<'_>) -> Conclusion {
        let mean = |class: &[WideSum]| -> Vec<f32> {
            class[1..].iter().map(|sum| (sum.value() / class[0].value().max(1.0)) as f32).collect()
        };
        let effect = match aggregate {
            Aggregate::Totals(totals) => {
                Effect::SetModel(Parameters::new(totals.chunks_exact(self.0 + 1).flat_map(mean).collect()))
            }
            _ => Effect::Nothing,
        };
        Conclusion { effect, is_round_over: true }
    }
    fn is_finished(&self, state: &RunState<'_>) -> bool {
        state.checkpoint.round.0 >= self.1.rounds
    }
}

/// What leaves a site carries no noise: it allows the method by its policy, `tasks = ["method:class_means"]`.
impl SiteMethod for ClassMeans {
    fn name(&self) -> Name {
        NAME
    }
    fn version(&self) -> u16 {
        1
    }
    fn perform(&self, _: &MethodWork, site: &mut MethodSite<'_>) -> Result<Contribution, LearnError> {
        let width = 1 + site.spec.input_shape().iter().product::<usize>();
        let mut sums = vec![WideSum::default(); CLASSES * width];
        site.learner.visit_records(site.standardiser, &mut |Record { features, label }| {
            let Label::Class(class) = label else { return };
            let values = [1.0].into_iter().chain(features.iter().copied());
            for (sum, value) in sums[class as usize * width..].iter_mut().zip(values) {
                // What is prepared is finite.
                let _ = sum.add(value.into());
            }
        })?;
        let words = Statistics::encode(&sums).into_words();
        Ok(Contribution::of(vec![Block::new(SUMS, Values::I64(words))]))
    }
}

fn main() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let registry = Registry::standard().with(ClassMeans(0));
    let Scenario { plan, simulation } = Scenario::parse_with(PLAN, &folder, &|_| None, registry.server())?;
    let population = Population::build(&simulation, &plan.spec, Device::Cpu)?;
    let population = population.with_methods(registry.site().clone());
    let first = first_model(population.models(), &plan.spec, Seed::from_number(1)).map_err(Error::msg)?;
    let simulator = Simulator::new(plan, first.shared, simulation.seed, simulation.availability)?;
    let outcome = simulator.run(&population, &mut |_| {})?;
    let ages = outcome.model.values();
    println!("mean age of the healthy {:.1}, of the ill {:.1}", ages[0], ages[1]);
    Ok(())
}
