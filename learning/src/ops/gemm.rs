//! The packed matrix product of the `gemm` crate on one thread: what the machine does at best, as a yardstick. Training does not
//! use it: see [`crate::kernels`].
//!
//! The only unsafe code of the workspace. The crate's one entry point takes raw pointers and strides; [`multiply`] checks every
//! length before the call, and a property test compares it with [`crate::kernels::multiply_plain`].
#![expect(unsafe_code, reason = "gemm::gemm takes raw pointers; lengths are checked here before the call")]

/// `c = a b` for row-major `a` of `m x k`, `b` of `k x n` and `c` of `m x n`, on the calling thread.
///
/// # Panics
/// When a slice has another length.
pub(crate) fn multiply((m, n, k): (usize, usize, usize), a: &[f32], b: &[f32], c: &mut [f32]) {
    let lengths = [m.checked_mul(k), k.checked_mul(n), m.checked_mul(n)];
    assert_eq!(lengths, [a.len(), b.len(), c.len()].map(Some), "a matrix has another length than its shape");
    if k == 0 {
        c.fill(0.0);
    }
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    // SAFETY: all three are row-major and exactly as long as their shapes, so every element that the strides reach lies inside
    // its slice. `c` is borrowed mutably, so it overlaps neither `a` nor `b`. Slices are at most `isize::MAX` bytes, so their
    // row strides fit an isize.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            1,
            k as isize,
            b.as_ptr(),
            1,
            n as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::{Matrix, Store, multiply_plain};

    fn values(count: usize, salt: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + salt * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn the_packed_product_is_the_plain_product(
            (m, n, k) in (0usize..40, 0usize..40, 0usize..70),
            salt in 0usize..1000,
        ) {
            let (a, b) = (values(m * k, salt), values(k * n, salt + 1));
            let (mut packed, mut plain) = (values(m * n, salt + 2), values(m * n, salt + 2));
            multiply((m, n, k), &a, &b, &mut packed);
            multiply_plain((m, n, k), Matrix::rows(&a, k), &b, Store::replace(&mut plain, n));
            for (packed, plain) in packed.iter().zip(&plain) {
                prop_assert!((packed - plain).abs() <= 1e-4, "{packed} is not {plain}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "another length")]
    fn a_matrix_shorter_than_its_shape_is_refused() {
        multiply((2, 2, 3), &[0.0; 5], &[0.0; 6], &mut [0.0; 4]);
    }
}
