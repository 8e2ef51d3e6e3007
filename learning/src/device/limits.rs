//! What one core's matrix product can do at best: the wall that local training is measured against.
//!
//! It times nothing and starts no threads: whoever measures does both.

use crate::ops::gemm::multiply;

/// A product of two square matrices of `f32`, large enough to be packed and small enough to stay in a cache, to be repeated
/// on one thread.
#[derive(Debug)]
pub struct SquareProduct {
    side: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl SquareProduct {
    /// Two matrices of `side` rows and columns, in main memory.
    pub fn new(side: usize) -> Self {
        let value = |index: usize| (index * 7919 % 2003) as f32 / 1001.0 - 1.0;
        let a: Vec<f32> = (0..side * side).map(value).collect();
        let b = a.iter().rev().copied().collect();
        Self { side, a, b, c: vec![0.0; side * side] }
    }

    /// Multiplies them once and gives the floating-point operations of it, `2 side^3`.
    pub fn multiply(&mut self) -> u64 {
        let Self { side, a, b, c } = self;
        multiply((*side, *side, *side), a, b, c);
        2 * (*side as u64).pow(3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_counted() {
        assert_eq!(SquareProduct::new(3).multiply(), 54);
    }
}
