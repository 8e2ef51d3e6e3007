//! A PostgreSQL server of a test's own, from the system's packages: in a folder that is removed, on a socket in it, gone with the
//! test. Where PostgreSQL is not installed there is none, and a test says that it skips.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

/// A running server.
pub(crate) struct Postgres {
    folder: PathBuf,
    programs: PathBuf,
    pid: u32,
    waits: Option<JoinHandle<std::io::Result<ExitStatus>>>,
    databases: AtomicU32,
    /// In the name of its socket, too.
    port: String,
}

impl Postgres {
    /// The server that tests which run at the same time share; each takes a database of its own.
    pub(crate) fn shared() -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap();
        if let Some(running) = shared.upgrade() {
            return Some(running);
        }
        let started = Arc::new(Self::start()?);
        *shared = Arc::downgrade(&started);
        Some(started)
    }

    fn start() -> Option<Self> {
        Self::start_with(|_| Vec::new())
    }

    /// Starts a server with what `prepare` asks for, beside what it puts into the server's folder.
    pub(crate) fn start_with(prepare: impl FnOnce(&Path) -> Vec<String>) -> Option<Self> {
        let Some(programs) = programs() else {
            eprintln!("SKIPPED: no PostgreSQL in /usr/lib/postgresql; install Debian's package postgresql");
            return None;
        };
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("consortia-pg-{}-{number}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
        if is_root() {
            let id = |flag| -> u32 { said(Command::new("id").args([flag, "postgres"])).parse().unwrap() };
            chown(&folder, Some(id("-u")), Some(id("-g"))).unwrap();
        }
        let data = folder.join("data");
        let made = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "-D"];
        said(unprivileged(&programs.join("initdb")).args(made).arg(&data));
        let mut server = unprivileged(&programs.join("postgres"));
        server.arg("-D").arg(&data).args(["-c", "listen_addresses=", "-c", "fsync=off"]);
        // SIGKILL of a client is what these tests do; of the server and the machine, they do not.
        server.arg("-c").arg(format!("unix_socket_directories={}", folder.display()));
        let settings = prepare(&data);
        let port =
            settings.iter().find_map(|setting| setting.strip_prefix("port=")).unwrap_or("5432").to_owned();
        for setting in &settings {
            server.args(["-c", setting]);
        }
        server.stdout(Stdio::null()).stderr(Stdio::null());
        // It dies with the thread that started it, so that one lives as long as it does.
        let (sender, pid) = std::sync::mpsc::channel();
        let waits = std::thread::spawn(move || {
            let mut child = server.spawn()?;
            sender.send(child.id()).expect("the test waits for it");
            child.wait()
        });
        let pid = pid.recv().expect("setpriv is part of every Debian");
        let running = Self { folder, programs, pid, waits: Some(waits), databases: AtomicU32::new(0), port };
        let ready = |_: &u32| running.client("pg_isready").stdout(Stdio::null()).status().unwrap().success();
        let wait = |_: &u32| std::thread::sleep(Duration::from_millis(50));
        assert!((0..1200).inspect(wait).any(|attempt| ready(&attempt)), "PostgreSQL does not start");
        Some(running)
    }

    /// A fresh database's address.
    pub(crate) fn database(&self) -> String {
        let name = format!("t{}", self.databases.fetch_add(1, Ordering::Relaxed));
        said(self.client("createdb").arg(&name));
        format!("postgres://postgres@localhost/{name}?host={}", self.folder.display())
    }

    /// What a statement in the database at `url` returns, without heads.
    pub(crate) fn query(&self, url: &str, sql: &str) -> String {
        let (_, name) = url.split_once("localhost/").expect("an address of this server");
        let (name, _) = name.split_once('?').expect("an address of this server");
        said(self.client("psql").args(["-At", "-v", "ON_ERROR_STOP=1", "-d", name, "-c", sql]))
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.arg("-h").arg(&self.folder).args(["-U", "postgres", "-p", &self.port]);
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-INT", &self.pid.to_string()]).status();
        if let Some(waits) = self.waits.take() {
            let _ = waits.join();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The folder with initdb and postgres, of the newest release that is installed.
fn programs() -> Option<PathBuf> {
    let releases = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<(u32, PathBuf)> = releases
        .filter_map(|release| {
            let path = release.ok()?.path();
            Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin")))
        })
        .filter(|(_, programs)| programs.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().map(|(_, programs)| programs)
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// PostgreSQL does not run as root. It is told to end when whoever started it dies.
fn unprivileged(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "INT"]);
    if is_root() {
        command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]);
    }
    command.arg(program).current_dir("/");
    command
}

/// What a command says that ends well.
fn said(command: &mut Command) -> String {
    let done = command.stderr(Stdio::piped()).output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}
