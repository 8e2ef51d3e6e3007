//! Layers one after another, and around them the short cut of a residual connection.

use std::ops::Range;

use super::{Layer, Weights, reserve};
use crate::Mode;
use crate::kernels::vectorised;

/// Layers of which each takes the results of the one before.
#[derive(Default)]
pub(crate) struct Chain {
    links: Vec<Link>,
}

struct Link {
    layer: Box<dyn Layer>,
    /// Its parameters among those of the chain.
    range: Range<usize>,
    inputs: usize,
    outputs: usize,
    y: Vec<f32>,
    y_gradient: Vec<f32>,
}

impl Chain {
    /// Appends a layer with so many parameters, values of one sample going in, and values coming out.
    pub(crate) fn push(&mut self, layer: Box<dyn Layer>, parameters: usize, inputs: usize, outputs: usize) {
        let start = self.parameters();
        let (y, y_gradient) = (Vec::new(), Vec::new());
        self.links.push(Link { layer, range: start..start + parameters, inputs, outputs, y, y_gradient });
    }

    /// The same chain with what `wrap` makes of each layer, given the values of a sample that go in and come out.
    pub(crate) fn wrapped(
        mut self,
        mut wrap: impl FnMut(Box<dyn Layer>, usize, usize) -> Box<dyn Layer>,
    ) -> Self {
        let wrapped = |link: Link| Link { layer: wrap(link.layer, link.inputs, link.outputs), ..link };
        self.links = self.links.into_iter().map(wrapped).collect();
        self
    }

    /// Parameters of all layers.
    pub(crate) fn parameters(&self) -> usize {
        self.links.last().map_or(0, |link| link.range.end)
    }

    /// Whether it has no layer, and so passes on what it is given.
    fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Runs forward and returns the last layer's results; nothing without a layer.
    pub(crate) fn run(&mut self, batch: usize, mode: Mode, parameters: &[f32], x: &[f32]) -> &[f32] {
        for at in 0..self.links.len() {
            let (before, rest) = self.links.split_at_mut(at);
            let Link { layer, range, inputs, outputs, y, .. } = &mut rest[0];
            let x = before.last().map_or(x, |link| &link.y);
            reserve(y, batch * *outputs);
            let (x, y) = (&x[..batch * *inputs], &mut y[..batch * *outputs]);
            layer.forward(batch, mode, &parameters[range.clone()], x, y);
        }
        self.results(batch)
    }

    /// The results of the batch that was run last.
    pub(crate) fn results(&self, batch: usize) -> &[f32] {
        self.links.last().map_or(&[], |link| &link.y[..batch * link.outputs])
    }

    /// Where the gradient of the results goes before [`Chain::back`]; what it holds does not matter.
    pub(crate) fn results_and_gradient(&mut self, batch: usize) -> (&[f32], &mut [f32]) {
        let Some(Link { outputs, y, y_gradient, .. }) = self.links.last_mut() else {
            return (&[], &mut []);
        };
        reserve(y_gradient, batch * *outputs);
        (&y[..batch * *outputs], &mut y_gradient[..batch * *outputs])
    }

    /// Runs backward from the gradient that was left in [`Chain::results_and_gradient`].
    pub(crate) fn back(
        &mut self,
        batch: usize,
        mut weights: Weights<'_>,
        x: &[f32],
        mut x_gradient: Option<&mut [f32]>,
    ) {
        for at in (0..self.links.len()).rev() {
            let (before, rest) = self.links.split_at_mut(at);
            let Link { layer, range, inputs, outputs, y, y_gradient } = &mut rest[0];
            let (y, y_gradient) = (&y[..batch * *outputs], &mut y_gradient[..batch * *outputs]);
            let weights = weights.part(range.clone());
            match before.split_last_mut() {
                Some((link, further)) => {
                    let x = &link.y[..batch * *inputs];
                    // Below, nobody has parameters and nobody asked: the gradient ends here.
                    let needed = x_gradient.is_some()
                        || !link.range.is_empty()
                        || further.iter().any(|link| !link.range.is_empty());
                    if !needed {
                        layer.backward(batch, weights, x, y, y_gradient, None);
                        return;
                    }
                    reserve(&mut link.y_gradient, batch * *inputs);
                    let target = &mut link.y_gradient[..batch * *inputs];
                    layer.backward(batch, weights, x, y, y_gradient, Some(target));
                }
                None => layer.backward(batch, weights, x, y, y_gradient, x_gradient.take()),
            }
        }
    }

    /// Parameters from layout order to the layers' own.
    pub(crate) fn import(&self, natural: &[f32], own: &mut [f32]) {
        for Link { layer, range, .. } in &self.links {
            layer.import(&natural[range.clone()], &mut own[range.clone()]);
        }
    }

    /// Parameters from the layers' own order to layout order.
    pub(crate) fn export(&self, own: &[f32], natural: &mut [f32]) {
        for Link { layer, range, .. } in &self.links {
            layer.export(&own[range.clone()], &mut natural[range.clone()]);
        }
    }
}

/// `chain(x) + shortcut(x)`, where either passes `x` on when it is empty (He et al. 2016).
pub(crate) struct Residual {
    chain: Chain,
    shortcut: Chain,
    /// The gradient that comes through the shortcut.
    aside: Vec<f32>,
}

impl Residual {
    /// The parameters are the chain's, then the shortcut's.
    pub(crate) fn new(chain: Chain, shortcut: Chain) -> Self {
        Self { chain, shortcut, aside: Vec::new() }
    }
}

impl Layer for Residual {
    fn forward(&mut self, batch: usize, mode: Mode, parameters: &[f32], x: &[f32], y: &mut [f32]) {
        let (of_chain, of_shortcut) = parameters.split_at(self.chain.parameters());
        y.copy_from_slice(if self.chain.is_empty() { x } else { self.chain.run(batch, mode, of_chain, x) });
        let aside = if self.shortcut.is_empty() { x } else { self.shortcut.run(batch, mode, of_shortcut, x) };
        add(y, aside);
    }

    fn backward(
        &mut self,
        batch: usize,
        mut weights: Weights<'_>,
        x: &[f32],
        _y: &[f32],
        y_gradient: &mut [f32],
        x_gradient: Option<&mut [f32]>,
    ) {
        let (split, end) = (self.chain.parameters(), weights.values().len());
        let (through, beside) = (0..split, split..end);
        let Some(x_gradient) = x_gradient else {
            for (chain, range) in [(&mut self.chain, through), (&mut self.shortcut, beside)] {
                if !chain.is_empty() {
                    chain.results_and_gradient(batch).1.copy_from_slice(y_gradient);
                    chain.back(batch, weights.part(range), x, None);
                }
            }
            return;
        };
        if self.chain.is_empty() {
            x_gradient.copy_from_slice(y_gradient);
        } else {
            self.chain.results_and_gradient(batch).1.copy_from_slice(y_gradient);
            self.chain.back(batch, weights.part(through), x, Some(&mut *x_gradient));
        }
        if self.shortcut.is_empty() {
            return add(x_gradient, y_gradient);
        }
        self.shortcut.results_and_gradient(batch).1.copy_from_slice(y_gradient);
        reserve(&mut self.aside, x.len());
        let aside = &mut self.aside[..x.len()];
        self.shortcut.back(batch, weights.part(beside), x, Some(aside));
        add(x_gradient, aside);
    }

    fn import(&self, natural: &[f32], own: &mut [f32]) {
        let split = self.chain.parameters();
        self.chain.import(&natural[..split], &mut own[..split]);
        self.shortcut.import(&natural[split..], &mut own[split..]);
    }

    fn export(&self, own: &[f32], natural: &mut [f32]) {
        let split = self.chain.parameters();
        self.chain.export(&own[..split], &mut natural[..split]);
        self.shortcut.export(&own[split..], &mut natural[split..]);
    }
}

fn add(target: &mut [f32], values: &[f32]) {
    vectorised(
        #[inline(always)]
        || target.iter_mut().zip(values).for_each(|(target, value)| *target += value),
    );
}
