//! Audits: what an attacker who planted canaries finds out, as a lower bound on epsilon, beside what is claimed.
//!
//! [`GdpAudit`] attacks the releases alone: the very cohorts, clipping, sum, votes, permit and noise of a plan, with a canary as
//! strong as the guarantee allows for. It is the one that finds defects. [`Canaried`] puts canary clients into a whole simulated run,
//! for the one-run bound (Steinke, Nasr, Jagielski 2023) and the one-shot estimate (Andrew et al. 2023), which see the last
//! model only: monitors, not gates.
//!
//! An audit never shows that a promise holds: a bound below the claim refutes nothing. It can only be made here, in the
//! simulator: it needs to know what went in.

mod canaries;
mod gdp;
mod in_run;

use std::fmt;

use privacy::audit::AuditError as BoundError;
use serde::Serialize;

pub use canaries::{Canaries, CanaryError, Scores};
pub use gdp::GdpAudit;
pub use in_run::{Canaried, one_run, one_shot};

use crate::aggregator::AggregatorError;

/// Which audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditKind {
    /// White-box, of the aggregator.
    Gdp,
    /// Canary clients in one run, half of them by coins.
    OneRun,
    /// Canary clients in one run, all of them.
    OneShot,
}

/// What an audit found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AuditReport {
    /// Which audit.
    pub audit: AuditKind,
    /// Who the attacker is and what it sees.
    pub adversary: &'static str,
    /// Canaries in all.
    pub canaries: usize,
    /// How many of them went in.
    pub members: usize,
    /// What is claimed for one client of what was audited.
    pub epsilon_claimed: f64,
    /// What the attack shows it to be at least; for one-shot, an estimate and no bound.
    pub epsilon_found: f64,
    /// At this delta.
    pub delta: f64,
    /// The chance that the bound is wrong; none is stated for one-shot.
    pub significance: Option<f64>,
}

impl AuditReport {
    /// Whether the claim is refuted. An estimate refutes nothing.
    pub fn refutes(&self) -> bool {
        self.significance.is_some() && self.epsilon_found > self.epsilon_claimed
    }
}

impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { adversary, canaries, members, epsilon_claimed, epsilon_found, delta, .. } = self;
        let (found, verdict) = match (self.significance, self.refutes()) {
            (None, _) => ("estimated at", "an estimate refutes nothing".to_owned()),
            (Some(chance), true) => {
                ("at least", format!("THE CLAIM IS REFUTED, wrongly with chance {chance}"))
            }
            (Some(_), false) => ("at least", "the claim is not refuted".to_owned()),
        };
        write!(
            f,
            "epsilon {found} {epsilon_found:.3}, claimed {epsilon_claimed:.3}, at delta {delta}: {verdict}\n\
             {members} of {canaries} canaries went in; the attacker is {adversary}"
        )
    }
}

/// Why an audit could not be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The canaries.
    #[error(transparent)]
    Canaries(#[from] CanaryError),
    /// The releases.
    #[error(transparent)]
    Release(#[from] AggregatorError),
    /// The bound.
    #[error(transparent)]
    Bound(#[from] BoundError),
    /// The plan.
    #[error(transparent)]
    Plan(#[from] protocol::SpecError),
    /// A canary's name.
    #[error(transparent)]
    Name(#[from] protocol::IdError),
    /// The model does not have the audit's dimension.
    #[error("the model has {found} parameters and the canaries {expected}; make them for this model")]
    Dimension {
        /// Of the canaries.
        expected: usize,
        /// Of the model.
        found: usize,
    },
    /// A run that claims nothing.
    #[error(
        "the run claims no epsilon for its clients; there is nothing to audit, give it [privacy.central]"
    )]
    NoClaim,
}

#[cfg(test)]
mod tests;
