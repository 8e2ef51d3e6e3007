//! The bytes of updates that are in memory at a time, from the first read until the engine has folded them: how many there may
//! be, and the memory itself, which one update hands on to the next.
//!
//! Fresh pages cost about as much as receiving the bytes that go into them, so memory that an update has left is kept until the
//! round is over.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// A permit's unit.
const KIB: u64 = 1024;

/// Bounds the bytes of updates in memory.
pub(crate) struct Uploads {
    kib: Arc<Semaphore>,
    total: u32,
    spare: Arc<Spare>,
    /// How many wait for room.
    waiting: watch::Sender<usize>,
}

/// One that waits for room, until this is dropped.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|waiting| *waiting += 1);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

/// The room of one update. It is given back when this is dropped.
pub(crate) struct Room {
    spare: Arc<Spare>,
    _permit: OwnedSemaphorePermit,
}

/// Memory of updates that have been folded.
#[derive(Default)]
pub(crate) struct Spare(Mutex<Vec<Vec<i32>>>);

impl Uploads {
    pub(crate) fn new(bytes_max: u64, spare: Arc<Spare>) -> Self {
        let most = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX);
        let total = u32::try_from(bytes_max.div_ceil(KIB)).unwrap_or(u32::MAX).clamp(1, most);
        let waiting = watch::Sender::new(0);
        Self { kib: Arc::new(Semaphore::new(total as usize)), total, spare, waiting }
    }

    /// Waits until somebody waits for room.
    pub(crate) async fn wanted(&self) {
        let mut waiting = self.waiting.subscribe();
        // The sender is here as long as this is.
        let _ = waiting.wait_for(|waiting| *waiting > 0).await;
    }

    /// Waits for room for this many bytes. What is larger than all the room waits for all of it.
    pub(crate) async fn room_for(&self, bytes: u64) -> Room {
        let kib = u32::try_from(bytes.div_ceil(KIB)).unwrap_or(u32::MAX).min(self.total);
        let permit = match Arc::clone(&self.kib).try_acquire_many_owned(kib) {
            Ok(permit) => permit,
            Err(_) => {
                let _waiting = Waiting::begin(&self.waiting);
                let permit = Arc::clone(&self.kib).acquire_many_owned(kib).await;
                permit.expect("this semaphore is never closed")
            }
        };
        Room { spare: Arc::clone(&self.spare), _permit: permit }
    }
}

impl Room {
    /// Memory for `len` points; what it holds does not matter. Fresh memory is touched by nobody before bytes come in.
    pub(crate) fn points(&self, len: usize) -> Vec<i32> {
        let mut spare = self.spare.0.lock().unwrap_or_else(PoisonError::into_inner);
        match spare.pop() {
            Some(points) if points.len() == len => points,
            other => {
                // Of another run: nothing of it will fit again.
                drop(other);
                spare.clear();
                vec![0; len]
            }
        }
    }

    /// Ends the update's time in memory and keeps its memory for the next one.
    pub(crate) fn leave(self, points: Option<Vec<i32>>) {
        if let Some(points) = points {
            self.spare.0.lock().unwrap_or_else(PoisonError::into_inner).push(points);
        }
    }
}

impl Spare {
    /// Gives the memory back to the system.
    pub(crate) fn clear(&self) {
        let spare = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        drop(spare);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn an_update_larger_than_all_the_room_takes_all_of_it() {
        let uploads = Uploads::new(10 * KIB, Arc::default());
        let small = uploads.room_for(1).await;
        assert!(timeout(Duration::ZERO, uploads.room_for(1 << 40)).await.is_err());
        drop(small);
        let large = uploads.room_for(1 << 40).await;
        assert!(timeout(Duration::ZERO, uploads.room_for(1)).await.is_err());
        drop(large);
        assert!(timeout(Duration::ZERO, uploads.room_for(10 * KIB)).await.is_ok());
    }

    #[tokio::test]
    async fn it_is_known_whether_somebody_waits_for_room() {
        let uploads = Uploads::new(KIB, Arc::default());
        let first = uploads.room_for(1).await;
        assert!(timeout(Duration::ZERO, uploads.wanted()).await.is_err());
        let second = async { drop(uploads.room_for(1).await) };
        let hurried = async {
            uploads.wanted().await;
            drop(first);
        };
        tokio::join!(second, hurried);
        assert!(timeout(Duration::ZERO, uploads.wanted()).await.is_err(), "nobody waits any more");
        let held = uploads.room_for(1).await;
        assert!(timeout(Duration::from_millis(5), uploads.room_for(1)).await.is_err());
        assert!(timeout(Duration::ZERO, uploads.wanted()).await.is_err(), "whoever gave up waits no more");
        drop(held);
    }

    #[tokio::test]
    async fn an_update_is_received_into_the_memory_of_the_one_before_until_the_round_is_over() {
        let spare = Arc::new(Spare::default());
        let uploads = Uploads::new(10 * KIB, Arc::clone(&spare));
        let room = uploads.room_for(400).await;
        let first = room.points(100);
        let place = first.as_ptr();
        room.leave(Some(first));
        let room = uploads.room_for(400).await;
        let second = room.points(100);
        assert_eq!(second.as_ptr(), place);
        room.leave(Some(second));
        let room = uploads.room_for(400).await;
        assert_eq!(room.points(50).len(), 50);
        assert!(spare.0.lock().unwrap().is_empty(), "memory of another length is not kept");
        room.leave(Some(vec![0; 50]));
        spare.clear();
        assert!(spare.0.lock().unwrap().is_empty());
    }
}
