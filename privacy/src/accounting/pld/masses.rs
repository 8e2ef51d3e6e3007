//! A privacy loss distribution on a grid: what it promises, and what many of them promise together.
//!
//! Composition of releases is convolution of their losses (Dwork and Rothblum, 2016; Koskela, Jälkö, Honkela,
//! 2020). It is done once, as a product of powers of Fourier transforms, on a window outside which a Chernoff
//! bound leaves no more than [`TAIL`]; that mass, and the noise of the transform, is counted as infinite loss.
//! The transform's noise is why no delta below 1e-12 is answered.

use rustfft::{FftPlanner, num_complex::Complex};

/// The mass a composition may lose beyond its window; it is added to the infinite loss.
const TAIL: f64 = 1e-15;

/// The longest window of a composition: its transform takes 64 MiB.
pub(super) const LENGTH_MAX: usize = 1 << 22;

/// The masses of the losses `(lowest + i) * interval`, and of the infinite loss.
#[derive(Clone, Debug)]
pub(super) struct Masses {
    pub(super) interval: f64,
    pub(super) lowest: i64,
    pub(super) finite: Vec<f64>,
    pub(super) infinite: f64,
}

/// The window of a composition would be longer than [`LENGTH_MAX`], by about this factor: take a grid wider by
/// it.
#[derive(Clone, Copy, Debug)]
pub(super) struct TooLong {
    pub(super) factor: f64,
}

impl Masses {
    /// The least delta at which `epsilon` is promised.
    pub(super) fn delta(&self, epsilon: f64) -> f64 {
        let above = self.finite.iter().enumerate().rev().map(|(i, mass)| (self.loss(i), mass));
        let beyond = above.take_while(|(loss, _)| *loss > epsilon);
        let finite: f64 = beyond.map(|(loss, mass)| -(epsilon - loss).exp_m1() * mass).sum();
        (self.infinite + finite).min(1.0)
    }

    /// The least epsilon, not below 0, promised at `delta`; infinite when the infinite loss alone weighs more.
    ///
    /// Going down the grid, `beyond` is the delta at the current loss and `weight` the sum of the masses from
    /// there up, each times exp(current - own loss): both are sums of positive numbers.
    pub(super) fn epsilon(&self, delta: f64) -> f64 {
        if self.infinite > delta {
            return f64::INFINITY;
        }
        let shrink = (-self.interval).exp();
        let step = -(-self.interval).exp_m1();
        let (mut beyond, mut weight) = (self.infinite, 0.0);
        for (i, mass) in self.finite.iter().enumerate().rev() {
            let loss = self.loss(i);
            weight += mass;
            let next = beyond + step * weight;
            // The stretch of the curve that ends here, or the last one, which goes on below the grid.
            if next > delta || i == 0 {
                let share = (delta - beyond) / weight;
                return if share < 1.0 { (loss + (-share).ln_1p()).max(0.0) } else { 0.0 };
            }
            if loss <= 0.0 {
                return 0.0;
            }
            (beyond, weight) = (next, weight * shrink);
        }
        0.0
    }

    fn loss(&self, i: usize) -> f64 {
        (self.lowest + i as i64) as f64 * self.interval
    }

    /// `weight` of `self` mixed with `1 - weight` of `other`, on the same grid: which of the two it was is
    /// seen.
    pub(super) fn mixed(&self, other: &Self, weight: f64) -> Self {
        let lowest = self.lowest.min(other.lowest);
        let end = |masses: &Self| masses.lowest + masses.finite.len() as i64;
        let mut finite = vec![0.0; (end(self).max(end(other)) - lowest) as usize];
        for (masses, weight) in [(self, weight), (other, 1.0 - weight)] {
            let start = (masses.lowest - lowest) as usize;
            for (sum, mass) in finite[start..].iter_mut().zip(&masses.finite) {
                *sum += weight * mass;
            }
        }
        let infinite = weight * self.infinite + (1.0 - weight) * other.infinite;
        Self { interval: self.interval, lowest, finite, infinite }
    }
}

/// The composition of `count` releases of each of `parts`, all on one grid.
pub(super) fn compose(parts: &[(&Masses, u64)], interval: f64) -> Result<Masses, TooLong> {
    if let [(only, 1)] = parts {
        return Ok((*only).clone());
    }
    let (start, end) = window(parts);
    let length = end - start + 1.0;
    let longest = parts.iter().map(|(masses, _)| masses.finite.len()).max().unwrap_or(1);
    let factor = length.max(longest as f64) / LENGTH_MAX as f64;
    if factor.is_nan() || factor > 1.0 {
        return Err(TooLong { factor });
    }
    let size = nice_length((length as usize).max(longest));
    let product = transform_back(product_of_powers(parts, size));
    let lowest: i128 =
        parts.iter().map(|(masses, count)| i128::from(masses.lowest) * i128::from(*count)).sum();
    let Ok(lowest) = i64::try_from(lowest + start as i128) else { return Err(TooLong { factor: 2.0 }) };
    let turn = (start % size as f64) as usize;
    let mut finite = Vec::with_capacity(length as usize);
    let mut noise = 0.0;
    for i in 0..length as usize {
        let mass = product[(turn + i) % size].re / size as f64;
        finite.push(mass.max(0.0));
        noise += (-mass).max(0.0);
    }
    let kept: f64 = parts.iter().map(|(masses, count)| *count as f64 * (-masses.infinite).ln_1p()).sum();
    Ok(Masses { interval, lowest, finite, infinite: -kept.exp_m1() + TAIL + noise })
}

/// The first and the last cell, counted from the sum of the lowest losses, between which all but [`TAIL`] lies.
fn window(parts: &[(&Masses, u64)]) -> (f64, f64) {
    let mut start = 0.0_f64;
    let mut end: f64 = parts.iter().map(|(m, count)| (m.finite.len() as f64 - 1.0) * *count as f64).sum();
    let longest = parts.iter().map(|(masses, _)| masses.finite.len()).max().unwrap_or(1);
    let slack = (2.0 / TAIL).ln();
    for i in 0..40 {
        let order = 600.0 / longest as f64 * (-0.5 * f64::from(i)).exp2();
        end = end.min(((ln_moment(parts, order) + slack) / order).ceil());
        start = start.max(-((ln_moment(parts, -order) + slack) / order).ceil());
    }
    (start, end.max(start))
}

/// ln of the moment generating function of the whole sum at `order` for each cell, by Horner's rule.
fn ln_moment(parts: &[(&Masses, u64)], order: f64) -> f64 {
    let base = order.exp();
    let part = |masses: &Masses| masses.finite.iter().rev().fold(0.0, |sum, mass| sum * base + mass).ln();
    parts.iter().map(|(masses, count)| part(masses) * *count as f64).sum()
}

fn product_of_powers(parts: &[(&Masses, u64)], size: usize) -> Vec<Complex<f64>> {
    let forward = FftPlanner::new().plan_fft_forward(size);
    let mut product: Vec<Complex<f64>> = Vec::new();
    for (masses, count) in parts {
        let mut spectrum: Vec<_> = masses.finite.iter().map(|mass| Complex::new(*mass, 0.0)).collect();
        spectrum.resize(size, Complex::new(0.0, 0.0));
        forward.process(&mut spectrum);
        spectrum.iter_mut().for_each(|value| *value = power(*value, *count));
        if product.is_empty() {
            product = spectrum;
        } else {
            product.iter_mut().zip(&spectrum).for_each(|(product, value)| *product *= value);
        }
    }
    product
}

fn transform_back(mut spectrum: Vec<Complex<f64>>) -> Vec<Complex<f64>> {
    FftPlanner::new().plan_fft_inverse(spectrum.len()).process(&mut spectrum);
    spectrum
}

fn power(mut base: Complex<f64>, mut count: u64) -> Complex<f64> {
    let mut power = Complex::new(1.0, 0.0);
    while count > 0 {
        if count & 1 == 1 {
            power *= base;
        }
        base *= base;
        count >>= 1;
    }
    power
}

/// A length not below `length` for which the transform is quick: a power of two, or three quarters of one.
fn nice_length(length: usize) -> usize {
    let whole = length.next_power_of_two();
    let three_quarters = whole / 4 * 3;
    if three_quarters >= length && three_quarters > 0 { three_quarters } else { whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coin() -> Masses {
        // Randomised response with odds e: loss 1 with probability e/(1+e), else loss -1.
        let truth = 1.0 / (1.0 + (-1.0_f64).exp());
        Masses { interval: 0.5, lowest: -2, finite: vec![1.0 - truth, 0.0, 0.0, 0.0, truth], infinite: 0.0 }
    }

    #[test]
    fn randomised_response_has_its_textbook_curve() {
        let coin = coin();
        let truth = 1.0 / (1.0 + (-1.0_f64).exp());
        for epsilon in [0.0, 0.3, 0.9, 1.0, 1.5] {
            let exact = (truth - f64::exp(epsilon) * (1.0 - truth)).max(0.0);
            assert!((coin.delta(epsilon) - exact).abs() < 1e-15);
        }
        assert!((coin.epsilon(1e-9) - 1.0).abs() < 1e-8);
        assert_eq!(coin.epsilon(0.9), 0.0);
    }

    #[test]
    fn ten_coins_are_a_binomial() {
        let composed = compose(&[(&coin(), 10)], 0.5).unwrap();
        let (truth, lie) = (1.0 / (1.0 + (-1.0_f64).exp()), 1.0 / (1.0 + 1.0_f64.exp()));
        for epsilon in [0.0, 1.0, 3.3, 9.0] {
            let mut exact = 0.0;
            let mut choose = 1.0;
            for k in 0..=10_i32 {
                let mass = choose * truth.powi(k) * lie.powi(10 - k);
                let loss = f64::from(2 * k - 10);
                exact += mass * (1.0 - f64::exp(epsilon - loss)).max(0.0);
                choose = choose * f64::from(10 - k) / f64::from(k + 1);
            }
            let found = composed.delta(epsilon);
            assert!((found - exact).abs() < 1e-13, "{found} against {exact}");
            let back = composed.epsilon(exact + 1e-13);
            assert!(back <= epsilon + 1e-9, "{back} above {epsilon}");
        }
    }

    #[test]
    fn more_infinite_loss_than_delta_promises_nothing() {
        let masses = Masses { infinite: 1e-6, ..coin() };
        assert_eq!(masses.epsilon(1e-7), f64::INFINITY);
        let composed = compose(&[(&masses, 100)], 0.5).unwrap();
        assert!((composed.infinite - 1e-4).abs() < 1e-8);
    }
}
