//! What a ledger books for records that it has lost: what other books know of them, and for the rest the guess that costs most.
//!
//! It never guesses in favour of whoever has lost something. Of a unit for which no record gives an example nothing can be guessed: its
//! loss has no bound then, and no budget with a limit pays for it any more.

use std::collections::BTreeMap;

use privacy::accounting::Event;
use privacy::chain::ChainError;
use privacy::ledger::Unit;
use protocol::Time;
use serde_json::value::RawValue;

use super::account::SiteAccount;
use super::entry::{Charge, Entry};
use super::history::LedgerHead;

/// Records that a ledger lacks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Losses {
    /// The heads by which other books know them.
    pub(crate) replaced: Vec<LedgerHead>,
    /// What those cost of which a copy is left that cannot stand in its own place.
    pub(crate) known: Vec<Charge>,
    /// How many more there were.
    pub(crate) unknown: u64,
    /// Whether there may have been any number of others, so that nothing bounds what they cost.
    pub(crate) is_uncounted: bool,
}

/// What the records with these places and texts cost together.
///
/// # Errors
/// [`ChainError::Record`] for one that this code does not understand.
pub(crate) fn charges_in<'a>(
    records: impl IntoIterator<Item = (u64, &'a RawValue)>,
) -> Result<Vec<Charge>, ChainError> {
    let mut charges: BTreeMap<u64, Vec<Charge>> = BTreeMap::new();
    for (sequence, text) in records {
        let wrong = |message: String| ChainError::Record { sequence, message };
        let entry: Entry = serde_json::from_str(text.get()).map_err(|error| wrong(error.to_string()))?;
        if let Some(fault) = entry.fault() {
            return Err(wrong(fault));
        }
        match entry {
            Entry::Reserved(reserved) => drop(charges.insert(sequence, reserved.true_charges().collect())),
            Entry::Cancelled { reservation, .. } => drop(charges.remove(&reservation)),
            Entry::Recovered(recovered) => drop(charges.insert(sequence, recovered.charges)),
        }
    }
    Ok(charges.into_values().flatten().collect())
}

/// The record that books `losses` in the ledger of `account`, and what it says of each unit. Epsilons are compared at `delta`.
pub(crate) fn lost_records(
    account: &SiteAccount,
    losses: Losses,
    delta: f64,
    now: Time,
) -> (impl serde::Serialize + use<>, Vec<Unit>) {
    let Losses { replaced, known, unknown, is_uncounted } = losses;
    let (mut charges, mut unbounded) = (summed(&known), Vec::new());
    if is_uncounted {
        unbounded.extend([Unit::Client, Unit::Example]);
    } else if unknown > 0 {
        let examples: Vec<Charge> = account.all_charges().into_iter().chain(known.iter().copied()).collect();
        for unit in [Unit::Client, Unit::Example] {
            match dearest(account, unit, &examples, &known, unknown, delta) {
                Some(charge) => charges.push(charge),
                None => unbounded.push(unit),
            }
        }
    }
    (Entry::recovered(replaced, unknown, charges, unbounded.clone(), now), unbounded)
}

/// Charges of the same kind as one: a record has one line, however many it stands for.
fn summed(charges: &[Charge]) -> Vec<Charge> {
    let mut sums: Vec<Charge> = Vec::new();
    for charge in charges {
        let is_same = |sum: &&mut Charge| {
            (sum.unit, sum.relation, sum.event.mechanism())
                == (charge.unit, charge.relation, charge.event.mechanism())
        };
        match sums.iter_mut().find(is_same) {
            Some(sum) => {
                let count = sum.event.count().saturating_add(charge.event.count());
                sum.event = Event::new(sum.event.mechanism(), count).unwrap_or(sum.event);
            }
            None => sums.push(*charge),
        }
    }
    sums
}

/// `times` the charge that raises epsilon most among those of which there is an example; `None` without one.
fn dearest(
    account: &SiteAccount,
    unit: Unit,
    examples: &[Charge],
    known: &[Charge],
    times: u64,
    delta: f64,
) -> Option<Charge> {
    let mut tried: Vec<Charge> = Vec::new();
    for charge in examples.iter().filter(|charge| charge.unit == unit) {
        if !tried.contains(charge) {
            tried.push(*charge);
        }
    }
    let mut dearest: Option<(f64, Charge)> = None;
    for charge in tried {
        let count = charge.event.count().saturating_mul(times);
        let event = Event::new(charge.event.mechanism(), count).ok()?;
        let many = Charge { event, ..charge };
        let together: Vec<Charge> = known.iter().copied().chain([many]).collect();
        let events = account.events(unit, None, &together);
        let epsilon = account.answers.best(&events, delta, f64::NEG_INFINITY).ok()?;
        if dearest.is_none_or(|(most, _)| epsilon > most) {
            dearest = Some((epsilon, many));
        }
    }
    dearest.map(|(_, charge)| charge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::tests::{POISSON, Paper, examples, ledger, local, private};
    use crate::ledger::{PayError, SiteLedger};
    use privacy::accounting::Mechanism;
    use privacy::chain::{Chain, ChainWriter, Digest, read_lines};
    use protocol::PrivacySpec;

    fn noisy(noise_multiplier: f64) -> PrivacySpec {
        let mut privacy = local(1000.0);
        let noise_multiplier = protocol::Positive::new(noise_multiplier).unwrap();
        privacy.local.as_mut().unwrap().noise_multiplier = noise_multiplier;
        privacy
    }

    /// A ledger with trainings of these noise multipliers, then the losses.
    fn with_losses(multipliers: &[f64], unknown: u64) -> (SiteLedger<Paper>, Vec<Unit>) {
        let paper = Paper::default();
        let mut book = ledger(&paper);
        for (round, noise) in (1..).zip(multipliers) {
            let _ = book.reserve(&private(round, noisy(*noise)), None, false, None, Time::ZERO).unwrap();
        }
        let account = SiteAccount::read(&paper.text()).unwrap();
        let losses = Losses { unknown, ..Losses::default() };
        let (entry, unbounded) = lost_records(&account, losses, 1e-5, Time::ZERO);
        let chain = read_lines(&paper.text()).unwrap().chain;
        ChainWriter::new(chain, paper.clone()).append(&entry).unwrap();
        (SiteLedger::open(&paper.text(), paper, Digest::of(b"federation")).unwrap(), unbounded)
    }

    #[test]
    fn lost_records_cost_what_would_have_cost_most() {
        let epsilon =
            |book: &SiteLedger<Paper>| book.account().total(Unit::Client, None, 1e-5).unwrap().epsilon.best();
        let (lost, unbounded) = with_losses(&[8.0, 4.0, 6.0], 3);
        let (kept, _) = with_losses(&[8.0, 4.0, 6.0, 4.0, 4.0, 4.0], 0);
        assert_eq!(epsilon(&lost), epsilon(&kept));
        assert_eq!((lost.account().lost(), unbounded), (3, vec![Unit::Example]));
    }

    #[test]
    fn what_is_known_of_many_lost_records_fits_into_one() {
        let charge = |noise_multiplier, count| Charge {
            unit: Unit::Client,
            relation: privacy::accounting::Relation::ReplaceOne,
            event: Event::new(Mechanism::Gaussian { noise_multiplier }, count).unwrap(),
        };
        let known = (0..30_000).map(|place| charge(if place % 3 == 0 { 4.0 } else { 8.0 }, 1)).collect();
        let losses = Losses { known, ..Losses::default() };
        let (entry, _) = lost_records(&SiteAccount::default(), losses, 1e-5, Time::ZERO);
        let paper = Paper::default();
        ChainWriter::new(Chain::new(), paper.clone()).append(&entry).unwrap();
        let account = SiteAccount::read(&paper.text()).unwrap();
        assert_eq!(account.all_charges(), [charge(4.0, 10_000), charge(8.0, 20_000)]);
    }

    #[test]
    fn a_loss_without_an_example_is_paid_by_no_limit() {
        let (mut book, unbounded) = with_losses(&[], 2);
        assert_eq!(unbounded, [Unit::Client, Unit::Example]);
        let total = book.account().total(Unit::Client, None, 1e-5).unwrap();
        assert!(total.epsilon.best().is_infinite() && total.protected == 2);
        let refused = book.reserve(&private(9, local(1e9)), None, false, None, Time::ZERO).unwrap_err();
        assert!(matches!(refused, PayError::Lost { lost: 2, .. }), "{refused}");
        assert!(refused.to_string().contains("2 records of this ledger were lost"));
    }

    /// Ledgers of earlier releases hold charges of seeded runs with their sampling, which the seed gives away.
    #[test]
    fn a_seeded_run_of_an_older_ledger_is_charged_without_its_sampling_where_it_is_lost() {
        let paper = Paper::default();
        let mut book = ledger(&paper);
        let _ = book.reserve(&private(1, examples(1e6)), Some(POISSON), false, None, Time::ZERO).unwrap();
        let kept = read_lines(&paper.text()).unwrap().links;
        let mut chain = Chain::new();
        let older: Vec<_> = kept
            .iter()
            .map(|link| {
                let text = link.record.get().replace("\"rehearsal\":false", "\"rehearsal\":true");
                chain.append(&RawValue::from_string(text).unwrap())
            })
            .collect();
        let known = Mechanism::Gaussian { noise_multiplier: 1.0 };
        let charges = charges_in(older.iter().map(|link| (link.sequence, &*link.record))).unwrap();
        assert_eq!(charges.iter().map(|charge| charge.event.mechanism()).collect::<Vec<_>>(), [known]);
        let text: Vec<u8> = older
            .iter()
            .flat_map(|link| [serde_json::to_vec(link).unwrap(), b"\n".to_vec()].concat())
            .collect();
        let account = SiteAccount::read(&text).unwrap();
        let guessed = account.all_charges();
        assert_eq!(guessed.iter().map(|charge| charge.event.mechanism()).collect::<Vec<_>>(), [known]);
    }

    #[test]
    fn what_was_cancelled_costs_nothing_in_a_copy_either() {
        let paper = Paper::default();
        let mut book = ledger(&paper);
        let reservation =
            book.reserve(&private(1, noisy(4.0)), None, false, None, Time::ZERO).unwrap().unwrap();
        book.cancel(reservation, Time::ZERO).unwrap();
        let _ = book.reserve(&private(2, noisy(5.0)), None, false, None, Time::ZERO).unwrap();
        let links = read_lines(&paper.text()).unwrap().links;
        let charges = charges_in(links.iter().map(|link| (link.sequence, &*link.record))).unwrap();
        assert_eq!(charges.len(), 1);
        let mut chain = Chain::new();
        assert!(charges_in([(0, &*chain.append(&"nonsense").record)]).is_err());
    }
}
