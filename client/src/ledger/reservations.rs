//! The tasks that a ledger has reserved and not cancelled, summed up as they come: a site asks at every task, and no answer may take longer
//! because the site has done many.
//!
//! By record nothing is kept but what its cancellation takes back: which terms it has and its round. All else is kept once for all tasks
//! of the same terms, of which a run has a few.

use std::collections::BTreeMap;

use privacy::accounting::Mechanism;
use privacy::chain::Digest;
use privacy::ledger::Unit;
use protocol::{PrivacySpec, Round, RunId, StepId};

use super::entry::{Charge, Reserved};
use crate::rounds::Rounds;

/// What reserved tasks have in common, and which those are.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Terms {
    pub(super) federation: Digest,
    pub(super) run: RunId,
    pub(super) kind: StepId,
    pub(super) is_seeded: bool,
    pub(super) privacy: PrivacySpec,
    /// As [`Reserved::true_charges`] has them.
    charges: Vec<Charge>,
    /// Tasks.
    pub(super) count: u64,
    pub(super) rounds: Rounds,
}

/// How many releases of one kind of unit were made in the same way.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sum {
    /// Under [`privacy::accounting::Relation::ZeroOut`].
    mechanism: Mechanism,
    /// Wide, so that what was added can be taken away again.
    releases: u128,
    charges: u64,
    /// Where the first of them stands: the record, and the place among its charges.
    first: (u64, usize),
}

/// What was released of one kind of unit, in the order in which each way came first: epsilon is a sum of floating-point numbers, so that the
/// order is a part of it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Spending(Vec<Sum>);

/// The same of both kinds.
#[derive(Clone, Debug, Default, PartialEq)]
struct Spendings {
    client: Spending,
    example: Spending,
}

/// What belongs to one number of a run, in whatever federations.
#[derive(Clone, Debug, Default, PartialEq)]
struct OfRun {
    /// Places in the list of all terms.
    terms: Vec<u32>,
    spent: Spendings,
}

/// What a record stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Place {
    /// Place in the list of all terms; [`NOTHING`] for a record that reserves nothing, or nothing any more.
    terms: u32,
    round: Round,
}

/// No terms.
const NOTHING: u32 = u32::MAX;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Reservations {
    /// By record.
    places: Vec<Place>,
    terms: Vec<Terms>,
    runs: BTreeMap<RunId, OfRun>,
    spent: Spendings,
}

impl Reservations {
    /// Adds what the record `sequence` reserves; records come in order.
    pub(super) fn add(&mut self, sequence: u64, reserved: Reserved) {
        let (run, round) = (reserved.run, reserved.round);
        let at = self.terms_of(reserved);
        let terms = &mut self.terms[at as usize];
        terms.count += 1;
        terms.rounds.add(round);
        let of_run = self.runs.entry(run).or_default();
        for spent in [&mut self.spent, &mut of_run.spent] {
            spent.add(sequence, &terms.charges);
        }
        let place = usize::try_from(sequence).expect("records fit into memory");
        self.places.resize(place, Place { terms: NOTHING, round: Round(0) });
        self.places.push(Place { terms: at, round });
    }

    /// Takes back what the record `sequence` reserves, and says what that was; `None` where it reserves nothing.
    pub(super) fn cancel(&mut self, sequence: u64) -> Option<(StepId, RunId, Round)> {
        let place = usize::try_from(sequence).ok()?;
        let Place { terms: at, round } = *self.places.get(place).filter(|place| place.terms != NOTHING)?;
        self.places[place].terms = NOTHING;
        let terms = &mut self.terms[at as usize];
        terms.count -= 1;
        terms.rounds.remove(round);
        let (kind, run) = (terms.kind, terms.run);
        let (places, all) = (&self.places[place..], &self.terms);
        let charges = &all[at as usize].charges;
        let next_of = |run: Option<RunId>, unit, mechanism| {
            (sequence..).zip(places).find_map(|(sequence, place)| {
                let terms = all.get(place.terms as usize)?;
                let index = terms.charges.iter().position(|charge| is_of(charge, unit, mechanism))?;
                run.is_none_or(|run| terms.run == run).then_some((sequence, index))
            })
        };
        self.spent.take_back(sequence, charges, |unit, mechanism| next_of(None, unit, mechanism));
        if let Some(of_run) = self.runs.get_mut(&run) {
            of_run.spent.take_back(sequence, charges, |unit, mechanism| next_of(Some(run), unit, mechanism));
        }
        Some((kind, run, round))
    }

    /// Whether the record `sequence` reserves something.
    pub(super) fn is_open(&self, sequence: u64) -> bool {
        let place = usize::try_from(sequence).ok().and_then(|place| self.places.get(place));
        place.is_some_and(|place| place.terms != NOTHING)
    }

    /// The terms of what is reserved, each once; those of one run's number, or all.
    pub(super) fn terms(&self, run: Option<RunId>) -> impl Iterator<Item = &Terms> {
        let of_run = run.map(|run| self.runs.get(&run).map_or(&[][..], |of_run| &of_run.terms));
        let chosen = of_run.unwrap_or_default().iter().map(|at| &self.terms[*at as usize]);
        let all = if run.is_none() { &self.terms[..] } else { &[] };
        all.iter().chain(chosen).filter(|terms| terms.count > 0)
    }

    /// What is reserved by the records from `sequence` on, one by one.
    pub(super) fn from(&self, sequence: u64) -> impl Iterator<Item = (&Terms, Round)> {
        let skipped = usize::try_from(sequence).unwrap_or(usize::MAX);
        let places = self.places.iter().skip(skipped);
        places.filter_map(|place| Some((self.terms.get(place.terms as usize)?, place.round)))
    }

    /// How often each mechanism was used on this kind of unit, in one run or in all, in the order of their first uses.
    pub(super) fn releases(
        &self,
        unit: Unit,
        run: Option<RunId>,
    ) -> impl Iterator<Item = (Mechanism, u64)> + use<'_> {
        let spent = match run {
            None => Some(&self.spent),
            Some(run) => self.runs.get(&run).map(|of_run| &of_run.spent),
        };
        let sums = spent.map_or(&[][..], |spent| &spent.of(unit).0);
        sums.iter().map(|sum| (sum.mechanism, u64::try_from(sum.releases).unwrap_or(u64::MAX)))
    }

    /// The place of the terms that `reserved` has, new or known.
    fn terms_of(&mut self, reserved: Reserved) -> u32 {
        let charges: Vec<Charge> = reserved.true_charges().collect();
        let Reserved { federation, run, kind, is_seeded, privacy, .. } = reserved;
        let terms =
            Terms { federation, run, kind, is_seeded, privacy, charges, count: 0, rounds: Rounds::default() };
        let known = &mut self.runs.entry(run).or_default().terms;
        // The newest first: the tasks of a run have the same terms, unless its plan or the site's records change.
        if let Some(at) = known.iter().rev().find(|at| self.terms[**at as usize].are(&terms)) {
            return *at;
        }
        let at = u32::try_from(self.terms.len()).expect("terms fit into memory");
        known.push(at);
        self.terms.push(terms);
        at
    }
}

impl Terms {
    /// Whether a training, and of which unit the plan protects.
    pub(super) fn protects(&self, unit: Unit) -> bool {
        self.kind == StepId::TRAIN
            && match unit {
                Unit::Client => self.privacy.central.is_some() || self.privacy.local.is_some(),
                Unit::Example => self.privacy.examples.is_some(),
            }
    }

    /// What each of the tasks costs.
    #[cfg_attr(not(feature = "net"), expect(dead_code, reason = "losses are charged with `net`"))]
    pub(super) fn charges(&self) -> &[Charge] {
        &self.charges
    }

    /// Whether tasks of both are counted together.
    fn are(&self, other: &Self) -> bool {
        let of = |terms: &Self| (terms.kind, terms.is_seeded, terms.run, terms.federation);
        of(self) == of(other) && self.privacy == other.privacy && self.charges == other.charges
    }
}

impl Spendings {
    fn of(&self, unit: Unit) -> &Spending {
        match unit {
            Unit::Client => &self.client,
            Unit::Example => &self.example,
        }
    }

    fn of_mut(&mut self, unit: Unit) -> &mut Spending {
        match unit {
            Unit::Client => &mut self.client,
            Unit::Example => &mut self.example,
        }
    }

    /// Adds what the record `sequence` costs.
    fn add(&mut self, sequence: u64, charges: &[Charge]) {
        for (index, charge) in charges.iter().enumerate() {
            let (mechanism, count) = charge.as_zero_out();
            let sums = &mut self.of_mut(charge.unit).0;
            match sums.iter_mut().find(|sum| sum.mechanism == mechanism) {
                Some(sum) => {
                    sum.releases += u128::from(count);
                    sum.charges += 1;
                }
                None => {
                    let (releases, first) = (count.into(), (sequence, index));
                    sums.push(Sum { mechanism, releases, charges: 1, first });
                }
            }
        }
    }

    /// Takes back what the record `sequence` costs. `next_of` finds the first charge behind it with a mechanism; one that is used no more
    /// needs no search, so that a cancellation of the newest record, as all are that a site writes, takes no time.
    fn take_back(
        &mut self,
        sequence: u64,
        charges: &[Charge],
        next_of: impl Fn(Unit, Mechanism) -> Option<(u64, usize)>,
    ) {
        for charge in charges {
            let (mechanism, count) = charge.as_zero_out();
            let sums = &mut self.of_mut(charge.unit).0;
            if let Some(sum) = sums.iter_mut().find(|sum| sum.mechanism == mechanism) {
                sum.releases -= u128::from(count);
                sum.charges -= 1;
            }
            sums.retain(|sum| sum.charges > 0);
        }
        for unit in [Unit::Client, Unit::Example] {
            let sums = &mut self.of_mut(unit).0;
            let was_first = |sum: &&mut Sum| sum.first.0 == sequence;
            for sum in sums.iter_mut().filter(was_first) {
                sum.first = next_of(unit, sum.mechanism).unwrap_or(sum.first);
            }
            sums.sort_by_key(|sum| sum.first);
        }
    }
}

/// Whether a charge is one of this unit and mechanism.
fn is_of(charge: &Charge, unit: Unit, mechanism: Mechanism) -> bool {
    charge.unit == unit && charge.as_zero_out().0 == mechanism
}
