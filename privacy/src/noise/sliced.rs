//! The discrete Gaussian by slices: one table look-up and, for 97 samples of 100, one comparison.
//!
//! **Method.** The magnitudes 0, 1, 2, ... are cut into slices of `width` integers, `width = ceil(sigma / 16)`. Slice k
//! has a column of integer height `N_k`, in units of `1 / D`, with `N_k / D > exp(-(k width)^2 / (2 sigma^2))`, so that it
//! covers the bell everywhere in its slice. A candidate is a uniform point under the columns: a slice with probability
//! proportional to `N_k`, an offset j uniform in the slice (so `x = k width + j`), a height uniform in the column, and a
//! sign. It is taken when its height lies below the bell, unless it is minus zero. Slices from K on share one tail column
//! of height 1 in which groups of eight slices have the shares 1/2, 1/4, 1/8, ..., so group g has height `2^-(g+4) / D`.
//! This is rejection from a stepped cover, as in the ziggurat (Marsaglia, Tsang 2000) and in Karney, "Sampling exactly from
//! the normal distribution" (2016); the target is that of Canonne, Kamath, Steinke, "The Discrete Gaussian for
//! Differential Privacy" (2020), definition 1.
//!
//! **Proof that it is exact.** Let `h(x)` be the column's height over D at x. A candidate is `(x, sign)` with probability
//! `c h(x)`, c the same for all: slots of the table are equally likely and slice k holds `N_k` of them; the tail holds one,
//! of which group g gets `2^-(g+1)` and each of its eight slices an eighth; offsets are uniform by exact rejection. It
//! is taken with probability `exp(-x^2 / (2 sigma^2)) / h(x)`, which is at most 1. The product is
//! `c exp(-x^2 / (2 sigma^2))` for every nonzero integer; zero arises with two signs, of which one is refused. Hence what
//! is taken is distributed as the bell, whatever the heights are, as long as they cover it. They do: `N_k` is one more
//! than the floor of a certified upper bound, and the bell falls within a slice; for the tail the constructor demands
//! `exp(-(K width)^2 / (2 sigma^2)) <= 2^-4 / D` and a fall by at least a half over the first eight slices, hence, the bell
//! being log-concave, over every later group.
//!
//! **How "below the bell" is decided.** The height is `u h(x)` with u uniform, of which 51 bits are known at first. With
//! those, u is (a) below the certified lower bound of the bell over the whole slice: taken; or (b) compared with a 64-bit
//! evaluation whose error is bounded below; or, when that leaves it open (less than once in 2^50
//! candidates), (c) handed to `exact`, which draws further bits. All three answer the same question about the same u, so (a) and (b) change the time
//! and not the answer.
//!
//! **Bounds.** Sigma is at most 2^56 and a magnitude of 2^62 or more is refused as a candidate. That is the only departure
//! from the infinite distribution, and its mass is below `exp(-2048)`.

use super::exact::{enclose, falls_below};
use super::source::Stream;
use super::{MAGNITUDE_BITS, Sigma};

const SLOT_BITS: u32 = 12;
const SLOTS: usize = 1 << SLOT_BITS;
/// Bits of the uniform height that come with the slot and the sign.
const HEIGHT_BITS: u32 = 64 - SLOT_BITS - 1;
const SLICES_PER_SIGMA: u64 = 16;
/// Slices of one group of the tail.
const GROUP: u64 = 8;
/// What a slot may hold besides the number of a slice.
const TAIL: u8 = 255;
const NOTHING: u8 = 254;
/// Ulps of 2^-64 by which [`Sliced::bell`] may be wrong; its docs add them up to less than a quarter of this.
const BELL_ERROR: u64 = 64;

/// One sampler for one sigma. Its tables hold nothing secret.
pub(super) struct Sliced {
    sigma: Sigma,
    width: u64,
    /// D: heights are counted in units of `1 / density`.
    density: u64,
    slots: Box<[u8; SLOTS]>,
    slices: Vec<Slice>,
}

struct Slice {
    /// Heights below this many 2^-51 of the column lie under the bell wherever they are in the slice.
    floor: u64,
    /// The bell at the slice's first integer over the column, in 2^-64, from below by at most 2.
    first: u64,
    /// N: the height of the column.
    count: u64,
}

impl Sliced {
    pub(super) fn new(sigma: Sigma) -> Self {
        let width = sigma.numerator.div_ceil(SLICES_PER_SIGMA * sigma.denominator).max(1);
        let (density, counts) = cover(sigma, width);
        let mut slots = Box::new([NOTHING; SLOTS]);
        slots[0] = TAIL;
        let numbers = (0..).zip(&counts).flat_map(|(slice, count)| (0..*count).map(move |_| slice));
        slots[1..].iter_mut().zip(numbers).for_each(|(slot, number)| *slot = number);
        let slice = |(place, count): (u64, &u64)| {
            let last = place * width + (width - 1);
            Slice {
                floor: (enclose(last, sigma, density, *count).0 >> (64 - HEIGHT_BITS)) as u64,
                first: u64::try_from(enclose(place * width, sigma, density, *count).0)
                    .expect("columns are higher than the bell"),
                count: *count,
            }
        };
        let slices = (0..).zip(&counts).map(slice).collect();
        Self { sigma, width, density, slots, slices }
    }

    /// One sample of magnitude below 2^62.
    #[inline]
    pub(super) fn draw(&self, stream: &mut Stream) -> i64 {
        loop {
            let word = stream.word();
            let number = self.slots[word as usize % SLOTS];
            let negative = word >> SLOT_BITS & 1 == 1;
            let height = word >> (64 - HEIGHT_BITS);
            let candidate = match self.slices.get(usize::from(number)) {
                Some(slice) => self.within(slice, u64::from(number), height, stream),
                None if number == TAIL => self.beyond(stream),
                None => None,
            };
            let Some(magnitude) = candidate.filter(|magnitude| !(negative && *magnitude == 0)) else {
                continue;
            };
            return if negative { -(magnitude as i64) } else { magnitude as i64 };
        }
    }

    /// A candidate from a column of the table.
    #[inline]
    fn within(&self, slice: &Slice, number: u64, height: u64, stream: &mut Stream) -> Option<u64> {
        let offset = if self.width == 1 { 0 } else { stream.below(self.width) };
        let magnitude = number * self.width + offset;
        (height < slice.floor || self.lies_below(slice, magnitude, offset, height, stream))
            .then_some(magnitude)
    }

    /// Steps (b) and (c) of the comparison.
    fn lies_below(
        &self,
        slice: &Slice,
        magnitude: u64,
        offset: u64,
        height: u64,
        stream: &mut Stream,
    ) -> bool {
        let bell = self.bell(slice, magnitude, offset);
        let (from, ulp) = (height << (64 - HEIGHT_BITS), 1 << (64 - HEIGHT_BITS));
        if u128::from(from) + ulp + u128::from(BELL_ERROR) <= u128::from(bell) {
            return true;
        }
        if from >= bell.saturating_add(BELL_ERROR) {
            return false;
        }
        let known = vec![from | stream.word() >> HEIGHT_BITS];
        falls_below(known, stream, magnitude, self.sigma, self.density, slice.count)
    }

    /// The bell over the column at `magnitude`, in 2^-64.
    ///
    /// It is `first * exp(-y)` with `y = (j / sigma) ((2 k width + j) / sigma) / 2`, y below 0.32. In ulps of 2^-64: j / sigma
    /// is cut by 1 and then multiplied by less than 5; the other factor is cut by 16 and multiplied by less than 1/32;
    /// cutting the product costs 1, so y is off by less than 7. The series stops after 15 terms, where the next is below 1;
    /// Horner's rule cuts twice a term and damps by y, which makes less than 4. `first` is off by 2 and the last product
    /// is cut by 1: less than 16 together.
    fn bell(&self, slice: &Slice, magnitude: u64, offset: u64) -> u64 {
        if offset == 0 {
            return slice.first;
        }
        let Sigma { numerator, denominator } = self.sigma;
        let over_sigma =
            |value: u64, bits: u32| (u128::from(value * denominator) << bits) / u128::from(numerator);
        let y = (over_sigma(offset, 64) * over_sigma(2 * magnitude - offset, 60)) >> 61;
        let one = 1u128 << 64;
        // Below 2^63 after the shift, and 64 bits are divided five times as fast as 128.
        let term = |sum: u128, place: u64| u128::from(((y * sum) >> 64) as u64 / place);
        let power = (1..=15).rev().fold(one, |sum, place| one - term(sum, place));
        ((u128::from(slice.first) * power) >> 64) as u64
    }

    /// A candidate from the tail. Rare enough to be decided by the exact comparison at once.
    #[cold]
    fn beyond(&self, stream: &mut Stream) -> Option<u64> {
        let group = stream.tails();
        let slice = self.slices.len() as u64 + GROUP.checked_mul(group)? + stream.below(GROUP);
        let magnitude = slice.checked_mul(self.width)?.checked_add(stream.below(self.width))?;
        if magnitude >> MAGNITUDE_BITS > 0 {
            return None;
        }
        // A height of 2^-(group + 4) / D: that many zeros before the bits of the uniform number.
        let zeros = group + 4;
        let mut known = vec![0; (zeros / 64) as usize];
        known.push(stream.word() >> (zeros % 64));
        falls_below(known, stream, magnitude, self.sigma, self.density, 1).then_some(magnitude)
    }
}

/// The density D, as large as the table allows, and the heights of the columns before the tail.
fn cover(sigma: Sigma, width: u64) -> (u64, Vec<u64>) {
    // Upper bounds of the bell at the beginning of every slice the table could possibly need: D is at most SLOTS, so the
    // tail has begun where the bell is below 2^-16, at the latest.
    let mut bell: Vec<u128> = Vec::new();
    while bell.last().is_none_or(|height| height * 16 * SLOTS as u128 > 1 << 64)
        || !halves(sigma, width, bell.len() - 1)
    {
        bell.push(enclose(bell.len() as u64 * width, sigma, 1, 1).1);
    }
    let area = bell.iter().sum::<u128>();
    let mut density = ((SLOTS as u128) << 64) / area + 1;
    loop {
        let begins_tail = |place: usize| bell[place] * 16 * density <= 1 << 64 && halves(sigma, width, place);
        let end = (0..bell.len()).find(|place| begins_tail(*place)).unwrap_or(bell.len() - 1);
        let counts: Vec<u64> =
            bell[..end].iter().map(|height| ((height * density) >> 64) as u64 + 1).collect();
        if counts.iter().sum::<u64>() < SLOTS as u64 {
            return (density as u64, counts);
        }
        density -= 1;
    }
}

/// Whether the bell falls by a half or more over the eight slices from `place` on: `((k + 8)^2 - k^2) width^2 / 2 >=
/// 0.6932 sigma^2`, and 0.6932 is more than the logarithm of 2.
fn halves(sigma: Sigma, width: u64, place: usize) -> bool {
    let square = |value: u64| u128::from(value) * u128::from(value);
    let fall = (16 * place as u128 + 64) * 5000;
    square(width * sigma.denominator).saturating_mul(fall) >= square(sigma.numerator).saturating_mul(6932)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Sliced {
        /// The cover itself: what is left of [`Sliced::draw`] without its comparison.
        pub(in super::super) fn draw_any(&self, stream: &mut Stream) -> i64 {
            loop {
                let number = usize::from(self.slots[stream.word() as usize % SLOTS]);
                if number < self.slices.len() {
                    let magnitude = (number as u64 * self.width + stream.below(self.width)) as i64;
                    return if stream.bit() { -magnitude } else { magnitude };
                }
            }
        }

        fn covers_the_bell(&self) {
            assert_eq!(self.slots.iter().filter(|number| **number == TAIL).count(), 1);
            for (place, slice) in (0..).zip(&self.slices) {
                let held = self.slots.iter().filter(|number| **number == place).count();
                assert_eq!(held as u64, slice.count);
                let (_, high) = enclose(u64::from(place) * self.width, self.sigma, self.density, slice.count);
                assert!(high <= 1 << 64, "slice {place} of {:?}", self.sigma);
            }
            let tail = self.slices.len() as u64;
            for group in 0..20 {
                let first = (tail + GROUP * group) * self.width;
                let (low, _) = enclose(first, self.sigma, self.density, 1);
                assert!(low <= 1 << (60 - group), "group {group} of {:?}", self.sigma);
            }
        }

        fn filters_exactly(&self, share: u64) {
            for (place, slice) in (0..).zip(&self.slices) {
                for offset in [0, self.width / 2, share % self.width, self.width - 1] {
                    let magnitude = place * self.width + offset;
                    let (low, high) = enclose(magnitude, self.sigma, self.density, slice.count);
                    let bell = u128::from(self.bell(slice, magnitude, offset));
                    assert!(bell + 16 >= high && bell <= low + 16, "{magnitude} of {:?}", self.sigma);
                    assert!(u128::from(slice.floor) << (64 - HEIGHT_BITS) <= low);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn columns_cover_the_bell_and_the_filter_is_as_exact_as_it_says(
            bits in 0u32..=56, fraction in 0u64..1 << 56, denominator in 1u64..=40, share in 0u64..1 << 56,
        ) {
            let numerator = ((1 << bits) + fraction % (1 << bits)).min(1 << 56);
            let sampler = Sliced::new(Sigma::ratio(numerator, denominator).unwrap());
            sampler.covers_the_bell();
            sampler.filters_exactly(share);
        }
    }

    #[test]
    fn wide_bells_fill_the_table_and_few_candidates_are_refused() {
        for bits in [8, 20, 38, 56] {
            let sampler = Sliced::new(Sigma::whole(1 << bits).unwrap());
            // The bell's share of the cover: sqrt(pi / 2) sigma, in slices, over slots per density.
            let bell = 1.2533 * (1u64 << bits) as f64 / sampler.width as f64;
            assert!(bell * sampler.density as f64 / SLOTS as f64 > 0.95, "{bits}");
            assert!((60..80).contains(&sampler.slices.len()));
        }
    }
}
