//! Points as 8 bits each, with a power of two for each block of them.

use rand::RngCore;

use super::PackedError;

/// Points that share a power of two.
const BLOCK: usize = 1024;
/// The largest of 8 bits and a sign that mirrors.
const MOST: u32 = 127;
/// The largest power: 127 * 2^24 is the first multiple beyond every i32.
const SHIFT_MAX: u32 = 25;

/// Bytes of `len` points.
pub(super) fn bytes(len: usize) -> usize {
    len + len.div_ceil(BLOCK)
}

/// The smallest power with which a block's points fit.
fn shift(block: &[i32]) -> u32 {
    let largest = block.iter().map(|point| point.unsigned_abs()).max().unwrap_or(0);
    let fits = |shift: &u32| u64::from(MOST) << shift >= u64::from(largest);
    (0..SHIFT_MAX).find(fits).unwrap_or(SHIFT_MAX)
}

/// Each point rounded up or down with the probability that makes it right in the mean.
pub(super) fn by_chance(points: &[i32], chance: &mut impl RngCore) -> Vec<i32> {
    rounded(points, |rest, shift| u32::from((chance.next_u32() & ((1 << shift) - 1)) < rest))
}

/// Each point rounded towards zero.
pub(super) fn shorter(points: &[i32]) -> Vec<i32> {
    rounded(points, |_, _| 0)
}

fn rounded(points: &[i32], mut more: impl FnMut(u32, u32) -> u32) -> Vec<i32> {
    let mut rounded = Vec::with_capacity(points.len());
    for block in points.chunks(BLOCK) {
        let shift = shift(block);
        rounded.extend(block.iter().map(|point| {
            let magnitude = point.unsigned_abs();
            let whole = magnitude >> shift;
            let steps = whole + more(magnitude - (whole << shift), shift);
            // At most 127 * 2^25 in 64 bits; i32::MIN alone could be beyond.
            let value = i64::from(steps) << shift;
            i32::try_from(value * i64::from(point.signum())).unwrap_or(*point)
        }));
    }
    rounded
}

/// `None` when a point is no multiple of its block's power.
pub(super) fn pack(points: &[i32]) -> Option<Vec<u8>> {
    let mut packed = Vec::with_capacity(bytes(points.len()));
    for block in points.chunks(BLOCK) {
        let shift = shift(block);
        packed.push(shift as u8);
        for point in block {
            let steps = point >> shift;
            if steps << shift != *point {
                return None;
            }
            packed.extend(i8::try_from(steps).ok()?.to_le_bytes());
        }
    }
    Some(packed)
}

pub(super) fn unpack(packed: &[u8], len: usize) -> Result<Vec<i32>, PackedError> {
    if packed.len() != bytes(len) {
        return Err(PackedError::Length);
    }
    let mut points = Vec::with_capacity(len);
    for block in packed.chunks(1 + BLOCK) {
        let Some((power, steps)) = block.split_first() else { break };
        let power = u32::from(*power);
        if power > SHIFT_MAX {
            return Err(PackedError::Malformed);
        }
        let begin = points.len();
        for step in steps {
            let step = i32::from(step.cast_signed());
            let point = i32::try_from(i64::from(step) << power).map_err(|_| PackedError::Malformed)?;
            points.push(point);
        }
        // One form alone: the smallest power.
        if shift(&points[begin..]) != power {
            return Err(PackedError::Malformed);
        }
    }
    Ok(points)
}
