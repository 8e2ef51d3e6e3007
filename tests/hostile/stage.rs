//! A server with three honest sites, and a run of theirs beside whoever else is there.

use std::collections::BTreeMap;

use protocol::wire::{RunState, RunSummary};
use server::net::{Limits, Server};

use crate::federation::{Federation, Operator};
use crate::member::Member;
use crate::trio::{learner, simulated_model, sites};

/// The seed of every run here.
pub(crate) const SEED: u64 = 11;
/// Rounds of every run here.
pub(crate) const ROUNDS: u32 = 3;

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
            let member = self.federation.join(&self.server, name.as_str(), learner(data)).await;
            self.members.push(member);
        }
        self
    }

    /// Runs `plan` to its end; the model must be the one that the honest sites make alone.
    pub(crate) async fn finish(&self, plan: &str) -> RunSummary {
        let run = self.operator.submit(plan, SEED).await;
        let summary = self.operator.follow(run).await;
        assert_eq!(summary.state, RunState::Finished, "{}", summary.message);
        assert_eq!(
            summary.model_sha256,
            simulated_model(&self::plan(3), SEED),
            "the model is not the honest sites' alone"
        );
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
