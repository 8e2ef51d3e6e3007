//! One run of rounds with the real server and the real agents. It trains nothing: what moves is what is measured.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::thread::ScopedJoinHandle;

use anyhow::{Context, bail};
use client::Participant;
use client::net::{Agent, AgentConfig, AgentEvent, Identity};
use privacy::{Encoded, Released, Sum};
use protocol::{Outcome, Parameters, Round, RunId, Seed, StepId, Stop, Task, TaskId};
use server::net::{Server, ServerConfig};
use server::{ModelUpdate, Note, Plan};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::role::until_input_ends;
use super::super::vector::{Adder, EXAMPLES, VectorRoom, plan, vector};
use super::{Leg, Order, Stage, median, now, sites};

/// The server's process: says where it listens, then when each round opens and closes, until its input ends.
pub(super) async fn serve(dir: &Path, order: Order) -> anyhow::Result<()> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (state, identity) = (dir.join("state"), dir.join("identity"));
    let config = ServerConfig::new(state, listen, identity);
    let server = Server::start(config, Arc::new(VectorRoom(order.parameters))).await?;
    let mut notes = server.notes();
    let rounds = order.rounds + 1;
    server.submit(plan(order.sites, rounds), Some(1)).await.map_err(anyhow::Error::msg)?;
    let mut output = std::io::stdout();
    writeln!(output, "listening {}", server.local_addr())?;
    let mut stored = 0;
    while stored < rounds {
        match notes.recv().await?.1 {
            Note::Opened { .. } => writeln!(output, "opened {}", now())?,
            Note::Closed { answered, .. } if answered < order.sites => {
                bail!("only {answered} sites answered")
            }
            Note::Closed { .. } => writeln!(output, "closed {}", now())?,
            Note::Round(_) => {
                writeln!(output, "stored {}", now())?;
                stored += 1;
            }
            Note::Refused { client, reason, detail, .. } => bail!("{client}: {reason:?} ({detail})"),
            Note::Declined { client, reason, detail, .. } => bail!("{client}: {reason:?} ({detail})"),
            _ => {}
        }
    }
    until_input_ends().await?;
    server.shutdown().await?;
    Ok(())
}

/// Seconds of each round but the first, and the most bytes the server has had resident.
pub(super) async fn run(stage: &Stage<'_>) -> anyhow::Result<(Vec<Leg>, u64)> {
    let (mut server, address) = stage.federation()?;
    let Order { parameters, sites: count, rounds } = stage.order;
    let meeting = Arc::new(Barrier::new(count));
    let (leave, (events, mut heard)) = (CancellationToken::new(), mpsc::channel(64));
    let mut agents = JoinSet::new();
    for site in sites(count)? {
        let learner = Adder::new(vector(parameters)?, EXAMPLES).meeting(Arc::clone(&meeting));
        let identity = Identity::load(&stage.dir.join(site.as_str()))?;
        let participant = Participant::new(site, Box::new(learner));
        let agent = Agent::new(participant, identity, AgentConfig::new(address.clone()));
        agents.spawn(agent.with_events(events.clone()).run(leave.clone()));
    }
    drop(events);
    let listening = tokio::spawn(async move {
        let mut spans = vec![(0.0f64, f64::INFINITY); rounds + 1];
        while let Some(event) = heard.recv().await {
            let (moment, span) = (now(), |task: TaskId| task.round.0 as usize - 1);
            match event {
                AgentEvent::Started { task } => spans[span(task)].0 = spans[span(task)].0.max(moment),
                AgentEvent::Answering { task } => spans[span(task)].1 = spans[span(task)].1.min(moment),
                _ => {}
            }
        }
        spans
    });
    let told = tokio::task::spawn_blocking(move || {
        let mut moments = Vec::new();
        for _ in 0..=rounds {
            moments.push((server.moment("opened")?, server.moment("closed")?));
            server.expect("stored")?;
        }
        anyhow::Ok((moments, server.peak()?, server))
    });
    let (moments, peak, server) = told.await??;
    leave.cancel();
    while let Some(left) = agents.join_next().await {
        left??;
    }
    server.end()?;
    let leg = |((opened, closed), (down, up)): (&(f64, f64), (f64, f64))| Leg {
        down: down - opened,
        up: closed - up,
    };
    Ok((moments.iter().zip(listening.await?).skip(1).map(leg).collect(), peak))
}

/// Seconds of a round's work when nothing travels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    /// Clipping and encoding, all sites at once.
    pub(super) sites: f64,
    /// Admission, sum and step of all updates.
    pub(super) server: f64,
}

/// Does a round's work without a network.
pub(super) fn work_alone(order: Order) -> anyhow::Result<Work> {
    let Order { parameters, sites: count, .. } = order;
    let plan = Plan::parse(&plan(count, 1))?;
    let model = Arc::new(Parameters::new(vec![0.0; parameters]));
    let id = TaskId::new(RunId(1), Round(1), StepId::TRAIN);
    let work = protocol::Work::Train { model, learning_rate_scale: 1.0, norm_max: None };
    let spec = Arc::clone(&plan.spec);
    let task = Task { id, spec, seed: Some(Seed::from_number(1)), standardiser: None, work };
    let meeting = Arc::new(Barrier::new(count + 1));
    let mut participants = Vec::new();
    for site in sites(count)? {
        let learner = Adder::new(vector(parameters)?, EXAMPLES).meeting(Arc::clone(&meeting));
        participants.push(Participant::new(site, Box::new(learner)));
    }
    let perform = |mut participant: Participant| {
        participant.perform(&task, Seed::from_number(1), &Stop::default()).outcome
    };
    let (began, outcomes) = std::thread::scope(|scope| {
        let threads: Vec<_> = participants.into_iter().map(|one| scope.spawn(|| perform(one))).collect();
        meeting.wait();
        let began = now();
        let join = |thread: ScopedJoinHandle<'_, Outcome>| thread.join().ok();
        (began, threads.into_iter().filter_map(join).collect::<Vec<_>>())
    });
    let encoded = now();
    let done = outcomes.into_iter().next().and_then(Outcome::into_contribution).context("a site declined")?;
    let weight = done.weight;
    let points = done.into_points().context("a site handed in no update")?;
    let mut spans = Vec::new();
    for _ in 0..=order.rounds {
        spans.push(fold_alone(&plan, points.clone(), weight, count)?);
    }
    Ok(Work { sites: encoded - began, server: median(spans.into_iter().skip(1)) })
}

/// Admits and adds one update `count` times and moves a model by the mean.
fn fold_alone(plan: &Plan, mut points: Vec<i32>, weight: u32, count: usize) -> anyhow::Result<f64> {
    let lattice = plan.spec.lattice(points.len())?;
    let mut model = vec![0.0; points.len()];
    let began = now();
    let mut sum = Sum::new(&lattice);
    for _ in 0..count {
        let update = Encoded::admit(points, weight, &lattice)?;
        sum.add(&update)?;
        points = update.into_points();
    }
    let released = Released::unprotected(sum).context("the sum holds updates")?;
    plan.strategy.optimizer().step(&mut model, &ModelUpdate::Released(released));
    Ok(now() - began)
}
