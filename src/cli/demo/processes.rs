//! The demo's child processes. They end when their stdin closes, so none outlives the demo, however it ends.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use command::results::Results;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::cli::failure::{Failure, Kind, OrFail};
use crate::cli::folder::ServerFolder;

/// A server and its sites.
#[derive(Default)]
pub(super) struct Processes {
    server: Option<(Child, Lines<BufReader<ChildStdout>>)>,
    sites: Vec<Child>,
}

impl Processes {
    /// Starts the server and returns the address it listens on.
    pub(super) async fn start_server(&mut self, folder: &ServerFolder) -> Result<String, Failure> {
        let mut command = consortia()?;
        command.args(["--format", "json", "server", "run", "--while-stdin-open"]).arg(&folder.0);
        let mut child = command.stdout(Stdio::piped()).spawn().or_fail(Kind::Run, "server process")?;
        let stdout =
            child.stdout.take().ok_or_else(|| Failure::new(Kind::Defect, "the server has no stdout"))?;
        let mut lines = BufReader::new(stdout).lines();
        let first = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await;
        let first = first.or_fail(Kind::Timeout, "server process")?.or_fail(Kind::Run, "server process")?;
        self.server = Some((child, lines));
        let event: Value = serde_json::from_str(&first.unwrap_or_default()).unwrap_or_default();
        let address = event["address"].as_str().map(str::to_owned);
        address
            .ok_or_else(|| Failure::new(Kind::Run, "the server process did not start; its message is above"))
    }

    /// Starts a site whose bundle and records are in `folder`, so many of them for training, which everybody may know.
    pub(super) fn start_site(&mut self, folder: &Path, server: &str, records: usize) -> Result<(), Failure> {
        let text = format!(
            "server = \"{server}\"\nidentity = \".\"\nstate = \".\"\ndevice = \"cpu\"\npublic_records = {records}\n\
             data = {{ csv = {{ train = \"records.csv\", split_column = \"split\" }} }}\n"
        );
        let path = folder.join("site.toml");
        std::fs::write(&path, text).or_fail(Kind::Run, path.display())?;
        let policy = folder.join("policy.toml");
        std::fs::write(&policy, client::PLAIN_POLICY).or_fail(Kind::Run, policy.display())?;
        let mut command = consortia()?;
        command.args(["--quiet", "site", "run", "--while-stdin-open"]).arg(&path).stdout(Stdio::null());
        // One thread of linear algebra a site: four of them share this machine.
        command.env("RAYON_NUM_THREADS", "1");
        self.sites.push(command.spawn().or_fail(Kind::Run, "site process")?);
        Ok(())
    }

    /// Lets all processes end, and writes what the server said into the results.
    pub(super) async fn stop(mut self, results: &mut Results) -> Result<(), Failure> {
        for site in &mut self.sites {
            drop(site.stdin.take());
        }
        for site in &mut self.sites {
            let _ = tokio::time::timeout(Duration::from_secs(5), site.wait()).await;
        }
        let Some((mut server, mut lines)) = self.server.take() else { return Ok(()) };
        drop(server.stdin.take());
        while let Some(line) = lines.next_line().await.or_fail(Kind::Run, "server process")? {
            let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
            results.event(&event).or_fail(Kind::Run, "events.jsonl")?;
        }
        let ended = tokio::time::timeout(Duration::from_secs(10), server.wait()).await;
        ended.or_fail(Kind::Timeout, "server process")?.or_fail(Kind::Run, "server process")?;
        Ok(())
    }
}

/// This very program, to be started once more.
fn consortia() -> Result<Command, Failure> {
    let program = std::env::current_exe().or_fail(Kind::Run, "this program's own path")?;
    let mut command = Command::new(program);
    command.stdin(Stdio::piped()).kill_on_drop(true);
    Ok(command)
}
