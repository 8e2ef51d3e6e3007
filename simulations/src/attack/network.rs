//! A small smooth network in plain f64, with the one second derivative that gradient inversion needs.
//!
//! Two convolutions of stride 2 with sigmoids and a dense layer, as in Zhu, Liu, Han, "Deep Leakage from Gradients" (2019),
//! section 3.1, made smaller. Generic over the number: with [`Dual`] parameters `theta + epsilon v`, the backward pass
//! gives, in its dual part, the derivative along `v` of everything it computes (Pearlmutter, "Fast Exact Multiplication
//! by the Hessian", 1994). It is an attacker's tool and its toy victim; real models are `learning`'s.

use std::ops::{Add, Mul, Neg, Sub};

use rand::Rng;

/// Arithmetic on plain and on dual numbers.
pub(super) trait Number:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Neg<Output = Self>
{
    fn from_plain(value: f64) -> Self;
    fn exp(self) -> Self;
    fn recip(self) -> Self;
    fn plain(self) -> f64;
}

impl Number for f64 {
    fn from_plain(value: f64) -> Self {
        value
    }
    fn exp(self) -> Self {
        Self::exp(self)
    }
    fn recip(self) -> Self {
        1.0 / self
    }
    fn plain(self) -> f64 {
        self
    }
}

/// `value + epsilon * slope`, where epsilon squared is zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dual {
    pub(super) value: f64,
    pub(super) slope: f64,
}

impl Add for Dual {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { value: self.value + other.value, slope: self.slope + other.slope }
    }
}

impl Sub for Dual {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Mul for Dual {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        let slope = self.value * other.slope + self.slope * other.value;
        Self { value: self.value * other.value, slope }
    }
}

impl Neg for Dual {
    type Output = Self;
    fn neg(self) -> Self {
        Self { value: -self.value, slope: -self.slope }
    }
}

impl Number for Dual {
    fn from_plain(value: f64) -> Self {
        Self { value, slope: 0.0 }
    }
    fn exp(self) -> Self {
        let value = self.value.exp();
        Self { value, slope: value * self.slope }
    }
    fn recip(self) -> Self {
        let value = 1.0 / self.value;
        Self { value, slope: -value * value * self.slope }
    }
    fn plain(self) -> f64 {
        self.value
    }
}

/// A convolution with a sigmoid: stride 2, odd kernel, the picture padded with zeros so that its side halves.
#[derive(Clone, Copy, Debug)]
struct Convolution {
    channels_in: usize,
    channels_out: usize,
    /// Side of the input; even.
    side: usize,
    kernel: usize,
}

/// Shapes of the network. Parameters are one vector: each layer's weight, then its bias.
#[derive(Clone, Debug)]
pub(super) struct Network {
    convolutions: [Convolution; 2],
    classes: usize,
}

/// Gradients of the loss on one picture.
pub(super) struct Gradients<T> {
    pub(super) parameters: Vec<T>,
    pub(super) picture: Vec<T>,
}

impl Convolution {
    fn weights(&self) -> usize {
        self.channels_out * self.channels_in * self.kernel * self.kernel
    }
    fn parameters(&self) -> usize {
        self.weights() + self.channels_out
    }
    fn outputs(&self) -> usize {
        self.channels_out * (self.side / 2).pow(2)
    }

    /// Calls `visit(output, weight, input)` for every product of the convolution, by their places.
    fn products(&self, visit: &mut impl FnMut(usize, usize, usize)) {
        let (side, kernel, half) = (self.side, self.kernel, self.side / 2);
        for out in 0..self.channels_out {
            for (row, column) in (0..half * half).map(|place| (place / half, place % half)) {
                let output = (out * half + row) * half + column;
                for channel in 0..self.channels_in {
                    for (i, j) in (0..kernel * kernel).map(|place| (place / kernel, place % kernel)) {
                        // Places left of or above the picture wrap around and fail the comparison.
                        let y = (2 * row + i).wrapping_sub(kernel / 2);
                        let x = (2 * column + j).wrapping_sub(kernel / 2);
                        if y < side && x < side {
                            let weight = ((out * self.channels_in + channel) * kernel + i) * kernel + j;
                            visit(output, weight, (channel * side + y) * side + x);
                        }
                    }
                }
            }
        }
    }

    fn forward<T: Number>(&self, parameters: &[T], input: &[T]) -> Vec<T> {
        let (weights, biases) = parameters.split_at(self.weights());
        let area = (self.side / 2).pow(2);
        let mut outputs: Vec<T> = (0..self.outputs()).map(|place| biases[place / area]).collect();
        self.products(&mut |output, weight, place| {
            outputs[output] = outputs[output] + weights[weight] * input[place];
        });
        let one = T::from_plain(1.0);
        outputs.iter_mut().for_each(|value| *value = (one + (-*value).exp()).recip());
        outputs
    }

    /// The gradients for parameters and input, from that for the `outputs` of [`Convolution::forward`].
    fn backward<T: Number>(
        &self,
        parameters: &[T],
        input: &[T],
        outputs: &[T],
        of_outputs: &[T],
    ) -> Gradients<T> {
        let zero = T::from_plain(0.0);
        let mut gradients =
            Gradients { parameters: vec![zero; self.parameters()], picture: vec![zero; input.len()] };
        let slope = |(output, gradient): (&T, &T)| *gradient * *output * (T::from_plain(1.0) - *output);
        let before: Vec<T> = outputs.iter().zip(of_outputs).map(slope).collect();
        self.products(&mut |output, weight, place| {
            let change = before[output];
            gradients.parameters[weight] = gradients.parameters[weight] + change * input[place];
            gradients.picture[place] = gradients.picture[place] + change * parameters[weight];
        });
        let area = (self.side / 2).pow(2);
        for (place, change) in before.into_iter().enumerate() {
            let bias = &mut gradients.parameters[self.weights() + place / area];
            *bias = *bias + change;
        }
        gradients
    }
}

impl Network {
    /// A network for square pictures whose side is a multiple of four.
    pub(super) fn new(side: usize, channels: usize, classes: usize) -> Self {
        let first = Convolution { channels_in: 1, channels_out: channels, side, kernel: 5 };
        let second = Convolution { channels_in: channels, channels_out: channels, side: side / 2, kernel: 5 };
        Self { convolutions: [first, second], classes }
    }

    /// Number of parameters.
    pub(super) fn len(&self) -> usize {
        self.convolutions.iter().map(Convolution::parameters).sum::<usize>()
            + self.classes * (self.hidden() + 1)
    }

    /// Where the biases of the last layer are; they are the last parameters.
    pub(super) fn last_biases(&self) -> std::ops::Range<usize> {
        self.len() - self.classes..self.len()
    }

    /// First parameters, uniform between minus and plus a half (Zhu et al. 2019).
    pub(super) fn first(&self, generator: &mut impl Rng) -> Vec<f64> {
        (0..self.len()).map(|_| generator.random_range(-0.5..0.5)).collect()
    }

    fn hidden(&self) -> usize {
        self.convolutions[1].outputs()
    }

    /// Gradients of the cross-entropy of `label` for `picture`.
    pub(super) fn gradients<T: Number>(&self, parameters: &[T], picture: &[T], label: usize) -> Gradients<T> {
        let [one, two] = &self.convolutions;
        let (first, rest) = parameters.split_at(one.parameters());
        let (second, dense) = rest.split_at(two.parameters());
        let middle = one.forward(first, picture);
        let hidden = two.forward(second, &middle);
        let mut errors = self.dense(dense, &hidden);
        errors[label] = errors[label] - T::from_plain(1.0);
        let mut last = Vec::with_capacity(dense.len());
        let mut of_hidden = vec![T::from_plain(0.0); hidden.len()];
        for (error, row) in errors.iter().zip(dense.chunks(hidden.len())) {
            last.extend(hidden.iter().map(|value| *error * *value));
            for (gradient, weight) in of_hidden.iter_mut().zip(row) {
                *gradient = *gradient + *error * *weight;
            }
        }
        last.extend(errors);
        let upper = two.backward(second, &middle, &hidden, &of_hidden);
        let lower = one.backward(first, picture, &middle, &upper.picture);
        let parameters = [lower.parameters, upper.parameters, last].concat();
        Gradients { parameters, picture: lower.picture }
    }

    /// The probabilities of the classes.
    fn dense<T: Number>(&self, parameters: &[T], hidden: &[T]) -> Vec<T> {
        let (weights, biases) = parameters.split_at(self.classes * hidden.len());
        let logit = |(row, bias): (&[T], &T)| {
            row.iter().zip(hidden).fold(*bias, |sum, (weight, value)| sum + *weight * *value)
        };
        let logits: Vec<T> = weights.chunks(hidden.len()).zip(biases).map(logit).collect();
        let largest = logits.iter().map(|logit| logit.plain()).fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<T> = logits.iter().map(|logit| (*logit - T::from_plain(largest)).exp()).collect();
        let total = powers.iter().fold(T::from_plain(0.0), |sum, power| sum + *power).recip();
        powers.into_iter().map(|power| power * total).collect()
    }
}

#[cfg(test)]
mod tests {
    use protocol::Seed;

    use super::*;

    /// The loss, from the gradient of the last bias of the label: p - 1.
    fn loss(network: &Network, parameters: &[f64], picture: &[f64], label: usize) -> f64 {
        let gradients = network.gradients(parameters, picture, label).parameters;
        -(1.0 + gradients[network.last_biases()][label]).ln()
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let network = Network::new(8, 3, 4);
        let mut generator = Seed::from_number(1).generator();
        let parameters = network.first(&mut generator);
        let picture: Vec<f64> = (0..64).map(|_| generator.random()).collect();
        let gradients = network.gradients(&parameters, &picture, 2);
        let step = 1e-5;
        let slope = |of: &dyn Fn(f64) -> f64| (of(step) - of(-step)) / (2.0 * step);
        for place in (0..network.len()).step_by(7) {
            let moved = |by: f64| {
                let mut moved = parameters.clone();
                moved[place] += by;
                loss(&network, &moved, &picture, 2)
            };
            assert!((slope(&moved) - gradients.parameters[place]).abs() < 1e-8, "parameter {place}");
        }
        for place in 0..64 {
            let moved = |by: f64| {
                let mut moved = picture.clone();
                moved[place] += by;
                loss(&network, &parameters, &moved, 2)
            };
            assert!((slope(&moved) - gradients.picture[place]).abs() < 1e-8, "pixel {place}");
        }
    }

    #[test]
    fn the_dual_part_is_the_derivative_along_the_direction() {
        let network = Network::new(8, 2, 3);
        let mut generator = Seed::from_number(2).generator();
        let (parameters, direction) = (network.first(&mut generator), network.first(&mut generator));
        let picture: Vec<f64> = (0..64).map(|_| generator.random()).collect();
        let dual = |(value, slope): (&f64, &f64)| Dual { value: *value, slope: *slope };
        let moved: Vec<Dual> = parameters.iter().zip(&direction).map(dual).collect();
        let still: Vec<Dual> = picture.iter().map(|pixel| Dual::from_plain(*pixel)).collect();
        let found = network.gradients(&moved, &still, 1).picture;
        let at = |by: f64| {
            let moved: Vec<f64> = parameters.iter().zip(&direction).map(|(p, d)| p + by * d).collect();
            network.gradients(&moved, &picture, 1).picture
        };
        for ((dual, above), below) in found.iter().zip(at(1e-5)).zip(at(-1e-5)) {
            assert!((dual.slope - (above - below) / 2e-5).abs() < 1e-8);
        }
    }
}
