//! Noise that the clients add themselves, before a secure sum.
//!
//! Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation"
//! (2021, arXiv 2102.06387), Theorem 1 and section 3 for the rounded norm; Agarwal, Kairouz, Liu, "The Skellam
//! Mechanism for Differentially Private Federated Learning" (2021), Theorem 3.5. Sums of discrete Gaussians are not
//! discrete Gaussians: the formula carries the difference, which is nothing once the local noise is some ten lattice
//! steps wide.
//!
//! There is no sampling here: the server sees who takes part. Nothing here draws noise.

use std::f64::consts::PI;

use super::AccountingError;
use super::rdp::{Curve, Optimum};

/// One distributed release. Lengths are in the units of the update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DistributedNoise {
    /// L2 norm of a client's update after rounding, at most; above 0.
    pub norm_max: f64,
    /// Distance of two lattice points; above 0.
    pub lattice_step: f64,
    /// Standard deviation of one client's noise; above 0.
    pub noise_local: f64,
    /// Coordinates; at least 1.
    pub dimension: u64,
    /// Clients whose noise is in the sum and is not known to the adversary; at least 1.
    pub contributors: u64,
}

/// The orders these mechanisms are accounted at: the formulas hold for integers.
pub fn orders() -> Vec<f64> {
    (2..=128).chain([256]).map(f64::from).collect()
}

/// The L2 norm that an update of norm `clip` keeps under when its coordinates are rounded at random to multiples of
/// `lattice_step`, and rounded anew until they do; `beta` (above 0, below 1) bounds the chance of having to.
///
/// # Errors
/// [`AccountingError::Parameter`] for a number out of range.
pub fn rounded_norm(clip: f64, lattice_step: f64, dimension: u64, beta: f64) -> Result<f64, AccountingError> {
    check_above_zero("the clipping norm", clip)?;
    check_above_zero("the lattice step", lattice_step)?;
    if !(beta > 0.0 && beta < 1.0) {
        let range = "the numbers between 0 and 1";
        return Err(AccountingError::Parameter { name: "the chance to round anew", value: beta, range });
    }
    let root = (dimension as f64).sqrt();
    let always = (clip + lattice_step * root).powi(2);
    let mean = clip * clip + 0.25 * lattice_step * lattice_step * dimension as f64;
    let deviation = (-2.0 * beta.ln()).sqrt() * lattice_step * (clip + 0.5 * lattice_step * root);
    Ok(always.min(mean + deviation).sqrt())
}

/// The standard deviation each client must add so that `survivors_min` clients, `colluders_max` of whom tell the
/// adversary their noise, still add up to `noise_total`.
///
/// # Errors
/// [`AccountingError::Parameter`] when no honest client may be left, or `noise_total` is not above 0.
pub fn noise_local(noise_total: f64, survivors_min: u64, colluders_max: u64) -> Result<f64, AccountingError> {
    check_above_zero("the total noise", noise_total)?;
    if colluders_max >= survivors_min {
        let range = "the numbers below the least number of survivors";
        let (name, value) = ("the number of colluders", colluders_max as f64);
        return Err(AccountingError::Parameter { name, value, range });
    }
    Ok(noise_total / ((survivors_min - colluders_max) as f64).sqrt())
}

/// The largest number of bits whose power of two, as the integer norm bound Q of every update, keeps the sum of `clients_max`
/// updates and noise of up to eight times `noise_multiplier` times Q within the 32 bits of a secure sum's words.
///
/// `noise_multiplier` (0 or more) is of the noise that is really in the sum when all of them survive: more than was planned for
/// the fewest survivors. Eight standard deviations are exceeded with a chance below 2e-15 a coordinate; then that coordinate
/// wraps around, which costs accuracy and no privacy.
///
/// # Errors
/// [`AccountingError::Parameter`] for no client, a multiplier out of range, or so much of both that nothing is left.
pub fn range_bits(clients_max: u64, noise_multiplier: f64) -> Result<u32, AccountingError> {
    check_above_zero("the number of clients", clients_max as f64)?;
    if !(noise_multiplier >= 0.0 && noise_multiplier.is_finite()) {
        let range = "the finite numbers from 0";
        return Err(AccountingError::Parameter {
            name: "the noise multiplier",
            value: noise_multiplier,
            range,
        });
    }
    let room = f64::from(i32::MAX) / (clients_max as f64 + 8.0 * noise_multiplier);
    if room < 1.0 {
        let (name, range) = (
            "the norm bound of an update in a secure sum",
            "the numbers from 1; lower the cohort or the noise",
        );
        return Err(AccountingError::Parameter { name, value: room, range });
    }
    Ok((room as u64).ilog2())
}

impl DistributedNoise {
    fn check(&self) -> Result<(), AccountingError> {
        check_above_zero("the norm after rounding", self.norm_max)?;
        check_above_zero("the lattice step", self.lattice_step)?;
        check_above_zero("the local noise", self.noise_local)?;
        check_above_zero("the dimension", self.dimension as f64)?;
        check_above_zero("the number of contributors", self.contributors as f64)
    }

    /// How far a sum of discrete Gaussians is from a discrete Gaussian (the paper's tau, not times the dimension).
    ///
    /// # Errors
    /// [`AccountingError::Parameter`] for a number out of range.
    pub fn distance(&self) -> Result<f64, AccountingError> {
        self.check()?;
        let width = self.noise_local / self.lattice_step;
        let exponent = -2.0 * PI * PI * width * width;
        // The terms fall from k = 1 on; past 10^4 of them the last stands for the rest, from above.
        let exact = (self.contributors - 1).min(10_000);
        let term = |k: u64| (exponent * k as f64 / (k as f64 + 1.0)).exp();
        let rest = (self.contributors - 1 - exact) as f64 * term(exact.max(1));
        Ok(10.0 * ((1..=exact).map(term).sum::<f64>() + rest))
    }

    /// Epsilon at `delta` of `count` releases with discrete Gaussian noise.
    ///
    /// # Errors
    /// [`AccountingError`] for a number out of range.
    pub fn epsilon_discrete_gaussian(&self, count: u64, delta: f64) -> Result<Optimum, AccountingError> {
        let (distance, dimension) = (self.distance()?, self.dimension as f64);
        let mean = self.norm_max / ((self.contributors as f64).sqrt() * self.noise_local);
        let mut curve = Curve::new(&orders())?;
        curve.add_with(count, |order| {
            let added = 0.5 * order * mean * mean + distance * dimension;
            let joined = 0.5 * order * (mean + dimension.sqrt() * distance).powi(2);
            added.min(joined)
        });
        curve.epsilon(delta)
    }

    /// Epsilon at `delta` of `count` releases with Skellam noise.
    ///
    /// # Errors
    /// [`AccountingError`] for a number out of range.
    pub fn epsilon_skellam(&self, count: u64, delta: f64) -> Result<Optimum, AccountingError> {
        self.check()?;
        let scale = 1.0 / self.lattice_step;
        let variance = self.contributors as f64 * self.noise_local * self.noise_local;
        let squared = self.norm_max * self.norm_max;
        let absolute = (self.norm_max * (self.dimension as f64).sqrt()).min(scale * squared);
        let mut curve = Curve::new(&orders())?;
        curve.add_with(count, |order| {
            let fine = ((2.0 * order - 1.0) * scale * squared + 6.0 * absolute)
                / (4.0 * scale.powi(3) * variance * variance);
            let coarse = 1.5 * absolute / (scale * variance);
            0.5 * order * squared / variance + fine.min(coarse)
        });
        curve.epsilon(delta)
    }
}

fn check_above_zero(name: &'static str, value: f64) -> Result<(), AccountingError> {
    let range = "the finite numbers above 0";
    if value > 0.0 && value.is_finite() {
        Ok(())
    } else {
        Err(AccountingError::Parameter { name, value, range })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOISE: DistributedNoise = DistributedNoise {
        norm_max: 1.0,
        lattice_step: 1e-3,
        noise_local: 0.3,
        dimension: 1_000,
        contributors: 100,
    };

    #[test]
    fn wide_local_noise_sums_to_a_discrete_gaussian() {
        let wide = DistributedNoise { noise_local: 1e-2, ..NOISE };
        assert!(wide.distance().unwrap() * 1e7 < 1e-300);
        let narrow = DistributedNoise { noise_local: 2e-4, ..NOISE };
        assert!(narrow.distance().unwrap() > 1.0);
        let many = DistributedNoise { contributors: 1 << 40, ..narrow };
        assert!(many.distance().unwrap() > narrow.distance().unwrap());
    }

    #[test]
    fn fewer_honest_clients_cost_more() {
        let fewer = DistributedNoise { contributors: 50, ..NOISE };
        for of in [DistributedNoise::epsilon_discrete_gaussian, DistributedNoise::epsilon_skellam] {
            assert!(of(&fewer, 1, 1e-6).unwrap().epsilon > of(&NOISE, 1, 1e-6).unwrap().epsilon);
        }
    }

    #[test]
    fn the_largest_reach_is_the_last_that_does_not_wrap() {
        for (clients, bits) in [(100, 23), (1_000, 20), (10_000, 17)] {
            assert_eq!(range_bits(clients, 8.0).unwrap(), bits, "{clients}");
        }
        for clients in [1, 2, 7, 64, 999, 1 << 20, i32::MAX as u64] {
            for noise in [0.0, 0.3, 8.0, 1e4] {
                let needed = |bits: u32| (clients as f64 + 8.0 * noise) * 2.0_f64.powi(bits as i32);
                let Ok(bits) = range_bits(clients, noise) else {
                    assert!(needed(0) > f64::from(i32::MAX), "{clients} {noise}");
                    continue;
                };
                assert!(needed(bits) <= f64::from(i32::MAX) && needed(bits + 1) > f64::from(i32::MAX));
            }
        }
        assert!(range_bits(0, 1.0).is_err() && range_bits(1 << 32, 0.0).is_err());
        assert!([-1.0, f64::NAN, f64::INFINITY].into_iter().all(|bad| range_bits(10, bad).is_err()));
    }

    #[test]
    fn what_survives_still_adds_up() {
        let local = noise_local(8.0, 80, 16).unwrap();
        assert_eq!(local, 1.0);
        assert!(noise_local(8.0, 10, 10).is_err() && noise_local(f64::NAN, 10, 1).is_err());
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for bad in [f64::NAN, 0.0, -1.0, f64::INFINITY] {
            assert!(DistributedNoise { norm_max: bad, ..NOISE }.epsilon_skellam(1, 1e-6).is_err());
            assert!(
                DistributedNoise { noise_local: bad, ..NOISE }.epsilon_discrete_gaussian(1, 1e-6).is_err()
            );
            assert!(DistributedNoise { lattice_step: bad, ..NOISE }.distance().is_err());
            assert!(rounded_norm(bad, 0.1, 10, 0.5).is_err() && rounded_norm(1.0, 0.1, 10, bad).is_err());
        }
        assert!(DistributedNoise { contributors: 0, ..NOISE }.distance().is_err());
        assert!(NOISE.epsilon_skellam(1, 1.0).is_err());
    }
}
