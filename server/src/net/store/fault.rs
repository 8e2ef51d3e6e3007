//! Faults of the storage that are being waited out, for whoever has to wait or to tell.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// What of the storage may be at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultOf {
    /// The database or the disk, which every run needs.
    Database,
    /// Where models are kept.
    Models,
}

/// The faults of the storage that are being waited out, by whoever waits.
#[derive(Clone, Debug, Default)]
pub(crate) struct StorageFault(Arc<watch::Sender<BTreeMap<u64, (FaultOf, String)>>>);

/// One who waits for the storage. Dropping it ends its wait.
pub(crate) struct Waiter {
    faults: StorageFault,
    number: u64,
}

impl StorageFault {
    /// One who may have to wait.
    pub(crate) fn waiter(&self) -> Waiter {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Waiter { faults: self.clone(), number: NUMBER.fetch_add(1, Ordering::Relaxed) }
    }

    /// A fault that somebody waits out, if there is one.
    pub(crate) fn told(&self) -> Option<String> {
        self.0.borrow().values().next().map(|(_, said)| said.clone())
    }

    /// Returns once nobody waits for `of`.
    pub(crate) async fn is_over(&self, of: &[FaultOf]) {
        let mut faults = self.0.subscribe();
        // The sender is this one's own.
        let _ = faults.wait_for(|faults| !faults.values().any(|(fault, _)| of.contains(fault))).await;
    }
}

impl Waiter {
    /// It waits for this to pass.
    pub(crate) fn waits(&self, of: FaultOf, fault: String) {
        self.faults.0.send_modify(|faults| drop(faults.insert(self.number, (of, fault))));
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.faults.0.send_if_modified(|faults| faults.remove(&self.number).is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_one_wait_hides_no_other_one() {
        let fault = StorageFault::default();
        let (first, second) = (fault.waiter(), fault.waiter());
        first.waits(FaultOf::Database, "locked".to_owned());
        second.waits(FaultOf::Models, "no answer".to_owned());
        drop(first);
        assert_eq!(fault.told().as_deref(), Some("no answer"));
        fault.is_over(&[FaultOf::Database]).await;
        let both = fault.is_over(&[FaultOf::Database, FaultOf::Models]);
        assert!(tokio::time::timeout(std::time::Duration::ZERO, both).await.is_err());
        drop(second);
        assert_eq!(fault.told(), None);
        fault.is_over(&[FaultOf::Database, FaultOf::Models]).await;
    }
}
