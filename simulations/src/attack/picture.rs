//! Small grey pictures: what clients train on and what attackers reconstruct.
//!
//! They are drawn, not photographed: digits of seven strokes, each with a slant, a place and a thickness of its own. They
//! stand for records that a person recognises at a glance; nothing is to be learned about a data set from them.

use rand::Rng;

/// A square grey picture, row by row; 0 is black and 1 is white.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    side: usize,
    pixels: Vec<f32>,
}

/// The strokes of a digit, from and to, in units of the picture's side.
const STROKES: [[(f64, f64); 2]; 7] = [
    [(0.27, 0.16), (0.73, 0.16)],
    [(0.73, 0.16), (0.73, 0.5)],
    [(0.73, 0.5), (0.73, 0.84)],
    [(0.27, 0.84), (0.73, 0.84)],
    [(0.27, 0.5), (0.27, 0.84)],
    [(0.27, 0.16), (0.27, 0.5)],
    [(0.27, 0.5), (0.73, 0.5)],
];
/// Which strokes a digit has: bit i for stroke i.
const DIGITS: [u8; 10] = [
    0b011_1111, 0b000_0110, 0b101_1011, 0b100_1111, 0b110_0110, 0b110_1101, 0b111_1101, 0b000_0111,
    0b111_1111, 0b110_1111,
];

impl Picture {
    /// A picture of these pixels, `side * side` of them, brought into 0 to 1; what is not finite is black.
    ///
    /// # Panics
    /// When there are not `side * side` pixels.
    pub fn new(side: usize, pixels: impl IntoIterator<Item = f64>) -> Self {
        let grey = |value: f64| if value.is_finite() { value.clamp(0.0, 1.0) as f32 } else { 0.0 };
        let pixels: Vec<f32> = pixels.into_iter().map(grey).collect();
        assert_eq!(pixels.len(), side * side, "a picture of side {side} has as many pixels");
        Self { side, pixels }
    }

    /// Draws the digit `digit % 10` on a square of `side` pixels.
    pub fn digit(digit: usize, side: usize, generator: &mut impl Rng) -> Self {
        let mut wobble = |most: f64| generator.random_range(-most..most);
        let (slant, right, down, thickness) =
            (wobble(0.12), wobble(0.05), wobble(0.05), 0.115 + wobble(0.02));
        let strokes = (0..7).filter(|stroke| DIGITS[digit % 10] >> stroke & 1 == 1);
        let strokes: Vec<_> = strokes.map(|stroke| STROKES[stroke]).collect();
        let pixel = |place: usize| {
            let (x, y) =
                (((place % side) as f64 + 0.5) / side as f64, ((place / side) as f64 + 0.5) / side as f64);
            let at = (x - right + slant * (y - 0.5), y - down);
            let nearest = strokes.iter().map(|stroke| distance(at, *stroke)).fold(f64::INFINITY, f64::min);
            // The edge of a stroke is as soft as a pixel is wide.
            0.5 + (thickness - nearest) * side as f64
        };
        Self::new(side, (0..side * side).map(pixel))
    }

    /// Pixels along a side.
    pub fn side(&self) -> usize {
        self.side
    }

    /// The pixels, row by row.
    pub fn pixels(&self) -> &[f32] {
        &self.pixels
    }

    /// Peak signal-to-noise ratio of `other` as a picture of `self`, in dB; infinite when they are equal.
    pub fn psnr(&self, other: &Self) -> f64 {
        let square = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
        let error: f64 = self.pixels.iter().zip(&other.pixels).map(square).sum();
        -10.0 * (error / self.pixels.len() as f64).log10()
    }

    /// The PSNR of the even grey that comes nearest: what somebody reaches who knows nothing but the brightness.
    pub fn psnr_of_grey(&self) -> f64 {
        let mean = self.pixels.iter().map(|pixel| f64::from(*pixel)).sum::<f64>() / self.pixels.len() as f64;
        self.psnr(&Self::new(self.side, vec![mean; self.pixels.len()]))
    }
}

/// The cosine of the angle between two vectors of equal length; 0 when one of them is zero.
pub fn cosine(one: &[f64], other: &[f64]) -> f64 {
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norms = (product(one, one) * product(other, other)).sqrt();
    if norms > 0.0 { product(one, other) / norms } else { 0.0 }
}

/// How far a point is from a stroke.
fn distance(at: (f64, f64), [from, to]: [(f64, f64); 2]) -> f64 {
    let (along, off) = ((to.0 - from.0, to.1 - from.1), (at.0 - from.0, at.1 - from.1));
    let length = along.0 * along.0 + along.1 * along.1;
    let share = ((off.0 * along.0 + off.1 * along.1) / length).clamp(0.0, 1.0);
    (off.0 - share * along.0).hypot(off.1 - share * along.1)
}

#[cfg(test)]
mod tests {
    use protocol::Seed;

    use super::*;

    #[test]
    fn digits_differ_and_repeat_with_their_seed() {
        let draw = |digit, seed| Picture::digit(digit, 16, &mut Seed::from_number(seed).generator());
        assert_eq!(draw(3, 1), draw(3, 1));
        assert!(draw(3, 1).psnr(&draw(3, 2)) < 30.0 && draw(0, 1).psnr(&draw(1, 1)) < 10.0);
        // Strokes are thick enough that an even grey is a bad picture of every digit.
        assert!((0..10).all(|digit| draw(digit, 5).psnr_of_grey() < 10.0));
    }

    #[test]
    fn psnr_and_cosine_are_the_textbook_ones() {
        let (black, grey) = (Picture::new(2, [0.0; 4]), Picture::new(2, [0.1, f64::NAN, 0.1, 0.1]));
        assert!((black.psnr(&grey) - 10.0 * (4.0f64 / 0.03).log10()).abs() < 1e-5);
        assert_eq!(black.psnr(&black), f64::INFINITY);
        assert_eq!((cosine(&[1.0, 0.0], &[2.0, 0.0]), cosine(&[1.0], &[0.0])), (1.0, 0.0));
    }
}
