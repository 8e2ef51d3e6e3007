//! What a segment says of those before it, so that a start reads the newest one alone: how far each run was released, by which plan, and
//! which sites are revoked.
//!
//! It grows with runs and sites, and not with rounds.

use std::collections::BTreeMap;

use privacy::chain::Link;
use protocol::{ClientId, RunId};

use super::Event;
use super::witness::Claim;

/// What a log has said up to now.
#[derive(Debug, Default)]
pub(super) struct Carried {
    runs: BTreeMap<RunId, Run>,
    /// Up to when certificates are void.
    revoked: BTreeMap<ClientId, u64>,
}

#[derive(Debug, Default)]
struct Run {
    plan_sha256: Option<String>,
    round: u32,
    model_sha256: Option<String>,
}

impl Carried {
    /// Takes a record in. One that is not understood was refused when the log was compared.
    pub(super) fn learn(&mut self, link: &Link) {
        match Claim::of(link) {
            Ok(Some(Claim::Released { run, round, model_sha256, .. })) => {
                self.release(run, round, model_sha256);
            }
            Ok(Some(Claim::Round { run, round })) => self.release(run, round, None),
            Ok(Some(Claim::Submitted { run, plan_sha256 })) => {
                self.runs.entry(run).or_default().plan_sha256 = Some(plan_sha256);
            }
            Ok(Some(Claim::Carried { run, plan_sha256, round, model_sha256 })) => {
                self.release(run, round, model_sha256);
                let run = self.runs.entry(run).or_default();
                run.plan_sha256 = plan_sha256.or_else(|| run.plan_sha256.take());
            }
            Ok(Some(Claim::Revoked { client, before })) => {
                let known = self.revoked.entry(client).or_default();
                *known = (*known).max(before);
            }
            Ok(None) | Err(_) => {}
        }
    }

    fn release(&mut self, run: RunId, round: u32, model_sha256: Option<String>) {
        let run = self.runs.entry(run).or_default();
        if round > run.round {
            (run.round, run.model_sha256) = (round, model_sha256);
        } else if round == run.round {
            run.model_sha256 = model_sha256.or_else(|| run.model_sha256.take());
        }
    }

    /// The records that say so, each with its run.
    pub(super) fn events(&self) -> impl Iterator<Item = (Option<RunId>, Event<'_>)> {
        let runs = self.runs.iter().map(|(id, run)| {
            let (plan_sha256, model_sha256) = (run.plan_sha256.as_deref(), run.model_sha256.as_deref());
            (Some(*id), Event::RunCarried { plan_sha256, round: run.round, model_sha256 })
        });
        let revoked = self.revoked.iter().map(|(client, before)| {
            (None, Event::RevocationCarried { client: client.as_str(), before: *before })
        });
        runs.chain(revoked)
    }
}
