//! The flat lattice, then the layered one.

use proptest::prelude::*;

use super::*;
use crate::Sum;
use crate::accounting::gaussian::per_layer;

fn lattice(norm_max: f64, clients_max: u64, weight_max: u32, dimension: usize) -> Lattice {
    Lattice::plan(NormBound::new(norm_max).unwrap(), clients_max, weight_max, dimension).unwrap()
}

#[test]
fn the_reach_shrinks_so_that_the_largest_cohort_cannot_overflow() {
    for (bits, weight_max) in
        (0..=40).flat_map(|bits| [1, 1000, 1 << 16].map(|weight_max| (bits, weight_max)))
    {
        let lattice = lattice(1.0, 1 << bits, weight_max, 1);
        assert!((1i128 << bits) * i128::from(weight_max) * i128::from(lattice.range()) <= 1 << SUM_BITS);
    }
    assert_eq!(lattice(1.0, 1000, 1000, 4).range(), 1 << 30);
}

#[test]
fn a_plan_without_a_lattice_is_refused_with_the_number_at_fault() {
    let bound = NormBound::new(1.0).unwrap();
    assert_eq!(Lattice::plan(bound, 0, 1, 4).err(), Some(LatticeError::Cohort(0)));
    assert_eq!(Lattice::plan(bound, 1, 0, 4).err(), Some(LatticeError::WeightMax(0)));
    assert!(matches!(Lattice::plan(bound, 1 << 40, 1 << 20, 100), Err(LatticeError::Coarse { .. })));
}

#[test]
fn adversarial_vectors_stay_within_the_integer_norm() {
    let alternating: Vec<f32> = (0..4096).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
    let cases =
        [vec![f32::MAX; 4096], vec![1e-45; 4096], alternating, vec![f32::MIN_POSITIVE; 1], vec![-3.0]];
    for values in cases {
        let lattice = lattice(0.5, 1000, 7, values.len());
        for weight in [1, 3, 7, 9] {
            let clipped = clip(values.clone(), lattice.bound()).unwrap();
            let encoded = Encoded::encode(&clipped, lattice.weigh(weight), &lattice).unwrap();
            let weight = encoded.weight().value();
            assert!(Encoded::admit(encoded.into_points(), weight, &lattice).is_ok());
        }
    }
}

#[test]
fn every_way_to_be_inadmissible_has_its_own_name() {
    let lattice = lattice(1.0, 10, 10, 2);
    let why = |points: Vec<i32>, weight| Encoded::admit(points, weight, &lattice).err().unwrap();
    assert_eq!(why(vec![0], 1), Inadmissible::Shape { expected: 2, found: 1 });
    assert_eq!(why(vec![0, 0], 0), Inadmissible::Weight { weight_max: 10, found: 0 });
    assert_eq!(why(vec![0, 0], 11), Inadmissible::Weight { weight_max: 10, found: 11 });
    assert!(matches!(why(vec![0, i32::MIN], 1), Inadmissible::Range { index: 1, .. }));
    assert_eq!(why(vec![1 << 30, 1], 1), Inadmissible::Norm);
}

#[test]
fn the_bits_of_a_positive_nan_or_infinity_are_out_of_range() {
    let lattice = lattice(1.0, 10, 1, 1);
    for bad in [f32::NAN, f32::INFINITY] {
        let refused = Encoded::admit(vec![bad.to_bits() as i32], 1, &lattice);
        assert!(matches!(refused.err(), Some(Inadmissible::Range { .. })), "{bad}");
    }
}

proptest! {
    #[test]
    fn what_a_client_encodes_a_server_admits(
        values in prop::collection::vec(-1e3f32..1e3, 1..64), weight in 1u64..200, norm_max in 1e-3f64..1e4,
    ) {
        let lattice = lattice(norm_max, 100, 100, values.len());
        let clipped = clip(values.clone(), lattice.bound()).unwrap();
        let encoded = Encoded::encode(&clipped, lattice.weigh(weight), &lattice).unwrap();
        let weight = encoded.weight().value();
        let admitted = Encoded::admit(encoded.into_points(), weight, &lattice);
        prop_assert!(admitted.is_ok());
        let scale = clipped.parts().1[0];
        for (point, value) in admitted.unwrap().points().iter().zip(&values) {
            let off = f64::from(*point) * lattice.step() - f64::from(*value) * scale;
            prop_assert!(off.abs() <= lattice.step() + norm_max * 1e-5, "{off}");
        }
    }
}

fn layered(norm_max: f64, weight_max: u32, lengths: &[usize]) -> Lattice {
    Lattice::layered(NormBound::new(norm_max).unwrap(), 1000, weight_max, lengths).unwrap()
}

fn encoded(values: Vec<f32>, weight: u64, lattice: &Lattice) -> Encoded {
    Encoded::encode(&lattice.clip(values).unwrap(), lattice.weigh(weight), lattice).unwrap()
}

#[test]
fn the_squares_of_the_shares_sum_to_at_most_that_of_the_whole() {
    for count in [1usize, 2, 3, 7, 10, 12, 100, 1001] {
        let lattice = layered(1.0, 7, &vec![3; count]);
        let (share, range) = (lattice.layer_range() as u128, lattice.range() as u128);
        let layers = count as u128;
        assert!(layers * share * share <= range * range && layers * (share + 1).pow(2) > range * range);
        let sensitivity = u128::from(lattice.sensitivity());
        assert!(sensitivity.pow(2) >= layers * (7 * share).pow(2), "{count} layers move a sum farther");
        assert!((sensitivity - 1).pow(2) < layers * (7 * share).pow(2) && sensitivity <= 7 * range);
    }
}

#[test]
fn the_noise_of_a_layered_sum_is_worth_the_multiplier_that_was_asked_for() {
    for count in [1usize, 2, 3, 5, 8, 17, 1000] {
        for multiplier in [1e-3, 0.3, 1.0, 4.7, 100.0] {
            let lattice = layered(1.0, 3, &vec![2; count]);
            let sigma = crate::noise::Sigma::covering(multiplier, lattice.sensitivity()).unwrap().value();
            let layer = (3.0 * f64::from(lattice.layer_range()), sigma);
            let worth = per_layer(&vec![layer; count]).unwrap();
            // `per_layer` itself rounds down by 1e-12.
            assert!(worth >= multiplier * (1.0 - 2e-12), "{count} layers: {worth} for {multiplier}");
            assert!(worth <= multiplier * 1.001, "{count} layers: {worth} for {multiplier}");
        }
    }
}

#[test]
fn adversarial_vectors_stay_within_every_layer() {
    let lengths = [1, 0, 4000, 2, 93];
    let lattice = layered(0.5, 7, &lengths);
    let alternating: Vec<f32> = (0..4096).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
    let (mut spike, mut last) = (vec![0.0; 4096], vec![1e-45; 4096]);
    (spike[0], last[4095]) = (f32::MAX, -f32::MAX);
    for values in
        [vec![f32::MAX; 4096], vec![1e-45; 4096], vec![f32::MIN_POSITIVE; 4096], alternating, spike, last]
    {
        for weight in [1, 7, 9] {
            let update = encoded(values.clone(), weight, &lattice);
            let most = i128::from(lattice.layer_range()).pow(2);
            for layer in split(update.points(), &lengths) {
                assert!(layer.iter().map(|point| i128::from(*point).pow(2)).sum::<i128>() <= most);
            }
            let weight = update.weight().value();
            assert!(Encoded::admit(update.into_points(), weight, &lattice).is_ok());
        }
    }
}

#[test]
fn a_layer_with_the_norm_of_the_whole_is_refused_and_named() {
    let lattice = layered(1.0, 1, &[2, 2]);
    let whole = lattice.range() - 1;
    let flat = Lattice::plan(lattice.bound(), 1000, 1, 4).unwrap();
    assert!(Encoded::admit(vec![0, 0, whole, 0], 1, &flat).is_ok());
    let refused = Encoded::admit(vec![0, 0, whole, 0], 1, &lattice).err();
    assert_eq!(refused, Some(Inadmissible::LayerNorm { layer: 1 }));
    let share = lattice.layer_range();
    assert!(Encoded::admit(vec![share, 0, 0, share], 1, &lattice).is_ok());
    assert_eq!(
        Encoded::admit(vec![share, 1, 0, 0], 1, &lattice).err(),
        Some(Inadmissible::LayerNorm { layer: 0 })
    );
}

#[test]
fn one_layer_is_the_whole() {
    let values: Vec<f32> = (0..300).map(|i| (i as f32).sin() * 3.0).collect();
    let (one, flat) = (layered(2.0, 5, &[300]), lattice(2.0, 1000, 5, 300));
    assert_eq!((one.layer_range(), one.sensitivity()), (flat.range(), flat.sensitivity()));
    assert_eq!(encoded(values.clone(), 3, &one).points(), encoded(values, 3, &flat).points());
}

#[test]
fn layers_that_hold_nothing_or_leave_no_room_are_refused() {
    let bound = NormBound::new(1.0).unwrap();
    for lengths in [&[][..], &[0, 0]] {
        assert_eq!(Lattice::layered(bound, 10, 1, lengths).err(), Some(LatticeError::NoLayers));
    }
    // A reach of 2^12: 1024 layers have a share of 2^7 each, which is too little for 2^16 coordinates.
    let mut lengths = vec![1; 1024];
    lengths[5] = 1 << 16;
    let coarse = Lattice::layered(bound, 1 << 40, 1 << 10, &lengths).err();
    assert_eq!(coarse, Some(LatticeError::CoarseLayer { layer: 5, parameters: 1 << 16, points: 0.5 }));
}

#[test]
fn an_update_of_other_layers_is_foreign_and_one_clipped_otherwise_is_not_encoded() {
    let (here, there, flat) = (layered(1.0, 1, &[2, 2]), layered(1.0, 1, &[1, 3]), lattice(1.0, 1000, 1, 4));
    for other in [&there, &flat] {
        let refused = Sum::new(&here).add(&encoded(vec![0.1; 4], 1, other));
        assert_eq!(refused, Err(crate::SumError::Foreign));
    }
    assert!(Sum::new(&here).add(&encoded(vec![0.1; 4], 1, &layered(1.0, 1, &[2, 0, 2]))).is_ok());
    let whole = clip(vec![9.0; 4], here.bound()).unwrap();
    let refused = Encoded::encode(&whole, here.weigh(1), &here).err();
    assert_eq!(refused, Some(Inadmissible::Layers { expected: 2, found: 1 }));
}

proptest! {
    #[test]
    fn one_update_moves_every_layer_of_a_sum_by_its_share_at_most(
        layers in prop::collection::vec(prop::collection::vec(-1e3f32..1e3, 1..20), 1..6),
        weight in 1u64..30, norm_max in 1e-3f64..1e3,
    ) {
        let lengths: Vec<usize> = layers.iter().map(Vec::len).collect();
        let lattice = layered(norm_max, 20, &lengths);
        let values = layers.concat();
        let mut sum = Sum::new(&lattice);
        sum.add(&encoded(vec![1.0; values.len()], 3, &lattice)).unwrap();
        let before = sum.totals.clone();
        sum.add(&encoded(values, weight, &lattice)).unwrap();
        let moved: Vec<i64> = sum.totals.iter().zip(&before).map(|(after, before)| after - before).collect();
        let square = |part: &[i64]| part.iter().map(|by| i128::from(*by).pow(2)).sum::<i128>();
        let share = i128::from(lattice.layer_range()) * 20;
        for (moved, values) in split(&moved, &lengths).zip(&layers) {
            prop_assert!(square(moved) <= share * share);
            // What was short is left as it was, whatever the other layers are like.
            let norm = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
            if norm < norm_max / (lengths.len() as f64).sqrt() * 0.999 {
                let weight = f64::from(lattice.weigh(weight).value());
                for (by, value) in moved.iter().zip(values) {
                    let off = *by as f64 / weight * lattice.step() - f64::from(*value);
                    prop_assert!(off.abs() <= lattice.step(), "{off}");
                }
            }
        }
        prop_assert!(square(&moved) <= i128::from(lattice.sensitivity()).pow(2));
    }
}
