//! What a run leaves behind: one folder with the plan as it was understood, every event, every round, the model and the
//! curves.
//!
//! `resolved.toml` · `events.jsonl` (one object a line) · `metrics.csv` (one line a round) · `model.safetensors` ·
//! `curves.svg` · `report.html`, all of it on one page; and where the plan promises privacy `privacy_statement.json` and
//! `ledger.jsonl`.

mod curves;
mod events;
mod gallery;
mod model;
mod report;

use std::fs::{File, create_dir_all};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use privacy::chain::Link;
use protocol::wire::RoundSummary;
use server::PrivacyStatement;
use time::OffsetDateTime;
use time::macros::format_description;

pub use curves::draw_curves;
pub use events::event_json;
pub use gallery::{Gallery, draw_membership};
pub use model::{Existing, Held, ModelFile, ModelFileError, Notes, write_model, write_tensors, write_whole};
pub use report::{Report, write_report};

/// The folder of one run, open for writing.
#[derive(Debug)]
pub struct Results {
    folder: PathBuf,
    events: BufWriter<File>,
}

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
        let events = BufWriter::new(File::create(folder.join("events.jsonl"))?);
        Ok(Self { folder, events })
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
        writeln!(self.events, "{event}")
    }

    /// Writes `resolved.toml`: the plan with every default spelt out.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn resolved(&self, toml: &str) -> io::Result<()> {
        std::fs::write(self.folder.join("resolved.toml"), toml)
    }

    /// Writes `privacy_statement.json` and `ledger.jsonl`: what may be said about the model's privacy, and every record it
    /// follows from.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn privacy(&self, statement: &str, ledger: &[Link]) -> io::Result<()> {
        std::fs::write(self.folder.join("privacy_statement.json"), statement)?;
        let mut lines = BufWriter::new(File::create(self.folder.join("ledger.jsonl"))?);
        for link in ledger {
            serde_json::to_writer(&mut lines, link)?;
            lines.write_all(b"\n")?;
        }
        lines.flush()
    }

    /// Writes `metrics.csv`, `curves.svg` and `report.html`, and finishes `events.jsonl`. `lead` is a sentence on how the run ended.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(
        mut self,
        title: &str,
        lead: &str,
        model_sha256: &str,
        rounds: &[RoundSummary],
    ) -> io::Result<PathBuf> {
        self.events.flush()?;
        let mut csv = BufWriter::new(File::create(self.folder.join("metrics.csv"))?);
        write_metrics(&mut csv, rounds)?;
        csv.flush()?;
        draw_curves(&self.folder.join("curves.svg"), title, rounds).map_err(io::Error::other)?;
        let plan = self.written("resolved.toml")?;
        let statement = self.written("privacy_statement.json")?;
        let statement: Option<PrivacyStatement> =
            statement.map(|text| PrivacyStatement::read(&text)).transpose().map_err(io::Error::other)?;
        let report = Report {
            title,
            lead,
            rounds,
            model_sha256: Some(model_sha256),
            statement: statement.as_ref(),
            plan: plan.as_deref(),
            ..Report::default()
        };
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

fn write_metrics(csv: &mut impl Write, rounds: &[RoundSummary]) -> io::Result<()> {
    writeln!(
        csv,
        "round,released,cohort,answered,train_loss,train_accuracy,sites_loss,sites_accuracy,sites_examples,\
         central_loss,central_accuracy,seconds,epsilon"
    )?;
    let number = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.6}"));
    for round in rounds {
        let columns = [
            number(round.train.map(|metrics| metrics.loss)),
            number(round.train.and_then(|metrics| metrics.accuracy)),
            number(round.sites.map(|metrics| metrics.loss)),
            number(round.sites.and_then(|metrics| metrics.accuracy)),
            round.sites.map_or_else(String::new, |metrics| metrics.examples.to_string()),
            number(round.central.map(|metrics| metrics.loss)),
            number(round.central.and_then(|metrics| metrics.accuracy)),
        ];
        let RoundSummary { round: number, released, seconds, .. } = round;
        let shown = round.participation();
        let (cohort, answered) = shown
            .map_or_else(Default::default, |(asked, answered)| (asked.to_string(), answered.to_string()));
        let seconds = shown.map_or_else(String::new, |_| format!("{seconds:.6}"));
        let epsilon = round.epsilon.map_or_else(String::new, |epsilon| format!("{epsilon:.6}"));
        writeln!(csv, "{number},{released},{cohort},{answered},{},{seconds},{epsilon}", columns.join(","))?;
    }
    Ok(())
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
        };
        let folder = results.finish("title", "all rounds are done", "ab12", &[round]).unwrap();
        let page = std::fs::read_to_string(folder.join("report.html")).unwrap();
        assert!(page.contains("ab12") && page.contains("rounds = 1"), "{page}");
        assert!(folder.ends_with("1970-01-01-000000-t-00ab"));
        let csv = std::fs::read_to_string(folder.join("metrics.csv")).unwrap();
        let line = csv.lines().nth(1).unwrap();
        assert_eq!(line, "1,true,2,2,0.500000,0.250000,0.500000,0.250000,8,,,1.000000,0.125000");
        let svg = std::fs::read_to_string(folder.join("curves.svg")).unwrap();
        assert!(svg.contains("<svg") && svg.contains("accuracy"));
        assert_eq!(std::fs::read_to_string(folder.join("events.jsonl")).unwrap(), "{\"event\":\"x\"}\n");
    }
}
