//! Very many sites at one server: what an idle one costs, and whether every one of them is served in every round.
//!
//! The server is a process of its own; the sites are agents in this one, each with a socket and a certificate of its own. Everything is
//! on loopback and in a temporary folder.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use client::Participant;
use client::net::{Agent, AgentConfig, AgentEvent, Identity, Transport};
use protocol::ClientId;
use serde::Serialize;
use server::Note;
use server::net::{Limits, Server, ServerConfig};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::role::{Program, Role, until_input_ends};
use super::vector::{Adder, EXAMPLES, VectorRoom, plan, vector};
use super::{issue_identities, load_average, median, now, sites};

/// Seats beyond those of the sites.
const SPARE_SEATS: usize = 16;
/// How long after the last greeting the server's memory is read: what a handshake needs is given back by then.
const SETTLED: Duration = Duration::from_secs(3);

/// What is to be measured.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Values of the model.
    pub parameters: usize,
    /// Sites that take part in every round.
    pub sites: usize,
    /// Rounds.
    pub rounds: usize,
    /// Which way the sites come.
    pub transport: Transport,
}

/// What came out.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// Sites.
    pub sites: usize,
    /// Those of them that came over TCP.
    pub over_tcp: usize,
    /// Rounds that were completed with an answer of every site.
    pub rounds: usize,
    /// Bytes of the model.
    pub model_bytes: usize,
    /// Seconds from the first attempt to the last greeting.
    pub connect_seconds: f64,
    /// What the server's resident memory grew by while the sites connected, over their number.
    pub idle_bytes_per_site: f64,
    /// The most bytes that the server has had resident.
    pub server_peak_rss_bytes: u64,
    /// Median of the seconds from the opening of a round to its stored model.
    pub round_seconds: f64,
    /// The longest of them.
    pub round_seconds_max: f64,
    /// Of all answers, the median of the seconds from the opening of their round.
    pub answer_seconds: f64,
    /// The latest answer of all.
    pub answer_seconds_max: f64,
    /// The largest median of one site's answers: a site that is always served last would show here.
    pub slowest_site_seconds: f64,
    /// The machine's load when the measurement began.
    pub load_average: f64,
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sites, over_tcp, rounds, connect_seconds, load_average, .. } = self;
        writeln!(
            f,
            "{sites} sites, {over_tcp} of them over TCP, {} bytes of model, load {load_average}",
            self.model_bytes
        )?;
        writeln!(
            f,
            "connected in {connect_seconds:.1} s; an idle site costs the server {:.1} kB",
            self.idle_bytes_per_site / 1e3
        )?;
        writeln!(
            f,
            "{rounds} rounds, each with all {sites} answers: median {:.2} s, longest {:.2} s",
            self.round_seconds, self.round_seconds_max
        )?;
        writeln!(
            f,
            "an answer after the opening of its round: median {:.2} s, latest {:.2} s; the site that is served last in the median: {:.2} s",
            self.answer_seconds, self.answer_seconds_max, self.slowest_site_seconds
        )?;
        write!(f, "server's peak of resident memory: {:.0} MB", self.server_peak_rss_bytes as f64 / 1e6)
    }
}

/// Measures. `program` starts this very program in another role; its `main` must call [`super::role`] first.
///
/// # Errors
/// Whatever hinders the measurement, in a sentence; also a round that not every site has answered.
pub async fn measure(order: Order, program: &Program) -> anyhow::Result<Measured> {
    let load_average = load_average();
    let dir = tempfile::tempdir()?;
    issue_identities(dir.path(), order.sites)?;
    let Order { parameters, sites: count, rounds, transport } = order;
    let words = format!("crowd|{}|{parameters}|{count}|{rounds}", dir.path().display());
    let mut server = Role::start(program, &words)?;
    let address = server.expect("listening")?;
    let before = server.resident()?;

    let began = now();
    let (leave, (events, heard)) = (CancellationToken::new(), mpsc::channel(4096));
    let mut agents = JoinSet::new();
    for site in sites(count)? {
        let learner = Adder::new(vector(parameters)?, EXAMPLES);
        let identity = Identity::load(&dir.path().join(site.as_str()))?;
        let participant = Participant::new(site, Box::new(learner));
        let config = AgentConfig { transport, ..AgentConfig::new(address.clone()) };
        let agent = Agent::new(participant, identity, config);
        agents.spawn(agent.with_events(events.clone()).run(leave.clone()));
    }
    drop(events);
    let over_tcp = all_greeted(heard, count, &mut agents).await?;
    let connect_seconds = now() - began;
    tokio::time::sleep(SETTLED).await;
    let idle = server.resident()?.saturating_sub(before);

    server.tell("go")?;
    let told = tokio::task::spawn_blocking(move || {
        let lines = (0..rounds).map(|_| server.moment("round")).collect::<anyhow::Result<Vec<f64>>>()?;
        let answers = server.expect("answers")?;
        anyhow::Ok((lines, answers, server))
    });
    let (lines, answers, server) = told.await??;
    let answers: Vec<f64> = answers.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let [answer_seconds, answer_seconds_max, slowest_site_seconds] = answers[..] else {
        bail!("the server's last line is not understood")
    };
    let server_peak_rss_bytes = server.peak()?;
    leave.cancel();
    while let Some(left) = agents.join_next().await {
        left??;
    }
    server.end()?;
    Ok(Measured {
        sites: count,
        over_tcp,
        rounds,
        model_bytes: parameters * size_of::<f32>(),
        connect_seconds,
        idle_bytes_per_site: idle as f64 / count as f64,
        server_peak_rss_bytes,
        round_seconds: median(lines.iter().copied()),
        round_seconds_max: lines.into_iter().fold(0.0, f64::max),
        answer_seconds,
        answer_seconds_max,
        slowest_site_seconds,
        load_average,
    })
}

/// Waits until every site was greeted, or one gives up; how many of them are there over TCP. What happens afterwards is heard and dropped.
async fn all_greeted(
    mut heard: mpsc::Receiver<AgentEvent>,
    count: usize,
    agents: &mut JoinSet<Result<(), client::net::AgentError>>,
) -> anyhow::Result<usize> {
    let (mut greeted, mut tunnels) = (0, 0);
    while greeted < count {
        tokio::select! {
            event = heard.recv() => {
                let event = event.context("all sites have gone")?;
                if let AgentEvent::Connected { over_tcp, .. } = event {
                    greeted += 1;
                    tunnels += usize::from(over_tcp);
                }
            }
            Some(ended) = agents.join_next() => {
                ended??;
                bail!("a site has left before all were greeted");
            }
        }
    }
    tokio::spawn(async move { while heard.recv().await.is_some() {} });
    Ok(tunnels)
}

/// The server's process: says where it listens, waits for a line, then says how long each round took and how late answers came,
/// until its input ends.
pub(super) async fn serve(dir: &Path, order: Order) -> anyhow::Result<()> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let limits = Limits { connections_max: order.sites + SPARE_SEATS, ..Limits::default() };
    let config =
        ServerConfig { limits, ..ServerConfig::new(dir.join("state"), listen, dir.join("identity")) };
    let server = Server::start(config, Arc::new(VectorRoom(order.parameters))).await?;
    let mut output = std::io::stdout();
    writeln!(output, "listening {}", server.local_addr())?;
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    let mut notes = server.notes();
    server.submit(plan(order.sites, order.rounds), Some(1)).await.map_err(anyhow::Error::msg)?;
    let (mut opened, mut stored) = (now(), 0);
    let mut answers: BTreeMap<ClientId, Vec<f64>> = BTreeMap::new();
    while stored < order.rounds {
        match notes.recv().await?.1 {
            Note::Opened { .. } => opened = now(),
            Note::Accepted { client, .. } => answers.entry(client).or_default().push(now() - opened),
            Note::Closed { answered, .. } if answered < order.sites => {
                bail!("only {answered} of {} sites answered", order.sites)
            }
            Note::Round(_) => {
                writeln!(output, "round {}", now() - opened)?;
                stored += 1;
            }
            Note::Refused { client, reason, detail, .. } => bail!("{client}: {reason:?} ({detail})"),
            Note::Declined { client, reason, detail, .. } => bail!("{client}: {reason:?} ({detail})"),
            _ => {}
        }
    }
    if let Some((client, some)) = answers.iter().find(|(_, answers)| answers.len() != order.rounds) {
        bail!("{client} was served in {} of {} rounds", some.len(), order.rounds);
    }
    let all = || answers.values().flatten().copied();
    let of_sites = answers.values().map(|answers| median(answers.iter().copied()));
    let (latest, slowest) = (all().fold(0.0, f64::max), of_sites.fold(0.0, f64::max));
    writeln!(output, "answers {} {latest} {slowest}", median(all()))?;
    until_input_ends().await?;
    server.shutdown().await?;
    Ok(())
}
