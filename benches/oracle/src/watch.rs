//! Two clocks: the one on the wall, and the time the kernel gave to this thread.
//!
//! The second is read from `/proc/thread-self/schedstat`, in nanoseconds; threads that this one starts are not in it.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

/// A measurement that runs.
pub struct Watch {
    wall: Instant,
    thread: Duration,
}

impl Watch {
    /// Starts one.
    ///
    /// # Errors
    /// Where the kernel does not say what it gave to a thread.
    pub fn start() -> Result<Self, Box<dyn Error>> {
        Ok(Self { thread: given()?, wall: Instant::now() })
    }

    /// Processor time of this thread and time by the clock since the start.
    ///
    /// # Errors
    /// As [`Watch::start`].
    pub fn stop(self) -> Result<[Duration; 2], Box<dyn Error>> {
        let wall = self.wall.elapsed();
        Ok([given()?.saturating_sub(self.thread), wall])
    }
}

fn given() -> Result<Duration, Box<dyn Error>> {
    let path = "/proc/thread-self/schedstat";
    let text = fs::read_to_string(path)?;
    let first = text.split_ascii_whitespace().next().ok_or_else(|| format!("{path} is empty"))?;
    Ok(Duration::from_nanos(first.parse()?))
}
