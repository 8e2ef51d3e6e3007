//! Tails of the binomial distribution, by the continued fraction of the incomplete beta function.
//!
//! Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.5.8 and 26.5.24, evaluated by Lentz's
//! method. The relative error grows as 1e-16 n ln n. It knows nothing of privacy.

/// The most trials a tail is computed for; the fraction converges in some sqrt(trials) terms.
pub(crate) const TRIALS_MAX: u64 = 10_000_000_000;

/// The chance of at least `successes` among `trials` (at most [`TRIALS_MAX`]) independent trials of chance `p`.
pub(crate) fn at_least(successes: u64, trials: u64, p: f64) -> f64 {
    if successes == 0 {
        return 1.0;
    }
    if successes > trials || p <= 0.0 {
        return 0.0;
    }
    if p >= 1.0 {
        return 1.0;
    }
    incomplete_beta(successes as f64, (trials - successes) as f64 + 1.0, p)
}

/// The least chance for which `successes` or more would not surprise: a Clopper-Pearson lower bound, one-sided.
pub(crate) fn chance_lower(successes: u64, trials: u64, significance: f64) -> f64 {
    let (mut low, mut high) = (0.0, successes as f64 / trials as f64);
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if at_least(successes, trials, middle) <= significance { low = middle } else { high = middle }
    }
    low
}

/// The largest chance for which `successes` or fewer would not surprise: a Clopper-Pearson upper bound,
/// one-sided.
pub(crate) fn chance_upper(successes: u64, trials: u64, significance: f64) -> f64 {
    let (mut low, mut high) = (successes as f64 / trials as f64, 1.0);
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        // At most k successes of chance p are at least n - k failures of chance 1 - p.
        let at_most = at_least(trials - successes, trials, 1.0 - middle);
        if at_most <= significance { high = middle } else { low = middle }
    }
    high
}

fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x > (a + 1.0) / (a + b + 2.0) { 1.0 - lower_branch(b, a, 1.0 - x) } else { lower_branch(a, b, x) }
}

fn lower_branch(a: f64, b: f64, x: f64) -> f64 {
    let ln_beta = libm::lgamma(a) + libm::lgamma(b) - libm::lgamma(a + b);
    let front = (a * x.ln() + b * (-x).ln_1p() - ln_beta).exp() / a;
    let away_from_zero = |value: f64| if value.abs() < 1e-300 { 1e-300 } else { value };
    let mut d = 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0));
    let mut c = 1.0;
    let mut fraction = d;
    for m in 1..1_000_000_u32 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let before = fraction;
        for numerator in [even, odd] {
            d = 1.0 / away_from_zero(1.0 + numerator * d);
            c = away_from_zero(1.0 + numerator / c);
            fraction *= c * d;
        }
        if (fraction - before).abs() <= 1e-15 * fraction.abs() {
            break;
        }
    }
    front * fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_the_sum_of_its_terms() {
        for (trials, p) in [(1, 0.3), (10, 0.5), (30, 0.01), (57, 0.93)] {
            let mut choose = 1.0_f64;
            let mut terms = Vec::new();
            for k in 0..=trials {
                terms.push(choose * f64::powi(p, k) * f64::powi(1.0 - p, trials - k));
                choose = choose * f64::from(trials - k) / f64::from(k + 1);
            }
            for k in 0..=trials as usize {
                let exact: f64 = terms[k..].iter().sum();
                let found = at_least(k as u64, trials as u64, p);
                assert!((found - exact).abs() < 1e-12 * exact + 1e-15, "{k} of {trials}: {found}, {exact}");
            }
        }
    }

    #[test]
    fn the_bounds_close_around_the_share() {
        let (low, high) = (chance_lower(480, 1000, 0.025), chance_upper(480, 1000, 0.025));
        assert!(low < 0.48 && 0.48 < high);
        assert!((at_least(480, 1000, low) - 0.025).abs() < 1e-9);
        assert_eq!(chance_lower(0, 10, 0.05), 0.0);
        assert_eq!(chance_upper(10, 10, 0.05), 1.0);
        assert!((chance_upper(0, 10, 0.05) - (1.0 - 0.05_f64.powf(0.1))).abs() < 1e-12);
    }
}
