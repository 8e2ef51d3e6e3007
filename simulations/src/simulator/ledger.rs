//! What a simulated plan would cost if it were deployed.

use privacy::chain::Link;
use privacy::ledger::{Cohorts, Conduct, Ledger, LedgerError, SiteMetrics};
use protocol::{CentralPrivacy, MetricsRule, RunId};

/// The book of a simulation that goes on, or a new one: it counts what the plan would cost if it were deployed, where its seed is nobody's.
/// The statement claims nothing.
pub(super) fn ledger_of(promised: &CentralPrivacy, links: &mut Vec<Link>) -> Result<Ledger, LedgerError> {
    if !links.is_empty() {
        return Ledger::replay(&*links);
    }
    let (mut ledger, first) = Ledger::found(promised.terms())?;
    links.push(first);
    links.extend(ledger.declare(&RunId(0).to_string(), conduct(promised)));
    Ok(ledger)
}

/// What a deployed run of such a plan would declare.
fn conduct(promised: &CentralPrivacy) -> Conduct {
    let cohorts = if promised.sampling.is_secret() { Cohorts::Secret } else { Cohorts::Known };
    let metrics = match promised.metrics {
        MetricsRule::Off => SiteMetrics::Hidden,
        MetricsRule::OutsideTheGuarantee => SiteMetrics::Told,
    };
    Conduct { cohorts, metrics }
}
