//! Matrix products for the shapes of small batches, whose operands are not packed: a training step at batch size 10 uses its
//! weights once, and copying them first costs more than the arithmetic. Only what is used again is copied, to the stack: a
//! panel of the right matrix under many rows, and few rows of the left one.
//!
//! Two loops cover every product of a dense layer with weights `[outputs, inputs]`. [`multiply_plain`] broadcasts values of
//! the left matrix and runs along the rows of the right one: gradients of weights and of inputs. [`multiply_nt`] takes scalar
//! products of rows: the way forward. Blocks of accumulators fit the registers; long sums are cut so that what is used again
//! stays in the first cache. Nor do large products lose much: see `device::SquareProduct`.

use pulp::{Arch, Simd, WithSimd};

/// Terms of a sum between two visits of the result: a panel of two vectors' width stays in the first cache.
const TERMS: usize = 256;
/// The fewest rows that a panel is used for, and the fewest terms, for which copying it pays.
const ROWS_MIN: usize = 24;
const TERMS_MIN: usize = 32;
/// Columns of the widest panel on any machine.
const PANEL: usize = 32;
/// Rows of the tallest block.
const ROWS: usize = 12;
/// Columns of both operands of [`multiply_nt`] taken together.
const COLUMNS: usize = 1024;

/// Rows in a slice, `stride` apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    stride: usize,
    transposed: bool,
}

impl<'a> Matrix<'a> {
    /// Rows that begin every `stride` values.
    pub(crate) fn rows(values: &'a [f32], stride: usize) -> Self {
        Self { values, stride, transposed: false }
    }

    /// The transpose of such rows.
    pub(crate) fn columns(values: &'a [f32], stride: usize) -> Self {
        Self { values, stride, transposed: true }
    }
}

/// Where a product goes: `c = scale * product + keep * c`. With a `keep` of 0 what was there is not read.
#[derive(Debug)]
pub(crate) struct Store<'a> {
    values: &'a mut [f32],
    stride: usize,
    scale: f32,
    keep: f32,
}

impl<'a> Store<'a> {
    /// Replaces what is there.
    pub(crate) fn replace(values: &'a mut [f32], stride: usize) -> Self {
        Self::blend(values, stride, 1.0, 0.0)
    }

    /// `scale` times the product and `keep` times what is there.
    pub(crate) fn blend(values: &'a mut [f32], stride: usize, scale: f32, keep: f32) -> Self {
        Self { values, stride, scale, keep }
    }
}

/// `c = scale * a b + keep * c` with `a` of `m x k` (or its transpose given), `b` of `k x n` in rows.
///
/// # Panics
/// When a slice is too short for the shape.
pub(crate) fn multiply_plain((m, n, k): (usize, usize, usize), a: Matrix<'_>, b: &[f32], c: Store<'_>) {
    Arch::new().dispatch(Plain { m, n, k, a, b, c });
}

struct Plain<'a> {
    m: usize,
    n: usize,
    k: usize,
    a: Matrix<'a>,
    /// Rows of `n`.
    b: &'a [f32],
    c: Store<'a>,
}

type Terms = std::ops::Range<usize>;

/// Columns of the right matrix, for some terms: its first row begins with `values`.
#[derive(Clone, Copy)]
struct Panel<'a> {
    values: &'a [f32],
    stride: usize,
}

impl WithSimd for Plain<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let wide = self.n > 2 * S::F32_LANES;
        let (mut right_memory, mut left_memory);
        let right: &mut [f32] = if wide && self.m >= ROWS_MIN && self.k >= TERMS_MIN {
            right_memory = [0.0; TERMS * PANEL];
            &mut right_memory
        } else {
            &mut []
        };
        let turned: &mut [f32] = if wide && self.m <= ROWS && self.k > 0 && !self.a.transposed {
            left_memory = [0.0; TERMS * ROWS];
            &mut left_memory
        } else {
            &mut []
        };
        let mut from = 0;
        loop {
            let terms = from..(from + TERMS).min(self.k);
            let left = self.left(&terms, turned);
            if left.transposed {
                self.panels::<S, true>(simd, &terms, left, right);
            } else {
                self.panels::<S, false>(simd, &terms, left, right);
            }
            from = terms.end;
            if from >= self.k {
                break;
            }
            self.c.keep = 1.0;
        }
    }
}

impl<'a> Plain<'a> {
    /// Every panel of columns, widest first. In what follows, a block has `R` rows and `V` vectors, `T` says that the left
    /// matrix is transposed, and `W` that the vectors are whole.
    #[inline(always)]
    fn panels<S: Simd, const T: bool>(
        &mut self,
        simd: S,
        terms: &Terms,
        left: Matrix<'_>,
        packed: &mut [f32],
    ) {
        let lanes = S::F32_LANES;
        let mut j = 0;
        while j + 2 * lanes <= self.n {
            let panel = self.panel(terms, j, 2 * lanes, packed);
            self.blocks::<S, 2, T, true>(simd, j, terms.len(), left, panel);
            j += 2 * lanes;
        }
        if j + lanes <= self.n {
            let panel = self.panel(terms, j, lanes, &mut []);
            self.blocks::<S, 1, T, true>(simd, j, terms.len(), left, panel);
            j += lanes;
        }
        if j < self.n {
            let panel = self.panel(terms, j, self.n - j, &mut []);
            self.blocks::<S, 1, T, false>(simd, j, terms.len(), left, panel);
        }
    }

    /// The left matrix from its first term on; transposed to where there is room, so that its columns are read at once.
    #[inline(always)]
    fn left<'b>(&self, terms: &Terms, turned: &'b mut [f32]) -> Matrix<'b>
    where
        'a: 'b,
    {
        let Matrix { values, stride, transposed } = self.a;
        if turned.is_empty() {
            let start = if transposed { terms.start * stride } else { terms.start };
            return Matrix { values: &values[start.min(values.len())..], stride, transposed };
        }
        // Plain loops: iterators over pairs are calls where the instruction set is chosen at run time.
        let (m, count) = (self.m, terms.len());
        for row in 0..m {
            let (values, target) = (&values[row * stride..][terms.clone()], &mut turned[row..]);
            for place in 0..count {
                target[place * m] = values[place];
            }
        }
        Matrix::columns(turned, self.m)
    }

    /// Columns from `j`, copied to where their rows touch if there is room: rows far apart would drive each other out of the
    /// cache.
    #[inline(always)]
    fn panel<'b>(&self, terms: &Terms, j: usize, width: usize, packed: &'b mut [f32]) -> Panel<'b>
    where
        'a: 'b,
    {
        let values = &self.b[(terms.start * self.n + j).min(self.b.len())..];
        if packed.is_empty() {
            return Panel { values, stride: self.n };
        }
        for place in 0..terms.len() {
            packed[place * width..][..width].copy_from_slice(&values[place * self.n..][..width]);
        }
        Panel { values: packed, stride: width }
    }

    /// Every block of rows in one panel, largest first.
    #[inline(always)]
    fn blocks<S: Simd, const V: usize, const T: bool, const W: bool>(
        &mut self,
        simd: S,
        j: usize,
        count: usize,
        left: Matrix<'_>,
        panel: Panel<'_>,
    ) {
        let mut i = 0;
        if S::REGISTER_COUNT >= 32 {
            while i + 12 <= self.m {
                self.block::<S, 12, V, T, W>(simd, (i, j), count, left, panel);
                i += 12;
            }
            if i + 10 <= self.m {
                self.block::<S, 10, V, T, W>(simd, (i, j), count, left, panel);
                i += 10;
            }
            if i + 8 <= self.m {
                self.block::<S, 8, V, T, W>(simd, (i, j), count, left, panel);
                i += 8;
            }
        }
        while i + 5 <= self.m {
            self.block::<S, 5, V, T, W>(simd, (i, j), count, left, panel);
            i += 5;
        }
        if i + 4 <= self.m {
            self.block::<S, 4, V, T, W>(simd, (i, j), count, left, panel);
            i += 4;
        }
        while i + 2 <= self.m {
            self.block::<S, 2, V, T, W>(simd, (i, j), count, left, panel);
            i += 2;
        }
        if i < self.m {
            self.block::<S, 1, V, T, W>(simd, (i, j), count, left, panel);
        }
    }

    /// The loops over rows stay small, so that they are unrolled and the sums stay in registers.
    #[expect(clippy::needless_range_loop, reason = "what counts to a constant is unrolled for certain")]
    #[inline(always)]
    fn block<S: Simd, const R: usize, const V: usize, const T: bool, const W: bool>(
        &mut self,
        simd: S,
        (i, j): (usize, usize),
        count: usize,
        left: Matrix<'_>,
        panel: Panel<'_>,
    ) {
        let width = if W { V * S::F32_LANES } else { self.n - j };
        let Store { values, stride, scale, keep } = &mut self.c;
        let (values, stride) = (&mut values[i * *stride + j..], *stride);
        let adding = *scale == 1.0 && *keep == 1.0;
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        if adding {
            for row in 0..R {
                sums[row] = read::<S, V, W>(simd, &values[row * stride..][..width]);
            }
        }
        if T {
            for place in 0..count {
                let left = &left.values[place * left.stride + i..];
                let left: &[f32; R] = left.first_chunk().expect("the left matrix has R more columns");
                let right = read::<S, V, W>(simd, &panel.values[place * panel.stride..][..width]);
                add_product::<S, R, V>(simd, &mut sums, left, right);
            }
        } else {
            let mut rows: [&[f32]; R] = [&[]; R];
            for row in 0..R {
                rows[row] = &left.values[(i + row) * left.stride..][..count];
            }
            for place in 0..count {
                let mut left = [0.0; R];
                for row in 0..R {
                    left[row] = rows[row][place];
                }
                let right = read::<S, V, W>(simd, &panel.values[place * panel.stride..][..width]);
                add_product::<S, R, V>(simd, &mut sums, &left, right);
            }
        }
        if !adding {
            let (scale, keeping) = (simd.splat_f32s(*scale), simd.splat_f32s(*keep));
            for row in 0..R {
                for v in 0..V {
                    sums[row][v] = simd.mul_f32s(scale, sums[row][v]);
                }
            }
            if *keep != 0.0 {
                for row in 0..R {
                    let before = read::<S, V, W>(simd, &values[row * stride..][..width]);
                    for v in 0..V {
                        sums[row][v] = simd.mul_add_e_f32s(keeping, before[v], sums[row][v]);
                    }
                }
            }
        }
        for row in 0..R {
            write::<S, V, W>(simd, &mut values[row * stride..][..width], &sums[row]);
        }
    }
}

/// `V` vectors, the last of them with zeros where the values end if they are not whole.
#[inline(always)]
fn read<S: Simd, const V: usize, const W: bool>(simd: S, values: &[f32]) -> [S::f32s; V] {
    if W {
        return *S::as_simd_f32s(values).0.first_chunk().expect("V vectors were cut out");
    }
    let mut lanes = [simd.splat_f32s(0.0); V];
    for v in 0..V {
        lanes[v] = simd.partial_load_f32s(&values[v * S::F32_LANES..]);
    }
    lanes
}

/// The way back of [`read`].
#[inline(always)]
fn write<S: Simd, const V: usize, const W: bool>(simd: S, values: &mut [f32], lanes: &[S::f32s; V]) {
    if W {
        *S::as_mut_simd_f32s(values).0.first_chunk_mut().expect("V vectors were cut out") = *lanes;
    } else {
        for v in 0..V {
            simd.partial_store_f32s(&mut values[v * S::F32_LANES..], lanes[v]);
        }
    }
}

/// Adds the outer product of a column of `a` and a row of `b`.
#[inline(always)]
fn add_product<S: Simd, const R: usize, const V: usize>(
    simd: S,
    sums: &mut [[S::f32s; V]; R],
    left: &[f32; R],
    right: [S::f32s; V],
) {
    for row in 0..R {
        let value = simd.splat_f32s(left[row]);
        for v in 0..V {
            sums[row][v] = simd.mul_add_e_f32s(value, right[v], sums[row][v]);
        }
    }
}

/// `c += a b^T` with `a` of `m x k` and `b` of `n x k`, both in rows of `k`, and `c` of `m x n`.
///
/// # Panics
/// When a slice is too short for the shape.
pub(crate) fn multiply_nt((m, n, k): (usize, usize, usize), a: &[f32], b: &[f32], c: &mut [f32]) {
    Arch::new().dispatch(RowByRow { m, n, k, a, b, c });
}

struct RowByRow<'a> {
    m: usize,
    n: usize,
    k: usize,
    a: &'a [f32],
    b: &'a [f32],
    c: &'a mut [f32],
}

impl WithSimd for RowByRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let step = self.k.div_ceil(self.k.div_ceil(COLUMNS).max(1)).next_multiple_of(S::F32_LANES);
        let mut from = 0;
        while from < self.k {
            let columns = from..(from + step).min(self.k);
            let mut j = 0;
            if S::REGISTER_COUNT >= 32 {
                while j + 5 <= self.n {
                    self.down::<S, 5>(simd, j, &columns);
                    j += 5;
                }
            }
            while j + 2 <= self.n {
                self.down::<S, 2>(simd, j, &columns);
                j += 2;
            }
            if j < self.n {
                self.down::<S, 1>(simd, j, &columns);
            }
            from = columns.end;
        }
    }
}

impl RowByRow<'_> {
    /// All rows of `a` against `V` rows of `b`.
    #[inline(always)]
    fn down<S: Simd, const V: usize>(&mut self, simd: S, j: usize, columns: &Terms) {
        let mut i = 0;
        while i + 5 <= self.m {
            self.block::<S, 5, V>(simd, (i, j), columns);
            i += 5;
        }
        while i + 2 <= self.m {
            self.block::<S, 2, V>(simd, (i, j), columns);
            i += 2;
        }
        if i < self.m {
            self.block::<S, 1, V>(simd, (i, j), columns);
        }
    }

    #[inline(always)]
    fn block<S: Simd, const R: usize, const V: usize>(
        &mut self,
        simd: S,
        (i, j): (usize, usize),
        columns: &Terms,
    ) {
        let (k, length) = (self.k, columns.len());
        let whole = length / S::F32_LANES;
        let (mut a, mut b): ([&[f32]; R], [&[f32]; V]) = ([&[]; R], [&[]; V]);
        let mut a_lanes: [&[S::f32s]; R] = [&[]; R];
        let mut b_lanes: [&[S::f32s]; V] = [&[]; V];
        for row in 0..R {
            a[row] = &self.a[(i + row) * k + columns.start..][..length];
            a_lanes[row] = &S::as_simd_f32s(a[row]).0[..whole];
        }
        for row in 0..V {
            b[row] = &self.b[(j + row) * k + columns.start..][..length];
            b_lanes[row] = &S::as_simd_f32s(b[row]).0[..whole];
        }
        let zero = simd.splat_f32s(0.0);
        let (mut sums, mut right) = ([[zero; V]; R], [zero; V]);
        for place in 0..whole {
            for v in 0..V {
                right[v] = b_lanes[v][place];
            }
            for row in 0..R {
                let left = a_lanes[row][place];
                for v in 0..V {
                    sums[row][v] = simd.mul_add_e_f32s(left, right[v], sums[row][v]);
                }
            }
        }
        let rest = whole * S::F32_LANES;
        if rest < length {
            for v in 0..V {
                right[v] = simd.partial_load_f32s(&b[v][rest..]);
            }
            for row in 0..R {
                let left = simd.partial_load_f32s(&a[row][rest..]);
                for v in 0..V {
                    sums[row][v] = simd.mul_add_e_f32s(left, right[v], sums[row][v]);
                }
            }
        }
        // From memory: a loop over registers would have to be unrolled, and is too long for that.
        let mut finished = [[zero; V]; R];
        for row in 0..R {
            for v in 0..V {
                finished[row][v] = sums[row][v];
            }
        }
        for (row, sums) in finished.iter().enumerate() {
            let target = &mut self.c[(i + row) * self.n + j..][..V];
            for (target, sum) in target.iter_mut().zip(sums) {
                *target += simd.reduce_sum_f32s(*sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(count: usize, salt: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + salt * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    /// Largest difference to the product in f64, relative to the longest possible sum.
    fn error(
        (m, n, k): (usize, usize, usize),
        c: &[f32],
        before: &[f32],
        (scale, keep): (f64, f64),
        term: impl Fn(usize, usize, usize) -> f64,
    ) -> f64 {
        let mut worst = 0f64;
        for (place, value) in c.iter().enumerate().take(m * n) {
            let (row, column) = (place / n, place % n);
            let sum: f64 = (0..k).map(|k| term(row, column, k)).sum();
            worst = worst.max((f64::from(*value) - scale * sum - keep * f64::from(before[place])).abs());
        }
        worst / (k as f64 + 1.0)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]
        #[test]
        fn both_products_are_the_plain_product_for_every_shape(
            (m, n, k) in (0usize..40, 0usize..70, prop_oneof![0usize..40, 250usize..300]),
            turned in any::<bool>(),
            (scale, keep) in prop_oneof![Just((1.0f32, 0.0f32)), Just((-0.05, 1.0)), Just((0.5, 0.25))],
            salt in 0usize..1000,
        ) {
            let (a, b, before) = (values(m * k, salt), values(k * n, salt + 1), values(m * n, salt + 2));
            let mut c = before.clone();
            let left = if turned { Matrix::columns(&a, m) } else { Matrix::rows(&a, k) };
            multiply_plain((m, n, k), left, &b, Store::blend(&mut c, n, scale, keep));
            let of_a = |row: usize, t: usize| f64::from(if turned { a[t * m + row] } else { a[row * k + t] });
            let numbers = (f64::from(scale), f64::from(keep));
            let found = error((m, n, k), &c, &before, numbers, |row, column, t| of_a(row, t) * f64::from(b[t * n + column]));
            prop_assert!(found < 1e-6, "{found}");

            let mut c = before.clone();
            multiply_nt((m, n, k), &a, &b, &mut c);
            let term = |row: usize, column: usize, t: usize| f64::from(a[row * k + t]) * f64::from(b[column * k + t]);
            let found = error((m, n, k), &c, &before, (1.0, 1.0), term);
            prop_assert!(found < 1e-6, "{found}");
        }
    }

    #[test]
    fn a_result_that_is_replaced_is_not_read() {
        let mut c = [f32::NAN; 6];
        multiply_plain((2, 3, 1), Matrix::rows(&[1.0, 2.0], 1), &[1.0, 2.0, 3.0], Store::replace(&mut c, 3));
        assert_eq!(c, [1.0, 2.0, 3.0, 2.0, 4.0, 6.0]);
        let mut c = [f32::NAN; 2];
        multiply_plain((1, 2, 0), Matrix::rows(&[], 0), &[], Store::replace(&mut c, 2));
        assert_eq!(c, [0.0, 0.0]);
    }
}
