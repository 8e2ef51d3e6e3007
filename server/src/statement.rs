//! What may be said about the privacy of a model, and nothing more: made from the plan and the ledger for every release.
//!
//! A statement holds the events from which its epsilon was computed, so that anybody can compute it again
//! ([`PrivacyStatement::recompute`]). A run without privacy says so. A rehearsal, whose seed is known, and a run whose
//! noise could be predicted, claim nothing.

use privacy::accounting::{self, AccountingError, Epsilon, Event, Relation};
use privacy::chain::Digest;
use privacy::ledger::{Epsilons, Ledger, Unit};
use protocol::{CentralPrivacy, Clipping, NoiseCorrelation, PrivacySpec, Sampling};
use serde::{Deserialize, Serialize};

/// The version of the statement's form.
pub const STATEMENT_VERSION: u32 = 1;
/// How closely a statement's epsilon must be met when it is computed again.
const AGREEMENT: f64 = 1e-9;

/// `privacy_statement.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrivacyStatement {
    /// The version of this form.
    pub version: u32,
    /// The model's fingerprint.
    pub model_sha256: String,
    /// The run that made it.
    pub run: String,
    /// Its round.
    pub round: u32,
    /// The program that wrote this.
    pub software: String,
    /// Why nothing is claimed, where something was planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub void: Option<String>,
    /// What is claimed; each claim holds by itself.
    pub claims: Vec<Claim>,
    /// What is outside every claim.
    pub outside: Vec<String>,
}

/// One guarantee.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Whose data it is about.
    pub unit: Unit,
    /// The people behind the data.
    pub population: String,
    /// Which two data sets are hard to tell apart.
    pub relation: Relation,
    /// The delta.
    pub delta: f64,
    /// Epsilon at `delta` of everything released from the population so far, by accountant.
    pub epsilon: Epsilons,
    /// The budget.
    pub epsilon_max: f64,
    /// What was released, as an accountant understands it.
    pub events: Vec<Event>,
    /// Releases that were made.
    pub releases: u64,
    /// Against whom it holds.
    pub against: String,
    /// What must be true for it to hold.
    pub assumes: Vec<String>,
    /// The mechanism in words.
    pub mechanism: String,
    /// The hash of the ledger's last record.
    pub ledger_head: Digest,
}

/// Why a statement does not stand.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StatementError {
    /// Epsilon is another one.
    #[error("claim {claim} says epsilon {claimed} ({accountant}), and its events give {found}")]
    Epsilon {
        /// Which claim, from 1.
        claim: usize,
        /// By which accountant.
        accountant: &'static str,
        /// What it says.
        claimed: f64,
        /// What its events give.
        found: f64,
    },
    /// No accountant has a bound.
    #[error(transparent)]
    Accounting(#[from] AccountingError),
}

/// What a statement is about.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The model's fingerprint.
    pub model_sha256: String,
    /// The run that made it.
    pub run: String,
    /// Its round.
    pub round: u32,
    /// Whether the run's seed is known.
    pub rehearsal: bool,
}

impl PrivacyStatement {
    /// The statement of `subject`, from what its plan promises and its population's ledger, if it has one.
    ///
    /// # Errors
    /// [`AccountingError`] when no accountant has a bound; nothing may be released then.
    pub fn of(
        subject: Subject,
        privacy: &PrivacySpec,
        ledger: Option<&Ledger>,
    ) -> Result<Self, AccountingError> {
        let mut claims = Vec::new();
        let mut void = None;
        if let (Some(central), Some(ledger)) = (&privacy.central, ledger) {
            if subject.rehearsal {
                void = Some("a rehearsal: its seed is known, and with it who took part".to_owned());
            } else if !ledger.is_secure() {
                void =
                    Some("INSECURE: the noise came from a test's seed and can be taken off again".to_owned());
            } else {
                claims.push(Claim::central(central, ledger)?);
            }
        }
        let Subject { model_sha256, run, round, .. } = subject;
        let software = concat!("consortia ", env!("CARGO_PKG_VERSION")).to_owned();
        let outside = outside(privacy);
        Ok(Self { version: STATEMENT_VERSION, model_sha256, run, round, software, void, claims, outside })
    }

    /// Computes every epsilon again from the events.
    ///
    /// # Errors
    /// [`StatementError::Epsilon`] when one differs by more than 1e-9.
    pub fn recompute(&self) -> Result<(), StatementError> {
        for (claim, number) in self.claims.iter().zip(1..) {
            let Epsilon { rdp, pld } = accounting::epsilon(&claim.events, claim.relation, claim.delta)?;
            for (accountant, claimed, found) in
                [("rdp", claim.epsilon.rdp, rdp), ("pld", claim.epsilon.pld, pld)]
            {
                let (claimed, found) = (claimed.unwrap_or(f64::INFINITY), found.unwrap_or(f64::INFINITY));
                if claimed != found && (claimed - found).abs().total_cmp(&AGREEMENT).is_gt() {
                    return Err(StatementError::Epsilon { claim: number, accountant, claimed, found });
                }
            }
        }
        Ok(())
    }

    /// As it is written to a file.
    ///
    /// # Panics
    /// Never: every field has a JSON form.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("every field has a JSON form")
    }
}

impl Claim {
    fn central(central: &CentralPrivacy, ledger: &Ledger) -> Result<Self, AccountingError> {
        let terms = ledger.terms();
        Ok(Self {
            unit: terms.unit,
            population: terms.population.clone(),
            relation: terms.relation,
            delta: terms.delta,
            epsilon: Epsilons::from(ledger.epsilon()?),
            epsilon_max: terms.epsilon_max,
            events: ledger.events(),
            releases: ledger.releases(),
            against: against(central.sampling).to_owned(),
            assumes: assumptions(central),
            mechanism: describe(central),
            ledger_head: ledger.head(),
        })
    }
}

/// The adversary of central noise.
pub fn against(sampling: Sampling) -> &'static str {
    match sampling {
        Sampling::Availability { .. } => {
            "whoever sees every released model, and knows who took part in which round; not the server, which sees every update"
        }
        Sampling::Poisson { .. } | Sampling::Fixed { .. } => {
            "whoever sees every released model but not who took part in which round; not the server, which sees both"
        }
    }
}

/// What must be true for central noise to protect as claimed.
pub fn assumptions(central: &CentralPrivacy) -> Vec<String> {
    let mut assumes = vec![
        "the server runs this program unchanged, and its operating system's randomness is unpredictable"
            .to_owned(),
        "one certificate is one client: who holds several is protected by several times as much epsilon"
            .to_owned(),
    ];
    match central.sampling {
        Sampling::Poisson { rate } => assumes.push(format!(
            "each enrolled client took part by an independent coin of {rate} that nobody else saw"
        )),
        Sampling::Fixed { population, sample } => assumes.push(format!(
            "each cohort was drawn uniformly, {sample} of at least {population} enrolled clients, and nobody else saw it"
        )),
        Sampling::Availability { participations_max, separation_min } => assumes.push(format!(
            "no client took part in more than {participations_max} releases, at least {separation_min} rounds apart; \
             the server enforces it by certificate"
        )),
    }
    assumes
}

/// The mechanism in words.
pub fn describe(central: &CentralPrivacy) -> String {
    let noise = match &central.noise {
        NoiseCorrelation::Independent => "independent discrete Gaussian noise on each".to_owned(),
        NoiseCorrelation::Tree => {
            format!("a tree of discrete Gaussian noise over {} rounds on the", central.rounds)
        }
        NoiseCorrelation::Banded { weights } => {
            format!(
                "discrete Gaussian noise that takes back part of that of the last {} rounds on each",
                weights.len()
            )
        }
    };
    let clipping = match central.clipping {
        Clipping::Fixed => "clipped to a fixed norm".to_owned(),
        Clipping::PerLayer => "clipped to a fixed norm tensor by tensor".to_owned(),
        Clipping::Adaptive { quantile, .. } => {
            format!("clipped to a norm that privately follows the {quantile} quantile of the updates' norms")
        }
    };
    format!(
        "{noise} integer sum of updates {clipping}; noise multiplier {:.6}; divided by {}, whatever the number that came",
        central.noise_multiplier.value(),
        central.denominator.value()
    )
}

/// What no claim covers.
pub fn outside(privacy: &PrivacySpec) -> Vec<String> {
    let mut outside = vec!["which clients are enrolled and connected, and when".to_owned()];
    if privacy.is_none() {
        outside = vec!["everything: this run promises no privacy, and its epsilon is infinite".to_owned()];
        return outside;
    }
    outside.push("the choice of the plan's settings, where it was made by looking at the data".to_owned());
    if privacy.tells_metrics_outside() {
        outside.push("losses, accuracies and numbers of examples that sites told the server".to_owned());
    }
    if let Some(local) = &privacy.local {
        outside.push(format!(
            "each client's own guarantee (noise multiplier {} on every update) is accounted for at the client",
            local.noise_multiplier.value()
        ));
    }
    if let Some(examples) = &privacy.examples {
        outside.push(format!(
            "each site's guarantee for its own records (noise multiplier {} and clipping norm {} in every gradient step, \
             epsilon at most {} at delta {}) is accounted for at the site",
            examples.noise_multiplier.value(),
            examples.norm_max.value(),
            examples.epsilon_max.value(),
            examples.delta
        ));
    }
    outside
}
