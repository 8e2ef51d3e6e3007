//! What stands in a site's ledger, one JSON object a record. It holds nothing that was measured.

use privacy::accounting::{Event, Mechanism, Relation};
use privacy::chain::Digest;
use privacy::ledger::Unit;
use protocol::{PrivacySpec, Round, RunId, StepId, Task, Time};
use serde::{Deserialize, Serialize};

use super::history::LedgerHead;

/// The version of the records written by this code.
pub const SITE_LEDGER_VERSION: u32 = 1;

/// What one task costs one kind of unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Charge {
    /// Whom it protects.
    pub unit: Unit,
    /// Under which relation.
    pub relation: Relation,
    /// What is released.
    pub event: Event,
}

impl Charge {
    /// The same for somebody who knows what was drawn, as whoever has given the seed does: chance hides nothing.
    pub(super) fn with_known_draws(self) -> Self {
        let event = Event::new(self.event.mechanism().with_known_cohort(), self.event.count());
        Self { event: event.unwrap_or(self.event), ..self }
    }

    /// The same loss as releases under [`Relation::ZeroOut`]: an exchange moves a sum twice as far, which halves the noise.
    pub(super) fn as_zero_out(&self) -> (Mechanism, u64) {
        let mechanism = match (self.relation, self.event.mechanism()) {
            (Relation::ReplaceOne, Mechanism::Gaussian { noise_multiplier }) => {
                Mechanism::Gaussian { noise_multiplier: noise_multiplier / 2.0 }
            }
            (_, mechanism) => mechanism,
        };
        (mechanism, self.event.count())
    }
}

/// As what a training's releases count: the server that has given a seed knows which records are drawn into which batch.
pub(super) fn drawn(task: &Task, mechanism: Mechanism) -> Mechanism {
    if task.seed.is_some() { mechanism.with_known_cohort() } else { mechanism }
}

/// One record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Entry {
    /// A task that is about to be done.
    Reserved(Box<Reserved>),
    /// It ended before a record was read, and nothing left the site.
    Cancelled {
        version: u32,
        /// Microseconds since the Unix epoch.
        at_micros: u64,
        /// The record that is taken back.
        reservation: u64,
    },
    /// Records that were lost are charged by what is known of them.
    Recovered(Box<Recovered>),
}

/// A task that is about to be done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reserved {
    version: u32,
    /// Microseconds since the Unix epoch.
    pub(super) at_micros: u64,
    /// SHA-256 of the authority's certificate.
    pub(super) federation: Digest,
    #[serde(with = "run_text")]
    pub(super) run: RunId,
    pub(super) round: Round,
    pub(super) kind: StepId,
    /// What people call a method's step: the method, and its own word for the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    /// Whether the server knows the seed: such a training claims nothing, though it is counted.
    #[serde(rename = "rehearsal")]
    pub(super) is_seeded: bool,
    /// What the plan promises.
    #[serde(default, skip_serializing_if = "PrivacySpec::is_none")]
    pub(super) privacy: PrivacySpec,
    /// What it costs, as it was written ([`Reserved::true_charges`]); empty for a repetition that is paid for already, and for what has no
    /// guarantee.
    pub(super) charges: Vec<Charge>,
}

/// What stands for records that are lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Recovered {
    version: u32,
    /// Microseconds since the Unix epoch.
    pub(super) at_micros: u64,
    /// The heads of what was lost, as other books name them.
    pub(super) replaced: Vec<LedgerHead>,
    /// Records of which nothing is known but their number.
    pub(super) lost: u64,
    /// What they cost: what is known of them, and for the others what would have cost most.
    pub(super) charges: Vec<Charge>,
    /// Units for which nothing bounds what the lost records cost.
    pub(super) unbounded: Vec<Unit>,
}

impl Reserved {
    /// What it costs for whoever it costs most: the server that has given a seed knows which records were drawn into which batch. Records of
    /// earlier versions have written such charges with their sampling.
    pub(super) fn true_charges(&self) -> impl Iterator<Item = Charge> + '_ {
        let known = |charge: &Charge| if self.is_seeded { charge.with_known_draws() } else { *charge };
        self.charges.iter().map(known)
    }
}

impl Entry {
    pub(super) fn of(task: &Task, charges: Vec<Charge>, federation: Digest, now: Time) -> Self {
        Self::Reserved(Box::new(Reserved {
            version: SITE_LEDGER_VERSION,
            at_micros: now.as_micros(),
            federation,
            run: task.id.run,
            round: task.id.round,
            kind: task.id.step,
            title: task.id.title(),
            is_seeded: task.seed.is_some(),
            privacy: task.spec.privacy.clone(),
            charges,
        }))
    }

    pub(super) fn cancelling(reservation: u64, now: Time) -> Self {
        Self::Cancelled { version: SITE_LEDGER_VERSION, at_micros: now.as_micros(), reservation }
    }

    #[cfg(feature = "net")]
    pub(super) fn recovered(
        replaced: Vec<LedgerHead>,
        lost: u64,
        charges: Vec<Charge>,
        unbounded: Vec<Unit>,
        now: Time,
    ) -> Self {
        let (version, at_micros) = (SITE_LEDGER_VERSION, now.as_micros());
        Self::Recovered(Box::new(Recovered { version, at_micros, replaced, lost, charges, unbounded }))
    }

    /// Why this code cannot take the record into account; `None` when it can.
    pub(super) fn fault(&self) -> Option<String> {
        let version = match self {
            Self::Reserved(reserved) => reserved.version,
            Self::Cancelled { version, .. } => *version,
            Self::Recovered(recovered) => recovered.version,
        };
        (version != SITE_LEDGER_VERSION)
            .then(|| format!("version {version} is unknown, this code reads {SITE_LEDGER_VERSION}"))
    }
}

/// A run as 16 hexadecimal digits.
mod run_text {
    use protocol::RunId;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(run: &RunId, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(run)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<RunId, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use protocol::{MethodWork, Name, StepLabel, Work};

    use super::*;

    #[test]
    fn a_methods_step_is_named_and_what_has_no_label_is_written_as_it_was() {
        let (method, numbers, blocks) = (Name::literal("kmeans"), Vec::new(), Vec::new());
        let work = Work::Method(Arc::new(MethodWork { method, version: 1, numbers, blocks }));
        let task = crate::participant::tests::task(3, work);
        let text = |task: &Task| {
            serde_json::to_string(&Entry::of(task, Vec::new(), Digest::default(), Time::ZERO)).unwrap()
        };
        let before = text(&task);
        assert!(before.contains(r#""kind":"step-16","rehearsal""#), "{before}");
        let label = StepLabel::new("kmeans", "assign");
        let named = text(&Task { id: task.id.labelled(label), ..task });
        let added = r#""kind":"step-16","title":"kmeans: assign","rehearsal""#;
        assert_eq!(named, before.replace(r#""kind":"step-16","rehearsal""#, added));
        for text in [&before, &named] {
            let entry: Entry = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&entry).unwrap(), *text);
        }
    }
}
