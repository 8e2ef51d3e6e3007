//! A site's own pause: while it holds, a running task is stopped and every task is declined, whatever a server asks.
//!
//! Where the wish to pause is kept, and for how long, is the shell's matter: a pause asks what it was given, before each task
//! and whenever it is told to look.

use std::sync::{Arc, Mutex, PoisonError};

use protocol::{Decline, Stop};

use crate::TaskError;

/// Whether the site has paused, shared by the participant and whoever looks. Clones are the same pause.
#[derive(Clone)]
pub struct Pause {
    wished: Arc<dyn Fn() -> bool + Send + Sync>,
    /// The task that runs.
    running: Arc<Mutex<Option<Stop>>>,
}

impl Pause {
    /// A pause that holds as long as `wished` says so.
    pub fn new(wished: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { wished: Arc::new(wished), running: Arc::default() }
    }

    /// Whether the site has paused. If it has, the running task is stopped.
    pub fn look(&self) -> bool {
        let holds = (self.wished)();
        if holds && let Some(stop) = &*self.running() {
            stop.stop();
        }
        holds
    }

    /// Lets a task begin, unless the site has paused.
    pub(crate) fn admit(&self, stop: &Stop) -> Result<(), TaskError> {
        *self.running() = Some(stop.clone());
        if self.look() { Err(paused()) } else { Ok(()) }
    }

    /// Ends what [`Pause::admit`] began: a task that was stopped by the pause says so.
    pub(crate) fn conclude<T>(&self, outcome: Result<T, TaskError>) -> Result<T, TaskError> {
        *self.running() = None;
        match outcome {
            Err(error) if error.reason == Decline::Stopped && (self.wished)() => Err(paused()),
            other => other,
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<Stop>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn paused() -> TaskError {
    let message = "the site has paused; `consortia site resume` lets it take part again";
    TaskError::private(Decline::Paused, message.to_owned())
}

impl std::fmt::Debug for Pause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pause({})", (self.wished)())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use protocol::ClientId;

    use super::*;
    use crate::Participant;
    use crate::participant::tests::{Mood, Toy, entropy, participant, train};

    /// A switch, and a pause that follows it.
    fn switch() -> (Arc<AtomicBool>, Pause) {
        let switch = Arc::new(AtomicBool::new(false));
        let wished = Arc::clone(&switch);
        (switch, Pause::new(move || wished.load(Ordering::Relaxed)))
    }

    #[test]
    fn a_paused_site_declines_and_takes_part_again_when_the_pause_is_over() {
        let (switch, pause) = switch();
        let mut site = participant(&[], Mood::Well).with_pause(pause);
        assert!(site.attempt(&train(1, 3), entropy(), &Stop::default()).is_ok());
        switch.store(true, Ordering::Relaxed);
        let error = site.attempt(&train(2, 3), entropy(), &Stop::default()).unwrap_err();
        assert_eq!((error.reason, error.detail.as_str()), (Decline::Paused, "the site has paused"));
        switch.store(false, Ordering::Relaxed);
        assert!(site.attempt(&train(3, 3), entropy(), &Stop::default()).is_ok());
    }

    #[test]
    fn a_pause_stops_the_task_that_runs_and_that_task_says_why() {
        let (switch, pause) = switch();
        let (started, begins) = std::sync::mpsc::channel();
        let toy = Toy { trained: started, ..Toy::new(&[], Mood::Endless) };
        let mut site =
            Participant::new(ClientId::new("north").unwrap(), Box::new(toy)).with_pause(pause.clone());
        let outcome = std::thread::scope(|scope| {
            let work = scope.spawn(|| site.attempt(&train(1, 3), entropy(), &Stop::default()));
            begins.recv().unwrap();
            assert!(!pause.look(), "nobody has paused yet");
            switch.store(true, Ordering::Relaxed);
            assert!(pause.look());
            work.join().unwrap()
        });
        assert_eq!(outcome.unwrap_err().reason, Decline::Paused);
    }

    #[test]
    fn a_task_that_the_server_gave_up_is_stopped_and_not_paused() {
        let (_, pause) = switch();
        let stop = Stop::default();
        stop.stop();
        let mut site = participant(&[], Mood::Well).with_pause(pause);
        let error = site.attempt(&train(1, 3), entropy(), &stop).unwrap_err();
        assert_eq!(error.reason, Decline::Stopped);
    }
}
