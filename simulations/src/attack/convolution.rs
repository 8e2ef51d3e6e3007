//! Gradient inversion: the picture a small convolutional network was trained on, from the update it caused.
//!
//! Geiping, Bauermeister, Dröge, Moeller, "Inverting Gradients" (2020), section 4: find the picture whose gradient points
//! where the observed one does, with total variation for a prior, by Adam on the signs of the slope. The label is read
//! off the biases of the last layer (Zhao, Mopuri, Bilen, "iDLG", 2020). The attacker knows model and architecture, as
//! every server does; nothing else. It refuses nothing: an update that says nothing gives a picture that means nothing.

use rand::Rng;

use super::network::{Dual, Network, Number};
use super::{Picture, Reconstruction};
use crate::aggregator::{Aggregator, AggregatorError, Entropy, Promise, lattice_of, plain_mean};

/// Pixels along a side.
const SIDE: usize = 16;
const CLASSES: usize = 10;
const CHANNELS: usize = 8;

/// What is tried, and how hard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConvolutionAttack {
    /// Pictures, one client each; the first digits.
    pub pictures: usize,
    /// Steps of each search.
    pub steps: u32,
    /// Standard deviation of the defence's noise over the clipping norm.
    pub noise_multiplier: f64,
    /// The largest norm of the gradient of one record.
    pub norm_max: f64,
    /// The delta at which epsilon is told.
    pub delta: f64,
}

impl Default for ConvolutionAttack {
    fn default() -> Self {
        Self { pictures: 3, steps: 1000, noise_multiplier: 1.0, norm_max: 1.0, delta: 1e-5 }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvolutionFindings {
    /// Every picture with what was made of it.
    pub pictures: Vec<Reconstruction>,
    /// Epsilon of one defended update, for one record.
    pub epsilon: f64,
}

impl ConvolutionAttack {
    /// Lets each client train one step on one picture, and inverts the update as it is and with noise.
    ///
    /// # Errors
    /// [`AggregatorError`] for a defence that cannot be built.
    pub fn run(
        &self,
        generator: &mut impl Rng,
        entropy: &mut Entropy<'_>,
    ) -> Result<ConvolutionFindings, AggregatorError> {
        let network = Network::new(SIDE, CHANNELS, CLASSES);
        let lattice = lattice_of(self.norm_max, 1, network.len())?;
        let promise = Promise {
            noise_multiplier: self.noise_multiplier,
            noise_scale: 1.0,
            denominator: 1.0,
            releases: self.pictures.max(1) as u64,
            delta: self.delta,
        };
        let mut aggregator = Aggregator::open(lattice.clone(), &promise)?;
        let single = Aggregator::open(lattice.clone(), &Promise { releases: 1, ..promise })?;
        let mut pictures = Vec::new();
        for label in 0..self.pictures {
            let original = Picture::digit(label, SIDE, generator);
            let model = network.first(generator);
            let update = gradient(&network, &model, &original, label % CLASSES);
            let mut invert = |update: Vec<f64>| self.invert(&network, &model, &update, &original, generator);
            let plain = invert(plain_mean(&lattice, [update.clone()])?);
            let defended = invert(aggregator.release([update], entropy)?);
            pictures.push(Reconstruction { original, plain, defended: vec![defended] });
        }
        Ok(ConvolutionFindings { pictures, epsilon: single.epsilon() })
    }

    /// The best of what all priors give, chosen as no attacker could: by the original.
    fn invert(
        &self,
        network: &Network,
        model: &[f64],
        seen: &[f64],
        original: &Picture,
        generator: &mut impl Rng,
    ) -> Picture {
        let mut search = |prior| Picture::new(SIDE, self.search(network, model, seen, prior, generator));
        let better = |best: Picture, other: Picture| {
            if original.psnr(&other) > original.psnr(&best) { other } else { best }
        };
        let [first, second] = PRIORS.map(&mut search);
        better(first, second)
    }

    /// One search by Adam on the signs of the slope, with steps that shrink to nothing.
    fn search(
        &self,
        network: &Network,
        model: &[f64],
        seen: &[f64],
        prior: f64,
        generator: &mut impl Rng,
    ) -> Vec<f64> {
        let label = likely_label(network, seen);
        let mut pixels: Vec<f64> = (0..SIDE * SIDE).map(|_| generator.random_range(0.0..1.0)).collect();
        let (mut mean, mut square) = (vec![0.0; pixels.len()], vec![0.0; pixels.len()]);
        for step in 1..=self.steps {
            let mut slope = matching_slope(network, model, seen, &pixels, label);
            add_variation_slope(&pixels, prior, &mut slope);
            let rate = 0.1 * (1.0 - f64::from(step - 1) / f64::from(self.steps));
            let (young, younger) = (1.0 - 0.9f64.powf(step.into()), 1.0 - 0.999f64.powf(step.into()));
            for (place, pixel) in pixels.iter_mut().enumerate() {
                let sign = slope[place].signum();
                mean[place] += 0.1 * (sign - mean[place]);
                square[place] += 0.001 * (1.0 - square[place]);
                let step = (mean[place] / young) / ((square[place] / younger).sqrt() + 1e-8);
                *pixel = (*pixel - rate * step).clamp(0.0, 1.0);
            }
        }
        pixels
    }
}

/// The gradient that a client with this one picture sends.
fn gradient(network: &Network, model: &[f64], picture: &Picture, label: usize) -> Vec<f32> {
    let pixels: Vec<f64> = picture.pixels().iter().map(|pixel| f64::from(*pixel)).collect();
    network.gradients(model, &pixels, label).parameters.into_iter().map(|value| value as f32).collect()
}

/// The class whose bias alone is pulled up: its gradient is p - 1, all others are p.
fn likely_label(network: &Network, seen: &[f64]) -> usize {
    let biases = seen[network.last_biases()].iter().enumerate();
    biases.min_by(|one, other| one.1.total_cmp(other.1)).map_or(0, |(label, _)| label)
}

/// The slope of one minus the cosine between the gradient of `pixels` and the one seen.
fn matching_slope(network: &Network, model: &[f64], seen: &[f64], pixels: &[f64], label: usize) -> Vec<f64> {
    let found = network.gradients(model, pixels, label).parameters;
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (length, length_seen) = (product(&found, &found).sqrt(), product(seen, seen).sqrt());
    let cosine = product(&found, seen) / (length * length_seen);
    // How the misfit changes with the gradient; its product with the gradient's own change is the slope we look for.
    let along =
        |(found, seen): (&f64, &f64)| cosine * found / (length * length) - seen / (length * length_seen);
    let direction = found.iter().zip(seen).map(along);
    let moved: Vec<Dual> =
        model.iter().zip(direction).map(|(value, slope)| Dual { value: *value, slope }).collect();
    let still: Vec<Dual> = pixels.iter().map(|pixel| Dual::from_plain(*pixel)).collect();
    network.gradients(&moved, &still, label).picture.into_iter().map(|pixel| pixel.slope).collect()
}

/// Weights of the total variation that are tried: next to none, and enough to smooth noise away.
const PRIORS: [f64; 2] = [1e-6, 1e-2];

/// Adds the slope of `weight` times the total variation, smoothed where neighbours are equal.
fn add_variation_slope(pixels: &[f64], weight: f64, slope: &mut [f64]) {
    let mut pair = |one: usize, other: usize| {
        let difference = pixels[one] - pixels[other];
        let pull = weight * difference / (difference * difference + 1e-6).sqrt();
        slope[one] += pull;
        slope[other] -= pull;
    };
    for place in 0..SIDE * SIDE {
        if place % SIDE + 1 < SIDE {
            pair(place, place + 1);
        }
        if place + SIDE < SIDE * SIDE {
            pair(place, place + SIDE);
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::Seed;

    use super::*;

    #[test]
    fn the_label_is_read_off_the_last_biases() {
        let network = Network::new(SIDE, 2, CLASSES);
        let mut generator = Seed::from_number(4).generator();
        let model = network.first(&mut generator);
        for label in 0..CLASSES {
            let update = gradient(&network, &model, &Picture::digit(label, SIDE, &mut generator), label);
            let seen: Vec<f64> = update.iter().map(|value| f64::from(*value)).collect();
            assert_eq!(likely_label(&network, &seen), label);
        }
    }

    #[test]
    fn the_right_picture_leaves_nothing_to_gain() {
        let network = Network::new(SIDE, 2, CLASSES);
        let mut generator = Seed::from_number(5).generator();
        let model = network.first(&mut generator);
        let pixels: Vec<f64> = (0..SIDE * SIDE).map(|_| generator.random()).collect();
        let seen = network.gradients(&model, &pixels, 3).parameters;
        let slope = matching_slope(&network, &model, &seen, &pixels, 3);
        assert!(slope.iter().all(|slope| slope.abs() < 1e-9));
        let elsewhere: Vec<f64> = pixels.iter().map(|pixel| pixel / 2.0).collect();
        let slope = matching_slope(&network, &model, &seen, &elsewhere, 3);
        assert!(slope.iter().any(|slope| slope.abs() > 1e-6));
    }
}
