//! `consortia site check`: whether a site is well, one line a matter, each with what to do.
//!
//! It changes nothing, takes no task and sends no record. Its lines may name columns and values of the site's data: they are for
//! the people of the site.

mod data;
mod learner;
mod line;

use std::path::{Path, PathBuf};

use ::client::SiteAccount;
use ::client::net::{are_books_held, check_books};
use clap::Args;
use learning::device::select;
use learning::{Models, SourceSpec};
use privacy::chain::Digest;
use privacy::counted;
use serde_json::{Value, json};
use server::Plan;

use super::super::check::answers;
use super::super::failure::{Failure, Kind};
use super::super::folder::SiteFile;
use super::super::global::Global;
use super::super::modes::wide;
use super::super::policy;
use super::super::settings::read_plan;
use super::begun;
use super::owner;

#[derive(Debug, Args)]
pub(in crate::cli) struct CheckArgs {
    /// The site's file.
    #[arg(default_value = "site.toml")]
    file: PathBuf,
    /// Also check data and policy against this plan.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Do not call the server.
    #[arg(long)]
    offline: bool,
}

/// The widest name that the others' messages stand behind.
const NAME_WIDTH_MAX: usize = 40;

/// How a matter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    Warn,
    Fail,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One line.
#[derive(Clone, Debug)]
struct Matter {
    name: String,
    state: State,
    message: String,
    /// What a failure here is: of the line or the identity, of a file, or a task that policy or budget refuse.
    kind: Kind,
}

/// All that was looked at, in the order of looking.
#[derive(Debug, Default)]
struct Findings(Vec<Matter>);

impl Findings {
    fn note(&mut self, name: impl Into<String>, state: State, kind: Kind, message: impl Into<String>) {
        self.0.push(Matter { name: name.into(), state, message: message.into(), kind });
    }
    fn ok(&mut self, name: impl Into<String>, message: impl Into<String>) {
        self.note(name, State::Ok, Kind::Configuration, message);
    }
    fn warn(&mut self, name: impl Into<String>, message: impl Into<String>) {
        self.note(name, State::Warn, Kind::Configuration, message);
    }
    fn fail(&mut self, name: impl Into<String>, message: impl Into<String>) {
        self.note(name, State::Fail, Kind::Configuration, message);
    }
    /// A task of the plan that the site would decline.
    fn refuse(&mut self, name: impl Into<String>, message: impl Into<String>) {
        self.note(name, State::Fail, Kind::Refused, message);
    }
    /// A fault of who the site is, or of its line.
    fn fail_identity(&mut self, name: impl Into<String>, message: impl Into<String>) {
        self.note(name, State::Fail, Kind::Connection, message);
    }

    fn count(&self, state: State) -> usize {
        self.0.iter().filter(|matter| matter.state == state).count()
    }

    fn lines(&self) -> String {
        // A longer name, as of a column or of many servers, moves nothing but its own line.
        let widths = self.0.iter().map(|matter| matter.name.chars().count());
        let width = widths.filter(|width| *width <= NAME_WIDTH_MAX).max().unwrap_or(0);
        let line = |matter: &Matter| {
            format!("{:<4}  {:<width$}  {}", matter.state.name(), matter.name, matter.message)
        };
        self.0.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    fn object(&self) -> Value {
        let one = |matter: &Matter| json!({ "matter": matter.name, "state": matter.state.name(), "message": matter.message });
        json!({
            "matters": self.0.iter().map(one).collect::<Vec<_>>(),
            "ok": self.count(State::Ok),
            "warn": self.count(State::Warn),
            "fail": self.count(State::Fail),
        })
    }

    /// The command's end: a fault of the line or the identity comes first, then one of a file, then a task that is refused.
    fn verdict(&self) -> Result<(), Failure> {
        let failed = || self.0.iter().filter(|matter| matter.state == State::Fail);
        let of = |kind| failed().find(|matter| matter.kind == kind);
        let first = of(Kind::Connection).or_else(|| of(Kind::Configuration)).or_else(|| failed().next());
        let Some(first) = first else { return Ok(()) };
        let message =
            format!("{} of {} failed; see {}", failed().count(), counted(self.0.len(), "check"), first.name);
        Err(Failure::new(first.kind, message))
    }
}

pub(in crate::cli) fn check(args: &CheckArgs, global: &Global) -> Result<(), Failure> {
    let file = SiteFile::read(&args.file)?;
    let table = file.data.as_ref().and_then(SourceSpec::table);
    let plan = args.plan.as_deref().map(|plan| read_plan(plan, table)).transpose()?.map(|file| file.plan);
    let mut findings = Findings::default();
    findings.ok("site file", format!("{} is read", args.file.display()));
    let (running, account) = state_folder(&file, &mut findings);
    look_at_modes(&file, &mut findings);
    look_at_policy(&file, plan.as_ref(), account, &mut findings);
    let identity = line::look_at_identity(&file, &mut findings);
    look_at_device(&file, &mut findings);
    let plans = plan.as_ref().map(|plan| plan.spec.external().is_some());
    match &file.data {
        // A plan that does not use it says nothing of it.
        Some(data) if plans != Some(true) => {
            data::look_at_data(data, plan.as_ref(), file.record_count(), &mut findings);
        }
        None if plans == Some(false) => {
            findings.fail(
                "data",
                "the plan trains on records that the site's file does not name: name them under [data]",
            );
        }
        Some(_) | None => {}
    }
    learner::look_at_learner(&file, plan.as_ref(), &mut findings);
    match identity {
        Some(identity) if !args.offline => line::call(&file, &identity, running, &mut findings)?,
        Some(_) => findings.warn("connection", "not tried (--offline)"),
        None => findings.warn("connection", "not tried: there is no usable identity to call with"),
    }
    for matter in &mut findings.0 {
        matter.message = begun::with_path(&matter.message, &file);
    }
    global.format.say(|| findings.lines(), || findings.object());
    findings.verdict()
}

/// Room that a site should have for its books and what stays of its models, in bytes.
const ROOM_WANTED: u64 = 1 << 30;
const ROOM_NEEDED: u64 = 64 << 20;

/// Looks at the state folder; whether `site run` works there, and what was spent, where the books are in order.
fn state_folder(file: &SiteFile, findings: &mut Findings) -> (bool, Option<SiteAccount>) {
    let (state, shown) = (&file.state, file.state.display());
    if !state.is_dir() {
        findings.fail("state", begun::told(file));
        return (false, None);
    }
    match tempfile::tempfile_in(state) {
        Ok(_) => findings.ok("state", format!("{shown} can be written")),
        Err(error) => {
            findings.fail("state", format!("{shown}: {error}; let the user that runs the site write there"))
        }
    }
    if let Some(free) = free_bytes(state) {
        let message = format!("{} MiB are free in {shown}", free >> 20);
        match free {
            0..ROOM_NEEDED => findings.fail(
                "disk space",
                format!("{message}; a site that cannot write its books declines every task: make room"),
            ),
            ROOM_NEEDED..ROOM_WANTED => {
                findings.warn("disk space", format!("{message}; make room for the audit log"))
            }
            _ => findings.ok("disk space", message),
        }
    }
    let is_own = match owner::fault(file) {
        Some(fault) => {
            findings.fail("owner", fault);
            false
        }
        None => true,
    };
    let account = match check_books(state) {
        Ok(_) if begun::are_books_lost(state) => {
            findings.fail("books", begun::told(file));
            None
        }
        Ok(books) => {
            let message =
                format!("ledger and audit log fit together; the ledger has {}", books.history.head());
            findings.ok("books", message);
            Some(books.account).filter(|_| is_own)
        }
        Err(error) => {
            findings.fail("books", begun::with_path(&error.to_string(), file));
            None
        }
    };
    let running = are_books_held(state).unwrap_or(false);
    if super::pause::is_paused(state) {
        let message = "the site has paused and declines every task; `consortia site resume` ends that";
        findings.warn("pause", begun::with_path(message, file));
    }
    (running, account)
}

#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let room = rustix::fs::statvfs(folder).ok()?;
    room.f_bavail.checked_mul(room.f_frsize)
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

/// Whether others on this machine have rights on what only the site's user should.
fn look_at_modes(file: &SiteFile, findings: &mut Findings) {
    let wide = wide([file.identity.as_path(), &file.state]);
    if wide.is_empty() {
        return findings.ok("permissions", "keys, books and personal layers are their owner's alone");
    }
    for one in wide {
        findings.warn("permissions", format!("{one}, or start the site, which does it"));
    }
}

fn look_at_policy(
    file: &SiteFile,
    plan: Option<&Plan>,
    account: Option<SiteAccount>,
    findings: &mut Findings,
) {
    let shown = file.policy.display();
    let policy = match policy::read(&file.policy) {
        Ok((policy, _)) => policy,
        Err(failure) => return findings.fail("policy", failure.message()),
    };
    if policy.allows_nothing() {
        // Of a plan each task is judged all the same: a site that would do none of them is not ready for it.
        findings.warn("policy", format!("{shown} allows no task: choose there what this site takes part in"));
    } else {
        findings.ok("policy", format!("{shown} is read"));
    }
    let Some(plan) = plan else { return };
    if let Some(method) = &plan.method {
        findings.ok("answers", format!("an answer to {}", answers(method)));
    }
    let layout = match Models::new().layout_of(&plan.spec) {
        Ok(layout) => layout,
        Err(error) => return findings.fail("policy for the plan", error.to_string()),
    };
    let is_known = account.is_some();
    // The fingerprint by which the ledger names the federation.
    let federation = std::fs::read(file.identity.join("ca.pem"))
        .map_or_else(|_| Digest::default(), |pem| Digest::of(&pem));
    let ledger = policy::Ledger { account: account.unwrap_or_default(), federation };
    for (kind, verdict) in policy::judge(&policy, plan, &layout, file.record_count(), &ledger) {
        let name = format!("policy: {kind}");
        match verdict {
            Ok(()) if is_known => findings.ok(name, "the plan's task is allowed, and the ledger can pay for it"),
            Ok(()) => findings.warn(
                name,
                "the policy allows the plan's task; whether the ledger can pay for it is not known, since the books are not in order",
            ),
            Err(denied) => {
                findings.refuse(
                    name,
                    format!("{denied}; the site would decline it: change {shown}, or agree on another plan"),
                );
            }
        }
    }
}

fn look_at_device(file: &SiteFile, findings: &mut Findings) {
    match select(&file.device) {
        Ok(device) => findings.ok("device", format!("`{}` trains on {device:?}", file.device)),
        Err(error) => findings.fail("device", error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_makes_the_exit_code_and_the_line_comes_first() {
        let mut findings = Findings::default();
        findings.ok("a", "well");
        findings.warn("b", "take care");
        assert!(findings.verdict().is_ok());
        findings.refuse("policy: train", "denied");
        assert_eq!(findings.verdict().unwrap_err().kind(), Kind::Refused);
        findings.fail("c", "wrong");
        assert_eq!(findings.verdict().unwrap_err().kind(), Kind::Configuration);
        findings.fail_identity("d", "who");
        let failure = findings.verdict().unwrap_err();
        assert_eq!(failure.kind(), Kind::Connection);
        assert_eq!(failure.message(), "3 of 5 checks failed; see d");
        assert_eq!(findings.lines().lines().nth(1), Some("warn  b              take care"));
        assert_eq!(findings.object()["fail"], 3);
        findings.ok("c".repeat(500), "a column with a very long name");
        assert_eq!(
            findings.lines().lines().nth(1),
            Some("warn  b              take care"),
            "no other line is moved by it"
        );
    }
}
