//! What a run consists of: a workflow says what comes next, a step puts one body of work to a cohort, a collector takes what comes back.
//!
//! ```text
//! Workflow::next -> StepPlan { cohort, work, collector, close }
//!   -> every contribution: Verifier::verify (any thread), then Collector::fold
//!   -> Collector::close -> an aggregate, or a further exchange with the same clients
//!   -> Workflow::concluded -> Effect, committed together with the checkpoint
//! ```
//!
//! The coordinator drives it and knows no method by name: it asks, waits, counts, and commits. A workflow decides without reading a
//! clock, a socket or randomness of its own, and what it decides follows from the run's state alone, so that a run whose server crashed
//! goes on with the same bits.
//!
//! What the types leave room for: masked vectors (a collector that expects ring elements, whose `close` asks the clients that answered for
//! their shares by a [`Close::FurtherExchange`]), partial sums of relays (a collector that adds sums as it adds updates), and rounds that
//! overlap (a collector that closes at [`ClosePolicy::Target`] and keeps what comes late for its next aggregate).

mod exact_sum;
mod keep;
mod measurements;
mod rule;
mod training;

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use privacy::{Released, Sum, WideSum};
use protocol::{
    Block, ClientId, Contribution, Metrics, Parameters, PayloadSpec, Positive, Rejection, Round, Seed,
    Standardiser, StepId, Work, find_impossible,
};

use crate::optimizer::ModelUpdate;
use crate::{Checkpoint, Plan};
pub use exact_sum::{ExactSum, Plausible};
pub use keep::Keep;
pub use measurements::Measurements;
pub(crate) use rule::Prepared;
pub use rule::{AggregationRule, KeptUpdates, PreStep};
pub use training::Training;

/// What comes next in a run, and what follows from what a step gave.
pub trait Workflow: Send {
    /// The next step of a run that stands at `state`; `None` when nothing is left to do.
    fn next(&mut self, state: &RunState<'_>) -> Option<StepPlan>;

    /// Takes what a step has given. A step that gave nothing (no quorum, no release) is not told: [`Workflow::next`] is asked again.
    fn concluded(&mut self, step: StepId, aggregate: Aggregate, state: &RunState<'_>) -> Conclusion;

    /// What the contributions of a step that does the round's work amount to, where its aggregate tells it: the round's training metrics then.
    /// `None` leaves them to be the mean over those clients that report metrics.
    fn measured(&self, step: StepId, aggregate: &Aggregate) -> Option<Metrics> {
        let _ = (step, aggregate);
        None
    }

    /// Whether nothing is left to do.
    fn is_finished(&self, state: &RunState<'_>) -> bool;

    /// What it remembers from step to step beside the run's state: bytes that it alone understands, stored with every commit.
    fn memory(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes back what [`Workflow::memory`] gave, before it is asked for anything.
    ///
    /// # Errors
    /// A sentence, when the bytes are not this workflow's.
    fn recall(&mut self, memory: &[u8]) -> Result<(), String> {
        match memory {
            [] => Ok(()),
            _ => Err(format!("{} bytes are stored where this workflow remembers nothing", memory.len())),
        }
    }
}

/// Where a run stands, as its workflow sees it.
#[derive(Debug)]
pub struct RunState<'a> {
    /// What is committed, or about to be.
    pub checkpoint: &'a Checkpoint,
    /// The model as clients get it: rounded where the plan's broadcast codec says so.
    pub sent_model: &'a Arc<Parameters>,
    /// The clipping norm of the next round, where it is not the plan's.
    pub norm_max: Option<Positive>,
    /// Clients that are connected.
    pub connected: usize,
    /// What the server draws follows from it.
    pub seed: &'a Seed,
    /// Whose answers are in what [`Workflow::concluded`] is told; nobody's elsewhere.
    pub answers: Answers<'a>,
}

/// Who took part in a step that is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers<'a> {
    /// The clients whose contributions were folded, in the order of their names.
    pub from: &'a [ClientId],
    /// How many of those who were asked have neither answered nor declined.
    pub missing: usize,
}

/// One step: whom it asks, for what, and how it ends.
pub struct StepPlan {
    /// Which step of the workflow.
    pub step: StepId,
    /// The round that it belongs to.
    pub round: Round,
    /// Who is asked.
    pub cohort: CohortRule,
    /// What they are asked for.
    pub work: Work,
    /// Takes what comes back.
    pub collector: Box<dyn Collector>,
    /// Answers without which the step gives nothing.
    pub quorum: usize,
    /// When it ends, beside its deadline.
    pub close: ClosePolicy,
    /// Whether the server does the work, too, on records of its own where it has some.
    pub central: bool,
    /// Whether the round is over when this step has failed.
    pub is_round: bool,
}

impl StepPlan {
    /// The sums of [`Spec::statistics`](protocol::Spec::statistics) over everybody who is connected, by which columns are standardised; `None`
    /// where the plan needs none or they are known. What comes is [`Aggregate::Totals`], for [`Standardiser::from_totals`].
    pub fn statistics(plan: &Plan, state: &RunState<'_>) -> Option<Self> {
        let names = plan.spec.statistics();
        if names.is_empty() || state.checkpoint.standardiser.is_some() {
            return None;
        }
        Some(Self {
            step: StepId::STATISTICS,
            round: Round(0),
            cohort: CohortRule::Connected,
            collector: Box::new(ExactSum::of_totals(names.len(), Arc::new(are_plausible))),
            work: Work::Statistics { names },
            quorum: plan.cohort.quorum,
            close: ClosePolicy::All,
            central: false,
            is_round: false,
        })
    }
}

/// Whether records can have these statistics: a negative count, say, none has.
fn are_plausible(sums: &[WideSum]) -> Result<(), String> {
    match find_impossible(sums) {
        Some(column) => Err(format!("no records have the statistics of numeric column {column}")),
        None => Ok(()),
    }
}

impl fmt::Debug for StepPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StepPlan({} of round {} to {:?})", self.step.name(), self.round, self.cohort)
    }
}

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CohortRule {
    /// Whom the plan's rule draws; with client-level privacy by secret chance where the plan says so.
    Drawn,
    /// Everybody who is connected.
    Connected,
    /// Nobody: the server alone does the work.
    Nobody,
    /// Those of these who are connected.
    These(Vec<ClientId>),
}

/// When a step ends before its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosePolicy {
    /// When nobody is awaited any more.
    All,
    /// When this many contributions count, or nobody is awaited any more.
    Target(usize),
    /// Never.
    Deadline,
}

/// Why a contribution does not count: the reason that is counted, and the numbers for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The reason in one word.
    pub reason: Rejection,
    /// Which number, and what it may be.
    pub detail: String,
}

impl Refused {
    /// A refusal.
    pub fn new(reason: Rejection, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// A contribution whose every number has been checked, as its own verifier understands it.
pub struct Verified {
    value: Box<dyn Any + Send>,
    /// What was measured on the way.
    pub metrics: Option<Metrics>,
}

impl Verified {
    /// Values for the collector that gave the verifier.
    pub fn new<T: Any + Send>(value: T, metrics: Option<Metrics>) -> Self {
        Self { value: Box::new(value), metrics }
    }

    /// The values.
    ///
    /// # Errors
    /// [`Rejection::WrongKind`] where they are another collector's.
    pub fn into_value<T: Any>(self) -> Result<T, Refused> {
        let foreign = |_| Refused::new(Rejection::WrongKind, "it was checked for another step");
        self.value.downcast().map(|value| *value).map_err(foreign)
    }
}

/// Only what was measured: the values are one client's.
impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verified({:?})", self.metrics)
    }
}

/// Checks contributions, on any thread. Pure: the same contribution has the same verdict.
pub trait Verifier: Send + Sync {
    /// Checks every number of a contribution whose blocks have the announced names, types and lengths, whoever sent it.
    ///
    /// # Errors
    /// [`Refused`] names the first check that it fails.
    fn verify(&self, contribution: Contribution) -> Result<Verified, Refused>;
}

/// Takes contributions one by one. In which order they come changes no bit of the aggregate.
pub trait Collector: Send {
    /// What a contribution must carry; compared with what a client announces before memory is taken.
    fn expects(&self) -> PayloadSpec;

    /// The checks that a contribution must pass.
    fn verifier(&self) -> Arc<dyn Verifier>;

    /// Adds a contribution of a client that was asked and has not answered before.
    ///
    /// # Errors
    /// [`Refused`]: the client is out, and the aggregate as it was.
    fn fold(&mut self, from: &ClientId, verified: Verified) -> Result<(), Refused>;

    /// A client that was asked will not contribute any more.
    fn dropped(&mut self, client: &ClientId) {
        let _ = client;
    }

    /// Whether what it gives is released by a ledger's permit where the plan promises client-level privacy. [`ExactSum`] of updates alone.
    fn takes_permit(&self) -> bool {
        false
    }

    /// Gives what was collected. `release` lets a sum out as the plan promises.
    fn close(self: Box<Self>, release: &mut dyn Release) -> Close;

    /// Memory of the last contribution, to receive the next one into.
    fn reclaim(&mut self) -> Option<Vec<i32>> {
        None
    }
}

/// Lets a sum out as the plan promises: as it is, or noised by a permit.
pub trait Release {
    /// The mean of the sum.
    ///
    /// # Errors
    /// Why nothing is released; `None` where the sum is empty.
    fn release(&mut self, sum: Sum) -> Result<Released, Option<String>>;
}

/// How a step ends.
#[derive(Debug)]
pub enum Close {
    /// With this.
    Aggregate(Aggregate),
    /// With another exchange, which is put at once. What the clients of the first have told is in its collector.
    FurtherExchange(Box<StepPlan>),
    /// With nothing, for this reason; `None` where nothing came.
    Failed(Option<String>),
}

/// What a step gave.
#[derive(Debug)]
pub enum Aggregate {
    /// The mean of updates, one value a shared parameter.
    Mean(Released),
    /// What a rule has made of kept updates, one value a shared parameter in units of the parameters. It promises nothing.
    Vector(Vec<f64>),
    /// Exact totals of named sums, in the order of their names.
    Totals(Vec<WideSum>),
    /// Metrics, which the coordinator has pooled.
    Measured,
    /// What the workflow's own collector gives.
    Blocks(Vec<Block>),
}

/// What follows from an aggregate.
#[derive(Debug)]
pub struct Conclusion {
    /// What changes.
    pub effect: Effect,
    /// Whether the round is over; else the next step is put at once.
    pub is_round_over: bool,
}

/// What changes in a run. It is committed with the checkpoint, in one transaction.
#[derive(Debug)]
pub enum Effect {
    /// The server optimizer moves the model by this.
    StepModel(ModelUpdate),
    /// From now on tasks carry this standardisation.
    Standardise(Standardiser),
    /// These are the model's values from now on.
    SetModel(Parameters),
    /// The metrics that clients reported are the round's test metrics.
    Measured,
    /// Nothing.
    Nothing,
}
