//! Weights that are known to work well.
//!
//! Cutting a series after some bands, and rounding it to 2^-20, makes another mechanism than the paper's. That is no loss of
//! privacy: sensitivity is always computed from the weights that are really used.

/// 2^20, the unit of weights.
const UNIT: f64 = (1 << super::WEIGHT_BITS) as f64;

/// The first `bands` weights whose full series makes the strategy the square root of the prefix sums: those of
/// 1 - (1 - x)^(1/2), which is 1/2, 1/8, 1/16 and so on, rounded down to 2^-20. Fichtenberger, Henzinger, Upadhyay, "Constant
/// Matters" (2022, arXiv 2202.11205).
pub fn square_root_weights(bands: usize) -> Vec<u32> {
    let next = |weight: &f64, i: usize| weight * (2 * i - 1) as f64 / (2 * i + 2) as f64;
    let mut weight = 0.5;
    let mut weights = Vec::with_capacity(bands);
    for i in 1..=bands {
        weights.push(whole(weight));
        weight = next(&weight, i);
    }
    weights
}

/// The first `bands` weights of the inverse of a buffered linear Toeplitz strategy with these (`decay`, `scale`) pairs, as
/// [`Toeplitz::buffered`] has them, rounded down to 2^-20. Dvijotham et al. (2024, arXiv 2404.16706); McMahan, Xu, Zhang, "A
/// Hassle-free Algorithm for Private Learning in Practice" (2024, arXiv 2408.08868).
///
/// A weight outside 0 to 1 becomes the nearest of them. Their buffers need less memory than bands do; the noise of a buffer is
/// no whole number, though, which is why there are bands here.
///
/// [`Toeplitz::buffered`]: crate::accounting::matrix::Toeplitz::buffered
pub fn buffered_weights(buffers: &[(f64, f64)], bands: usize) -> Vec<u32> {
    let mut scales: Vec<f64> = buffers.iter().map(|(_, scale)| *scale).collect();
    let mut strategy = Vec::with_capacity(bands);
    let mut exact: Vec<f64> = Vec::with_capacity(bands);
    for at in 0..bands {
        strategy.push(scales.iter().sum::<f64>());
        scales.iter_mut().zip(buffers).for_each(|(scale, (decay, _))| *scale *= decay);
        let carried: f64 = exact.iter().rev().zip(&strategy).map(|(weight, c)| weight * c).sum();
        exact.push(strategy[at] - carried);
    }
    exact.into_iter().map(whole).collect()
}

fn whole(weight: f64) -> u32 {
    (weight.clamp(0.0, 1.0) * UNIT).floor() as u32
}
