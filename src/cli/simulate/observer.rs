//! Writes down and shows what happens in a simulation while it runs.

use std::io;
use std::time::{Duration, Instant};

use command::results::{CLIENT_COLUMNS_MAX, ClientMetrics, Measured, Results, event_json};
use privacy::accounting::Figure;
use privacy::counted;
use protocol::wire::RoundSummary;
use protocol::{StepId, Stop};
use server::Note;
use simulations::{Observation, Snapshot, Stored, Watch};

use super::super::output::tell;
use super::super::progress::Progress;
use super::findings::Findings;
use super::saved::Saved;

/// The least time between two writings of `checkpoint.json`.
const SAVE_EVERY: Duration = Duration::from_secs(20);
/// No more than one part in so many of the time goes into writing it.
const SAVE_SHARE: u32 = 50;

/// See the module.
pub(super) struct Observer<'a> {
    pub(super) progress: Progress,
    pub(super) results: &'a mut Results,
    /// The text of the plan, as the results have it.
    pub(super) plan: &'a str,
    pub(super) findings: Findings,
    pub(super) metrics: ClientMetrics,
    /// Whether lines beside the rounds are shown.
    pub(super) is_talkative: bool,
    /// Whether each client's numbers are shown.
    pub(super) shows_clients: bool,
    /// Set when the disk refuses.
    pub(super) stop: Stop,
    pub(super) error: Option<(&'static str, io::Error)>,
    /// Bytes of `events.jsonl` up to the end of the last round.
    pub(super) events: u64,
    /// From where to go on, to be written with the line of its round.
    pending: Option<Snapshot>,
    asked: usize,
    answered: usize,
    saved: Instant,
    save_every: Duration,
}

impl<'a> Observer<'a> {
    /// For a simulation that begins, or goes on with the `metrics` that it had.
    pub(super) fn new(
        progress: Progress,
        results: &'a mut Results,
        plan: &'a str,
        findings: Findings,
        metrics: ClientMetrics,
        stop: Stop,
    ) -> Self {
        Self {
            progress,
            results,
            plan,
            findings,
            metrics,
            is_talkative: false,
            shows_clients: false,
            stop,
            error: None,
            events: 0,
            pending: None,
            asked: 0,
            answered: 0,
            saved: Instant::now(),
            save_every: SAVE_EVERY,
        }
    }

    /// Writes down from where to go on.
    pub(super) fn save(&mut self, simulation: Snapshot) {
        let began = Instant::now();
        let folder = self.results.folder().to_owned();
        let (plan, events, metrics) = (self.plan, self.events, self.metrics.clone());
        let written = self.results.flush_events();
        let written = written.and_then(|()| Saved::new(plan, events, metrics, simulation)?.write(&folder));
        self.note_error(super::saved::FILE, written);
        self.saved = Instant::now();
        self.save_every = SAVE_EVERY.max((self.saved - began) * SAVE_SHARE);
    }

    /// A disk that refuses ends the simulation at once, while what it has can still be written where room was kept.
    fn note_error(&mut self, file: &'static str, written: io::Result<()>) {
        if let Err(error) = written {
            self.error.get_or_insert((file, error));
            self.stop.stop();
        }
    }

    /// The numbers of every client, where they are few enough to be read.
    fn show_clients(&self, round: &RoundSummary) {
        for (client, Measured { train, test }) in self.metrics.round(round.round) {
            let mut parts = Vec::new();
            if let Some(train) = train {
                parts.push(format!(
                    "{}, training loss {:.4}",
                    counted(train.examples, "example"),
                    Figure(train.loss)
                ));
            }
            if let Some(test) = test {
                let accuracy =
                    test.accuracy.map_or_else(String::new, |accuracy| format!(", accuracy {accuracy:.4}"));
                parts.push(format!("test loss {:.4}{accuracy}", Figure(test.loss)));
            }
            if !parts.is_empty() {
                self.progress.line(format!("  {client}  {}", parts.join("  ")));
            }
        }
    }
}

impl Watch for Observer<'_> {
    fn note(&mut self, seen: Observation<'_>) {
        if let Some(line) = self.findings.observe(&seen).filter(|_| self.is_talkative) {
            self.progress.line(line);
        }
        match seen.note {
            Note::Opened { cohort, .. } => (self.asked, self.answered) = (*cohort, 0),
            Note::Accepted { task, .. } => {
                self.answered += 1;
                let what = if task.step == StepId::TRAIN { "trained".into() } else { task.step_title() };
                self.progress.within(format!("{} of {} {what}", self.answered, self.asked));
                // One line an answer would drown a large simulation; the round's line has the counts.
                return;
            }
            Note::Waiting { .. } => return,
            Note::Round(summary) => {
                self.progress.round(summary);
                if self.shows_clients {
                    self.show_clients(summary);
                }
            }
            _ => {}
        }
        let written = self.results.event(&event_json(seen.now.as_seconds(), seen.note));
        self.note_error("events.jsonl", written);
        if let Note::Round(_) = seen.note {
            self.events = self.results.events_written();
            if let Some(snapshot) = self.pending.take() {
                self.save(snapshot);
            }
        }
    }

    fn stored(&mut self, stored: Stored<'_>) {
        self.metrics.add(&stored.commit.reports);
        if self.saved.elapsed() < self.save_every || self.stop.is_stopped() {
            return;
        }
        self.pending = stored.snapshot.and_then(|snapshot| snapshot());
    }
}

/// Says that the numbers of so many clients are not shown one by one.
pub(super) fn tell_of_crowd(clients: usize) {
    if clients > CLIENT_COLUMNS_MAX {
        tell(format_args!(
            "the numbers of single clients are shown for up to {CLIENT_COLUMNS_MAX}; there are {clients}"
        ));
    }
}
