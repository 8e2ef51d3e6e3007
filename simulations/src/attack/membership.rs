//! Membership inference: who helped to train a model, from the model alone.
//!
//! The likelihood-ratio attack of Carlini, Chien, Nasr, Song, Terzis, Tramèr, "Membership Inference Attacks From First
//! Principles" (2022), algorithm 1: many models are trained on random halves of the clients; for each client, the
//! models with it and those without give two Gaussians of the logit of its right class, and a model's own logit is
//! more likely under one of them. Every model is attacked in turn with all others as shadows. It has the best reading
//! at small false-positive rates, where membership inference does harm.
//!
//! The federation is FedSGD on logistic regression; every client has one record, so that a client is a record, and the
//! labels are coins: whatever the model says about them, it has memorised.

use privacy::audit::{Attack, AuditError, clopper_pearson_lower_bound};
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::aggregator::{Aggregator, AggregatorError, Entropy, Promise, lattice_of, plain_mean};

/// The federations to be attacked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MembershipAttack {
    /// Clients, with a record each; a coin says which of them are in a model.
    pub clients: usize,
    /// Features of a record.
    pub features: usize,
    /// Models, at least 8; each is attacked with the others for shadows.
    pub models: usize,
    /// Rounds of training, each with everybody who is in.
    pub rounds: u32,
    /// Step of the server on the mean gradient.
    pub learning_rate: f64,
    /// Clipping norm of the defence.
    pub norm_max: f64,
    /// Standard deviation of the defence's noise over the clipping norm, in every round.
    pub noise_multiplier: f64,
    /// The delta of the promise; well below one over the number of clients.
    pub delta: f64,
    /// NoiseRng that a bound on the attack's epsilon is wrong.
    pub significance: f64,
}

impl Default for MembershipAttack {
    fn default() -> Self {
        Self {
            clients: 100,
            features: 128,
            models: 96,
            rounds: 50,
            learning_rate: 8.0,
            norm_max: 1.0,
            noise_multiplier: 12.0,
            delta: 1e-3,
            significance: 0.05,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct MembershipFindings {
    /// Against models without privacy.
    pub plain: Leakage,
    /// Against models with client-level privacy.
    pub defended: Leakage,
    /// Epsilon of the defended models at `delta`, for one client.
    pub epsilon: f64,
    /// The delta of the promise.
    pub delta: f64,
}

/// How well the attack does.
#[derive(Clone, Debug, PartialEq)]
pub struct Leakage {
    /// The largest difference between true-positive and false-positive rate over all thresholds; 0 is none.
    pub advantage: f64,
    /// The chance that a member scores higher than another; one half is none.
    pub area: f64,
    /// True-positive rates at false-positive rates of 0.1 %, 0.3 % and 1 %.
    pub rates: [Rates; 3],
    /// The largest epsilon that the three thresholds refute, each chosen on one half of the models and measured on the
    /// other, all three with the stated significance together. Guesses about one model are not strictly independent, so
    /// that the significance is approximate.
    pub epsilon_lower_bound: f64,
    /// The curve, for a chart.
    pub curve: Vec<Rates>,
}

/// A true-positive rate at a false-positive rate: a point of the receiver operating characteristic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// False-positive rate.
    pub false_positives: f64,
    /// True-positive rate.
    pub true_positives: f64,
}

/// Why the attack could not be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MembershipError {
    /// Too few models for shadows.
    #[error("{0} models leave too few shadows; take at least 8")]
    Models(usize),
    /// The federation.
    #[error(transparent)]
    Federation(#[from] AggregatorError),
    /// The bound.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

const FALSE_POSITIVES: [f64; 3] = [0.001, 0.003, 0.01];

/// One guess: its score, whether the client was in, and whether it counts for the choice of thresholds.
#[derive(Clone, Copy)]
struct Guess {
    score: f64,
    member: bool,
    calibrates: bool,
}

/// A client's record: its features, and its label as a sign.
struct Record {
    features: Vec<f32>,
    label: f64,
}

impl MembershipAttack {
    /// Trains the models without and with privacy and attacks them.
    ///
    /// # Errors
    /// [`MembershipError`] for too few models, or numbers that the defence refuses.
    pub fn run(
        &self,
        generator: &mut impl Rng,
        entropy: &mut Entropy<'_>,
    ) -> Result<MembershipFindings, MembershipError> {
        if self.models < 8 {
            return Err(MembershipError::Models(self.models));
        }
        let records = self.records(generator);
        let members: Vec<Vec<bool>> =
            (0..self.models).map(|_| (0..self.clients).map(|_| generator.random()).collect()).collect();
        let (mut plain, mut defended) = (Vec::new(), Vec::new());
        let mut epsilon = 0.0;
        for members in &members {
            plain.push(self.train(&records, members, None, entropy)?);
            let mut aggregator = self.aggregator()?;
            epsilon = aggregator.epsilon();
            defended.push(self.train(&records, members, Some(&mut aggregator), entropy)?);
        }
        let judge = |models: &[Vec<f64>]| self.judge(&guesses(&records, &members, models));
        let (plain, defended) = (judge(&plain)?, judge(&defended)?);
        Ok(MembershipFindings { plain, defended, epsilon, delta: self.delta })
    }

    fn records(&self, generator: &mut impl Rng) -> Vec<Record> {
        let scale = 1.0 / (self.features as f64).sqrt();
        let feature = |generator: &mut _| {
            let normal: f64 = StandardNormal.sample(generator);
            (normal * scale) as f32
        };
        let mut record = |_| Record {
            features: (0..self.features).map(|_| feature(generator)).collect(),
            label: if generator.random() { 1.0 } else { -1.0 },
        };
        (0..self.clients).map(&mut record).collect()
    }

    fn aggregator(&self) -> Result<Aggregator, AggregatorError> {
        let promise = Promise {
            noise_multiplier: self.noise_multiplier,
            noise_scale: 1.0,
            denominator: self.clients as f64 / 2.0,
            releases: self.rounds.into(),
            delta: self.delta,
        };
        Aggregator::open(lattice_of(self.norm_max, self.clients as u64, self.features + 1)?, &promise)
    }

    /// Weights and bias after all rounds.
    fn train(
        &self,
        records: &[Record],
        members: &[bool],
        mut aggregator: Option<&mut Aggregator>,
        entropy: &mut Entropy<'_>,
    ) -> Result<Vec<f64>, AggregatorError> {
        let mut model = vec![0.0; self.features + 1];
        let lattice = lattice_of(100.0, self.clients as u64, self.features + 1)?;
        for _ in 0..self.rounds {
            let inside = records.iter().zip(members).filter(|(_, member)| **member);
            let updates: Vec<Vec<f32>> = inside.map(|(record, _)| record.update(&model)).collect();
            let mean = match &mut aggregator {
                Some(aggregator) => aggregator.release(updates, entropy)?,
                None => plain_mean(&lattice, updates)?,
            };
            for (value, change) in model.iter_mut().zip(mean) {
                *value += self.learning_rate * change;
            }
        }
        Ok(model)
    }

    fn judge(&self, guesses: &[Guess]) -> Result<Leakage, AuditError> {
        let curve = characteristic(guesses);
        let rate_at = |most: f64| {
            let within = curve.iter().filter(|point| point.false_positives <= most);
            let true_positives = within.map(|point| point.true_positives).fold(0.0, f64::max);
            Rates { false_positives: most, true_positives }
        };
        let steps = curve.windows(2);
        let width = |pair: &[Rates]| pair[1].false_positives - pair[0].false_positives;
        let height = |pair: &[Rates]| (pair[1].true_positives + pair[0].true_positives) / 2.0;
        let mut epsilon_lower_bound = 0.0_f64;
        for most in FALSE_POSITIVES {
            let attack = held_out(guesses, most);
            let each = self.significance / FALSE_POSITIVES.len() as f64;
            let refuted = clopper_pearson_lower_bound(attack, self.delta, each)?;
            epsilon_lower_bound = epsilon_lower_bound.max(refuted);
        }
        let advantage = |point: &Rates| point.true_positives - point.false_positives;
        Ok(Leakage {
            advantage: curve.iter().map(advantage).fold(0.0, f64::max),
            area: steps.map(|pair| width(pair) * height(pair)).sum(),
            rates: FALSE_POSITIVES.map(rate_at),
            epsilon_lower_bound,
            curve,
        })
    }
}

impl MembershipFindings {
    /// The largest true-positive rate that the promise allows at a false-positive rate: e^epsilon times it, plus delta.
    pub fn allowed(&self, false_positives: f64) -> f64 {
        (self.epsilon.exp() * false_positives + self.delta).min(1.0)
    }
}

impl Record {
    /// The logit of the right class.
    fn logit(&self, model: &[f64]) -> f64 {
        let (weights, bias) = model.split_at(self.features.len());
        let product: f64 = weights.iter().zip(&self.features).map(|(w, x)| w * f64::from(*x)).sum();
        self.label * (product + bias[0])
    }

    /// Minus the gradient of the logistic loss.
    fn update(&self, model: &[f64]) -> Vec<f32> {
        let slope = self.label / (1.0 + self.logit(model).exp());
        let features = self.features.iter().map(|x| f64::from(*x)).chain([1.0]);
        features.map(|x| (slope * x) as f32).collect()
    }
}

/// The likelihood ratio for every client in every model; even models choose thresholds, odd ones are measured.
fn guesses(records: &[Record], members: &[Vec<bool>], models: &[Vec<f64>]) -> Vec<Guess> {
    let mut guesses = Vec::new();
    for (client, record) in records.iter().enumerate() {
        let logits: Vec<f64> = models.iter().map(|model| record.logit(model)).collect();
        for target in 0..models.len() {
            let bell = |inside: bool| {
                let shadows = (0..models.len()).filter(|model| *model != target);
                Bell::of(shadows.filter(|model| members[*model][client] == inside).map(|model| logits[model]))
            };
            let score = bell(true).ln_density(logits[target]) - bell(false).ln_density(logits[target]);
            guesses.push(Guess { score, member: members[target][client], calibrates: target % 2 == 0 });
        }
    }
    guesses.sort_by(|one, other| other.score.total_cmp(&one.score));
    guesses
}

/// A Gaussian fitted to logits.
struct Bell {
    mean: f64,
    variance: f64,
}

impl Bell {
    fn of(logits: impl Iterator<Item = f64> + Clone) -> Self {
        let count = logits.clone().count().max(1) as f64;
        let mean = logits.clone().sum::<f64>() / count;
        let variance = logits.map(|logit| (logit - mean).powi(2)).sum::<f64>() / count;
        Self { mean, variance: variance.max(1e-12) }
    }

    fn ln_density(&self, logit: f64) -> f64 {
        -0.5 * ((logit - self.mean).powi(2) / self.variance + self.variance.ln())
    }
}

/// The curve of guesses in falling order, from nobody called in to everybody.
fn characteristic(guesses: &[Guess]) -> Vec<Rates> {
    let all = guesses.iter().filter(|guess| guess.member).count();
    let (all, others) = (all as f64, (guesses.len() - all) as f64);
    let (mut hits, mut alarms) = (0.0, 0.0);
    let mut curve = vec![Rates { false_positives: 0.0, true_positives: 0.0 }];
    for guess in guesses {
        if guess.member {
            hits += 1.0
        } else {
            alarms += 1.0
        }
        curve.push(Rates { false_positives: alarms / others, true_positives: hits / all });
    }
    curve
}

/// Counts on one half of the models, at the threshold that has at most this false-positive rate on the other half.
fn held_out(guesses: &[Guess], most: f64) -> Attack {
    let calm: Vec<f64> =
        guesses.iter().filter(|guess| guess.calibrates && !guess.member).map(|guess| guess.score).collect();
    let threshold = calm.get((most * calm.len() as f64) as usize).copied().unwrap_or(f64::INFINITY);
    let count = |member: bool, called: bool| {
        let measured = guesses.iter().filter(|guess| !guess.calibrates && guess.member == member);
        measured.filter(|guess| !called || guess.score > threshold).count() as u64
    };
    Attack {
        members: count(true, false),
        true_positives: count(true, true),
        others: count(false, false),
        false_positives: count(false, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(score: f64, member: bool, calibrates: bool) -> Guess {
        Guess { score, member, calibrates }
    }

    #[test]
    fn a_threshold_is_chosen_on_one_half_and_measured_on_the_other() {
        let mut guesses: Vec<Guess> = (0..100).map(|i| guess(f64::from(i), false, true)).collect();
        guesses.extend((0..10).map(|i| guess(95.5 + f64::from(i), i % 2 == 0, false)));
        guesses.sort_by(|one, other| other.score.total_cmp(&one.score));
        // At most 2 of 100 are above 97, the third largest.
        let attack = held_out(&guesses, 0.02);
        assert_eq!((attack.members, attack.others), (5, 5));
        assert_eq!((attack.true_positives, attack.false_positives), (4, 4));
    }

    #[test]
    fn the_curve_of_a_perfect_attack_goes_through_the_corner() {
        let guesses = [guess(2.0, true, false), guess(1.0, true, true), guess(0.0, false, true)];
        let corner = Rates { false_positives: 0.0, true_positives: 1.0 };
        assert!(characteristic(&guesses).contains(&corner));
    }

    #[test]
    fn too_few_shadows_are_refused() {
        let attack = MembershipAttack { models: 7, ..MembershipAttack::default() };
        let generator = &mut protocol::Seed::from_number(1).generator();
        let found = attack.run(generator, &mut privacy::noise::NoiseSource::from_entropy);
        assert_eq!(found.err(), Some(MembershipError::Models(7)));
    }
}
