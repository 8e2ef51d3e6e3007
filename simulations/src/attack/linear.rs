//! The record behind the update of a dense layer with biases, by division.
//!
//! For a batch of one, every row r of the weights has the gradient (dL/db_r) x: the record times a number that stands
//! beside it (Phong et al., "Privacy-Preserving Deep Learning via Additively Homomorphic Encryption", 2018, section 3;
//! Geiping et al. 2020, proposition 3.1). The victims are real participants that train logistic regression with
//! `learning`, one step on one picture each. The attack needs no guess and no search, and nothing but one update.

use std::sync::Arc;

use client::{Lent, LocalState, Memory, SiteMethods};
use learning::device::Device;
use learning::{Dataset, Labels, ModelError, SiteData, Trainer, View, initial_parameters};
use privacy::{Encoded, Inadmissible};
use protocol::{
    ClientId, IdError, Outcome, Parameters, Round, RunId, Seed, Spec, StepId, Stop, Task, TaskId, Work,
};
use server::{ConfigError, Plan};

use super::picture::cosine;
use super::{Picture, Reconstruction};
use crate::aggregator::{Aggregator, AggregatorError, Entropy, Promise, lattice_of};

/// Pixels along a side.
const SIDE: usize = 16;
const CLASSES: usize = 10;
/// The victims' plan. Without privacy its norm bound is there for the lattice alone.
const PLAN: &str = "name = \"attack\"\nrounds = 1\nmodel = \"logistic\"\n\
    data = { tensor = { shape = [256], target = { classes = 10 } } }\n\
    training = { batch_size = 1, optimizer = { sgd = { learning_rate = 0.1 } } }\n\
    update = { norm_max = 100.0, weights = \"uniform\" }\n";

/// Who is attacked, and behind which defence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearAttack {
    /// Clients with one picture each, at least 10: the cohort of the sum.
    pub clients: usize,
    /// Standard deviation of the noise over the clipping norm.
    pub noise_multiplier: f64,
    /// The clipping norm of the defences; the victims' updates are about 0.7 long.
    pub norm_max: f64,
    /// The delta at which epsilon is told.
    pub delta: f64,
}

impl Default for LinearAttack {
    fn default() -> Self {
        Self { clients: 40, noise_multiplier: 1.0, norm_max: 0.5, delta: 1e-5 }
    }
}

/// What came of it. Cosines are means over the clients, between what was reconstructed and what the client trained on;
/// chance is the same against pictures of other digits that nobody trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearFindings {
    /// Every picture; defended by the sum and by noise on the record's gradient.
    pub pictures: Vec<Reconstruction>,
    /// From one client's update without privacy: the worst of the clients.
    pub plain_least: f64,
    /// From one client's update without privacy.
    pub plain: f64,
    /// From the noised sum of all clients.
    pub summed: f64,
    /// NoiseRng for it.
    pub summed_chance: f64,
    /// From one client's update that was noised for its record.
    pub noised: f64,
    /// NoiseRng for it.
    pub noised_chance: f64,
    /// Epsilon of one release, for a client of the sum as for a record of a noised update.
    pub epsilon: f64,
}

/// Why the attack could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinearError {
    /// Too small a cohort to hide in.
    #[error("a cohort of {0} is too small to hide one client's update in a sum; take at least 10 clients")]
    Clients(usize),
    /// The victims' plan.
    #[error("the victims' plan is wrong: {0}")]
    Plan(#[from] ConfigError),
    /// A victim's name.
    #[error(transparent)]
    Name(#[from] IdError),
    /// The victims' model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A victim did not train.
    #[error("a victim did not train: {0}")]
    Declined(String),
    /// A victim's update is none.
    #[error(transparent)]
    Inadmissible(#[from] Inadmissible),
    /// The victims' lattice.
    #[error(transparent)]
    Lattice(#[from] protocol::SpecError),
    /// The defence.
    #[error(transparent)]
    Defence(#[from] AggregatorError),
}

/// The record behind the gradient of one dense layer, or any multiple of it: `weights` row by row, `width` values each,
/// and one bias a row. Every row is an estimate; they are weighted as noise would ask, by the square of their bias.
pub fn invert_dense(weights: &[f64], biases: &[f64], width: usize) -> Vec<f64> {
    let mut record = vec![0.0; width];
    let square: f64 = biases.iter().map(|bias| bias * bias).sum();
    for (row, bias) in weights.chunks(width.max(1)).zip(biases) {
        for (value, weight) in record.iter_mut().zip(row) {
            *value += bias * weight / square;
        }
    }
    record
}

impl LinearAttack {
    /// Lets every client train, and inverts what each adversary sees. `seed` decides the pictures.
    ///
    /// # Errors
    /// [`LinearError`] when there are too few clients, or numbers that a defence refuses.
    pub fn run(&self, seed: Seed, entropy: &mut Entropy<'_>) -> Result<LinearFindings, LinearError> {
        if self.clients < 10 {
            return Err(LinearError::Clients(self.clients));
        }
        let mut generator = seed.generator();
        let mut draw = |digit: usize| Picture::digit(digit, SIDE, &mut generator);
        let originals: Vec<Picture> = (0..self.clients).map(&mut draw).collect();
        let outsiders: Vec<Picture> = (1..=self.clients).map(&mut draw).collect();
        let updates = victims(&originals, seed)?;

        let promise = Promise {
            noise_multiplier: self.noise_multiplier,
            noise_scale: 1.0,
            denominator: self.clients as f64,
            releases: 1,
            delta: self.delta,
        };
        let dimension = CLASSES * (SIDE * SIDE + 1);
        let lattice = lattice_of(self.norm_max, self.clients as u64, dimension)?;
        let mut sums = Aggregator::open(lattice, &promise)?;
        let epsilon = sums.epsilon();
        let from_sum = invert(&sums.release(updates.clone(), entropy)?);
        let mut records = Aggregator::open(
            lattice_of(self.norm_max, 1, dimension)?,
            &Promise { denominator: 1.0, releases: self.clients as u64, ..promise },
        )?;

        let (mut pictures, mut cosines) = (Vec::new(), Vec::new());
        for (place, (original, update)) in originals.into_iter().zip(updates).enumerate() {
            let plain = invert(&update.iter().map(|value| f64::from(*value)).collect::<Vec<_>>());
            let noised = invert(&records.release([update], entropy)?);
            let (own, other) = (numbers(&original), numbers(&outsiders[place]));
            cosines.push([
                cosine(&plain, &own),
                cosine(&from_sum, &own),
                cosine(&from_sum, &other),
                cosine(&noised, &own),
                cosine(&noised, &other),
            ]);
            let defended = vec![picture(&from_sum), picture(&noised)];
            pictures.push(Reconstruction { original, plain: picture(&plain), defended });
        }
        let mean = |which: usize| cosines.iter().map(|of| of[which]).sum::<f64>() / cosines.len() as f64;
        Ok(LinearFindings {
            pictures,
            plain_least: cosines.iter().map(|of| of[0]).fold(f64::INFINITY, f64::min),
            plain: mean(0),
            summed: mean(1),
            summed_chance: mean(2),
            noised: mean(3),
            noised_chance: mean(4),
            epsilon,
        })
    }
}

fn invert(update: &[f64]) -> Vec<f64> {
    let (weights, biases) = update.split_at(CLASSES * SIDE * SIDE);
    invert_dense(weights, biases, SIDE * SIDE)
}

fn numbers(picture: &Picture) -> Vec<f64> {
    picture.pixels().iter().map(|pixel| f64::from(*pixel)).collect()
}

fn picture(record: &[f64]) -> Picture {
    Picture::new(SIDE, record.iter().copied())
}

/// What every client sends: a participant's own update, admitted as a server would.
fn victims(pictures: &[Picture], seed: Seed) -> Result<Vec<Vec<f32>>, LinearError> {
    let spec = Arc::clone(&Plan::parse(PLAN)?.spec);
    let model = Arc::new(Parameters::new(initial_parameters(&spec, seed)?));
    let lattice = spec.lattice(model.len())?;
    let mut trainer = Trainer::without_data(Device::Cpu);
    let mut updates = Vec::new();
    for (place, picture) in pictures.iter().enumerate() {
        trainer.set_site(record(picture, place % CLASSES));
        let id = ClientId::new(&format!("victim-{place}"))?;
        let task = task(&spec, &model, seed);
        let (personal, memory, methods) =
            (&mut LocalState::default(), &mut Memory::default(), &SiteMethods::default());
        let mut lent = Lent { id: &id, learner: &mut trainer, personal, memory, methods };
        let answer = lent.perform(&task, seed, &Stop::default());
        let done = match answer.outcome {
            Outcome::Done(done) => done,
            Outcome::Declined { detail, .. } => return Err(LinearError::Declined(detail)),
        };
        let weight = done.weight;
        let points = done.into_points();
        let points = points.ok_or_else(|| LinearError::Declined("it answered something else".to_owned()))?;
        let admitted = Encoded::admit(points, weight, &lattice)?;
        let value = |point: &i32| (f64::from(*point) * lattice.step()) as f32;
        updates.push(admitted.points().iter().map(value).collect());
    }
    Ok(updates)
}

fn record(picture: &Picture, label: usize) -> SiteData {
    let labels = Labels::Classes(vec![label as u32]);
    let dataset = Dataset { shape: vec![SIDE * SIDE], features: picture.pixels().to_vec().into(), labels };
    SiteData { train: View::whole(Arc::new(dataset)), test: None }
}

fn task(spec: &Arc<Spec>, model: &Arc<Parameters>, seed: Seed) -> Task {
    let work = Work::Train { model: Arc::clone(model), learning_rate_scale: 1.0, norm_max: None };
    let id = TaskId::new(RunId(0), Round(1), StepId::TRAIN);
    Task { id, spec: Arc::clone(spec), seed: Some(seed), standardiser: None, work }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_row_is_enough_and_noise_free_rows_agree() {
        let record = [0.5, -1.0, 2.0];
        let factors = [0.3, -0.7];
        let weights: Vec<f64> =
            factors.iter().flat_map(|factor| record.map(|value| factor * value)).collect();
        for rows in 1..=2 {
            let found = invert_dense(&weights[..3 * rows], &factors[..rows], 3);
            assert!(found.iter().zip(record).all(|(found, value)| (found - value).abs() < 1e-12));
        }
    }

    #[test]
    fn a_cohort_too_small_to_hide_in_is_refused() {
        let attack = LinearAttack { clients: 9, ..LinearAttack::default() };
        let entropy = &mut privacy::noise::NoiseSource::from_entropy;
        assert!(matches!(attack.run(Seed::from_number(1), entropy), Err(LinearError::Clients(9))));
    }
}
