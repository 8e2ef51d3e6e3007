//! One release of the Poisson-sampled Gaussian, seen in one direction: a dominating pair of mixtures on a line.
//!
//! In units of the clipping norm the pair (upper, lower) is, with q the sampling rate and N(m) a Gaussian of
//! mean m: remove: ((1-q) N(0) + q N(1), N(0)); add: (N(0), (1-q) N(0) + q N(-1)); replace: ((1-q) N(0) + q
//! N(1), (1-q) N(0) + q N(-1)). The last is the pair of Zhu, Dong and Wang, "Optimal Accounting of Differential
//! Privacy via Characteristic Function", 2022; q = 1 is the plain Gaussian. In each the privacy loss
//! ln(upper/lower) grows with the coordinate. Nothing here composes, and nothing is rounded to a grid.

use crate::accounting::Relation;

/// Which of two neighbouring data sets produced the release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Remove,
    Add,
    Replace,
}

/// One release in one direction. `sigma` is the noise over the clipping norm, above 0 and finite; `rate` lies
/// in (0, 1].
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) sigma: f64,
    pub(super) rate: f64,
    pub(super) direction: Direction,
}

/// The directions in which a release must be accounted; a pair that mirrors itself needs one only.
pub(super) fn directions(rate: f64, relation: Relation) -> &'static [Direction] {
    match relation {
        Relation::ReplaceOne => &[Direction::Replace],
        Relation::AddOrRemoveOne | Relation::ZeroOut if rate >= 1.0 => &[Direction::Remove],
        Relation::AddOrRemoveOne | Relation::ZeroOut => &[Direction::Remove, Direction::Add],
    }
}

impl Step {
    /// A step with parameters in range; beyond what f64 can tell apart, with a little less noise or a little
    /// more sampling.
    pub(super) fn new(sigma: f64, rate: f64, direction: Direction) -> Self {
        Self { sigma: sigma.min(1e9), rate: rate.clamp(1e-20, 1.0), direction }
    }

    /// Whether the noise is so little that no epsilon is worth computing (it would exceed 1e9).
    pub(super) fn is_bare(&self) -> bool {
        self.sigma < 1e-5
    }

    /// The mean of the sampled half of the upper mixture.
    pub(super) fn upper_mean(&self) -> f64 {
        if self.direction == Direction::Add { 0.0 } else { 1.0 }
    }

    fn lower_mean(&self) -> f64 {
        if self.direction == Direction::Remove { 0.0 } else { -1.0 }
    }

    /// ln(upper(x)/lower(x)).
    pub(super) fn loss(&self, x: f64) -> f64 {
        match self.direction {
            Direction::Remove => self.share(x),
            Direction::Add => -self.share(-x),
            Direction::Replace => self.share(x) - self.share(-x),
        }
    }

    /// The x at which the loss is `loss`; infinite where the loss never comes down or up to it.
    pub(super) fn position(&self, loss: f64) -> f64 {
        match self.direction {
            Direction::Remove => self.share_position(loss),
            Direction::Add => -self.share_position(-loss),
            Direction::Replace => self.replace_position(loss),
        }
    }

    /// The density of the upper distribution.
    pub(super) fn density(&self, x: f64) -> f64 {
        let mean = self.upper_mean();
        let plain = density(x / self.sigma) / self.sigma;
        if mean == 0.0 {
            return plain;
        }
        (1.0 - self.rate) * plain + self.rate * density((x - mean) / self.sigma) / self.sigma
    }

    /// The upper distribution's mass above x.
    pub(super) fn mass_above(&self, x: f64) -> f64 {
        ln_mixture_above(x, self.upper_mean(), self.sigma, self.rate).exp()
    }

    /// The exact hockey-stick divergence: the least delta of this one release at `epsilon`.
    pub(super) fn delta(&self, epsilon: f64) -> f64 {
        let x = self.position(epsilon);
        if x == f64::INFINITY {
            return 0.0;
        }
        if x == f64::NEG_INFINITY {
            return -epsilon.exp_m1();
        }
        let upper = ln_mixture_above(x, self.upper_mean(), self.sigma, self.rate);
        let lower = ln_mixture_above(x, self.lower_mean(), self.sigma, self.rate) + epsilon;
        if lower >= upper { 0.0 } else { -upper.exp() * (lower - upper).exp_m1() }
    }

    /// ln(1 - q + q N(1)(x)/N(0)(x)).
    fn share(&self, x: f64) -> f64 {
        let plain = (x - 0.5) / (self.sigma * self.sigma);
        if self.rate >= 1.0 {
            plain
        } else if plain > 30.0 {
            ln_sum((-self.rate).ln_1p(), self.rate.ln() + plain)
        } else {
            (self.rate * plain.exp_m1()).ln_1p()
        }
    }

    fn share_position(&self, share: f64) -> f64 {
        let plain = if self.rate >= 1.0 {
            share
        } else if share > 30.0 {
            share + (-(1.0 - self.rate) * (-share).exp()).ln_1p() - self.rate.ln()
        } else {
            let sampled = share.exp_m1() + self.rate;
            if sampled <= 0.0 {
                return f64::NEG_INFINITY;
            }
            sampled.ln() - self.rate.ln()
        };
        0.5 + self.sigma * self.sigma * plain
    }

    /// With v = exp(x/sigma^2 - loss/2): v - 1/v = 2 (1-q)/q exp(1/(2 sigma^2)) sinh(loss/2).
    fn replace_position(&self, loss: f64) -> f64 {
        let square = self.sigma * self.sigma;
        if self.rate >= 1.0 || loss == 0.0 {
            return square * loss / 2.0;
        }
        let half = loss.abs() / 2.0;
        let ln_sinh = half + (-(-2.0 * half).exp_m1() / 2.0).ln();
        let ln_argument = ((1.0 - self.rate) / self.rate).ln() + 0.5 / square + ln_sinh;
        let inverse =
            if ln_argument > 20.0 { ln_argument + std::f64::consts::LN_2 } else { ln_argument.exp().asinh() };
        (square * (half + inverse)).copysign(loss)
    }
}

fn density(x: f64) -> f64 {
    const ROOT: f64 = 0.398_942_280_401_432_7;
    ROOT * (-0.5 * x * x).exp()
}

fn ln_mixture_above(x: f64, mean: f64, sigma: f64, rate: f64) -> f64 {
    let plain = ln_above(x / sigma);
    if mean == 0.0 {
        return plain;
    }
    let sampled = ln_above((x - mean) / sigma);
    if rate >= 1.0 {
        return sampled;
    }
    ln_sum((-rate).ln_1p() + plain, rate.ln() + sampled)
}

/// ln(exp(a) + exp(b)), of which at least one is finite.
fn ln_sum(a: f64, b: f64) -> f64 {
    a.max(b) + (-(a - b).abs()).exp().ln_1p()
}

/// ln of the mass of a standard Gaussian above x.
pub(crate) fn ln_above(x: f64) -> f64 {
    if x < 25.0 {
        return (0.5 * libm::erfc(x / std::f64::consts::SQRT_2)).ln();
    }
    let inverse = 1.0 / (x * x);
    let series = 1.0 - inverse * (1.0 - inverse * (3.0 - inverse * (15.0 - inverse * 105.0)));
    -0.5 * x * x - (x * (std::f64::consts::TAU).sqrt()).ln() + series.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_gives_back_its_loss() {
        for direction in [Direction::Remove, Direction::Add, Direction::Replace] {
            for (sigma, rate) in [(0.05, 0.3), (0.5, 1e-4), (1.0, 0.01), (2.0, 1.0), (50.0, 0.5)] {
                let step = Step { sigma, rate, direction };
                for i in -20_i32..=20 {
                    let x = f64::from(i) * sigma / 2.0;
                    let loss = step.loss(x);
                    let back = step.loss(step.position(loss));
                    let close = (back - loss).abs() <= 1e-12 + 1e-12 * loss.abs();
                    assert!(
                        close || !step.position(loss).is_finite(),
                        "{step:?} at {x}: {back} against {loss}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_two_branches_of_the_tail_meet() {
        let below = ln_above(25.0 - 1e-12);
        assert!((below - ln_above(25.0)).abs() < 1e-9 * below.abs());
        assert!((ln_above(0.0) + std::f64::consts::LN_2).abs() < 1e-15);
        assert!((ln_above(30.0) + 454.321_243_956_341_6).abs() < 1e-9, "{}", ln_above(30.0));
    }
}
