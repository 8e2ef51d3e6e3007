//! What a coordinator waits for, in a sentence for an operator.

use privacy::{counted, verb};
use protocol::ClientId;
use protocol::wire::Control;

use super::{CohortTracker, Coordinator, Phase};

/// Clients that are named when they are awaited.
const NAMES_MAX: usize = 5;

impl Coordinator {
    /// One sentence on what it waits for.
    pub fn status(&self) -> String {
        let waiting = |tracker: &CohortTracker| {
            let (kind, round) = (tracker.task.step_title(), tracker.task.round);
            if self.hides_participation(Some(tracker.task)) {
                return format!("round {round}, {kind}: waits for the clients that were drawn in secret");
            }
            let (answered, asked) = (tracker.answered(), tracker.asked());
            let told = format!(
                "round {round}, {kind}: {answered} of {} {} answered",
                counted(asked, "client"),
                verb(asked, "has", "have")
            );
            format!("{told}{}{}", awaited(tracker), self.setbacks_now(tracker.task))
        };
        match &self.phase {
            Phase::Gathering | Phase::Resting { .. } if self.control == Control::Pause => {
                "paused by the operator".to_owned()
            }
            Phase::Gathering => match self.missing_from_population() {
                Some((enrolled, population)) if self.connected >= self.plan.cohort.clients_min => {
                    format!(
                        "{enrolled} of the {} of the plan's population {} enrolled",
                        counted(population, "client"),
                        verb(population, "is", "are")
                    )
                }
                _ => {
                    let needed = self.plan.cohort.clients_min;
                    let (clients, are) = (counted(needed, "client"), verb(needed, "is", "are"));
                    format!("{} of {clients} {are} connected", self.connected)
                }
            },
            Phase::Resting { .. } => {
                let reasons =
                    self.setbacks.describe().map_or_else(String::new, |reasons| format!(": {reasons}"));
                let few = if self.setbacks.is_unable() { "can do the next step" } else { "answered" };
                format!("too few clients {few}; trying again soon{reasons}")
            }
            Phase::Open(open) => waiting(&open.tracker),
            Phase::Reserving(step) => format!("reserving the privacy budget of round {}", step.round),
            Phase::Committing { summary, .. } => format!("storing round {}", summary.round),
            Phase::Ended => "ended".to_owned(),
        }
    }
}

/// Whose answers are missing, where they are few enough to be named.
fn awaited(tracker: &CohortTracker) -> String {
    match tracker.waiting() {
        0 => String::new(),
        waiting if waiting <= NAMES_MAX => {
            let names: Vec<&str> = tracker.owing().map(ClientId::as_str).collect();
            format!("; waits for {}", names.join(", "))
        }
        waiting => format!("; waits for {waiting}"),
    }
}
