//! What the records of a site's ledger add up to. Every epsilon is computed from events, which are counted as they come.

use std::collections::BTreeMap;

use privacy::accounting::{self, AccountingError, Epsilon, Event, Mechanism, Relation};
use privacy::chain::{ChainError, Digest, Link, LinkReader};
use privacy::ledger::Unit;
use protocol::{CentralPrivacy, ExampleReleases, NoiseCorrelation, Round, RunId, StepId, Task, Time, Work};

use super::answers::Answers;
use super::entry::{Charge, Entry, Recovered, drawn};
#[cfg(feature = "net")]
use super::history::LedgerHead;
use super::reservations::Reservations;
use super::{PayError, SiteLedgerError};
use crate::local_state::Origin;
use crate::policy::{History, Participation};

/// Lost records that count as trainings of the day on which they were reserved, at most.
const LOST_COUNTED_MAX: usize = 10_000;

/// Everything a site has reserved and not cancelled. What a task asks of it takes the same time however many were reserved before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SiteAccount {
    open: Reservations,
    /// Trainings that were reserved, those among them that were cancelled, and what was lost.
    history: History,
    /// What stands for records that were lost.
    recovered: Vec<Recovered>,
    /// Of what was asked last.
    pub(super) answers: Answers,
}

/// What one kind of unit has given away.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Total {
    /// Trainings with a guarantee for this unit, repetitions included.
    pub protected: usize,
    /// Answers without any: trainings without such noise, and metrics and sums that were told in clear.
    pub unprotected: usize,
    /// Epsilon of those with a guarantee.
    pub epsilon: Epsilon,
}

/// One run's part of it.
#[derive(Clone, Debug, PartialEq)]
pub struct RunAccount {
    /// SHA-256 of the certificate of the authority whose server ran it.
    pub federation: Digest,
    /// The run.
    pub run: RunId,
    /// Its delta, from the plan; `None` without a guarantee.
    pub delta: Option<f64>,
    /// Tasks reserved.
    pub tasks: usize,
    /// Those of them whose seed the server knew: they claim nothing, though they are counted.
    pub seeded: usize,
}

impl SiteAccount {
    /// Reads a ledger's text and checks every record of it; a torn last line is passed over.
    ///
    /// # Errors
    /// [`SiteLedgerError`] names the line.
    pub fn read(text: &[u8]) -> Result<Self, SiteLedgerError> {
        let (mut reader, mut account) = (LinkReader::new(text), Self::default());
        while let Some(link) = reader.next_in_memory()? {
            account.read_on(&link)?;
        }
        Ok(account)
    }

    /// Checks the record that follows those that were read, and counts it.
    pub(super) fn read_on(&mut self, link: &Link) -> Result<(), SiteLedgerError> {
        let (sequence, line) = (link.sequence, link.sequence + 1);
        let wrong = |fault| SiteLedgerError::Record { line, fault };
        let entry: Entry = link.read().map_err(wrong)?;
        if let Some(message) = entry.fault() {
            return Err(wrong(ChainError::Record { sequence, message }));
        }
        if let Entry::Cancelled { reservation, .. } = entry
            && !self.open.is_open(reservation)
        {
            return Err(SiteLedgerError::Cancellation { line, reservation });
        }
        self.book(sequence, entry);
        Ok(())
    }

    /// Trainings, for the policy.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The rounds for which records may have been read, with their runs, in the order in which they were reserved.
    pub fn trained(&self) -> impl Iterator<Item = (RunId, Round)> {
        let trained = self.open.from(0).filter(|(terms, _)| terms.kind == StepId::TRAIN);
        trained.map(|(terms, round)| (terms.run, round))
    }

    /// What one kind of unit has given away at `delta`, in all or in one run.
    ///
    /// # Errors
    /// [`AccountingError`] when no accountant has a bound.
    pub fn total(&self, unit: Unit, run: Option<RunId>, delta: f64) -> Result<Total, AccountingError> {
        let (reserved, protected) = self.counts(unit, run);
        let events = self.events(unit, run, &[]);
        let epsilon = if self.is_unbounded(unit) {
            Epsilon { rdp: Some(f64::INFINITY), pld: Some(f64::INFINITY) }
        } else if events.is_empty() {
            Epsilon { rdp: Some(0.0), pld: Some(0.0) }
        } else {
            accounting::epsilon(&events, Relation::ZeroOut, delta)?
        };
        let lost = self.recovered.iter().map(|one| usize::try_from(one.lost).unwrap_or(usize::MAX));
        let lost = lost.fold(0, usize::saturating_add);
        Ok(Total { protected: protected.saturating_add(lost), unprotected: reserved - protected, epsilon })
    }

    /// Answers in all or in one run, and how many of them are trainings with a guarantee for this unit.
    fn counts(&self, unit: Unit, run: Option<RunId>) -> (usize, usize) {
        let (mut reserved, mut protected) = (0, 0);
        for terms in self.open.terms(run) {
            reserved += count(terms.count);
            protected += if terms.protects(unit) { count(terms.count) } else { 0 };
        }
        (reserved, protected)
    }

    /// The runs, by federation and number.
    pub fn runs(&self) -> Vec<RunAccount> {
        let mut runs: BTreeMap<(Digest, RunId), RunAccount> = BTreeMap::new();
        for terms in self.open.terms(None) {
            let (federation, run) = (terms.federation, terms.run);
            let empty = RunAccount { federation, run, delta: None, tasks: 0, seeded: 0 };
            let account = runs.entry((federation, run)).or_insert(empty);
            account.tasks += count(terms.count);
            account.seeded += if terms.is_seeded { count(terms.count) } else { 0 };
            let privacy = &terms.privacy;
            let deltas = [
                privacy.central.as_ref().map(|central| central.delta),
                privacy.local.map(|local| local.delta),
                privacy.examples.map(|examples| examples.delta),
            ];
            // Of several promises the strictest.
            let strictest = deltas.into_iter().flatten().chain(account.delta).reduce(f64::min);
            account.delta = strictest;
        }
        runs.into_values().collect()
    }

    /// The events of one kind of unit together with `more`, equal ones as one, under [`Relation::ZeroOut`].
    pub(super) fn events(&self, unit: Unit, run: Option<RunId>, more: &[Charge]) -> Vec<Event> {
        let mut counts: Vec<(Mechanism, u64)> = self.open.releases(unit, run).collect();
        // What was lost may have been of any run.
        let recovered = self.recovered.iter().flat_map(|one| &one.charges);
        let charges = recovered.chain(more).filter(|charge| charge.unit == unit);
        for (mechanism, count) in charges.map(Charge::as_zero_out) {
            match counts.iter_mut().find(|(known, _)| *known == mechanism) {
                Some((_, total)) => *total = total.saturating_add(count),
                None => counts.push((mechanism, count)),
            }
        }
        counts.into_iter().filter_map(|(mechanism, count)| Event::new(mechanism, count).ok()).collect()
    }

    /// What all trainings under this number of a run belong to; `None` without one, or where they are of several federations or promises.
    pub(crate) fn origin_of(&self, run: RunId) -> Option<Origin> {
        let trained = self.open.terms(Some(run)).filter(|terms| terms.kind == StepId::TRAIN);
        let mut origins =
            trained.map(|terms| Origin { federation: terms.federation, run, promise: terms.privacy.clone() });
        let first = origins.next()?;
        origins.all(|other| other == first).then_some(first)
    }

    /// Records that were lost and are charged by what is known of them.
    pub fn lost(&self) -> u64 {
        self.recovered.iter().fold(0, |sum, one| sum.saturating_add(one.lost))
    }

    /// Whether records were lost of which nobody knows how much they cost this unit.
    pub(crate) fn is_unbounded(&self, unit: Unit) -> bool {
        self.recovered.iter().any(|one| one.unbounded.contains(&unit))
    }

    /// Reservations from the record `place` on that are not taken back.
    #[cfg(feature = "net")]
    pub(crate) fn open_from(&self, place: u64) -> u64 {
        self.open.from(place).count() as u64
    }

    /// Whether the loss of a ledger with this head is charged.
    #[cfg(feature = "net")]
    pub(crate) fn replaces(&self, head: LedgerHead) -> bool {
        self.recovered.iter().any(|one| one.replaced.contains(&head))
    }

    /// All that is charged, one by one.
    #[cfg(feature = "net")]
    pub(crate) fn all_charges(&self) -> Vec<Charge> {
        let recovered = self.recovered.iter().flat_map(|one| one.charges.iter().copied());
        let open = self.open.from(0).flat_map(|(terms, _)| terms.charges().iter().copied());
        open.chain(recovered).collect()
    }

    /// A task is refused that goes back behind what this site has trained in its run: an honest server repeats no round but its
    /// latest, so one that does has lost what it knew, and would release an earlier round twice. Without a promise there is nothing to lose.
    fn check_order(&self, task: &Task, federation: Digest) -> Result<(), PayError> {
        if task.spec.privacy.is_none() {
            return Ok(());
        }
        let same_run = self.open.terms(Some(task.id.run)).filter(|terms| terms.federation == federation);
        let trained = same_run.filter(|terms| terms.kind == StepId::TRAIN);
        match trained.filter_map(|terms| terms.rounds.latest()).max() {
            Some(latest) if task.id.round < latest => {
                Err(PayError::Past { run: task.id.run, round: task.id.round, latest })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// What `task` costs, given what is paid for already.
    pub(super) fn charges(
        &self,
        task: &Task,
        releases: Option<ExampleReleases>,
        federation: Digest,
    ) -> Result<Vec<Charge>, PayError> {
        self.check_order(task, federation)?;
        let Work::Train { .. } = task.work else { return Ok(Vec::new()) };
        let privacy = &task.spec.privacy;
        let event = |mechanism, count| {
            Event::new(mechanism, count).map_err(|error| PayError::Spec(error.to_string()))
        };
        let mut charges = Vec::new();
        if let Some(central) = &privacy.central
            && !self.is_paid(central, task, federation)
        {
            let event = match central.noise {
                NoiseCorrelation::Independent => {
                    let noise_multiplier = central.noise_multiplier.value();
                    event(Mechanism::Gaussian { noise_multiplier }, 1)?
                }
                NoiseCorrelation::Tree | NoiseCorrelation::Banded { .. } => {
                    let whole = central.events(1).map_err(|error| PayError::Spec(error.to_string()))?;
                    *whole.first().ok_or_else(|| PayError::Spec("a run without releases".into()))?
                }
            };
            charges.push(Charge { unit: Unit::Client, relation: Relation::ZeroOut, event });
        }
        if let Some(local) = &privacy.local {
            let noise_multiplier = local.noise_multiplier.value();
            let event = event(Mechanism::Gaussian { noise_multiplier }, 1)?;
            charges.push(Charge { unit: Unit::Client, relation: Relation::ReplaceOne, event });
        }
        if let Some(examples) = &privacy.examples {
            let releases = releases.ok_or(PayError::Unprotected)?;
            let mechanism = drawn(task, releases.mechanism(examples.noise_multiplier.value()));
            let event = event(mechanism, releases.steps)?;
            charges.push(Charge { unit: Unit::Example, relation: Relation::ZeroOut, event });
        }
        Ok(charges)
    }

    /// Whether the server's noise of this task is paid for: correlated noise by any round of the run, independent noise by
    /// the same round, whose sum a server releases once. A plan that promises something else than before pays anew.
    fn is_paid(&self, central: &CentralPrivacy, task: &Task, federation: Digest) -> bool {
        self.open.terms(Some(task.id.run)).any(|terms| {
            let same_round =
                central.noise != NoiseCorrelation::Independent || terms.rounds.contains(task.id.round);
            let paid = terms.protects(Unit::Client) && terms.privacy.central.as_ref() == Some(central);
            terms.federation == federation && same_round && paid
        })
    }

    pub(super) fn book(&mut self, sequence: u64, entry: Entry) {
        match entry {
            Entry::Reserved(reserved) => {
                if reserved.kind == StepId::TRAIN {
                    let at = Time::from_micros(reserved.at_micros);
                    self.history.begin(Participation { at, run: reserved.run, round: reserved.round });
                }
                self.open.add(sequence, *reserved);
            }
            Entry::Cancelled { reservation, .. } => {
                if let Some((StepId::TRAIN, run, round)) = self.open.cancel(reservation) {
                    self.history.end_unread(run, round);
                }
            }
            Entry::Recovered(recovered) => {
                // What was lost may have been trainings of that day.
                let lost = usize::try_from(recovered.lost).unwrap_or(usize::MAX).min(LOST_COUNTED_MAX);
                self.history.attempt(Time::from_micros(recovered.at_micros), lost);
                self.recovered.push(*recovered);
            }
        }
    }
}

/// What fits into memory can be counted.
fn count(tasks: u64) -> usize {
    usize::try_from(tasks).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
