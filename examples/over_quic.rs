//! The same federation deployed over QUIC and simulated: both end with the same model, bit for bit.
//!
//! An authority makes certificates in a temporary folder; a server listens on a free loopback port; three agents connect
//! with their own certificates and train. The run carries a seed, which makes it a *seeded run*: other runs draw from the
//! operating system, and nobody can repeat them.
//!
//! ```text
//! $ cargo run --example over_quic
//! over QUIC  de1d1215a0ba7a2ad08c6ecb94ac883be61dd3f46c4d02ad3ab7707637aad190
//! simulated  de1d1215a0ba7a2ad08c6ecb94ac883be61dd3f46c4d02ad3ab7707637aad190
//! ```
#![expect(clippy::disallowed_methods, reason = "certificates are dated by the clock of this machine")]

use std::{collections::BTreeMap, path::Path, sync::Arc, time::SystemTime};

use anyhow::{Error, Result, ensure};
use consortia::client::Participant;
use consortia::client::net::{Agent, AgentConfig, Identity};
use consortia::learning::{CsvSource, FileSource, Models, SourceSpec, Trainer, device::Device, load};
use consortia::protocol::{ClientId, Seed, wire::RunState};
use consortia::server::Plan;
use consortia::server::net::{Authority, Server, ServerConfig};
use consortia::simulations::{AvailabilityConfig, Population, Simulator};
use consortia::{Room, first_model};
use tokio_util::sync::CancellationToken;

const SEED: u64 = 11;
const SITES: [&str; 3] = ["cleveland", "hungarian", "va"];
const PLAN: &str = r#"
name = "over-quic"
rounds = 5
cohort = { clients_min = 3 }
model = { mlp = { hidden = [8] } }
training = { epochs = 2, batch_size = 16, optimizer = { sgd = { learning_rate = 0.05, momentum = 0.9 } } }
[data.table]
label = "label"
target = { classes = 2 }
features = ["age", "sex", "chol", "thalach", "exang", "oldpeak"]
standardise = "federated"
"#;

/// One hospital's rows of the common file; at a real site this is the site's own file.
fn records(site: &str) -> SourceSpec {
    let train = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/heart_disease.csv");
    let filter = BTreeMap::from([("site".to_owned(), site.to_owned())]);
    SourceSpec::Csv(CsvSource { filter, split_column: Some("split".into()), ..CsvSource::new(train) })
}

async fn deployed(folder: &Path) -> Result<String> {
    let authority = Authority::create(&folder.join("ca"), SystemTime::now())?;
    let (identity, listen) = (folder.join("server"), "127.0.0.1:0".parse()?);
    authority.issue_server(&[], SystemTime::now())?.write_identity(&identity)?;
    let config = ServerConfig::new(folder.join("state"), listen, identity);
    let server = Server::start(config, Arc::new(Room::new())).await?;
    let (mut agents, shutdown) = (Vec::new(), CancellationToken::new());
    for site in SITES {
        let (id, own) = (ClientId::new(site)?, folder.join(site));
        authority.issue_site(&id, SystemTime::now())?.write_identity(&own)?;
        let learner = Trainer::new(Box::new(FileSource::new(records(site))), Device::Cpu);
        let participant = Participant::new(id, Box::new(learner));
        let address = AgentConfig::new(server.local_addr().to_string());
        let agent = Agent::new(participant, Identity::load(&own)?, address);
        agents.push(tokio::spawn(agent.run(shutdown.clone())));
    }

    let mut runs = server.watch();
    let run = server.submit(PLAN.into(), Some(SEED)).await.map_err(Error::msg)?;
    let summary = loop {
        let now = server.run(Some(run)).await.map_err(Error::msg)?;
        if now.state.is_over() {
            break now;
        }
        runs.changed().await?;
    };
    shutdown.cancel();
    for agent in agents {
        agent.await??;
    }
    server.shutdown().await?;
    ensure!(summary.state == RunState::Finished, "{}", summary.message);
    Ok(summary.model_sha256)
}

fn simulated() -> Result<String> {
    let (plan, seed) = (Plan::parse(PLAN)?, Seed::from_number(SEED));
    let first = first_model(&Models::new(), &plan.spec, seed).map_err(Error::msg)?;
    let site = |name| Ok((ClientId::new(name)?, load(&records(name), &plan.spec.data)?));
    let population = Population::of(SITES.into_iter().map(site).collect::<Result<_>>()?, None, Device::Cpu);
    let simulator = Simulator::new(plan, first.shared, SEED, AvailabilityConfig::default())?;
    Ok(simulator.run(&population, &mut |_| {})?.model.sha256())
}

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let deployed = tokio::runtime::Runtime::new()?.block_on(deployed(folder.path()))?;
    let simulated = simulated()?;
    println!("over QUIC  {deployed}\nsimulated  {simulated}");
    ensure!(deployed == simulated, "deployment and simulation end with different models");
    Ok(())
}
