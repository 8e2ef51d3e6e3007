//! What a simulation tells of its corrupted clients: who they were, what they did, and whether a backdoor opens.

use std::fmt;
use std::sync::Arc;

use protocol::Spec;
use serde_json::{Value, json};
use simulations::{Attack, Outcome, Population, SimulationConfig};

use super::super::output::share;

/// Names in a sentence.
const NAMES_MAX: usize = 8;

/// What the corrupted clients of a simulation do, if it has some.
pub(super) fn of(simulation: &SimulationConfig) -> Option<Attack> {
    simulation.adversaries.as_ref().map(|typed| typed.attack.clone())
}

/// See the module.
pub(super) struct Attacked {
    attack: &'static str,
    clients: Vec<String>,
    /// The share of test records with the pattern that the last model takes for the target of a backdoor.
    success: Option<f64>,
}

impl Attacked {
    /// Of a simulation that is over.
    pub(super) fn of(attack: &Attack, population: &Population, outcome: &Outcome, spec: &Arc<Spec>) -> Self {
        let standardiser = outcome.standardiser.as_ref();
        let success = population.attack_success(attack, &outcome.model, standardiser, spec);
        let clients = outcome.corrupted.iter().map(ToString::to_string).collect();
        Self { attack: attack.name(), clients, success }
    }

    fn names(&self) -> String {
        let shown = self.clients.iter().take(NAMES_MAX).cloned().collect::<Vec<_>>().join(", ");
        match self.clients.len().saturating_sub(NAMES_MAX) {
            0 => shown,
            more => format!("{shown} and {more} more"),
        }
    }

    /// For the end of the run and its report.
    pub(super) fn sentence(&self, clients: usize) -> String {
        let count = self.clients.len();
        let opens = self.success.map_or_else(String::new, |success| {
            format!(
                "; {} of the test records with the pattern are taken for its target",
                share(Some(success))
            )
        });
        match count {
            0 => format!("no client is corrupted: simulation.adversaries asks for {} of none", self.attack),
            _ => format!(
                "{count} of {clients} clients are corrupted ({}): {}{opens}",
                self.attack,
                self.names()
            ),
        }
    }

    /// For programs.
    pub(super) fn object(&self) -> Value {
        json!({ "attack": self.attack, "clients": self.clients, "success": self.success })
    }
}

/// For the table at the end.
impl fmt::Display for Attacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "corrupted      {} ({})", self.clients.len(), self.attack)?;
        self.success.map_or(Ok(()), |success| write!(f, "\nattack success {}", share(Some(success))))
    }
}
