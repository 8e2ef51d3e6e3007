//! L2 clipping of one client's update, as a whole or layer by layer.
//!
//! McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models" (2018), section 2. The
//! norm is taken in f64 whatever the precision of the update; a value that is not finite is refused before any
//! arithmetic, since `min(1, C / NaN)` would let it through.

use crate::kernels;
use crate::layers::split;

/// The largest L2 norm an update may have: finite and greater than zero.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct NormBound(f64);

/// A norm bound that is not a positive finite number.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("a norm bound must lie between 1e-30 and 1e30, not {0}; give the largest L2 norm an update may have")]
pub struct NormBoundError(f64);

impl NormBound {
    /// A bound of `norm_max` (L2, in units of the parameters), between 1e-30 and 1e30.
    pub fn new(norm_max: f64) -> Result<Self, NormBoundError> {
        if (1e-30..=1e30).contains(&norm_max) { Ok(Self(norm_max)) } else { Err(NormBoundError(norm_max)) }
    }

    /// The bound as a number.
    pub fn value(self) -> f64 {
        self.0
    }
}

/// An update holds NaN or an infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("coordinate {index} of the update is not a finite number; the update is refused")]
pub struct NotFinite {
    /// The first offending coordinate.
    pub index: usize,
}

/// An update whose L2 norm is at most its bound. Made by [`clip`] and [`crate::Lattice::clip`] only.
///
/// `Debug` is absent on purpose: the values are one site's update.
#[expect(missing_debug_implementations, reason = "what it holds is never printed")]
pub struct Clipped {
    values: Vec<f32>,
    /// By what each layer is scaled; one for an update that was clipped as a whole.
    factors: Vec<f64>,
    norm: f64,
    bound: NormBound,
}

/// Scales `delta` down so that its L2 norm is at most `bound`; a shorter update is left as it is.
///
/// # Errors
/// [`NotFinite`] when a coordinate is NaN or infinite; nothing of the update is used then.
pub fn clip(delta: Vec<f32>, bound: NormBound) -> Result<Clipped, NotFinite> {
    let lengths = [delta.len()];
    clip_layers(delta, bound, &lengths)
}

/// Scales every layer of `delta` down on its own, so that its L2 norm is at most `bound` over the root of the number of layers;
/// a shorter layer is left as it is. `lengths` are the coordinates of each layer, in order, and sum to the length of `delta`.
///
/// # Errors
/// [`NotFinite`] when a coordinate is NaN or infinite; nothing of the update is used then.
pub(crate) fn clip_layers(
    delta: Vec<f32>,
    bound: NormBound,
    lengths: &[usize],
) -> Result<Clipped, NotFinite> {
    let squares = split(&delta, lengths).map(kernels::square_sum).collect();
    Clipped::of(delta, squares, bound)
}

/// [`clip_layers`] of what training changed: `trained` less `start`, which is as long, in the memory of `trained`.
///
/// # Errors
/// [`NotFinite`] when a coordinate of the difference is NaN or infinite.
pub(crate) fn clip_difference(
    mut trained: Vec<f32>,
    start: &[f32],
    bound: NormBound,
    lengths: &[usize],
) -> Result<Clipped, NotFinite> {
    assert_eq!(trained.len(), start.len(), "what was trained is as long as what it was trained from");
    let (mut values, mut squares) = (&mut trained[..], Vec::with_capacity(lengths.len()));
    for start in split(start, lengths) {
        let (layer, rest) = values.split_at_mut(start.len());
        squares.push(kernels::subtract(layer, start));
        values = rest;
    }
    Clipped::of(trained, squares, bound)
}

/// By what a vector of this norm is scaled.
fn factor(norm: f64, bound: f64) -> f64 {
    if norm > bound { bound / norm } else { 1.0 }
}

impl Clipped {
    /// A delta whose layers have these squared norms.
    fn of(values: Vec<f32>, squares: Vec<f64>, bound: NormBound) -> Result<Self, NotFinite> {
        let norm = squares.iter().sum::<f64>().sqrt();
        // A square is finite exactly when all values are: that of the largest f32 is far below the largest f64.
        if !norm.is_finite()
            && let Some(index) = kernels::first_not_finite(&values)
        {
            return Err(NotFinite { index });
        }
        let share = bound.0 / (squares.len() as f64).sqrt();
        let factors = squares.into_iter().map(|square| factor(square.sqrt(), share)).collect();
        Ok(Self { values, factors, norm, bound })
    }

    /// The L2 norm before clipping. Private to the site: it describes one site's data.
    pub fn norm_before(&self) -> f64 {
        self.norm
    }

    /// Whether the update, or a layer of it, was longer than its bound.
    pub fn was_scaled(&self) -> bool {
        self.factors.iter().any(|factor| *factor < 1.0)
    }

    /// The bound it was clipped to, as a whole.
    pub fn bound(&self) -> NormBound {
        self.bound
    }

    /// Number of coordinates.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are no coordinates.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Gives the memory back, with the values as they came to [`clip`]; for callers who clip one vector after another.
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }

    pub(crate) fn parts(&self) -> (&[f32], &[f64]) {
        (&self.values, &self.factors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_update_is_left_alone_and_a_long_one_is_scaled() {
        let bound = NormBound::new(5.0).unwrap();
        assert!(!clip(vec![3.0, 4.0], bound).unwrap().was_scaled());
        let long = clip(vec![30.0, 40.0], bound).unwrap();
        assert_eq!((long.norm_before(), long.parts().1), (50.0, &[0.1][..]));
    }

    #[test]
    fn a_long_layer_does_not_shorten_another() {
        let bound = NormBound::new(5.0 * 2f64.sqrt()).unwrap();
        let clipped = clip_layers(vec![30.0, 40.0, 1.0], bound, &[2, 1]).unwrap();
        assert!((clipped.parts().1[0] - 0.1).abs() < 1e-15 && clipped.parts().1[1] == 1.0);
        assert!(clipped.was_scaled() && !clip_layers(vec![5.0, 5.0], bound, &[1, 1]).unwrap().was_scaled());
        assert!(clip_layers(vec![1.0, f32::NAN], bound, &[1, 1]).is_err());
    }

    #[test]
    fn a_difference_is_clipped_as_if_it_had_been_taken_before() {
        let (trained, start) = (vec![1.5, -2.0, 9.0, 0.25], [0.5, 2.0, -3.0, 0.25]);
        let delta: Vec<f32> = trained.iter().zip(&start).map(|(new, old)| new - old).collect();
        let bound = NormBound::new(2.0).unwrap();
        for lengths in [&[4][..], &[1, 3]] {
            let fused = clip_difference(trained.clone(), &start, bound, lengths).unwrap();
            let plain = clip_layers(delta.clone(), bound, lengths).unwrap();
            assert_eq!((fused.parts(), fused.norm_before()), (plain.parts(), plain.norm_before()));
        }
        let refused = clip_difference(vec![0.0, f32::MAX], &[0.0, f32::MIN], bound, &[1, 1]);
        assert_eq!(refused.err(), Some(NotFinite { index: 1 }));
    }

    #[test]
    fn the_largest_floats_do_not_overflow_the_norm() {
        let long = clip(vec![f32::MAX; 1 << 12], NormBound::new(1.0).unwrap()).unwrap();
        assert!(long.norm_before().is_finite());
    }

    #[test]
    fn a_value_that_is_not_finite_is_named_by_its_place() {
        let bound = NormBound::new(1.0).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(clip(vec![0.0, bad], bound).err(), Some(NotFinite { index: 1 }));
        }
    }

    #[test]
    fn a_bound_is_positive_and_finite() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-300] {
            assert!(NormBound::new(bad).is_err(), "{bad}");
        }
    }
}
