//! How far one unit can move what a correlated-noise mechanism encodes.
//!
//! The mechanism factors the prefix sums A = B C and releases A x + B z: noise z of standard deviation noise multiplier
//! times the sensitivity of C is as private as one Gaussian release of that multiplier. Denisov, McMahan, Rush, Smith,
//! Thakurta, "Improved Differential Privacy for SGD via Optimal Private Linear Operators" (2022, arXiv 2202.08312);
//! Choquette-Choo et al., "Multi-Epoch Matrix Factorization Mechanisms" (2023, arXiv 2211.06530); the same, "(Amplified)
//! Banded Matrix Factorization" (2023, arXiv 2306.08153), Theorem 2; Dvijotham et al., "Efficient and Near-Optimal Noise
//! Generation for Streaming Differential Privacy" (2024, arXiv 2404.16706).
//!
//! A unit takes part at most k times, in rounds whose numbers differ by at least b, with contributions of norm 1 at
//! most. Matrices that are neither non-negative, non-increasing Toeplitz nor banded within b are refused: their
//! sensitivity has no such simple form. No noise is made here.

use super::AccountingError;

/// The first column of a lower-triangular Toeplitz matrix, one coefficient a round.
#[derive(Clone, Debug, PartialEq)]
pub struct Toeplitz {
    coefficients: Vec<f64>,
}

impl Toeplitz {
    /// The matrix whose first column is `coefficients`: finite, non-negative, non-increasing, the first above 0.
    ///
    /// # Errors
    /// [`AccountingError::Parameter`] with the first coefficient at fault.
    pub fn new(coefficients: Vec<f64>) -> Result<Self, AccountingError> {
        let refuse = |value: f64| {
            let range = "a finite, non-negative, non-increasing column that begins above 0";
            AccountingError::Parameter { name: "a coefficient", value, range }
        };
        let first = coefficients.first().copied().unwrap_or(0.0);
        if !(first > 0.0 && first.is_finite()) {
            return Err(refuse(first));
        }
        for pair in coefficients.windows(2) {
            if !(pair[1] >= 0.0 && pair[1] <= pair[0]) {
                return Err(refuse(pair[1]));
            }
        }
        Ok(Self { coefficients })
    }

    /// The square root of the prefix-sum matrix over `steps` rounds, cut to its first `bands` diagonals.
    ///
    /// # Errors
    /// [`AccountingError::Parameter`] for no steps or no bands.
    pub fn square_root(steps: usize, bands: usize) -> Result<Self, AccountingError> {
        let mut coefficients = Vec::with_capacity(steps);
        let mut last = 1.0;
        for i in 0..steps {
            coefficients.push(if i < bands { last } else { 0.0 });
            last *= (2 * i + 1) as f64 / (2 * i + 2) as f64;
        }
        Self::new(coefficients)
    }

    /// The buffered linear Toeplitz matrix over `steps` rounds: 1, then the sum of scale times decay to the power i - 1
    /// over its (`decay`, `scale`) pairs.
    ///
    /// # Errors
    /// [`AccountingError::Parameter`] where the coefficients are not as [`Toeplitz::new`] wants them.
    pub fn buffered(steps: usize, buffers: &[(f64, f64)]) -> Result<Self, AccountingError> {
        let mut coefficients = Vec::with_capacity(steps);
        let mut scales: Vec<f64> = buffers.iter().map(|(_, scale)| *scale).collect();
        for i in 0..steps {
            if i == 0 {
                coefficients.push(1.0);
                continue;
            }
            coefficients.push(scales.iter().sum());
            for (scale, (decay, _)) in scales.iter_mut().zip(buffers) {
                *scale *= decay;
            }
        }
        Self::new(coefficients)
    }

    /// The inverse, over `steps` rounds, of the lower-triangular Toeplitz matrix whose first column is 1 and then the negated
    /// `weights`: the power series of 1 / (1 - sum of w_j x^j).
    ///
    /// # Errors
    /// [`AccountingError::Parameter`] where the coefficients are not as [`Toeplitz::new`] wants them.
    pub fn inverse_of(steps: usize, weights: &[f64]) -> Result<Self, AccountingError> {
        let mut coefficients = Vec::with_capacity(steps);
        for at in 0..steps {
            let carried: f64 =
                weights.iter().zip(1..=at).map(|(weight, j)| weight * coefficients[at - j]).sum();
            coefficients.push(if at == 0 { 1.0 } else { carried });
        }
        Self::new(coefficients)
    }

    /// The L2 sensitivity when a unit takes part at most `participations_max` times (1 or more), in rounds at least
    /// `separation_min` (1 or more) apart: the worst schedule begins at once and wastes no round.
    ///
    /// # Errors
    /// [`AccountingError::Parameter`] for 0.
    pub fn sensitivity(&self, participations_max: u64, separation_min: u64) -> Result<f64, AccountingError> {
        check_schedule(participations_max, separation_min)?;
        let separation = usize::try_from(separation_min).unwrap_or(usize::MAX);
        let participations = usize::try_from(participations_max).unwrap_or(usize::MAX);
        Ok(norm(&self.moved(participations, separation)))
    }

    /// How far each round is moved by a unit that takes part from the first round on, every `separation` rounds, `most` times:
    /// entry t sums the coefficients t, t - separation, and so on, `most` of them at most.
    ///
    /// One pass, whatever the numbers: the rounds of one residue are cut into blocks of `most`, and a window of `most` of them is
    /// the end of one block and the beginning of the next. Nothing is subtracted, so nothing cancels.
    fn moved(&self, most: usize, separation: usize) -> Vec<f64> {
        let c = &self.coefficients;
        let steps = c.len();
        let place = |t: usize| t / separation % most;
        let mut begun = c.clone();
        for t in separation..steps {
            if place(t) != 0 {
                begun[t] += begun[t - separation];
            }
        }
        // Where no window leaves its first block, the beginnings are all.
        if most.checked_mul(separation).is_none_or(|all| all >= steps) {
            return begun;
        }
        let mut ended = c.clone();
        for t in (0..steps - separation).rev() {
            if place(t) != most - 1 {
                ended[t] += ended[t + separation];
            }
        }
        let mut moved = begun;
        for t in (most * separation..steps).filter(|t| place(*t) != most - 1) {
            moved[t] += ended[t - (most - 1) * separation];
        }
        moved
    }

    /// The L2 sensitivity when a unit takes part in every round, whatever the number of rounds.
    pub fn sensitivity_of_every_round(&self) -> f64 {
        norm(&prefix_sums(&self.coefficients))
    }

    /// The largest L2 norm of a row of B = A C^-1: the noise on the worst prefix sum, for noise z of deviation 1.
    pub fn error_max(&self) -> f64 {
        let c = &self.coefficients;
        let mut inverse: Vec<f64> = Vec::with_capacity(c.len());
        for i in 0..c.len() {
            let carried: f64 = (1..=i).map(|j| c[j] * inverse[i - j]).sum();
            inverse.push(((if i == 0 { 1.0 } else { 0.0 }) - carried) / c[0]);
        }
        norm(&prefix_sums(&inverse))
    }
}

/// The L2 sensitivity of any lower-triangular matrix of at most `bands` diagonals, `bands` at most `separation_min`:
/// columns so far apart are orthogonal, so the worst schedule takes the largest admissible `column_norms`.
///
/// # Errors
/// [`AccountingError::Parameter`] for more bands than the separation, for 0, or a norm that is negative or not finite.
pub fn banded_sensitivity(
    column_norms: &[f64],
    bands: u64,
    participations_max: u64,
    separation_min: u64,
) -> Result<f64, AccountingError> {
    check_schedule(participations_max, separation_min)?;
    if bands > separation_min {
        let range = "1 to the separation of two participations";
        return Err(AccountingError::Parameter { name: "the number of bands", value: bands as f64, range });
    }
    if let Some(&value) = column_norms.iter().find(|norm| !(**norm >= 0.0 && norm.is_finite())) {
        let range = "the finite numbers from 0";
        return Err(AccountingError::Parameter { name: "a column's norm", value, range });
    }
    let separation = usize::try_from(separation_min).unwrap_or(usize::MAX);
    let possible = column_norms.len().div_ceil(separation) as u64;
    // best[i]: the largest sum of squares of one more participation than before, all of them before column i.
    let mut best = vec![0.0; column_norms.len() + 1];
    for _ in 0..participations_max.min(possible) {
        let mut next = vec![0.0_f64; column_norms.len() + 1];
        for (i, norm) in column_norms.iter().enumerate() {
            let before = best[(i + 1).saturating_sub(separation)];
            next[i + 1] = next[i].max(before + norm * norm);
        }
        best = next;
    }
    Ok(best[column_norms.len()].sqrt())
}

fn check_schedule(participations_max: u64, separation_min: u64) -> Result<(), AccountingError> {
    let range = "the whole numbers from 1";
    if participations_max == 0 {
        return Err(AccountingError::Parameter { name: "the number of participations", value: 0.0, range });
    }
    if separation_min == 0 {
        return Err(AccountingError::Parameter {
            name: "the separation of two participations",
            value: 0.0,
            range,
        });
    }
    Ok(())
}

fn prefix_sums(values: &[f64]) -> Vec<f64> {
    let add = |sum: &mut f64, value: &f64| {
        *sum += value;
        Some(*sum)
    };
    values.iter().scan(0.0, add).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_band_is_independent_noise() {
        let identity = Toeplitz::square_root(100, 1).unwrap();
        assert_eq!(identity.sensitivity(4, 10).unwrap(), 2.0);
        assert_eq!(identity.sensitivity(u64::MAX, u64::MAX).unwrap(), 1.0);
        assert!((identity.error_max() - 10.0).abs() < 1e-12);
    }

    /// The largest norm of the matrix times contributions of -1 and 1 in rounds of an admissible schedule, one by one.
    fn brute(matrix: &Toeplitz, participations_max: usize, separation_min: usize) -> f64 {
        fn extend(matrix: &Toeplitz, column: &[f64], next: usize, left: usize, separation: usize) -> f64 {
            let mut best = norm(column);
            for start in next..column.len() * usize::from(left > 0) {
                for sign in [-1.0, 1.0] {
                    let mut with = column.to_vec();
                    with[start..].iter_mut().zip(&matrix.coefficients).for_each(|(sum, c)| *sum += sign * c);
                    best = best.max(extend(matrix, &with, start + separation, left - 1, separation));
                }
            }
            best
        }
        extend(matrix, &vec![0.0; matrix.coefficients.len()], 0, participations_max, separation_min)
    }

    #[test]
    fn no_schedule_moves_an_inverse_of_bands_further_than_the_worst_one_named() {
        let kinds: [&[f64]; 5] = [&[], &[0.5], &[0.5, 0.125, 0.0625], &[1.0], &[0.45, 0.1455, 0.1]];
        for weights in kinds {
            for steps in 1..=7 {
                let matrix = Toeplitz::inverse_of(steps, weights).unwrap();
                for (participations, separation) in [(1, 1), (2, 1), (7, 1), (2, 2), (3, 2), (7, 3), (2, 9)] {
                    let wanted = brute(&matrix, participations, separation);
                    let found = matrix.sensitivity(participations as u64, separation as u64).unwrap();
                    assert!(
                        (found - wanted).abs() < 1e-12,
                        "{weights:?} {steps} {participations} {separation}"
                    );
                }
                let every = matrix.sensitivity(u64::MAX, 1).unwrap();
                assert!((matrix.sensitivity_of_every_round() - every).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn the_worst_schedule_is_summed_in_one_pass_to_what_adding_it_up_gives() {
        let matrix = Toeplitz::inverse_of(200, &[0.5, 0.125, 0.0625]).unwrap();
        for most in [1, 2, 3, 7, 50, 199, 200, 201, usize::MAX] {
            for separation in [1, 2, 3, 10, 66, 67, 100, 199, 200, 500, usize::MAX] {
                let mut column = vec![0.0; 200];
                for start in (0..200).step_by(separation).take(most) {
                    let shifted = column[start..].iter_mut().zip(&matrix.coefficients);
                    shifted.for_each(|(sum, coefficient)| *sum += coefficient);
                }
                for (found, wanted) in matrix.moved(most, separation).iter().zip(&column) {
                    assert!(
                        (found - wanted).abs() <= 1e-12 * wanted,
                        "{most} {separation}: {found} {wanted}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_unit_in_each_of_a_million_rounds_takes_one_pass() {
        // Added up one participation after the other, this would take half an hour.
        let matrix = Toeplitz::inverse_of(1_000_000, &[0.5, 0.125, 0.0625]).unwrap();
        let often = matrix.sensitivity(500_000, 1).unwrap();
        assert!(often.is_finite() && often < matrix.sensitivity(u64::MAX, 1).unwrap());
    }

    #[test]
    fn an_inverse_undoes_its_bands() {
        let weights = [0.5, 0.125, 0.0625];
        let inverse = Toeplitz::inverse_of(40, &weights).unwrap();
        for at in 1..40 {
            let carried: f64 =
                weights.iter().zip(1..=at).map(|(w, j)| w * inverse.coefficients[at - j]).sum();
            assert_eq!(inverse.coefficients[at], carried);
        }
        // The column 1, 0, 1 rises.
        assert!(Toeplitz::inverse_of(4, &[0.0, 1.0]).is_err() && Toeplitz::inverse_of(0, &[]).is_err());
    }

    #[test]
    fn banded_and_toeplitz_agree_where_both_hold() {
        let (steps, bands) = (64, 8);
        let toeplitz = Toeplitz::square_root(steps, bands).unwrap();
        let norms: Vec<f64> =
            (0..steps).map(|start| norm(&toeplitz.coefficients[..bands.min(steps - start)])).collect();
        for (participations, separation) in [(1, 8), (3, 8), (3, 20), (100, 11)] {
            let wanted = toeplitz.sensitivity(participations, separation).unwrap();
            let found = banded_sensitivity(&norms, 8, participations, separation).unwrap();
            assert!((found - wanted).abs() < 1e-12, "{participations} {separation}");
        }
    }

    #[test]
    fn the_worst_columns_are_found_wherever_they_are() {
        let norms = [1.0, 3.0, 2.0, 0.0, 3.0, 1.0];
        assert_eq!(banded_sensitivity(&norms, 1, 1, 3).unwrap(), 3.0);
        assert_eq!(banded_sensitivity(&norms, 2, 2, 3).unwrap(), 18.0_f64.sqrt());
        assert_eq!(banded_sensitivity(&norms, 2, 2, 4).unwrap(), 10.0_f64.sqrt());
        assert_eq!(banded_sensitivity(&[], 1, 2, 4).unwrap(), 0.0);
    }

    #[test]
    fn matrices_and_schedules_without_a_formula_are_refused() {
        assert!(Toeplitz::new(vec![]).is_err() && Toeplitz::new(vec![0.0]).is_err());
        for bad in [f64::NAN, -0.1, 1.1] {
            assert!(Toeplitz::new(vec![1.0, bad]).is_err(), "{bad}");
        }
        assert!(Toeplitz::buffered(10, &[(0.5, 2.0)]).is_err(), "the column would rise");
        let column = Toeplitz::square_root(4, 4).unwrap();
        assert!(column.sensitivity(0, 1).is_err() && column.sensitivity(1, 0).is_err());
        assert!(
            banded_sensitivity(&[1.0], 3, 1, 2).is_err() && banded_sensitivity(&[f64::NAN], 1, 1, 2).is_err()
        );
    }
}
