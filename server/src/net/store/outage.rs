//! Faults of the storage that pass (a lock that another program holds on the database, a disk that is full, a bucket that does not
//! answer): they are waited out and told, at once and then at growing intervals.
//!
//! It waits only where the same attempt may be made again, since nothing of it was kept. A server that is told to stop does not go on
//! waiting.

#![expect(clippy::disallowed_methods, reason = "how long a fault has lasted is this machine's time")]

use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::StoreError;
use super::fault::{FaultOf, StorageFault};

/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// How long an attempt may go on once the server is told to stop.
const GRACE: Duration = Duration::from_secs(2);
/// When a fault is told a second time; each time after that twice as long passes, up to the longest.
const AGAIN_FIRST: Duration = Duration::from_secs(60);
const AGAIN_MAX: Duration = Duration::from_secs(3600);

/// When a fault that lasts is told.
#[derive(Debug, Default)]
pub(crate) struct Reminder {
    since: Option<Instant>,
    next: Duration,
}

impl Reminder {
    /// The fault is there at `now`. How long it has lasted, where that is to be told.
    pub(crate) fn is_due(&mut self, now: Instant) -> Option<Duration> {
        let lasted = now.saturating_duration_since(*self.since.get_or_insert(now));
        if lasted < self.next {
            return None;
        }
        // After a minute, then after two more, four more.
        self.next = lasted + (self.next + AGAIN_FIRST).min(AGAIN_MAX);
        Some(lasted)
    }

    /// The fault is over at `now`. How long it has lasted, if there was one.
    pub(crate) fn over(self, now: Instant) -> Option<Duration> {
        self.since.map(|since| now.saturating_duration_since(since))
    }

    /// Tells the fault if it is due, as a warning.
    pub(crate) fn tell(&mut self, what: &str, error: &StoreError) {
        match self.is_due(Instant::now()) {
            Some(Duration::ZERO) => tracing::warn!("{what}: {error}; trying again until it can be"),
            Some(lasted) => tracing::warn!("{what}, for {} s now: {error}", lasted.as_secs()),
            None => {}
        }
    }
}

/// How the engine's blocking threads use the storage.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    handle: Handle,
    stop: CancellationToken,
    /// Whether faults are waited out here. A server that shares its database stands back instead, and another one may go on.
    waits: bool,
    /// What is waited out at present, for others to tell.
    fault: StorageFault,
}

impl Patience {
    /// On the current runtime; what is waited out is shown in `fault`.
    pub(crate) fn new(stop: CancellationToken, waits: bool, fault: StorageFault) -> Self {
        Self { handle: Handle::current(), stop, waits, fault }
    }

    /// The result of one attempt, whatever it is.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::Stopping`] when the server is told to stop meanwhile.
    pub(crate) fn once<T>(
        &self,
        attempt: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let overdue = async {
            self.stop.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        self.handle.block_on(async {
            tokio::select! {
                biased;
                done = attempt => done,
                () = overdue => Err(StoreError::Stopping),
            }
        })
    }

    /// Waits until nobody waits for these any more; `false` when the server is told to stop before.
    pub(crate) fn until_over(&self, of: &[FaultOf]) -> bool {
        self.handle.block_on(self.stop.run_until_cancelled(self.fault.is_over(of))).is_some()
    }

    /// The result of one attempt. A fault that passes is for whoever asked for it, instead of keeping all runs waiting.
    ///
    /// # Errors
    /// [`StoreError`] of any other fault, and of each where faults are not waited out here.
    pub(crate) fn once_for<T>(
        &self,
        attempt: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<Result<T, String>, StoreError> {
        match self.once(attempt) {
            Err(error) if self.waits && error.may_be_tried_again() => Ok(Err(error.to_string())),
            done => done.map(Ok),
        }
    }

    /// The result of the first attempt that is not kept off by a fault that passes.
    ///
    /// # Errors
    /// [`StoreError`] of any other fault; [`StoreError::Stopping`] when the server is told to stop meanwhile.
    pub(crate) fn wait_for<T>(
        &self,
        mut attempt: impl AsyncFnMut() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (mut reminder, waiter) = (Reminder::default(), self.fault.waiter());
        loop {
            match self.once(attempt()) {
                Err(error) if self.waits && error.may_be_tried_again() => {
                    let (of, what) = match error.is_of_models() {
                        true => (
                            FaultOf::Models,
                            "the storage of models does not answer, and the run that needs it waits",
                        ),
                        false => {
                            (FaultOf::Database, "the state cannot be written or read, and every run waits")
                        }
                    };
                    waiter.waits(of, error.to_string());
                    reminder.tell(what, &error);
                    if self.stop.is_cancelled() {
                        return Err(StoreError::Stopping);
                    }
                    // Made within the runtime: this thread is none of its own.
                    self.handle.block_on(async {
                        self.stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
                    });
                }
                done => {
                    drop(waiter);
                    if let Some(lasted) = reminder.over(Instant::now()).filter(|_| done.is_ok()) {
                        tracing::warn!("the state can be used again, after {} s", lasted.as_secs());
                    }
                    return done;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_at_once_and_then_ever_more_seldom_but_every_hour() {
        let (mut reminder, begin) = (Reminder::default(), Instant::now());
        let mut told = Vec::new();
        for second in 0..20_000 {
            let now = begin + Duration::from_secs(second);
            told.extend(reminder.is_due(now).map(|lasted| lasted.as_secs()));
        }
        assert_eq!(told[..3], [0, 60, 180]);
        assert!(told.len() < 15 && told.windows(2).all(|pair| pair[1] - pair[0] <= 3600), "{told:?}");
        assert!(told.windows(3).all(|of| of[2] - of[1] >= of[1] - of[0]), "{told:?}");
        assert_eq!(reminder.over(begin + Duration::from_secs(9)), Some(Duration::from_secs(9)));
        assert_eq!(Reminder::default().over(begin), None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_passes_is_tried_again_what_does_not_is_told_and_whoever_is_told_to_stop_waits_no_longer() {
        let full = || StoreError::File {
            path: "state".into(),
            source: std::io::Error::from(std::io::ErrorKind::StorageFull),
        };
        let stop = CancellationToken::new();
        let patience = Patience::new(stop.clone(), true, StorageFault::default());
        let impatient = Patience::new(stop.clone(), false, StorageFault::default());
        // As the engine does: a thread that knows nothing of the runtime.
        let tried = std::thread::spawn(move || {
            let mut attempts = 0;
            let done = patience.wait_for(async || {
                attempts += 1;
                if attempts < 3 { Err(full()) } else { Ok(attempts) }
            });
            assert_eq!(done.unwrap(), 3);
            let lost = patience.wait_for(async || Err::<(), _>(StoreError::NoSuchRun(protocol::RunId(1))));
            assert!(matches!(lost, Err(StoreError::NoSuchRun(_))));
            assert!(matches!(
                impatient.wait_for(async || Err::<(), _>(full())),
                Err(StoreError::File { .. })
            ));
            stop.cancel();
            let never = patience.wait_for(async || std::future::pending::<Result<(), StoreError>>().await);
            assert!(matches!(never, Err(StoreError::Stopping)));
            assert!(matches!(patience.wait_for(async || Err::<(), _>(full())), Err(StoreError::Stopping)));
        });
        tokio::task::spawn_blocking(|| tried.join()).await.unwrap().unwrap();
    }
}
