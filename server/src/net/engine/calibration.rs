//! Plans that were accepted, with the noise that was found for them then. A plan of an earlier release has none beside it: it is found
//! once, on a thread of its own, while all other runs go on.

use protocol::{Positive, RunId};

use super::{Command, Engine};
use crate::Plan;
use crate::net::store::{StoreError, calibrated};
use crate::plan::calibrates;

impl Engine {
    /// The plan of a run that is to begin; `None` while its noise is being searched.
    pub(super) fn accepted(
        &mut self,
        run: RunId,
        plan_toml: String,
        calibrated: Option<&str>,
    ) -> Option<Result<Plan, String>> {
        let found = match calibrated.map(|column| calibrated::read(&plan_toml, column)).transpose() {
            Ok(found) => found,
            Err(reason) if calibrates(&plan_toml) => return Some(Err(reason)),
            // Its noise is what the plan says.
            Err(_) => None,
        };
        if let Some(plan) = Plan::parse_accepted(&plan_toml, &self.room.methods(), found) {
            return Some(plan.map_err(|error| error.to_string()));
        }
        self.search_noise(run, plan_toml)
    }

    /// Searches for the noise of one run at a time.
    fn search_noise(&mut self, run: RunId, plan_toml: String) -> Option<Result<Plan, String>> {
        if self.calibrating.is_some() {
            return None;
        }
        let commands = self.nerves.commands.clone();
        let methods = self.room.methods();
        let search = move || {
            let found = methods.parse(&plan_toml).map_err(|error| error.to_string()).and_then(|plan| {
                let central = plan.spec.privacy.central.as_ref();
                central
                    .map(|central| central.noise_multiplier)
                    .ok_or_else(|| "the plan has no noise".to_owned())
            });
            if let Some(commands) = commands.upgrade() {
                // The server may be gone.
                let _ = commands.blocking_send(Command::Calibrated { run, plan_toml, found });
            }
        };
        tracing::info!(
            "run {run} was submitted to an earlier release: the noise for its epsilon is searched once more, which may take minutes; other runs go on"
        );
        match std::thread::Builder::new().name("calibration".into()).spawn(search) {
            Ok(_) => {
                self.calibrating = Some(run);
                None
            }
            Err(error) => Some(Err(format!("no thread could be started to search for its noise: {error}"))),
        }
    }

    /// The search is over: what was found is kept, and the run can begin.
    pub(super) fn calibrated(
        &mut self,
        run: RunId,
        plan_toml: &str,
        found: Result<Positive, String>,
    ) -> Result<(), StoreError> {
        self.calibrating = None;
        self.look = true;
        // An operator may have ended it meanwhile.
        let queue = self.storage.wait_for(async || self.store.queue().await)?;
        if !queue.iter().any(|queued| queued.run == run) {
            return Ok(());
        }
        match found {
            Ok(noise) => {
                tracing::info!("the noise of run {run} is found: {} times the clipping norm", noise.value());
                self.storage.wait_for(async || self.store.calibrated(run, plan_toml, noise).await)
            }
            Err(reason) => self.give_up(run, reason),
        }
    }
}
