//! How a running site is, for a supervisor: a small file of JSON, and the service manager's status line.
//!
//! The file is made anew beside and renamed, at every change and every few seconds, so that a reader finds it whole and an old
//! `written` shows a site that hangs. It names no record, column or value of the site.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::client::net::AgentEvent;
use protocol::TaskId;
use serde_json::{Value, json};

use super::super::modes::show;
use super::super::notify::Notify;
use super::now;

/// How often the file is written where nothing changes.
pub(super) const BEAT: Duration = Duration::from_secs(5);

/// What a running site tells of itself.
#[derive(Debug)]
pub(super) struct Health {
    path: Option<PathBuf>,
    notify: Notify,
    server: String,
    certificate: PathBuf,
    connected: bool,
    paused: bool,
    working: Option<TaskId>,
    /// Declined, and the server has not said yet that it heard so.
    declined: BTreeSet<TaskId>,
    state: &'static str,
    since: u64,
    error: Option<String>,
    quarantined: Option<String>,
    last: Option<Value>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    connections: u64,
    accepted: u64,
    declined: u64,
    refused: u64,
    abandoned: u64,
}

fn seconds() -> u64 {
    now().as_micros() / 1_000_000
}

impl Health {
    /// Of a site that begins to call `server`. The service manager hears that it is ready.
    pub(super) fn begin(path: Option<PathBuf>, server: &str, identity: &Path) -> Self {
        let notify = Notify::from_environment();
        notify.ready(&format!("calling {server}"));
        let health = Self {
            path,
            notify,
            server: server.to_owned(),
            certificate: identity.join("cert.pem"),
            connected: false,
            paused: false,
            working: None,
            declined: BTreeSet::new(),
            state: "waiting",
            since: seconds(),
            error: None,
            quarantined: None,
            last: None,
            counts: Counts::default(),
        };
        health.write();
        health
    }

    /// How often [`Health::beat`] is to be called.
    pub(super) fn every(&self) -> Duration {
        self.notify.pulse().map_or(BEAT, |pulse| pulse.min(BEAT))
    }

    /// Nothing has changed, and the site is alive.
    pub(super) fn beat(&self) {
        self.notify.alive();
        self.write();
    }

    /// The site's own pause has begun or ended.
    pub(super) fn pause(&mut self, paused: bool) {
        self.paused = paused;
        self.changed();
    }

    /// Something has happened.
    pub(super) fn observe(&mut self, event: &AgentEvent) {
        match event {
            AgentEvent::Connected { .. } => {
                self.counts.connections += 1;
                (self.connected, self.error) = (true, None);
                // A server that still holds the site in quarantine says so again.
                self.quarantined = None;
            }
            AgentEvent::Waiting { error, .. } => {
                (self.connected, self.working) = (false, None);
                self.declined.clear();
                self.error = Some(error.clone());
            }
            AgentEvent::Quarantined { reason } => self.quarantined = Some(reason.clone()),
            AgentEvent::Released => self.quarantined = None,
            AgentEvent::Started { task } => self.working = Some(*task),
            // The answer that declines a task is accepted, too.
            AgentEvent::Accepted { task } if self.declined.contains(task) => self.forget(*task),
            AgentEvent::Accepted { task } => {
                self.ended(Some(*task), "accepted");
                self.counts.accepted += 1;
            }
            AgentEvent::Declined { task, reason, .. } => {
                self.ended(Some(*task), reason.name());
                self.declined.insert(*task);
                self.counts.declined += 1;
            }
            AgentEvent::Refused { task, refusal, .. } => {
                self.forget(*task);
                self.ended(Some(*task), refusal.name());
                self.counts.refused += 1;
            }
            AgentEvent::Abandoned { task, .. } => {
                self.ended(*task, "abandoned");
                self.counts.abandoned += 1;
            }
            _ => {}
        }
        self.changed();
    }

    /// The site ends in order.
    pub(super) fn end(&mut self) {
        self.notify.stopping();
        (self.state, self.since) = ("stopped", seconds());
        self.write();
    }

    fn forget(&mut self, task: TaskId) {
        self.declined.remove(&task);
    }

    fn ended(&mut self, task: Option<TaskId>, outcome: &str) {
        if task.is_none() || task == self.working {
            self.working = None;
        }
        let task = task.map(|task| task.to_string());
        self.last = Some(json!({ "task": task, "outcome": outcome, "at": seconds() }));
    }

    fn changed(&mut self) {
        let state = match (self.paused, self.connected, self.working) {
            (true, _, _) => "paused",
            (false, false, _) => "waiting",
            // What it still works at is not wanted any more.
            (false, true, _) if self.quarantined.is_some() => "quarantined",
            (false, true, None) => "connected",
            (false, true, Some(_)) => "working",
        };
        if state != self.state {
            (self.state, self.since) = (state, seconds());
        }
        self.notify.status(&match &self.working {
            Some(task) => format!("{state}: the {task}"),
            None => format!("{state}: {}", self.server),
        });
        self.write();
    }

    fn object(&self) -> Value {
        let pem = std::fs::read(&self.certificate).unwrap_or_default();
        let ends = server::net::validity_of_pem(&pem).ok().map(|(_, ends)| ends);
        let Counts { connections, accepted, declined, refused, abandoned } = &self.counts;
        json!({
            "state": self.state,
            "since": self.since,
            "written": seconds(),
            "software": concat!("consortia ", env!("CARGO_PKG_VERSION")),
            "process": std::process::id(),
            "server": self.server,
            "trouble": self.error,
            "quarantined": self.quarantined,
            "task": self.working.map(|task| task.to_string()),
            "last_task": self.last,
            "certificate_ends": ends,
            "counts": {
                "connections": connections,
                "accepted": accepted,
                "declined": declined,
                "refused": refused,
                "abandoned": abandoned,
            },
        })
    }

    fn write(&self) {
        let Some(path) = &self.path else { return };
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let beside = path.with_file_name(name);
        let text = format!("{}\n", self.object());
        if let Err(error) = std::fs::write(&beside, text)
            // Whoever watches over the site may be another user.
            .and_then(|()| show(&beside))
            .and_then(|()| std::fs::rename(&beside, path))
        {
            tracing::warn!("{}: {error}; the site's health is not written", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use protocol::{Decline, Round, RunId, StepId};

    use super::*;

    #[test]
    fn the_file_follows_what_happens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("health.json");
        let read = || serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()).unwrap();
        let mut health = Health::begin(Some(path.clone()), "fed.example.org:4433", dir.path());
        let task = TaskId::new(RunId(1), Round(2), StepId::TRAIN);
        assert_eq!(read()["state"], "waiting");
        let server = "127.0.0.1:1".parse().unwrap();
        health.observe(&AgentEvent::Connected {
            server,
            over_tcp: false,
            software: String::new(),
            you: String::new(),
        });
        assert_eq!((&read()["state"], &read()["counts"]["connections"]), (&json!("connected"), &json!(1)));
        health.observe(&AgentEvent::Started { task });
        assert_eq!((&read()["state"], &read()["task"]), (&json!("working"), &json!(task.to_string())));
        let message = "patients.csv line 3".to_owned();
        health.observe(&AgentEvent::Declined { task, reason: Decline::Data, message });
        health.observe(&AgentEvent::Accepted { task });
        let told = read();
        assert_eq!((&told["state"], &told["last_task"]["outcome"]), (&json!("connected"), &json!("data")));
        assert_eq!((&told["counts"]["declined"], &told["counts"]["accepted"]), (&json!(1), &json!(0)));
        assert!(!told.to_string().contains("patients"), "{told}");
        health.observe(&AgentEvent::Quarantined { reason: "odd norms".into() });
        assert_eq!((&read()["state"], &read()["quarantined"]), (&json!("quarantined"), &json!("odd norms")));
        health.observe(&AgentEvent::Started { task });
        assert_eq!(read()["state"], "quarantined", "a task that is about to be given up");
        health.observe(&AgentEvent::Abandoned { task: Some(task), error: "unwanted".into() });
        health.observe(&AgentEvent::Released);
        assert_eq!((&read()["state"], &read()["quarantined"]), (&json!("connected"), &Value::Null));
        health.pause(true);
        health.observe(&AgentEvent::Waiting { error: "no line".into(), retry_in: Duration::ZERO });
        assert_eq!((&read()["state"], &read()["trouble"]), (&json!("paused"), &json!("no line")));
        health.pause(false);
        assert_eq!(read()["state"], "waiting");
        health.end();
        assert_eq!(read()["state"], "stopped");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
