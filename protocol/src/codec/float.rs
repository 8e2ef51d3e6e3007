//! Points as numbers of few significant bits, in the two bytes of a floating-point format: half precision, scaled by 2^-15 so that
//! a reach of 2^30 fits, and bfloat16.

use super::PackedError;

/// The largest magnitude that has a form: the largest reach.
const POINT_MAX: u32 = 1 << 30;

/// A format of 16 bits.
#[derive(Clone, Copy)]
pub(super) struct Float {
    /// Significant bits, the leading one included.
    bits: u32,
    /// The exponent of a point of 1.
    exponent: u32,
}

impl Float {
    pub(super) const HALF: Self = Self { bits: 11, exponent: 0 };
    pub(super) const BRAIN: Self = Self { bits: 8, exponent: 127 };

    /// Each point rounded to the significant bits, ties to even.
    pub(super) fn nearest(self, points: &[i32]) -> Vec<i32> {
        self.rounded(points, |magnitude, shift| (1 << shift >> 1) - 1 + (magnitude >> shift & 1))
    }

    /// Each point rounded towards zero.
    pub(super) fn shorter(self, points: &[i32]) -> Vec<i32> {
        self.rounded(points, |_, _| 0)
    }

    fn rounded(self, points: &[i32], addend: impl Fn(u32, u32) -> u32) -> Vec<i32> {
        let round = |point: &i32| {
            let magnitude = point.unsigned_abs();
            let shift = (u32::BITS - magnitude.leading_zeros()).saturating_sub(self.bits);
            if shift == 0 {
                return *point;
            }
            // At most 2^31 + 2^24: no overflow.
            let rounded = (magnitude + addend(magnitude, shift)) >> shift << shift;
            i32::try_from(rounded).map_or(*point, |rounded| rounded * point.signum())
        };
        points.iter().map(round).collect()
    }

    /// `None` when a point has more significant bits, or is beyond 2^30.
    pub(super) fn pack(self, points: &[i32]) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(2 * points.len());
        for point in points {
            bytes.extend_from_slice(&self.form(*point)?.to_le_bytes());
        }
        Some(bytes)
    }

    pub(super) fn unpack(self, bytes: &[u8], len: usize) -> Result<Vec<i32>, PackedError> {
        if bytes.len() != 2 * len {
            return Err(PackedError::Length);
        }
        let point =
            |two: &[u8]| self.point(u16::from_le_bytes([two[0], two[1]])).ok_or(PackedError::Malformed);
        bytes.chunks_exact(2).map(point).collect()
    }

    fn form(self, point: i32) -> Option<u16> {
        let magnitude = point.unsigned_abs();
        if magnitude == 0 {
            return Some(0);
        }
        if magnitude > POINT_MAX {
            return None;
        }
        let leading = magnitude.ilog2();
        let fraction = self.bits - 1;
        // The leading one goes; what is below the significant bits must be zero.
        let wide = u64::from(magnitude) << fraction;
        if wide >> leading << leading != wide {
            return None;
        }
        let significand = (wide >> leading) as u16;
        let exponent = self.exponent + leading;
        let magnitude = if exponent == 0 {
            // A subnormal number: the leading one is said.
            significand >> 1
        } else {
            (exponent as u16) << fraction | (significand & !(1 << fraction))
        };
        Some(magnitude | u16::from(point < 0) << 15)
    }

    /// The point of a form, if it is that of one.
    fn point(self, form: u16) -> Option<i32> {
        let fraction = self.bits - 1;
        let magnitude = form & 0x7fff;
        if magnitude == 0 {
            return (form == 0).then_some(0);
        }
        let exponent = u32::from(magnitude >> fraction);
        let said = u64::from(magnitude & ((1 << fraction) - 1));
        let wide = if exponent == 0 {
            if self.exponent > 0 {
                return None;
            }
            said << 1
        } else {
            said | 1 << fraction
        };
        let leading = exponent.checked_sub(self.exponent)?;
        let wide = wide.checked_shl(leading).filter(|_| leading <= 30)?;
        let point = wide >> fraction;
        if point << fraction != wide || point > u64::from(POINT_MAX) {
            return None;
        }
        let point = i32::try_from(point).ok()?;
        Some(if form >> 15 == 1 { -point } else { point })
    }
}
