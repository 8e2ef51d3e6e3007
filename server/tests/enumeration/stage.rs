//! A coordinator that is really played: who is asked, whose answer counts, whether a round is released and what is charged are its
//! own decisions.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use privacy::Encoded;
use privacy::chain::Link;
use privacy::ledger::{Ledger, Noised, Record};
use privacy::noise::NoiseSource;
use protocol::wire::Receipt;
use protocol::{Answer, ClientId, Decline, Metrics, Outcome, Parameters, RunId, Seed, Task, Time, Work};
use server::{Action, Checkpoint, Coordinator, DpContext, Event, NoiseRng, Plan, Setup};

/// What a client sends, whenever it is asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Conduct {
    /// An update of this size in every coordinate, clipped; what it votes; how many examples it claims.
    Update { value: f32, vote: i8, examples: u64 },
    /// Nothing: it declines.
    Absent,
}

/// One round.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    pub(crate) asked: Vec<usize>,
    pub(crate) accepted: Vec<usize>,
    pub(crate) released: bool,
}

/// A run, or as much of it as was played.
#[derive(Debug)]
pub(crate) struct Played {
    pub(crate) rounds: Vec<Round>,
    /// By population, in the order in which they were to be stored.
    pub(crate) links: BTreeMap<String, Vec<Link>>,
    /// How the last release was noised.
    pub(crate) noised: Option<Noised>,
}

/// How a run is played.
#[derive(Clone, Debug)]
pub(crate) struct Script<'a> {
    pub(crate) plan: &'a Arc<Plan>,
    pub(crate) run: u64,
    pub(crate) seed: u64,
    /// Whether the seed is told to the sites.
    pub(crate) seeded: bool,
    pub(crate) clients: Vec<Conduct>,
    /// By round, whether the first client is there; always where there is no entry.
    pub(crate) first_is_there: Vec<bool>,
    /// Whether those asked answer from the last to the first.
    pub(crate) backwards: bool,
    /// After how many rounds, or releases, it is enough.
    pub(crate) rounds: usize,
    pub(crate) releases: usize,
    pub(crate) tensors: Vec<usize>,
}

pub(crate) fn name(client: usize) -> ClientId {
    ClientId::new(&format!("c{client}")).unwrap()
}

fn place(client: &ClientId) -> usize {
    client.as_str()[1..].parse().unwrap()
}

impl Script<'_> {
    /// Plays it with the book that `links` left, or a new one.
    pub(crate) fn play(&self, before: &[Link]) -> Played {
        let terms = self.plan.spec.privacy.central.as_ref().unwrap().terms();
        let population = terms.population.clone();
        let mut links = before.to_vec();
        let ledger = if links.is_empty() {
            let (ledger, first) = Ledger::found(terms).unwrap();
            links.push(first);
            ledger
        } else {
            Ledger::replay(&links).unwrap()
        };
        let mut drawn = 0;
        let chance = NoiseRng::of(move || {
            drawn += 1;
            Ok(NoiseSource::insecure([drawn; 32]))
        });
        let coordinator = Coordinator::new(Setup {
            run: RunId(self.run),
            plan: Arc::clone(self.plan),
            entropy: Seed::from_number(self.seed),
            is_seeded: self.seeded,
            central: false,
            checkpoint: Checkpoint::begin(Parameters::new(vec![0.0; self.tensors.iter().sum()])),
            clients: BTreeMap::new(),
            tensors: self.tensors.clone(),
            dp_context: Some(DpContext { ledger, chance, threads: 1 }),
        })
        .unwrap();
        let mut stage = Stage {
            script: self,
            coordinator,
            now: Time::ZERO,
            pending: VecDeque::new(),
            open: Round { asked: vec![], accepted: vec![], released: false },
            played: Played { rounds: vec![], links: BTreeMap::from([(population, links)]), noised: None },
            over: false,
        };
        stage.run();
        stage.played
    }

    fn is_there(&self, round: usize) -> bool {
        self.first_is_there.get(round).copied().unwrap_or(true)
    }
}

struct Stage<'a> {
    script: &'a Script<'a>,
    coordinator: Coordinator,
    now: Time,
    pending: VecDeque<(ClientId, Task)>,
    open: Round,
    played: Played,
    over: bool,
}

impl Stage<'_> {
    fn run(&mut self) {
        let there = |client: &usize| *client > 0 || self.script.is_there(0);
        let clients = (0..self.script.clients.len()).filter(there).map(name).collect();
        self.handle(Event::joined_together(clients));
        while !self.over {
            let next = if self.script.backwards { self.pending.pop_back() } else { self.pending.pop_front() };
            match (next, self.coordinator.deadline()) {
                (Some((client, task)), _) => {
                    let outcome = self.answer(&client, &task);
                    let answer = Answer { task: task.id, outcome };
                    self.handle(Event::Answered { client, answer });
                }
                (None, Some(deadline)) => {
                    self.now = deadline;
                    self.handle(Event::Tick);
                }
                // Nobody may take part any more.
                (None, None) => return,
            }
        }
    }

    fn answer(&self, client: &ClientId, task: &Task) -> Outcome {
        let place = place(client);
        let Conduct::Update { value, vote, examples } = self.script.clients[place] else {
            return Outcome::Declined { reason: Decline::Stopped, detail: String::new() };
        };
        let Work::Train { norm_max, .. } = &task.work else { panic!("{task:?}") };
        let norm_max = norm_max.unwrap_or(task.spec.update.norm_max);
        let lattice = task.spec.lattice_within(norm_max, &self.script.tensors).unwrap();
        let values = vec![value; self.script.tensors.iter().sum()];
        let clipped = lattice.clip(values).unwrap();
        let encoded = Encoded::encode(&clipped, lattice.weigh(examples), &lattice).unwrap();
        let (weight, vote) =
            (encoded.weight().value(), if task.spec.privacy.is_adaptive() { vote } else { 0 });
        Outcome::trained(encoded.into_points(), weight, vote, Metrics::default())
    }

    fn handle(&mut self, event: Event) {
        self.coordinator.handle(self.now, event);
        while let Some(action) = self.coordinator.poll() {
            match action {
                Action::Send { client, task } => {
                    self.open.asked.push(place(&client));
                    self.pending.push_back((client, task));
                }
                // A decline is acknowledged, too, and adds nothing.
                Action::Receipt { client, receipt: Receipt::Accepted, .. }
                    if self.script.clients[place(&client)] != Conduct::Absent =>
                {
                    self.open.accepted.push(place(&client));
                }
                Action::Reserve(reservation) => {
                    self.book(reservation.population, reservation.links);
                    self.coordinator.handle(self.now, Event::Reserved);
                }
                Action::Commit(commit) => {
                    if let Some(reservation) = commit.reservation {
                        self.book(reservation.population, reservation.links);
                    }
                    let empty = Round { asked: vec![], accepted: vec![], released: false };
                    let mut round = std::mem::replace(&mut self.open, empty);
                    round.released = commit.summary.released;
                    // The end of a run is committed on its own, with the line of the last round.
                    if commit.checkpoint.round.0 as usize > self.played.rounds.len() {
                        self.played.rounds.push(round);
                    }
                    let next = self.played.rounds.len();
                    let released = self.played.rounds.iter().filter(|round| round.released).count();
                    let enough = next >= self.script.rounds || released >= self.script.releases;
                    if commit.checkpoint.end.is_some() || enough {
                        self.over = true;
                        return;
                    }
                    self.turn(next);
                    self.coordinator.handle(self.now, Event::Committed);
                }
                _ => {}
            }
        }
    }

    /// The first client comes or goes before round `next` opens.
    fn turn(&mut self, next: usize) {
        let event = if self.script.is_there(next) { Event::joined(name(0)) } else { Event::Left(name(0)) };
        self.coordinator.handle(self.now, event);
    }

    fn book(&mut self, population: String, links: Vec<Link>) {
        for link in &links {
            if let Ok(Record::Spent { noised: Some(noised), .. }) = link.read() {
                self.played.noised = Some(noised);
            }
        }
        self.played.links.entry(population).or_default().extend(links);
    }
}
