//! Exact sums of floating-point numbers and of their squares, whatever their scale.
//!
//! Every finite f64 is a whole multiple of 2^-1074 and its square one of 2^-2148, so a fixed-point number that is wide enough
//! adds them without rounding, in any order (Kulisch 1997; Collange, Defour, Graillat, Iakymchuk 2015). Only the limbs that are
//! touched take memory: a column of one unit needs a handful. Nothing here rounds but [`WideSum::words`], to 190
//! significant bits, and what says so.

/// Bits of a limb. A limb is an i64, so that 2^29 numbers are added before carries have to move.
const LIMB_BITS: i32 = 32;
const MASK: i64 = (1 << LIMB_BITS) - 1;
/// Additions after which carries move. One adds less than 2^32 to a limb.
const PENDING_MAX: u32 = 1 << 29;

/// Integers that carry one sum outside of this process: an exponent, and a whole number of 192 bits.
pub const WORDS: usize = 4;
/// Significant bits that travel.
const BITS: usize = 190;
/// The exponents of those bits: of the least bit of the smallest square, and beyond any sum of squares.
const EXPONENTS: std::ops::RangeInclusive<i64> = -2148..=2200;

/// An exact sum of finite f64s, of their squares, and of other such sums.
#[derive(Clone, Default)]
pub struct WideSum {
    /// The lowest limb counts multiples of 2^(32 * lowest).
    lowest: i32,
    limbs: Vec<i64>,
    pending: u32,
}

/// A number that is infinite or NaN, and has no place in a sum.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{0} is not a finite number")]
pub struct NotSummable(pub f64);

/// A number as `digits * 2^exponent`, with its sign.
struct Digits {
    negative: bool,
    /// 32 bits each, lowest first; the last one is not zero.
    digits: Vec<u32>,
    exponent: i32,
}

impl WideSum {
    /// The sum of one number.
    ///
    /// # Errors
    /// [`NotSummable`].
    pub fn of(value: f64) -> Result<Self, NotSummable> {
        let mut sum = Self::default();
        sum.add(value)?;
        Ok(sum)
    }

    /// Adds a number.
    ///
    /// # Errors
    /// [`NotSummable`]; the sum is unchanged then.
    pub fn add(&mut self, value: f64) -> Result<(), NotSummable> {
        let (mantissa, exponent) = parts(value)?;
        self.add_whole(u128::from(mantissa), exponent, value.is_sign_negative());
        Ok(())
    }

    /// Adds the square of a number, unrounded.
    ///
    /// # Errors
    /// [`NotSummable`]; the sum is unchanged then.
    pub fn add_square(&mut self, value: f64) -> Result<(), NotSummable> {
        let (mantissa, exponent) = parts(value)?;
        self.add_whole(u128::from(mantissa) * u128::from(mantissa), 2 * exponent, false);
        Ok(())
    }

    /// Adds another sum.
    pub fn add_sum(&mut self, other: &Self) {
        self.combine(other, 1);
    }

    /// Whether it is zero, above or below.
    pub fn sign(&self) -> std::cmp::Ordering {
        let mut carried = self.clone();
        carried.carry();
        // Below the last limb all are at least 0, and together less than one of it.
        carried.limbs.last().map_or(0, |limb| *limb).cmp(&0)
    }

    /// `self - other`, exactly.
    #[must_use]
    pub(crate) fn minus(&self, other: &Self) -> Self {
        let mut difference = self.clone();
        difference.combine(other, -1);
        difference
    }

    /// `self * other`, exactly.
    #[must_use]
    pub(crate) fn times(&self, other: &Self) -> Self {
        let mut product = Self::default();
        let (Some(left), Some(right)) = (self.digits(), other.digits()) else { return product };
        let negative = left.negative != right.negative;
        for (place, digit) in left.digits.iter().enumerate() {
            for (more, other) in right.digits.iter().enumerate() {
                let exponent = left.exponent + right.exponent + LIMB_BITS * (place + more) as i32;
                product.add_whole(u128::from(*digit) * u128::from(*other), exponent, negative);
            }
        }
        product
    }

    /// The sum as `significand * 2^exponent`, rounded to the 53 bits of an f64, ties to even; `(0, 0)` for zero.
    pub(crate) fn scaled(&self) -> (f64, i32) {
        let Some(digits) = self.digits() else { return (0.0, 0) };
        let rounded = digits.rounded(f64::MANTISSA_DIGITS as usize);
        let whole = rounded.digits.iter().rev().fold(0u64, |whole, digit| (whole << 32) | u64::from(*digit));
        let significand = whole as f64;
        (if rounded.negative { -significand } else { significand }, rounded.exponent)
    }

    /// The sum as the nearest f64; at most [`f64::MAX`] in magnitude.
    pub fn value(&self) -> f64 {
        let (significand, exponent) = self.scaled();
        libm::scalbn(significand, exponent).clamp(-f64::MAX, f64::MAX)
    }

    /// The sum to be sent, rounded to 190 significant bits, ties to even: the exponent `e`, then a whole number `m` in two's
    /// complement, lowest word first; the sum is `m * 2^e`. `m` is odd, so that each number has one form; zero is four zeros.
    pub fn words(&self) -> [i64; WORDS] {
        let Some(digits) = self.digits() else { return [0; WORDS] };
        let odd = digits.rounded(BITS).odd();
        let mut words = [0u64; WORDS - 1];
        for (place, digit) in odd.digits.iter().enumerate() {
            words[place / 2] |= u64::from(*digit) << (32 * (place % 2));
        }
        if odd.negative {
            let mut carry = true;
            for word in &mut words {
                (*word, carry) = (!*word).overflowing_add(u64::from(carry));
            }
        }
        let [low, middle, high] = words.map(u64::cast_signed);
        [i64::from(odd.exponent), low, middle, high]
    }

    /// The sum that came in this form; `None` for anything that [`WideSum::words`] does not give.
    pub fn of_words(words: [i64; WORDS]) -> Option<Self> {
        if words == [0; WORDS] {
            return Some(Self::default());
        }
        let [exponent, low, middle, high] = words;
        let top = high >> (BITS - 128);
        if !EXPONENTS.contains(&exponent) || low & 1 == 0 || !(-1..=0).contains(&top) {
            return None;
        }
        let exponent = i32::try_from(exponent).ok()?;
        let mut sum = Self::default();
        let low = u128::from(low.cast_unsigned()) | u128::from(middle.cast_unsigned()) << 64;
        sum.add_whole(low, exponent, false);
        sum.add_whole(u128::from(high.unsigned_abs()), exponent + 128, high < 0);
        Some(sum)
    }

    /// Adds `magnitude * 2^exponent`, or takes it away.
    fn add_whole(&mut self, magnitude: u128, exponent: i32, negative: bool) {
        self.add_word(magnitude as u64, exponent, negative);
        self.add_word((magnitude >> 64) as u64, exponent + 64, negative);
    }

    fn add_word(&mut self, magnitude: u64, exponent: i32, negative: bool) {
        if magnitude == 0 {
            return;
        }
        if self.pending >= PENDING_MAX {
            self.carry();
        }
        self.pending += 1;
        let (first, shift) = (exponent.div_euclid(LIMB_BITS), exponent.rem_euclid(LIMB_BITS));
        self.reach(first, first + 2);
        let start = (first - self.lowest) as usize;
        let bits = u128::from(magnitude) << shift;
        let pieces = [bits, bits >> LIMB_BITS, bits >> (2 * LIMB_BITS)].map(|bits| i64::from(bits as u32));
        let sign = if negative { -1 } else { 1 };
        self.limbs[start..start + 3].iter_mut().zip(pieces).for_each(|(limb, piece)| *limb += sign * piece);
    }

    /// Makes room for the limbs `from` to `to`.
    fn reach(&mut self, from: i32, to: i32) {
        if self.limbs.is_empty() {
            self.lowest = from;
        }
        if from < self.lowest {
            let more = (self.lowest - from) as usize;
            self.limbs.splice(0..0, std::iter::repeat_n(0, more));
            self.lowest = from;
        }
        let length = (to - self.lowest + 1) as usize;
        if length > self.limbs.len() {
            self.limbs.resize(length, 0);
        }
    }

    fn combine(&mut self, other: &Self, sign: i64) {
        let mut other = other.clone();
        other.carry();
        if other.limbs.is_empty() {
            return;
        }
        self.carry();
        self.reach(other.lowest, other.lowest + other.limbs.len() as i32 - 1);
        let start = (other.lowest - self.lowest) as usize;
        self.limbs[start..].iter_mut().zip(&other.limbs).for_each(|(limb, more)| *limb += sign * more);
        self.carry();
    }

    /// Moves carries up: every limb but the last is then from 0 to 2^32 - 1, and the last is not zero.
    fn carry(&mut self) {
        self.pending = 0;
        let mut carry = 0i64;
        for limb in &mut self.limbs {
            let whole = *limb + carry;
            *limb = whole & MASK;
            carry = whole >> LIMB_BITS;
        }
        if carry != 0 {
            self.limbs.push(carry);
        }
        // A last limb of -1 borrows for the one below it, which alone says the same: else every call would add a limb.
        while let [.., below, last] = self.limbs.as_mut_slice() {
            match *last {
                0 => {}
                -1 => *below -= 1 << LIMB_BITS,
                _ => break,
            }
            self.limbs.pop();
        }
        if self.limbs == [0] {
            self.limbs.clear();
        }
    }

    /// Sign and magnitude; `None` for zero.
    fn digits(&self) -> Option<Digits> {
        let mut sum = self.clone();
        sum.carry();
        let negative = *sum.limbs.last()? < 0;
        if negative {
            sum.limbs.iter_mut().for_each(|limb| *limb = -*limb);
            sum.carry();
        }
        let last = sum.limbs.pop()?;
        let mut digits: Vec<u32> = sum.limbs.iter().map(|limb| *limb as u32).collect();
        digits.extend([last as u32, (last >> LIMB_BITS) as u32]);
        Some(Digits { negative, digits, exponent: LIMB_BITS * sum.lowest }.trimmed())
    }
}

impl Digits {
    fn trimmed(mut self) -> Self {
        while self.digits.last() == Some(&0) {
            self.digits.pop();
        }
        self
    }

    fn length(&self) -> usize {
        self.digits.last().map_or(0, |last| self.digits.len() * 32 - last.leading_zeros() as usize)
    }

    fn bit(&self, place: usize) -> bool {
        self.digits.get(place / 32).is_some_and(|digit| digit >> (place % 32) & 1 == 1)
    }

    /// The number without its lowest `count` bits.
    fn without(&self, count: usize) -> Self {
        let (whole, shift) = (count / 32, count % 32);
        let pair = |place: usize| {
            let at = |place: usize| u64::from(self.digits.get(place).copied().unwrap_or(0));
            ((at(place) | at(place + 1) << 32) >> shift) as u32
        };
        let digits = (whole..self.digits.len()).map(pair).collect();
        Self { negative: self.negative, digits, exponent: self.exponent + count as i32 }.trimmed()
    }

    /// The nearest number of at most `bits` bits, ties to even; of one bit more when rounding carries all the way.
    fn rounded(&self, bits: usize) -> Self {
        let surplus = self.length().saturating_sub(bits);
        let mut kept = self.without(surplus);
        let is_half = surplus > 0 && self.bit(surplus - 1);
        let is_more = || (0..surplus.saturating_sub(1)).any(|place| self.bit(place));
        if is_half && (kept.bit(0) || is_more()) {
            let mut carry = true;
            for digit in &mut kept.digits {
                (*digit, carry) = digit.overflowing_add(u32::from(carry));
            }
            if carry {
                kept.digits.push(1);
            }
        }
        kept
    }

    /// The same number with an odd whole part.
    fn odd(&self) -> Self {
        let zeros = (0..self.length()).find(|place| self.bit(*place)).unwrap_or(0);
        self.without(zeros)
    }
}

/// The same number, in whatever limbs it lies.
impl PartialEq for WideSum {
    fn eq(&self, other: &Self) -> bool {
        self.minus(other).sign() == std::cmp::Ordering::Equal
    }
}

/// Nothing of the number: what a site sums is never printed.
impl std::fmt::Debug for WideSum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WideSum")
    }
}

/// A finite number as a whole one times a power of two; the sign is left out.
fn parts(value: f64) -> Result<(u64, i32), NotSummable> {
    if !value.is_finite() {
        return Err(NotSummable(value));
    }
    let bits = value.to_bits();
    let (fraction, exponent) = (bits & ((1 << 52) - 1), (bits >> 52 & 0x7ff) as i32);
    Ok(if exponent == 0 { (fraction, -1074) } else { (fraction | 1 << 52, exponent - 1075) })
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use proptest::prelude::*;

    use super::*;

    fn sum(values: &[f64]) -> WideSum {
        let mut sum = WideSum::default();
        values.iter().for_each(|value| sum.add(*value).unwrap());
        sum
    }

    #[test]
    fn what_cancels_leaves_the_rest_to_the_last_bit() {
        assert_eq!(sum(&[1e300, 1.0, -1e300, 1e-300, -1.0]).value(), 1e-300);
        assert_eq!(sum(&[f64::MAX, f64::MAX, -f64::MAX]).value(), f64::MAX);
        assert_eq!(sum(&[5e-324, 5e-324]).value(), 1e-323);
        assert_eq!(sum(&[0.5, -0.5]).words(), [0; WORDS]);
        assert_eq!(sum(&[f64::MAX, f64::MAX]).value(), f64::MAX, "there is nothing larger");
    }

    #[test]
    fn infinity_is_no_number() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(WideSum::of(value).is_err() && WideSum::default().add_square(value).is_err());
        }
    }

    #[test]
    fn many_small_carries_and_borrows_keep_a_sum_short() {
        let mut total = WideSum::default();
        for _ in 0..1000 {
            total.add_sum(&sum(&[-1.0]));
            total.add_sum(&sum(&[0.75]));
        }
        assert_eq!((total.value(), total.sign()), (-250.0, Ordering::Less));
        assert!(total.limbs.len() <= 3, "{} limbs", total.limbs.len());
    }

    #[test]
    fn only_the_one_form_of_a_number_is_read() {
        assert_eq!(sum(&[-1.5]).words(), [-1, -3, -1, -1]);
        assert_eq!(sum(&[6.0]).words(), [1, 3, 0, 0]);
        for words in [
            [0, 2, 0, 0],
            [1, 0, 0, 0],
            [-2149, 1, 0, 0],
            [2201, 1, 0, 0],
            [i64::MAX, 1, 0, 0],
            [0, 1, 0, 1 << 62],
            [0, 1, 0, i64::MIN],
        ] {
            assert!(WideSum::of_words(words).is_none(), "{words:?}");
        }
    }

    fn any_scale() -> impl Strategy<Value = f64> {
        prop_oneof![any::<f64>().prop_filter("finite", |value| value.is_finite()), -1e3f64..1e3]
    }

    proptest! {
        #[test]
        fn no_order_and_no_grouping_changes_a_sum(values in prop::collection::vec(any_scale(), 1..40), cut in 0usize..40) {
            let mut turned = values.clone();
            turned.rotate_left(cut % values.len());
            let mut grouped = sum(&values[..cut % values.len()]);
            grouped.add_sum(&sum(&values[cut % values.len()..]));
            prop_assert_eq!(sum(&values).words(), sum(&turned).words());
            prop_assert_eq!(sum(&values).words(), grouped.words());
        }

        #[test]
        fn whole_numbers_add_as_integers_do(values in prop::collection::vec(any::<i64>(), 1..30)) {
            let mut wide = WideSum::default();
            let (mut whole, mut squares) = (0i128, 0i128);
            for value in values.iter().map(|value| value >> 11) {
                wide.add(value as f64).unwrap();
                wide.add_square(value as f64).unwrap();
                (whole, squares) = (whole + i128::from(value), squares + i128::from(value) * i128::from(value));
            }
            prop_assert_eq!(wide.value(), (whole + squares) as f64);
            prop_assert_eq!(wide.sign(), (whole + squares).cmp(&0));
        }

        #[test]
        fn one_number_comes_back_from_its_words(value in any_scale()) {
            let words = sum(&[value]).words();
            prop_assert_eq!(WideSum::of_words(words).unwrap().value(), value);
            prop_assert_eq!(WideSum::of_words(words).unwrap().words(), words);
        }

        #[test]
        fn what_is_sent_is_the_sum_to_190_bits(values in prop::collection::vec(any_scale(), 1..10)) {
            let whole = sum(&values);
            let came = WideSum::of_words(whole.words()).unwrap();
            let (lost, _) = (whole.minus(&came).value().abs(), ());
            prop_assert!(lost <= whole.value().abs() * 2f64.powi(-189));
            prop_assert_eq!(came.words(), whole.words());
        }

        #[test]
        fn products_are_exact(a in any::<i64>(), b in any::<i64>(), scale in -300i32..300) {
            let (a, b) = (a >> 11, b >> 11);
            let scaled = |value: i64| sum(&[value as f64 * 2f64.powi(scale)]);
            let mut rest = scaled(a).times(&scaled(b));
            let whole = i128::from(a) * i128::from(b);
            let mut expected = WideSum::default();
            expected.add_whole(whole.unsigned_abs(), 2 * scale, whole < 0);
            rest = rest.minus(&expected);
            prop_assert_eq!(rest.sign(), Ordering::Equal);
        }

        #[test]
        fn hostile_words_are_refused_or_have_one_form(words in any::<[i64; WORDS]>(), exponent in -3000i64..3000, high in -5i64..5) {
            for words in [words, [exponent, words[1] | 1, words[2], high]] {
                if let Some(sum) = WideSum::of_words(words) {
                    prop_assert_eq!(sum.words(), words);
                }
            }
        }
    }
}
