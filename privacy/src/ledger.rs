//! The book of what has been released from one population, and the budget that pays for it.
//!
//! Privacy is money: a release exists only if a [`Permit`] was spent on it, and only a ledger that can still pay gives a
//! permit. What is charged are events, never epsilons: whenever the book is opened, every epsilon is computed anew from
//! them. The book is a [`crate::chain`]: append-only, and no record can be changed unseen.
//!
//! Secret sampling is counted only where it is declared: [`Ledger::declare`] says of a run that nobody outside the server can
//! know its cohorts. A run of which nothing is declared counts as if everybody knew them.
//!
//! ```text
//! reserve --> permit --> the release --> spend      the permit's reservation becomes a charge
//!    |           '-----> no release  --> cancel     the reservation is given back
//!    '--> refused: the budget cannot pay
//! ```
//!
//! A reservation counts as spent until it is cancelled. Whoever keeps the book writes each [`Link`] to disk before acting
//! on it, and the link of a spending in the same transaction as the release; then a reservation found open after a crash
//! is known to have released nothing and may be cancelled ([`Ledger::open_reservations`]). No time, no file and no
//! network is known here.

mod dearest;
mod permit;
mod records;

pub use permit::{Permit, PermitError};
pub use records::{
    Charge, Cohorts, Composition, Conduct, Epsilons, Noised, Record, Release, RunCharge, SiteMetrics, Terms,
    Unit,
};

use std::collections::BTreeMap;

use crate::accounting::{Accountant, AccountingError, Epsilon, Event, Figure, Relation};
use crate::chain::{Chain, ChainError, Digest, Link};
use crate::noise::Provenance;

/// The version of the records written by this code.
pub const LEDGER_VERSION: u32 = 1;

/// Why a book cannot be opened or written.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The records are no chain, or not understood.
    #[error("the ledger is damaged: {0}; restore it from a backup, no budget can be trusted without it")]
    Chain(#[from] ChainError),
    /// Records that contradict each other.
    #[error("the ledger contradicts itself at record {sequence}: {message}")]
    Contradiction {
        /// The record.
        sequence: u64,
        /// What is wrong.
        message: String,
    },
    /// Terms that mean nothing.
    #[error("{name} is {value}, outside {range}; correct it")]
    Terms {
        /// What it is.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
    /// The book was opened on other terms.
    #[error(
        "population `{population}` has a budget of epsilon {} at delta {} for {} ({}), and this asks for epsilon {} at delta {} \
         for {} ({}); a budget is not changed afterwards: keep its terms, or name another population",
        Figure(.reserved.epsilon_max), Figure(.reserved.delta), .reserved.unit, .reserved.relation,
        Figure(.asked.epsilon_max), Figure(.asked.delta), .asked.unit, .asked.relation
    )]
    OtherTerms {
        /// Whose book it is.
        population: String,
        /// The terms in the book.
        reserved: Box<Terms>,
        /// The terms asked for.
        asked: Box<Terms>,
    },
    /// No accountant has a bound.
    #[error(transparent)]
    Accounting(#[from] AccountingError),
}

/// Why there is no permit.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ReserveError {
    /// The budget cannot pay.
    #[error(
        "the privacy budget of `{population}` is exhausted: epsilon is {:.4} and the next release would bring it to \
         {:.4}, above {} at delta {}",
        Figure(*spent),
        Figure(*next),
        Figure(*epsilon_max),
        Figure(*delta)
    )]
    Exhausted {
        /// Whose budget.
        population: String,
        /// Epsilon so far.
        spent: f64,
        /// Epsilon with the release.
        next: f64,
        /// The budget.
        epsilon_max: f64,
        /// At this delta.
        delta: f64,
        /// The record of this refusal, to be kept.
        link: Box<Link>,
    },
    /// No accountant has a bound.
    #[error(transparent)]
    Accounting(#[from] AccountingError),
    /// A charge that is none.
    #[error("invalid reservation: {releases} releases by {mechanism} at noise multiplier {noise_multiplier}")]
    Charge {
        /// How many.
        releases: u64,
        /// Which mechanism.
        mechanism: &'static str,
        /// Its noise.
        noise_multiplier: f64,
    },
}

/// What was charged to one run under one set of rules.
#[derive(Clone, Debug, PartialEq)]
struct Account {
    run: String,
    charge: Charge,
    spent: u64,
    reserved: u64,
}

/// A reservation that is neither spent nor cancelled.
#[derive(Clone, Debug, PartialEq)]
pub struct Reservation {
    /// The run.
    pub run: String,
    /// The round.
    pub round: u32,
    /// What it would pay for.
    pub charge: Charge,
    /// How many releases.
    pub releases: u64,
}

/// The book of one population.
#[derive(Clone, Debug, PartialEq)]
pub struct Ledger {
    terms: Terms,
    chain: Chain,
    accounts: Vec<Account>,
    open: Vec<Reservation>,
    declared: BTreeMap<String, Conduct>,
    provenance: Provenance,
    accountant: Accountant,
}

impl Ledger {
    /// A new book, and its first record.
    ///
    /// # Errors
    /// [`LedgerError::Terms`] for a budget or delta out of range.
    pub fn found(terms: Terms) -> Result<(Self, Link), LedgerError> {
        terms.check_promise()?;
        let mut ledger = Self {
            terms: terms.clone(),
            chain: Chain::new(),
            accounts: vec![],
            open: vec![],
            declared: BTreeMap::new(),
            provenance: Provenance::Entropy,
            accountant: Accountant::default(),
        };
        let link = ledger.chain.append(&Record::Opened { version: LEDGER_VERSION, terms });
        Ok((ledger, link))
    }

    /// Opens a book that was written before: checks the chain and replays every record.
    ///
    /// # Errors
    /// [`LedgerError`] names the first record that was changed, removed or makes no sense.
    pub fn replay<'a>(links: impl IntoIterator<Item = &'a Link>) -> Result<Self, LedgerError> {
        let mut ledger: Option<Self> = None;
        for link in links {
            let record: Record = link.read()?;
            let sequence = link.sequence;
            let wrong = |message: String| LedgerError::Contradiction { sequence, message };
            match (&mut ledger, record) {
                (None, Record::Opened { version: LEDGER_VERSION, terms }) => {
                    terms.check()?;
                    let mut chain = Chain::new();
                    chain.follow(link)?;
                    ledger = Some(Self {
                        terms,
                        chain,
                        accounts: vec![],
                        open: vec![],
                        declared: BTreeMap::new(),
                        provenance: Provenance::Entropy,
                        accountant: Accountant::default(),
                    });
                }
                (None, _) => return Err(wrong("a book begins with its terms, in a known version".into())),
                (Some(_), Record::Opened { .. }) => return Err(wrong("it is opened twice".into())),
                (Some(ledger), record) => {
                    ledger.chain.follow(link)?;
                    ledger.book(record).map_err(wrong)?;
                }
            }
        }
        let empty = || LedgerError::Contradiction { sequence: 0, message: "there is no record".into() };
        ledger.ok_or_else(empty)
    }

    /// Whose book it is, and its budget.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Checks that the book was opened on these terms.
    ///
    /// # Errors
    /// [`LedgerError::OtherTerms`].
    pub fn agree(&self, asked: &Terms) -> Result<(), LedgerError> {
        if self.terms == *asked {
            return Ok(());
        }
        let (reserved, asked) = (Box::new(self.terms.clone()), Box::new(asked.clone()));
        Err(LedgerError::OtherTerms { population: reserved.population.clone(), reserved, asked })
    }

    /// Whether nobody can predict the noise of any release in the book.
    pub fn is_secure(&self) -> bool {
        self.provenance == Provenance::Entropy
    }

    /// How many records there are.
    pub fn len(&self) -> u64 {
        self.chain.len()
    }

    /// Whether there is no record; never so.
    pub fn is_empty(&self) -> bool {
        self.chain.is_empty()
    }

    /// The hash of the last record.
    pub fn head(&self) -> Digest {
        self.chain.head()
    }

    /// What was released, as an accountant understands it; with the open reservations, which count until cancelled. It holds
    /// against those who do not see who took part in runs whose cohorts are declared secret. Sampled releases of clients of
    /// any other run count without their sampling.
    pub fn events(&self) -> Vec<Event> {
        self.run_charges().into_iter().map(|charged| charged.event).collect()
    }

    /// [`Ledger::events`] for an adversary who sees who took part in every round, whatever was declared.
    pub fn events_with_known_cohorts(&self) -> Vec<Event> {
        let of = |charged: RunCharge| {
            Event::new(charged.event.mechanism().with_known_cohort(), charged.event.count()).ok()
        };
        self.run_charges().into_iter().filter_map(of).collect()
    }

    /// What each run has charged, in the order of its first charges.
    pub fn run_charges(&self) -> Vec<RunCharge> {
        let of = |account: &Account| {
            let Account { run, charge, spent, reserved } = account.clone();
            let conduct = self.declared.get(&run).copied();
            let releases = spent.saturating_add(reserved);
            let event = self.counted(&run, &charge).event(releases)?;
            Some(RunCharge { run, conduct, charge, releases, event })
        };
        self.accounts.iter().filter_map(of).collect()
    }

    /// As what a charge of `run` counts. A site's draws among its own records are its own: they need no declaration.
    fn counted(&self, run: &str, charge: &Charge) -> Charge {
        let is_secret = self.declared.get(run).is_some_and(|conduct| conduct.cohorts == Cohorts::Secret);
        match self.terms.unit {
            Unit::Client if !is_secret => {
                Charge { mechanism: charge.mechanism.with_known_cohort(), ..charge.clone() }
            }
            Unit::Client | Unit::Example => charge.clone(),
        }
    }

    /// What was declared of a run.
    pub fn conduct(&self, run: &str) -> Option<Conduct> {
        self.declared.get(run).copied()
    }

    /// Declares what a statement must know of `run`; `None` when the book says so already. Amplification by sampling is
    /// counted only for a run whose cohorts are declared secret, and no declaration takes an earlier, worse one back.
    pub fn declare(&mut self, run: &str, conduct: Conduct) -> Option<Link> {
        let before = self.declared.get(run).copied();
        let conduct = before.map_or(conduct, |before| before.worse(conduct));
        if before == Some(conduct) {
            return None;
        }
        self.declared.insert(run.to_owned(), conduct);
        Some(self.chain.append(&Record::Declared { run: run.to_owned(), conduct }))
    }

    /// Releases that were spent on, in all.
    pub fn releases(&self) -> u64 {
        self.accounts.iter().fold(0, |sum: u64, account| sum.saturating_add(account.spent))
    }

    /// Epsilon of everything charged, at the budget's delta.
    ///
    /// # Errors
    /// [`AccountingError`] when no accountant has a bound.
    pub fn epsilon(&self) -> Result<Epsilon, AccountingError> {
        let events = self.events();
        let Terms { relation, delta, .. } = self.terms;
        match self.accountant.recall(&events, relation, delta) {
            Some(epsilon) => Ok(epsilon),
            None => self.accountant.clone().epsilon(&events, relation, delta),
        }
    }

    /// [`Ledger::epsilon`] for an adversary who sees who took part in every round, under the relation that is left for it:
    /// whether a client is there at all it sees, so that `add_or_remove_one` becomes `zero_out`.
    ///
    /// # Errors
    /// [`AccountingError`] when no accountant has a bound.
    pub fn epsilon_with_known_cohorts(&self) -> Result<(Relation, Epsilon), AccountingError> {
        let relation = self.terms.relation.with_known_cohort();
        let events = self.events_with_known_cohorts();
        let epsilon = self.accountant.clone().epsilon(&events, relation, self.terms.delta)?;
        Ok((relation, epsilon))
    }

    /// Reservations that are neither spent nor cancelled.
    pub fn open_reservations(&self) -> &[Reservation] {
        &self.open
    }

    /// Reserves `releases` releases under `charge` for `round` of `run`. The link must be on disk before anything else
    /// happens.
    ///
    /// # Errors
    /// [`ReserveError::Exhausted`] with the refusal's own link, to be kept as well.
    pub fn reserve(
        &mut self,
        run: &str,
        round: u32,
        charge: &Charge,
        releases: u64,
    ) -> Result<(Permit, Link), ReserveError> {
        let noise_multiplier = charge.mechanism.noise_multiplier();
        if releases == 0 || noise_multiplier <= 0.0 || charge.event(1).is_none() {
            let mechanism = charge.mechanism.name();
            return Err(ReserveError::Charge { releases, mechanism, noise_multiplier });
        }
        let mut after = self.clone();
        grow(&mut after.account(run, charge).reserved, releases);
        let reservation = Reservation { run: run.to_owned(), round, charge: charge.clone(), releases };
        let next = after.within_budget()?;
        let Reservation { run, charge, .. } = reservation.clone();
        if let Err(next) = next {
            let record = Record::Refused { run, round, charge, releases, epsilon: next };
            let link = Box::new(self.chain.append(&record));
            let spent = self.epsilon()?.best();
            let Terms { population, epsilon_max, delta, .. } = self.terms.clone();
            return Err(ReserveError::Exhausted { population, spent, next, epsilon_max, delta, link });
        }
        after.open.push(reservation.clone());
        *self = after;
        let link = self.chain.append(&Record::Reserved { run, round, charge, releases });
        Ok((Permit::new(reservation), link))
    }

    /// Books that the permit's release happened. To be stored in the same transaction as the release.
    ///
    /// # Errors
    /// [`LedgerError::Contradiction`] for a permit that is not of this book; [`LedgerError::Accounting`].
    pub fn spend(&mut self, permit: Permit, release: Release) -> Result<(Epsilon, Link), LedgerError> {
        let (reservation, noised) = permit.into_parts();
        let Reservation { run, round, charge, releases } = reservation;
        let mut after = self.clone();
        let record = Record::Spent { run, round, charge, releases, noised, release, epsilon: None };
        let sequence = self.chain.len();
        after.book(record.clone()).map_err(|message| LedgerError::Contradiction { sequence, message })?;
        let Terms { relation, delta, .. } = self.terms;
        let epsilon = after.accountant.epsilon(&after.events(), relation, delta)?;
        let record = record.with_epsilon(Epsilons::from(epsilon));
        let link = after.chain.append(&record);
        *self = after;
        Ok((epsilon, link))
    }

    /// Books that the permit's release did not happen: its reservation is given back.
    ///
    /// # Errors
    /// The permit, when something was noised with it already: it can only be spent then.
    pub fn cancel(&mut self, permit: Permit) -> Result<Link, Box<Permit>> {
        if permit.is_touched() {
            return Err(Box::new(permit));
        }
        let (reservation, _) = permit.into_parts();
        Ok(self.give_back(reservation))
    }

    /// Books that a reservation found open after a crash has released nothing. Only for a book whose spendings are stored
    /// in the transaction of their release.
    pub fn settle(&mut self) -> Vec<Link> {
        let open = std::mem::take(&mut self.open);
        self.open.clone_from(&open);
        open.into_iter().map(|reservation| self.give_back(reservation)).collect()
    }

    /// Books releases that have been made and that this book does not know of, also beyond the budget: a budget that
    /// cannot pay for them any more does not undo them, and pays for nothing else then.
    ///
    /// # Errors
    /// [`ReserveError::Charge`] for a charge that books nothing.
    pub fn book_made(
        &mut self,
        run: &str,
        charge: &Charge,
        releases: u64,
    ) -> Result<[Link; 2], ReserveError> {
        let noise_multiplier = charge.mechanism.noise_multiplier();
        if releases == 0 || noise_multiplier <= 0.0 || charge.event(1).is_none() {
            let mechanism = charge.mechanism.name();
            return Err(ReserveError::Charge { releases, mechanism, noise_multiplier });
        }
        let (run, round, charge) = (run.to_owned(), 1, charge.clone());
        let reserved = Record::Reserved { run: run.clone(), round, charge: charge.clone(), releases };
        let (noised, release, epsilon) = (None, Release::default(), None);
        let spent = Record::Spent { run, round, charge, releases, noised, release, epsilon };
        Ok([reserved, spent].map(|record| {
            self.book(record.clone()).expect("a reservation is spent right after it is made");
            self.chain.append(&record)
        }))
    }

    fn give_back(&mut self, reservation: Reservation) -> Link {
        let Reservation { run, round, charge, releases } = reservation;
        let record = Record::Cancelled { run, round, charge, releases };
        // A reservation of another book has nothing to give back here; the record says so all the same.
        let _ = self.book(record.clone());
        self.chain.append(&record)
    }

    /// The account of `run` under `charge`.
    fn account(&mut self, run: &str, charge: &Charge) -> &mut Account {
        let known = |account: &Account| account.run == run && account.charge == *charge;
        let at = self.accounts.iter().position(known).unwrap_or_else(|| {
            let (run, charge) = (run.to_owned(), charge.clone());
            self.accounts.push(Account { run, charge, spent: 0, reserved: 0 });
            self.accounts.len() - 1
        });
        &mut self.accounts[at]
    }

    /// `Err` with epsilon when all that is charged is above the budget. The tighter accountant is asked only when the
    /// faster one says no.
    fn within_budget(&mut self) -> Result<Result<(), f64>, AccountingError> {
        let Terms { relation, delta, epsilon_max, .. } = self.terms;
        let events = self.events();
        if self.accountant.rdp(&events, relation, delta).is_ok_and(|epsilon| epsilon <= epsilon_max) {
            return Ok(Ok(()));
        }
        let epsilon = self.accountant.epsilon(&events, relation, delta)?.best();
        Ok(if epsilon <= epsilon_max { Ok(()) } else { Err(epsilon) })
    }

    /// Takes a record into the accounts.
    fn book(&mut self, record: Record) -> Result<(), String> {
        match record {
            Record::Opened { .. } => Err("it is opened twice".to_owned()),
            Record::Refused { .. } => Ok(()),
            Record::Declared { run, conduct } => {
                let before = self.declared.get(&run).copied();
                self.declared.insert(run, before.map_or(conduct, |before| before.worse(conduct)));
                Ok(())
            }
            Record::Reserved { run, round, charge, releases } => {
                if releases == 0 || charge.event(1).is_none() {
                    return Err("it reserves nothing".to_owned());
                }
                grow(&mut self.account(&run, &charge).reserved, releases);
                self.open.push(Reservation { run, round, charge, releases });
                Ok(())
            }
            Record::Spent { run, round, charge, releases, noised, .. } => {
                if let Some(noised) = noised {
                    self.provenance = self.provenance.worse(noised.provenance);
                }
                self.close(&Reservation { run: run.clone(), round, charge: charge.clone(), releases })?;
                grow(&mut self.account(&run, &charge).spent, releases);
                Ok(())
            }
            Record::Cancelled { run, round, charge, releases } => {
                self.close(&Reservation { run, round, charge, releases })
            }
        }
    }

    fn close(&mut self, reservation: &Reservation) -> Result<(), String> {
        let at = self.open.iter().position(|open| open == reservation);
        let at = at.ok_or_else(|| {
            format!("round {} of run {} was never reserved", reservation.round, reservation.run)
        })?;
        self.open.remove(at);
        // Added up anew: a sum that met its bound has forgotten what it is made of.
        let Reservation { run, charge, .. } = reservation;
        let still = self.open.iter().filter(|open| open.run == *run && open.charge == *charge);
        let reserved = still.fold(0, |sum: u64, open| sum.saturating_add(open.releases));
        self.account(run, charge).reserved = reserved;
        Ok(())
    }
}

/// Counts on, at most to the largest number: what a book says is not trusted to have a sum.
fn grow(count: &mut u64, by: u64) {
    *count = count.saturating_add(by);
}

#[cfg(test)]
mod tests;
