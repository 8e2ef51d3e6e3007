//! What one core's matrix product can do at best: the wall that local training is measured against.
//!
//! It times nothing and starts no threads: whoever measures does both.

use candle_core::{Device, Result, Tensor};

use crate::ops::{Activation, linear};

/// A product of two square matrices of `f32`, large enough to be packed and small enough to stay in a cache, to be repeated
/// on one thread.
#[derive(Debug)]
pub struct SquareProduct {
    side: usize,
    a: Tensor,
    b: Tensor,
    none: Tensor,
}

impl SquareProduct {
    /// Two matrices of `side` rows and columns, in main memory.
    ///
    /// # Errors
    /// When there is no room for them.
    pub fn new(side: usize) -> Result<Self> {
        let value = |index: usize| (index * 7919 % 2003) as f32 / 1001.0 - 1.0;
        let values: Vec<f32> = (0..side * side).map(value).collect();
        let a = Tensor::from_slice(&values, (side, side), &Device::Cpu)?;
        let b = Tensor::from_iter(values.into_iter().rev(), &Device::Cpu)?.reshape((side, side))?;
        Ok(Self { side, a, b, none: Tensor::from_slice(&vec![0.0f32; side], side, &Device::Cpu)? })
    }

    /// Multiplies them once and gives the floating-point operations of it, `2 side^3`.
    ///
    /// # Errors
    /// When there is no room for the product.
    pub fn multiply(&self) -> Result<u64> {
        linear(&self.a, &self.b, &self.none, Activation::Identity)?;
        Ok(2 * (self.side as u64).pow(3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_counted() {
        assert_eq!(SquareProduct::new(3).unwrap().multiply().unwrap(), 54);
    }
}
