//! The machine's own limits: how many floating-point operations its matrix product does in a second, and how fast it copies
//! memory.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use learning::device::SquareProduct;

use crate::cli::failure::{Failure, Kind};

/// Side of the matrices: three of them have 3 MiB together.
const SIDE: usize = 512;
/// How long a product is repeated.
const SPAN: Duration = Duration::from_millis(60);

/// Floating-point operations a second of packed products of `f32`, one on each of `threads` threads at once.
pub(super) fn product_flops(threads: usize) -> Result<f64, Failure> {
    let mut products: Vec<_> = (0..threads.max(1)).map(|_| SquareProduct::new(SIDE)).collect();
    let start = Barrier::new(products.len());
    let rate = |product: &mut SquareProduct| {
        product.multiply();
        start.wait();
        let (began, mut operations) = (Instant::now(), 0);
        while began.elapsed() < SPAN {
            operations += product.multiply();
        }
        operations as f64 / began.elapsed().as_secs_f64()
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = products.iter_mut().map(|product| scope.spawn(|| rate(product))).collect();
        let mut sum = 0.0;
        for worker in workers {
            sum += worker.join().map_err(|_| Failure::new(Kind::Defect, "a measuring thread ended"))?;
        }
        Ok(sum)
    })
}

/// Memory to copy from and to, larger than a cache.
pub(super) struct Copying {
    from: Vec<u64>,
    to: Vec<u64>,
}

impl Copying {
    /// Two buffers of `bytes` each.
    pub(super) fn new(bytes: usize) -> Self {
        Self { from: vec![1; bytes / 8], to: vec![0; bytes / 8] }
    }

    /// Copies once.
    pub(super) fn copy(&mut self) {
        self.to.copy_from_slice(black_box(&self.from));
        black_box(&mut self.to);
    }

    /// Bytes read and written by one copy.
    pub(super) fn bytes_moved(&self) -> usize {
        16 * self.from.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_rates_of_work_that_was_done() {
        assert!(product_flops(2).unwrap() > 1e6);
        let mut copying = Copying::new(4096);
        copying.copy();
        assert!(copying.to == copying.from && copying.bytes_moved() == 8192);
    }
}
