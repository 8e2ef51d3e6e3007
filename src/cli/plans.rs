//! Plans as the command reads them: they may name every method that it knows.

use std::path::Path;
use std::sync::Once;

use methods::Registry;
use server::{ConfigError, Plan};
use simulations::{Scenario, ScenarioError};

/// Reads the text of a `federation.toml`.
pub(super) fn plan_of(text: &str) -> Result<Plan, ConfigError> {
    Registry::standard().server().parse(text)
}

/// Reads the text of a simulation file.
pub(super) fn scenario_of(
    text: &str,
    base: &Path,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Scenario, ScenarioError> {
    // A command reads its plan more than once.
    static TOLD: Once = Once::new();
    for (old, new) in Scenario::deprecated(text) {
        TOLD.call_once(|| {
            tracing::warn!(
                "[simulation.{old}] is called [simulation.{new}] now; the old name is read until version 0.2"
            );
        });
    }
    Scenario::parse_with(text, base, lookup, Registry::standard().server())
}
