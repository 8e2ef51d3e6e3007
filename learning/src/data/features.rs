//! The numbers of a data set, as compact as they were stored.
//!
//! Images come as bytes that the plan divides by a number. They stay bytes in memory, a quarter of what they would be as f32,
//! and are divided when a sample is copied out; the result is to the bit what dividing them all in f64 would have given.
//! Cells of a table are f64 until they are prepared, since what a column's offset leaves of its digits may be beyond f32; as f32
//! lie those whose every value f32 has, such as whole numbers and codes. Everything else is f32.

use std::sync::OnceLock;

use pulp::{Arch, WithSimd};

/// The numbers of all samples, one after another.
#[derive(Clone)]
pub struct Features {
    cells: Cells,
    /// Whether all are finite, once somebody has asked.
    finite: OnceLock<bool>,
}

#[derive(Clone, PartialEq)]
enum Cells {
    Real(Vec<f32>),
    Wide(Vec<f64>),
    Bytes { values: Vec<u8>, quotients: Quotients },
}

/// What every byte stands for.
#[derive(Clone, PartialEq)]
struct Quotients {
    table: Box<[f32; 256]>,
    /// `byte * high + byte * low` is the quotient, to the last bit and for every byte, where there is such a pair.
    factors: Option<(f32, f32)>,
}

impl From<Vec<f32>> for Features {
    fn from(values: Vec<f32>) -> Self {
        Self { cells: Cells::Real(values), finite: OnceLock::new() }
    }
}

impl Features {
    /// Numbers that keep all their digits until they are prepared. They are kept as f32 where no value changes by that.
    pub fn wide(values: Vec<f64>) -> Self {
        let is_narrow = |value: &f64| value.is_nan() || f64::from(*value as f32) == *value;
        if values.iter().all(is_narrow) {
            return values.into_iter().map(|value| value as f32).collect::<Vec<_>>().into();
        }
        Self { cells: Cells::Wide(values), finite: OnceLock::new() }
    }

    /// Bytes that stand for their quotients by `divide_by`.
    pub(super) fn of_bytes(values: Vec<u8>, divide_by: f64) -> Self {
        Self { cells: Cells::Bytes { values, quotients: Quotients::by(divide_by) }, finite: OnceLock::new() }
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        match &self.cells {
            Cells::Real(values) => values.len(),
            Cells::Wide(values) => values.len(),
            Cells::Bytes { values, .. } => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether all are finite. They are looked at once.
    pub(crate) fn are_finite(&self) -> bool {
        *self.finite.get_or_init(|| match &self.cells {
            Cells::Real(values) => values.iter().all(|value| value.is_finite()),
            Cells::Wide(values) => values.iter().all(|value| (*value as f32).is_finite()),
            Cells::Bytes { quotients, .. } => quotients.table.iter().all(|value| value.is_finite()),
        })
    }

    /// All numbers, in new memory.
    pub fn to_vec(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        self.copy_into(0, &mut values);
        values
    }

    /// Writes the numbers from `start` on into `target`, as many as it is long, rounded to f32 where they are wider.
    ///
    /// # Panics
    /// When there are not so many.
    pub(crate) fn copy_into(&self, start: usize, target: &mut [f32]) {
        let range = start..start + target.len();
        match &self.cells {
            Cells::Real(values) => target.copy_from_slice(&values[range]),
            Cells::Wide(values) => {
                target.iter_mut().zip(&values[range]).for_each(|(to, value)| *to = *value as f32);
            }
            Cells::Bytes { values, quotients } => quotients.write(&values[range], target),
        }
    }

    /// [`Features::copy_into`] without rounding: each number as it is kept.
    ///
    /// # Panics
    /// When there are not so many.
    pub(crate) fn copy_wide_into(&self, start: usize, target: &mut [f64]) {
        let range = start..start + target.len();
        match &self.cells {
            Cells::Real(values) => {
                target.iter_mut().zip(&values[range]).for_each(|(to, value)| *to = f64::from(*value));
            }
            Cells::Wide(values) => target.copy_from_slice(&values[range]),
            Cells::Bytes { values, quotients } => {
                let quotient = |byte: &u8| f64::from(quotients.table[usize::from(*byte)]);
                target.iter_mut().zip(&values[range]).for_each(|(to, byte)| *to = quotient(byte));
            }
        }
    }

    /// The first number that is not finite, by its place.
    pub(super) fn find_unfinished(&self) -> Option<(usize, f32)> {
        if self.are_finite() {
            return None;
        }
        self.to_vec().into_iter().enumerate().find(|(_, value)| !value.is_finite())
    }

    /// A copy of `rows` of this width, in their order.
    pub(super) fn select(&self, rows: &[u32], width: usize) -> Self {
        let cells = match &self.cells {
            Cells::Real(values) => Cells::Real(selected(values, rows, width)),
            Cells::Wide(values) => Cells::Wide(selected(values, rows, width)),
            Cells::Bytes { values, quotients } => {
                Cells::Bytes { values: selected(values, rows, width), quotients: quotients.clone() }
            }
        };
        Self { cells, finite: OnceLock::new() }
    }

    /// The numbers as f32 in place, to be changed or appended to.
    pub(super) fn make_real(&mut self) -> &mut Vec<f32> {
        if !matches!(self.cells, Cells::Real(_)) {
            self.cells = Cells::Real(self.to_vec());
        }
        self.finite = OnceLock::new();
        match &mut self.cells {
            Cells::Real(values) => values,
            Cells::Wide(_) | Cells::Bytes { .. } => unreachable!("all became real above"),
        }
    }

    /// The numbers as f64 in place, to be appended to.
    pub(super) fn make_wide(&mut self) -> &mut Vec<f64> {
        if !matches!(self.cells, Cells::Wide(_)) {
            self.cells = Cells::Wide(self.to_wide_vec());
        }
        self.finite = OnceLock::new();
        match &mut self.cells {
            Cells::Wide(values) => values,
            Cells::Real(_) | Cells::Bytes { .. } => unreachable!("all became wide above"),
        }
    }

    /// The same numbers, as f32 where no value changes by that.
    pub(super) fn narrowed(self) -> Self {
        match self.cells {
            Cells::Wide(values) => Self::wide(values),
            Cells::Real(_) | Cells::Bytes { .. } => self,
        }
    }

    fn to_wide_vec(&self) -> Vec<f64> {
        let mut values = vec![0.0; self.len()];
        self.copy_wide_into(0, &mut values);
        values
    }
}

fn selected<T: Copy>(values: &[T], rows: &[u32], width: usize) -> Vec<T> {
    let mut some = Vec::with_capacity(rows.len() * width);
    for row in rows {
        some.extend_from_slice(&values[*row as usize * width..(*row as usize + 1) * width]);
    }
    some
}

impl Quotients {
    fn by(divide_by: f64) -> Self {
        let quotient = |byte: usize| (byte as f64 / divide_by) as f32;
        let table: Box<[f32; 256]> = Box::new(std::array::from_fn(quotient));
        // 16 bits of the reciprocal, so that a byte times it is exact, and what these leave of it.
        let high = f32::from_bits(((1.0 / divide_by) as f32).to_bits() & 0xffff_ff00);
        let low = (1.0 / divide_by - f64::from(high)) as f32;
        let exact = (0..=u8::MAX).all(|byte| {
            let (value, wanted) = (f32::from(byte), table[usize::from(byte)]);
            (value * high + value * low).to_bits() == wanted.to_bits()
        });
        Self { table, factors: exact.then_some((high, low)) }
    }

    fn write(&self, bytes: &[u8], target: &mut [f32]) {
        match self.factors {
            Some((high, low)) => Arch::new().dispatch(Multiply { bytes, high, low, target }),
            None => {
                target.iter_mut().zip(bytes).for_each(|(to, byte)| *to = self.table[usize::from(*byte)]);
            }
        }
    }
}

/// A product of bytes, in the widest registers there are.
struct Multiply<'a> {
    bytes: &'a [u8],
    high: f32,
    low: f32,
    target: &'a mut [f32],
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        for (to, byte) in self.target.iter_mut().zip(self.bytes) {
            let value = f32::from(*byte);
            *to = value * self.high + value * self.low;
        }
    }
}

/// The same numbers, however they lie in memory.
impl PartialEq for Features {
    fn eq(&self, other: &Self) -> bool {
        self.cells == other.cells || (self.len() == other.len() && self.to_wide_vec() == other.to_wide_vec())
    }
}

impl<const N: usize> PartialEq<[f32; N]> for Features {
    fn eq(&self, other: &[f32; N]) -> bool {
        self.to_vec() == other
    }
}

/// Only how many: records of people do not belong into logs.
impl std::fmt::Debug for Features {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Features({})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn divided(bytes: &[u8], by: f64) -> Vec<u32> {
        bytes.iter().map(|byte| ((f64::from(*byte) / by) as f32).to_bits()).collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn bytes_are_their_quotients_to_the_last_bit() {
        let bytes: Vec<u8> = (0..=u8::MAX).collect();
        for by in [255.0, 1.0, 256.0, 127.5, 3.0, 0.1, 1e-3, 1e-300, 1e300, 2f64.powi(-140)] {
            let features = Features::of_bytes(bytes.clone(), by);
            assert_eq!(bits(&features.to_vec()), divided(&bytes, by), "{by}");
        }
        assert!(Quotients::by(255.0).factors.is_some(), "the usual divisor takes the table's slow way");
    }

    #[test]
    fn a_part_of_bytes_is_that_part() {
        let features = Features::of_bytes(vec![0, 51, 102, 153, 204, 255], 255.0);
        let mut two = [0.0; 2];
        features.copy_into(1, &mut two);
        assert_eq!(two, [0.2, 0.4]);
        assert_eq!(features.select(&[2, 0], 2), [0.8, 1.0, 0.0, 0.2]);
        assert_eq!(features, Features::from(features.to_vec()));
        assert_eq!(features.clone().make_real().len(), 6);
    }

    #[test]
    fn wide_numbers_keep_the_digits_that_f32_lacks_and_narrow_ones_half_the_memory() {
        let mut wide = Features::wide(vec![1e8 + 0.5, f64::NAN]);
        assert!(matches!(wide.cells, Cells::Wide(_)));
        wide.make_wide().push(1e-60);
        let mut cells = [0.0; 3];
        wide.select(&[2, 0], 1).copy_wide_into(0, &mut cells[..2]);
        assert_eq!((cells, wide.to_vec()[0]), ([1e-60, 1e8 + 0.5, 0.0], 1e8));
        assert_ne!(wide, Features::from(wide.to_vec()));
        let mut narrow = Features::wide(vec![1.0, f64::NAN, -0.25]);
        assert!(matches!(narrow.cells, Cells::Real(_)));
        assert_eq!(narrow.make_wide()[2], -0.25);
        assert!(!Features::wide(vec![1e300]).are_finite(), "what f32 lacks is not finite to a model");
    }

    #[test]
    fn what_is_not_finite_is_found() {
        assert!(Features::from(vec![0.0, 1.0]).are_finite());
        let broken = Features::from(vec![0.0, f32::NAN]);
        assert_eq!(broken.find_unfinished().map(|(place, _)| place), Some(1));
        assert_eq!(Features::of_bytes(vec![0, 9], 1e-300).find_unfinished().map(|(place, _)| place), Some(1));
    }

    proptest! {
        #[test]
        fn any_divisor_gives_the_quotients(by in 1e-40f64..1e40, bytes in prop::collection::vec(0u8.., 1..70)) {
            prop_assert_eq!(bits(&Features::of_bytes(bytes.clone(), by).to_vec()), divided(&bytes, by));
        }
    }
}
