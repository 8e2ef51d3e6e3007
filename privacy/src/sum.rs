//! The exact integer sum of a round's contributions.
//!
//! Integer addition is associative: order, threads and shards cannot change one bit of the result. Floating-point
//! sums are not, and their true sensitivity can be far above the nominal one (Casacuberta, Shoemate, Vadhan,
//! Wagaman 2022).

use crate::kernels;
use crate::lattice::{Encoded, Lattice};
use crate::statistics::Statistics;
use crate::wide::WideSum;

/// The running sum of one round. Its memory is eight bytes a coordinate, whatever the cohort.
///
/// `Debug` is absent on purpose: a raw sum is never printed.
#[expect(missing_debug_implementations, reason = "what it holds is never printed")]
pub struct Sum {
    pub(crate) totals: Vec<i64>,
    pub(crate) weight: u64,
    pub(crate) contributions: u64,
    pub(crate) votes: i64,
    pub(crate) unit: Unit,
}

/// What is summed.
pub(crate) enum Unit {
    /// Points of a lattice, in `totals`.
    Lattice(Lattice),
    /// Statistics, one exact sum each; `totals` is empty then.
    Statistics { clients_max: u64, sums: Vec<WideSum> },
}

/// Why a contribution cannot be added. The sum is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SumError {
    /// The sum already holds as many contributions as it was planned for.
    #[error("the sum already holds {0} contributions, the most its lattice allows")]
    Full(u64),
    /// The contribution belongs to another lattice (other layers, say), or to another kind of sum.
    #[error("the contribution was encoded for another plan than this sum's")]
    Foreign,
}

impl Sum {
    /// An empty sum of updates on `lattice`.
    pub fn new(lattice: &Lattice) -> Self {
        let totals = vec![0; lattice.dimension()];
        Self { totals, weight: 0, contributions: 0, votes: 0, unit: Unit::Lattice(lattice.clone()) }
    }

    /// An empty sum of `count` statistics, for at most `clients_max` contributions (at most 2^22).
    pub fn of_statistics(count: usize, clients_max: u64) -> Self {
        let unit =
            Unit::Statistics { clients_max: clients_max.min(1 << 22), sums: vec![WideSum::default(); count] };
        Self { totals: Vec::new(), weight: 0, contributions: 0, votes: 0, unit }
    }

    /// Adds an update.
    ///
    /// # Errors
    /// [`SumError`]; the sum is unchanged then.
    pub fn add(&mut self, update: &Encoded) -> Result<(), SumError> {
        if !matches!(&self.unit, Unit::Lattice(lattice) if lattice == update.lattice()) {
            return Err(SumError::Foreign);
        }
        self.make_room(update.lattice().clients_max())?;
        let weight = update.weight().value();
        kernels::add(&mut self.totals, update.points(), weight.cast_signed());
        self.weight += u64::from(weight);
        Ok(())
    }

    /// Adds one site's statistics.
    ///
    /// # Errors
    /// [`SumError`]; the sum is unchanged then.
    pub fn add_statistics(&mut self, statistics: &Statistics) -> Result<(), SumError> {
        let Unit::Statistics { clients_max, sums } = &self.unit else { return Err(SumError::Foreign) };
        if statistics.len() != sums.len() {
            return Err(SumError::Foreign);
        }
        self.make_room(*clients_max)?;
        if let Unit::Statistics { sums, .. } = &mut self.unit {
            sums.iter_mut().zip(statistics.sums()).for_each(|(total, one)| total.add_sum(&one));
        }
        self.weight += 1;
        Ok(())
    }

    /// Counts one client's vote on the clipping norm (see [`crate::adaptive::QuantileClip::vote`]): within it, or not.
    pub fn count_vote(&mut self, within: bool) {
        self.votes += if within { 1 } else { -1 };
    }

    /// Contributions so far.
    pub fn contributions(&self) -> u64 {
        self.contributions
    }

    /// Counts one more contribution: the planned bounds make overflow impossible for as many as `clients_max`.
    fn make_room(&mut self, clients_max: u64) -> Result<(), SumError> {
        if self.contributions >= clients_max {
            return Err(SumError::Full(clients_max));
        }
        self.contributions += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NormBound, Released, clip};
    use proptest::prelude::*;

    fn encoded(values: &[f32], examples: u64, lattice: &Lattice) -> Encoded {
        let clipped = clip(values.to_vec(), lattice.bound()).unwrap();
        Encoded::encode(&clipped, lattice.weigh(examples), lattice).unwrap()
    }

    fn lattice(dimension: usize) -> Lattice {
        Lattice::plan(NormBound::new(100.0).unwrap(), 20, 50, dimension).unwrap()
    }

    #[test]
    fn the_mean_is_weighted_by_examples_up_to_the_bound() {
        let lattice = lattice(1);
        let mut sum = Sum::new(&lattice);
        sum.add(&encoded(&[1.0], 10, &lattice)).unwrap();
        sum.add(&encoded(&[4.0], 20, &lattice)).unwrap();
        let mean: Vec<f64> = Released::unprotected(sum).unwrap().mean().collect();
        assert!((mean[0] - 3.0).abs() < 1e-6);
        let mut capped = Sum::new(&lattice);
        capped.add(&encoded(&[1.0], 50, &lattice)).unwrap();
        capped.add(&encoded(&[4.0], 1_000_000, &lattice)).unwrap();
        let mean: Vec<f64> = Released::unprotected(capped).unwrap().mean().collect();
        assert!((mean[0] - 2.5).abs() < 1e-6);
    }

    #[test]
    fn a_full_sum_takes_no_more() {
        let lattice = Lattice::plan(NormBound::new(1.0).unwrap(), 1, 1, 1).unwrap();
        let mut sum = Sum::new(&lattice);
        sum.add(&encoded(&[1.0], 1, &lattice)).unwrap();
        assert_eq!(sum.add(&encoded(&[1.0], 1, &lattice)), Err(SumError::Full(1)));
    }

    #[test]
    fn an_update_of_another_plan_is_foreign() {
        let (here, there) = (lattice(1), Lattice::plan(NormBound::new(1.0).unwrap(), 20, 50, 1).unwrap());
        assert_eq!(Sum::new(&here).add(&encoded(&[1.0], 1, &there)), Err(SumError::Foreign));
    }

    #[test]
    fn nothing_is_released_from_an_empty_sum() {
        assert!(Released::unprotected(Sum::new(&lattice(1))).is_none());
    }

    proptest! {
        #[test]
        fn the_sum_is_the_same_in_every_order(
            mut updates in prop::collection::vec((prop::collection::vec(-50f32..50.0, 5), 1u64..99), 1..20), turn in 0usize..20,
        ) {
            let lattice = lattice(5);
            let total = |updates: &[(Vec<f32>, u64)]| {
                let mut sum = Sum::new(&lattice);
                updates.iter().for_each(|(values, n)| sum.add(&encoded(values, *n, &lattice)).unwrap());
                Released::unprotected(sum).unwrap().mean().map(f64::to_bits).collect::<Vec<_>>()
            };
            let before = total(&updates);
            let turn = turn % updates.len();
            updates.rotate_left(turn);
            prop_assert_eq!(before, total(&updates));
        }
    }
}
