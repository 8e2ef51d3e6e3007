//! A site of twelve records, or of its neighbour, with a policy and books in memory.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use client::{Audit, Guard, PLAIN_POLICY, Participant, Policy, RECORDS_POLICY, SiteLedger};
use learning::device::Device;
use learning::{DataSource, Dataset, Labels, SiteData, Trainer, View};
use privacy::chain::{Chain, ChainWriter, Digest};
use protocol::wire::{AnswerHeader, FrameKind, encode};
use protocol::{
    Answer, Block, ClientId, Contribution, Decline, LearnError, Learner, Outcome, RecordCount, Round, RunId,
    Seed, Spec, StepId, Stop, Target, TaskId, Time, Values,
};

use super::grammar::Question;
use super::mutants::Mutant;

/// How one record makes a site another one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Neighbour {
    /// There is one more, with these cells and this label.
    More([f32; 2], f32),
    /// The last one is other than it was.
    Other([f32; 2], f32),
    /// The last one is not there.
    Fewer,
}

pub(crate) const NEIGHBOURS: [Neighbour; 14] = [
    Neighbour::Fewer,
    Neighbour::More([0.3, 0.4], 1.0),
    Neighbour::More([f32::NAN, 0.4], 1.0),
    Neighbour::More([f32::MAX, f32::MIN], 0.0),
    Neighbour::Other([f32::NAN, f32::NAN], 0.0),
    Neighbour::Other([f32::MAX, 0.0], 1.0),
    Neighbour::Other([f32::INFINITY, 0.0], 1.0),
    Neighbour::Other([1e20, -1e20], 1.0),
    Neighbour::Other([0.1, 0.1], f32::MAX),
    Neighbour::Other([0.1, 0.1], f32::NAN),
    Neighbour::Other([0.1, 0.1], 7.0),
    Neighbour::Other([1e-45, 0.0], 0.0),
    Neighbour::Other([0.25, -0.5], 1.0),
    Neighbour::Other([1e9, 1e9], -1e30),
];

/// The records, in whatever form a plan asks for.
#[derive(Clone, Debug)]
pub(crate) struct Records(Vec<([f32; 2], f32)>);

impl Records {
    pub(crate) fn of(neighbour: Option<Neighbour>) -> Self {
        let usual = |row: u32| {
            let x = f32::from(row as u16);
            ([x * 0.3 - 1.5, 1.0 - x * 0.2], f32::from((row % 2) as u16))
        };
        let mut rows: Vec<_> = (0..12).map(usual).collect();
        match neighbour {
            None => {}
            Some(Neighbour::More(cells, label)) => rows.push((cells, label)),
            Some(Neighbour::Other(cells, label)) => rows[11] = (cells, label),
            Some(Neighbour::Fewer) => rows.truncate(11),
        }
        Self(rows)
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len() as u64
    }
}

impl DataSource for Records {
    fn load(&mut self, spec: &Spec) -> Result<SiteData, LearnError> {
        let labels = match spec.target() {
            Target::Real => Labels::Real(self.0.iter().map(|(_, label)| *label).collect()),
            // What is no class is one beyond all, as a reader of arrays marks it.
            Target::Classes(_) => Labels::Classes(
                self.0
                    .iter()
                    .map(|(_, label)| if *label >= 0.0 { *label as u32 } else { u32::MAX })
                    .collect(),
            ),
        };
        let features: Vec<f32> = self.0.iter().flat_map(|(cells, _)| *cells).collect();
        let dataset = Arc::new(Dataset { shape: vec![2], features: features.into(), labels });
        let view = View::whole(dataset);
        Ok(SiteData { train: view.clone(), test: Some(view) })
    }
}

/// The policies under which sites are asked: each takes part only where something holds against the server.
pub(crate) fn policies() -> Vec<String> {
    let records = RECORDS_POLICY.replace("rehearsals = false", "rehearsals = true");
    let wide = records
        .replace("tasks = [\"train\"]", "tasks = [\"train\", \"evaluate\", \"statistics\"]")
        .replace("epsilon_max = 2.0", "epsilon_max = \"any\"")
        .replace("noise_multiplier_min = 0.5", "noise_multiplier_min = 0")
        .replace("norm_max_max = 10.0", "norm_max_max = \"any\"")
        .replace("require = [\"examples\"]", "require = [\"examples\", \"local\"]");
    let rare = wide.replace("rounds_per_day = 200", "rounds_per_day = 5");
    let apart = wide.replace("separation_min_seconds = 0", "separation_min_seconds = 3000");
    // Metrics are listed, and not said to be outside the guarantee.
    let silent = PLAIN_POLICY.replace("outside_the_guarantee = true", "outside_the_guarantee = false");
    let often = vec![wide; 18];
    [often, vec![records, rare.clone(), rare, apart, silent.clone(), silent]].concat()
}

/// Bytes in memory.
#[derive(Clone, Default)]
pub(crate) struct Paper(pub(crate) Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Everything that must not depend on a record.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    /// What kind of answer.
    pub(crate) kind: String,
    /// All of the answer but the update's values.
    answer: String,
    /// The site's ledger and its audit log.
    books: [String; 2],
}

/// A site and what it has written.
pub(crate) struct Site {
    participant: Participant,
    ledger: Paper,
    audit: Paper,
    clock: Arc<AtomicU64>,
    records: Records,
    mutant: Option<Mutant>,
    policy: String,
    declared: Option<u64>,
}

impl Site {
    pub(crate) fn new(
        policy: &str,
        declared: Option<u64>,
        neighbour: Option<Neighbour>,
        mutant: Option<Mutant>,
    ) -> Self {
        let (records, clock) = (Records::of(neighbour), Arc::new(AtomicU64::new(1 << 50)));
        let (ledger, audit) = (Paper::default(), Paper::default());
        let participant = participant(policy, declared, &records, mutant, (&ledger, &audit), &clock);
        let policy = policy.to_owned();
        Self { participant, ledger, audit, clock, records, mutant, policy, declared }
    }

    /// Does what the agent does with a task, and says what can be seen of it.
    pub(crate) fn ask(&mut self, question: &Question) -> Line {
        self.clock.fetch_add(question.later * 1_000_000, Ordering::Relaxed);
        let task = match question.task() {
            Ok(task) => task,
            Err(error) => {
                return self.line(&Outcome::Declined { reason: Decline::Unsupported, detail: error });
            }
        };
        let stop = Stop::default();
        if question.given_up {
            stop.stop();
        }
        let mut outcome = self.participant.perform(&task, Seed::from_number(9), &stop).outcome;
        let complained = self.participant.take_complaint().is_some();
        if let Some(mutant) = self.mutant {
            mutant.change(&mut outcome, &task, &self.records, self.declared);
            if mutant.refunds() && (complained || matches!(outcome, Outcome::Declined { .. })) {
                self.refund();
            }
        }
        self.line(&outcome)
    }

    /// Takes the last line out of the ledger, as if nothing had been reserved.
    fn refund(&mut self) {
        let mut text = self.ledger.0.lock().unwrap().clone();
        let end = text.len().saturating_sub(1);
        let start = text[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |place| place + 1);
        text.truncate(start);
        *self.ledger.0.lock().unwrap() = text;
        let books = (&self.ledger, &self.audit);
        self.participant =
            participant(&self.policy, self.declared, &self.records, self.mutant, books, &self.clock);
    }

    fn line(&self, outcome: &Outcome) -> Line {
        let (kind, shape) = match outcome {
            Outcome::Done(Contribution { weight, vote, metrics, blocks, .. }) => {
                let shown = |block: &Block| match &block.values {
                    Values::I64(words) => format!("{words:?}"),
                    values => format!("{}", values.len()),
                };
                let blocks: Vec<String> = blocks.iter().map(shown).collect();
                let kind = match (outcome.points(), outcome.words()) {
                    (Some(_), _) => "trained",
                    (None, Some(_)) => "counted",
                    (None, None) => "evaluated",
                };
                (kind.to_owned(), format!("{blocks:?} {weight} {} {metrics:?}", vote.abs()))
            }
            Outcome::Declined { reason, detail } => (format!("declined {}", reason.name()), detail.clone()),
        };
        let id = TaskId::new(RunId(0), Round(0), StepId::TRAIN);
        let (header, _) = AnswerHeader::split(Answer { task: id, outcome: outcome.clone() });
        let size = encode(FrameKind::Answer, &header).len();
        let text = |paper: &Paper| String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        Line {
            kind,
            answer: format!("{shape} in {size} bytes"),
            books: [text(&self.ledger), text(&self.audit)],
        }
    }
}

fn participant(
    policy: &str,
    declared: Option<u64>,
    records: &Records,
    mutant: Option<Mutant>,
    (ledger, audit): (&Paper, &Paper),
    clock: &Arc<AtomicU64>,
) -> Participant {
    let now = {
        let clock = Arc::clone(clock);
        move || Time::from_micros(clock.load(Ordering::Relaxed))
    };
    let text = ledger.0.lock().unwrap().clone();
    let books: Box<dyn Write + Send> = Box::new(ledger.clone());
    let books = SiteLedger::open(&text, books, Digest::of(b"federation")).unwrap();
    let log: Box<dyn Write + Send> = Box::new(audit.clone());
    let log = Audit::new(ChainWriter::new(Chain::new(), log), now.clone());
    let guard = Guard::new(Policy::parse(policy).unwrap(), books, log, now);
    let count = declared.map_or(RecordCount::Hidden, RecordCount::Public);
    let trainer = Trainer::new(Box::new(records.clone()), Device::Cpu).with_record_count(count);
    let learner: Box<dyn Learner> = match mutant {
        Some(mutant) => mutant.learner(trainer, records.clone()),
        None => Box::new(trainer),
    };
    Participant::new(ClientId::new("north").unwrap(), learner).with_guard(guard)
}
