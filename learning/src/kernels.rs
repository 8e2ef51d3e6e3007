//! Arithmetic over plain slices on one thread: what the layers in closed form and the operations for candle are made of.
//!
//! The instruction set is chosen when the program runs (AVX-512, AVX2 and FMA, or the baseline), so a portable build reaches
//! the same speed. One machine always rounds in the same way; machines of different instruction sets may not. Nothing here
//! takes memory, draws randomness or starts a thread.

pub(crate) mod functions;
mod product;
mod unrolled;
mod winograd;

use pulp::{Arch, Simd};

pub(crate) use product::{Matrix, Store, multiply_nt, multiply_plain};
pub(crate) use unrolled::{Window, roll, unroll};
pub(crate) use winograd::{Tiling, Winograd};

/// Runs loops compiled for the best instruction set of this machine. `work` must be inlined into its caller to gain by it.
#[inline(always)]
pub(crate) fn vectorised<T>(work: impl FnOnce() -> T) -> T {
    Arch::new().dispatch(work)
}

/// The first lanes of `values`, zeros beyond its end.
#[inline(always)]
fn load<S: Simd>(simd: S, values: &[f32]) -> S::f32s {
    match S::as_simd_f32s(values).0.first() {
        Some(whole) => *whole,
        None => simd.partial_load_f32s(values),
    }
}

/// Writes as many lanes as `values` has room for.
#[inline(always)]
fn store<S: Simd>(simd: S, values: &mut [f32], lanes: S::f32s) {
    if values.len() >= S::F32_LANES {
        S::as_mut_simd_f32s(values).0[0] = lanes;
    } else {
        simd.partial_store_f32s(values, lanes);
    }
}

/// Values of a block along one side: a line of the cache.
const BLOCK: usize = 16;

/// Turns `rows x columns` into `columns x rows`.
///
/// # Panics
/// When a slice is shorter.
pub(crate) fn transpose((rows, columns): (usize, usize), from: &[f32], to: &mut [f32]) {
    for top in (0..rows).step_by(BLOCK) {
        let bottom = (top + BLOCK).min(rows);
        for column in 0..columns {
            let line = &mut to[column * rows..][top..bottom];
            for (row, value) in (top..).zip(line) {
                *value = from[row * columns + column];
            }
        }
    }
}
