//! Rényi divergence of the Gaussian mechanism over a sample of fixed size, when one unit is replaced by another.
//!
//! Wang, Balle, Kasiviswanathan, "Subsampled Rényi Differential Privacy and Analytical Moments Accountant" (2019),
//! Theorem 27 (the tight bound) and Corollary 10 (between integers). The theorem's alternating differences are moments
//! of (likelihood ratio - 1), which are taken here by quadrature of a positive integrand and not as differences of huge
//! numbers. Above [`TIGHT_MAX`] the theorem's simpler terms are used alone.

use super::super::special::{log_binomials, log_expm1, log_sum, softplus};

/// The largest order with the tight terms.
const TIGHT_MAX: u32 = 256;
const STEP: f64 = 0.05;

/// The bound for one noise multiplier and one sampling rate.
pub(super) struct WithoutReplacement {
    noise: f64,
    rate: f64,
    /// ln E[(ratio - 1)^(2 i)] at index i, up to the largest tight order.
    moments: Vec<f64>,
}

impl WithoutReplacement {
    /// `noise` above 0 is over the distance by which a replaced unit moves the sum.
    pub(super) fn new(noise: f64, population: u64, sample: u64) -> Self {
        let rate = sample as f64 / population as f64;
        let moments = (0..=TIGHT_MAX / 2).map(|half| log_even_moment(1.0 / noise, 2 * half)).collect();
        Self { noise, rate, moments }
    }

    /// The divergence at `order` above 1, in nats. Never above that of asking everyone: Rényi divergence is jointly
    /// quasi-convex, so no mixture over samples is worse than the worst sample.
    pub(super) fn divergence(&self, order: f64) -> f64 {
        let everyone = 0.5 * order / (self.noise * self.noise);
        let below = self.log_moment(order.floor() as u32);
        let log_moment = if order.fract() == 0.0 {
            below
        } else {
            below + order.fract() * (self.log_moment(order.ceil() as u32) - below)
        };
        everyone.min(log_moment / (order - 1.0))
    }

    /// ln A(order), at integers.
    fn log_moment(&self, order: u32) -> f64 {
        let precision = 1.0 / (self.noise * self.noise);
        let terms: Vec<f64> = log_binomials(order)
            .into_iter()
            .enumerate()
            .skip(2)
            .map(|(k, binomial)| {
                let plain = 2.0_f64.ln() + 0.5 * (k * (k - 1)) as f64 * precision;
                let tight = if order > TIGHT_MAX && k > 2 { plain } else { self.tight(k, precision) };
                binomial + k as f64 * self.rate.ln() + plain.min(tight)
            })
            .collect();
        softplus(log_sum(&terms))
    }

    fn tight(&self, k: usize, precision: f64) -> f64 {
        if k == 2 {
            return 4.0_f64.ln() + log_expm1(precision);
        }
        4.0_f64.ln() + 0.5 * (self.moments[k / 2] + self.moments[k.div_ceil(2)])
    }
}

/// ln E[(ratio(x) - 1)^power] for x standard normal, `power` even, ln ratio(x) = `mean` x - `mean`^2/2.
///
/// The integrand has its mass around 0 and around `power` * `mean`; the trapezoid rule is exact to rounding there,
/// since the ends are negligible.
fn log_even_moment(mean: f64, power: u32) -> f64 {
    if power == 0 {
        return 0.0;
    }
    let power = f64::from(power);
    let (reach, far) = (power.sqrt() + 12.0, power * mean);
    if !(far * far).is_finite() {
        return f64::INFINITY;
    }
    let log_integrand = |x: f64| {
        let log_ratio = mean * x - 0.5 * mean * mean;
        let log_away = if log_ratio > 0.0 { log_expm1(log_ratio) } else { (-log_ratio.exp_m1()).ln() };
        power * log_away - 0.5 * x * x
    };
    let over = |from: f64, to: f64| {
        let count = ((to - from) / STEP).ceil() as u32;
        let terms: Vec<f64> = (0..=count).map(|i| log_integrand(from + STEP * f64::from(i))).collect();
        log_sum(&terms)
    };
    let mass = if far < 24.0 {
        over(-reach, far + reach)
    } else {
        log_sum(&[over(-reach, 12.0), over(far - 12.0, far + reach)])
    };
    mass + STEP.ln() - 0.5 * (2.0 * std::f64::consts::PI).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quadrature_agrees_with_alternating_sums_where_those_have_digits() {
        for mean in [0.25_f64, 0.5, 1.0, 3.0] {
            for power in [2_u32, 4, 6] {
                let exact: f64 = log_binomials(power)
                    .into_iter()
                    .enumerate()
                    .map(|(k, binomial)| {
                        let sign = if k % 2 == 0 { 1.0 } else { -1.0 };
                        sign * (binomial + 0.5 * (k * k.saturating_sub(1)) as f64 * mean * mean).exp()
                    })
                    .sum();
                let found = log_even_moment(mean, power).exp();
                assert!((found / exact - 1.0).abs() < 1e-8, "{mean} {power}: {found} against {exact}");
            }
        }
    }

    #[test]
    fn moments_far_apart_and_near_are_finite() {
        for mean in [1e-6, 0.01, 0.1, 1.0, 10.0, 1e3] {
            for power in [2, 24, 256] {
                assert!(log_even_moment(mean, power).is_finite(), "{mean} {power}");
            }
        }
    }
}
