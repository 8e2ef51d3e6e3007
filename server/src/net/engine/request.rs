//! A request to the engine, which may be taken back until the engine begins with it.
//!
//! The engine may be waiting for the storage for as long as a lock or a full disk lasts. Whoever asked is told so instead of waiting as
//! long, and what they have given up does not happen later behind their backs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

const WAITING: u8 = 0;
const BEGUN: u8 = 1;
const WITHDRAWN: u8 = 2;

/// The side of whoever asked. Dropping it takes the request back.
#[derive(Debug)]
pub(crate) struct Asking(Arc<AtomicU8>);

/// The side of whoever does it.
#[derive(Debug)]
pub(crate) struct Asked(Arc<AtomicU8>);

/// Both sides of a request.
pub(crate) fn request() -> (Asking, Asked) {
    let state = Arc::new(AtomicU8::new(WAITING));
    (Asking(Arc::clone(&state)), Asked(state))
}

impl Asking {
    /// Takes the request back. Whether that was in time: then nothing of it is done, or ever will be.
    pub(crate) fn withdraw(&self) -> bool {
        let was = self.0.compare_exchange(WAITING, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire);
        matches!(was, Ok(_) | Err(WITHDRAWN))
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.withdraw();
    }
}

impl Asked {
    /// Whether it is to be done: from now on it is not taken back any more.
    pub(crate) fn begin(&self) -> bool {
        self.0.compare_exchange(WAITING, BEGUN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_back_is_not_begun_and_what_was_begun_is_not_taken_back() {
        let (asking, asked) = request();
        assert!(asking.withdraw() && asking.withdraw());
        assert!(!asked.begin());
        let (asking, asked) = request();
        assert!(asked.begin() && !asked.begin());
        assert!(!asking.withdraw());
        let (asking, asked) = request();
        drop(asking);
        assert!(!asked.begin(), "whoever asked is gone");
    }
}
