//! From a plan's steps to layers in closed form, with images turned to channels last where convolutions begin and back where
//! dense layers do.

use super::{
    AveragePool, Chain, Convolution, Dense, Dropout, Embedding, GroupNorm, Gru, Last, Layer, LayerNorm, Lstm,
    MaxPool, Residual, Sizes, Transpose,
};
use crate::model::{Kind, Shape, Step};
use crate::ops::Activation;

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
    let mut before = steps.first().map_or(Shape::Row(0), |step| step.from);
    for step in steps {
        // The last dense layer takes an image as a row: what it is, the step before knows.
        if let Shape::Image { channels, height, width } = before {
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
        let layer = layer(step, batch, order)?;
        chain.push(layer, step.parameters(), step.from.length(), step.to.length());
        before = step.to;
    }
    Some(order)
}

fn layer(step: &Step, batch: usize, order: Order) -> Option<Box<dyn Layer>> {
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
        Kind::Dropout { probability, number } => {
            let turned = match step.from {
                Shape::Image { channels, height, width } if order == Order::Last => {
                    Some((channels, height * width))
                }
                _ => None,
            };
            Box::new(Dropout::new(*probability, *number, turned))
        }
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
        Kind::GroupNorm { groups } => {
            let Shape::Image { channels, height, width } = step.from else { return None };
            Box::new(GroupNorm::new(channels, height * width, *groups, Activation::Identity))
        }
        Kind::LayerNorm => match step.from {
            Shape::Row(width) | Shape::Sequence { features: width, .. } => Box::new(LayerNorm::new(width)),
            Shape::Image { .. } => return None,
        },
        Kind::Embedding { symbols } => {
            let Shape::Sequence { features, .. } = step.to else { return None };
            Box::new(Embedding::new(*symbols, features))
        }
        Kind::Lstm => Box::new(Lstm::new(sizes(step)?)),
        Kind::Gru => Box::new(Gru::new(sizes(step)?)),
        Kind::Last => {
            let Shape::Sequence { steps, features } = step.from else { return None };
            Box::new(Last::new(steps, features))
        }
    })
}

/// Of a recurrent step.
fn sizes(step: &Step) -> Option<Sizes> {
    let (Shape::Sequence { steps, features }, Shape::Sequence { features: hidden, .. }) =
        (step.from, step.to)
    else {
        return None;
    };
    Some(Sizes { steps, features, hidden })
}
