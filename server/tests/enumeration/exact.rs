//! Exact distributions on small lattices, and the least delta that two of them allow at an epsilon.
//!
//! Nothing is sampled and no bound is used: masses of the discrete Gaussian are summed value by value. A distribution pair is
//! kept as cells, the chance of each outcome under either of two neighbouring populations, since nothing else matters to the
//! hockey-stick divergence.

use std::cell::OnceCell;
use std::collections::BTreeMap;

/// How many deviations of noise are gone through; beyond lies a mass below 1e-16.
const REACH: f64 = 8.5;

/// One coordinate of a release on a small lattice: its noise, in points.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    /// Sigma of the noise.
    pub(crate) sigma: f64,
    /// Whether the small lattice stands for one that is finer by orders of magnitude.
    pub(crate) stands_for_a_finer_one: bool,
}

impl Axis {
    fn reach(self) -> i64 {
        (REACH * self.sigma).ceil() as i64
    }

    /// The masses of -reach to reach.
    fn masses(self) -> Vec<f64> {
        let weight = |x: i64| (-0.5 * (x as f64 / self.sigma).powi(2)).exp();
        let weights: Vec<f64> = (-self.reach()..=self.reach()).map(weight).collect();
        let total: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / total).collect()
    }

    /// By what part of itself delta may differ between a sum over the small lattice and one over the fine lattice it stands
    /// for: the rule of the trapezoid, for a tail at six deviations.
    pub(crate) fn allowance(self) -> f64 {
        if self.stands_for_a_finer_one { 3.0 / (self.sigma * self.sigma) } else { 0.0 }
    }
}

/// One way in which a release may come about: its chance, and the noiseless sums in the order of the axes; none when the round
/// releases nothing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) chance: f64,
    pub(crate) sums: Option<Vec<i64>>,
}

/// The chance of every outcome under two populations.
#[derive(Clone, Debug)]
pub(crate) struct Cells {
    chances: Vec<(f64, f64)>,
    /// The same in order, once asked for: as one population against the other, and turned.
    tails: OnceCell<[Tails; 2]>,
}

impl Cells {
    fn new(chances: Vec<(f64, f64)>) -> Self {
        Self { chances, tails: OnceCell::new() }
    }

    /// Nothing was released: one outcome that tells nothing.
    fn nothing() -> Self {
        Self::new(vec![(1.0, 1.0)])
    }

    /// Of one charged release by populations `one` and `other`. A round that releases nothing is seen, costs nothing and is
    /// followed by another.
    pub(crate) fn of_release(one: &[Outcome], other: &[Outcome], axes: &[Axis]) -> Self {
        let failed = |outcomes: &[Outcome]| -> f64 {
            outcomes.iter().filter(|outcome| outcome.sums.is_none()).map(|outcome| outcome.chance).sum()
        };
        let (fails_one, fails_other) = (failed(one), failed(other));
        let released = Self::of_mixture(one, other, axes);
        if fails_one == 0.0 && fails_other == 0.0 {
            return released;
        }
        let released = released.merged();
        let mut cells = Vec::new();
        let (mut before_one, mut before_other) = (1.0, 1.0);
        // Ten rounds without a release end a run.
        for _ in 0..10 {
            cells.extend(released.chances.iter().map(|(a, b)| (a * before_one, b * before_other)));
            (before_one, before_other) = (before_one * fails_one, before_other * fails_other);
        }
        cells.push((before_one, before_other));
        Self::new(cells)
    }

    fn of_mixture(one: &[Outcome], other: &[Outcome], axes: &[Axis]) -> Self {
        let masses: Vec<Vec<f64>> = axes.iter().map(|axis| axis.masses()).collect();
        let sums = || one.iter().chain(other).filter_map(|outcome| outcome.sums.as_ref());
        let ranges: Vec<(i64, i64)> = axes
            .iter()
            .enumerate()
            .map(|(at, axis)| {
                let of = || sums().map(|sums| sums[at]);
                (of().min().unwrap_or(0) - axis.reach(), of().max().unwrap_or(0) + axis.reach())
            })
            .collect();
        let mass = |axis: usize, offset: i64| {
            let place = offset + axes[axis].reach();
            usize::try_from(place).ok().and_then(|place| masses[axis].get(place)).copied().unwrap_or(0.0)
        };
        // By axis and outcome, the mass at every value.
        let tables = |outcomes: &[Outcome]| -> Vec<(f64, Vec<Vec<f64>>)> {
            let of = |outcome: &Outcome| {
                let sums = outcome.sums.clone()?;
                let table = ranges.iter().enumerate().map(|(axis, (least, most))| {
                    (*least..=*most).map(|value| mass(axis, value - sums[axis])).collect()
                });
                Some((outcome.chance, table.collect()))
            };
            outcomes.iter().filter_map(of).collect()
        };
        let (one, other) = (tables(one), tables(other));
        let lengths: Vec<usize> = ranges.iter().map(|(least, most)| (most - least + 1) as usize).collect();
        let mut cells = Vec::new();
        let at = |tables: &[(f64, Vec<Vec<f64>>)], place: &[usize]| -> f64 {
            let of = |(chance, table): &(f64, Vec<Vec<f64>>)| {
                chance * table.iter().zip(place).map(|(axis, at)| axis[*at]).product::<f64>()
            };
            tables.iter().map(of).sum()
        };
        let mut place = vec![0; axes.len()];
        loop {
            cells.push((at(&one, &place), at(&other, &place)));
            let Some(axis) = (0..place.len()).find(|axis| place[*axis] + 1 < lengths[*axis]) else { break };
            place[..axis].fill(0);
            place[axis] += 1;
        }
        Self::new(cells)
    }

    /// Cells whose losses lie within 0.002 of each other as one: less is seen then, so that what follows is a lower bound.
    fn merged(&self) -> Self {
        let mut bins: BTreeMap<i64, (f64, f64)> = BTreeMap::new();
        for (a, b) in &self.chances {
            let loss = (a / b).ln();
            let bin = if loss.is_finite() {
                (loss / 0.002).floor() as i64
            } else {
                i64::MAX - i64::from(*a == 0.0)
            };
            let sums = bins.entry(bin).or_default();
            *sums = (sums.0 + a, sums.1 + b);
        }
        Self::new(bins.into_values().collect())
    }

    /// The least delta at `epsilon` of independent releases together, in both directions.
    pub(crate) fn delta(releases: &[&Self], epsilon: f64) -> f64 {
        let [before @ .., last] = releases else { return 0.0 };
        let joint = match before {
            [] => &Self::nothing(),
            [first] => *first,
            [first, others @ ..] => &others.iter().fold((*first).clone(), |joint, next| {
                let (joint, next) = (joint.merged(), next.merged());
                let pairs = |&(a, b): &(f64, f64)| next.chances.iter().map(move |(c, d)| (a * c, b * d));
                Self::new(joint.chances.iter().flat_map(pairs).collect())
            }),
        };
        let deltas =
            joint.tails().iter().zip(last.tails()).map(|(joint, last)| joint.beyond_with(last, epsilon));
        deltas.fold(0.0, f64::max)
    }

    /// The least epsilon at `delta`, to three digits, for messages.
    pub(crate) fn epsilon(releases: &[&Self], delta: f64) -> f64 {
        let (mut low, mut high) = (0.0, 64.0);
        while high - low > 1e-3 {
            let middle = 0.5 * (low + high);
            if Self::delta(releases, middle) > delta { low = middle } else { high = middle }
        }
        high
    }

    fn tails(&self) -> &[Tails; 2] {
        self.tails.get_or_init(|| {
            [Tails::of(self.chances.iter().copied()), Tails::of(self.chances.iter().map(|&(a, b)| (b, a)))]
        })
    }
}

/// Losses from the largest down, each with its chance and with the chance of at least that loss, under either population.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tails(Vec<Tail>);

#[derive(Clone, Copy, Debug)]
struct Tail {
    loss: f64,
    chances: (f64, f64),
    at_least: (f64, f64),
}

impl Tails {
    fn of(cells: impl Iterator<Item = (f64, f64)>) -> Self {
        // What is left out has a mass below 1e-22 altogether.
        let possible = cells.filter(|(a, b)| *a > 0.0 && f64::max(*a, *b) > 1e-29);
        let mut cells: Vec<(f64, f64, f64)> = possible.map(|(a, b)| ((a / b).ln(), a, b)).collect();
        cells.sort_unstable_by(|one, other| other.0.total_cmp(&one.0));
        let mut at_least = (0.0, 0.0);
        let of = |(loss, a, b)| {
            at_least = (at_least.0 + a, at_least.1 + b);
            Tail { loss, chances: (a, b), at_least }
        };
        Self(cells.into_iter().map(of).collect())
    }

    /// Of one Gaussian coordinate that moves by `shift`.
    pub(crate) fn of_shift(axis: Axis, shift: i64) -> Self {
        let outcome = |sum: i64| [Outcome { chance: 1.0, sums: Some(vec![sum]) }];
        let [forwards, _backwards] = Cells::of_release(&outcome(shift), &outcome(0), &[axis]).tails().clone();
        forwards
    }

    /// What a cell of chances `a` and `b` and everything after it add to delta.
    pub(crate) fn beyond(&self, a: f64, b: f64, epsilon: f64) -> f64 {
        if a <= 0.0 {
            return 0.0;
        }
        let needed = epsilon - (a / b).ln();
        self.beyond_first(self.0.partition_point(|tail| tail.loss > needed), (a, b), epsilon)
    }

    fn beyond_first(&self, above: usize, (a, b): (f64, f64), epsilon: f64) -> f64 {
        let Some(last) = above.checked_sub(1).map(|last| self.0[last]) else { return 0.0 };
        (a * last.at_least.0 - epsilon.exp() * b * last.at_least.1).max(0.0)
    }

    /// The delta of these and then `after`: the smaller a loss is here, the larger it must be there.
    fn beyond_with(&self, after: &Self, epsilon: f64) -> f64 {
        let mut above = after.0.len();
        let mut sum = 0.0;
        for first in &self.0 {
            let needed = epsilon - first.loss;
            while above > 0 && after.0[above - 1].loss <= needed {
                above -= 1;
            }
            sum += after.beyond_first(above, first.chances, epsilon);
        }
        sum
    }
}
