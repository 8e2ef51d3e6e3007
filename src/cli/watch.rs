//! What long-running commands share: a runtime, and the wish to stop.

use std::io::Read;

use tokio::sync::oneshot;

use super::failure::{Failure, Kind, OrFail};

/// A multi-threaded runtime.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().or_fail(Kind::Defect, "runtime")
}

/// Returns when the process is interrupted or told to terminate; also when stdin closes, if that is asked for.
pub(super) async fn until_told(while_stdin_open: bool) {
    let stdin_closed = async {
        if !while_stdin_open {
            return std::future::pending().await;
        }
        let (closed, wait) = oneshot::channel();
        // A thread of its own: a runtime would wait for a read of stdin when it shuts down.
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while std::io::stdin().lock().read(&mut buffer).is_ok_and(|read| read > 0) {}
            let _ = closed.send(());
        });
        let _ = wait.await;
    };
    tokio::select! {
        () = stdin_closed => {}
        _ = tokio::signal::ctrl_c() => {}
        () = terminated() => {}
    }
}

#[cfg(unix)]
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            terminate.recv().await;
        }
        Err(error) => {
            tracing::warn!("SIGTERM will not be graceful: {error}");
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(not(unix))]
async fn terminated() {
    std::future::pending::<()>().await;
}
