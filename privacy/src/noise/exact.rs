//! Comparing a uniform number with `exp(-x^2 / (2 sigma^2))`, exactly.
//!
//! A uniform number is an endless row of fair bits of which only a few are ever needed. The exponential is enclosed in an
//! interval of as many bits as the question asks for: while the interval and the bits known so far leave the answer open,
//! both get 64 bits more. The answer is thus that of real arithmetic. It comes with probability one: for x other than 0
//! the exponential is irrational (Lindemann), and in any case the interval shrinks to a point which a uniform number
//! meets with probability zero. Only integers are used; nothing rests on the rounding of a machine or of a library.
//!
//! Numbers are little-endian rows of u64 limbs, `n` of them behind the point. An ulp is 2^(-64 n).

use std::cmp::Ordering;

use super::Sigma;
use super::source::Stream;

/// Limbs behind the point with which a comparison begins, and with which tables are made.
const LIMBS_FIRST: usize = 2;
const LIMBS_TABLE: usize = 3;

/// A number known to lie within `error` ulps of `value`.
struct Enclosure {
    value: Vec<u64>,
    error: u64,
}

/// Whether a uniform number in [0, 1) is below `exp(-x^2 / (2 sigma^2)) * density / count`.
///
/// `known` holds the first bits of the number, 64 at a time, the most significant first; more are drawn when needed.
pub(super) fn falls_below(
    mut known: Vec<u64>,
    stream: &mut Stream,
    x: u64,
    sigma: Sigma,
    density: u64,
    count: u64,
) -> bool {
    let mut limbs = LIMBS_FIRST;
    loop {
        while known.len() < limbs {
            known.push(stream.word());
        }
        let mut below: Vec<u64> = known[..limbs].iter().rev().copied().collect();
        let mut above = below.clone();
        add(&mut above, &[1]);
        scale(&mut below, count);
        scale(&mut above, count);
        let (low, high) = bounds(x, sigma, density, limbs);
        if compare(&above, &low) != Ordering::Greater {
            return true;
        }
        if compare(&below, &high) != Ordering::Less {
            return false;
        }
        limbs += 1;
    }
}

/// `exp(-x^2 / (2 sigma^2)) * density / count` between two integers in units of 2^-64, at most two apart.
pub(super) fn enclose(x: u64, sigma: Sigma, density: u64, count: u64) -> (u128, u128) {
    let (mut low, mut high) = bounds(x, sigma, density, LIMBS_TABLE);
    divide(&mut low, count);
    divide(&mut high, count);
    let head = |limbs: &[u64]| {
        let limb = |place: usize| u128::from(limbs.get(place).copied().unwrap_or(0));
        limb(LIMBS_TABLE) << 64 | limb(LIMBS_TABLE - 1)
    };
    (head(&low), head(&high) + 1)
}

/// Lower and upper bound of `exp(-x^2 / (2 sigma^2)) * density`.
fn bounds(x: u64, sigma: Sigma, density: u64, limbs: usize) -> (Vec<u64>, Vec<u64>) {
    let Enclosure { value: mut low, error } = exponential(x, sigma, limbs);
    let mut high = low.clone();
    add(&mut high, &[error]);
    match compare(&low, &[error]) {
        Ordering::Less => low.fill(0),
        _ => subtract(&mut low, &[error]),
    }
    scale(&mut low, density);
    scale(&mut high, density);
    (low, high)
}

/// `exp(-x^2 / (2 sigma^2))`: halve the exponent until it is below 1/2, sum the series, square as often.
fn exponential(x: u64, sigma: Sigma, limbs: usize) -> Enclosure {
    let mut exponent = vec![0; limbs];
    exponent.push(x);
    [x, sigma.denominator, sigma.denominator].iter().for_each(|factor| scale(&mut exponent, *factor));
    [sigma.numerator, sigma.numerator, 2].iter().for_each(|divisor| divide(&mut exponent, *divisor));
    // Floors of floors are floors: so far less than one ulp is lost.
    let whole = exponent[limbs];
    if whole >= 64 * limbs as u64 || exponent[limbs + 1..].iter().any(|limb| *limb > 0) {
        return Enclosure { value: vec![0; limbs + 1], error: 1 };
    }
    let halvings = 65 - whole.leading_zeros();
    exponent.truncate(limbs + 1);
    shift_right(&mut exponent, halvings);
    let mut result = series(&exponent, limbs);
    for _ in 0..halvings {
        // Both v and v + e are at most 1, so their squares differ by at most 2e, and cutting off costs one.
        result.value = multiply(&result.value, &result.value, limbs);
        result.error = 2 * result.error + 2;
    }
    result
}

/// `exp(-y)` for y below 1/2 that is known to 2 ulps, by its alternating series.
///
/// A term is off by at most 3 ulps: half the error of the one before, plus one for cutting the product, through at least
/// 1, plus one for cutting the quotient. The first term that vanishes, and with it the rest, is below 4.
fn series(y: &[u64], limbs: usize) -> Enclosure {
    let mut sum = vec![0; limbs];
    sum.push(1);
    let mut term = sum.clone();
    let mut error = 2 + 4;
    for place in 1.. {
        term = multiply(&term, y, limbs);
        divide(&mut term, place);
        if term.iter().all(|limb| *limb == 0) {
            break;
        }
        if place % 2 == 1 {
            subtract(&mut sum, &term)
        } else {
            add(&mut sum, &term)
        }
        error += 3;
    }
    Enclosure { value: sum, error }
}

/// Product of two numbers of at most 1, cut off behind the last limb.
fn multiply(left: &[u64], right: &[u64], limbs: usize) -> Vec<u64> {
    let mut product = vec![0u64; left.len() + right.len()];
    for (place, factor) in left.iter().enumerate() {
        let mut carry = 0;
        for (other, digit) in right.iter().zip(&mut product[place..]) {
            carry += u128::from(*factor) * u128::from(*other) + u128::from(*digit);
            *digit = carry as u64;
            carry >>= 64;
        }
        product[place + right.len()] = carry as u64;
    }
    product.drain(..limbs);
    product.truncate(limbs + 1);
    product
}

fn scale(number: &mut Vec<u64>, factor: u64) {
    let mut carry = 0;
    for limb in number.iter_mut() {
        carry += u128::from(*limb) * u128::from(factor);
        *limb = carry as u64;
        carry >>= 64;
    }
    number.push(carry as u64);
}

fn divide(number: &mut [u64], divisor: u64) {
    let mut rest = 0;
    for limb in number.iter_mut().rev() {
        let part = rest << 64 | u128::from(*limb);
        *limb = (part / u128::from(divisor)) as u64;
        rest = part % u128::from(divisor);
    }
}

fn shift_right(number: &mut [u64], bits: u32) {
    let mut carry = 0;
    for limb in number.iter_mut().rev() {
        let part = u128::from(*limb) << 64 >> bits;
        *limb = (part >> 64) as u64 | carry;
        carry = part as u64;
    }
}

fn add(number: &mut Vec<u64>, addend: &[u64]) {
    let mut carry = false;
    for (place, limb) in number.iter_mut().enumerate() {
        let (sum, over) = limb.overflowing_add(addend.get(place).copied().unwrap_or(0));
        let (sum, again) = sum.overflowing_add(u64::from(carry));
        (*limb, carry) = (sum, over || again);
    }
    number.push(u64::from(carry));
}

/// Takes away what is not larger.
fn subtract(number: &mut [u64], subtrahend: &[u64]) {
    let mut borrow = false;
    for (place, limb) in number.iter_mut().enumerate() {
        let (difference, under) = limb.overflowing_sub(subtrahend.get(place).copied().unwrap_or(0));
        let (difference, again) = difference.overflowing_sub(u64::from(borrow));
        (*limb, borrow) = (difference, under || again);
    }
}

/// Compares rows that may differ in length.
fn compare(left: &[u64], right: &[u64]) -> Ordering {
    let limb = |number: &[u64], place: usize| number.get(place).copied().unwrap_or(0);
    let places = (0..left.len().max(right.len())).rev();
    places
        .map(|place| limb(left, place).cmp(&limb(right, place)))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enclosures_hold_the_exponential_and_shrink() {
        for (x, numerator, denominator) in
            [(0, 1, 1), (1, 1, 1), (3, 5, 2), (7, 1, 2), (4_000_000, 1 << 20, 1), (1 << 58, 1 << 56, 1)]
        {
            let sigma = Sigma::ratio(numerator, denominator).unwrap();
            let t = x as f64 * denominator as f64 / numerator as f64;
            let (low, high) = enclose(x, sigma, 1, 1);
            assert!(high - low <= 2, "{x} {sigma:?}");
            let known = (-t * t / 2.0).exp();
            let middle = (low + high) as f64 / 2.0 / f64::powi(2.0, 64);
            assert!((middle - known).abs() <= 4e-16 * known + 1.2e-19, "{x} {sigma:?}: {middle} {known}");
            for limbs in 2..9 {
                let (coarse, fine) = (exponential(x, sigma, limbs), exponential(x, sigma, limbs + 1));
                assert!(fine.error < 1 << 20);
                let mut reached = coarse.value.clone();
                add(&mut reached, &[coarse.error]);
                reached.insert(0, 0);
                assert_ne!(compare(&fine.value, &reached), Ordering::Greater);
                let mut reached = fine.value.clone();
                add(&mut reached, &[fine.error]);
                let mut floor = coarse.value.clone();
                match compare(&floor, &[coarse.error]) {
                    Ordering::Less => floor.fill(0),
                    _ => subtract(&mut floor, &[coarse.error]),
                }
                floor.insert(0, 0);
                assert_ne!(compare(&reached, &floor), Ordering::Less);
            }
        }
    }

    #[test]
    fn a_hundred_digits_of_exp_minus_one_half_are_right() {
        // exp(-1/2) = 0.6065306597126334236037995349911804534419181354871869556828921587350565194137484239986476...
        let root = exponential(1, Sigma::whole(1).unwrap(), 6);
        let mut digits = String::new();
        let mut rest = root.value;
        for _ in 0..80 {
            rest.truncate(6);
            scale(&mut rest, 10);
            digits.push_str(&rest[6].to_string());
        }
        assert_eq!(
            &digits,
            "60653065971263342360379953499118045344191813548718695568289215873505651941374842"
        );
    }
}
