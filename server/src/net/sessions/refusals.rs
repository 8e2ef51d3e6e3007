//! Refused enrolments: all are counted, a few are told. Whoever asks again and again must not fill a log or the audit log.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::net::transport::strangers::Lines;

/// Seconds between two records of refusals in the audit log, and of one invite that was used before.
const RECORD_EVERY: u64 = 600;
/// Used invites that are told apart.
const INVITES_MAX: usize = 4096;

/// See the module.
#[derive(Default)]
pub(super) struct Rejections {
    lines: Lines,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    /// Rejections that no record counts yet, and when the last record was made.
    count: u64,
    recorded: Option<u64>,
    /// When each used invite was last written down.
    invites: BTreeMap<String, u64>,
}

impl Rejections {
    /// Whether to write a line to the log; then what is to be added about those that were not written.
    pub(super) fn line(&self) -> Option<String> {
        self.lines.next(Instant::now())
    }

    /// Counts one more at `now`, in seconds; the number of those to be recorded, if it is time.
    pub(super) fn count(&self, now: u64) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.count += 1;
        if told.recorded.is_some_and(|last| now < last.saturating_add(RECORD_EVERY)) {
            return None;
        }
        told.recorded = Some(now);
        Some(std::mem::take(&mut told.count))
    }

    /// Whether this used invite was not written down lately.
    pub(super) fn is_news(&self, token_sha256: &str, now: u64) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.invites.retain(|_, last| now < last.saturating_add(RECORD_EVERY));
        if told.invites.len() >= INVITES_MAX || told.invites.contains_key(token_sha256) {
            return false;
        }
        told.invites.insert(token_sha256.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_without_end_make_a_record_every_ten_minutes_that_counts_them() {
        let refusals = Rejections::default();
        assert_eq!(refusals.count(1000), Some(1));
        assert!((1000..1599).all(|now| refusals.count(now).is_none()));
        assert_eq!(refusals.count(1600), Some(600));
        assert!(refusals.is_news("a", 1000) && !refusals.is_news("a", 1500) && refusals.is_news("b", 1500));
        assert!(refusals.is_news("a", 1600));
        let told = (0..10_000).filter(|number| refusals.is_news(&number.to_string(), 1700)).count();
        assert!(told <= INVITES_MAX);
    }
}
