//! What a run leaves behind: one folder with the plan as it was understood, every event, every round, the model and the
//! curves.
//!
//! `resolved.toml` · `events.jsonl` (one object a line) · `metrics.csv` (one line a round) · `model.safetensors`, the last model, and
//! `best.safetensors` · `curves.svg` · `report.html`, all of it on one page; and where the plan promises privacy
//! `privacy_statement.json`, with the `ledger.jsonl` of its population where that pays.

mod chart;
mod curves;
mod events;
mod gallery;
mod metrics;
mod model;
mod report;

use std::fs::{File, OpenOptions, create_dir_all, remove_file};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use privacy::chain::Link;
use protocol::wire::{ClientSummary, RoundSummary, RunState};
use server::PrivacyStatement;
use time::OffsetDateTime;
use time::macros::format_description;

pub use chart::figure;
pub use curves::{Clock, draw_curves};
pub use events::event_json;
pub use gallery::{Gallery, draw_membership};
use metrics::write_metrics;
pub use metrics::{CLIENT_COLUMNS_MAX, ClientMetrics, Measured};
pub use model::{Existing, Held, ModelFile, ModelFileError, Notes, write_model, write_tensors, write_whole};
pub use report::{Report, ReportTable, write_report};

/// The folder of one run, open for writing.
#[derive(Debug)]
pub struct Results {
    folder: PathBuf,
    events: BufWriter<File>,
    written: u64,
    clients: Vec<ClientSummary>,
    metrics: ClientMetrics,
    tables: Vec<ReportTable>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug)]
pub struct Ending<'a> {
    /// What it is called.
    pub title: &'a str,
    /// Where it stands.
    pub state: RunState,
    /// One sentence on how it ended.
    pub lead: &'a str,
    /// What else there is to know of how it went, a sentence each.
    pub remarks: &'a [String],
    /// SHA-256 of its model.
    pub model_sha256: &'a str,
    /// What the seconds of its rounds are of.
    pub clock: Clock,
    /// Seconds that it took by the wall clock.
    pub real_seconds: Option<f64>,
    /// When that is.
    pub now: OffsetDateTime,
}

/// The file that keeps room on the disk for the model until it is written.
const RESERVE: &str = "reserved.part";
/// Bytes that are kept free beside the models: for everything else that is written at the end of a run.
const RESERVE_BESIDE: u64 = 256 << 10;

impl Results {
    /// Makes `<parent>/<date>-<name>-<id>`; `now` and four hexadecimal digits of `chance` make the name unique.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn create(parent: &Path, name: &str, now: OffsetDateTime, chance: u16) -> io::Result<Self> {
        let date = now
            .format(format_description!("[year]-[month]-[day]-[hour][minute][second]"))
            .map_err(io::Error::other)?;
        let folder = parent.join(format!("{date}-{name}-{chance:04x}"));
        create_dir_all(&folder)?;
        let events = File::create(folder.join("events.jsonl"))?;
        Ok(Self::with(folder, events, 0))
    }

    /// Goes on in the folder of a run that was interrupted, after the first `events` bytes of its `events.jsonl`: what was written after
    /// them will happen again.
    ///
    /// # Errors
    /// When the file is shorter, or the disk refuses.
    pub fn go_on(folder: &Path, events: u64) -> io::Result<Self> {
        let path = folder.join("events.jsonl");
        let file = OpenOptions::new().append(true).open(&path)?;
        let found = file.metadata()?.len();
        if found < events {
            let message = format!("{}: {found} bytes are left of {events}", path.display());
            return Err(io::Error::other(message));
        }
        file.set_len(events)?;
        Ok(Self::with(folder.to_owned(), file, events))
    }

    fn with(folder: PathBuf, events: File, written: u64) -> Self {
        let (clients, metrics) = (Vec::new(), ClientMetrics::default());
        Self { folder, events: BufWriter::new(events), written, clients, metrics, tables: Vec::new() }
    }

    /// Takes `bytes` of the disk now, and some more, so that the models can be written when it is full later.
    ///
    /// # Errors
    /// When the disk has not so much room.
    pub fn reserve(&self, bytes: u64) -> io::Result<()> {
        let path = self.folder.join(RESERVE);
        let write = |mut file: File| -> io::Result<()> {
            let (zeros, mut left) = ([0; 64 << 10], bytes.saturating_add(RESERVE_BESIDE));
            while left > 0 {
                let part = zeros.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                file.write_all(&zeros[..part])?;
                left -= part as u64;
            }
            file.sync_all()
        };
        let written = File::create(&path).and_then(write);
        if written.is_err() {
            // The first error is the one to tell.
            let _ = remove_file(&path);
        }
        written
    }

    /// Gives back what [`Results::reserve`] took.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn give_back(&self) -> io::Result<()> {
        match remove_file(self.folder.join(RESERVE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// What is to be shown of every client at the end.
    pub fn show_clients(&mut self, clients: Vec<ClientSummary>, metrics: ClientMetrics) {
        (self.clients, self.metrics) = (clients, metrics);
    }

    /// What else the report is to show.
    pub fn show_table(&mut self, table: ReportTable) {
        self.tables.push(table);
    }

    /// How long `events.jsonl` is with all events so far.
    pub fn events_written(&self) -> u64 {
        self.written
    }

    /// Hands all events so far to the system.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn flush_events(&mut self) -> io::Result<()> {
        self.events.flush()
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Adds an event to `events.jsonl`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn event(&mut self, event: &serde_json::Value) -> io::Result<()> {
        let line = format!("{event}\n");
        self.events.write_all(line.as_bytes())?;
        self.written += line.len() as u64;
        Ok(())
    }

    /// Writes `resolved.toml`: the plan with every default spelt out.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn resolved(&self, toml: &str) -> io::Result<()> {
        std::fs::write(self.folder.join("resolved.toml"), toml)
    }

    /// Writes `privacy_statement.json` and `ledger.jsonl`: what may be said about the model's privacy, and every record it
    /// follows from. Where no population paid, since every site accounts for its own records, there is no ledger.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn privacy(&self, statement: &str, ledger: &[Link]) -> io::Result<()> {
        std::fs::write(self.folder.join("privacy_statement.json"), statement)?;
        if ledger.is_empty() {
            return Ok(());
        }
        let mut lines = BufWriter::new(File::create(self.folder.join("ledger.jsonl"))?);
        for link in ledger {
            serde_json::to_writer(&mut lines, link)?;
            lines.write_all(b"\n")?;
        }
        lines.flush()
    }

    /// Writes `metrics.csv`, `curves.svg` and `report.html`, and finishes `events.jsonl`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(mut self, ending: &Ending<'_>, rounds: &[RoundSummary]) -> io::Result<PathBuf> {
        self.events.flush()?;
        let mut csv = BufWriter::new(File::create(self.folder.join("metrics.csv"))?);
        write_metrics(&mut csv, rounds, &self.metrics)?;
        csv.flush()?;
        let plan = self.written("resolved.toml")?;
        let statement = self.written("privacy_statement.json")?;
        let statement: Option<PrivacyStatement> =
            statement.map(|text| PrivacyStatement::read(&text)).transpose().map_err(io::Error::other)?;
        let Ending { title, state, lead, remarks, model_sha256, clock, real_seconds, now } = *ending;
        let report = Report {
            title,
            state: Some(state),
            lead,
            remarks,
            rounds,
            clients: &self.clients,
            tables: &self.tables,
            model_sha256: Some(model_sha256),
            statement: statement.as_ref(),
            plan: plan.as_deref(),
            clock,
            real_seconds,
            written: Some(now),
        };
        draw_curves(&self.folder.join("curves.svg"), &report)?;
        write_report(&self.folder.join("report.html"), &report)?;
        Ok(self.folder)
    }

    /// The text of a file of this folder, if it was written.
    fn written(&self, name: &str) -> io::Result<Option<String>> {
        match std::fs::read_to_string(self.folder.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Metrics;

    #[test]
    fn a_run_leaves_its_events_metrics_and_curves() {
        let parent = tempfile::tempdir().unwrap();
        let mut results = Results::create(parent.path(), "t", OffsetDateTime::UNIX_EPOCH, 0xab).unwrap();
        results.event(&serde_json::json!({"event": "x"})).unwrap();
        results.resolved("rounds = 1\n").unwrap();
        let metrics = Metrics { loss: 0.5, accuracy: Some(0.25), examples: 8, seconds: 0.0 };
        let round = RoundSummary {
            round: 1,
            released: true,
            cohort: 2,
            answered: 2,
            train: Some(metrics),
            sites: Some(metrics),
            central: None,
            seconds: 1.0,
            epsilon: Some(0.125),
            further: Default::default(),
        };
        let ending = Ending {
            title: "title",
            state: RunState::Finished,
            lead: "all rounds are done",
            remarks: &[],
            model_sha256: "ab12",
            clock: Clock::Virtual,
            real_seconds: Some(0.5),
            now: OffsetDateTime::UNIX_EPOCH,
        };
        let statistics = RoundSummary { round: 0, train: None, sites: None, epsilon: None, ..round.clone() };
        let folder = results.finish(&ending, &[statistics, round]).unwrap();
        let page = std::fs::read_to_string(folder.join("report.html")).unwrap();
        assert!(
            page.contains("ab12") && page.contains("rounds = 1") && page.contains("on 1970-01-01 00:00 UTC"),
            "{page}"
        );
        assert!(folder.ends_with("1970-01-01-000000-t-00ab"));
        let csv = std::fs::read_to_string(folder.join("metrics.csv")).unwrap();
        assert_eq!(csv.lines().nth(1), Some("statistics,true,2,2,,,,,,,,1.000000,"));
        let line = csv.lines().nth(2).unwrap();
        assert_eq!(line, "1,true,2,2,0.500000,0.250000,0.500000,0.250000,8,,,1.000000,0.125000");
        let svg = std::fs::read_to_string(folder.join("curves.svg")).unwrap();
        assert!(svg.contains("<svg") && svg.contains("Accuracy") && svg.contains("Virtual time of a round"));
        assert_eq!(std::fs::read_to_string(folder.join("events.jsonl")).unwrap(), "{\"event\":\"x\"}\n");
    }

    #[test]
    fn clients_get_columns_of_their_own_as_long_as_they_are_few() {
        use protocol::{ClientId, Round, RunId, StepId, TaskId};
        let csv = |count: usize| {
            let name = |number: usize| ClientId::new(&format!("c{number}")).unwrap();
            let mut clients = ClientMetrics::of((0..count).map(name));
            let task = |kind| TaskId::new(RunId(0), Round(1), kind);
            let metrics = Metrics { loss: 0.5, accuracy: Some(0.75), examples: 8, seconds: 0.0 };
            clients
                .add(&[(name(0), task(StepId::TRAIN), metrics), (name(1), task(StepId::EVALUATE), metrics)]);
            let round = RoundSummary {
                round: 1,
                released: true,
                cohort: 2,
                answered: 1,
                train: None,
                sites: None,
                central: None,
                seconds: 1.0,
                epsilon: None,
                further: Default::default(),
            };
            let mut text = Vec::new();
            write_metrics(&mut text, &[round], &clients).unwrap();
            String::from_utf8(text).unwrap()
        };
        let two = csv(2);
        assert!(two.contains(",epsilon,c0_train_loss,c0_test_loss,c0_test_accuracy,c1_train_loss,"), "{two}");
        assert!(two.ends_with(",1.000000,,0.500000,,,,0.500000,0.750000\n"), "{two}");
        assert!(csv(CLIENT_COLUMNS_MAX + 1).lines().next().unwrap().ends_with(",epsilon"));
    }

    #[test]
    fn a_folder_goes_on_after_the_events_that_were_counted_and_gives_its_reserve_back() {
        let parent = tempfile::tempdir().unwrap();
        let event = |number: u32| serde_json::json!({ "number": number });
        let mut results = Results::create(parent.path(), "t", OffsetDateTime::UNIX_EPOCH, 1).unwrap();
        results.reserve(100).unwrap();
        results.event(&event(1)).unwrap();
        let counted = results.events_written();
        results.event(&event(2)).unwrap();
        let folder = results.folder().to_owned();
        drop(results);
        assert!(folder.join(RESERVE).metadata().unwrap().len() > 100);
        let mut results = Results::go_on(&folder, counted).unwrap();
        results.event(&event(3)).unwrap();
        results.give_back().unwrap();
        results.give_back().unwrap();
        results.flush_events().unwrap();
        assert_eq!(results.events_written(), 2 * counted);
        let text = std::fs::read_to_string(folder.join("events.jsonl")).unwrap();
        assert_eq!(text, "{\"number\":1}\n{\"number\":3}\n");
        assert!(Results::go_on(&folder, 1000).is_err() && !folder.join(RESERVE).exists());
    }
}
