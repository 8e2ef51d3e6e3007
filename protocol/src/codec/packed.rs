//! All points, in as many bits as the largest of their block needs: a byte with the number of bits, then the points, the lowest bit
//! first, positive and negative ones in turn (0, -1, 1, -2 ...), filled up to a whole byte with zeros.

use super::PackedError;

/// Points that share a width.
const BLOCK: usize = 1024;

pub(super) fn bytes_max(len: usize) -> u64 {
    4 * len as u64 + len.div_ceil(BLOCK) as u64
}

/// Small magnitudes become small numbers.
pub(super) fn zigzag(point: i32) -> u32 {
    ((point << 1) ^ (point >> 31)).cast_unsigned()
}

pub(super) fn unzigzag(number: u32) -> i32 {
    (number >> 1).cast_signed() ^ -((number & 1).cast_signed())
}

fn width(block: &[i32]) -> u32 {
    u32::BITS - block.iter().fold(0, |all, point| all | zigzag(*point)).leading_zeros()
}

pub(super) fn pack(points: &[i32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(points.len() * 3);
    for block in points.chunks(BLOCK) {
        let width = width(block);
        bytes.push(width as u8);
        let (mut pending, mut count) = (0u64, 0);
        for point in block {
            pending |= u64::from(zigzag(*point)) << count;
            count += width;
            while count >= 8 {
                bytes.push(pending as u8);
                pending >>= 8;
                count -= 8;
            }
        }
        if count > 0 {
            bytes.push(pending as u8);
        }
    }
    bytes
}

pub(super) fn unpack(mut bytes: &[u8], len: usize) -> Result<Vec<i32>, PackedError> {
    let mut points = Vec::new();
    while points.len() < len {
        let count = BLOCK.min(len - points.len());
        let (bits, rest) = bytes.split_first().ok_or(PackedError::Length)?;
        let bits = u32::from(*bits);
        if bits > u32::BITS {
            return Err(PackedError::Malformed);
        }
        let size = (count * bits as usize).div_ceil(8);
        let (block, rest) = rest.split_at_checked(size).ok_or(PackedError::Length)?;
        let begin = points.len();
        let (mut pending, mut have, mut source) = (0u64, 0, block.iter());
        for _ in 0..count {
            while have < bits {
                pending |= u64::from(*source.next().ok_or(PackedError::Length)?) << have;
                have += 8;
            }
            let mask = (1u64 << bits) - 1;
            points.push(unzigzag((pending & mask) as u32));
            pending >>= bits;
            have -= bits;
        }
        // One form alone: the smallest width, and zeros behind the last point.
        if pending != 0 || width(&points[begin..]) != bits {
            return Err(PackedError::Malformed);
        }
        bytes = rest;
    }
    if bytes.is_empty() { Ok(points) } else { Err(PackedError::Length) }
}
