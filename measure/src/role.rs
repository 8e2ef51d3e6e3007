//! This program again, in another role, in a process of its own.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};

/// The variable that tells a process its role.
pub(super) const VARIABLE: &str = "CONSORTIA_MEASURED_ROLE";

/// How this program is started again.
#[derive(Clone, Debug)]
pub struct Program {
    arguments: Vec<String>,
}

impl Program {
    /// This executable, with these arguments: those with which its `main` comes to [`super::role`].
    pub fn with_arguments(arguments: &[&str]) -> Self {
        Self { arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect() }
    }
}

/// A process that plays a role; it ends when its standard input does.
pub(super) struct Role {
    child: Child,
    input: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Role {
    pub(super) fn start(program: &Program, words: &str) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(&program.arguments).env(VARIABLE, words);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("its output is piped")?;
        Ok(Self { child, input, lines: BufReader::new(output).lines() })
    }

    /// Its next line, which must begin with `word`: what follows it.
    pub(super) fn expect(&mut self, word: &str) -> anyhow::Result<String> {
        let line = self.lines.next().with_context(|| format!("it ended before it said `{word}`"))??;
        let rest = line.strip_prefix(word).with_context(|| format!("it said `{line}` for `{word}`"))?;
        Ok(rest.trim().to_owned())
    }

    /// The moment that its next line, which must begin with `word`, names.
    pub(super) fn moment(&mut self, word: &str) -> anyhow::Result<f64> {
        Ok(self.expect(word)?.parse()?)
    }

    /// Tells it a line.
    pub(super) fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("its input is piped")?;
        writeln!(input, "{line}")?;
        Ok(input.flush()?)
    }

    /// The most bytes of memory it has had resident.
    pub(super) fn peak(&self) -> anyhow::Result<u64> {
        self.memory("VmHWM:")
    }

    /// The bytes of memory it has resident now.
    pub(super) fn resident(&self) -> anyhow::Result<u64> {
        self.memory("VmRSS:")
    }

    fn memory(&self, which: &str) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .context("resident memory is read from /proc, on Linux alone")?;
        let line = status.lines().find_map(|line| line.strip_prefix(which));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kib = kib.with_context(|| format!("there is no {which}"))?;
        Ok(1024 * kib.trim().parse::<u64>()?)
    }

    pub(super) fn end(mut self) -> anyhow::Result<()> {
        drop(self.input.take());
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the server ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        // A measurement that failed leaves nobody behind; one that ended well has waited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits, off the asynchronous threads, until whoever started this program closes its standard input.
pub(super) async fn until_input_ends() -> anyhow::Result<()> {
    let wait = || std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    tokio::task::spawn_blocking(wait).await??;
    Ok(())
}
