//! What long-running commands share: a runtime that ends with its command, and the wish to stop.
//!
//! The wish to stop is heard by a thread of its own: nothing that computes or blocks elsewhere keeps a signal from being heard.
//! After the first one a command has [`GRACE`] to end in order; then, or at a second one, the process ends where it is. What is
//! stored is stored: a kill at any instant is survived.

use std::io::Read;
use std::time::Duration;

use protocol::Stop;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use super::failure::{Failure, Kind, OrFail};
use super::output::tell;

/// How long a command may take to end in order once it is told to.
const GRACE: Duration = Duration::from_secs(5);
/// How long the last line may take to be written.
const LAST_WORD: Duration = Duration::from_millis(100);
/// How long what still computes when a command is done may go on.
const REST: Duration = Duration::from_secs(1);

/// A multi-threaded runtime that waits for nothing that blocks once it has done what it was made for.
pub(super) struct CommandRuntime(Option<Runtime>);

impl CommandRuntime {
    pub(super) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.0.as_ref().expect("it is there until it is dropped").block_on(work)
    }
}

impl Drop for CommandRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_timeout(REST);
        }
    }
}

/// A runtime for one command.
pub(super) fn runtime() -> Result<CommandRuntime, Failure> {
    let runtime = Builder::new_multi_thread().enable_all().build().or_fail(Kind::Defect, "runtime")?;
    Ok(CommandRuntime(Some(runtime)))
}

/// Returns when the process is interrupted or told to terminate; also when stdin closes, if that is asked for. A terminal that is closed
/// (SIGHUP) ends nothing. From then on the
/// process ends within [`GRACE`], whatever it does.
pub(super) async fn until_told(while_stdin_open: bool) {
    let (told, heard) = oneshot::channel();
    let listen = move || {
        let runtime = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::warn!("no signal will be heard: {error}"),
        };
        runtime.block_on(async {
            let (mut signals, mut hangups) = (Signals::new(), Hangups::new());
            let closed = stdin_closed();
            tokio::pin!(closed);
            loop {
                tokio::select! {
                    () = &mut closed, if while_stdin_open => break,
                    () = signals.next() => break,
                    () = hangups.next() => tracing::warn!(
                        "SIGHUP is ignored: certificates and revocations are taken up by themselves, everything else at the next start"
                    ),
                }
            }
            let _ = told.send(());
            let why = tokio::select! {
                () = signals.next() => "a second signal",
                () = tokio::time::sleep(GRACE) => "a computation is still running",
            };
            // Whoever reads the log may have stopped reading, and a write to a pipe that is full never returns.
            std::thread::spawn(move || {
                tracing::warn!("{why}: ends without waiting; what is stored is stored")
            });
            std::thread::sleep(LAST_WORD);
            std::process::exit(i32::from(Kind::Run as u8));
        });
    };
    if let Err(error) = std::thread::Builder::new().name("signals".into()).spawn(listen) {
        tracing::warn!("no signal will be heard: {error}");
    }
    if heard.await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Returns when the process is interrupted or told to terminate. From the first call on, neither ends the process by itself.
pub(super) async fn interrupted() {
    Signals::new().next().await;
}

/// Sets `stop` when the process is interrupted or told to terminate; a second signal ends the process where it is.
pub(super) fn stop_at_signal(stop: &Stop) {
    let stop = stop.clone();
    let listen = move || {
        let runtime = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::warn!("no signal will be heard: {error}"),
        };
        runtime.block_on(async {
            let mut signals = Signals::new();
            signals.next().await;
            stop.stop();
            tell("stopping: the open round is dropped and the results are written; interrupt again to stop at once");
            signals.next().await;
            std::process::exit(i32::from(Kind::Run as u8));
        });
    };
    if let Err(error) = std::thread::Builder::new().name("signals".into()).spawn(listen) {
        tracing::warn!("no signal will be heard: {error}");
    }
}

async fn stdin_closed() {
    let (closed, wait) = oneshot::channel();
    // A thread of its own: a runtime would wait for a read of stdin when it shuts down.
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while std::io::stdin().lock().read(&mut buffer).is_ok_and(|read| read > 0) {}
        let _ = closed.send(());
    });
    let _ = wait.await;
}

/// Terminals that were closed, and service managers that ask for files to be read anew, from when it is made on.
#[cfg(unix)]
struct Hangups(Option<tokio::signal::unix::Signal>);

#[cfg(unix)]
impl Hangups {
    fn new() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = signal(SignalKind::hangup());
        Self(listen.inspect_err(|error| tracing::warn!("SIGHUP will end this program: {error}")).ok())
    }

    async fn next(&mut self) {
        match &mut self.0 {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }
}

#[cfg(not(unix))]
struct Hangups;

#[cfg(not(unix))]
impl Hangups {
    fn new() -> Self {
        Self
    }

    async fn next(&mut self) {
        std::future::pending().await
    }
}

/// Interrupts and wishes to terminate, from when it is made on.
#[cfg(unix)]
struct Signals([Option<tokio::signal::unix::Signal>; 2]);

#[cfg(unix)]
impl Signals {
    fn new() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let listen =
            |kind| signal(kind).inspect_err(|error| tracing::warn!("a signal will not be graceful: {error}"));
        Self([SignalKind::interrupt(), SignalKind::terminate()].map(|kind| listen(kind).ok()))
    }

    async fn next(&mut self) {
        async fn of(signal: &mut Option<tokio::signal::unix::Signal>) {
            match signal {
                Some(signal) => drop(signal.recv().await),
                None => std::future::pending().await,
            }
        }
        let [interrupt, terminate] = &mut self.0;
        tokio::select! {
            () = of(interrupt) => {}
            () = of(terminate) => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> Self {
        Self
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
