//! How long a round of a deployed federation takes whose sites ask a program of their own that trains nothing, beside sites whose built-in
//! learner adds one number: what the channel to the program costs.
//!
//! Server and agents are in this process, with their default limits, and speak over loopback; only the programs are processes of their own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::bail;
use client::Participant;
use client::net::{Agent, AgentConfig, Identity};
use external::{ExternalLearner, LearnerSettings};
use protocol::{Learner, Parameters};
use serde::Serialize;
use server::Note;
use server::net::{InitialModel, Server, ServerConfig};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::vector::{Adder, EXAMPLES, VectorRoom, plan, start_plan, vector};
use super::{issue_identities, load_average, median, now, sites};

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Order {
    /// Values of the model, the one tensor `vector` of the programs.
    pub parameters: usize,
    /// Sites that take part in every round.
    pub sites: usize,
    /// Rounds that are timed; one more comes before them.
    pub rounds: usize,
    /// How a site's program is started, and what it finds in its environment.
    pub settings: LearnerSettings,
}

/// What came out, medians in seconds from one stored round to the next.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// Sites.
    pub sites: usize,
    /// Bytes of the model.
    pub model_bytes: usize,
    /// A round with programs.
    pub round_seconds: f64,
    /// The longest of them.
    pub round_seconds_max: f64,
    /// A round with built-in learners.
    pub built_in_round_seconds: f64,
    /// What the programs add to a round.
    pub added_seconds: f64,
    /// The machine's load when the measurement began.
    pub load_average: f64,
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let size = self.model_bytes as f64 / 1e6;
        let milliseconds = |seconds: f64| 1e3 * seconds;
        write!(
            f,
            "{} sites, {size:.1} MB, load {}\nexternal: {:.1} ms a round, the longest {:.1} ms\nbuilt in: {:.1} ms a round; the programs add {:.1} ms",
            self.sites,
            self.load_average,
            milliseconds(self.round_seconds),
            milliseconds(self.round_seconds_max),
            milliseconds(self.built_in_round_seconds),
            milliseconds(self.added_seconds)
        )
    }
}

/// Measures.
///
/// # Errors
/// Whatever hinders the measurement, in a sentence.
pub async fn measure(order: &Order) -> anyhow::Result<Measured> {
    let load_average = load_average();
    let dir = tempfile::tempdir()?;
    issue_identities(dir.path(), order.sites)?;
    let built_in = run(order, dir.path(), Kind::BuiltIn).await?;
    let external = run(order, dir.path(), Kind::External).await?;
    let (built_in_round_seconds, round_seconds) =
        (median(built_in.iter().copied()), median(external.iter().copied()));
    Ok(Measured {
        sites: order.sites,
        model_bytes: order.parameters * size_of::<f32>(),
        round_seconds,
        round_seconds_max: external.iter().copied().fold(f64::NAN, f64::max),
        built_in_round_seconds,
        added_seconds: round_seconds - built_in_round_seconds,
        load_average,
    })
}

/// Whose learners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    BuiltIn,
    External,
}

impl Kind {
    fn state(self) -> &'static str {
        match self {
            Self::BuiltIn => "state-built-in",
            Self::External => "state-external",
        }
    }
}

/// Seconds of each round but the first.
async fn run(order: &Order, dir: &Path, kind: Kind) -> anyhow::Result<Vec<f64>> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = ServerConfig::new(dir.join(kind.state()), listen, dir.join("identity"));
    let server = Server::start(config, Arc::new(VectorRoom(order.parameters))).await?;
    let mut notes = server.notes();
    let leave = CancellationToken::new();
    let mut agents = JoinSet::new();
    for site in sites(order.sites)? {
        let learner: Box<dyn Learner> = match kind {
            Kind::BuiltIn => Box::new(Adder::new(vector(order.parameters)?, EXAMPLES)),
            Kind::External => {
                Box::new(ExternalLearner::new(order.settings.clone(), dir.to_owned(), site.as_str()))
            }
        };
        let identity = Identity::load(&dir.join(site.as_str()))?;
        let config = AgentConfig::new(server.local_addr().to_string());
        agents.spawn(Agent::new(Participant::new(site, learner), identity, config).run(leave.clone()));
    }
    let rounds = order.rounds + 1;
    let submitted = match kind {
        Kind::BuiltIn => server.submit(plan(order.sites, rounds), Some(1)).await,
        Kind::External => {
            let shared = Parameters::new(vec![0.0; order.parameters]);
            let start = InitialModel { layout: vector(order.parameters)?, shared };
            server.submit_starting(start_plan(order.sites, rounds), Some(1), start).await
        }
    };
    submitted.map_err(anyhow::Error::msg)?;
    let mut stored = Vec::new();
    while stored.len() < rounds {
        match notes.recv().await?.1 {
            Note::Round(_) => stored.push(now()),
            Note::Refused { client, reason, detail, .. } => bail!("{client}: {reason:?} ({detail})"),
            Note::Declined { client, reason, detail, .. } => {
                bail!("{client}: {reason:?} ({detail}); RUST_LOG=info shows what its program said")
            }
            _ => {}
        }
    }
    leave.cancel();
    while let Some(left) = agents.join_next().await {
        left??;
    }
    server.shutdown().await?;
    Ok(stored.windows(2).map(|pair| pair[1] - pair[0]).collect())
}
