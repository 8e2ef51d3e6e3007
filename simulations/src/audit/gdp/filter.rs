//! The best score of several releases whose noise is correlated: each weighed by how little noise is in it once what is known
//! of the noise of the others is taken off. Nothing is drawn here.

use privacy::correlation::{CorrelatedNoise, Correlation};
use privacy::noise::Provenance;

use super::Seen;

/// What a draw of 1 stands for: large enough that rounding shows nothing.
const UNIT: i64 = 1 << 40;

/// Weights of the rounds of a run.
pub(super) struct Filter {
    /// By round, of the update.
    weights: Vec<f64>,
    /// What the weights give of an update that is in every round of the schedule.
    whole: f64,
    schedule: Vec<bool>,
}

impl Filter {
    /// For a canary that takes part in the rounds that `schedule` names.
    pub(super) fn new(correlation: &Correlation, schedule: &[bool]) -> Self {
        let in_round: Vec<f64> = schedule.iter().map(|takes_part| f64::from(u8::from(*takes_part))).collect();
        let weights = solve(covariance(correlation, schedule.len()), in_round.clone());
        let whole = weights.iter().zip(&in_round).map(|(weight, part)| weight * part).sum();
        Self { weights, whole, schedule: schedule.to_vec() }
    }

    /// 1 on average for a run with the canary and 0 for one without, with as little scatter as can be; `precisions` are one
    /// over the squared deviations of a round's own noise, of the update and of the votes.
    pub(super) fn score(&self, seen: &[Seen], (update, votes): (f64, f64)) -> f64 {
        let of_updates: f64 = self.weights.iter().zip(seen).map(|(weight, seen)| weight * seen.update).sum();
        let of_votes: f64 =
            self.schedule.iter().zip(seen).filter(|(part, _)| **part).map(|(_, seen)| seen.votes).sum();
        let rounds = self.schedule.iter().filter(|takes_part| **takes_part).count() as f64;
        (update * of_updates + votes * of_votes) / (update * self.whole + votes * rounds)
    }
}

/// The covariance of the noise of `rounds` releases, in units of the variance of one draw.
fn covariance(correlation: &Correlation, rounds: usize) -> Vec<Vec<f64>> {
    // By draw, what it adds to each release.
    let responses: Vec<Vec<f64>> = (0..rounds)
        .map(|drawn| {
            let mut noise = CorrelatedNoise::new(correlation.clone(), 1);
            let of = |round: usize| {
                let mut draw = |values: &mut [i64]| {
                    values[0] += if round == drawn { UNIT } else { 0 };
                    Ok(Provenance::InsecureTest)
                };
                let released = noise.release(vec![0], &mut draw).expect("one draw fits 64 bits");
                released.0[0] as f64 / UNIT as f64
            };
            (0..rounds).map(of).collect()
        })
        .collect();
    let entry = |one: usize, other: usize| responses.iter().map(|drawn| drawn[one] * drawn[other]).sum();
    (0..rounds).map(|one| (0..rounds).map(|other| entry(one, other)).collect()).collect()
}

/// The x of `matrix` x = `right`, for a positive definite matrix, by elimination.
fn solve(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    let size = right.len();
    for pivot in 0..size {
        let (above, below) = matrix.split_at_mut(pivot + 1);
        let known = &above[pivot];
        for (place, row) in (pivot + 1..).zip(below) {
            let factor = row[pivot] / known[pivot];
            row.iter_mut().zip(known).for_each(|(value, known)| *value -= factor * known);
            right[place] -= factor * right[pivot];
        }
    }
    for row in (0..size).rev() {
        let known: f64 = (row + 1..size).map(|column| matrix[row][column] * right[column]).sum();
        right[row] = (right[row] - known) / matrix[row][row];
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_is_solved() {
        let solved = solve(vec![vec![4.0, 1.0], vec![1.0, 3.0]], vec![1.0, 2.0]);
        assert!((solved[0] - 1.0 / 11.0).abs() < 1e-12 && (solved[1] - 7.0 / 11.0).abs() < 1e-12);
    }

    #[test]
    fn noise_that_is_taken_back_is_known_to_the_attacker() {
        let seen = |update: f64| Seen { update, votes: 0.0 };
        // All of the first round's noise is taken back in the second: their sum holds the second draw alone.
        let banded = Correlation::Banded { weights: vec![1 << 20] };
        let filter = Filter::new(&banded, &[true, true]);
        let score = filter.score(&[seen(1.0), seen(1.0)], (1.0, 0.0));
        assert!((score - 1.0).abs() < 1e-12);
        assert!((filter.whole - 5.0).abs() < 1e-9, "one and two of them in the two draws: 1 + 4");
        assert!((Filter::new(&Correlation::Independent, &[true, true]).whole - 2.0).abs() < 1e-12);
    }
}
