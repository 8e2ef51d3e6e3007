//! The command as processes of their own: each is killed when the test is done with it, however the test ends.
//!
//! A process writes one JSON object a line; waiting for a line has an end and shows what came instead.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than any line takes to come on a slow machine that does other things too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A running `consortia`.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) lines: Receiver<Value>,
    pub(crate) errors: Arc<Mutex<String>>,
    name: String,
}

impl Process {
    /// Starts the command with these arguments and `--format json`. Its stdin stays open as long as this value lives.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, None)
    }

    /// [`Process::start`], to die at a crash point: its name and at which passage.
    pub(crate) fn start_with(arguments: &[&str], crash: Option<(&str, u32)>) -> Self {
        let crash = crash.map(|(point, passage)| ("CONSORTIA_CRASH", format!("{point}:{passage}")));
        Self::start_among(arguments, crash.as_slice())
    }

    /// [`Process::start`], with these variables in its environment.
    pub(crate) fn start_among(arguments: &[&str], environment: &[(&str, String)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_consortia"));
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.args(arguments).args(["--format", "json"]).env_remove("RUST_LOG");
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(serde_json::from_str(&line).unwrap_or(Value::String(line))).is_err() {
                    return;
                }
            }
        });
        let (errors, mut stderr) = (Arc::new(Mutex::new(String::new())), child.stderr.take().unwrap());
        let kept = Arc::clone(&errors);
        std::thread::spawn(move || {
            let mut block = [0; 4096];
            while let Ok(read @ 1..) = stderr.read(&mut block) {
                kept.lock().unwrap().push_str(&String::from_utf8_lossy(&block[..read]));
            }
        });
        Self { child, lines, errors, name: arguments.join(" ") }
    }

    /// The next line that fits; lines before it are passed over.
    pub(crate) fn next(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let (began, mut seen) = (Instant::now(), Vec::new());
        loop {
            match self.lines.recv_timeout(PATIENCE.saturating_sub(began.elapsed())) {
                Ok(line) if fits(&line) => return line,
                Ok(line) => seen.push(line.to_string()),
                Err(why) => {
                    let last = seen.len().saturating_sub(5);
                    let errors = self.errors.lock().unwrap();
                    let name = &self.name;
                    panic!(
                        "`{name}` did not say {what} ({why}); last: {:?}; stderr: {errors}",
                        &seen[last..]
                    );
                }
            }
        }
    }

    /// The next line of this event.
    pub(crate) fn event(&self, event: &str) -> Value {
        self.next(event, |line| line["event"] == event)
    }

    /// The lines that nobody has read, up to the end of the process.
    pub(crate) fn rest(&self) -> Vec<Value> {
        let mut rest = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => rest.push(line),
                // The reader ends with the pipe.
                Err(RecvTimeoutError::Disconnected) => return rest,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("`{}` does not end: {}", self.name, self.errors.lock().unwrap())
                }
            }
        }
    }

    /// SIGKILL: no handler runs, nothing is flushed. Returns the lines that nobody has read.
    pub(crate) fn kill(mut self) -> Vec<Value> {
        self.end();
        self.rest()
    }

    /// The last line of a command that ends by itself, which it must do without an error.
    pub(crate) fn last_line(mut self) -> Value {
        let mut last = Value::Null;
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => last = line,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("`{}` does not end; last: {last}", self.name),
            }
        }
        // Its output has ended, so it is about to end itself.
        let status = self.child.wait().unwrap();
        assert!(status.success(), "`{}` ended with {status}: {}", self.name, self.errors.lock().unwrap());
        last
    }

    fn end(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs a command that ends by itself and returns its last line.
pub(crate) fn command(arguments: &[&str]) -> Value {
    Process::start(arguments).last_line()
}

/// Starts the server in `folder` and returns it with its address.
pub(crate) fn serve(folder: &str, listen: &str) -> (Process, String) {
    let server = Process::start(&["server", "run", folder, "--listen", listen, "--while-stdin-open"]);
    let address = server.event("listening")["address"].as_str().unwrap().to_owned();
    (server, address)
}

/// Hands a plan in, as a seeded run or without a seed, and returns the run.
pub(crate) fn submit(plan: &str, folder: &str, address: &str, seed: Option<u64>) -> String {
    let mut arguments = vec!["run", "submit", plan, "--dir", folder, "--server", address];
    let seed = seed.map(|seed| seed.to_string());
    arguments.extend(seed.iter().flat_map(|seed| ["--seed", seed]));
    command(&arguments)["run"].as_str().unwrap().to_owned()
}
