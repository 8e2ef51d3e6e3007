//! Every codec before updates of every kind.

use privacy::{NormBound, clip};
use proptest::prelude::*;
use rand::RngCore;

use super::*;

const LOSSY: [UpdateCodec; 5] = [
    UpdateCodec::F16,
    UpdateCodec::Bf16,
    UpdateCodec::Int8,
    UpdateCodec::TopK { fraction: 0.1 },
    UpdateCodec::TopK { fraction: 1.0 },
];

fn lattice(dimension: usize) -> Lattice {
    Lattice::plan(NormBound::new(5.0).unwrap(), 20, 50, dimension).unwrap()
}

fn encoded(delta: Vec<f32>) -> Encoded {
    let lattice = lattice(delta.len());
    let clipped = clip(delta, lattice.bound()).unwrap();
    Encoded::encode(&clipped, lattice.weigh(10), &lattice).unwrap()
}

/// Deltas around the bound of 5, below it and above; long enough for two blocks at times.
fn deltas() -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![4 => -0.5f32..0.5, 1 => -20f32..20.0, 1 => Just(0.0), 1 => -1e-7f32..1e-7];
    prop_oneof![9 => prop::collection::vec(value.clone(), 1..60), 1 => prop::collection::vec(value, 1020..1100)]
}

/// How far a point may be from what became of it.
fn error_max(codec: UpdateCodec, point: i32, block_max: u32) -> f64 {
    let magnitude = f64::from(point.unsigned_abs());
    match codec {
        UpdateCodec::Exact | UpdateCodec::Packed => 0.0,
        // Towards zero in the worst case: one unit of the last significant bit.
        UpdateCodec::F16 => magnitude / 1024.0,
        UpdateCodec::Bf16 => magnitude / 128.0,
        UpdateCodec::Int8 => (f64::from(block_max) / 63.0).max(1.0),
        UpdateCodec::TopK { .. } => magnitude,
    }
}

proptest! {
    #[test]
    fn what_a_codec_gives_is_admissible_near_and_comes_back_from_its_bytes(delta in deltas(), number in 0u64..99) {
        let seed = Seed::from_number(number);
        let before = encoded(delta).points().to_vec();
        let lattice = lattice(before.len());
        for codec in LOSSY {
            let update = Encoded::admit(before.clone(), 10, &lattice).unwrap();
            let sent = codec.compress(update, &seed);
            prop_assert!(Encoded::admit(sent.points().to_vec(), 10, &lattice).is_ok(), "{:?}", codec);
            for (block, whole) in sent.points().chunks(1024).zip(before.chunks(1024)) {
                let most = whole.iter().map(|point| point.unsigned_abs()).max().unwrap();
                for (sent, point) in block.iter().zip(whole) {
                    let error = (f64::from(*sent) - f64::from(*point)).abs();
                    prop_assert!(error <= error_max(codec, *point, most), "{:?}: {} became {}", codec, point, sent);
                }
            }
            if let Some(bytes) = codec.pack(sent.points()) {
                prop_assert!(bytes.len() as u64 <= codec.bytes_max(before.len()));
                prop_assert_eq!(codec.unpack(&bytes, before.len()).unwrap(), sent.points());
            }
            let again = codec.compress(Encoded::admit(before.clone(), 10, &lattice).unwrap(), &seed);
            prop_assert_eq!(again.points(), sent.points(), "the same seed gives the same points");
        }
    }

    #[test]
    fn packed_points_come_back_whatever_they_are(points in prop::collection::vec(any::<i32>(), 0..1100), shift in 0u32..32) {
        let points: Vec<i32> = points.into_iter().map(|point| point >> shift).collect();
        let bytes = packed::pack(&points);
        prop_assert!(bytes.len() as u64 <= UpdateCodec::Packed.bytes_max(points.len()));
        prop_assert_eq!(packed::unpack(&bytes, points.len()).unwrap(), points);
    }

    #[test]
    fn any_bytes_are_refused_or_are_the_one_form_of_their_points(
        bytes in prop::collection::vec(any::<u8>(), 0..80), len in 0usize..40,
    ) {
        for codec in [&LOSSY[..], &[UpdateCodec::Packed, UpdateCodec::Exact]].concat() {
            let Ok(points) = codec.unpack(&bytes, len) else { continue };
            prop_assert_eq!(points.len(), len);
            let packed = match codec {
                UpdateCodec::F16 => Float::HALF.pack(&points),
                UpdateCodec::Bf16 => Float::BRAIN.pack(&points),
                UpdateCodec::Int8 => integer::pack(&points),
                UpdateCodec::TopK { fraction } => sparse::pack(&points, fraction),
                UpdateCodec::Packed => Some(packed::pack(&points)),
                UpdateCodec::Exact => None,
            };
            prop_assert_eq!(packed, Some(bytes.clone()), "{:?}", codec);
        }
    }

    #[test]
    fn truncated_and_longer_bytes_are_refused(delta in deltas()) {
        let before = encoded(delta);
        let len = before.points().len();
        for codec in [UpdateCodec::Packed, UpdateCodec::F16, UpdateCodec::Bf16, UpdateCodec::Int8] {
            let sent = codec.compress(Encoded::admit(before.points().to_vec(), 10, &lattice(len)).unwrap(), &Seed::from_number(1));
            let Some(bytes) = codec.pack(sent.points()) else { continue };
            prop_assert!(codec.unpack(&bytes[..bytes.len() - 1], len).is_err());
            prop_assert!(codec.unpack(&[&bytes[..], &[0]].concat(), len).is_err());
        }
    }
}

#[test]
fn every_form_of_two_bytes_is_refused_or_comes_back() {
    for float in [Float::HALF, Float::BRAIN] {
        let mut points = 0;
        for form in 0..=u16::MAX {
            if let Ok(point) = float.unpack(&form.to_le_bytes(), 1) {
                assert_eq!(float.pack(&point).unwrap(), form.to_le_bytes());
                assert_eq!(float.nearest(&point), point);
                points += 1;
            }
        }
        assert!(points > 5_000, "{points}");
        for power in 0..=30 {
            assert!(float.pack(&[1 << power, -(1 << power)]).is_some(), "every power of two has a form");
        }
    }
}

#[test]
fn chance_rounds_right_in_the_mean() {
    let mut points = vec![1_000; 200_000];
    // A step of 2^8: 1,000 lies between three and four of them.
    points.chunks_mut(1024).for_each(|block| block[0] = 127 << 8);
    let rounded = integer::by_chance(&points, &mut Seed::from_number(3).generator());
    let few: Vec<i32> = rounded.into_iter().filter(|point| *point < 2_000).collect();
    assert!(few.iter().all(|point| [768, 1024].contains(point)));
    let mean = few.iter().map(|point| f64::from(*point)).sum::<f64>() / few.len() as f64;
    // The mean's standard deviation is 75 / sqrt(200,000) = 0.25.
    assert!((mean - 1_000.0).abs() < 1.5, "{mean}");
}

#[test]
fn of_equals_the_first_points_are_kept() {
    assert_eq!(sparse::largest(&[3, -5, 3, 3, 1], 0.6), [3, -5, 3, 0, 0]);
    assert_eq!(sparse::largest(&[0, 0, 0], 0.1), [0, 0, 0]);
    let bytes = sparse::pack(&[0, -5, 0, 0, 300], 0.4).unwrap();
    assert_eq!(bytes, [1, 9, 2, 0xd8, 0x04]);
    assert_eq!(sparse::unpack(&bytes, 5, 0.4).unwrap(), [0, -5, 0, 0, 300]);
    assert_eq!(sparse::unpack(&bytes, 5, 0.2), Err(PackedError::Length), "more points than the plan keeps");
    assert_eq!(sparse::unpack(&bytes, 4, 0.4), Err(PackedError::Length), "a place beyond the last");
    assert_eq!(sparse::unpack(&[0, 0], 5, 0.4), Err(PackedError::Malformed), "a zero that is said");
    assert_eq!(
        sparse::unpack(&[0x80, 0x00, 2], 5, 0.4),
        Err(PackedError::Malformed),
        "a gap that is too long"
    );
}

#[test]
fn a_long_update_takes_the_bytes_that_the_page_names() {
    let len = 200_000;
    let mut chance = Seed::from_number(5).generator();
    let mut uniform = || f64::from(chance.next_u32()) / f64::from(u32::MAX) - 0.5;
    // The sum of twelve is near enough to a Gaussian.
    let delta: Vec<f32> = (0..len).map(|_| (0..12).map(|_| uniform()).sum::<f64>() as f32).collect();
    let update = encoded(delta);
    let bytes_of = |codec: UpdateCodec| {
        let update = Encoded::admit(update.points().to_vec(), 10, update.lattice()).unwrap();
        let sent = codec.compress(update, &Seed::from_number(6));
        codec.pack(sent.points()).unwrap().len() as f64 / f64::from(len)
    };
    let packed = bytes_of(UpdateCodec::Packed);
    assert!((2.8..3.1).contains(&packed), "{packed}");
    assert_eq!(bytes_of(UpdateCodec::Bf16), 2.0);
    assert!((bytes_of(UpdateCodec::Int8) - 1.001).abs() < 1e-4);
    let sparse = bytes_of(UpdateCodec::TopK { fraction: 0.01 });
    assert!((0.04..0.06).contains(&sparse), "{sparse}");
}
