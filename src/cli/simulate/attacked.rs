//! What a simulation tells of its corrupted clients: who they were, what they did, and whether a backdoor opens.

use std::fmt;
use std::sync::Arc;

use privacy::{counted, verb};
use protocol::Spec;
use serde_json::{Value, json};
use simulations::{Attack, BackdoorRates, Outcome, Population, SimulationConfig};

use super::super::output::{share, some_names};

/// Above this rate without the pattern a model takes most records for the target: what it does with the pattern shows no backdoor.
const COLLAPSED: f64 = 0.5;

/// What the corrupted clients of a simulation do, if it has some.
pub(super) fn of(simulation: &SimulationConfig) -> Option<Attack> {
    simulation.adversaries.as_ref().map(|typed| typed.attack.clone())
}

/// See the module.
pub(super) struct Attacked {
    attack: &'static str,
    clients: Vec<String>,
    /// How often the last model takes test records for the target of a backdoor.
    rates: Option<BackdoorRates>,
    /// Why the success of a backdoor could not be measured.
    unmeasured: Option<&'static str>,
}

impl Attacked {
    /// Of a simulation that is over.
    pub(super) fn of(
        attack: &Attack,
        population: Option<&Population>,
        outcome: &Outcome,
        spec: &Arc<Spec>,
    ) -> Self {
        let standardiser = outcome.standardiser.as_ref();
        let rates = population
            .and_then(|population| population.backdoor_rates(attack, &outcome.model, standardiser, spec));
        let clients = outcome.corrupted.iter().map(ToString::to_string).collect();
        let why = match population.is_some_and(Population::is_tested) {
            false => "there are no test records",
            true if spec.personal_layers.is_empty() => "no test record is of another class than the target",
            true => "parts of the model stay at the sites",
        };
        let is_backdoor = matches!(attack, Attack::Backdoor { .. });
        let unmeasured = (is_backdoor && rates.is_none()).then_some(why);
        Self { attack: attack.name(), clients, rates, unmeasured }
    }

    /// For the end of the run and its report.
    pub(super) fn sentence(&self, clients: usize) -> String {
        let count = self.clients.len();
        let opens = self.rates.map_or_else(String::new, |BackdoorRates { with_pattern, without_pattern }| {
            let collapsed = match without_pattern > COLLAPSED {
                true => ": the model predicts that class for most records, which shows no backdoor",
                false => "",
            };
            format!(
                "; of the test records of other classes, {} with the pattern and {} without it are taken for its target{collapsed}",
                share(Some(with_pattern)),
                share(Some(without_pattern))
            )
        });
        let opens = match self.unmeasured {
            Some(why) => format!("; whether the backdoor opens is not measured: {why}"),
            None => opens,
        };
        match count {
            0 => format!("no client is corrupted: simulation.adversaries asks for {} of none", self.attack),
            _ => format!(
                "{count} of {} {} corrupted ({}): {}{opens}",
                counted(clients, "client"),
                verb(count, "is", "are"),
                self.attack,
                some_names(&self.clients)
            ),
        }
    }

    /// For programs.
    pub(super) fn object(&self) -> Value {
        let (success, without) = self.rates.map(|rates| (rates.with_pattern, rates.without_pattern)).unzip();
        json!({
            "attack": self.attack, "clients": self.clients, "success": success, "success_without_pattern": without,
            "success_unmeasured": self.unmeasured,
        })
    }
}

/// For the table at the end.
impl fmt::Display for Attacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "corrupted      {} ({})", self.clients.len(), self.attack)?;
        if let Some(why) = self.unmeasured {
            write!(f, "\nattack success - ({why})")?;
        }
        let Some(BackdoorRates { with_pattern, without_pattern }) = self.rates else { return Ok(()) };
        let (with, without) = (share(Some(with_pattern)), share(Some(without_pattern)));
        write!(f, "\nattack success {with} of the records with the pattern, {without} of them without it")
    }
}
