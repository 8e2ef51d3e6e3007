//! A model's values in two bytes each.

use super::BroadcastCodec;

/// What fills the last word: not a number in either format.
const FILLING: u16 = 0x7fff;
/// The largest finite number of half precision.
const HALF_MAX: f32 = 65504.0;

impl BroadcastCodec {
    /// Bytes of a value.
    pub(crate) fn value_bytes(self) -> usize {
        match self {
            Self::Exact => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Words of 4 bytes that `len` values take: what a task's header announces.
    pub fn words(self, len: usize) -> usize {
        (len * self.value_bytes()).div_ceil(4)
    }

    /// The values from which everybody starts: each the nearest that the codec can say, ties to even.
    #[must_use]
    pub fn round(self, values: &[f32]) -> Vec<f32> {
        match self {
            Self::Exact => values.to_vec(),
            Self::F16 => values.iter().map(|value| from_half(to_half(*value))).collect(),
            Self::Bf16 => values.iter().map(|value| from_brain(to_brain(*value))).collect(),
        }
    }

    /// The bytes of values that [`BroadcastCodec::round`] gave. An odd number of two bytes is filled up with a form that is not a
    /// number, which no finite model holds.
    pub fn pack(self, values: &[f32]) -> Vec<u8> {
        let form: fn(f32) -> u16 = match self {
            Self::Exact => return values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::F16 => to_half,
            Self::Bf16 => to_brain,
        };
        let mut bytes = Vec::with_capacity(4 * self.words(values.len()));
        values.iter().for_each(|value| bytes.extend_from_slice(&form(*value).to_le_bytes()));
        if values.len() % 2 == 1 {
            bytes.extend_from_slice(&FILLING.to_le_bytes());
        }
        bytes
    }

    /// The values in `words`, of which each holds 4 bytes in the wire's order.
    pub fn unpack(self, words: Vec<f32>) -> Vec<f32> {
        let value: fn(u16) -> f32 = match self {
            Self::Exact => return words,
            Self::F16 => from_half,
            Self::Bf16 => from_brain,
        };
        let filled = words.last().is_some_and(|word| (word.to_bits() >> 16) as u16 == FILLING);
        let two = |word: &f32| {
            let bits = word.to_bits();
            [value(bits as u16), value((bits >> 16) as u16)]
        };
        let mut values: Vec<f32> = words.iter().flat_map(two).collect();
        values.truncate(values.len() - usize::from(filled));
        values
    }

    pub(crate) fn is_exact(&self) -> bool {
        *self == Self::Exact
    }
}

/// Rounds away the lower half; a value beyond the largest stays finite, and NaN stays NaN.
fn to_brain(value: f32) -> u16 {
    let bits = value.to_bits();
    if !value.is_finite() {
        return (bits >> 16) as u16 | u16::from(value.is_nan());
    }
    let rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    let largest = 0x7f7f | (bits >> 16 & 0x8000);
    if rounded & 0x7f80 == 0x7f80 { largest as u16 } else { rounded as u16 }
}

fn from_brain(form: u16) -> f32 {
    f32::from_bits(u32::from(form) << 16)
}

fn to_half(value: f32) -> u16 {
    let sign = (value.to_bits() >> 16 & 0x8000) as u16;
    if value.is_nan() {
        return sign | 0x7e00;
    }
    let magnitude = value.abs();
    if magnitude.is_infinite() {
        return sign | 0x7c00;
    }
    let magnitude = magnitude.min(HALF_MAX);
    let bits = magnitude.to_bits();
    let exponent = bits >> 23;
    let half = if exponent < 113 {
        // Subnormal: a multiple of 2^-24. Adding 0.5 leaves exactly those bits, rounded to even.
        (magnitude + 0.5).to_bits() - 0.5f32.to_bits()
    } else {
        let rounded = bits + 0xfff + (bits >> 13 & 1);
        (rounded >> 13) - (112 << 10)
    };
    sign | half as u16
}

fn from_half(form: u16) -> f32 {
    let magnitude = u32::from(form & 0x7fff);
    let value = match magnitude >> 10 {
        0 => magnitude as f32 / 16_777_216.0,
        31 => f32::from_bits(0x7f80_0000 | (magnitude & 0x3ff) << 13),
        _ => f32::from_bits((magnitude << 13) + (112 << 23)),
    };
    if form >> 15 == 1 { -value } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_and_every_brain_float_comes_back() {
        for form in 0..=u16::MAX {
            let half = from_half(form);
            assert!(half.is_nan() && from_half(to_half(half)).is_nan() || to_half(half) == form, "{form:x}");
            let brain = from_brain(form);
            assert!(
                brain.is_nan() && from_brain(to_brain(brain)).is_nan() || to_brain(brain) == form,
                "{form:x}"
            );
        }
    }

    #[test]
    fn rounding_is_to_the_nearest_and_never_makes_a_number_infinite() {
        assert_eq!(
            BroadcastCodec::F16.round(&[1.0 + f32::EPSILON, 1e6, -1e6, 1e-9]),
            [1.0, HALF_MAX, -HALF_MAX, 0.0]
        );
        assert_eq!(from_half(to_half(1.0 + 3.0 / 2048.0)), 1.0 + 2.0 / 1024.0, "a tie goes to even");
        assert_eq!(
            BroadcastCodec::Bf16.round(&[1.0 + 1.0 / 256.0, -(1.0 + 3.0 / 256.0)]),
            [1.0, -(1.0 + 2.0 / 128.0)]
        );
        assert!(BroadcastCodec::Bf16.round(&[f32::MAX])[0].is_finite());
        for value in [0.1f32, -3.7, 123.4, 6e-6] {
            assert!((BroadcastCodec::F16.round(&[value])[0] - value).abs() <= value.abs() / 2048.0 + 3e-8);
            assert!((BroadcastCodec::Bf16.round(&[value])[0] - value).abs() <= value.abs() / 256.0);
        }
    }

    #[test]
    fn a_rounded_model_comes_back_bit_for_bit_from_its_words() {
        for codec in [BroadcastCodec::Exact, BroadcastCodec::F16, BroadcastCodec::Bf16] {
            for len in 0..5 {
                let rounded = codec.round(&[0.1, -2.5, 1e-7, 4.0, -0.0][..len]);
                let bytes = codec.pack(&rounded);
                assert_eq!(bytes.len(), 4 * codec.words(len));
                let words = bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap()));
                let words: Vec<f32> = words.collect();
                let came = codec.unpack(words);
                assert_eq!(came.len(), len);
                assert!(came.iter().zip(&rounded).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
    }
}
