//! One run of rounds with the real server and the real agents. It trains nothing: what moves is what is measured.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Barrier, Mutex, PoisonError};

use anyhow::{Context, bail};
use client::Participant;
use client::net::{Agent, AgentConfig};
use privacy::{Encoded, Sum};
use protocol::{
    EvaluateOrder, Layout, LearnError, Learner, Metrics, Outcome, Parameters, Round, RunId, Seed, Spec,
    Statistic, Stop, Task, TaskId, TaskKind, TrainOrder, Work,
};
use server::net::{InitialModel, Limits, ModelRoom, Server, ServerConfig};
use server::{Note, Plan};
use tokio_util::sync::CancellationToken;

use super::{Leg, ROUNDS, Role, SITES, now, sites, until_input_ends};

/// The plan but for its number of rounds and clients.
const PLAN: &str = "name = \"transport\"\nmodel = { custom = { name = \"vector\" } }\n\
    data = { tensor = { shape = [1], target = \"real\" } }\n\
    training = { batch_size = 1, optimizer = { sgd = { learning_rate = 0.1 } } }\n\
    evaluation = { sites = \"none\", central = false }\n";

/// A room whose every model is one vector of zeros.
struct VectorRoom(usize);

impl ModelRoom for VectorRoom {
    fn begin(&self, _: &Spec, _: Seed) -> Result<InitialModel, String> {
        let layout = vector(self.0).map_err(|error| error.to_string())?;
        Ok(InitialModel { layout, shared: Parameters::new(vec![0.0; self.0]) })
    }

    fn central(&self, _: &Spec) -> Option<Box<dyn Learner>> {
        None
    }
}

fn vector(parameters: usize) -> Result<Layout, protocol::LayoutError> {
    Layout::new([("vector".to_owned(), vec![parameters])])
}

/// The server's process: says where it listens, then when each round opens and closes, until its input ends.
pub(super) async fn serve(dir: &Path, parameters: usize) -> anyhow::Result<()> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (state, identity) = (dir.join("state"), dir.join("identity"));
    let config = ServerConfig { state, listen, identity, limits: Limits::default() };
    let server = Server::start(config, Arc::new(VectorRoom(parameters))).await?;
    let mut notes = server.notes();
    let rounds = ROUNDS + 1;
    let plan = format!("rounds = {rounds}\n{PLAN}cohort = {{ clients_min = {SITES}, count = {SITES} }}\n");
    server.submit(plan, Some(1)).await.map_err(anyhow::Error::msg)?;
    let mut output = std::io::stdout();
    writeln!(output, "listening {}", server.local_addr())?;
    let mut stored = 0;
    while stored < rounds {
        match notes.recv().await?.1 {
            Note::Opened { .. } => writeln!(output, "opened {}", now())?,
            Note::Closed { answered, .. } if answered < SITES => bail!("only {answered} sites answered"),
            Note::Closed { .. } => writeln!(output, "closed {}", now())?,
            Note::Round(_) => stored += 1,
            Note::Refused { client, reason, detail, .. } => bail!("{client}: {reason:?} ({detail})"),
            Note::Declined { client, reason, detail, .. } => bail!("{client}: {reason:?} ({detail})"),
            _ => {}
        }
    }
    writeln!(output, "stored")?;
    until_input_ends().await?;
    server.shutdown().await?;
    Ok(())
}

/// Seconds of each round but the first, and the most bytes the server has had resident.
pub(super) async fn run(dir: &Path, parameters: usize, rounds: usize) -> anyhow::Result<(Vec<Leg>, u64)> {
    let mut server = Role::start("federation-server", dir, parameters)?;
    let address = server.expect("listening")?;
    let meeting = Arc::new(Meeting { barrier: Barrier::new(SITES), down: Mutex::default() });
    let leave = CancellationToken::new();
    let mut agents = tokio::task::JoinSet::new();
    for site in sites() {
        let learner = Adder { layout: vector(parameters)?, meeting: Arc::clone(&meeting) };
        let identity = client::net::Identity::load(&dir.join(site.as_str()))?;
        let participant = Participant::new(site, Box::new(learner));
        let agent = Agent::new(participant, identity, AgentConfig::new(address.clone()));
        agents.spawn(agent.run(leave.clone()));
    }
    let told = tokio::task::spawn_blocking(move || {
        let mut moments = Vec::new();
        for _ in 0..=rounds {
            let opened: f64 = server.expect("opened")?.parse()?;
            let closed: f64 = server.expect("closed")?.parse()?;
            moments.push((opened, closed));
        }
        server.expect("stored")?;
        anyhow::Ok((moments, server.peak()?, server))
    });
    let (moments, peak, server) = told.await??;
    leave.cancel();
    while let Some(left) = agents.join_next().await {
        left??;
    }
    server.end()?;
    let down = meeting.down.lock().unwrap_or_else(PoisonError::into_inner);
    if down.len() != moments.len() {
        bail!("the sites met {} times in {} rounds", down.len(), moments.len());
    }
    let leg = |((opened, closed), down): (&(f64, f64), &f64)| Leg { down: down - opened, up: closed - down };
    let legs: Vec<Leg> = moments.iter().zip(&*down).skip(1).map(leg).collect();
    legs.first().context("no round was timed")?;
    Ok((legs, peak))
}

/// Seconds that all sites together, and then the server for all of them, work on one round's updates when nothing travels.
pub(super) fn work_alone(parameters: usize) -> anyhow::Result<(f64, f64)> {
    let plan = format!("rounds = 1\n{PLAN}cohort = {{ clients_min = {SITES}, count = {SITES} }}\n");
    let spec = Plan::parse(&plan)?.spec;
    let model = Arc::new(Parameters::new(vec![0.0; parameters]));
    let id = TaskId { run: RunId(1), round: Round(1), kind: TaskKind::Train };
    let work = Work::Train { model, learning_rate_scale: 1.0, norm_max: None };
    let task =
        Task { id, spec: Arc::clone(&spec), seed: Some(Seed::from_number(1)), standardiser: None, work };
    let meeting = Arc::new(Meeting { barrier: Barrier::new(SITES), down: Mutex::default() });
    let mut participants = Vec::new();
    for site in sites() {
        let learner = Adder { layout: vector(parameters)?, meeting: Arc::clone(&meeting) };
        participants.push(Participant::new(site, Box::new(learner)));
    }
    let perform = |mut participant: Participant| {
        participant.perform(&task, Seed::from_number(1), &Stop::default()).outcome
    };
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let threads: Vec<_> = participants.into_iter().map(|one| scope.spawn(|| perform(one))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let met = *meeting.down.lock().unwrap_or_else(PoisonError::into_inner).first().context("they met")?;
    let (encoded, lattice) = (now(), spec.lattice(parameters)?);
    let mut sum = Sum::new(&lattice);
    for outcome in outcomes {
        let Outcome::Trained { points, weight, .. } = outcome else { bail!("a site declined: {outcome:?}") };
        sum.add(&Encoded::admit(points, weight, &lattice)?)?;
    }
    Ok((encoded - met, now() - encoded))
}

/// Where the sites wait for each other, and when they were complete.
struct Meeting {
    barrier: Barrier,
    down: Mutex<Vec<f64>>,
}

/// Waits until every site has the model, then adds a constant to it.
struct Adder {
    layout: Layout,
    meeting: Arc<Meeting>,
}

impl Learner for Adder {
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
        Ok(Vec::new())
    }

    fn train(&mut self, parameters: &mut [f32], _: &TrainOrder, _: &Stop) -> Result<Metrics, LearnError> {
        if self.meeting.barrier.wait().is_leader() {
            self.meeting.down.lock().unwrap_or_else(PoisonError::into_inner).push(now());
        }
        parameters.iter_mut().for_each(|value| *value += 1e-3);
        Ok(Metrics { loss: 0.0, accuracy: None, examples: 10, seconds: 0.0 })
    }

    fn evaluate(&mut self, _: &[f32], _: &EvaluateOrder, _: &Stop) -> Result<Metrics, LearnError> {
        Ok(Metrics::default())
    }
}
