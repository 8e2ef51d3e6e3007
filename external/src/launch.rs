//! A learner that the agent starts: its process, its environment, what it prints, and its end.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::settings::LearnerSettings;

/// Bytes of a line that is logged, at most; the rest of a longer one is logged as further lines.
const LINE_MAX: u64 = 4096;
/// How often an exit is looked for.
const TICK: Duration = Duration::from_millis(10);
/// Where programs are looked for when the agent itself was not told.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A learner's process, at the head of a process group of its own. Dropped, the whole group is killed.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    is_reaped: bool,
    end: Duration,
    /// They end when the process, and whatever it has started, has closed its output.
    _logs: [JoinHandle<()>; 2],
}

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
        let mut command = Command::new(program);
        command.args(arguments).current_dir(folder).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| PATH.into()));
        command.env("HOME", folder).env("LANG", "C.UTF-8").envs(&settings.environment);
        command.env("CONSORTIA_LEARNER", "fd:0");
        command.stdin(Stdio::from(OwnedFd::from(theirs)));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        // The command holds the learner's end, which must close when the learner's does.
        drop(command);
        let (out, error) = (child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from));
        let logs = [log(out, label.to_owned(), "out"), log(error, label.to_owned(), "err")];
        Ok((Self { child, is_reaped: false, end: settings.end(), _logs: logs }, ours))
    }

    /// Whether it has ended. It is not reaped, so that its number stays that of its group.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.pid().is_none_or(|pid| !matches!(waitid(WaitId::Pid(pid), options), Ok(None)))
    }

    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    /// Waits for its exit, for as long as a learner may take to end, kills what is left of its group, and says how it ended.
    #[expect(clippy::disallowed_methods, reason = "a shell: it waits for another program")]
    pub(crate) fn end(mut self) -> io::Result<ExitStatus> {
        let began = Instant::now();
        while !self.has_ended() && began.elapsed() < self.end {
            std::thread::sleep(TICK);
        }
        self.kill();
        let status = self.child.wait()?;
        self.is_reaped = true;
        Ok(status)
    }

    fn kill(&self) {
        if let Some(group) = self.pid() {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Once it is reaped, its number may be another group's.
        if !self.is_reaped {
            self.kill();
            let _ = self.child.wait();
        }
    }
}

/// Logs what comes out of a descriptor, line by line.
fn log(from: Option<OwnedFd>, label: String, stream: &'static str) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let Some(from) = from else { return };
        let (mut lines, mut line) = (BufReader::new(File::from(from)), Vec::new());
        loop {
            line.clear();
            match lines.by_ref().take(LINE_MAX).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    let text = String::from_utf8_lossy(&line);
                    tracing::info!(target: "learner", learner = %label, stream, "{}", text.trim_end());
                }
            }
        }
    })
}
