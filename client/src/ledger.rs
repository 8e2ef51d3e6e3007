//! What this site has given away, over all runs and servers, kept on its own disk; and the budgets it does not exceed.
//!
//! A training is reserved before a record is read for it, and cancelled only when it ended before one was: what came of it
//! plays no part. Reserved back or not, it counts where a policy limits how often is trained. What is charged are events and
//! never epsilons. Nothing is believed that a server could gain from: no cohort is secret here, so every round costs what
//! it costs a client that is always asked (sampling rate 1). Two totals are kept, since they protect different things: one
//! for the site as a client (noise at the server or at the site), one for its single records (noise in each gradient
//! step). Trainings without such noise have no epsilon; they are counted and shown, and spend no budget, because no budget
//! could pay for them: the policy decides whether they happen at all.
//!
//! Clients as wholes are counted as if zeroed out. Noise at the site protects against an exchange, which moves an update by
//! twice the norm: it counts there with half its multiplier, which is exact for Gaussian noise.
//!
//! It writes to whatever it is given and opens no file. It trusts no record whose chain is broken.

mod account;
mod answers;
mod entry;
mod history;
#[cfg(feature = "net")]
mod losses;
mod reservations;

use std::io::Write;

use privacy::Permit;
use privacy::accounting::{AccountingError, Event, Figure, Mechanism, Relation};
use privacy::chain::{ChainError, ChainWriter, DamagedLine, Digest, Link, LinkReader, WriteError};
use privacy::ledger::{Composition, ReserveError, Terms, Unit};
use protocol::{Decline, ExamplePrivacy, ExampleReleases, Round, RunId, Task, Time, Work};

pub use account::{RunAccount, SiteAccount, Total};
pub use entry::{Charge, SITE_LEDGER_VERSION};
pub use history::{LedgerHead, LedgerHistory};
#[cfg(feature = "net")]
pub(crate) use losses::{Losses, charges_in, lost_records};

use answers::Answers;
use entry::Entry;
use history::HistoryWriter;

/// Why a site's ledger cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SiteLedgerError {
    /// A line was changed, removed or exchanged.
    #[error("{0}; restore the file, no budget can be trusted without it")]
    Damaged(#[from] DamagedLine),
    /// A record says something else than it may.
    #[error("line {line}: {fault}; restore the file, or use the release that wrote it")]
    Record {
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        fault: ChainError,
    },
    /// A cancellation of what was never reserved, or twice.
    #[error("line {line} cancels record {reservation}, which is not open; restore the file")]
    Cancellation {
        /// The line, from 1.
        line: u64,
        /// What it names.
        reservation: u64,
    },
}

/// Why a task is not paid for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PayError {
    /// A budget is spent.
    #[error(
        "{whose} allows epsilon {} at delta {} for {unit}; it is {:.4}, and this task would make it {:.4}",
        Figure(*epsilon_max), Figure(*delta), Figure(*spent), Figure(*next)
    )]
    Exhausted {
        /// Whose budget: the policy's or the plan's.
        whose: &'static str,
        /// What it protects.
        unit: Unit,
        /// Epsilon so far.
        spent: f64,
        /// Epsilon with the task.
        next: f64,
        /// The budget.
        epsilon_max: f64,
        /// At this delta.
        delta: f64,
    },
    /// The plan protects records and the learner does not say how.
    #[error(
        "the plan protects single records, and the learner does not say what it releases; install a release that does"
    )]
    Unprotected,
    /// Records were lost, and nothing bounds what they cost.
    #[error(
        "{whose} allows epsilon {} for {unit}; {lost} records of this ledger were lost, and nobody knows what they cost: only a budget \
         without a limit can pay", Figure(*epsilon_max)
    )]
    Lost {
        /// Whose budget.
        whose: &'static str,
        /// What it protects.
        unit: Unit,
        /// Records.
        lost: u64,
        /// The budget.
        epsilon_max: f64,
    },
    /// The server goes back.
    #[error(
        "round {round} of run {run} is over: this site has trained in round {latest}; the server has lost rounds, ask its operator for a new run"
    )]
    Past {
        /// The run.
        run: RunId,
        /// What is asked for.
        round: Round,
        /// What was done.
        latest: Round,
    },
    /// No accountant has a bound.
    #[error(transparent)]
    Accounting(#[from] AccountingError),
    /// Numbers that no accountant takes.
    #[error("the plan's privacy is invalid: {0}")]
    Spec(String),
    /// It is not on disk.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What was reserved for one task.
#[derive(Debug)]
#[must_use = "a reservation lets a training begin, and is cancelled when nothing came of it"]
pub struct LedgerReservation {
    sequence: u64,
    /// Whether the same training was charged before, and is charged again.
    pub(crate) is_charged_again: bool,
    /// The right to release noised gradients, where the plan protects records.
    pub(crate) permit: Option<Permit>,
}

impl PayError {
    /// The rule that the audit log names.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Past { .. } => "rounds",
            _ => "budget",
        }
    }

    /// What the server is told.
    pub(crate) fn reason(&self) -> Decline {
        match self {
            Self::Exhausted { .. } | Self::Lost { .. } => Decline::Budget,
            Self::Past { .. } => Decline::Policy,
            Self::Unprotected | Self::Accounting(_) | Self::Spec(_) => Decline::Unsupported,
            Self::Write(_) => Decline::Failed,
        }
    }
}

impl From<ReserveError> for PayError {
    fn from(error: ReserveError) -> Self {
        match error {
            ReserveError::Exhausted { spent, next, epsilon_max, delta, .. } => {
                Self::Exhausted { whose: "the plan", unit: Unit::Example, spent, next, epsilon_max, delta }
            }
            ReserveError::Accounting(error) => Self::Accounting(error),
            other => Self::Spec(other.to_string()),
        }
    }
}

impl LedgerReservation {
    /// The place of its record.
    pub fn record(&self) -> u64 {
        self.sequence
    }
}

/// What follows from the records of a ledger, as they are read one by one.
#[derive(Debug, Default)]
pub(crate) struct LedgerReading {
    pub(crate) account: SiteAccount,
    pub(crate) history: LedgerHistory,
}

impl LedgerReading {
    /// Checks the record that follows those that were read, and counts it.
    pub(crate) fn read_on(&mut self, link: &Link) -> Result<(), SiteLedgerError> {
        self.account.read_on(link)?;
        self.history.push(link);
        Ok(())
    }
}

/// A site's own ledger.
pub struct SiteLedger<W = Box<dyn Write + Send>> {
    account: SiteAccount,
    writer: HistoryWriter<W>,
    federation: Digest,
}

impl<W: Write> SiteLedger<W> {
    /// Goes on with the ledger that `text` holds. `to` takes bytes behind [`privacy::chain::Lines::whole`] of it, and its
    /// `flush` makes them durable. `federation` is the fingerprint of the authority whose servers are obeyed from now on.
    ///
    /// # Errors
    /// [`SiteLedgerError`] names the line. A torn last line is no error: read `text` with [`privacy::chain::read_lines`] to see it,
    /// and cut it off before writing.
    pub fn open(text: &[u8], to: W, federation: Digest) -> Result<Self, SiteLedgerError> {
        let mut read = LedgerReading::default();
        let mut reader = LinkReader::new(text);
        while let Some(link) = reader.next_in_memory()? {
            read.read_on(&link)?;
        }
        Ok(Self::resume(read, ChainWriter::new(reader.chain(), to), federation))
    }

    /// Goes on with a ledger that was read.
    pub(crate) fn resume(read: LedgerReading, writer: ChainWriter<W>, federation: Digest) -> Self {
        let LedgerReading { account, history } = read;
        Self { account, writer: HistoryWriter::new(history, writer), federation }
    }

    /// What has been given away.
    pub fn account(&self) -> &SiteAccount {
        &self.account
    }

    /// The fingerprint of the authority whose servers are obeyed.
    pub(crate) fn federation(&self) -> Digest {
        self.federation
    }

    /// The heads that it has had; it grows with the ledger.
    pub fn history(&self) -> &LedgerHistory {
        self.writer.history()
    }

    /// Books a task, durably, before it is done. `site_budget` is the site's own epsilon and delta, `releases` what the
    /// learner will release of single records, and `tells` whether an answer other than an update says anything.
    /// `None` when nothing is to be reserved.
    ///
    /// # Errors
    /// [`PayError`]; the task must not be done then.
    pub fn reserve(
        &mut self,
        task: &Task,
        releases: Option<ExampleReleases>,
        tells: bool,
        site_budget: Option<(f64, f64)>,
        now: Time,
    ) -> Result<Option<LedgerReservation>, PayError> {
        if !matches!(task.work, Work::Train { .. }) && !tells {
            return Ok(None);
        }
        let (charges, permit) = self.account.price(task, releases, self.federation, site_budget)?;
        let is_charged_again = matches!(task.work, Work::Train { .. })
            && !charges.is_empty()
            && self.account.history().has_trained(task.id.run, task.id.round);
        let entry = Entry::of(task, charges, self.federation, now);
        let sequence = self.writer.append(&entry)?.sequence;
        self.writer.sync()?;
        self.account.book(sequence, entry);
        Ok(Some(LedgerReservation { sequence, is_charged_again, permit }))
    }

    /// Books back a task that ended before a record was read for it.
    ///
    /// # Errors
    /// [`WriteError`]; the reservation stands then.
    pub fn cancel(&mut self, reservation: LedgerReservation, now: Time) -> Result<(), WriteError> {
        let entry = Entry::cancelling(reservation.sequence, now);
        let sequence = self.writer.append(&entry)?.sequence;
        self.writer.sync()?;
        self.account.book(sequence, entry);
        Ok(())
    }
}

impl SiteAccount {
    /// Whether a site with this account would pay for `task`, as [`SiteLedger::reserve`] decides it, with `site_budget` and `releases` as there.
    /// `federation` is the fingerprint of the authority whose server asks. Nothing is reserved.
    ///
    /// # Errors
    /// [`PayError`] says why it would not.
    pub fn would_pay(
        &self,
        task: &Task,
        releases: Option<ExampleReleases>,
        federation: Digest,
        site_budget: Option<(f64, f64)>,
    ) -> Result<(), PayError> {
        self.price(task, releases, federation, site_budget).map(|_| ())
    }

    /// What a task costs that the budgets can pay for, and the right to the releases of its training.
    fn price(
        &self,
        task: &Task,
        releases: Option<ExampleReleases>,
        federation: Digest,
        site_budget: Option<(f64, f64)>,
    ) -> Result<(Vec<Charge>, Option<Permit>), PayError> {
        // Whoever gave the seed knows the coins.
        let releases = match task.seed {
            Some(_) => releases.map(ExampleReleases::without_chance),
            None => releases,
        };
        let charges = self.charges(task, releases, federation)?;
        self.check_budgets(task, &charges, site_budget)?;
        let permit = match (&task.spec.privacy.examples, releases, &task.work) {
            (Some(examples), Some(releases), Work::Train { .. }) => {
                let mechanism = entry::drawn(task, releases.mechanism(examples.noise_multiplier.value()));
                Some(permit_after(task, examples, releases, mechanism, 0)?)
            }
            _ => None,
        };
        Ok((charges, permit))
    }

    fn check_budgets(
        &self,
        task: &Task,
        charges: &[Charge],
        site_budget: Option<(f64, f64)>,
    ) -> Result<(), PayError> {
        let privacy = &task.spec.privacy;
        for unit in [Unit::Client, Unit::Example] {
            if !charges.iter().any(|charge| charge.unit == unit) {
                continue;
            }
            if let Some((epsilon_max, delta)) = site_budget {
                self.check_budget("this site's policy", unit, charges, (epsilon_max, delta))?;
            }
            let of_the_plan = match unit {
                Unit::Client => privacy.local.map(|local| (local.epsilon_max.value(), local.delta)),
                Unit::Example => privacy.examples.map(|records| (records.epsilon_max.value(), records.delta)),
            };
            if let Some(budget) = of_the_plan {
                // Over all runs and servers: a record does not lose less where a second run asks for the rest.
                self.check_budget("the plan", unit, charges, budget)?;
            }
        }
        Ok(())
    }

    fn check_budget(
        &self,
        whose: &'static str,
        unit: Unit,
        charges: &[Charge],
        (epsilon_max, delta): (f64, f64),
    ) -> Result<(), PayError> {
        if self.is_unbounded(unit) {
            return Err(PayError::Lost { whose, unit, lost: self.lost(), epsilon_max });
        }
        let next = self.answers.best(&self.events(unit, None, charges), delta, epsilon_max)?;
        if next <= epsilon_max {
            return Ok(());
        }
        let spent = self.answers.best(&self.events(unit, None, &[]), delta, f64::NEG_INFINITY)?;
        Err(PayError::Exhausted { whose, unit, spent, next, epsilon_max, delta })
    }
}

impl<W> std::fmt::Debug for SiteLedger<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SiteLedger").field("chain", &self.writer).finish_non_exhaustive()
    }
}

/// What a client that keeps no ledger pays for a training. Having no memory, it keeps the plan's budgets as if it had
/// trained in every round up to this one. Gives the right to release noised gradients, where the plan protects records.
pub(crate) fn pay_without_memory(
    task: &Task,
    releases: Option<ExampleReleases>,
) -> Result<Option<Permit>, PayError> {
    let (privacy, rounds) = (&task.spec.privacy, u64::from(task.id.round.0.max(1)));
    if let Some(local) = &privacy.local {
        let (delta, epsilon_max) = (local.delta, local.epsilon_max.value());
        // As in the books: an exchange moves an update twice as far.
        let mechanism = Mechanism::Gaussian { noise_multiplier: local.noise_multiplier.value() / 2.0 };
        let epsilon_of = |count| match Event::new(mechanism, count) {
            Ok(event) => Ok(Answers::default().best(&[event], delta, epsilon_max)?),
            Err(_) if count == 0 => Ok(0.0),
            Err(error) => Err(PayError::Spec(error.to_string())),
        };
        let next = epsilon_of(rounds)?;
        if next > epsilon_max {
            let (whose, unit, spent) = ("the plan", Unit::Client, epsilon_of(rounds - 1)?);
            return Err(PayError::Exhausted { whose, unit, spent, next, epsilon_max, delta });
        }
    }
    let Some(examples) = &privacy.examples else { return Ok(None) };
    let releases = releases.ok_or(PayError::Unprotected)?;
    let before = releases.steps.saturating_mul(rounds - 1);
    // Only a simulation keeps no ledger: it counts what the plan would cost where its seed is nobody's.
    let mechanism = releases.mechanism(examples.noise_multiplier.value());
    permit_after(task, examples, releases, mechanism, before).map(Some)
}

/// The right to one training's releases, from a book of its own on the plan's terms.
fn permit_after(
    task: &Task,
    examples: &ExamplePrivacy,
    releases: ExampleReleases,
    mechanism: Mechanism,
    before: u64,
) -> Result<Permit, PayError> {
    let terms = Terms {
        population: "records".to_owned(),
        unit: Unit::Example,
        relation: Relation::ZeroOut,
        delta: examples.delta,
        epsilon_max: examples.epsilon_max.value(),
    };
    let senseless = |error: String| PayError::Spec(error);
    let (mut book, _) =
        privacy::ledger::Ledger::found(terms).map_err(|error| senseless(error.to_string()))?;
    let charge = privacy::ledger::Charge { mechanism, composition: Composition::Each { at_most: None } };
    let (run, round) = (task.id.run.to_string(), task.id.round.0);
    if before > 0 {
        // Reserved and never spent: it counts all the same.
        let _ = book.reserve(&run, 0, &charge, before)?;
    }
    Ok(book.reserve(&run, round, &charge, releases.steps)?.0)
}

#[cfg(test)]
pub(crate) mod tests;
