//! Plans that were accepted, with the noise that was found for them then. A plan of an earlier release has none beside it: it is found
//! once, on a thread of its own, while all other runs go on.

use protocol::RunId;
use tokio::sync::mpsc;

use super::Command;
use crate::net::store::calibrated;
use crate::plan::calibrates;
use crate::{Methods, Plan};

/// The plan of a run that is to begin; `None` while its noise is not found.
pub(super) fn accepted(
    plan_toml: &str,
    methods: &Methods,
    calibrated: Option<&str>,
) -> Option<Result<Plan, String>> {
    let found = match calibrated.map(|column| calibrated::read(plan_toml, column)).transpose() {
        Ok(found) => found,
        Err(reason) if calibrates(plan_toml) => return Some(Err(reason)),
        // Its noise is what the plan says.
        Err(_) => None,
    };
    Plan::parse_accepted(plan_toml, methods, found).map(|plan| plan.map_err(|error| error.to_string()))
}

/// Searches for the noise of a run's plan; what is found comes as [`Command::Calibrated`].
pub(super) fn search(
    run: RunId,
    plan_toml: String,
    methods: Methods,
    commands: mpsc::WeakSender<Command>,
) -> Result<(), String> {
    let search = move || {
        let found = methods.parse(&plan_toml).map_err(|error| error.to_string()).and_then(|plan| {
            let central = plan.spec.privacy.central.as_ref();
            central.map(|central| central.noise_multiplier).ok_or_else(|| "the plan has no noise".to_owned())
        });
        if let Some(commands) = commands.upgrade() {
            // The server may be gone.
            let _ = commands.blocking_send(Command::Calibrated { run, plan_toml, found });
        }
    };
    tracing::info!(
        "run {run} was submitted to an earlier release: the noise for its epsilon is searched once more, which may take minutes; other runs go on"
    );
    let begun = std::thread::Builder::new().name("calibration".into()).spawn(search);
    begun.map(drop).map_err(|error| format!("no thread could be started to search for its noise: {error}"))
}
