//! `consortia site`: a client beside its data.

use std::path::{Path, PathBuf};

use ::client::net::{Agent, AgentConfig, AgentError, AgentEvent, Identity};
use ::client::{Participant, Personal};
use clap::Args;
use learning::device::select;
use learning::{FileSource, Trainer};
use protocol::ClientId;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Global;
use super::failure::{Failure, Kind, OrFail};
use super::folder::SiteFile;
use super::output::Format;
use super::watch::{runtime, until_told};

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// The folder to make.
    folder: PathBuf,
    /// The server, `host:port`.
    #[arg(long)]
    server: String,
    /// The folder with `ca.pem`, `cert.pem` and `key.pem` that the operator handed over; it is copied.
    #[arg(long)]
    bundle: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The site's file.
    #[arg(default_value = "site.toml")]
    file: PathBuf,
    /// End when stdin is closed, so that no site outlives the program that started it.
    #[arg(long, hide = true)]
    while_stdin_open: bool,
}

/// The comments a user finds in a fresh `site.toml`.
const SITE_TOML: &str = r#"# A site of a federation. Paths are relative to this file's folder.

# The server, host:port. Only this UDP flow, going out, is needed; nothing listens here.
server = "SERVER"

# The folder with ca.pem, cert.pem and key.pem from the operator.
identity = "identity"

# What never leaves the site: layers that the plan keeps here.
state = "state"

# Where to train: auto, cpu, cuda, cuda:N or metal.
device = "auto"

# This site's records. Which columns are used is the federation's plan; rows and cells stay here.
[data.csv]
train = "data.csv"
# test = "test.csv"
# where = { hospital = "ours" }
# split_column = "split"
"#;

pub(super) fn init(args: &InitArgs, global: &Global) -> Result<(), Failure> {
    let path = args.folder.join("site.toml");
    if path.exists() {
        let message = format!("{} exists; nothing was changed", path.display());
        return Err(Failure::new(Kind::Configuration, message));
    }
    Identity::load(&args.bundle).or_fail(Kind::Configuration, "")?;
    let identity = args.folder.join("identity");
    for folder in [&identity, &args.folder.join("state")] {
        std::fs::create_dir_all(folder).or_fail(Kind::Configuration, folder.display())?;
    }
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        // `copy` keeps the permissions: the key stays readable by its owner alone.
        std::fs::copy(args.bundle.join(name), identity.join(name)).or_fail(Kind::Configuration, name)?;
    }
    std::fs::write(&path, SITE_TOML.replace("SERVER", &args.server))
        .or_fail(Kind::Configuration, path.display())?;
    global.format.say(
        || {
            let path = path.display();
            format!("site made: {path}\n\nnext: set [data.csv] in {path}, then\n  consortia check {path}\n  consortia site run {path}")
        },
        || json!({ "site": path }),
    );
    Ok(())
}

pub(super) fn run(args: &RunArgs, global: &Global) -> Result<(), Failure> {
    let file = SiteFile::read(&args.file)?;
    runtime()?.block_on(take_part(&file, args.while_stdin_open, global))
}

async fn take_part(file: &SiteFile, while_stdin_open: bool, global: &Global) -> Result<(), Failure> {
    let identity = Identity::load(&file.identity).or_fail(Kind::Connection, "")?;
    let name = site_name(&file.identity)?;
    let device = select(&file.device).or_fail(Kind::Configuration, "device")?;
    let trainer = Trainer::new(Box::new(FileSource::new(file.data.clone())), device);
    let mut participant = Participant::new(name, Box::new(trainer));
    let kept = file.state.join("personal.json");
    if let Some(personal) = read_personal(&kept)? {
        participant.restore_personal(personal);
    }
    let (sender, mut events) = mpsc::channel(256);
    let keep = move |personal: &Personal| {
        if let Err(error) = write_personal(&kept, personal) {
            tracing::error!("{}: {error}; what stays at this site is not on disk", kept.display());
        }
    };
    let agent = Agent::new(participant, identity, AgentConfig::new(&file.server))
        .with_events(sender)
        .with_keeper(keep);
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(agent.run(shutdown.clone()));
    let told = until_told(while_stdin_open);
    tokio::pin!(told);
    loop {
        tokio::select! {
            () = &mut told, if !shutdown.is_cancelled() => shutdown.cancel(),
            event = events.recv() => match event {
                Some(event) => show(&event, global),
                None => break,
            },
        }
    }
    match running.await.or_fail(Kind::Defect, "agent")? {
        Ok(()) => Ok(()),
        Err(error @ AgentError::Configuration(_)) => Err(Failure::new(Kind::Configuration, error)),
        Err(error) => Err(Failure::new(Kind::Connection, error)),
    }
}

fn show(event: &AgentEvent, global: &Global) {
    if global.quiet == 0 || global.format == Format::Json {
        let kind = match event {
            AgentEvent::Connected { .. } => "connected",
            AgentEvent::Waiting { .. } => "waiting",
            AgentEvent::Started { .. } => "started",
            AgentEvent::Declined { .. } => "declined",
            AgentEvent::Accepted { .. } => "accepted",
            AgentEvent::Refused { .. } => "refused",
            AgentEvent::Abandoned { .. } => "abandoned",
            AgentEvent::Left => "left",
            _ => "other",
        };
        global.format.say(|| event.to_string(), || json!({ "event": kind, "message": event.to_string() }));
    }
}

/// The name in the site's own certificate: the one the server will read there.
fn site_name(identity: &Path) -> Result<ClientId, Failure> {
    let path = identity.join("cert.pem");
    let pem = std::fs::read(&path).or_fail(Kind::Connection, path.display())?;
    server::net::site_of_pem(&pem).or_fail(Kind::Connection, path.display())
}

fn read_personal(path: &Path) -> Result<Option<Personal>, Failure> {
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read(path).or_fail(Kind::Configuration, path.display())?;
    let doing =
        format!("{}: what stays at this site cannot be read; restore it or move it away", path.display());
    serde_json::from_slice(&text).map(Some).or_fail(Kind::Configuration, doing)
}

/// Written beside and renamed, so that a crash leaves the old or the new one.
fn write_personal(path: &Path, personal: &Personal) -> std::io::Result<()> {
    if personal.is_empty() {
        return Ok(());
    }
    let beside = path.with_extension("new");
    let file = std::fs::File::create(&beside)?;
    serde_json::to_writer(&file, personal)?;
    file.sync_all()?;
    std::fs::rename(beside, path)
}
