//! How what a round has found moves the model.
//!
//! FedAvg adds it (McMahan et al. 2017); FedAvgM keeps a momentum of it (Hsu, Qi, Brown 2019); FedAdagrad, FedYogi and
//! FedAdam divide by a running second moment (Reddi et al. 2021, algorithm 2, without bias correction, `v` starting at
//! `tau^2`). All of it is post-processing: it costs no privacy.

use std::sync::Arc;

use privacy::Released;

/// What a round has found: by this, and by nothing else, an optimizer moves the model.
#[derive(Debug)]
pub enum ModelUpdate {
    /// The mean of a sum, released as the plan promises.
    Released(Released),
    /// What a rule has made of updates that were kept one by one, one value a shared parameter. It promises nothing, and a plan that
    /// promises something to clients has no such rule.
    Unprotected(Vec<f64>),
}

impl ModelUpdate {
    /// Its values, in layout order and in units of the parameters.
    pub fn values(&self) -> impl Iterator<Item = f64> + '_ {
        let (released, vector) = match self {
            Self::Released(released) => (Some(released.mean()), None),
            Self::Unprotected(vector) => (None, Some(vector.iter().copied())),
        };
        released.into_iter().flatten().chain(vector.into_iter().flatten())
    }

    /// Number of coordinates.
    pub fn len(&self) -> usize {
        match self {
            Self::Released(released) => released.len(),
            Self::Unprotected(vector) => vector.len(),
        }
    }

    /// Whether there are no coordinates.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Moves the model by what a round has found. Implement it for a strategy of your own.
pub trait ServerOptimizer: Send {
    /// One step: `model` and `update` have the same length, in layout order.
    fn step(&mut self, model: &mut [f32], update: &ModelUpdate);

    /// The state to be stored with the model: vectors as long as the model, or none.
    fn state(&self) -> Vec<Arc<Vec<f32>>>;

    /// Takes stored state back.
    ///
    /// # Errors
    /// When the vectors are not this optimizer's.
    fn restore(&mut self, state: Vec<Arc<Vec<f32>>>) -> Result<(), StateError>;
}

/// Stored state belongs to another optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found} state vectors are stored where this optimizer has {expected}; was the plan changed under a run?"
)]
pub struct StateError {
    /// What this optimizer has.
    pub expected: usize,
    /// What is stored.
    pub found: usize,
}

/// FedAvg and FedAvgM: `v = momentum * v + mean; model = model + learning_rate * v`.
#[derive(Debug)]
pub struct Averaging {
    learning_rate: f64,
    momentum: f64,
    velocity: Arc<Vec<f32>>,
}

impl Averaging {
    /// With momentum 0 and learning rate 1 this is FedAvg.
    pub fn new(learning_rate: f64, momentum: f64) -> Self {
        Self { learning_rate, momentum, velocity: Arc::default() }
    }

    /// A step with momentum.
    fn roll(&mut self, model: &mut [f32], mean: impl Iterator<Item = f64>) {
        let velocity = started(&mut self.velocity, model.len(), 0.0);
        for ((value, velocity), mean) in model.iter_mut().zip(velocity).zip(mean) {
            let moved = self.momentum * f64::from(*velocity) + mean;
            *velocity = moved as f32;
            *value = (f64::from(*value) + self.learning_rate * moved) as f32;
        }
    }
}

impl ServerOptimizer for Averaging {
    fn step(&mut self, model: &mut [f32], update: &ModelUpdate) {
        let added = |value: f32, mean: f64| (f64::from(value) + self.learning_rate * mean) as f32;
        match update {
            ModelUpdate::Released(mean) if self.momentum == 0.0 => mean.apply(model, added),
            ModelUpdate::Unprotected(vector) if self.momentum == 0.0 => {
                model.iter_mut().zip(vector).for_each(|(value, mean)| *value = added(*value, *mean));
            }
            ModelUpdate::Released(mean) => self.roll(model, mean.mean()),
            ModelUpdate::Unprotected(vector) => self.roll(model, vector.iter().copied()),
        }
    }

    fn state(&self) -> Vec<Arc<Vec<f32>>> {
        if self.velocity.is_empty() { Vec::new() } else { vec![Arc::clone(&self.velocity)] }
    }

    fn restore(&mut self, state: Vec<Arc<Vec<f32>>>) -> Result<(), StateError> {
        let allowed = usize::from(self.momentum != 0.0);
        if state.len() > allowed {
            return Err(StateError { expected: allowed, found: state.len() });
        }
        self.velocity = state.into_iter().next().unwrap_or_default();
        Ok(())
    }
}

/// How the second moment is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdaptiveKind {
    /// `v = v + mean^2`.
    Adagrad,
    /// `v = v - (1 - beta2) * mean^2 * sign(v - mean^2)`.
    Yogi,
    /// `v = beta2 * v + (1 - beta2) * mean^2`.
    Adam,
}

/// FedAdagrad, FedYogi, FedAdam: `m = beta1 * m + (1 - beta1) * mean; model = model + learning_rate * m / (sqrt(v) + tau)`.
#[derive(Debug)]
pub struct Adaptive {
    kind: AdaptiveKind,
    learning_rate: f64,
    beta1: f64,
    beta2: f64,
    tau: f64,
    first: Arc<Vec<f32>>,
    second: Arc<Vec<f32>>,
}

impl Adaptive {
    /// `beta1`, `beta2` from 0 up to but not including 1; `tau` above 0 is the degree of adaptivity.
    pub fn new(kind: AdaptiveKind, learning_rate: f64, beta1: f64, beta2: f64, tau: f64) -> Self {
        Self { kind, learning_rate, beta1, beta2, tau, first: Arc::default(), second: Arc::default() }
    }

    fn adapt(&mut self, model: &mut [f32], mean: impl Iterator<Item = f64>) {
        let mut first = std::mem::take(&mut self.first);
        let mut second = std::mem::take(&mut self.second);
        let firsts = started(&mut first, model.len(), 0.0);
        let seconds = started(&mut second, model.len(), (self.tau * self.tau) as f32);
        for (((value, first), second), mean) in model.iter_mut().zip(firsts).zip(seconds).zip(mean) {
            let m = self.beta1 * f64::from(*first) + (1.0 - self.beta1) * mean;
            let v = self.second_moment(f64::from(*second), mean * mean);
            *first = m as f32;
            *second = v as f32;
            *value = (f64::from(*value) + self.learning_rate * m / (v.sqrt() + self.tau)) as f32;
        }
        (self.first, self.second) = (first, second);
    }

    fn second_moment(&self, old: f64, square: f64) -> f64 {
        match self.kind {
            AdaptiveKind::Adagrad => old + square,
            AdaptiveKind::Yogi if old == square => old,
            AdaptiveKind::Yogi => old - (1.0 - self.beta2) * square * (old - square).signum(),
            AdaptiveKind::Adam => self.beta2 * old + (1.0 - self.beta2) * square,
        }
    }
}

impl ServerOptimizer for Adaptive {
    fn step(&mut self, model: &mut [f32], update: &ModelUpdate) {
        match update {
            ModelUpdate::Released(mean) => self.adapt(model, mean.mean()),
            ModelUpdate::Unprotected(vector) => self.adapt(model, vector.iter().copied()),
        }
    }

    fn state(&self) -> Vec<Arc<Vec<f32>>> {
        if self.first.is_empty() {
            Vec::new()
        } else {
            vec![Arc::clone(&self.first), Arc::clone(&self.second)]
        }
    }

    fn restore(&mut self, state: Vec<Arc<Vec<f32>>>) -> Result<(), StateError> {
        let mut state = state.into_iter();
        match (state.next(), state.next(), state.len()) {
            (None, ..) => (self.first, self.second) = (Arc::default(), Arc::default()),
            (Some(first), Some(second), 0) => (self.first, self.second) = (first, second),
            (_, second, more) => {
                return Err(StateError { expected: 2, found: 1 + usize::from(second.is_some()) + more });
            }
        }
        Ok(())
    }
}

/// The vector behind `state`, filled with `value` on first use. A clone held by a pending commit is left untouched.
fn started(state: &mut Arc<Vec<f32>>, len: usize, value: f32) -> &mut Vec<f32> {
    if state.is_empty() {
        *state = Arc::new(vec![value; len]);
    }
    Arc::make_mut(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use privacy::{Encoded, Lattice, NormBound, Sum, clip};

    fn released(values: &[f32]) -> ModelUpdate {
        let lattice = Lattice::plan(NormBound::new(1000.0).unwrap(), 1, 1, values.len()).unwrap();
        let clipped = clip(values.to_vec(), lattice.bound()).unwrap();
        let mut sum = Sum::new(&lattice);
        sum.add(&Encoded::encode(&clipped, lattice.weigh(1), &lattice).unwrap()).unwrap();
        ModelUpdate::Released(Released::unprotected(sum).unwrap())
    }

    fn walk(optimizer: &mut dyn ServerOptimizer, means: &[f32]) -> f64 {
        let mut model = [0.0f32];
        means.iter().for_each(|mean| optimizer.step(&mut model, &released(&[*mean])));
        f64::from(model[0])
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
    }

    #[test]
    fn averaging_adds_the_mean_and_momentum_remembers_it() {
        near(walk(&mut Averaging::new(1.0, 0.0), &[1.0, 2.0]), 3.0);
        near(walk(&mut Averaging::new(0.5, 0.9), &[1.0, 2.0]), 0.5 * (1.0 + 2.9));
    }

    #[test]
    fn an_aggregate_that_promises_nothing_moves_the_model_as_a_mean_does() {
        for optimizer in [0, 1, 2] {
            let fresh = || -> Box<dyn ServerOptimizer> {
                match optimizer {
                    0 => Box::new(Averaging::new(0.5, 0.0)),
                    1 => Box::new(Averaging::new(0.5, 0.9)),
                    _ => Box::new(Adaptive::new(AdaptiveKind::Yogi, 0.1, 0.9, 0.99, 1e-3)),
                }
            };
            let ((mut one, mut other), mut models) = ((fresh(), fresh()), ([0.0f32; 2], [0.0f32; 2]));
            for round in [[1.0, -2.0], [0.5, 3.0]] {
                let mean = released(&round);
                let vector = ModelUpdate::Unprotected(mean.values().collect());
                assert_eq!((vector.len(), vector.values().count()), (2, 2));
                one.step(&mut models.0, &mean);
                other.step(&mut models.1, &vector);
            }
            assert_eq!(models.0, models.1);
        }
    }

    #[test]
    fn adaptive_steps_match_a_calculation_by_hand() {
        let (rate, tau) = (0.1, 0.5);
        let v: f64 = 0.25 + 4.0;
        near(
            walk(&mut Adaptive::new(AdaptiveKind::Adagrad, rate, 0.0, 0.99, tau), &[2.0]),
            0.2 / (v.sqrt() + tau),
        );
        let v: f64 = 0.99 * 0.25 + 0.01 * 4.0;
        near(
            walk(&mut Adaptive::new(AdaptiveKind::Adam, rate, 0.9, 0.99, tau), &[2.0]),
            0.1 * 0.2 / (v.sqrt() + tau),
        );
        let v: f64 = 0.25 + 0.01 * 4.0;
        near(
            walk(&mut Adaptive::new(AdaptiveKind::Yogi, rate, 0.9, 0.99, tau), &[2.0]),
            0.1 * 0.2 / (v.sqrt() + tau),
        );
    }

    #[test]
    fn a_restored_optimizer_goes_on_as_if_never_stopped() {
        let fresh = || -> Vec<Box<dyn ServerOptimizer>> {
            let adaptive = |kind| Box::new(Adaptive::new(kind, 0.1, 0.9, 0.99, 1e-3));
            vec![
                Box::new(Averaging::new(1.0, 0.9)),
                adaptive(AdaptiveKind::Adam),
                adaptive(AdaptiveKind::Yogi),
            ]
        };
        for (mut whole, (mut before, mut after)) in fresh().into_iter().zip(fresh().into_iter().zip(fresh()))
        {
            let expected = walk(&mut *whole, &[1.0, -2.0, 3.0]);
            let mut model = [0.0f32];
            before.step(&mut model, &released(&[1.0]));
            after.restore(before.state()).unwrap();
            [-2.0, 3.0].iter().for_each(|mean| after.step(&mut model, &released(&[*mean])));
            assert_eq!(expected, f64::from(model[0]));
        }
    }

    #[test]
    fn state_of_another_optimizer_is_refused() {
        let one = vec![Arc::new(vec![0.0])];
        assert!(Averaging::new(1.0, 0.0).restore(one.clone()).is_err());
        assert!(Adaptive::new(AdaptiveKind::Adam, 1.0, 0.9, 0.99, 1e-3).restore(one).is_err());
    }
}
