//! The collector of exact sums: updates on a lattice, or named sums in words. Integers are added, so no order of arrival changes a bit,
//! and memory does not grow with the cohort.

use std::sync::Arc;

use privacy::{Encoded, Inadmissible, Lattice, Statistics, StatisticsError, Sum, SumError, WORDS, WideSum};
use protocol::{Block, ClientId, Contribution, DType, PayloadSpec, Rejection, SUMS, UpdateCodec, Values};

use super::{Aggregate, Close, Collector, Refused, Release, Verified, Verifier};

/// Whether named sums can be those of records; the sentence says why not.
pub type Plausible = Arc<dyn Fn(&[WideSum]) -> Result<(), String> + Send + Sync>;

/// See the module.
pub struct ExactSum {
    sum: Sum,
    summands: Arc<Summands>,
    /// The memory of the last update that was folded. Its values have been added and mean nothing any more.
    spent: Option<Vec<i32>>,
}

/// What it holds is not to be seen before it is released.
impl std::fmt::Debug for ExactSum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExactSum").field("takes_permit", &self.takes_permit()).finish_non_exhaustive()
    }
}

/// What is summed.
enum Summands {
    Updates { lattice: Lattice, codec: UpdateCodec, votes: bool },
    Totals { count: usize, plausible: Plausible, measured: bool },
}

/// An update that was checked, and its vote on the norm.
pub(super) struct Update(pub(super) Encoded, pub(super) Option<bool>);

impl ExactSum {
    /// Of updates on `lattice`, which travel in the short form of `codec` where it has one. With `votes` each carries a vote on the
    /// clipping norm.
    pub fn of_updates(lattice: &Lattice, codec: UpdateCodec, votes: bool) -> Self {
        let summands = Summands::Updates { lattice: lattice.clone(), codec, votes };
        Self { sum: Sum::new(lattice), summands: Arc::new(summands), spent: None }
    }

    /// Of `count` named sums of a client each, which `plausible` accepts. They are added without rounding, so that no lattice bounds how
    /// many clients there may be.
    pub fn of_totals(count: usize, plausible: Plausible) -> Self {
        let summands = Summands::Totals { count, plausible, measured: false };
        Self { sum: Sum::of_statistics(count, u64::MAX), summands: Arc::new(summands), spent: None }
    }

    /// The same sums, each of which comes with metrics. Those of updates always do.
    #[must_use]
    pub fn with_metrics(mut self) -> Self {
        if let Summands::Totals { count, plausible, .. } = &*self.summands {
            let (count, plausible) = (*count, Arc::clone(plausible));
            self.summands = Arc::new(Summands::Totals { count, plausible, measured: true });
        }
        self
    }
}

impl Collector for ExactSum {
    fn expects(&self) -> PayloadSpec {
        match &*self.summands {
            Summands::Updates { lattice, codec, .. } => PayloadSpec::update(lattice.dimension(), *codec),
            Summands::Totals { count, .. } => PayloadSpec::one(SUMS, DType::I64, count * WORDS),
        }
    }

    fn verifier(&self) -> Arc<dyn Verifier> {
        Arc::clone(&self.summands) as Arc<dyn Verifier>
    }

    fn fold(&mut self, _: &ClientId, verified: Verified) -> Result<(), Refused> {
        let foreign = |error: SumError| Refused::new(Rejection::WrongKind, error.to_string());
        match &*self.summands {
            Summands::Updates { .. } => {
                let Update(update, vote) = verified.into_value()?;
                self.sum.add(&update).map_err(foreign)?;
                self.spent = Some(update.into_points());
                if let Some(within) = vote {
                    self.sum.count_vote(within);
                }
                Ok(())
            }
            Summands::Totals { .. } => {
                self.sum.add_statistics(&verified.into_value::<Statistics>()?).map_err(foreign)
            }
        }
    }

    fn takes_permit(&self) -> bool {
        matches!(*self.summands, Summands::Updates { .. })
    }

    fn close(self: Box<Self>, release: &mut dyn Release) -> Close {
        let Self { sum, summands, spent } = *self;
        // The release needs memory of its own, and nobody will receive before it is done.
        drop(spent);
        match release.release(sum) {
            Err(why) => Close::Failed(why),
            Ok(released) => Close::Aggregate(match *summands {
                Summands::Updates { .. } => Aggregate::Mean(released),
                Summands::Totals { .. } => Aggregate::Totals(released.totals().to_vec()),
            }),
        }
    }

    fn reclaim(&mut self) -> Option<Vec<i32>> {
        self.spent.take()
    }
}

impl Verifier for Summands {
    fn verify(&self, contribution: Contribution) -> Result<Verified, Refused> {
        let Contribution { weight, vote, metrics, blocks, .. } = contribution;
        let values = <[Block; 1]>::try_from(blocks).ok().map(|[block]| block.values);
        match (self, values) {
            (Self::Updates { lattice, votes, .. }, Some(Values::I32(points))) => {
                let vote = checked_vote(vote, *votes)?;
                let update = Encoded::admit(points, weight, lattice)
                    .map_err(|why| Refused::new(reason_of(&why), why.to_string()))?;
                Ok(Verified::new(Update(update, vote), metrics))
            }
            (Self::Totals { measured: true, .. }, Some(_)) if metrics.is_none() => {
                Err(Refused::new(Rejection::BadMetrics, "sums came without the metrics that belong to them"))
            }
            (Self::Totals { count, plausible, measured }, Some(Values::I64(words))) => {
                let reason = |why: &StatisticsError| match why {
                    StatisticsError::Shape { .. } => Rejection::WrongShape,
                    _ => Rejection::OutOfRange,
                };
                let statistics = Statistics::admit(words, *count)
                    .map_err(|why| Refused::new(reason(&why), why.to_string()))?;
                plausible(&statistics.sums().collect::<Vec<_>>())
                    .map_err(|detail| Refused::new(Rejection::OutOfRange, detail))?;
                Ok(Verified::new(statistics, metrics.filter(|_| *measured)))
            }
            (_, values) => {
                let found = values.map_or_else(
                    || "none or several".to_owned(),
                    |values| format!("one of {:?}", values.dtype()),
                );
                Err(Refused::new(
                    Rejection::WrongKind,
                    format!("the block of a sum is expected, and {found} came"),
                ))
            }
        }
    }
}

/// Whether the update was within the norm, where the plan asks.
fn checked_vote(vote: i8, asked: bool) -> Result<Option<bool>, Refused> {
    match (vote, asked) {
        (1 | -1, true) => Ok(Some(vote == 1)),
        (0, false) => Ok(None),
        _ => {
            let wanted = if asked { "1 or -1" } else { "0, since the norm is fixed" };
            Err(Refused::new(Rejection::BadVote, format!("the vote on the norm is {vote}, not {wanted}")))
        }
    }
}

fn reason_of(why: &Inadmissible) -> Rejection {
    match why {
        Inadmissible::Shape { .. } => Rejection::WrongShape,
        Inadmissible::Weight { .. } => Rejection::WrongWeight,
        Inadmissible::Norm | Inadmissible::LayerNorm { .. } => Rejection::NormExceeded,
        _ => Rejection::OutOfRange,
    }
}
