//! What a simulation shows of itself while it runs.

use client::TaskError;
use protocol::Time;
use server::{Commit, Note};

use super::Snapshot;

/// Something has happened.
#[derive(Clone, Debug)]
pub struct Observation<'a> {
    /// Virtual time since the start.
    pub now: Time,
    /// What happened.
    pub note: &'a Note,
    /// What went wrong at the client of a declined or accepted answer, in the learner's own words. Of a plan that promises privacy
    /// nobody outside the client may see it: it is outside of what the plan protects.
    pub error: Option<&'a TaskError>,
}

/// A round is over, or its evaluation.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    /// What a server would store.
    pub commit: &'a Commit,
    /// From where the simulation could go on; `None` between a round and its evaluation, and at the end.
    pub snapshot: Option<&'a dyn Fn() -> Option<Snapshot>>,
}

impl std::fmt::Debug for Stored<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stored({:?}, resumable: {})", self.commit.summary, self.snapshot.is_some())
    }
}

/// Whoever watches a simulation.
pub trait Watch {
    /// Something has happened.
    fn note(&mut self, seen: Observation<'_>);

    /// A round is over, or its evaluation.
    fn stored(&mut self, stored: Stored<'_>);
}

/// Watches notes only.
pub(super) struct Notes<'a>(pub(super) &'a mut dyn FnMut(Observation<'_>));

impl Watch for Notes<'_> {
    fn note(&mut self, seen: Observation<'_>) {
        (self.0)(seen);
    }

    fn stored(&mut self, _: Stored<'_>) {}
}
