//! Three honest sites, the model they make without anybody else, and a run beside an intruder.

use std::collections::BTreeMap;
use std::sync::Arc;

use consortia::first_model;
use learning::device::Device;
use learning::{Models, SiteData, Trainer, View};
use protocol::wire::{RunState, RunSummary};
use protocol::{ClientId, Learner, Positive, Seed, Target};
use server::Plan;
use server::net::{Limits, Server};
use simulations::{Population, SyntheticSource, WeatherConfig, World};

use crate::federation::{Federation, Member, Operator};

/// The seed of every run here.
pub(crate) const SEED: u64 = 11;
/// Rounds of every run here.
pub(crate) const ROUNDS: u32 = 3;
const HONEST: [&str; 3] = ["north", "south", "west"];

/// A plan whose rounds open once `clients` are connected, and count with the three honest answers.
pub(crate) fn plan(clients: usize) -> String {
    format!(
        "name = \"hostile\"\nrounds = {ROUNDS}\nmodel = \"logistic\"\n\
         [data.tensor]\nshape = [6]\ntarget = {{ classes = 2 }}\n\
         [training]\nbatch_size = 8\noptimizer = {{ sgd = {{ learning_rate = 0.1 }} }}\n\
         [strategy.fedavgm]\nmomentum = 0.5\n\
         [cohort]\nclients_min = {clients}\nquorum = 3\ndeadline_seconds = 60\n\
         [evaluation]\nsites = \"none\"\n"
    )
}

/// The records of the three honest sites.
fn sites() -> Vec<(ClientId, SiteData)> {
    let spread = Positive::new(0.5).unwrap();
    let source = SyntheticSource { rows: 40, test_rows: 20, spread };
    let records = |(number, name): (u64, &str)| {
        let (train, test) = source.make(&[6], Target::Classes(2), Seed::from_number(number));
        let whole = |dataset| View::whole(Arc::new(dataset));
        (ClientId::new(name).unwrap(), SiteData { train: whole(train), test: Some(whole(test)) })
    };
    (1..).zip(HONEST).map(records).collect()
}

/// SHA-256 of the model that the honest sites make alone.
pub(crate) fn honest_model() -> String {
    let plan = Plan::parse(&plan(3)).unwrap();
    let first = first_model(&Models::new(), &plan.spec, Seed::from_number(SEED)).unwrap();
    let world = World::new(plan, first.shared, SEED, WeatherConfig::default()).unwrap();
    let population = Population::of(sites(), None, Device::Cpu);
    world.run(&population, &mut |_| {}).unwrap().model.sha256()
}

/// A server with its operator and three honest sites, all connected.
pub(crate) struct Stage {
    pub(crate) federation: Federation,
    pub(crate) server: Server,
    operator: Operator,
    members: Vec<Member>,
}

impl Stage {
    pub(crate) async fn open(limits: Limits) -> Self {
        let federation = Federation::new();
        let server = federation.serve(limits).await;
        let operator = federation.operator(&server).await;
        Self { federation, server, operator, members: Vec::new() }.with_members().await
    }

    async fn with_members(mut self) -> Self {
        for (name, data) in sites() {
            let mut trainer = Trainer::without_data(Device::Cpu);
            trainer.set_site(data);
            let learner: Box<dyn Learner> = Box::new(trainer);
            self.members.push(self.federation.join(&self.server, name.as_str(), learner).await);
        }
        self
    }

    /// Runs `plan` to its end; the model must be the one that the honest sites make alone.
    pub(crate) async fn finish(&self, plan: &str) -> RunSummary {
        let run = self.operator.submit(plan, SEED).await;
        let summary = self.operator.follow(run).await;
        assert_eq!(summary.state, RunState::Finished, "{}", summary.message);
        assert_eq!(summary.model_sha256, honest_model(), "the model is not the honest sites' alone");
        for round in &summary.history {
            assert!(round.released && round.answered == 3, "{round:?}");
        }
        summary
    }

    /// Everybody honest leaves in peace, and so does the server.
    pub(crate) async fn close(self) {
        for member in self.members {
            member.leave().await;
        }
        self.server.shutdown().await.unwrap();
    }
}

/// A client's refused answers in the operator's summary.
pub(crate) fn refused(summary: &RunSummary, client: &str) -> BTreeMap<String, u32> {
    let found = summary.clients.iter().find(|one| one.client.as_str() == client);
    found.expect("the client was seen").refused.iter().cloned().collect()
}
