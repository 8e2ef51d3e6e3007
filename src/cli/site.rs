//! `consortia site`: a client beside its data.

pub(super) mod begun;
pub(super) mod check;
mod health;
mod in_force;
pub(super) mod leave;
pub(super) mod log;
pub(super) mod model;
pub(super) mod owner;
pub(super) mod pause;
pub(super) mod recover;

use std::path::{Path, PathBuf};

use ::client::net::{Agent, AgentConfig, AgentError, AgentEvent, Identity, Outbox, open_books};
use ::client::{Guard, LocalState, Participant};
use clap::Args;
use methods::Registry;
use privacy::chain::Digest;
use protocol::ClientId;
use protocol::wire::ConnectError;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::clock::now;
use super::failure::{Blame, Failure, Kind, OrFail};
use super::folder::{SiteFile, SiteLimits};
use super::global::Global;
use super::identity::refuse_left;
use super::learner::SiteLearner;
use super::modes::{tighten, write_new};
use super::output::{Format, timestamp};
use super::presets::{Preset, policy_text};
use super::shell::quoted;
use super::telemetry::Telemetry;
use super::watch::{runtime, until_told};
use health::Health;
use in_force::PolicyInForce;
use privacy::{counted, verb};

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// The folder to make.
    folder: PathBuf,
    /// The server, `host:port`.
    #[arg(long, value_parser = super::address::host_and_port)]
    server: String,
    /// The folder with `ca.pem`, `cert.pem` and `key.pem` that the operator handed over; it is copied.
    #[arg(long)]
    bundle: PathBuf,
    /// The initial policy. Without it the site takes part in nothing until somebody edits `policy.toml`.
    #[arg(long, value_name = "PRESET")]
    policy: Option<Preset>,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The site's file.
    #[arg(default_value = "site.toml")]
    file: PathBuf,
    /// Write the site's health to this JSON file, instead of `health` in the site's file.
    #[arg(long, value_name = "FILE")]
    health: Option<PathBuf>,
    /// End when stdin is closed, so that no site outlives the program that started it.
    #[arg(long, hide = true)]
    while_stdin_open: bool,
}

/// The folder, in the site's state, of answers that the server has not acknowledged.
pub(super) const OUTBOX: &str = "outbox";

/// The comments a user finds in a fresh `site.toml`.
const SITE_TOML: &str = r#"# A site of a federation. Paths are relative to this file's folder.

# The server, host:port, or `servers`, a list of which one works at a time. Only this UDP flow, going out, is needed, or a TCP stream to the
# same port where no UDP gets out; nothing listens here.
SERVERS

# The folder with ca.pem, cert.pem and key.pem from the operator.
identity = "identity"

# What never leaves the site: layers that the plan keeps here, the site's privacy ledger, its audit log. And answers, until the server
# has acknowledged them.
state = "state"

# What this site takes part in. Without this file it does not start.
policy = "policy.toml"

# Where to train: auto, cpu, cuda, cuda:N or metal.
device = "auto"

# A file of JSON that says how the running site is, for whoever watches over it.
# health = "health.json"

# How many training records this site has, if that may be known: where a plan protects single records, steps, weights and
# divisors follow from this number. Without it the number is hidden: see docs/privacy.md.
# public_records = 740

# What the site may take of its machine and line.
# [limits]
# threads = 2
# upload_bytes_per_second = 1000000
# download_bytes_per_second = 1000000

# A program of this site's own that trains and evaluates external models (docs/python.md). It works in the folder `learner` beside this
# file, and finds nothing of this site's identity, policy and state in its environment.
# [learner]
# command = ["/srv/venv/bin/python", "train.py"]
# attach = true                     # instead of a command: it is started by somebody else
# environment = { OMP_NUM_THREADS = "2" }

# This site's records. Which columns are used is the federation's plan; rows and cells stay here.
[data.csv]
train = "data.csv"
# test = "test.csv"
# where = { hospital = "ours" }
# split_column = "split"
# test_fraction = 0.2            # instead of a column or file: rows are drawn by their contents, ...
# validation_fraction = 0.1
# group_column = "patient"       # ... or by what stands here, so that one patient is on one side
# decimal = ","
"#;

pub(super) fn init(args: &InitArgs, global: &Global) -> Result<(), Failure> {
    let path = args.folder.join("site.toml");
    if path.exists() {
        let message = format!("{} exists; nothing was changed", path.display());
        return Err(Failure::new(Kind::Configuration, message));
    }
    Identity::load(&args.bundle).or_fail(Kind::Configuration, "")?;
    refuse_preset(&args.folder, args.policy)?;
    let identity = args.folder.join("identity");
    let names = ["ca.pem", "cert.pem", "key.pem"];
    if let Some(there) = names.map(|name| identity.join(name)).iter().find(|path| path.exists()) {
        let message = format!("{} exists; nothing was changed: take another folder", there.display());
        return Err(Failure::new(Kind::Configuration, message));
    }
    std::fs::create_dir_all(&identity).or_fail(Kind::Configuration, identity.display())?;
    for name in names {
        let bytes = std::fs::read(args.bundle.join(name)).or_fail(Kind::Configuration, name)?;
        write_new(&identity.join(name), &bytes)?;
    }
    let files = write_files(&args.folder, std::slice::from_ref(&args.server), None, args.policy)?;
    global.format.say(
        || format!("site made: {}\n{}", files.site.display(), next_steps(&files, false, args.policy)),
        || json!({ "site": files.site, "policy": files.policy }),
    );
    Ok(())
}

/// The files of a fresh site that a person reads and changes.
pub(super) struct SiteFiles {
    pub(super) site: PathBuf,
    pub(super) policy: PathBuf,
    /// Whether the policy was there before.
    policy_kept: bool,
}

/// Refuses a preset for a folder whose policy people have written: it would not come into force.
pub(super) fn refuse_preset(folder: &Path, preset: Option<Preset>) -> Result<(), Failure> {
    let policy = folder.join("policy.toml");
    // One that a command like this has written and nobody has changed is that preset: that command was cut off.
    if preset.is_none() || !policy.exists() || is_untouched(&policy, preset) {
        return Ok(());
    }
    let shown = policy.display();
    let message = format!(
        "{shown} exists and stays in force; leave out --policy, or move {shown} away; nothing was changed"
    );
    Err(Failure::new(Kind::Configuration, message))
}

fn is_untouched(policy: &Path, preset: Option<Preset>) -> bool {
    std::fs::read(policy).is_ok_and(|kept| kept == policy_text(preset).as_bytes())
}

/// Writes `site.toml` and `policy.toml` into a site's folder. A policy that is there stays: it is its people's.
pub(super) fn write_files(
    folder: &Path,
    servers: &[String],
    data: Option<&Path>,
    preset: Option<Preset>,
) -> Result<SiteFiles, Failure> {
    let (site, policy) = (folder.join("site.toml"), folder.join("policy.toml"));
    let state = folder.join("state");
    std::fs::create_dir_all(&state).or_fail(Kind::Configuration, state.display())?;
    tighten([folder.join("identity").as_path(), &state]);
    let mut text = SITE_TOML.replace("SERVERS", &addresses(servers));
    if let Some(data) = data {
        let quoted = toml::Value::from(data.display().to_string()).to_string();
        text = text.replace("\"data.csv\"", &quoted);
    }
    let is_written = is_untouched(&policy, preset);
    let policy_kept = policy.exists() && !is_written;
    if policy_kept {
        tracing::warn!(
            "{} exists and stays as it is: it says what this site takes part in",
            policy.display()
        );
    } else if !is_written {
        write_new(&policy, policy_text(preset).as_bytes())?;
    }
    write_new(&site, text.as_bytes())?;
    Ok(SiteFiles { site, policy, policy_kept })
}

/// The line of `site.toml` that says where the server is, or where the servers are.
fn addresses(servers: &[String]) -> String {
    match servers {
        [only] => format!("server = {}", toml::Value::from(only.as_str())),
        several => format!("servers = {}", toml::Value::from(several.to_vec())),
    }
}

/// What is left to do at a fresh site.
pub(super) fn next_steps(files: &SiteFiles, has_data: bool, preset: Option<Preset>) -> String {
    let (policy, typed) = (files.policy.display(), quoted(&files.policy));
    let told = match preset {
        _ if files.policy_kept => {
            format!(
                "{policy} was there and is kept: `consortia site policy check {typed} PLAN` says what it makes of a plan"
            )
        }
        Some(preset) => format!("{policy} {}", preset.meaning()),
        None => format!("{policy} denies everything: choose there what this site takes part in"),
    };
    let set =
        format!(" set [data.csv], or [learner] for a program of yours, in {}, then", files.site.display());
    let first = if has_data { String::new() } else { set };
    let site = quoted(&files.site);
    format!("{told}\n\nnext:{first}\n  consortia site check {site}\n  consortia site run {site}")
}

pub(super) fn run(args: &RunArgs, global: &Global) -> Result<(), Failure> {
    let mut file = SiteFile::read(&args.file)?;
    file.health = args.health.clone().or(file.health);
    within_threads(&file)?;
    tighten([file.identity.as_path(), &file.state]);
    runtime()?.block_on(take_part(&file, args.while_stdin_open, global))
}

async fn take_part(file: &SiteFile, while_stdin_open: bool, global: &Global) -> Result<(), Failure> {
    refuse_left(file)?;
    let identity = super::renewal::load(&file.identity)?;
    let name = site_name(&file.identity)?;
    let learner = SiteLearner::of(file, name.as_str())?;
    let ending = learner.ending();
    let guard = open_guard(file)?;
    let (pause, audit) = (pause::following(&file.state), guard.audit().clone());
    let mut participant =
        Participant::new(name, Box::new(learner)).with_guard(guard).with_pause(pause.clone());
    participant = participant.with_methods(Registry::standard().site().clone());
    let kept = file.state.join("personal.json");
    restore_personal(&mut participant, &kept)?;
    let (sender, mut events) = mpsc::channel(256);
    let keep = move |personal: &LocalState| {
        if let Err(error) = write_personal(&kept, personal) {
            tracing::error!("{}: {error}; what stays at this site is not on disk", kept.display());
        }
    };
    let servers = file.servers();
    let outbox = file.state.join(OUTBOX);
    let outbox = Outbox::open(&outbox).or_fail(Kind::Run, outbox.display())?;
    let agent = Agent::new(participant, identity, config_of(file))
        .with_events(sender)
        .with_keeper(keep)
        .with_outbox(outbox);
    let shutdown = CancellationToken::new();
    let fresh = super::renewal::keep_fresh(&file.identity, &servers, agent.identity());
    let running = tokio::spawn(agent.run(shutdown.clone()));
    let told = until_told(while_stdin_open);
    let format = if is_heard(global) { global.format } else { Format::Silent };
    let (tell, mut told_paused) = watch::channel(false);
    let paused = pause::watch(file, &pause, Some(audit), format, |holds| {
        // Nobody hears it at the very end.
        let _ = tell.send(holds);
    });
    let telemetry = Telemetry::from_environment("consortia-site");
    let mut policy = PolicyInForce::of(file);
    let mut health = Health::begin(file.health.clone(), &servers.join(", "), &file.identity);
    let mut beats = tokio::time::interval(health.every());
    tokio::pin!(told, fresh, paused);
    loop {
        tokio::select! {
            () = &mut told, if !shutdown.is_cancelled() => {
                ending.stop();
                shutdown.cancel();
            }
            () = &mut fresh, if !shutdown.is_cancelled() => {}
            () = &mut paused, if !shutdown.is_cancelled() => {}
            _ = beats.tick() => {
                health.beat();
                policy.look();
            }
            Ok(()) = told_paused.changed() => health.pause(*told_paused.borrow_and_update()),
            event = events.recv() => match event {
                Some(event) => {
                    health.observe(&event);
                    telemetry.event(&event);
                    show(&event, file, global);
                }
                None => break,
            },
        }
    }
    health.end();
    telemetry.flush().await;
    running.await.or_fail(Kind::Defect, "agent")?.map_err(|error| failure_of(error, file))
}

/// How its agent speaks with the servers.
fn config_of(file: &SiteFile) -> AgentConfig {
    let SiteLimits { upload_bytes_per_second, download_bytes_per_second, .. } = file.limits;
    let transport = file.transport;
    AgentConfig {
        upload_bytes_per_second,
        download_bytes_per_second,
        transport,
        ..AgentConfig::any_of(file.servers())
    }
}

/// What a site's people are told of an agent that has ended by an error.
fn failure_of(error: AgentError, file: &SiteFile) -> Failure {
    match error {
        error @ AgentError::Configuration(_) => Failure::new(Kind::Configuration, error),
        error @ AgentError::Rejected(ConnectError::LedgerForked { .. }) => {
            Failure::new(Kind::Connection, begun::with_path(&error.to_string(), file))
        }
        // Its supervisor starts it again, and then there may be room.
        error @ AgentError::Unwritten(_) => Failure::new(Kind::Run, error),
        error => Failure::new(Kind::Connection, error),
    }
}

/// Starts this program anew where `[limits]` wants another number of threads: the libraries that compute and wait read theirs
/// from the environment, before anything else. The process stays the same.
#[cfg(unix)]
fn within_threads(file: &SiteFile) -> Result<(), Failure> {
    use std::os::unix::process::CommandExt;
    let Some(threads) = file.limits.threads.map(|threads| threads.to_string()) else { return Ok(()) };
    if THREADS.iter().all(|name| std::env::var(name).is_ok_and(|set| set == threads)) {
        return Ok(());
    }
    let program = std::env::current_exe().or_fail(Kind::Defect, "limits.threads")?;
    let mut again = std::process::Command::new(program);
    again.args(std::env::args_os().skip(1)).envs(THREADS.map(|name| (name, &threads)));
    Err(again.exec()).or_fail(Kind::Run, "limits.threads: starting anew with that many threads")
}

#[cfg(not(unix))]
fn within_threads(file: &SiteFile) -> Result<(), Failure> {
    let Some(threads) = file.limits.threads else { return Ok(()) };
    if THREADS.iter().all(|name| std::env::var(name).is_ok_and(|set| set == threads.to_string())) {
        return Ok(());
    }
    let message = format!("limits.threads: set {} to {threads} and start again", THREADS.join(" and "));
    Err(Failure::new(Kind::Configuration, message))
}

/// Where candle and the runtime look for their number of threads.
const THREADS: [&str; 2] = ["RAYON_NUM_THREADS", "TOKIO_WORKER_THREADS"];

/// The site's policy and books, opened where the last run left them.
fn open_guard(file: &SiteFile) -> Result<Guard, Failure> {
    let (policy, digest) = super::policy::read(&file.policy)?;
    let authority = file.identity.join("ca.pem");
    let authority = std::fs::read(&authority).or_fail(Kind::Connection, authority.display())?;
    let software = format!("consortia {}", env!("CARGO_PKG_VERSION"));
    owner::refuse_books(file, Kind::Configuration)?;
    let segment = file.limits.audit_segment_bytes_max;
    let books = open_books(&file.state, Digest::of(&authority), digest, &software, segment, now);
    let books =
        books.map_err(|error| Failure::new(error.kind(), begun::with_path(&error.to_string(), file)))?;
    begun::note(&file.state);
    owner::note(file)?;
    for torn in &books.torn {
        let path = torn.path.display();
        tracing::warn!(
            "{path}: the last start ended in the middle of a line; its {} cut off",
            format_args!("{} {}", counted(torn.bytes, "byte"), verb(torn.bytes, "was", "were"))
        );
    }
    Ok(Guard::new(policy, books.ledger, books.audit, now))
}

/// Whether what happens is told at all: programs that read it are not to be kept short by `-q`.
pub(super) fn is_heard(global: &Global) -> bool {
    global.quiet == 0 || global.format == Format::Json
}

fn show(event: &AgentEvent, file: &SiteFile, global: &Global) {
    if is_heard(global) {
        let kind = match event {
            AgentEvent::Connected { .. } => "connected",
            AgentEvent::Waiting { .. } => "waiting",
            AgentEvent::Started { .. } => "started",
            AgentEvent::Resending { .. } => "resending",
            AgentEvent::Discarded { .. } => "discarded",
            AgentEvent::ChargedAgain { .. } => "charged_again",
            AgentEvent::Answering { .. } => "answering",
            AgentEvent::Declined { .. } => "declined",
            AgentEvent::Complained { .. } => "complained",
            AgentEvent::Accepted { .. } => "accepted",
            AgentEvent::Refused { .. } => "refused",
            AgentEvent::Abandoned { .. } => "abandoned",
            AgentEvent::Quarantined { .. } => "quarantined",
            AgentEvent::Released => "released",
            AgentEvent::Left => "left",
            _ => "other",
        };
        let message = begun::with_path(&event.to_string(), file);
        // A task has one line, when its answer is noted or it has come to nothing.
        let is_step = matches!(event, AgentEvent::Started { .. } | AgentEvent::Answering { .. });
        if global.format == Format::Json || global.verbose > 0 || !is_step {
            let line = || format!("{}  {message}", timestamp());
            global.format.say(line, || json!({ "event": kind, "message": message }));
        }
    }
}

/// The name in the site's own certificate: the one the server will read there.
fn site_name(identity: &Path) -> Result<ClientId, Failure> {
    let path = identity.join("cert.pem");
    let pem = std::fs::read(&path).or_fail(Kind::Connection, path.display())?;
    server::net::site_of_pem(&pem).or_fail(Kind::Connection, path.display())
}

pub(super) fn read_personal(path: &Path) -> Result<Option<LocalState>, Failure> {
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read(path).or_fail(Kind::Configuration, path.display())?;
    let doing = format!(
        "{}: the local state of this site cannot be read; restore it or move it away",
        path.display()
    );
    serde_json::from_slice(&text).map(Some).or_fail(Kind::Configuration, doing)
}

/// Gives a participant back what stays at the site, from the file at `kept`.
fn restore_personal(participant: &mut Participant, kept: &Path) -> Result<(), Failure> {
    let Some(personal) = read_personal(kept)? else { return Ok(()) };
    for run in participant.restore_personal(personal) {
        tracing::warn!(
            "{}: the federation and privacy settings that the personal layers of run {run} belong to are unknown; they are not used, and start anew",
            kept.display()
        );
    }
    Ok(())
}

/// Written beside and renamed, so that a crash leaves the old or the new one.
fn write_personal(path: &Path, personal: &LocalState) -> std::io::Result<()> {
    if personal.is_empty() {
        return Ok(());
    }
    let beside = path.with_extension("new");
    let file = std::fs::File::create(&beside)?;
    serde_json::to_writer(&file, personal)?;
    file.sync_all()?;
    std::fs::rename(beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_is_kept_is_not_said_to_deny() {
        let dir = tempfile::tempdir().unwrap();
        let servers = ["h:1".to_owned()];
        let fresh = write_files(dir.path(), &servers, None, None).unwrap();
        assert!(next_steps(&fresh, false, None).contains("denies everything"));
        std::fs::remove_file(&fresh.site).unwrap();
        // As a command that was cut off leaves it; and as people have changed it.
        let again = write_files(dir.path(), &servers, None, None).unwrap();
        assert!(next_steps(&again, false, None).contains("denies everything"));
        std::fs::remove_file(&fresh.site).unwrap();
        std::fs::write(&fresh.policy, "# ours\n").unwrap();
        let kept = write_files(dir.path(), &servers, None, None).unwrap();
        let said = next_steps(&kept, false, None);
        assert!(said.contains("is kept") && !said.contains("denies"), "{said}");
    }
}
