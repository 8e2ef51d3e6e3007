//! What stands in a ledger.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::LedgerError;
use crate::accounting::{Epsilon, Event, Mechanism, Relation, promised_delta};
use crate::noise::{Provenance, Sigma};

/// Whose data a guarantee is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A client as a whole: one certificate of the federation.
    Client,
    /// One record of one site.
    Example,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "one client",
            Self::Example => "one record",
        })
    }
}

/// Whose book it is, and its budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// The people behind the data.
    pub population: String,
    /// What one unit of them is.
    pub unit: Unit,
    /// Which two data sets must be hard to tell apart.
    pub relation: Relation,
    /// 0 to 1, both excluded.
    pub delta: f64,
    /// The budget; above 0, finite.
    pub epsilon_max: f64,
}

impl Terms {
    /// Checks terms on which a book is opened. One that was opened on a larger delta can still be read.
    pub(super) fn check_promise(&self) -> Result<(), LedgerError> {
        self.check()?;
        promised_delta(self.delta).map(|_| ()).map_err(|_| LedgerError::Terms {
            name: "delta",
            value: self.delta,
            range: "the numbers above 0 and at most 0.01",
        })
    }

    pub(super) fn check(&self) -> Result<(), LedgerError> {
        let wrong = |name, value, range| Err(LedgerError::Terms { name, value, range });
        if !(self.delta > 0.0 && self.delta < 1.0) {
            return wrong("delta", self.delta, "the numbers between 0 and 1");
        }
        if !(self.epsilon_max > 0.0 && self.epsilon_max.is_finite()) {
            return wrong("epsilon_max", self.epsilon_max, "the finite numbers above 0");
        }
        Ok(())
    }
}

/// How the releases of one run add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Composition {
    /// Each is an event; at most this many of them concern any one unit, where participation is limited.
    Each {
        /// The limit.
        at_most: Option<u64>,
    },
    /// All of them together are one event (correlated noise): the first pays for all.
    Whole,
}

/// Whether somebody outside the server can know which clients were drawn for a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cohorts {
    /// They were drawn by secret chance alone, nothing shows them, and nothing that depends on them kept a client out or
    /// decided about a release.
    Secret,
    /// Somebody can know them: a seed is told to the sites, or they are not drawn by chance at all.
    Known,
}

/// What sites told the server of a run besides updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SiteMetrics {
    /// Nothing.
    Hidden,
    /// Losses, accuracies and numbers of examples, without noise.
    Told,
}

/// What a statement must know of a run besides its charges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conduct {
    /// Whether its cohorts are secret.
    pub cohorts: Cohorts,
    /// What its sites told besides updates.
    pub metrics: SiteMetrics,
}

impl Conduct {
    /// What holds of both: a secret that was known once stays known, and what was told stays told.
    pub(super) fn worse(self, other: Self) -> Self {
        let cohorts = match (self.cohorts, other.cohorts) {
            (Cohorts::Secret, Cohorts::Secret) => Cohorts::Secret,
            (Cohorts::Known, _) | (_, Cohorts::Known) => Cohorts::Known,
        };
        let metrics = match (self.metrics, other.metrics) {
            (SiteMetrics::Hidden, SiteMetrics::Hidden) => SiteMetrics::Hidden,
            (SiteMetrics::Told, _) | (_, SiteMetrics::Told) => SiteMetrics::Told,
        };
        Self { cohorts, metrics }
    }
}

/// What one run has charged under one set of rules, and as what that counts.
#[derive(Clone, Debug, PartialEq)]
pub struct RunCharge {
    /// The run.
    pub run: String,
    /// What was declared of it; `None` for a run of an earlier version.
    pub conduct: Option<Conduct>,
    /// What each release costs, as it was reserved.
    pub charge: Charge,
    /// Releases spent and reserved.
    pub releases: u64,
    /// As what they count: a sampled release of a run whose cohorts are not declared secret counts without its sampling.
    pub event: Event,
}

/// What a release costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Charge {
    /// How it is made.
    pub mechanism: Mechanism,
    /// How it adds up with the run's other releases.
    pub composition: Composition,
}

impl Charge {
    /// The event that `releases` releases amount to; `None` for none.
    pub fn event(&self, releases: u64) -> Option<Event> {
        let count = match self.composition {
            Composition::Each { at_most } => at_most.map_or(releases, |most| releases.min(most)),
            Composition::Whole => releases.min(1),
        };
        Event::new(self.mechanism, count).ok()
    }
}

/// How a release was noised: the facts of the lattice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noised {
    /// The clipping norm, in units of the parameters.
    pub norm_max: f64,
    /// How far one unit can move the integer sum (L2).
    pub sensitivity: u64,
    /// The number of layers with an equal share of the squared norm, where each was clipped on its own. The sensitivity is that
    /// of all of them together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
    /// Sigma of the noise on the integer sum.
    pub sigma: Sigma,
    /// Sigma of the noise on the sum of votes, where clients voted on the clipping norm: in votes, over the number of lattice
    /// points that one vote is worth (1 in records from before 2^20).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vote_sigma: Option<Sigma>,
    /// The fixed number by which the sum was divided, in clients (or records).
    pub denominator: f64,
    /// Whether the noise can be predicted.
    pub provenance: Provenance,
}

impl Noised {
    /// The one that protects less.
    pub(super) fn worse(self, other: Self) -> Self {
        let ratio = |noised: &Self| noised.sigma.value() / noised.sensitivity as f64;
        let provenance = self.provenance.worse(other.provenance);
        let worse = if ratio(&other) < ratio(&self) { other } else { self };
        Self { provenance, ..worse }
    }
}

/// What was released, for the record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// SHA-256 of the model that the release made, or of what was sent.
    pub sha256: String,
    /// Name and version of the program.
    pub software: String,
    /// The clipping norm of the next round, where it follows the updates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm_next: Option<f64>,
}

/// Epsilon by each accountant that has a bound, as it is written down.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Epsilons {
    /// By Rényi divergence.
    pub rdp: Option<f64>,
    /// By the privacy loss distribution.
    pub pld: Option<f64>,
}

impl From<Epsilon> for Epsilons {
    fn from(epsilon: Epsilon) -> Self {
        let finite = |epsilon: Option<f64>| epsilon.filter(|epsilon| epsilon.is_finite());
        Self { rdp: finite(epsilon.rdp), pld: finite(epsilon.pld) }
    }
}

/// One line of the book.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Record {
    /// The first line.
    Opened {
        /// The version of the records.
        version: u32,
        /// Whose book it is, and its budget.
        terms: Terms,
    },
    /// A round is about to begin.
    Reserved {
        /// The run.
        run: String,
        /// The round.
        round: u32,
        /// What each release costs.
        charge: Charge,
        /// How many.
        releases: u64,
    },
    /// The release happened.
    Spent {
        /// The run.
        run: String,
        /// The round.
        round: u32,
        /// What each release costs.
        charge: Charge,
        /// How many.
        releases: u64,
        /// How it was noised; absent when nothing came of the reservation and it was paid all the same.
        noised: Option<Noised>,
        /// What was released.
        release: Release,
        /// Epsilon of everything up to here, for readers: it is computed anew from the events when it matters.
        epsilon: Option<Epsilons>,
    },
    /// The release did not happen.
    Cancelled {
        /// The run.
        run: String,
        /// The round.
        round: u32,
        /// What each release would have cost.
        charge: Charge,
        /// How many.
        releases: u64,
    },
    /// What a statement must know of a run besides its charges. Of several the worst holds.
    Declared {
        /// The run.
        run: String,
        /// What is declared.
        conduct: Conduct,
    },
    /// The budget could not pay.
    Refused {
        /// The run.
        run: String,
        /// The round.
        round: u32,
        /// What each release would have cost.
        charge: Charge,
        /// How many.
        releases: u64,
        /// What epsilon would have been.
        epsilon: f64,
    },
}

impl Record {
    /// A spending with its epsilon; other records stay as they are.
    pub(super) fn with_epsilon(self, reached: Epsilons) -> Self {
        match self {
            Self::Spent { run, round, charge, releases, noised, release, .. } => {
                Self::Spent { run, round, charge, releases, noised, release, epsilon: Some(reached) }
            }
            other => other,
        }
    }
}
