//! The matrices of minimal filtering and the one-dimensional transforms they stand for.
//!
//! Interpolation points come in pairs `p, -p`, so neighbouring rows share their even and their odd terms; the loops below use
//! that. They have constant bounds and constant matrices, so that terms with a coefficient of 0 vanish when they are compiled.

use pulp::Simd;

/// F(M, R) in one dimension: `M` results of a filter of `R` taps from `N = M + R - 1` values (Winograd 1980; Lavin, Gray 2016,
/// section 4). Rows 0 and `N - 1` belong to the points 0 and infinity, rows `2q + 1, 2q + 2` to a pair `p, -p`.
pub(super) trait Scheme<const N: usize, const M: usize, const R: usize> {
    /// From values to products.
    const INPUT: [[f32; N]; N];
    /// From products to results.
    const OUTPUT: [[f32; N]; M];
    /// From taps to products.
    const FILTER: [[f32; R]; N];
}

/// F(4, 3) with the points 0, 1, -1, 2, -2 and infinity.
pub(super) struct Four3;

impl Scheme<6, 4, 3> for Four3 {
    const INPUT: [[f32; 6]; 6] = [
        [4.0, 0.0, -5.0, 0.0, 1.0, 0.0],
        [0.0, -4.0, -4.0, 1.0, 1.0, 0.0],
        [0.0, 4.0, -4.0, -1.0, 1.0, 0.0],
        [0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
        [0.0, 2.0, -1.0, -2.0, 1.0, 0.0],
        [0.0, 4.0, 0.0, -5.0, 0.0, 1.0],
    ];
    const OUTPUT: [[f32; 6]; 4] = [
        [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
        [0.0, 1.0, -1.0, 2.0, -2.0, 0.0],
        [0.0, 1.0, 1.0, 4.0, 4.0, 0.0],
        [0.0, 1.0, -1.0, 8.0, -8.0, 1.0],
    ];
    const FILTER: [[f32; 3]; 6] = [
        [1.0 / 4.0, 0.0, 0.0],
        [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
        [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
        [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
        [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
        [0.0, 0.0, 1.0],
    ];
}

/// F(4, 5) with the points 0, 1, -1, 2, -2, 1/2, -1/2 and infinity.
pub(super) struct Four5;

impl Scheme<8, 4, 5> for Four5 {
    const INPUT: [[f32; 8]; 8] = [
        [-1.0, 0.0, 5.25, 0.0, -5.25, 0.0, 1.0, 0.0],
        [0.0, 1.0, 1.0, -4.25, -4.25, 1.0, 1.0, 0.0],
        [0.0, -1.0, 1.0, 4.25, -4.25, -1.0, 1.0, 0.0],
        [0.0, 0.5, 0.25, -2.5, -1.25, 2.0, 1.0, 0.0],
        [0.0, -0.5, 0.25, 2.5, -1.25, -2.0, 1.0, 0.0],
        [0.0, 2.0, 4.0, -2.5, -5.0, 0.5, 1.0, 0.0],
        [0.0, -2.0, 4.0, 2.5, -5.0, -0.5, 1.0, 0.0],
        [0.0, -1.0, 0.0, 5.25, 0.0, -5.25, 0.0, 1.0],
    ];
    const OUTPUT: [[f32; 8]; 4] = [
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
        [0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 0.0],
        [0.0, 1.0, 1.0, 4.0, 4.0, 0.25, 0.25, 0.0],
        [0.0, 1.0, -1.0, 8.0, -8.0, 0.125, -0.125, 1.0],
    ];
    const FILTER: [[f32; 5]; 8] = [
        [-1.0, 0.0, 0.0, 0.0, 0.0],
        [-2.0 / 9.0, -2.0 / 9.0, -2.0 / 9.0, -2.0 / 9.0, -2.0 / 9.0],
        [-2.0 / 9.0, 2.0 / 9.0, -2.0 / 9.0, 2.0 / 9.0, -2.0 / 9.0],
        [1.0 / 90.0, 1.0 / 45.0, 2.0 / 45.0, 4.0 / 45.0, 8.0 / 45.0],
        [1.0 / 90.0, -1.0 / 45.0, 2.0 / 45.0, -4.0 / 45.0, 8.0 / 45.0],
        [32.0 / 45.0, 16.0 / 45.0, 8.0 / 45.0, 4.0 / 45.0, 2.0 / 45.0],
        [32.0 / 45.0, -16.0 / 45.0, 8.0 / 45.0, -4.0 / 45.0, 2.0 / 45.0],
        [0.0, 0.0, 0.0, 0.0, 1.0],
    ];
}

/// The transpose of a matrix.
pub(super) const fn transpose<const A: usize, const B: usize>(matrix: [[f32; B]; A]) -> [[f32; A]; B] {
    let mut turned = [[0.0; A]; B];
    let mut row = 0;
    while row < A {
        let mut column = 0;
        while column < B {
            turned[column][row] = matrix[row][column];
            column += 1;
        }
        row += 1;
    }
    turned
}

#[inline(always)]
fn add_term<S: Simd>(simd: S, sum: Option<S::f32s>, factor: f32, value: S::f32s) -> Option<S::f32s> {
    if factor == 0.0 {
        return sum;
    }
    Some(match sum {
        None if factor == 1.0 => value,
        None => simd.mul_f32s(simd.splat_f32s(factor), value),
        Some(sum) if factor == 1.0 => simd.add_f32s(sum, value),
        Some(sum) if factor == -1.0 => simd.sub_f32s(sum, value),
        Some(sum) => simd.mul_add_e_f32s(simd.splat_f32s(factor), value, sum),
    })
}

/// `matrix * values` for a matrix whose rows come in pairs.
#[inline(always)]
pub(super) fn by_rows<S: Simd, const I: usize, const O: usize>(
    simd: S,
    matrix: &[[f32; I]; O],
    values: &[S::f32s; I],
) -> [S::f32s; O] {
    let zero = simd.splat_f32s(0.0);
    let mut results = [zero; O];
    for row in [0, O - 1] {
        let mut sum = None;
        for column in 0..I {
            sum = add_term(simd, sum, matrix[row][column], values[column]);
        }
        results[row] = sum.unwrap_or(zero);
    }
    for pair in 0..(O - 2) / 2 {
        let row = 2 * pair + 1;
        let (mut same, mut opposite) = (None, None);
        for column in 0..I {
            let factor = matrix[row][column];
            if factor == matrix[row + 1][column] {
                same = add_term(simd, same, factor, values[column]);
            } else {
                opposite = add_term(simd, opposite, factor, values[column]);
            }
        }
        let (same, opposite) = (same.unwrap_or(zero), opposite.unwrap_or(zero));
        results[row] = simd.add_f32s(same, opposite);
        results[row + 1] = simd.sub_f32s(same, opposite);
    }
    results
}

/// `matrix * values` for a matrix whose columns come in pairs.
#[inline(always)]
pub(super) fn by_columns<S: Simd, const I: usize, const O: usize>(
    simd: S,
    matrix: &[[f32; I]; O],
    values: &[S::f32s; I],
) -> [S::f32s; O] {
    let zero = simd.splat_f32s(0.0);
    let (mut sums, mut differences) = ([zero; I], [zero; I]);
    for pair in 0..(I - 2) / 2 {
        let column = 2 * pair + 1;
        sums[column] = simd.add_f32s(values[column], values[column + 1]);
        differences[column] = simd.sub_f32s(values[column], values[column + 1]);
    }
    let mut results = [zero; O];
    for row in 0..O {
        let mut sum = add_term(simd, None, matrix[row][0], values[0]);
        for pair in 0..(I - 2) / 2 {
            let column = 2 * pair + 1;
            let factor = matrix[row][column];
            let both = if factor == matrix[row][column + 1] { sums[column] } else { differences[column] };
            sum = add_term(simd, sum, factor, both);
        }
        sum = add_term(simd, sum, matrix[row][I - 1], values[I - 1]);
        results[row] = sum.unwrap_or(zero);
    }
    results
}

/// `by_rows` along both dimensions.
#[inline(always)]
pub(super) fn by_rows_twice<S: Simd, const I: usize, const O: usize>(
    simd: S,
    matrix: &[[f32; I]; O],
    values: &[[S::f32s; I]; I],
) -> [[S::f32s; O]; O] {
    let zero = simd.splat_f32s(0.0);
    let mut half = [[zero; I]; O];
    for column in 0..I {
        let mut line = [zero; I];
        for row in 0..I {
            line[row] = values[row][column];
        }
        let line = by_rows(simd, matrix, &line);
        for row in 0..O {
            half[row][column] = line[row];
        }
    }
    let mut results = [[zero; O]; O];
    for row in 0..O {
        results[row] = by_rows(simd, matrix, &half[row]);
    }
    results
}

/// `by_columns` along both dimensions.
#[inline(always)]
pub(super) fn by_columns_twice<S: Simd, const I: usize, const O: usize>(
    simd: S,
    matrix: &[[f32; I]; O],
    values: &[[S::f32s; I]; I],
) -> [[S::f32s; O]; O] {
    let zero = simd.splat_f32s(0.0);
    let mut half = [[zero; I]; O];
    for column in 0..I {
        let mut line = [zero; I];
        for row in 0..I {
            line[row] = values[row][column];
        }
        let line = by_columns(simd, matrix, &line);
        for row in 0..O {
            half[row][column] = line[row];
        }
    }
    let mut results = [[zero; O]; O];
    for row in 0..O {
        results[row] = by_columns(simd, matrix, &half[row]);
    }
    results
}
