//! The Rényi accountant: divergences at a fixed set of orders, which add up over releases.
//!
//! Mironov, "Rényi Differential Privacy" (2017); Mironov, Talwar, Zhang, "Rényi Differential Privacy of the Sampled
//! Gaussian Mechanism" (2019), section 3.3; fixed-size samples are in `rdp/without_replacement.rs`.
//!
//! For integer orders the sampled divergence of the *discrete* Gaussian with an integer variance and integer shifts
//! equals the continuous formula, so those orders are rigorous for the noise that is really added; at orders between
//! the integers the bound is for real-valued noise. It refuses what it has no formula for: Poisson sampling when a
//! unit is replaced, samples that are cut down, trees under another relation than zeroing out.

mod sampled;
mod without_replacement;

use super::conversion::{check_delta, epsilon_at};
use super::{AccountingError, Event, Mechanism, Relation, gaussian};

use without_replacement::WithoutReplacement;

/// The orders of the default accountant: 1.1 to 10.9 by 0.1, 11 to 63, 128, 256, 512, 1024.
pub fn orders() -> Vec<f64> {
    let fine = (1..100).map(|tenth| 1.0 + f64::from(tenth) / 10.0);
    let whole = (11..64).chain([128, 256, 512, 1024]).map(f64::from);
    fine.chain(whole).collect()
}

/// The integers among [`orders`], for which the bound holds for integer noise too.
pub fn integer_orders() -> Vec<f64> {
    orders().into_iter().filter(|order| order.fract() == 0.0).collect()
}

/// Rényi divergence at each of some orders: what has been given away so far. Begins at none.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    orders: Vec<f64>,
    divergences: Vec<f64>,
}

/// An epsilon, and the order that gave it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Optimum {
    /// The least epsilon over the orders.
    pub epsilon: f64,
    /// The order at which it was found.
    pub order: f64,
}

impl Curve {
    /// Nothing given away, at these orders, each above 1.
    ///
    /// # Errors
    /// [`AccountingError::Parameter`] for an order that is not a finite number above 1.
    pub fn new(orders: &[f64]) -> Result<Self, AccountingError> {
        if let Some(&value) = orders.iter().find(|order| !(**order > 1.0 && order.is_finite())) {
            let range = "the finite numbers above 1";
            return Err(AccountingError::Parameter { name: "the order", value, range });
        }
        Ok(Self { orders: orders.to_vec(), divergences: vec![0.0; orders.len()] })
    }

    /// Adds the releases of one event.
    ///
    /// # Errors
    /// [`AccountingError::Unsupported`] where there is no formula; the curve is unchanged then.
    pub fn add(&mut self, event: &Event, relation: Relation) -> Result<(), AccountingError> {
        let divergences = divergences(&event.mechanism(), relation, &self.orders)?;
        self.add_scaled(&divergences, event.count());
        Ok(())
    }

    /// Adds `count` releases of a mechanism given by its divergence at each order, in nats.
    pub(crate) fn add_with(&mut self, count: u64, divergence: impl Fn(f64) -> f64) {
        let divergences: Vec<f64> = self.orders.iter().map(|order| divergence(*order)).collect();
        self.add_scaled(&divergences, count);
    }

    /// Adds `count` releases of these divergences, one at each order.
    pub(super) fn add_scaled(&mut self, divergences: &[f64], count: u64) {
        for (sum, divergence) in self.divergences.iter_mut().zip(divergences) {
            *sum += count as f64 * divergence;
        }
    }

    /// The divergence at each order, in nats.
    pub fn divergences(&self) -> &[f64] {
        &self.divergences
    }

    /// The least epsilon at `delta`, 0 to 1 and both excluded.
    ///
    /// # Errors
    /// [`AccountingError::Delta`].
    pub fn epsilon(&self, delta: f64) -> Result<Optimum, AccountingError> {
        check_delta(delta)?;
        let mut best = Optimum { epsilon: f64::INFINITY, order: f64::INFINITY };
        for (order, divergence) in self.orders.iter().zip(&self.divergences) {
            let epsilon = epsilon_at(*order, *divergence, delta);
            if epsilon < best.epsilon {
                best = Optimum { epsilon, order: *order };
            }
        }
        Ok(best)
    }
}

/// Epsilon at `delta` of all `events` together, over the default [`orders`]. 0 for no events, infinity without noise.
///
/// # Errors
/// [`AccountingError`] where there is no formula, or for a delta outside 0 to 1.
pub fn epsilon(events: &[Event], relation: Relation, delta: f64) -> Result<f64, AccountingError> {
    epsilon_at_orders(events, relation, delta, &orders()).map(|best| best.epsilon)
}

/// As [`epsilon`], over orders of the caller's choice, each above 1; says which was best.
///
/// # Errors
/// As [`epsilon`], and for an order that is not above 1.
pub fn epsilon_at_orders(
    events: &[Event],
    relation: Relation,
    delta: f64,
    orders: &[f64],
) -> Result<Optimum, AccountingError> {
    let mut curve = Curve::new(orders)?;
    for event in events {
        curve.add(event, relation)?;
    }
    curve.epsilon(delta)
}

/// The divergence of one release at each of `orders`, in nats.
pub(super) fn divergences(
    mechanism: &Mechanism,
    relation: Relation,
    orders: &[f64],
) -> Result<Vec<f64>, AccountingError> {
    let noise = mechanism.noise_multiplier() / relation.sensitivity();
    let unsupported = AccountingError::Unsupported {
        accountant: "the renyi accountant",
        mechanism: mechanism.name(),
        relation,
    };
    if noise == 0.0 {
        return Ok(vec![f64::INFINITY; orders.len()]);
    }
    match *mechanism {
        Mechanism::Gaussian { .. } | Mechanism::Tree { .. } => {
            let half = 0.5
                * gaussian::precision_of(mechanism, relation).map_err(|error| match error {
                    AccountingError::Unsupported { .. } => unsupported,
                    other => other,
                })?;
            Ok(orders.iter().map(|order| order * half).collect())
        }
        Mechanism::PoissonGaussian { sampling_rate, .. }
            if relation != Relation::ReplaceOne || sampling_rate == 1.0 =>
        {
            Ok(orders.iter().map(|order| sampled::divergence(noise, sampling_rate, *order)).collect())
        }
        Mechanism::WithoutReplacementGaussian { population, sample, .. }
            if relation == Relation::ReplaceOne =>
        {
            let bound = WithoutReplacement::new(noise, population, sample);
            Ok(orders.iter().map(|order| bound.divergence(*order)).collect())
        }
        Mechanism::PoissonGaussian { .. }
        | Mechanism::WithoutReplacementGaussian { .. }
        | Mechanism::TruncatedPoissonGaussian { .. } => Err(unsupported),
    }
}

#[cfg(test)]
mod tests;
