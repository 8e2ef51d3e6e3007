//! What a coordinator waits for, in a sentence for an operator.

use protocol::wire::Control;

use super::{Coordinator, Gate, Phase};

impl Coordinator {
    /// One sentence on what it waits for.
    pub fn status(&self) -> String {
        let waiting = |gate: &Gate| {
            let (kind, round) = (gate.task.kind.name(), gate.task.round);
            if self.hides_participation(Some(gate.task)) {
                return format!("round {round}, {kind}: waits for the clients that were drawn in secret");
            }
            format!("round {round}, {kind}: {} of {} clients have answered", gate.answered(), gate.asked())
        };
        match &self.phase {
            Phase::Gathering | Phase::Resting { .. } if self.control == Control::Pause => {
                "paused by the operator".to_owned()
            }
            Phase::Gathering => match self.missing_from_population() {
                Some((enrolled, population)) if self.connected >= self.plan.cohort.clients_min => {
                    format!("{enrolled} of the {population} clients of the plan's population are enrolled")
                }
                _ => format!("{} of {} clients are connected", self.connected, self.plan.cohort.clients_min),
            },
            Phase::Resting { .. } => "too few clients answered; trying again soon".to_owned(),
            Phase::Collecting { gate, .. } | Phase::Evaluating { gate, .. } => waiting(gate),
            Phase::Booking { round } => format!("reserving the privacy budget of round {round}"),
            Phase::Committing { summary, .. } => format!("storing round {}", summary.round),
            Phase::Ended => "ended".to_owned(),
        }
    }
}
