//! Three clocks: the one on the wall, the time the kernel gave to this thread, and what it gave to the process.
//!
//! The second is read from `/proc/thread-self/schedstat`, in nanoseconds; threads that this one starts are not in it. The
//! third is read from `/proc/self/stat`, in hundredths of a second, and has all threads in it, those that have ended too.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

/// What a piece of work took.
pub struct Spent {
    pub wall: Duration,
    pub thread: Duration,
    pub process: Duration,
}

/// A measurement that runs.
pub struct Watch {
    wall: Instant,
    thread: Duration,
    process: Duration,
}

impl Watch {
    /// Starts one.
    ///
    /// # Errors
    /// Where the kernel does not say what it gave to a thread.
    pub fn start() -> Result<Self, Box<dyn Error>> {
        Ok(Self { thread: of_thread()?, process: of_process()?, wall: Instant::now() })
    }

    /// What was spent since the start.
    ///
    /// # Errors
    /// As [`Watch::start`].
    pub fn stop(self) -> Result<Spent, Box<dyn Error>> {
        let wall = self.wall.elapsed();
        let thread = of_thread()?.saturating_sub(self.thread);
        Ok(Spent { wall, thread, process: of_process()?.saturating_sub(self.process) })
    }
}

fn of_thread() -> Result<Duration, Box<dyn Error>> {
    let path = "/proc/thread-self/schedstat";
    let text = fs::read_to_string(path)?;
    let first = text.split_ascii_whitespace().next().ok_or_else(|| format!("{path} is empty"))?;
    Ok(Duration::from_nanos(first.parse()?))
}

fn of_process() -> Result<Duration, Box<dyn Error>> {
    let path = "/proc/self/stat";
    let text = fs::read_to_string(path)?;
    // The name in parentheses may hold spaces; user and system time are the 12th and 13th field after it.
    let fields = text.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
    let ticks: Vec<u64> = fields.skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    match ticks[..] {
        [user, system] => Ok(Duration::from_millis(10 * (user + system))),
        _ => Err(format!("{path} is too short").into()),
    }
}
