//! How a vector falls into layers: consecutive parts of given lengths, one for each tensor of a model.
//!
//! It knows no names and no shapes, and it does not judge: lengths that do not fit the vector give short parts, and whoever
//! asks has compared the sums.

/// The parts of `values` in order, one for each of `lengths`; what lies beyond the last of them is in none.
pub(crate) fn split<'a, T>(values: &'a [T], lengths: &'a [usize]) -> impl Iterator<Item = &'a [T]> {
    let mut rest = values;
    lengths.iter().map(move |length| {
        let (layer, after) = rest.split_at((*length).min(rest.len()));
        rest = after;
        layer
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_one_another_and_a_short_vector_gives_short_parts() {
        let parts = |values: &[u8]| split(values, &[2, 0, 1]).map(<[u8]>::to_vec).collect::<Vec<_>>();
        assert_eq!(parts(&[1, 2, 3, 4]), [vec![1, 2], vec![], vec![3]]);
        assert_eq!(parts(&[1]), [vec![1], vec![], vec![]]);
    }
}
