//! `consortia server`: a federation's authority and its server.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::client::net::settle_renewal;
use clap::Args;
use command::results::{Existing, event_json, write_whole};
use consortia::Room;
use learning::device::select;
use methods::Registry;
use privacy::counted;
use protocol::ClientId;
use serde_json::{Value, json};
use server::Note;
use server::net::{
    AdminConfig, AdminError, AdminToken, Authority, Database, EndpointError, Issuing, ModelRoom, ServeError,
    Server, ServerConfig, Store,
};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::address::listening;
use super::failure::{Blame, Failure, Kind, OrFail};
use super::folder::{ServerFile, ServerFolder};
use super::global::Global;
use super::hints::Given;
use super::modes::{tighten, write_new};
use super::notify::Notify;
use super::output::{Format, fields, timestamp};
use super::part::Part;
use super::progress::describe;
use super::root::{RootArgs, SealArgs};
use super::shell::quoted;
use super::telemetry::Telemetry;
use super::watch::{runtime, until_told};

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// The folder to create for the federation's server.
    pub(super) folder: PathBuf,
    /// A DNS name or IP address under which sites reach the server; may be repeated.
    #[arg(long = "name", value_name = "HOST", value_parser = super::address::host)]
    pub(super) names: Vec<String>,
    /// Address and port to listen on (UDP, and TCP of the same number).
    #[arg(long, default_value = "0.0.0.0:4433")]
    pub(super) listen: SocketAddr,
    #[command(flatten)]
    pub(super) seal: SealArgs,
}

#[derive(Debug, Args)]
pub(super) struct IssueArgs {
    /// The site's name: 1 to 64 of a-z, 0-9, '.', '_' and '-'.
    pub(super) site: ClientId,
    /// The server's folder.
    #[arg(long = "dir", value_name = "DIR", default_value = ".")]
    pub(super) folder: PathBuf,
    #[command(flatten)]
    pub(super) root: RootArgs,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The server's folder.
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// The address to listen on, instead of the one in `server.toml`; port 0 takes a free port. The admin port is then a free port, too.
    #[arg(long, value_parser = listening)]
    listen: Option<SocketAddr>,
    /// The address of the admin port, instead of the one in `server.toml`; port 0 takes a free port.
    #[arg(long, value_parser = listening)]
    admin_listen: Option<SocketAddr>,
    /// This server's name among those that share a PostgreSQL database, instead of what `server.toml` says.
    #[arg(long, env = "CONSORTIA_REPLICA")]
    replica: Option<String>,
    /// End when stdin is closed, so that no server outlives the program that started it.
    #[arg(long, hide = true)]
    while_stdin_open: bool,
}

/// How often a server that led before tries to open its own port again.
const PORT_RETRIES: u32 = 20;

/// Between two turns of a server; longer after each that ended before it had begun.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The file without which a folder is no server's.
const CONFIG: &str = "server.toml";

/// The admin port of a fresh `server.toml`.
const ADMIN_PORT: u16 = 4434;

/// The comments a user finds in a fresh `server.toml`.
const SERVER_TOML: &str = r#"# The server of a federation. Paths are relative to this file's folder.

# Address and port to listen on; open this port in the firewall for UDP. Sites whose network lets no UDP out come over TCP, in TLS, to the
# port of the same number: open that, too, and take 443 if their firewalls let nothing else through. `tcp = false` closes it.
listen = "LISTEN"

# Where sites reach it, host:port; invites name these, to be tried in this order. While the list is empty, `invite create` needs --address.
addresses = ADDRESSES

# Where the server evaluates, when it has test records of its own: auto, cpu, cuda, cuda:N or metal.
device = "auto"

# Test records of the server's own, if any; every released model is evaluated on them.
# [central.csv]
# train = "central.csv"
# split_column = "split"

# The dashboard, the admin API and /metrics, over HTTP, for whoever has operator/admin.token. `consortia server dashboard`
# says how to open it. Leave this table out and nothing listens.
[admin]
listen = "127.0.0.1:ADMIN"

# With this, whoever comes with an invite waits until an operator has said `consortia site approve SITE`.
# [enrolment]
# approval = true

# The model of every round is kept in state/blobs. To keep only the last ones and the best one of a run:
# [models]
# store = "s3://bucket/prefix"     # or file:///folder; without it in state/blobs
# keep_last = 20

# The state's rows are in state/state.sqlite. In PostgreSQL, several servers may share them, and one of them works at a time
# (docs/operations.md); models are then in object storage (above), or state/ is on a file system that they share, too.
# [state]
# database = "postgres://consortia@db.example.org/consortia"
# password_file = "database-password"
# replica = "a"
# lease_seconds = 10

# [limits]
# runs_max = 4
# connections_max = 2000
# upload_bytes_max = 134217728
"#;

pub(super) fn init(args: &InitArgs, global: &Global) -> Result<(), Failure> {
    let folder = ServerFolder(args.folder.clone());
    let shown = args.folder.display().to_string();
    if folder.config().exists() {
        let message = format!("{shown} already holds a federation; nothing was changed");
        return Err(Failure::new(Kind::Configuration, message));
    }
    if Part::resume_within(&args.folder, CONFIG)? {
        global.format.say(
            || format!("federation in {shown}: an earlier `server init` had made it, and was cut off before it was all in its place"),
            || json!({ "folder": args.folder, "resumed": true }),
        );
        return Ok(());
    }
    if folder.authority().join("ca.pem").exists() {
        let message = format!(
            "{shown}/authority is there, without a server.toml; nothing was changed: name another folder"
        );
        return Err(Failure::new(Kind::Configuration, message));
    }
    let passphrase = args.seal.passphrase()?;
    let part = Part::begin_within(&args.folder, CONFIG, "server init")?;
    let folder = ServerFolder(part.path().to_owned());
    let now = SystemTime::now();
    let authority = Authority::create_sealed(&folder.authority(), passphrase.as_ref(), now);
    let authority = authority.or_fail(Kind::Configuration, "")?;
    std::fs::create_dir_all(folder.state()).or_fail(Kind::Configuration, &shown)?;
    let server = authority.issue_server(&args.names, now).or_fail(Kind::Configuration, "")?;
    server.write_identity(&folder.identity()).or_fail(Kind::Configuration, "")?;
    let operator = authority.issue_operator("operator", now).or_fail(Kind::Configuration, "")?;
    operator.write_identity(&folder.operator()).or_fail(Kind::Configuration, "")?;
    let addresses: Vec<_> = args.names.iter().map(|name| address(name, args.listen.port())).collect();
    let addresses = serde_json::to_string(&addresses).or_fail(Kind::Defect, "addresses")?;
    AdminToken::read_or_make(&folder.admin_token()).or_fail(Kind::Configuration, "")?;
    let admin = if args.listen.port() == 0 { 0 } else { ADMIN_PORT };
    let text = SERVER_TOML
        .replace("LISTEN", &args.listen.to_string())
        .replace("ADDRESSES", &addresses)
        .replace("ADMIN", &admin.to_string());
    write_new(&folder.config(), text.as_bytes())?;
    tighten(folder.private().iter().map(PathBuf::as_path));
    part.finish()?;
    // Without a name there is no address that invites could name.
    let address = if args.names.is_empty() { " --address HOST:PORT" } else { "" };
    let sealed = if passphrase.is_some() { "encrypted" } else { "not encrypted (--passphrase would)" };
    global.format.say(
        || {
            let typed = quoted(&args.folder);
            format!(
                "federation made in {shown}\nauthority fingerprint {}\n\nnext:\n  consortia server run \
                 {typed}\n  consortia invite create SITE... --dir {typed}{address}\n\nThe root's key, {shown}/authority/ca-key.pem, is {sealed}. It can make \
                 any identity and is not needed to run: move it to where no network reaches, with a copy elsewhere. Without it \
                 nobody can issue certificates for servers and operators when those end.",
                authority.fingerprint()
            )
        },
        || json!({ "folder": args.folder, "authority_sha256": authority.fingerprint(), "root_key_encrypted": passphrase.is_some() }),
    );
    Ok(())
}

/// `host:port`, with the brackets that an IPv6 address needs.
fn address(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, port).to_string(),
        Err(_) => format!("{host}:{port}"),
    }
}

pub(super) fn issue(args: &IssueArgs, global: &Global) -> Result<(), Failure> {
    let folder = ServerFolder(args.folder.clone());
    folder.refuse_backup()?;
    folder.refuse_other()?;
    let authority = args.root.open(&folder)?;
    let identity = authority.issue_site(&args.site, SystemTime::now()).or_fail(Kind::Configuration, "")?;
    let bundle = folder.site(args.site.as_str());
    let part = Part::begin(&bundle, "server issue")?;
    identity.write_identity(part.path()).or_fail(Kind::Configuration, "")?;
    part.finish()?;
    global.format.say(
        || {
            format!(
                "bundle for {} in {}\nhand this folder to the site over a channel you trust: key.pem is its identity",
                args.site,
                bundle.display()
            )
        },
        || json!({ "site": args.site.as_str(), "bundle": bundle }),
    );
    Ok(())
}

pub(super) fn run(args: &RunArgs, global: &Global) -> Result<(), Failure> {
    let folder = ServerFolder(args.folder.clone());
    let mut file = folder.read_to_work()?;
    file.listen = args.listen.unwrap_or(file.listen);
    if let Some(admin) = &mut file.admin {
        if args.listen.is_some() {
            admin.listen.set_port(0);
        }
        admin.listen = args.admin_listen.unwrap_or(admin.listen);
    }
    let database = file.database(&folder, args.replica.as_deref())?;
    tighten(folder.private().iter().map(PathBuf::as_path));
    let shown = Shown { format: global.format, is_talkative: global.verbose > 0, folder: &folder.0 };
    runtime()?.block_on(serve(&folder, &file, database, args.while_stdin_open, shown))
}

/// The format of stdout.
#[derive(Clone, Copy)]
struct Shown<'a> {
    format: Format,
    /// Whether every answer has a line.
    is_talkative: bool,
    /// The server's folder, for hints.
    folder: &'a Path,
}

async fn serve(
    folder: &ServerFolder,
    file: &ServerFile,
    database: Database,
    while_stdin_open: bool,
    shown: Shown<'_>,
) -> Result<(), Failure> {
    settle_renewal(&folder.identity()).or_fail(Kind::Configuration, "")?;
    miss_state(folder, &database).await?;
    let mut room = Room::new().with_methods(Registry::standard().server().clone());
    if let Some(central) = &file.central {
        let device = select(&file.device).or_fail(Kind::Configuration, folder.config().display())?;
        room = room.with_central(central.clone(), device);
    }
    let config = ServerConfig {
        state: folder.state(),
        database,
        listen: file.listen,
        tcp: file.tcp,
        identity: folder.identity(),
        issuing: issuing(folder)?,
        objects: folder.objects(file)?,
        approval: file.enrolment.approval(),
        models_kept: file.models.keep_last,
        limits: file.limits(),
        audit_segment: file.limits.audit_segment_bytes_max,
        admin: admin(folder, file)?,
    };
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        until_told(while_stdin_open).await;
        told.cancel();
    });
    let notify = Notify::from_environment();
    let telemetry = Telemetry::from_environment("consortia-server");
    let ended = notify.pulsing(turns(&config, Arc::new(room), &stop, &notify, &telemetry, shown)).await;
    notify.stopping();
    telemetry.flush().await;
    ended
}

/// Works; where replicas share a database, stands by whenever another one works.
async fn turns(
    config: &ServerConfig,
    room: Arc<dyn ModelRoom>,
    stop: &CancellationToken,
    notify: &Notify,
    telemetry: &Telemetry,
    shown: Shown<'_>,
) -> Result<(), Failure> {
    let format = shown.format;
    let shared = match &config.database {
        Database::Sqlite => None,
        Database::Postgres(postgres) => Some(postgres),
    };
    let (mut retries, mut pause) = (0, PAUSE_FIRST);
    loop {
        let mut led = false;
        if let Some(postgres) = shared {
            let (replica, database) = (postgres.replica(), postgres.to_string());
            notify.ready(&format!("standby, as replica {replica}"));
            format.say(
                || format!("standby: replica {replica} waits for its turn at {database}"),
                || json!({ "event": "standby", "replica": replica, "database": database }),
            );
        }
        let starting = Server::start(config.clone(), Arc::clone(&room));
        let Some(started) = stop.run_until_cancelled(starting).await else { return Ok(()) };
        let (kind, ended) = match started {
            Ok(server) => {
                (retries, led) = (PORT_RETRIES, true);
                note_begun(&config.state)?;
                (Kind::Run, work(server, stop, notify, telemetry, shown).await)
            }
            Err(error) => (kind_of_start(&error), Err(error)),
        };
        let error = match ended {
            Ok(()) => return Ok(()),
            // What is stored is stored; that another server goes on is no failure of this one's end.
            Err(error) if stop.is_cancelled() && error.passes() => return Ok(()),
            Err(
                error @ (ServeError::Endpoint(EndpointError::Listen { .. })
                | ServeError::Admin(AdminError::Listen { .. })),
            ) if retries > 0 => {
                // The port is this server's own, still closing after its last turn.
                retries -= 1;
                error
            }
            Err(error) if shared.is_some() && error.passes() => error,
            Err(error) => return Err(Failure::new(kind, error)),
        };
        format.say(
            || format!("no longer the leader: {error}"),
            || json!({ "event": "deposed", "message": error.to_string() }),
        );
        pause = if led { PAUSE_FIRST } else { (2 * pause).min(PAUSE_MAX) };
        stop.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
}

/// The exit code of a start that failed: [`Kind::Configuration`] where a file is wrong, which no supervisor need try again.
fn kind_of_start(error: &ServeError) -> Kind {
    match error {
        ServeError::Endpoint(
            EndpointError::Listen { source, .. } | EndpointError::ListenTcp { source, .. },
        )
        | ServeError::Admin(AdminError::Listen { source, .. }) => match source.kind() {
            // Another program has the port for now, or the network is not up yet.
            io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable => Kind::Run,
            _ => Kind::Configuration,
        },
        ServeError::System(_) => Kind::Run,
        ServeError::Store(error) => error.kind(),
        _ => Kind::Configuration,
    }
}

/// Shows what happens until the server is told to stop or cannot go on.
async fn work(
    server: Server,
    stop: &CancellationToken,
    notify: &Notify,
    telemetry: &Telemetry,
    shown: Shown<'_>,
) -> Result<(), ServeError> {
    let Shown { format, is_talkative, folder } = shown;
    let address = server.local_addr();
    notify.ready(&format!("listening on {address}"));
    let (mut notes, live) = (server.notes(), server.watch());
    if let Some(epoch) = server.epoch() {
        format.say(|| format!("leading (epoch {epoch})"), || json!({ "event": "leading", "epoch": epoch }));
    }
    let (tcp, admin) = (server.comes_over_tcp(), server.admin_addr().map(|admin| admin.to_string()));
    format.say(
        || {
            let open = Given::Server(folder).complete("`consortia server dashboard` says how to open it");
            let admin = admin.as_ref().map(|admin| format!("\nadmin port {admin} (TCP, HTTP); {open}"));
            let ways = if tcp { "UDP, TCP" } else { "UDP" };
            format!("listening on {address} ({ways}; QUIC){}", admin.unwrap_or_default())
        },
        || json!({ "event": "listening", "address": address.to_string(), "tcp": tcp, "admin": admin }),
    );
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = server.wait() => break,
            note = notes.recv() => match note {
                Ok((run, note)) => {
                    telemetry.note(run, &note, &live.borrow());
                    let event = event_json(unix_seconds(), &note);
                    notify.status(&format!("listening on {address}; run {run}: {}", tell(&event)));
                    let object = || with_run(event.clone(), &run.to_string());
                    if format == Format::Json || is_line(&note, is_talkative) {
                        format.say(|| format!("{}  run {run}  {}", timestamp(), line(&note, &event)), object);
                    }
                }
                Err(RecvError::Lagged(missed)) => tracing::warn!("{} not shown", counted(missed, "event")),
                Err(RecvError::Closed) => break,
            },
        }
    }
    server.shutdown().await
}

/// Refuses to begin with an empty state where a server has worked before.
async fn miss_state(folder: &ServerFolder, database: &Database) -> Result<(), Failure> {
    let (rows, begun) = (folder.state().join("state.sqlite"), folder.begun());
    let is_moved = folder.state().join("state.sqlite.migrated").exists();
    if !matches!(database, Database::Sqlite) || is_moved || !begun.exists() {
        return Ok(());
    }
    // A file that is no database at all is named by the start.
    if Store::is_kept_in(&folder.state()).await.unwrap_or(true) {
        return Ok(());
    }
    let message = format!(
        "{}: a server has worked here ({} says so), and its database is empty or gone, or what is there is no database of a server; with it every budget and every revocation: whoever was revoked would \
         be let in. Put {} back, or restore the newest backup: `consortia server restore BACKUP --to NEW --lost-releases N`. A federation that is to \
         begin anew begins with `consortia server init` (docs/operations.md, When books disagree)",
        folder.0.display(),
        begun.display(),
        rows.display()
    );
    Err(Failure::new(Kind::Configuration, message))
}

/// Remembers outside of the state that there is one.
fn note_begun(state: &Path) -> Result<(), Failure> {
    let begun = state.with_file_name("begun");
    if begun.exists() {
        return Ok(());
    }
    let text = "A server has worked here, and state/ is what it remembers: budgets, revocations, runs. If state/ is ever missing, this file keeps a \
                server from beginning without it.\n";
    write_whole(&begun, Existing::Replaced, |path| std::fs::write(path, text))
        .or_fail(Kind::Configuration, begun.display())
}

/// Where operators look in, with the token that is made when it is missing.
fn admin(folder: &ServerFolder, file: &ServerFile) -> Result<Option<AdminConfig>, Failure> {
    let Some(admin) = &file.admin else { return Ok(None) };
    let token = AdminToken::read_or_make(&folder.admin_token()).or_fail(Kind::Configuration, "")?;
    Ok(Some(AdminConfig {
        listen: admin.listen,
        token,
        allow_remote: admin.allow_remote,
        hosts: admin.hosts.clone(),
        addresses: file.addresses.clone(),
    }))
}

/// The key that certifies invited sites, if it is in the server's folder.
fn issuing(folder: &ServerFolder) -> Result<Option<Arc<Issuing>>, Failure> {
    let authority = folder.authority();
    if !authority.join("issuer-key.pem").exists() {
        tracing::warn!("there is no {}/issuer-key.pem: nobody can be invited", authority.display());
        return Ok(None);
    }
    Ok(Some(Arc::new(Issuing::open(&authority).or_fail(Kind::Configuration, "")?)))
}

fn with_run(mut event: Value, run: &str) -> Value {
    if let Value::Object(object) = &mut event {
        object.insert("run".into(), run.into());
    }
    event
}

/// Whether an event has a line of its own for people. A round has one, when it is over; what happens in it is shown with `-v`.
fn is_line(note: &Note, is_talkative: bool) -> bool {
    match note {
        Note::Opened { .. } | Note::Accepted { .. } => is_talkative,
        Note::Closed { quorum, .. } => is_talkative || !quorum,
        _ => true,
    }
}

/// An event for a person.
fn line(note: &Note, event: &Value) -> String {
    match note {
        Note::Round(round) if round.round == 0 => format!("statistics  {}", describe(round)),
        Note::Round(round) => format!("round {}  {}", round.round, describe(round)),
        _ => tell(event),
    }
}

/// The same as fields: its kind, then what it holds.
fn tell(event: &Value) -> String {
    let kind = event["event"].as_str().unwrap_or_default();
    format!("{kind:<9} {}", fields(event, &["event", "time"]))
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
