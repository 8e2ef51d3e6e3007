//! What the records of a site's ledger add up to. Every epsilon is computed from events, each time.

use std::collections::BTreeMap;

use privacy::accounting::{self, AccountingError, Epsilon, Event, Mechanism, Relation};
use privacy::chain::{ChainError, Digest, read_lines};
use privacy::ledger::Unit;
use protocol::{CentralPrivacy, ExampleReleases, NoiseCorrelation, Round, RunId, Task, Time, Work};

use super::entry::{Charge, Entry, Recovered, Reserved, drawn};
#[cfg(feature = "net")]
use super::history::LedgerHead;
use super::{PayError, SiteLedgerError};
use crate::personal::Origin;
use crate::policy::{History, Participation};

/// Lost records that count as trainings of the day on which they were booked, at most.
const LOST_COUNTED_MAX: usize = 10_000;

/// Everything a site has booked and not taken back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SiteAccount {
    /// By the place of their records.
    open: BTreeMap<u64, Reserved>,
    /// Trainings that were booked, those among them that were booked back.
    attempts: Vec<Participation>,
    /// What stands for records that were lost.
    recovered: Vec<Recovered>,
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
    /// Tasks booked.
    pub tasks: usize,
    /// Those of them whose seed the server knew: they claim nothing, though they are counted.
    pub rehearsals: usize,
}

impl SiteAccount {
    /// Reads a ledger's text and checks every record of it; a torn last line is passed over.
    ///
    /// # Errors
    /// [`SiteLedgerError`] names the line.
    pub fn read(text: &[u8]) -> Result<Self, SiteLedgerError> {
        let mut account = Self::default();
        for link in read_lines(text)?.links {
            let (sequence, line) = (link.sequence, link.sequence + 1);
            let wrong = |fault| SiteLedgerError::Record { line, fault };
            let entry: Entry = link.read().map_err(wrong)?;
            if let Some(message) = entry.fault() {
                return Err(wrong(ChainError::Record { sequence, message }));
            }
            if let Entry::Cancelled { reservation, .. } = entry
                && !account.open.contains_key(&reservation)
            {
                return Err(SiteLedgerError::Cancellation { line, reservation });
            }
            account.book(sequence, entry);
        }
        Ok(account)
    }

    /// Trainings, for the policy.
    pub fn history(&self) -> History {
        let trained = self.open.values().filter_map(participation).collect();
        // What was lost may have been trainings of today.
        let lost = self.recovered.iter().flat_map(|one| {
            let at = Time::from_micros(one.at_micros);
            let count = usize::try_from(one.lost).unwrap_or(usize::MAX).min(LOST_COUNTED_MAX);
            std::iter::repeat_n(Participation { at, run: RunId(0), round: Round(0) }, count)
        });
        let attempts = self.attempts.iter().copied().chain(lost).collect();
        History { attempts, trained }
    }

    /// What one kind of unit has given away at `delta`, in all or in one run.
    ///
    /// # Errors
    /// [`AccountingError`] when no accountant has a bound.
    pub fn total(&self, unit: Unit, run: Option<RunId>, delta: f64) -> Result<Total, AccountingError> {
        let booked = || self.open.values().filter(|one| run.is_none_or(|run| one.run() == Some(run)));
        let protected = booked().filter(|one| one.protects(unit)).count();
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
        let unprotected = booked().count() - protected;
        Ok(Total { protected: protected.saturating_add(lost), unprotected, epsilon })
    }

    /// The runs, by federation and number.
    pub fn runs(&self) -> Vec<RunAccount> {
        let mut runs: BTreeMap<(Digest, RunId), RunAccount> = BTreeMap::new();
        for one in self.open.values() {
            let Some(run) = one.run() else { continue };
            let federation = one.federation;
            let empty = RunAccount { federation, run, delta: None, tasks: 0, rehearsals: 0 };
            let account = runs.entry((federation, run)).or_insert(empty);
            account.tasks += 1;
            account.rehearsals += usize::from(one.rehearsal);
            let privacy = &one.privacy;
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
        let booked = self.open.values().filter(|one| run.is_none_or(|run| one.run() == Some(run)));
        let booked = booked.flat_map(Reserved::true_charges);
        // What was lost may have been of any run.
        let recovered = self.recovered.iter().flat_map(|one| one.charges.iter().copied());
        let charges = booked.chain(recovered).chain(more.iter().copied());
        let charges = charges.filter(|charge| charge.unit == unit);
        let mut counts: Vec<(Mechanism, u64)> = Vec::new();
        for (mechanism, count) in charges.map(|charge| charge.as_zero_out()) {
            match counts.iter_mut().find(|(known, _)| *known == mechanism) {
                Some((_, total)) => *total = total.saturating_add(count),
                None => counts.push((mechanism, count)),
            }
        }
        counts.into_iter().filter_map(|(mechanism, count)| Event::new(mechanism, count).ok()).collect()
    }

    /// What all trainings under this number of a run belong to; `None` without one, or where they are of several federations or promises.
    pub(crate) fn origin_of(&self, run: RunId) -> Option<Origin> {
        let trained =
            self.open.values().filter(|one| one.kind == protocol::StepId::TRAIN && one.run() == Some(run));
        let mut origins =
            trained.map(|one| Origin { federation: one.federation, run, promise: one.privacy.clone() });
        let first = origins.next()?;
        origins.all(|other| other == first).then_some(first)
    }

    /// Records that were lost and are booked by what is known of them.
    pub fn lost(&self) -> u64 {
        self.recovered.iter().fold(0, |sum, one| sum.saturating_add(one.lost))
    }

    /// Whether records were lost of which nobody knows how much they cost this unit.
    pub fn is_unbounded(&self, unit: Unit) -> bool {
        self.recovered.iter().any(|one| one.unbounded.contains(&unit))
    }

    /// Bookings from the record `place` on that are not taken back.
    #[cfg(feature = "net")]
    pub(crate) fn open_from(&self, place: u64) -> u64 {
        self.open.range(place..).count() as u64
    }

    /// Whether the loss of a ledger with this head is booked.
    #[cfg(feature = "net")]
    pub(crate) fn replaces(&self, head: LedgerHead) -> bool {
        self.recovered.iter().any(|one| one.replaced.contains(&head))
    }

    /// All that is charged, one by one.
    #[cfg(feature = "net")]
    pub(crate) fn all_charges(&self) -> Vec<Charge> {
        let recovered = self.recovered.iter().flat_map(|one| one.charges.iter().copied());
        self.open.values().flat_map(Reserved::true_charges).chain(recovered).collect()
    }

    /// A task is refused that goes back behind what this site has trained in its run: an honest server repeats no round but its
    /// latest, so one that does has lost what it knew, and would release an earlier round twice. Without a promise there is nothing to lose.
    fn check_order(&self, task: &Task, federation: Digest) -> Result<(), PayError> {
        if task.spec.privacy.is_none() {
            return Ok(());
        }
        let same_run = |one: &&Reserved| {
            one.federation == federation
                && one.run() == Some(task.id.run)
                && one.kind == protocol::StepId::TRAIN
        };
        match self.open.values().filter(same_run).map(|one| one.round).max() {
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
        self.open.values().any(|one| {
            let same_run = one.federation == federation && one.run() == Some(task.id.run);
            let same_round = one.round == task.id.round || central.noise != NoiseCorrelation::Independent;
            let paid = one.protects(Unit::Client) && one.privacy.central.as_ref() == Some(central);
            same_run && same_round && paid
        })
    }

    pub(super) fn book(&mut self, sequence: u64, entry: Entry) {
        match entry {
            Entry::Reserved(reserved) => {
                self.attempts.extend(participation(&reserved));
                self.open.insert(sequence, *reserved);
            }
            Entry::Cancelled { reservation, .. } => {
                self.open.remove(&reservation);
            }
            Entry::Recovered(recovered) => self.recovered.push(*recovered),
        }
    }
}

/// A training as a policy sees it; none of another task.
fn participation(one: &Reserved) -> Option<Participation> {
    let is_training = one.kind == protocol::StepId::TRAIN;
    let at = Time::from_micros(one.at_micros);
    Some(Participation { at, run: one.run()?, round: one.round }).filter(|_| is_training)
}

/// Epsilon by the tightest accountant; where the fast one is within `enough`, by that.
pub(super) fn best(events: &[Event], delta: f64, enough: f64) -> Result<f64, AccountingError> {
    if events.is_empty() {
        return Ok(0.0);
    }
    match accounting::rdp::epsilon(events, Relation::ZeroOut, delta) {
        Ok(epsilon) if epsilon <= enough => Ok(epsilon),
        _ => Ok(accounting::epsilon(events, Relation::ZeroOut, delta)?.best()),
    }
}
