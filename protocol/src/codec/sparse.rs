//! The largest points alone: for each, how many zeros come before it and its value, both as numbers of 7 bits a byte.

use super::PackedError;
use super::packed::{unzigzag, zigzag};

/// Bytes of a gap and of a value, at most.
const NUMBER_MAX: u64 = 5;

/// How many points are kept of `len`.
fn kept(len: usize, fraction: f64) -> usize {
    ((fraction * len as f64).ceil() as usize).clamp(1, len.max(1))
}

pub(super) fn bytes_max(len: usize, fraction: f64) -> u64 {
    2 * NUMBER_MAX * kept(len, fraction) as u64
}

/// The largest points; of equals the first ones. All others are zero.
pub(super) fn largest(points: &[i32], fraction: f64) -> Vec<i32> {
    let kept = kept(points.len(), fraction);
    if kept >= points.len() {
        return points.to_vec();
    }
    let mut magnitudes: Vec<u32> = points.iter().map(|point| point.unsigned_abs()).collect();
    let (above, threshold, _) = magnitudes.select_nth_unstable_by(kept - 1, |a, b| b.cmp(a));
    let threshold = *threshold;
    let mut equals = kept - above.iter().filter(|magnitude| **magnitude > threshold).count();
    let keep = |point: &i32| {
        let magnitude = point.unsigned_abs();
        let equal = magnitude == threshold && equals > 0;
        equals -= usize::from(equal);
        if magnitude > threshold || equal { *point } else { 0 }
    };
    points.iter().map(keep).collect()
}

/// `None` when more points are not zero than may be.
pub(super) fn pack(points: &[i32], fraction: f64) -> Option<Vec<u8>> {
    let (mut bytes, mut gap, mut left) = (Vec::new(), 0u32, kept(points.len(), fraction));
    for point in points {
        if *point == 0 {
            gap = gap.checked_add(1)?;
            continue;
        }
        left = left.checked_sub(1)?;
        write(gap, &mut bytes);
        write(zigzag(*point), &mut bytes);
        gap = 0;
    }
    Some(bytes)
}

pub(super) fn unpack(mut bytes: &[u8], len: usize, fraction: f64) -> Result<Vec<i32>, PackedError> {
    let mut points = vec![0; len];
    let (mut place, mut left) = (0usize, kept(len, fraction));
    while !bytes.is_empty() {
        left = left.checked_sub(1).ok_or(PackedError::Length)?;
        let gap = read(&mut bytes)? as usize;
        let value = unzigzag(read(&mut bytes)?);
        place = place.checked_add(gap).ok_or(PackedError::Length)?;
        let point = points.get_mut(place).ok_or(PackedError::Length)?;
        if value == 0 {
            return Err(PackedError::Malformed);
        }
        *point = value;
        place += 1;
    }
    Ok(points)
}

fn write(mut number: u32, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn read(bytes: &mut &[u8]) -> Result<u32, PackedError> {
    let mut number = 0u64;
    for index in 0..NUMBER_MAX {
        let (byte, rest) = bytes.split_first().ok_or(PackedError::Length)?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << (7 * index);
        if *byte < 0x80 {
            // A last byte of zero says nothing.
            let longer_than_needed = *byte == 0 && index > 0;
            let number = u32::try_from(number).ok().filter(|_| !longer_than_needed);
            return number.ok_or(PackedError::Malformed);
        }
    }
    Err(PackedError::Malformed)
}
