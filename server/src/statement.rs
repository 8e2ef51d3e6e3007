//! What may be said about the privacy of a model, and nothing more: made from the plan and the ledger for every release.
//!
//! A statement sums everything that was released from a population, so each of its claims is about one adversary and holds for
//! every run that the ledger counts: its events are converted for that adversary, its assumptions and what is outside are
//! those of all of these runs. It holds the events from which its epsilon was computed, so that anybody can compute it again
//! ([`PrivacyStatement::recompute`]). A run without privacy says so. A seeded run, whose seed is known, and a run whose noise
//! could be predicted, claim nothing. Statements of version 1 mixed adversaries; [`PrivacyStatement::read`] takes them for
//! what they can still claim.

mod version_1;
mod words;

use std::collections::BTreeMap;

use privacy::accounting::{self, AccountingError, Epsilon, Event, Relation};
use privacy::chain::Digest;
use privacy::ledger::{Cohorts, Epsilons, Ledger, RunCharge, SiteMetrics, Unit};
use protocol::{CentralPrivacy, MetricsRule, PrivacySpec, in_plain_words};
use serde::{Deserialize, Serialize};

pub use words::{against, assumptions, describe, outside};

/// The version of the statement's form.
pub const STATEMENT_VERSION: u32 = 2;
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

/// What an adversary knows of who took part. Every adversary sees every released model, and none is the server or its
/// operators, who see each update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Adversary {
    /// It does not see who, or how many, took part in runs with secret sampling.
    DoesNotSeeParticipants,
    /// It sees who took part in every round of every run.
    SeesParticipants,
}

/// One guarantee, against one adversary, over everything that was released from a population.
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
    /// The budget, in the claim that the ledger holds to it; the other claims have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epsilon_max: Option<f64>,
    /// What was released, as an accountant understands it for this adversary.
    pub events: Vec<Event>,
    /// Releases that were made, of all runs.
    pub releases: u64,
    /// What the adversary knows.
    pub adversary: Adversary,
    /// Against whom it holds, in words.
    pub against: String,
    /// What must be true for it to hold, of every run that is counted.
    pub assumes: Vec<String>,
    /// The mechanism of this run's releases in words.
    pub mechanism: String,
    /// The runs that are counted, each with its event: the same as in `events`, in the same order.
    pub runs: Vec<RunPart>,
    /// The hash of the ledger's last record.
    pub ledger_head: Digest,
}

/// A run's part of a claim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunPart {
    /// The run; empty where a statement of version 1 does not say.
    pub run: String,
    /// Its releases, with one that is reserved.
    pub releases: u64,
    /// What the ledger declares of its cohorts; nothing for a run that an earlier version made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cohorts: Option<Cohorts>,
    /// As what its releases count for this adversary.
    pub event: Event,
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
    /// The events of the runs are not those from which epsilon is computed.
    #[error(
        "claim {claim} lists events of its runs that are not the events from which its epsilon is computed"
    )]
    Parts {
        /// Which claim, from 1.
        claim: usize,
    },
    /// A claim against who sees the participants counts on chance.
    #[error("claim {claim} is against an adversary who sees who took part, and counts on secret sampling")]
    Adversary {
        /// Which claim, from 1.
        claim: usize,
    },
    /// It is no statement.
    #[error("it is no privacy statement: {0}")]
    Form(String),
    /// A form that is not known here.
    #[error(
        "version {0} of a statement; this program reads versions 1 and {STATEMENT_VERSION}: use the release that wrote it"
    )]
    Version(u32),
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
    pub is_seeded: bool,
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
        let mut outside = outside(privacy);
        if let (Some(central), Some(ledger)) = (&privacy.central, ledger) {
            if subject.is_seeded {
                void = Some("a seeded run: its seed is known, and with it who took part".to_owned());
            } else if !ledger.is_secure() {
                void =
                    Some("INSECURE: the noise came from a test's seed and can be taken off again".to_owned());
            } else {
                claims = Claim::of_ledger(&subject.run, central, ledger)?;
                outside.extend(outside_of_other_runs(&subject.run, central, ledger));
            }
        }
        let Subject { model_sha256, run, round, .. } = subject;
        let software = concat!("consortia ", env!("CARGO_PKG_VERSION")).to_owned();
        Ok(Self { version: STATEMENT_VERSION, model_sha256, run, round, software, void, claims, outside })
    }

    /// Reads a statement and checks it. One of version 1, which may have mixed adversaries, becomes what can still be claimed
    /// of it: its events without any sampling, against whoever sees who took part.
    ///
    /// # Errors
    /// [`StatementError`] when it is none, or its numbers do not follow from its events.
    pub fn read(text: &str) -> Result<Self, StatementError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let form = |error: serde_json::Error| StatementError::Form(in_plain_words(&error.to_string()));
        let statement: Self = match serde_json::from_str(text).map_err(form)? {
            Versioned { version: 1 } => version_1::read(text)?,
            Versioned { version: STATEMENT_VERSION } => serde_json::from_str(text).map_err(form)?,
            Versioned { version } => return Err(StatementError::Version(version)),
        };
        statement.recompute()?;
        Ok(statement)
    }

    /// Computes every epsilon again from the events, and checks that each claim's events fit its adversary.
    ///
    /// # Errors
    /// [`StatementError::Epsilon`] when one differs by more than 1e-9.
    pub fn recompute(&self) -> Result<(), StatementError> {
        for (claim, number) in self.claims.iter().zip(1..) {
            if !claim.runs.iter().map(|part| part.event).eq(claim.events.iter().copied()) {
                return Err(StatementError::Parts { claim: number });
            }
            let is_sampled = |event: &Event| event.mechanism().with_known_cohort() != event.mechanism();
            let relation = claim.relation.with_known_cohort();
            if claim.adversary == Adversary::SeesParticipants
                && (claim.events.iter().any(is_sampled) || relation != claim.relation)
            {
                return Err(StatementError::Adversary { claim: number });
            }
            agree(number, &claim.events, claim.relation, claim.delta, claim.epsilon)?;
        }
        Ok(())
    }

    /// Whether it is of a run that promises no privacy at all, neither by the server nor by the sites.
    pub fn promises_nothing(&self) -> bool {
        self.claims.is_empty() && self.outside.iter().any(|outside| outside == words::NOTHING)
    }

    /// As it is written to a file.
    ///
    /// # Panics
    /// Never: every field has a JSON form.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("every field has a JSON form")
    }
}

/// Whether these events give what claim `number` says.
fn agree(
    number: usize,
    events: &[Event],
    relation: Relation,
    delta: f64,
    claimed: Epsilons,
) -> Result<(), StatementError> {
    let Epsilon { rdp, pld } = accounting::epsilon(events, relation, delta)?;
    for (accountant, claimed, found) in [("rdp", claimed.rdp, rdp), ("pld", claimed.pld, pld)] {
        let (claimed, found) = (claimed.unwrap_or(f64::INFINITY), found.unwrap_or(f64::INFINITY));
        if claimed != found && (claimed - found).abs().total_cmp(&AGREEMENT).is_gt() {
            return Err(StatementError::Epsilon { claim: number, accountant, claimed, found });
        }
    }
    Ok(())
}

impl Claim {
    /// What the ledger carries, for a model of `run`. Where no run counts on secret sampling, one claim, against the stronger
    /// adversary; otherwise one for each.
    fn of_ledger(run: &str, central: &CentralPrivacy, ledger: &Ledger) -> Result<Vec<Self>, AccountingError> {
        let charges = ledger.run_charges();
        let seen: Vec<Event> = ledger.events_with_known_cohorts();
        let (terms, events) = (ledger.terms(), ledger.events());
        let mut claims = Vec::new();
        // A run that has not released yet may count on chance, too.
        let is_secret =
            |charged: &RunCharge| charged.event.mechanism().with_known_cohort() != charged.event.mechanism();
        let secret = charges.iter().any(is_secret) || terms.relation.with_known_cohort() != terms.relation;
        let claim = |adversary, relation, epsilon, events: Vec<Event>, epsilon_max| Self {
            unit: terms.unit,
            population: terms.population.clone(),
            relation,
            delta: terms.delta,
            epsilon,
            epsilon_max,
            releases: ledger.releases(),
            adversary,
            against: words::against_adversary(adversary).to_owned(),
            assumes: words::assumptions_of(&charges, adversary),
            mechanism: format!("of run {run}: {}", describe(central)),
            runs: charges.iter().zip(&events).map(|(charged, event)| RunPart::of(charged, *event)).collect(),
            events,
            ledger_head: ledger.head(),
        };
        if secret {
            let epsilon = Epsilons::from(ledger.epsilon()?);
            let adversary = Adversary::DoesNotSeeParticipants;
            claims.push(claim(adversary, terms.relation, epsilon, events, Some(terms.epsilon_max)));
        }
        let (relation, epsilon) =
            if secret { ledger.epsilon_with_known_cohorts()? } else { (terms.relation, ledger.epsilon()?) };
        let budget = (!secret).then_some(terms.epsilon_max);
        claims.push(claim(Adversary::SeesParticipants, relation, Epsilons::from(epsilon), seen, budget));
        Ok(claims)
    }
}

impl RunPart {
    fn of(charged: &RunCharge, event: Event) -> Self {
        let RunCharge { run, conduct, releases, .. } = charged;
        let cohorts = conduct.map(|conduct| conduct.cohorts);
        Self { run: run.clone(), releases: *releases, cohorts, event }
    }
}

/// What the other runs that the ledger counts have let past the noise.
fn outside_of_other_runs(run: &str, central: &CentralPrivacy, ledger: &Ledger) -> Vec<String> {
    let mut told: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    for RunCharge { run: other, conduct, .. } in ledger.run_charges() {
        let metrics = conduct.map(|conduct| conduct.metrics);
        let sentence = match metrics {
            Some(SiteMetrics::Hidden) => continue,
            // The plan of this run says it already.
            Some(SiteMetrics::Told)
                if other == run && central.metrics == MetricsRule::OutsideTheGuarantee =>
            {
                continue;
            }
            None if other == run => continue,
            Some(SiteMetrics::Told) => words::TOLD,
            None => words::UNRECORDED,
        };
        let runs = told.entry(sentence).or_default();
        if !runs.contains(&other) {
            runs.push(other);
        }
    }
    let of = |(sentence, runs): (&str, Vec<String>)| format!("{sentence} in {}", words::named(&runs));
    told.into_iter().map(of).collect()
}

#[cfg(test)]
mod tests;
