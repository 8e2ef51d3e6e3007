//! The folder of a federation's server, as `server init` makes it, and the files a user writes there and at a site.

use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};

use ::client::net::Transport;
use command::results::Results;
use external::{LearnerSettings, SettingsError};
use learning::SourceSpec;
use privacy::chain::Digest;
use privacy::chain::segments::SegmentBytes;
use protocol::{RecordCount, SpecError};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use server::net::{Approval, Database, Limits, Objects, Store};
use server::{ConfigError, read_toml};

use super::address::{host_and_any_port, host_and_port, listening_in_file};
use super::failure::{Failure, Kind, OrBlame, OrFail};
use super::kinds::{FileKind, or_what_it_is};
use super::part::refuse_unfinished;
use super::shell::quoted;
use super::state::StateFile;
use super::text::read_text;

/// The list of a backup's files with their SHA-256, as `sha256sum --check` reads it.
pub(super) const SUMS: &str = "SHA256SUMS";

/// A server's folder.
#[derive(Clone, Debug)]
pub(super) struct ServerFolder(pub(super) PathBuf);

impl ServerFolder {
    pub(super) fn authority(&self) -> PathBuf {
        self.0.join("authority")
    }
    pub(super) fn identity(&self) -> PathBuf {
        self.0.join("identity")
    }
    pub(super) fn operator(&self) -> PathBuf {
        self.0.join("operator")
    }
    pub(super) fn admin_token(&self) -> PathBuf {
        self.operator().join("admin.token")
    }
    pub(super) fn state(&self) -> PathBuf {
        self.0.join("state")
    }
    pub(super) fn site(&self, name: &str) -> PathBuf {
        self.0.join("sites").join(name)
    }
    /// What nobody but its owner has to do with.
    pub(super) fn private(&self) -> [PathBuf; 5] {
        [self.authority(), self.identity(), self.operator(), self.state(), self.0.join("sites")]
    }

    /// What remembers that a server has worked here, outside of its state.
    pub(super) fn begun(&self) -> PathBuf {
        self.0.join("begun")
    }
    pub(super) fn config(&self) -> PathBuf {
        self.0.join("server.toml")
    }

    /// The server's state, to be looked at; servers may be running.
    pub(super) async fn look(&self) -> Result<Store, Failure> {
        let file = self.read()?;
        let (database, objects) = (file.database(self, None)?, self.objects(&file)?);
        let looked = Store::look_with(&self.state(), &database, objects.as_ref()).await;
        looked.or_blame()
    }

    /// Where models are, if not in the state folder: below the name of this federation, which is its root's fingerprint, cut short.
    pub(super) fn objects(&self, file: &ServerFile) -> Result<Option<Objects>, Failure> {
        let Some(url) = &file.models.store else { return Ok(None) };
        let root = self.identity().join("ca.pem");
        let root = CertificateDer::from_pem_file(&root).or_fail(Kind::Configuration, root.display())?;
        let federation = &Digest::of(&root).to_string()[..16];
        let doing = format!("{}: [models] store", self.config().display());
        Objects::at(url, federation).or_fail(Kind::Configuration, doing).map(Some)
    }

    /// The same for whoever works in the folder: a backup is none to work in.
    pub(super) fn read_to_work(&self) -> Result<ServerFile, Failure> {
        self.refuse_backup()?;
        self.read()
    }

    /// Refuses a folder that `server backup` made. What is written there makes the backup worthless, and a server that starts in it
    /// spends again what was released after it.
    pub(super) fn refuse_backup(&self) -> Result<(), Failure> {
        // One that is being made out of a backup is not finished, and whoever makes it goes on.
        refuse_unfinished(&self.0)?;
        if !self.0.join(SUMS).exists() {
            return Ok(());
        }
        let shown = self.0.display();
        let message = format!(
            "{shown}: this folder is a backup (it has {SUMS}), and nothing was changed: its ledgers do not know what was released after it was made. \
             Make a server's folder of it: `consortia server restore {} --to NEW --lost-releases N` charges N releases (docs/operations.md, Copies)",
            quoted(&self.0)
        );
        Err(Failure::new(Kind::Configuration, message))
    }

    /// Refuses a folder that is no server's: whoever forgot to name theirs is told so, and not of a file that is missing.
    pub(super) fn refuse_other(&self) -> Result<(), Failure> {
        if self.config().exists() { Ok(()) } else { Err(self.is_none("server.toml")) }
    }

    /// The failure of a folder without `missing`, with the folder within it that was meant, where there is one.
    pub(super) fn is_none(&self, missing: &str) -> Failure {
        let shown = if self.0 == Path::new(".") {
            "the current folder".to_owned()
        } else {
            self.0.display().to_string()
        };
        let other = folder_with("server.toml", &self.0);
        let named = other.as_deref().unwrap_or("FOLDER");
        let message = format!(
            "there is no {missing} in {shown}: name the folder that `consortia server init` made, by `--dir {named}`, or as `{named}` alone for \
             `server run`, `server dashboard` and `server renew`"
        );
        Failure::new(Kind::Configuration, message)
    }

    /// Reads and checks `server.toml`.
    pub(super) fn read(&self) -> Result<ServerFile, Failure> {
        refuse_unfinished(&self.0)?;
        self.refuse_other()?;
        let path = self.config();
        let text = read_text(&path)?;
        ServerFile::parse(&text, &self.0).or_fail(Kind::Configuration, path.display())
    }
}

/// `server.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServerFile {
    /// Address and port to listen on: UDP, and TCP of the same number.
    #[serde(deserialize_with = "listening_in_file")]
    pub(super) listen: SocketAddr,
    /// Whether sites whose network lets no UDP out may come over TCP.
    #[serde(default = "yes")]
    pub(super) tcp: bool,
    /// Where sites reach it, `host:port`; invites name these.
    #[serde(default)]
    pub(super) addresses: Vec<String>,
    /// Where the server evaluates: auto, cpu, cuda, cuda:N or metal.
    #[serde(default = "auto")]
    pub(super) device: String,
    /// Test records of the server's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) central: Option<SourceSpec>,
    /// Where operators look in over HTTP; nowhere without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) admin: Option<AdminFile>,
    /// Where the state's rows are.
    #[serde(default)]
    state: StateFile,
    /// How sites become members.
    #[serde(default)]
    pub(super) enrolment: EnrolmentFile,
    /// Which models are kept.
    #[serde(default)]
    pub(super) models: ModelsFile,
    /// What clients may ask of this machine.
    #[serde(default)]
    pub(super) limits: LimitsFile,
}

/// `[admin]` of `server.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AdminFile {
    /// Address and TCP port to listen on.
    #[serde(deserialize_with = "listening_in_file")]
    pub(super) listen: SocketAddr,
    /// Whether other machines may reach it.
    #[serde(default)]
    pub(super) allow_remote: bool,
    /// Names by which it may be called, besides the names of loopback and `listen`.
    #[serde(default)]
    pub(super) hosts: Vec<String>,
}

/// `[enrolment]` of `server.toml`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EnrolmentFile {
    /// Whether an operator must approve whoever comes with an invite.
    approval: bool,
}

impl EnrolmentFile {
    pub(super) fn approval(self) -> Approval {
        if self.approval { Approval::ByOperator } else { Approval::ByInvite }
    }
}

/// `[models]` of `server.toml`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ModelsFile {
    /// `file:///FOLDER`, `s3://BUCKET/PREFIX` or the like; the state folder when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<String>,
    /// How many of a run's last models keep their files, beside the best one; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) keep_last: Option<u32>,
}

/// `[limits]` of `server.toml`; what is absent has the built-in value.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsFile {
    #[serde(skip_serializing_if = "Option::is_none")]
    runs_max: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connections_max: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upload_bytes_max: Option<u64>,
    #[serde(skip_serializing_if = "is_usual")]
    pub(super) audit_segment_bytes_max: SegmentBytes,
}

fn yes() -> bool {
    true
}

fn is_usual(segment: &SegmentBytes) -> bool {
    *segment == SegmentBytes::default()
}

fn auto() -> String {
    "auto".to_owned()
}

impl ServerFile {
    pub(super) fn parse(text: &str, base: &Path) -> Result<Self, ConfigError> {
        let hidden = |error: ConfigError| match error.text.contains("://") {
            true => {
                ConfigError { text: "(an address, which may hold a password, is not shown)".into(), ..error }
            }
            false => error,
        };
        let mut file: Self = read_toml(text).map_err(hidden)?;
        file.central = resolved(text, "central", file.central, base)?;
        // A port of 0 is that of a server whose port is told when it starts; no invite names it.
        file.addresses
            .iter()
            .try_for_each(|address| host_and_any_port(address))
            .map_err(wrong_at(text, "addresses"))?;
        Ok(file)
    }

    /// The database of the server in `folder`, for the replica of this name if one is given.
    pub(super) fn database(&self, folder: &ServerFolder, replica: Option<&str>) -> Result<Database, Failure> {
        let doing = format!("{}: [state]", folder.config().display());
        self.state.database(&folder.0, replica).or_fail(Kind::Configuration, doing)
    }

    /// Whether the rows are in the server's own folder.
    pub(super) fn is_sqlite(&self, folder: &ServerFolder) -> Result<bool, Failure> {
        Ok(matches!(self.database(folder, None)?, Database::Sqlite))
    }

    /// Where an operator on this machine finds the server: here, or at the addresses of its replicas.
    pub(super) fn servers(&self, folder: &ServerFolder) -> Result<Vec<String>, Failure> {
        let everywhere = self.listen.ip().is_unspecified();
        let here =
            if everywhere { format!("localhost:{}", self.listen.port()) } else { self.listen.to_string() };
        let mut servers = vec![here];
        if matches!(self.database(folder, None)?, Database::Postgres(_)) {
            servers.extend(self.addresses.iter().cloned());
        }
        Ok(servers)
    }

    pub(super) fn limits(&self) -> Limits {
        let built_in = Limits::default();
        Limits {
            runs_max: self.limits.runs_max.unwrap_or(built_in.runs_max),
            connections_max: self.limits.connections_max.unwrap_or(built_in.connections_max),
            upload_bytes_max: self.limits.upload_bytes_max.unwrap_or(built_in.upload_bytes_max),
            ..built_in
        }
    }
}

/// `site.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SiteFile {
    /// The file itself.
    #[serde(skip)]
    pub(super) path: PathBuf,
    /// The server, `host:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    server: Option<String>,
    /// Several servers, of which one works at a time, in the order in which they are tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    servers: Vec<String>,
    /// Which way packets take to the server: `auto`, `quic` (UDP alone) or `tcp`.
    #[serde(default)]
    pub(super) transport: Transport,
    /// The folder with `ca.pem`, `cert.pem` and `key.pem`.
    pub(super) identity: PathBuf,
    /// The folder where the site keeps what never leaves it.
    pub(super) state: PathBuf,
    /// What the site takes part in.
    #[serde(default = "policy_toml")]
    pub(super) policy: PathBuf,
    /// Where to train: auto, cpu, cuda, cuda:N or metal.
    #[serde(default = "auto")]
    pub(super) device: String,
    /// A file that tells a supervisor how the running site is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) health: Option<PathBuf>,
    /// How many training records there are, as far as anybody outside may know; hidden when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_records: Option<NonZeroU64>,
    /// What the site may take of its machine and line.
    #[serde(default)]
    pub(super) limits: SiteLimits,
    /// What trains and evaluates external models at this site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) learner: Option<LearnerSettings>,
    /// The site's records, for models that this program trains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) data: Option<SourceSpec>,
}

/// `[limits]` of `site.toml`; what is absent is not limited.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SiteLimits {
    /// Threads that learn and that wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) threads: Option<NonZeroUsize>,
    /// What an answer's values may take of the line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) upload_bytes_per_second: Option<NonZeroU64>,
    /// What a task's model may take of the line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) download_bytes_per_second: Option<NonZeroU64>,
    /// From which size on a file of the audit log is closed and the next one begun.
    #[serde(skip_serializing_if = "is_usual")]
    pub(super) audit_segment_bytes_max: SegmentBytes,
}

fn policy_toml() -> PathBuf {
    PathBuf::from("policy.toml")
}

impl SiteFile {
    /// Reads a site's file, or that of a site's folder.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let path = if path.is_dir() { &path.join("site.toml") } else { path };
        if !path.exists() {
            return Err(missing_site(path));
        }
        let text = read_text(path)?;
        let base = path.parent().unwrap_or_else(|| Path::new(""));
        let what = |failure| or_what_it_is(path, &[FileKind::Site], "a site's file", failure);
        let file = Self::parse(&text, base).or_fail(Kind::Configuration, path.display()).map_err(what)?;
        Ok(Self { path: path.to_owned(), ..file })
    }

    pub(super) fn parse(text: &str, base: &Path) -> Result<Self, ConfigError> {
        let mut file: Self = read_toml(text)?;
        file.identity = base.join(file.identity);
        file.state = base.join(file.state);
        file.policy = base.join(file.policy);
        file.health = file.health.map(|health| base.join(health));
        if file.server.is_some() != file.servers.is_empty() {
            let message =
                "name the server by `server = \"host:port\"`, or several by `servers = [...]`, and not both";
            return Err(ConfigError::of(text, &SpecError::new("servers", message.to_owned())));
        }
        let key = if file.server.is_some() { "server" } else { "servers" };
        file.servers()
            .iter()
            .try_for_each(|server| host_and_port(server).map(|_| ()))
            .map_err(wrong_at(text, key))?;
        if file.data.is_none() && file.learner.is_none() {
            let message =
                "name the site's records under `[data]`, or the program that reads them under `[learner]`";
            return Err(ConfigError::at(text, 0, message));
        }
        file.data = resolved(text, "data", file.data, base)?;
        let wrong = |error: SettingsError| {
            ConfigError::of(text, &SpecError::new(format!("learner.{}", error.setting), error.message))
        };
        file.learner = file.learner.map(LearnerSettings::checked).transpose().map_err(wrong)?;
        Ok(file)
    }

    /// Where the site's own program works, and where one that attaches finds what it needs: `learner` beside the file.
    pub(super) fn learner_folder(&self) -> PathBuf {
        self.path.with_file_name("learner")
    }

    /// How many training records there are, as far as anybody outside may know.
    pub(super) fn record_count(&self) -> RecordCount {
        self.public_records.map_or(RecordCount::Hidden, |records| RecordCount::Public(records.get()))
    }

    /// Where the servers are, in the order in which they are tried.
    pub(super) fn servers(&self) -> Vec<String> {
        self.server.iter().chain(&self.servers).cloned().collect()
    }
}

/// The failure of a site's file that is not there, with the one that was meant, where a folder beside it has one.
fn missing_site(path: &Path) -> Failure {
    let beside = path.parent().unwrap_or_else(|| Path::new(""));
    let named = found_with("site.toml", beside).map(|folder| quoted(folder.join("site.toml")));
    let named = named.unwrap_or_else(|| "FOLDER/site.toml".to_owned());
    let message = format!(
        "there is no {}: name the site's file, `{named}`; `consortia site join` and `consortia site init` make one",
        path.display()
    );
    Failure::new(Kind::Configuration, message)
}

/// The first folder within `folder` that holds a file of this name, as it is typed.
fn folder_with(file: &str, folder: &Path) -> Option<String> {
    found_with(file, folder).map(quoted)
}

fn found_with(file: &str, folder: &Path) -> Option<PathBuf> {
    let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let entries = std::fs::read_dir(here).into_iter().flatten().flatten();
    let found = entries.map(|entry| entry.path()).filter(|path| path.join(file).exists()).min()?;
    Some(found.strip_prefix(".").unwrap_or(&found).to_owned())
}

/// Turns what is wrong with a value into an error that points at its `key`.
fn wrong_at<'a>(text: &'a str, key: &'a str) -> impl Fn(String) -> ConfigError + 'a {
    move |fault| ConfigError::of(text, &SpecError::new(key, fault))
}

/// The source with its paths resolved; errors point at `key`.
fn resolved(
    text: &str,
    key: &str,
    source: Option<SourceSpec>,
    base: &Path,
) -> Result<Option<SourceSpec>, ConfigError> {
    let lookup = |name: &str| std::env::var(name).ok();
    let resolve = |source: SourceSpec| source.resolved(base, &lookup);
    let fault = |error: learning::SourceError| ConfigError::of(text, &SpecError::new(key, error.to_string()));
    source.map(resolve).transpose().map_err(fault)
}

/// Opens a new results folder below `parent`.
pub(super) fn open_results(parent: &Path, name: &str) -> Result<Results, Failure> {
    let now = time::OffsetDateTime::now_utc();
    let chance = ((now.nanosecond() / 1000) & 0xffff) as u16 ^ std::process::id() as u16;
    Results::create(parent, name, now, chance).or_fail(Kind::Run, parent.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_with_their_paths_resolved_and_errors_name_the_line() {
        let text = "server = \"h:1\"\nidentity = \"i\"\nstate = \"s\"\n[data.csv]\ntrain = \"a.csv\"\n";
        let site = SiteFile::parse(text, Path::new("/base")).unwrap();
        assert_eq!((site.identity.as_path(), site.device.as_str()), (Path::new("/base/i"), "auto"));
        assert_eq!(site.policy, Path::new("/base/policy.toml"));
        let wrong = text.replace("\"a.csv\"", "\"${NOT_SET_ANYWHERE}/a.csv\"");
        let error = SiteFile::parse(&wrong, Path::new("/base")).unwrap_err();
        assert!(error.message.contains("NOT_SET_ANYWHERE"), "{}", error.message);
        assert_eq!(SiteFile::parse(&text.replace("state", "stat"), Path::new(".")).unwrap_err().line, 3);
        let several = SiteFile::parse(
            &text.replace("server = \"h:1\"", "servers = [\"h:1\", \"h:2\"]"),
            Path::new("."),
        );
        assert_eq!(several.unwrap().servers(), ["h:1", "h:2"]);
        for wrong in [text.replace("server = \"h:1\"\n", ""), format!("servers = [\"h:2\"]\n{text}")] {
            let error = SiteFile::parse(&wrong, Path::new(".")).unwrap_err();
            assert!(error.message.contains("not both"), "{}", error.message);
        }
        for (old, new) in [("h:1", "h"), ("h:1", "https://h:1"), ("h:1", "0.0.0.0:1"), ("h:1", "h:0")] {
            let error = SiteFile::parse(&text.replace(old, new), Path::new(".")).unwrap_err();
            assert_eq!((error.line, error.message.starts_with("server")), (1, true), "{}", error.message);
        }
        let listed = text.replace("server = \"h:1\"", "servers = [\"h:1\", \"h\"]");
        assert!(SiteFile::parse(&listed, Path::new(".")).unwrap_err().message.contains("no port"));
        let addressed = "listen = \"127.0.0.1:0\"\naddresses = [\"h\"]\n";
        assert_eq!(ServerFile::parse(addressed, Path::new(".")).unwrap_err().line, 2);
        let server =
            ServerFile::parse("listen = \"127.0.0.1:0\"\nlimits = { connections_max = 5 }\n", Path::new("."));
        assert_eq!(server.unwrap().limits().connections_max, 5);
        let folder = ServerFolder("fed".into());
        let found = |listen: &str| {
            let file = ServerFile::parse(&format!("listen = \"{listen}\"\n"), Path::new(".")).unwrap();
            assert!(file.tcp);
            file.servers(&folder).unwrap_or_else(|_| panic!("{listen}: a file without a database has SQLite"))
        };
        assert_eq!(found("0.0.0.0:5"), ["localhost:5"]);
        assert_eq!(found("[::]:5"), ["localhost:5"]);
        assert_eq!(found("10.7.0.1:5"), ["10.7.0.1:5"]);
        for (way, meant) in [("auto", Transport::Auto), ("quic", Transport::Quic), ("tcp", Transport::Tcp)] {
            let text = format!("transport = \"{way}\"\n{text}");
            assert_eq!(SiteFile::parse(&text, Path::new(".")).unwrap().transport, meant);
        }
        assert_eq!(SiteFile::parse(text, Path::new(".")).unwrap().transport, Transport::Auto);
        assert_eq!(ServerFile::parse("\nlisten = \"here\"\n", Path::new(".")).unwrap_err().line, 2);
    }
}
