//! Numbers that look random and follow from a seed.

/// A number below `bound` that follows from `seed` alone (Steele, Lea, Flood 2014, SplitMix).
pub(crate) fn draw(seed: u64, bound: u64) -> u64 {
    let mixed = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ (mixed >> 31)) % bound
}
