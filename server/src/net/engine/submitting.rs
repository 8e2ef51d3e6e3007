//! Taking new runs into the queue.

use protocol::RunId;
use tokio::sync::oneshot;

use super::entropy;
use super::messages::{InitialModel, NewRun};
use super::request::Asked;
use super::shared::Shared;
use crate::Checkpoint;
use crate::net::store::audit;
use crate::net::store::fault::FaultOf;
use crate::net::store::{StoreError, Submission};
use crate::plan::calibrates;

/// A checked plan that is to become a run.
pub(super) struct Submitting {
    pub(super) new: Box<NewRun>,
    pub(super) by: String,
    pub(super) asked: Asked,
    pub(super) reply: oneshot::Sender<Result<RunId, String>>,
}

/// Takes a run into the queue, unless that was taken back meanwhile. Whether there is a new one.
pub(super) fn submit(shared: &Shared, submitting: Submitting) -> Result<bool, StoreError> {
    let Submitting { new, by, asked, reply } = submitting;
    // Until it begins it may be taken back.
    if !shared.storage.until_over(&[FaultOf::Database, FaultOf::Models]) || !asked.begin() {
        return Ok(false);
    }
    let run = RunId(u64::from_le_bytes(entropy()));
    // A fault that passes is told to whoever asked, instead of keeping others waiting.
    if let Err(refused) = store(shared, run, &new) {
        let _ = reply.send(Err(refused.to_string()));
        return Ok(false);
    }
    let plan_sha256 = privacy::chain::Digest::of(new.plan_toml.as_bytes()).to_string();
    let (now, name, is_seeded) = (shared.clock.now(), new.plan.name.clone(), new.seed.is_some());
    shared.journal.write_blocking(move |log| {
        let (name, plan_sha256, by) = (name.as_str(), plan_sha256.clone(), by.as_str());
        log.write(now, Some(run), &audit::Event::Submitted { name, plan_sha256, is_seeded, by })
    })?;
    tracing::info!("run {run} ({}) is in the queue", new.plan.name);
    // Whoever asked may be gone since it was begun; the run is stored all the same.
    let _ = reply.send(Ok(run));
    Ok(true)
}

fn store(shared: &Shared, run: RunId, new: &NewRun) -> Result<(), StoreError> {
    let NewRun { plan, plan_toml, seed, initial: InitialModel { layout, shared: model } } = new;
    let found = plan.spec.privacy.central.as_ref().filter(|_| calibrates(plan_toml));
    let submission = Submission {
        run,
        name: &plan.name,
        rounds: plan.rounds,
        plan_toml,
        seed: *seed,
        calibrated: found.map(|central| central.noise_multiplier),
        layout,
        checkpoint: &Checkpoint::begin(model.clone()),
    };
    shared.storage.once(shared.store.submit(&submission))
}
