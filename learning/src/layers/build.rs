//! From a plan's steps to layers in closed form, with images turned to channels last where convolutions begin and back where
//! dense layers do.

use super::{AveragePool, Chain, Convolution, Dense, Dropout, Layer, MaxPool, Residual, Transpose};
use crate::model::{Kind, Shape, Step};

/// The steps as a chain for batches of about `batch` samples. What goes in has its channels first. None when a step has no closed
/// form.
pub(crate) fn build(steps: &[Step], batch: usize) -> Option<Chain> {
    let mut chain = Chain::default();
    let last = add(&mut chain, steps, batch, Order::First)?;
    debug_assert!(steps.last().is_none_or(|step| matches!(step.to, Shape::Row(_))) || last == Order::First);
    Some(chain)
}

/// Where the channels of an image are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    First,
    Last,
}

/// Appends steps to a chain; returns the order that images have at its end.
fn add(chain: &mut Chain, steps: &[Step], batch: usize, mut order: Order) -> Option<Order> {
    for step in steps {
        if let Shape::Image { channels, height, width } = step.from {
            let wanted = match step.kind {
                Kind::Dense(_) => Order::First,
                Kind::Elementwise(_) | Kind::Dropout { .. } => order,
                _ => Order::Last,
            };
            if wanted != order && channels > 1 && height * width > 1 {
                let (rows, columns) = match wanted {
                    Order::Last => (channels, height * width),
                    Order::First => (height * width, channels),
                };
                let length = step.from.length();
                chain.push(Box::new(Transpose::new(rows, columns)), 0, length, length);
            }
            order = wanted;
        }
        let layer = layer(step, batch)?;
        chain.push(layer, step.parameters(), step.from.length(), step.to.length());
    }
    Some(order)
}

fn layer(step: &Step, batch: usize) -> Option<Box<dyn Layer>> {
    Some(match &step.kind {
        Kind::Dense(activation) => {
            let (rows, inputs, outputs) = match (step.from, step.to) {
                (Shape::Sequence { steps, features }, to) => (steps, features, to.length() / steps),
                (from, to) => (1, from.length(), to.length()),
            };
            Box::new(Dense::new(rows, inputs, outputs, *activation))
        }
        Kind::Convolution(window, activation) => {
            let Shape::Image { channels, .. } = step.to else { return None };
            Box::new(Convolution::new(*window, channels, *activation, batch))
        }
        Kind::MaxPool(window) => Box::new(MaxPool::new(*window)),
        Kind::AveragePool => match step.from {
            Shape::Image { channels, height, width } => Box::new(AveragePool::new(channels, height * width)),
            Shape::Sequence { steps, features } => Box::new(AveragePool::new(features, steps)),
            Shape::Row(_) => return None,
        },
        Kind::Elementwise(kind) => Box::new(*kind),
        Kind::Dropout { probability, number } => Box::new(Dropout::new(*probability, *number)),
        Kind::Residual { layers, shortcut } => {
            let order = match step.from {
                Shape::Image { .. } => Order::Last,
                Shape::Row(_) | Shape::Sequence { .. } => Order::First,
            };
            let (mut inner, mut aside) = (Chain::default(), Chain::default());
            add(&mut inner, layers, batch, order)?;
            add(&mut aside, shortcut, batch, order)?;
            Box::new(Residual::new(inner, aside))
        }
        Kind::GroupNorm { .. }
        | Kind::LayerNorm
        | Kind::Embedding { .. }
        | Kind::Lstm
        | Kind::Gru
        | Kind::Last => {
            return None;
        }
    })
}
