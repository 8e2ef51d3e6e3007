//! Three sites with made-up records, and the model they make in a simulation.

use std::sync::Arc;

use consortia::first_model;
use learning::device::Device;
use learning::{Models, SiteData, Trainer, View};
use protocol::{ClientId, Learner, Positive, Seed, Target};
use server::Plan;
use simulations::{AvailabilityConfig, Population, Simulator, SyntheticSource};

const NAMES: [&str; 3] = ["north", "south", "west"];

/// Names and records: six values, two classes.
pub(crate) fn sites() -> Vec<(ClientId, SiteData)> {
    let spread = Positive::new(0.5).unwrap();
    let source = SyntheticSource { rows: 40, test_rows: 20, spread };
    let records = |(number, name): (u64, &str)| {
        let (train, test) = source.make(&[6], Target::Classes(2), Seed::from_number(number));
        let whole = |dataset| View::whole(Arc::new(dataset));
        (ClientId::new(name).unwrap(), SiteData { train: whole(train), test: Some(whole(test)) })
    };
    (1..).zip(NAMES).map(records).collect()
}

/// A learner over one site's records.
pub(crate) fn learner(data: SiteData) -> Box<dyn Learner> {
    let mut trainer = Trainer::without_data(Device::Cpu);
    trainer.set_site(data);
    Box::new(trainer)
}

/// SHA-256 of the model that the three make alone in a simulation.
pub(crate) fn simulated_model(plan: &str, seed: u64) -> String {
    let plan = Plan::parse(plan).unwrap();
    let first = first_model(&Models::new(), &plan.spec, Seed::from_number(seed)).unwrap();
    let simulator = Simulator::new(plan, first.shared, seed, AvailabilityConfig::default()).unwrap();
    let population = Population::of(sites(), None, Device::Cpu);
    simulator.run(&population, &mut |_| {}).unwrap().model.sha256()
}
