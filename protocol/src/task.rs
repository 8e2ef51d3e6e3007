//! A task and its answer.

use std::sync::Arc;

use privacy::{Moments, WideSum};
use serde::{Deserialize, Serialize};

use crate::{
    Block, Capability, Contribution, EXAMPLES_MAX, Name, Parameters, Positive, SUMS, Seed, Spec, StepId,
    TaskId, UPDATE, Values,
};

/// Mean and standard deviation of every numeric column, in the order of the plan's features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standardiser {
    /// Means.
    pub mean: Vec<f64>,
    /// Standard deviations, greater than zero.
    pub std: Vec<f64>,
}

impl Standardiser {
    /// From federated totals in the order of [`Spec::statistics`]: count, sum and sum of squares a column. A column
    /// without any value gets mean 0; one without spread gets for its deviation the magnitude of its mean, or 1 where that is 0, so that
    /// its cells become 0 on any scale. `None` when the totals are not threes.
    pub fn from_totals(totals: &[WideSum]) -> Option<Self> {
        Some(Self::of_columns(&columns_of(totals)?))
    }

    /// Of the columns' moments, with the same exceptions.
    pub fn of_columns(columns: &[Moments]) -> Self {
        Self {
            mean: columns.iter().map(Moments::mean).collect(),
            std: columns.iter().map(scale_of).collect(),
        }
    }

    /// A cell of numeric column `column` as a model sees it, in f64: its distance from the mean in deviations.
    ///
    /// # Panics
    /// When there is no such column.
    pub fn standardised(&self, column: usize, cell: f64) -> f64 {
        let (mean, std) = (self.mean[column], self.std[column]);
        let distance = cell - mean;
        if distance.is_infinite() && cell.is_finite() {
            // The distance of two ends of f64 is beyond it; what it is in deviations need not be.
            return (cell / 2.0 - mean / 2.0) / (std / 2.0);
        }
        distance / std
    }

    /// Whether it has `features` finite means and positive finite deviations.
    pub fn fits(&self, features: usize) -> bool {
        self.mean.len() == features
            && self.std.len() == features
            && self.mean.iter().all(|mean| mean.is_finite())
            && self.std.iter().all(|std| std.is_finite() && *std > 0.0)
    }
}

/// What a column is divided by. One that is constant but for rounding would show its rounding, were it divided by 1.
fn scale_of(column: &Moments) -> f64 {
    let mean = column.mean().abs();
    column.deviation().unwrap_or(if mean > 0.0 { mean } else { 1.0 })
}

/// The columns of totals in the order of [`Spec::statistics`]; `None` when they are not threes.
fn columns_of(totals: &[WideSum]) -> Option<Vec<Moments>> {
    let (threes, rest) = totals.as_chunks::<3>();
    let moments = |[count, sum, square]: &[WideSum; 3]| Moments {
        count: count.clone(),
        sum: sum.clone(),
        square: square.clone(),
    };
    rest.is_empty().then(|| threes.iter().map(moments).collect())
}

/// The first column of one site's statistics, in the order of [`Spec::statistics`], that no finite numbers can have: a negative
/// count, say, or a sum that so many numbers do not reach.
pub fn find_impossible(statistics: &[WideSum]) -> Option<usize> {
    columns_of(statistics)?.iter().position(|column| !column.are_possible())
}

/// What a site is asked to do. Cheap to clone: the model is shared.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Which task.
    pub id: TaskId,
    /// What the run is about.
    pub spec: Arc<Spec>,
    /// In a simulation or seeded run, the run's seed; in production `None`, and sites use their own entropy.
    pub seed: Option<Seed>,
    /// How numeric columns are standardised, once that is known federation-wide.
    pub standardiser: Option<Arc<Standardiser>>,
    /// The work.
    pub work: Work,
}

impl Task {
    /// Whether nothing may show that somebody was asked to do this, since the drawn cohort is a secret. A seed that is told to
    /// the sites keeps no secret; an evaluation is put to everybody who is connected.
    pub fn hides_participation(&self) -> bool {
        self.seed.is_none() && self.id.step == StepId::TRAIN && self.spec.privacy.samples_secretly()
    }
}

/// What a site can be asked to do. It declines what it does not know.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Sum the named statistics over the training data.
    Statistics {
        /// Their names, in the order in which the answer lists them.
        names: Vec<String>,
    },
    /// Train from these shared parameters.
    Train {
        /// The model, shared part.
        model: Arc<Parameters>,
        /// The schedule's factor on the learning rate this round; positive.
        learning_rate_scale: f64,
        /// The norm to which this round's updates are clipped, where it is not the plan's.
        norm_max: Option<Positive>,
    },
    /// Evaluate these shared parameters.
    Evaluate {
        /// The model, shared part.
        model: Arc<Parameters>,
    },
    /// What a method asks for; the site's half of the method knows how.
    Method(Arc<MethodWork>),
}

/// One piece of a method's work.
#[derive(Clone, Debug, PartialEq)]
pub struct MethodWork {
    /// The method.
    pub method: Name,
    /// Its version: a site does what it knows in this version, and declines the rest.
    pub version: u16,
    /// Named numbers, at most [`NUMBERS_MAX`].
    pub numbers: Vec<(Name, f64)>,
    /// Named blocks, at most [`crate::BLOCKS_MAX`].
    pub blocks: Vec<Block>,
}

/// The most numbers of a method's work.
pub const NUMBERS_MAX: usize = 64;

impl MethodWork {
    /// The number that is called so.
    pub fn number(&self, name: &Name) -> Option<f64> {
        self.numbers.iter().find(|(known, _)| known == name).map(|(_, number)| *number)
    }

    /// The values of the block that is called so.
    pub fn block(&self, name: &Name) -> Option<&Values> {
        self.blocks.iter().find(|block| block.name == *name).map(|block| &block.values)
    }
}

impl Work {
    /// What a site must know to do it for a plan of this spec.
    pub fn needs(&self, spec: &Spec) -> Capability {
        match self {
            Self::Train { .. } | Self::Evaluate { .. } if spec.external().is_some() => Capability::external(),
            Self::Statistics { .. } => Capability::statistics(),
            Self::Train { .. } => Capability::training(),
            Self::Evaluate { .. } => Capability::evaluation(),
            Self::Method(work) => Capability::method(&work.method, work.version),
        }
    }

    /// The model that goes with the work, if any.
    pub fn model(&self) -> Option<&Arc<Parameters>> {
        match self {
            Self::Statistics { .. } | Self::Method(_) => None,
            Self::Train { model, .. } | Self::Evaluate { model } => Some(model),
        }
    }
}

/// What a site measured while it worked. Means are over `examples`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Mean loss (for training: over all steps).
    pub loss: f64,
    /// Share of examples whose class was right, where the target is a class.
    pub accuracy: Option<f64>,
    /// Examples used.
    pub examples: u64,
    /// Seconds of work at the site.
    pub seconds: f64,
}

/// The largest magnitude of a loss or a further metric: sums of them stay finite.
pub const METRIC_MAX: f64 = 1e30;

impl Metrics {
    /// The same, of a measurement on any records: on none, nothing was measured.
    pub fn on_records(self) -> Option<Self> {
        (self.examples > 0).then_some(self)
    }

    /// Whether every number is finite and in range; a loss beyond 1e30 in magnitude is not, so that sums of losses stay
    /// finite, and more examples than [`EXAMPLES_MAX`] are not, so that sums of examples do.
    pub fn is_sound(&self) -> bool {
        self.loss.abs() <= METRIC_MAX
            && self.examples <= EXAMPLES_MAX
            && self.seconds.is_finite()
            && self.seconds >= 0.0
            && self.accuracy.is_none_or(|accuracy| (0.0..=1.0).contains(&accuracy))
    }

    /// The mean of several sites' metrics, weighted by examples, of which each site counts at most `weight_max`: what one site
    /// says about itself must not outvote the others. Examples are the sum of all that were reported, at most [`u64::MAX`];
    /// seconds are the longest. `None` without examples.
    pub fn pooled<'a>(sites: impl Iterator<Item = &'a Self>, weight_max: u64) -> Option<Self> {
        let (mut pooled, mut weights, mut correct, mut classified) = (Self::default(), 0.0, 0.0, false);
        for site in sites {
            let weight = site.examples.min(weight_max) as f64;
            weights += weight;
            pooled.loss += site.loss * weight;
            correct += site.accuracy.unwrap_or(0.0) * weight;
            classified |= site.accuracy.is_some();
            pooled.examples = pooled.examples.saturating_add(site.examples);
            pooled.seconds = pooled.seconds.max(site.seconds);
        }
        pooled.loss /= weights;
        pooled.accuracy = classified.then_some(correct / weights);
        (weights > 0.0).then_some(pooled)
    }
}

/// A site's answer to a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The task it answers.
    pub task: TaskId,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The site has done it.
    Done(Contribution),
    /// The site will not or cannot do it.
    Declined {
        /// Why.
        reason: Decline,
        /// For the operator, without data of the site; at most 512 bytes travel.
        detail: String,
    },
}

impl Outcome {
    /// A clipped, weighted update: `points` of the lattice in the order of the shared layout, its `weight` from 1 to the plan's bound, and
    /// the vote on the norm ([`Contribution::vote`]).
    pub fn trained(points: Vec<i32>, weight: u32, vote: i8, metrics: Metrics) -> Self {
        let blocks = vec![Block::new(UPDATE, Values::I32(points))];
        Self::Done(Contribution { weight, vote, metrics: Some(metrics), ..Contribution::of(blocks) })
    }

    /// Metrics of the model that the site was given, on its test data.
    pub fn evaluated(metrics: Metrics) -> Self {
        Self::Done(Contribution { metrics: Some(metrics), ..Contribution::of(Vec::new()) })
    }

    /// Words of named sums, four each.
    pub fn counted(words: Vec<i64>) -> Self {
        Self::Done(Contribution::of(vec![Block::new(SUMS, Values::I64(words))]))
    }

    /// What the site has handed in, if it has done the task.
    pub fn contribution(&self) -> Option<&Contribution> {
        match self {
            Self::Done(contribution) => Some(contribution),
            Self::Declined { .. } => None,
        }
    }

    /// The points of an update.
    pub fn points(&self) -> Option<&[i32]> {
        self.contribution()?.points()
    }

    /// The words of named sums.
    pub fn words(&self) -> Option<&[i64]> {
        self.contribution()?.words()
    }

    /// What was measured on the way.
    pub fn metrics(&self) -> Option<Metrics> {
        self.contribution()?.metrics
    }

    /// [`Outcome::contribution`], given away.
    pub fn into_contribution(self) -> Option<Contribution> {
        match self {
            Self::Done(contribution) => Some(contribution),
            Self::Declined { .. } => None,
        }
    }
}

/// Why a site does not do a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decline {
    /// The plan or the task does not make sense to this site's software.
    Unsupported,
    /// The site's data does not fit the plan, or cannot be read.
    Data,
    /// Training gave numbers that are not finite.
    NotFinite,
    /// The site is shutting down or was told to stop this task.
    Stopped,
    /// Training failed.
    Failed,
    /// The site's own policy does not allow the task; which rule it was stays at the site.
    Policy,
    /// The site's own privacy budget cannot pay for the task.
    Budget,
    /// The site has paused: it does no task until it goes on by itself.
    Paused,
}

impl Decline {
    /// The reason in one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unsupported => "unsupported",
            Self::Data => "data",
            Self::NotFinite => "not_finite",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Policy => "policy",
            Self::Budget => "budget",
            Self::Paused => "paused",
        }
    }
}

/// Why a server does not accept an answer. Counted per client and shown to the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    /// The client was not asked.
    Unsolicited,
    /// The task's run or round is over, or never was.
    Stale,
    /// The client has already answered.
    Duplicate,
    /// The answer is of another kind than the task.
    WrongKind,
    /// Another number of values than the plan's.
    WrongShape,
    /// A value beyond the lattice.
    OutOfRange,
    /// Longer than the norm bound allows.
    NormExceeded,
    /// A weight of zero or above the bound.
    WrongWeight,
    /// Metrics that are not finite or out of range.
    BadMetrics,
    /// Bytes that are not a message of this protocol.
    Malformed,
    /// A length above the limit.
    Oversize,
    /// The stream ended before the announced length.
    Truncated,
    /// The upload took longer than allowed.
    TooSlow,
    /// A vote on the clipping norm that was not asked for, is missing, or is no vote.
    BadVote,
    /// The operator holds the site in quarantine.
    Quarantined,
}

impl Rejection {
    /// Every reason, in order.
    pub const ALL: [Self; 15] = [
        Self::Unsolicited,
        Self::Stale,
        Self::Duplicate,
        Self::WrongKind,
        Self::WrongShape,
        Self::OutOfRange,
        Self::NormExceeded,
        Self::WrongWeight,
        Self::BadMetrics,
        Self::Malformed,
        Self::Oversize,
        Self::Truncated,
        Self::TooSlow,
        Self::BadVote,
        Self::Quarantined,
    ];

    /// The reason in one word, as in logs, reports and the store.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unsolicited => "unsolicited",
            Self::Stale => "stale",
            Self::Duplicate => "duplicate",
            Self::WrongKind => "wrong_kind",
            Self::WrongShape => "wrong_shape",
            Self::OutOfRange => "out_of_range",
            Self::NormExceeded => "norm_exceeded",
            Self::WrongWeight => "wrong_weight",
            Self::BadMetrics => "bad_metrics",
            Self::Malformed => "malformed",
            Self::Oversize => "oversize",
            Self::Truncated => "truncated",
            Self::TooSlow => "too_slow",
            Self::BadVote => "bad_vote",
            Self::Quarantined => "quarantined",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_become_means_and_deviations() {
        let standardiser =
            Standardiser::from_totals(&totals(&[4.0, 10.0, 30.0, 0.0, 0.0, 0.0, 3.0, 6.0, 12.0])).unwrap();
        assert_eq!(standardiser.mean, [2.5, 0.0, 2.0]);
        assert_eq!(standardiser.std, [1.25f64.sqrt(), 1.0, 2.0]);
        assert!(standardiser.fits(3) && !standardiser.fits(2));
        assert!(Standardiser::from_totals(&totals(&[1.0])).is_none());
    }

    fn totals(values: &[f64]) -> Vec<WideSum> {
        values.iter().map(|value| WideSum::of(*value).unwrap()).collect()
    }

    #[test]
    fn the_two_ends_of_f64_are_standardised_like_any_other_cells() {
        let standardiser = Standardiser { mean: vec![-1e308, 5.0], std: vec![1e308, 0.5] };
        assert_eq!(standardiser.standardised(0, 1e308), 2.0);
        assert_eq!(standardiser.standardised(1, 6.0), 2.0);
        assert_eq!(standardiser.standardised(1, f64::INFINITY), f64::INFINITY);
    }

    #[test]
    fn a_column_that_no_records_have_is_found() {
        assert_eq!(find_impossible(&totals(&[2.0, 3.0, 5.0, 0.0, 0.0, 0.0])), None);
        assert_eq!(find_impossible(&totals(&[2.0, 3.0, 5.0, -1.0, 0.0, 0.0])), Some(1));
    }

    #[test]
    fn pooled_metrics_weigh_sites_by_their_examples() {
        let site =
            |loss, accuracy, examples| Metrics { loss, accuracy: Some(accuracy), examples, seconds: 1.0 };
        let pooled = Metrics::pooled([site(1.0, 0.5, 10), site(4.0, 1.0, 20)].iter(), 1000).unwrap();
        assert_eq!((pooled.loss, pooled.accuracy, pooled.examples), (3.0, Some(25.0 / 30.0), 30));
        assert!(Metrics::pooled([].iter(), 1000).is_none());
    }

    #[test]
    fn a_site_that_boasts_of_examples_counts_as_the_bound_and_the_sum_does_not_overflow() {
        let site =
            |accuracy, examples| Metrics { loss: 1.0, accuracy: Some(accuracy), examples, seconds: 1.0 };
        let all = [site(0.5, 100), site(0.5, 100), site(1.0, u64::MAX), site(1.0, u64::MAX)];
        let pooled = Metrics::pooled(all[..3].iter(), 100).unwrap();
        assert_eq!((pooled.accuracy, pooled.examples), (Some(2.0 / 3.0), u64::MAX));
        assert_eq!(Metrics::pooled(all.iter(), 1).unwrap().accuracy, Some(0.75));
        assert!(
            !all[3].is_sound()
                && site(1.0, EXAMPLES_MAX).is_sound()
                && !site(1.0, EXAMPLES_MAX + 1).is_sound()
        );
    }

    #[test]
    fn metrics_that_are_not_finite_are_unsound() {
        assert!(Metrics::default().is_sound());
        assert!(!Metrics { loss: f64::NAN, ..Metrics::default() }.is_sound());
        assert!(!Metrics { accuracy: Some(1.5), ..Metrics::default() }.is_sound());
    }
}
