//! The matrix product on one thread: a bounds-checked wrapper around the `gemm` crate.
//!
//! The only unsafe code of the workspace. The crate's one entry point takes raw pointers and strides; no crate offers a
//! safe product of its speed that can be kept to one thread. [`multiply`] checks every length before the call, and a
//! property test compares it with [`multiply_plainly`].
#![expect(
    unsafe_code,
    reason = "gemm::gemm takes raw pointers; lengths and strides are checked here before the call"
)]

/// A matrix to be read: `rows x columns`, in row-major order or its transpose.
#[derive(Clone, Copy)]
pub(crate) struct MatrixRef<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> MatrixRef<'a> {
    /// A row-major matrix.
    ///
    /// # Panics
    /// When `data` is not `rows * columns` long.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(
            Some(data.len()),
            rows.checked_mul(columns),
            "a {rows} x {columns} matrix has another length"
        );
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// The same values as a `columns x rows` matrix.
    pub(crate) fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    #[cfg(test)]
    fn at(&self, row: usize, column: usize) -> f32 {
        self.data[row * self.row_stride + column * self.column_stride]
    }

    /// Whether every element lies inside `data` and strides fit the callee's type.
    fn is_within(&self) -> bool {
        let last = (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride;
        last < self.data.len() && isize::try_from(self.row_stride.max(self.column_stride)).is_ok()
    }
}

/// A row-major matrix to be written.
pub(crate) struct MatrixMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    columns: usize,
}

impl<'a> MatrixMut<'a> {
    /// A row-major matrix.
    ///
    /// # Panics
    /// When `data` is not `rows * columns` long.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(
            Some(data.len()),
            rows.checked_mul(columns),
            "a {rows} x {columns} matrix has another length"
        );
        Self { data, rows, columns }
    }
}

/// What happens to the values that the product is written over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Onto {
    /// They are replaced.
    Replace,
    /// The product is added to them.
    Add,
}

/// `c = a b` or `c = c + a b`, on the calling thread.
///
/// # Panics
/// When the shapes do not fit.
pub(crate) fn multiply(a: MatrixRef<'_>, b: MatrixRef<'_>, onto: Onto, c: MatrixMut<'_>) {
    assert_eq!((a.rows, a.columns, b.columns), (c.rows, b.rows, c.columns), "shapes do not fit a product");
    if c.rows == 0 || c.columns == 0 || a.columns == 0 {
        if onto == Onto::Replace {
            c.data.fill(0.0);
        }
        return;
    }
    assert!(a.is_within() && b.is_within(), "a matrix reaches beyond its values");
    let (alpha, read) = match onto {
        Onto::Replace => (0.0, false),
        Onto::Add => (1.0, true),
    };
    // SAFETY: no side is 0, so `is_within` has shown that the last element of `a` and of `b`, and with it every other one,
    // lies inside its slice; `c` is row-major and exactly `rows * columns` long. `c` is borrowed mutably, so it overlaps
    // neither `a` nor `b`, and its elements are distinct. Slices are at most `isize::MAX` bytes, so `columns` fits an isize.
    unsafe {
        gemm::gemm(
            c.rows,
            c.columns,
            a.columns,
            c.data.as_mut_ptr(),
            1,
            c.columns as isize,
            read,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            alpha,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// The safe reference for [`multiply`].
#[cfg(test)]
fn multiply_plainly(a: MatrixRef<'_>, b: MatrixRef<'_>, onto: Onto, c: MatrixMut<'_>) {
    for row in 0..c.rows {
        for column in 0..c.columns {
            let product = |k| f64::from(a.at(row, k)) * f64::from(b.at(k, column));
            let sum: f64 = (0..a.columns).map(product).sum();
            let value = &mut c.data[row * c.columns + column];
            let before = if onto == Onto::Add { f64::from(*value) } else { 0.0 };
            *value = (before + sum) as f32;
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn the_fast_product_is_the_plain_product(
            (rows, inner, columns) in (0usize..40, 0usize..70, 0usize..40),
            (a_turned, b_turned, add) in any::<(bool, bool, bool)>(),
            salt in 0usize..1000,
        ) {
            let onto = if add { Onto::Add } else { Onto::Replace };
            let (a, b) = (values(rows * inner, salt), values(inner * columns, salt + 1));
            let a = if a_turned { MatrixRef::new(&a, inner, rows).transposed() } else { MatrixRef::new(&a, rows, inner) };
            let b = if b_turned { MatrixRef::new(&b, columns, inner).transposed() } else { MatrixRef::new(&b, inner, columns) };
            let (mut fast, mut plain) = (values(rows * columns, salt + 2), values(rows * columns, salt + 2));
            multiply(a, b, onto, MatrixMut::new(&mut fast, rows, columns));
            multiply_plainly(a, b, onto, MatrixMut::new(&mut plain, rows, columns));
            for (fast, plain) in fast.iter().zip(&plain) {
                prop_assert!((fast - plain).abs() <= 1e-4, "{fast} is not {plain}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "shapes do not fit")]
    fn shapes_that_do_not_fit_are_refused() {
        let mut c = [0.0; 4];
        multiply(
            MatrixRef::new(&[0.0; 6], 2, 3),
            MatrixRef::new(&[0.0; 4], 2, 2),
            Onto::Add,
            MatrixMut::new(&mut c, 2, 2),
        );
    }

    #[test]
    #[should_panic(expected = "another length")]
    fn a_matrix_shorter_than_its_shape_is_refused() {
        let _ = MatrixRef::new(&[0.0; 5], 2, 3);
    }
}
