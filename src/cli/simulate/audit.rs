//! `consortia simulate --audit`: canaries in the simulated federation, and what they show it to give away.

use ::privacy::noise::NoiseSource;
use clap::ValueEnum;
use protocol::{Layout, Parameters, Seed, Spec};
use server::Plan;
use simulations::Workforce;
use simulations::audit::{AuditReport, Canaried, Canaries, GdpAudit, one_run, one_shot};

use crate::cli::failure::{Failure, Kind, OrFail};

/// Canaries in a run; with fewer, the one-shot estimate is mostly scatter.
const CANARIES: usize = 1000;
/// Their norm before clipping, over the clipping norm.
const EXCESS: f64 = 4.0;
/// The chance that a bound is wrong.
const SIGNIFICANCE: f64 = 0.05;

/// Which audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Audit {
    /// White-box, of the plan's own releases: its cohorts, clipping, votes, sums and noise. Finds defects.
    Gdp,
    /// Canary clients in the run, half of them by coins (Steinke, Nasr, Jagielski 2023).
    OneRun,
    /// Canary clients in the run, all of them (Andrew et al. 2023): an estimate.
    OneShot,
}

impl Audit {
    /// The canaries that take part in the run, where the audit has any there.
    pub(super) fn canaries(self, dimension: usize, seed: u64) -> Result<Option<Canaries>, Failure> {
        if self == Self::Gdp {
            return Ok(None);
        }
        let seed = Seed::from_number(seed);
        let canaries = Canaries::new(CANARIES, dimension, seed).or_fail(Kind::Configuration, "--audit")?;
        Ok(Some(if self == Self::OneShot { canaries.all_in() } else { canaries }))
    }

    /// The verdict. `ran` holds the canaries and the last model of a run with them, and the run's epsilon.
    pub(super) fn judge(
        self,
        plan: &Plan,
        layout: &Layout,
        first: &Parameters,
        seed: u64,
        ran: Option<(&Canaries, &Parameters, f64)>,
    ) -> Result<AuditReport, Failure> {
        let delta = plan.spec.privacy.central.as_ref().map_or(1e-5, |central| central.delta);
        let report = match (self, ran) {
            (Self::OneRun, Some((canaries, last, claimed))) => {
                one_run(canaries, first, last, claimed, delta, SIGNIFICANCE)
            }
            (Self::OneShot, Some((canaries, last, claimed))) => {
                one_shot(canaries, first, last, claimed, delta)
            }
            _ => GdpAudit::of(plan, layout.shared_lengths().len())
                .and_then(|audit| audit.run(Seed::from_number(seed), &mut NoiseSource::from_entropy)),
        };
        report.or_fail(Kind::Configuration, "--audit")
    }
}

/// Refuses a plan that the audit could not judge, before any round of it is run.
pub(super) fn refuse(audit: Audit, plan: &Plan, file: &str) -> Result<(), Failure> {
    let Some(method) = &plan.method else {
        // Made for nothing but its errors: what the audit judges is the plan's promise.
        return match audit {
            Audit::Gdp => {
                GdpAudit::of(plan, 1).map(drop).or_fail(Kind::Configuration, format!("{file}: --audit gdp"))
            }
            Audit::OneRun | Audit::OneShot => Ok(()),
        };
    };
    let message = format!(
        "{file}: --audit measures what updates of a training give away, and the method `{}` of this plan has none and promises nothing; leave \
         --audit out",
        method.name
    );
    Err(Failure::new(Kind::Configuration, message))
}

/// The workforce with the canaries behind it.
pub(super) fn with_canaries<'a>(
    inner: &'a dyn Workforce,
    canaries: &'a Canaries,
    spec: &Spec,
    layout: &Layout,
) -> Result<Canaried<'a>, Failure> {
    let norm = EXCESS * spec.update.norm_max.value();
    Canaried::new(inner, canaries, norm, layout.clone()).or_fail(Kind::Configuration, "--audit")
}
