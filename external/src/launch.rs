//! A learner that the agent starts: its process, its environment, what it prints, and its end.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use protocol::Stop;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::channel::HURRY;
use crate::settings::LearnerSettings;

/// Bytes of a line that is logged, at most; the rest of a longer one is logged as further lines.
const LINE_MAX: u64 = 4096;
/// Lines, and bytes of them, that are told of a learner that ended when it was not asked to, at most.
const SHOWN_LINES: usize = 20;
const SHOWN_BYTES: usize = 4096;
/// How long the end of what a learner has printed is waited for once it has ended: what it started elsewhere may hold its output open.
const OUTPUT: Duration = Duration::from_millis(500);
/// How often an exit is looked for.
const TICK: Duration = Duration::from_millis(10);
/// Where programs are looked for when the agent itself was not told.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A learner's process, at the head of a process group of its own. Dropped, the whole group is killed.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    guard: Option<Child>,
    is_reaped: bool,
    printed: Printed,
    /// They end when the process, and whatever it has started, has closed its output.
    logs: [JoinHandle<()>; 2],
}

/// The last lines that a learner has printed.
type Printed = Arc<Mutex<VecDeque<String>>>;

impl Process {
    /// Starts the command of `settings` in `folder`, and gives the agent's end of its channel.
    ///
    /// The learner's end is its standard input, which every language can open, and the one descriptor beside its two outputs. Its environment
    /// holds `PATH`, `HOME` (the folder), `LANG`, what the settings name, and where the channel is.
    pub(crate) fn start(
        settings: &LearnerSettings,
        folder: &Path,
        label: &str,
    ) -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let [program, arguments @ ..] = &settings.command[..] else {
            return Err(io::Error::other("the learner has no command"));
        };
        // From the learner's own folder a relative path leads elsewhere.
        let folder = folder.canonicalize()?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&folder).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| PATH.into()));
        // What Python prints is logged when it prints it.
        command.env("HOME", &folder).env("LANG", "C.UTF-8").env("PYTHONUNBUFFERED", "1");
        command.envs(&settings.environment);
        command.env("CONSORTIA_LEARNER", "fd:0");
        command.stdin(Stdio::from(OwnedFd::from(theirs)));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        // The command holds the learner's end, which must close when the learner's does.
        drop(command);
        let guard = guard(child.id());
        let (out, error) = (child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from));
        let printed = Printed::default();
        let log = |from, stream| log(from, label.to_owned(), stream, Arc::clone(&printed));
        let logs = [log(out, "out"), log(error, "err")];
        Ok((Self { child, guard, is_reaped: false, printed, logs }, ours))
    }

    /// Whether it has ended. It is not reaped, so that its number stays that of its group.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.pid().is_none_or(|pid| !matches!(waitid(WaitId::Pid(pid), options), Ok(None)))
    }

    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    /// Waits for its exit, for `end` at most and hardly where whoever waits is `ending`, kills what is left of its group, and says how it
    /// ended and what it printed last.
    #[expect(clippy::disallowed_methods, reason = "a shell: it waits for another program")]
    pub(crate) fn end(mut self, end: Duration, ending: &Stop) -> io::Result<(ExitStatus, String)> {
        let began = Instant::now();
        let limit = || if ending.is_stopped() { end.min(HURRY) } else { end };
        while !self.has_ended() && began.elapsed() < limit() {
            std::thread::sleep(TICK);
        }
        let status = self.reap()?;
        let ended = Instant::now();
        while !self.logs.iter().all(JoinHandle::is_finished) && ended.elapsed() < OUTPUT {
            std::thread::sleep(TICK);
        }
        Ok((status, shown(&self.printed.lock().unwrap_or_else(PoisonError::into_inner))))
    }

    /// Kills what is left of the group, and takes note of its end.
    fn reap(&mut self) -> io::Result<ExitStatus> {
        if let Some(group) = self.pid() {
            let _ = kill_process_group(group, Signal::KILL);
        }
        // Before the number of the group can be another's.
        if let Some(mut guard) = self.guard.take() {
            let _ = guard.kill().and_then(|()| guard.wait());
        }
        self.is_reaped = true;
        self.child.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Once it is reaped, its number may be another group's.
        if !self.is_reaped {
            let _ = self.reap();
        }
    }
}

/// Starts what kills the learner's group when this program is gone without a chance to: a shell that waits for the end of its input, which
/// this program holds open. Where there is no shell, a learner ends when it finds its channel closed.
fn guard(group: u32) -> Option<Child> {
    let mut shell = Command::new("/bin/sh");
    // Shells differ in how they tell a group from an option.
    let script = "read -r _; kill -s KILL -- \"-$1\" || kill -s KILL \"-$1\"";
    shell.args(["-c", script, "sh", &group.to_string()]);
    shell.env_clear().current_dir("/").process_group(0);
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = shell.spawn();
    started.inspect_err(|error| tracing::debug!(target: "learner", "no guard: /bin/sh: {error}")).ok()
}

/// The last lines for a message, as many as fit.
fn shown(lines: &VecDeque<String>) -> String {
    let mut bytes = 0;
    let fitting = lines.iter().rev().take_while(|line| {
        bytes += line.len() + 1;
        bytes <= SHOWN_BYTES
    });
    let mut fitting: Vec<&str> = fitting.map(String::as_str).collect();
    fitting.reverse();
    fitting.join("\n")
}

/// Logs what comes out of a descriptor, line by line.
fn log(from: Option<OwnedFd>, label: String, stream: &'static str, printed: Printed) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let Some(from) = from else { return };
        let (mut lines, mut line) = (BufReader::new(File::from(from)), Vec::new());
        loop {
            line.clear();
            match lines.by_ref().take(LINE_MAX).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    let text = String::from_utf8_lossy(&line);
                    let text = text.trim_end();
                    tracing::info!(target: "learner", learner = %label, stream, "{text}");
                    let mut printed = printed.lock().unwrap_or_else(PoisonError::into_inner);
                    if printed.len() == SHOWN_LINES {
                        printed.pop_front();
                    }
                    printed.push_back(text.to_owned());
                }
            }
        }
    })
}
