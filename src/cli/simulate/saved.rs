//! `checkpoint.json` in the folder of a simulation that is under way or was interrupted: from where `--resume` goes on.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use consortia::results::{ClientMetrics, Existing, write_whole};
use privacy::chain::Digest;
use serde::{Deserialize, Serialize};
use simulations::{Scenario, Snapshot};

use super::super::failure::{Failure, Kind, OrFail};
use super::super::plans::scenario_of;
use super::super::shell::quoted;
use super::super::text::read_text;

/// The file.
pub(super) const FILE: &str = "checkpoint.json";
/// The form of the file.
const VERSION: u32 = 1;

/// What the file holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Saved {
    version: u32,
    /// Of `resolved.toml`.
    plan_sha256: String,
    /// Where relative paths of the plan begin.
    directory: PathBuf,
    /// Bytes of `events.jsonl` that are of rounds that are over.
    pub(super) events: u64,
    pub(super) metrics: ClientMetrics,
    pub(super) simulation: Snapshot,
}

impl Saved {
    /// Where `simulation` stands, whose plan has this text.
    pub(super) fn new(
        plan: &str,
        events: u64,
        metrics: ClientMetrics,
        simulation: Snapshot,
    ) -> std::io::Result<Self> {
        let (plan_sha256, directory) = (Digest::of(plan.as_bytes()).to_string(), std::env::current_dir()?);
        Ok(Self { version: VERSION, plan_sha256, directory, events, metrics, simulation })
    }

    /// Writes it into `folder`, whole or not at all, for its owner alone: noise of a private plan may be in it.
    pub(super) fn write(&self, folder: &Path) -> std::io::Result<()> {
        write_whole(&folder.join(FILE), Existing::Replaced, |partial| {
            let mut options = OpenOptions::new();
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let mut file =
                std::io::BufWriter::new(options.create(true).truncate(true).write(true).open(partial)?);
            serde_json::to_writer(&mut file, self)?;
            file.flush()
        })
    }

    /// Reads it from the folder of a simulation, with the scenario it was begun with and that one's text.
    pub(super) fn read(folder: &Path) -> Result<(Self, Scenario, String), Failure> {
        let path = folder.join(FILE);
        let shown = path.display();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let message = format!(
                    "{shown} is not there: {} is no folder of a simulation that was interrupted after a round",
                    folder.display()
                );
                return Err(Failure::new(Kind::Configuration, message));
            }
            Err(error) => return Err(Failure::new(Kind::Configuration, format!("{shown}: {error}"))),
        };
        let saved: Self = serde_json::from_str(&text).or_fail(Kind::Configuration, shown)?;
        if saved.version != VERSION {
            let message = format!("{}: form {} is not known to this release", path.display(), saved.version);
            return Err(Failure::new(Kind::Configuration, message));
        }
        let resolved = folder.join("resolved.toml");
        let plan = read_text(&resolved)?;
        if Digest::of(plan.as_bytes()).to_string() != saved.plan_sha256 {
            let message = format!(
                "{}: the file was changed since the simulation was begun; a simulation goes on as it was begun, so bring it back, or \
                 begin a new one with `consortia simulate {}`",
                resolved.display(),
                quoted(&resolved)
            );
            return Err(Failure::new(Kind::Configuration, message));
        }
        let lookup = |name: &str| std::env::var(name).ok();
        let scenario =
            scenario_of(&plan, &saved.directory, &lookup).or_fail(Kind::Configuration, resolved.display())?;
        Ok((saved, scenario, plan))
    }
}
