//! The account that counts records as they come, beside one that walks through all of them at every question.
// losses are charged with `net`.
#![cfg(feature = "net")]

use privacy::chain::{Chain, ChainWriter};
use proptest::prelude::*;
use protocol::{Parameters, Positive, PrivacySpec, Seed};

use super::super::entry::Reserved;
use super::*;
use crate::ledger::tests::{POISSON, Paper, central, examples, local, private};
use crate::participant::tests::task as plain_task;

/// Every record as it was read.
#[derive(Default)]
struct PlainAccount {
    open: BTreeMap<u64, Reserved>,
    attempts: Vec<Participation>,
    recovered: Vec<Recovered>,
}

/// The question of one task: what it costs, or why it may not be done.
type Price = Result<Vec<Charge>, String>;

impl PlainAccount {
    fn book(&mut self, sequence: u64, entry: Entry) {
        match entry {
            Entry::Reserved(one) => {
                let at = Time::from_micros(one.at_micros);
                let training = Participation { at, run: one.run, round: one.round };
                self.attempts.extend(Some(training).filter(|_| one.kind == StepId::TRAIN));
                self.open.insert(sequence, *one);
            }
            Entry::Cancelled { reservation, .. } => drop(self.open.remove(&reservation)),
            Entry::Recovered(one) => {
                let at = Time::from_micros(one.at_micros);
                let lost = Participation { at, run: RunId(0), round: Round(0) };
                self.attempts.extend(std::iter::repeat_n(lost, one.lost as usize));
                self.recovered.push(*one);
            }
        }
    }

    fn of(&self, run: Option<RunId>) -> impl Iterator<Item = &Reserved> {
        self.open.values().filter(move |one| run.is_none_or(|run| one.run == run))
    }

    fn trained(&self) -> impl Iterator<Item = &Reserved> {
        self.of(None).filter(|one| one.kind == StepId::TRAIN)
    }

    fn events(&self, unit: Unit, run: Option<RunId>, more: &[Charge]) -> Vec<Event> {
        let recovered = self.recovered.iter().flat_map(|one| one.charges.iter().copied());
        let charges = self.of(run).flat_map(Reserved::true_charges).chain(recovered);
        let mut counts: Vec<(Mechanism, u64)> = Vec::new();
        for charge in charges.chain(more.iter().copied()).filter(|charge| charge.unit == unit) {
            let (mechanism, count) = charge.as_zero_out();
            match counts.iter_mut().find(|(known, _)| *known == mechanism) {
                Some((_, total)) => *total = total.saturating_add(count),
                None => counts.push((mechanism, count)),
            }
        }
        counts.into_iter().map(|(mechanism, count)| Event::new(mechanism, count).unwrap()).collect()
    }

    /// Answers in all, and those of them that a promise covers.
    fn counts(&self, unit: Unit, run: Option<RunId>) -> (usize, usize) {
        let protects = |one: &&Reserved| {
            let privacy = &one.privacy;
            one.kind == StepId::TRAIN
                && match unit {
                    Unit::Client => privacy.central.is_some() || privacy.local.is_some(),
                    Unit::Example => privacy.examples.is_some(),
                }
        };
        (self.of(run).count(), self.of(run).filter(protects).count())
    }

    fn runs(&self) -> BTreeMap<(Digest, RunId), (usize, usize, Vec<f64>)> {
        let mut runs: BTreeMap<(Digest, RunId), (usize, usize, Vec<f64>)> = BTreeMap::new();
        for one in self.open.values() {
            let (tasks, seeded, deltas) = runs.entry((one.federation, one.run)).or_default();
            *tasks += 1;
            *seeded += usize::from(one.is_seeded);
            deltas.extend(one.privacy.central.as_ref().map(|central| central.delta));
            deltas.extend(one.privacy.local.map(|local| local.delta));
            deltas.extend(one.privacy.examples.map(|examples| examples.delta));
        }
        runs
    }

    fn origin_of(&self, run: RunId) -> Option<Origin> {
        let of = |one: &Reserved| Origin { federation: one.federation, run, promise: one.privacy.clone() };
        let mut origins = self.trained().filter(|one| one.run == run).map(of);
        let first = origins.next()?;
        origins.all(|other| other == first).then_some(first)
    }

    /// What the noise of the server costs `task`, or that its round is over.
    fn price_of_central(&self, task: &Task, federation: Digest) -> Result<bool, Round> {
        let id = task.id;
        let same_run = |one: &&Reserved| one.federation == federation && one.run == id.run;
        let latest = self.trained().filter(same_run).map(|one| one.round).max();
        if let Some(latest) = latest.filter(|latest| !task.spec.privacy.is_none() && id.round < *latest) {
            return Err(latest);
        }
        let Some(central) = &task.spec.privacy.central else { return Ok(true) };
        let any_round = central.noise != NoiseCorrelation::Independent;
        Ok(self
            .trained()
            .filter(same_run)
            .any(|one| (any_round || one.round == id.round) && one.privacy.central.as_ref() == Some(central)))
    }
}

/// One step of a ledger's life.
#[derive(Clone, Debug)]
enum Step {
    /// Promise, run, round, federation, kind, whether with a seed, what it costs (as the account says, or as an older release wrote), when.
    Reserve(usize, u64, u32, usize, usize, bool, Option<Vec<usize>>, u64),
    /// One of what is open, counted from the newest.
    Cancel(usize),
    /// Lost records, and what they cost.
    Recover(u64, Vec<usize>, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let charges = || prop::collection::vec(0_usize..6, 0..4);
    let at = 0_u64..4 * 86_400;
    let reserve = (
        0_usize..8,
        0_u64..3,
        0_u32..6,
        0_usize..2,
        0_usize..4,
        any::<bool>(),
        prop::option::of(charges()),
        at.clone(),
    );
    let reserve = reserve.prop_map(|(promise, run, round, federation, kind, seed, charges, at)| {
        Step::Reserve(promise, run, round, federation, kind, seed, charges, at)
    });
    let recover = (0_u64..20, charges(), at).prop_map(|(lost, charges, at)| Step::Recover(lost, charges, at));
    prop::collection::vec(
        prop_oneof![8 => reserve, 4 => (0_usize..50).prop_map(Step::Cancel), 1 => recover],
        1..40,
    )
}

fn promises() -> Vec<PrivacySpec> {
    let banded = NoiseCorrelation::Banded { weights: vec![1 << 18] };
    let mut weaker = central(NoiseCorrelation::Independent);
    weaker.central.as_mut().unwrap().noise_multiplier = Positive::new(0.5).unwrap();
    let both = PrivacySpec { local: local(1e6).local, ..central(NoiseCorrelation::Independent) };
    vec![
        PrivacySpec::default(),
        central(NoiseCorrelation::Independent),
        central(NoiseCorrelation::Tree),
        central(banded),
        local(1e6),
        examples(1e6),
        weaker,
        both,
    ]
}

/// Charges of which some are the same loss written otherwise, and some would not fit together into a number.
fn charge(which: usize) -> Charge {
    let gaussian = |noise_multiplier| Mechanism::Gaussian { noise_multiplier };
    let (unit, relation, mechanism, count) = match which {
        0 => (Unit::Client, Relation::ZeroOut, gaussian(2.0), 1),
        1 => (Unit::Client, Relation::ReplaceOne, gaussian(4.0), 3),
        2 => (Unit::Client, Relation::ZeroOut, gaussian(1.5), u64::MAX - 1),
        3 => (Unit::Example, Relation::ZeroOut, POISSON.mechanism(1.0), 30),
        4 => (Unit::Example, Relation::ZeroOut, gaussian(1.0), 7),
        _ => (Unit::Example, Relation::ZeroOut, gaussian(2.0), u64::MAX / 2 + 1),
    };
    Charge { unit, relation, event: Event::new(mechanism, count).unwrap() }
}

fn federation(which: usize) -> Digest {
    Digest::of(&[which as u8])
}

fn task(promise: &PrivacySpec, run: u64, round: u32, kind: usize, seeded: bool) -> Task {
    let trains = private(round, promise.clone());
    let mut task = if kind > 0 {
        trains
    } else {
        let model = std::sync::Arc::new(Parameters::new(vec![0.0; 3]));
        Task { spec: trains.spec, ..plain_task(round, Work::Evaluate { model }) }
    };
    task.id.run = RunId(run);
    task.seed = seeded.then(|| Seed::from_number(1));
    task
}

fn releases(task: &Task) -> Option<ExampleReleases> {
    task.spec.privacy.examples.map(|_| POISSON)
}

fn price(account: &SiteAccount, task: &Task, federation: Digest) -> Price {
    account.charges(task, releases(task), federation).map_err(|error| error.to_string())
}

/// The record of a step; `None` for a cancellation where nothing is open.
fn entry(step: &Step, account: &SiteAccount, plain: &PlainAccount) -> Option<Entry> {
    let charges = |named: &[usize]| named.iter().map(|which| charge(*which)).collect();
    Some(match step {
        Step::Reserve(promise, run, round, to, kind, seeded, cost, at) => {
            let (task, to) = (task(&promises()[*promise], *run, *round, *kind, *seeded), federation(*to));
            let cost = match cost {
                Some(named) => charges(named),
                None => price(account, &task, to).unwrap_or_default(),
            };
            Entry::of(&task, cost, to, Time::from_micros(at * 1_000_000))
        }
        Step::Cancel(back) => {
            let open = plain.open.keys().rev().nth(back % plain.open.len().max(1))?;
            Entry::cancelling(*open, Time::ZERO)
        }
        Step::Recover(lost, named, at) => {
            let at = Time::from_micros(at * 1_000_000);
            Entry::recovered(Vec::new(), *lost, charges(named), Vec::new(), at)
        }
    })
}

/// Every question that a task, a policy, a report or a recovery asks.
fn answers_as_the_plain_one(account: &SiteAccount, plain: &PlainAccount) -> Result<(), TestCaseError> {
    let runs: Vec<Option<RunId>> = [None].into_iter().chain((0..4).map(|run| Some(RunId(run)))).collect();
    for unit in [Unit::Client, Unit::Example] {
        for run in &runs {
            let more = [charge(0), charge(3)];
            prop_assert_eq!(account.events(unit, *run, &more), plain.events(unit, *run, &more));
            prop_assert_eq!(account.events(unit, *run, &[]), plain.events(unit, *run, &[]));
            prop_assert_eq!(account.counts(unit, *run), plain.counts(unit, *run));
        }
    }
    let found: BTreeMap<_, _> =
        account.runs().into_iter().map(|one| ((one.federation, one.run), one)).collect();
    let expected = plain.runs();
    prop_assert!(found.keys().eq(expected.keys()));
    for (run, (tasks, seeded, deltas)) in expected {
        let delta = deltas.into_iter().reduce(f64::min);
        prop_assert_eq!((found[&run].tasks, found[&run].seeded, found[&run].delta), (tasks, seeded, delta));
    }
    prop_assert!(account.trained().eq(plain.trained().map(|one| (one.run, one.round))));
    for run in (0..4).map(RunId) {
        prop_assert_eq!(account.origin_of(run), plain.origin_of(run));
    }
    for place in 0..50 {
        prop_assert_eq!(account.open_from(place), plain.open.range(place..).count() as u64);
        prop_assert_eq!(account.open.is_open(place), plain.open.contains_key(&place));
    }
    let recovered = plain.recovered.iter().flat_map(|one| one.charges.iter().copied());
    let charges: Vec<Charge> =
        plain.open.values().flat_map(Reserved::true_charges).chain(recovered).collect();
    prop_assert_eq!(account.all_charges(), charges);
    let (history, day) = (account.history(), 24 * 3600 * 1_000_000);
    prop_assert_eq!(history.attempts(), plain.attempts.len());
    for now in [0, day / 2, day, 3 * day, 5 * day] {
        let now = Time::from_micros(now);
        let ago = plain.attempts.iter().map(|one| (now - one.at).as_micros() as u64);
        prop_assert_eq!(history.of_the_day(now), ago.clone().filter(|ago| *ago < day).count());
        prop_assert_eq!(history.since_the_last(now).map(|ago| ago.as_micros() as u64), ago.min());
    }
    Ok(())
}

/// What the next task of every kind would cost.
fn prices_as_the_plain_one(account: &SiteAccount, plain: &PlainAccount) -> Result<(), TestCaseError> {
    for promise in promises() {
        for (run, round, to) in [(0, 3, 0), (1, 2, 1), (2, 5, 0), (3, 1, 0)] {
            let (task, to) = (task(&promise, run, round, 1, false), federation(to));
            let found = account.charges(&task, releases(&task), to);
            match (plain.price_of_central(&task, to), found) {
                (Err(latest), Err(PayError::Past { latest: found, .. })) => prop_assert_eq!(latest, found),
                (Ok(is_paid), Ok(charges)) => {
                    let others =
                        usize::from(promise.local.is_some()) + usize::from(promise.examples.is_some());
                    let expected = usize::from(promise.central.is_some() && !is_paid) + others;
                    prop_assert_eq!(charges.len(), expected);
                }
                (expected, found) => prop_assert!(false, "{:?} and {:?}", expected, found),
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if std::env::var_os("CONSORTIA_THOROUGH").is_some() { 3000 } else { 60 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn an_account_that_counts_as_records_come_answers_as_one_that_walks_through_them(steps in steps()) {
        let (mut account, mut plain) = (SiteAccount::default(), PlainAccount::default());
        let paper = Paper::default();
        let mut writer = ChainWriter::new(Chain::new(), paper.clone());
        for step in steps {
            let Some(entry) = entry(&step, &account, &plain) else { continue };
            let sequence = writer.append(&entry).unwrap().sequence;
            account.book(sequence, entry.clone());
            plain.book(sequence, entry);
            answers_as_the_plain_one(&account, &plain)?;
            prices_as_the_plain_one(&account, &plain)?;
        }
        prop_assert_eq!(&SiteAccount::read(&paper.text()).unwrap(), &account);
    }
}
