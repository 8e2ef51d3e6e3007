//! Who is asked before a site works: the policy, then the ledger; and the audit log, which is told of both.
//!
//! What a guard refuses is not done, and the server learns that it was the policy or the budget, and no more. A guard whose
//! ledger or log cannot be written refuses everything: a site that cannot keep its books does not spend.

use privacy::Permit;
use privacy::chain::{Digest, WriteError};
use protocol::{Decline, ExampleReleases, Metrics, Outcome, Spec, Task, Time, Work};

use crate::TaskError;
use crate::audit::{Audit, AuditEvent};
use crate::ledger::{LedgerHistory, LedgerReservation, PayError, SiteAccount, SiteLedger};
use crate::policy::{Denied, History, Mode, Policy, SiteFacts};

/// A site's policy, ledger and audit log.
pub struct Guard {
    policy: Policy,
    ledger: SiteLedger,
    audit: Audit,
    clock: Box<dyn Fn() -> Time + Send>,
}

/// A task that may be done, until it is concluded.
#[derive(Debug)]
#[must_use = "what was allowed must be concluded, so that the books know what came of it"]
pub(crate) struct Leave {
    reservation: Option<LedgerReservation>,
}

impl Leave {
    /// Whether the task was charged before, and is charged again.
    pub(crate) fn is_charged_again(&self) -> bool {
        self.reservation.as_ref().is_some_and(|reservation| reservation.is_charged_again)
    }

    /// The right to release noised gradients, once.
    pub(crate) fn take_permit(&mut self) -> Option<Permit> {
        self.reservation.as_mut()?.permit.take()
    }
}

impl Guard {
    /// A guard; `clock` gives the time since the Unix epoch.
    pub fn new(
        policy: Policy,
        ledger: SiteLedger,
        audit: Audit,
        clock: impl Fn() -> Time + Send + 'static,
    ) -> Self {
        Self { policy, ledger, audit, clock: Box::new(clock) }
    }

    /// The heads of its ledger, for whoever is asked for them.
    pub fn history(&self) -> &LedgerHistory {
        self.ledger.history()
    }

    /// The fingerprint of the authority whose servers are obeyed.
    pub(crate) fn federation(&self) -> Digest {
        self.ledger.federation()
    }

    /// What has been given away.
    pub(crate) fn account(&self) -> &SiteAccount {
        self.ledger.account()
    }

    /// The log, for what happens around the tasks.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Writes down that `task` came while the site has paused.
    pub(crate) fn paused(&self, task: &Task, message: &str) -> Result<(), TaskError> {
        self.receive(task)?;
        let denied =
            AuditEvent::Denied { task: task.id.into(), rule: "pause".into(), message: message.to_owned() };
        self.audit.seal(denied).map_err(|error| self.unkept(&error))
    }

    /// Writes down that `task` came.
    fn receive(&self, task: &Task) -> Result<(), TaskError> {
        let parameters = task.work.model().map_or(0, |model| model.len());
        let promises = Mode::all_of(&task.spec.privacy).iter().map(|mode| mode.name().to_owned()).collect();
        let received = AuditEvent::Received {
            task: task.id.into(),
            promises,
            parameters: parameters as u64,
            is_seeded: task.seed.is_some(),
        };
        self.audit.note(received).map_err(|error| self.unkept(&error))
    }

    /// Writes down that `task` came, and asks the policy whether it may be done, before anything of the site is touched.
    pub(crate) fn judge(&self, task: &Task, facts: &SiteFacts) -> Result<(), TaskError> {
        self.judge_by(task, |history| self.policy.judge(task, facts, (self.clock)(), history))
    }

    /// The same for a task whose answer was computed before: how often the site trains is no matter of it, since that training has counted.
    #[cfg(feature = "net")]
    pub(crate) fn judge_again(&self, task: &Task, facts: &SiteFacts) -> Result<(), TaskError> {
        self.judge_by(task, |history| self.policy.judge_again(task, facts, (self.clock)(), history))
    }

    fn judge_by(
        &self,
        task: &Task,
        judge: impl FnOnce(&History) -> Result<(), Denied>,
    ) -> Result<(), TaskError> {
        self.receive(task)?;
        if let Err(fault) = task.check_numbers() {
            let message = fault.to_string();
            return Err(self.deny(task, "numbers", &message, fault.into()));
        }
        judge(self.ledger.account().history()).or_else(|denied| self.deny_by(task, &denied))
    }

    /// Asks the policy whether the model, as it turned out, is not too large.
    pub(crate) fn judge_size(&self, task: &Task, parameters: u64) -> Result<(), TaskError> {
        // Its size is the plan's, which was judged before anything was started. What a script keeps at the site beside that is its own, and may
        // follow from records: a refusal would tell the server of it.
        if task.spec.external().is_some() {
            return Ok(());
        }
        self.policy.judge_size(parameters).or_else(|denied| self.deny_by(task, &denied))
    }

    /// Pays for `task`, durably.
    pub(crate) fn reserve(
        &mut self,
        task: &Task,
        releases: Option<ExampleReleases>,
    ) -> Result<Leave, TaskError> {
        let tells = match task.work {
            Work::Statistics { .. } | Work::Method(_) => true,
            Work::Evaluate { .. } => self.policy.tells_metrics(&task.spec),
            Work::Train { .. } => false,
        };
        let budget = self.policy.budget();
        match self.ledger.reserve(task, releases, tells, budget, (self.clock)()) {
            Ok(reservation) => {
                let record = reservation.as_ref().map(LedgerReservation::record);
                let allowed = AuditEvent::Allowed { task: task.id.into(), reservation: record };
                self.audit.note(allowed).map_err(|error| self.unkept(&error))?;
                Ok(Leave { reservation })
            }
            Err(PayError::Write(error)) => Err(self.unkept(&error)),
            Err(error) => {
                let message = error.to_string();
                let told = TaskError::private(error.reason(), message.clone());
                Err(self.deny(task, error.rule(), &message, told))
            }
        }
    }

    /// Books back a task that was allowed and ended before a record was read.
    pub(crate) fn give_back(&mut self, task: &Task, leave: Leave) -> Result<(), TaskError> {
        let back = leave.reservation.map(|reservation| self.ledger.cancel(reservation, (self.clock)()));
        let failed = AuditEvent::Failed { task: task.id.into(), reason: Decline::Stopped };
        let noted = back.unwrap_or(Ok(())).and_then(|()| self.audit.note(failed));
        noted.map_err(|error| self.unkept(&error))
    }

    /// Writes down what came of a task for which records were read. Its reservation stands whatever that was: an attempt that
    /// cost nothing when it failed would be a free question about what makes it fail.
    pub(crate) fn conclude(
        &self,
        task: &Task,
        _spent: Leave,
        outcome: Result<Outcome, TaskError>,
    ) -> Result<Outcome, TaskError> {
        let event = match &outcome {
            Ok(_) => AuditEvent::Done { task: task.id.into() },
            Err(error) => AuditEvent::Failed { task: task.id.into(), reason: error.reason },
        };
        match self.audit.note(event) {
            Ok(()) => outcome,
            Err(error) => Err(self.unkept(&error)),
        }
    }

    /// Whether an evaluation under `spec` tells the server anything at all.
    pub(crate) fn tells_metrics(&self, spec: &Spec) -> bool {
        self.policy.tells_metrics(spec)
    }

    /// Whether further metrics may leave.
    pub(crate) fn tells_further(&self, spec: &Spec) -> bool {
        self.policy.tells_further(spec)
    }

    /// The metrics that may leave.
    pub(crate) fn visible(&self, spec: &Spec, metrics: Metrics) -> Metrics {
        self.policy.visible(spec, metrics)
    }

    /// The books cannot be kept, so nothing is done, and nothing will be before a new start.
    fn unkept(&self, error: &WriteError) -> TaskError {
        self.audit.note_error(error);
        TaskError::private(Decline::Failed, format!("the site's books cannot be kept: {error}"))
    }

    fn deny_by(&self, task: &Task, denied: &Denied) -> Result<(), TaskError> {
        let told = TaskError::private(Decline::Policy, denied.to_string());
        Err(self.deny(task, denied.rule, &denied.message, told))
    }

    /// Writes a refusal down, and gives what is told of it.
    fn deny(&self, task: &Task, rule: &str, message: &str, told: TaskError) -> TaskError {
        let denied =
            AuditEvent::Denied { task: task.id.into(), rule: rule.to_owned(), message: message.to_owned() };
        match self.audit.seal(denied) {
            Ok(()) => told,
            Err(error) => self.unkept(&error),
        }
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard")
            .field("policy", &self.policy)
            .field("ledger", &self.ledger)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
