//! A limit of bytes a second, shared by all tasks of a site.
//!
//! Whoever has spent waits before it spends again: pieces leave at their moments, and nothing is saved up while the line rests.
//! What is not read from a stream is held back by QUIC's flow control, so that a window's worth of bytes (16 MiB) may come before
//! a limited download holds the server back.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Pieces a second into which an upload is cut.
const PIECES_A_SECOND: u64 = 20;

/// Bytes a second. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    rate: NonZeroU64,
    /// When what was spent so far is paid for.
    free: Arc<Mutex<Option<Instant>>>,
}

impl Pace {
    pub(super) fn new(rate: NonZeroU64) -> Self {
        Self { rate, free: Arc::default() }
    }

    /// How many bytes to send at a time.
    pub(super) fn piece(&self) -> usize {
        usize::try_from(self.rate.get() / PIECES_A_SECOND).unwrap_or(usize::MAX).max(1)
    }

    /// Returns when so many bytes may have passed.
    pub(super) async fn spend(&self, bytes: usize) {
        let takes = Duration::from_secs_f64(bytes as f64 / self.rate.get() as f64);
        let until = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let until = free.unwrap_or(now).max(now) + takes;
            *free.insert(until)
        };
        sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_take_their_time_whoever_spends_them() {
        let pace = Pace::new(NonZeroU64::new(1_000_000).unwrap());
        assert_eq!(pace.piece(), 50_000);
        let (began, other) = (Instant::now(), pace.clone());
        tokio::join!(pace.spend(100_000), other.spend(100_000));
        assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
        assert_eq!(Pace::new(NonZeroU64::MIN).piece(), 1);
    }
}
