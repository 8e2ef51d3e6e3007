//! A federation whose sites have external learners, in one folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::LEARNER;
use crate::processes::{PATIENCE, Process, command, submit};

/// The model of the plans of these tests.
pub(crate) const TENSORS: [(&str, &[usize]); 3] = [("w", &[2, 2]), ("b", &[]), ("a", &[3])];

/// A folder with a server that runs, its sites, a start file and plans.
pub(crate) struct Stage {
    dir: TempDir,
    fed: String,
    pub(crate) server: Process,
    pub(crate) address: String,
    /// Where the server listens for HTTP.
    pub(crate) admin: String,
}

impl Stage {
    /// With these sites, which do not run and have no learner yet.
    pub(crate) fn new(sites: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fed = dir.path().join("fed");
        command(&["server", "init", text(&fed), "--listen", "127.0.0.1:0"]);
        let server =
            Process::start(&["server", "run", text(&fed), "--listen", "127.0.0.1:0", "--while-stdin-open"]);
        let listening = server.event("listening");
        let [address, admin] = ["address", "admin"].map(|key| listening[key].as_str().unwrap().to_owned());
        let fed = text(&fed).to_owned();
        let stage = Self { dir, fed, server, address, admin };
        for name in sites {
            command(&["server", "issue", name, "--dir", stage.fed()]);
            let (bundle, folder) = (stage.path("fed/sites").join(name), stage.path(name));
            let [bundle, folder] = [text(&bundle), text(&folder)];
            let policy = ["--bundle", bundle, "--policy", "plain"];
            command(&[&["site", "init", folder, "--server", &stage.address], &policy[..]].concat());
        }
        write_start(&stage.path("start.safetensors"), &TENSORS, 0.25);
        stage
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn fed(&self) -> &str {
        &self.fed
    }

    /// The site's file, with these tables instead of its `[data]`.
    pub(crate) fn tell_site(&self, name: &str, tables: &str) {
        let (file, usual) = (self.site_file(name), self.path(name).join("usual.toml"));
        if !usual.exists() {
            std::fs::copy(&file, &usual).unwrap();
        }
        let written = std::fs::read_to_string(&usual).unwrap();
        let kept = written.split("[data.csv]").next().unwrap().to_owned();
        std::fs::write(&file, kept + tables).unwrap();
    }

    pub(crate) fn site_file(&self, name: &str) -> PathBuf {
        self.path(name).join("site.toml")
    }

    /// The site runs; more goes into its own environment.
    pub(crate) fn run_site(&self, name: &str, environment: &[(&str, String)]) -> Process {
        let file = self.site_file(name);
        let site = Process::start_among(&["site", "run", text(&file), "--while-stdin-open"], environment);
        site.event("connected");
        site
    }

    /// A site whose learner behaves so runs.
    pub(crate) fn run_with(&self, name: &str, learner: &[(&str, &str)]) -> Process {
        self.tell_site(name, &learner_table("learner", learner));
        self.run_site(name, &[])
    }

    pub(crate) fn write_plan(&self, name: &str, plan: &str) -> PathBuf {
        let file = self.path(name);
        std::fs::write(&file, plan).unwrap();
        file
    }

    pub(crate) fn submit(&self, plan: &str, seed: Option<u64>) -> String {
        submit(text(&self.write_plan("plan.toml", plan)), self.fed(), &self.address, seed)
    }

    /// The run's last summary, once it has ended.
    pub(crate) fn end_of(&self, run: &str) -> Value {
        command(&["run", "watch", run, "--dir", self.fed(), "--server", &self.address])
    }

    /// Lets a run of the plan come to its end.
    pub(crate) fn finish(&self, plan: &str, seed: Option<u64>) -> Value {
        let end = self.end_of(&self.submit(plan, seed));
        assert_eq!(end["state"], "finished", "{end}");
        end
    }

    /// Everything that the server has written or said by now: its log, its audit log and its database.
    pub(crate) fn servers_words(&self) -> String {
        let mut words = self.server.errors.lock().unwrap().clone();
        words += &self.server.lines.try_iter().map(|line| line.to_string()).collect::<String>();
        let mut folders = vec![self.path("fed/state")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    words += &String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default());
                }
            }
        }
        words
    }
}

/// A table by which the learner of these tests is started.
pub(crate) fn learner_table(table: &str, environment: &[(&str, &str)]) -> String {
    let program = toml::Value::from(text(&std::env::current_exe().unwrap()));
    let environment: toml::Table =
        environment.iter().map(|(name, value)| ((*name).to_owned(), toml::Value::from(*value))).collect();
    format!(
        "[{table}]\ncommand = [{program}, \"{LEARNER}\", \"--exact\", \"--nocapture\"]\nstart_seconds = 60\nsilent_seconds = 2\n\
         end_seconds = 1\nenvironment = {}\n",
        toml::Value::Table(environment)
    )
}

/// A plan of the model of these tests.
pub(crate) fn plan(rounds: u32, clients: u32, more: &str) -> String {
    format!(
        "name = \"outside\"\nrounds = {rounds}\nmodel = {{ external = {{ start = \"start.safetensors\" }} }}\n\
         [learner.config]\nwidth = 2\n[update]\nnorm_max = 20.0\n\
         [cohort]\nclients_min = {clients}\nquorum = 1\ndeadline_seconds = 120\n{more}"
    )
}

/// Writes a file of safetensors whose values are all `value`.
pub(crate) fn write_start(path: &Path, tensors: &[(&str, &[usize])], value: f32) {
    std::fs::write(path, start_file(tensors, value)).unwrap();
}

pub(crate) fn start_file(tensors: &[(&str, &[usize])], value: f32) -> Vec<u8> {
    let (mut header, mut values) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let (start, len) = (values.len(), shape.iter().product::<usize>());
        values.extend((0..len).flat_map(|_| value.to_le_bytes()));
        let entry =
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, values.len()]});
        header.insert((*name).to_owned(), entry);
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &values].concat()
}

/// The command with these arguments, to its end.
pub(crate) fn consortia(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consortia"));
    command.args(arguments).env_remove("RUST_LOG").stdin(Stdio::null()).output().unwrap()
}

pub(crate) fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Waits until something is so, which it soon is.
pub(crate) fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let began = std::time::Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a process prints to stderr, once it has printed this.
pub(crate) fn log_with(process: &Process, word: &str) -> String {
    until(&format!("`{word}` is not in the log: {}", process.errors.lock().unwrap()), || {
        Some(process.errors.lock().unwrap().clone()).filter(|log| log.contains(word))
    })
}

/// Whether there is a process of this number that has not ended.
pub(crate) fn is_alive(number: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{number}/stat")) else { return false };
    !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z')
}

/// The number of the learner's process that works in this folder.
pub(crate) fn learners_number(folder: &Path) -> Option<u32> {
    std::fs::read_to_string(folder.join("number")).ok()?.parse().ok()
}
