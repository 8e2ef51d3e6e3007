//! Every row goes to one client, and every client gets one.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn positive(value: f64) -> Positive {
    Positive::new(value).unwrap()
}

fn shards(per_client: usize) -> Partition {
    Partition::Shards { per_client: NonZeroUsize::new(per_client).unwrap() }
}

fn dirichlet(alpha: f64) -> Partition {
    Partition::Dirichlet { alpha: positive(alpha) }
}

/// `rows` rows of ten classes in turn.
fn ten_classes(rows: u32) -> Labels {
    Labels::Classes((0..rows).map(|row| row % 10).collect())
}

fn refused(labels: &Labels, how: &Partition, clients: usize) -> String {
    partition(labels, how, clients, Seed::from_number(1)).unwrap_err().to_string()
}

/// Classes that the average client sees.
fn classes_a_client(labels: &Labels, how: &Partition, clients: usize) -> f64 {
    let Labels::Classes(classes) = labels else { unreachable!() };
    let parts = partition(labels, how, clients, Seed::from_number(1)).unwrap();
    let seen = |part: &Vec<u32>| part.iter().map(|row| classes[*row as usize]).collect::<BTreeSet<_>>().len();
    parts.iter().map(|part| seen(part) as f64).sum::<f64>() / clients as f64
}

fn any_partition() -> impl Strategy<Value = Partition> {
    prop_oneof![
        Just(Partition::Iid),
        (1usize..4).prop_map(shards),
        (-4f64..3.0).prop_map(|power| dirichlet(10f64.powf(power))),
        (-4f64..3.0).prop_map(|power| Partition::QuantitySkew(Sizes::Alpha(positive(10f64.powf(power))))),
        (0.1f64..9.0).prop_map(|exponent| Partition::QuantitySkew(Sizes::Exponent(positive(exponent)))),
    ]
}

proptest! {
    #[test]
    fn every_row_has_one_client_and_every_client_a_row(
        classes in prop::collection::vec(0u32..7, 1..400), clients in 1usize..100, how in any_partition(), number: u64,
    ) {
        let labels = Labels::Classes(classes);
        match partition(&labels, &how, clients, Seed::from_number(number)) {
            Ok(parts) => {
                prop_assert_eq!(parts.len(), clients);
                prop_assert!(parts.iter().all(|part| !part.is_empty() && part.is_sorted()));
                let mut all = parts.concat();
                all.sort_unstable();
                prop_assert!(all.into_iter().eq((0u32..).take(labels.len())));
            }
            Err(PartitionError::TooManyClients { .. }) => prop_assert!(clients > labels.len()),
            Err(PartitionError::TooManyShards { per_client, .. }) => {
                prop_assert!(clients * per_client > labels.len());
            }
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        }
    }
}

#[test]
fn the_seed_decides_and_nothing_else() {
    let labels = ten_classes(500);
    for how in
        [Partition::Iid, shards(2), dirichlet(0.5), Partition::QuantitySkew(Sizes::Exponent(positive(1.0)))]
    {
        let with = |number| partition(&labels, &how, 20, Seed::from_number(number)).unwrap();
        assert_eq!(with(3), with(3), "{how:?}");
        assert_ne!(with(3), with(4), "{how:?}");
    }
}

#[test]
fn iid_parts_differ_by_one_row_at_most() {
    let parts = partition(&ten_classes(103), &Partition::Iid, 10, Seed::from_number(1)).unwrap();
    assert!(parts.iter().all(|part| (10..=11).contains(&part.len())));
    assert!(classes_a_client(&ten_classes(10_000), &Partition::Iid, 10) > 9.9);
}

#[test]
fn two_shards_show_a_client_few_classes() {
    // 100 clients of 600 rows, as in the paper: 200 shards of 300, each within one of ten classes of 6,000.
    let labels = ten_classes(60_000);
    let classes = classes_a_client(&labels, &shards(2), 100);
    assert!((1.7..=2.0).contains(&classes), "{classes}");
    let parts = partition(&labels, &shards(2), 100, Seed::from_number(1)).unwrap();
    assert!(parts.iter().all(|part| part.len() == 600));
}

#[test]
fn a_smaller_concentration_skews_labels_more() {
    let labels = ten_classes(10_000);
    let seen = |alpha| classes_a_client(&labels, &dirichlet(alpha), 50);
    let (extreme, middle, even) = (seen(0.01), seen(0.5), seen(1000.0));
    assert!(extreme < 2.5 && (5.0..9.5).contains(&middle) && even > 9.99, "{extreme} {middle} {even}");
}

#[test]
fn shares_have_the_mean_and_variance_of_the_dirichlet_distribution() {
    let (alpha, count, draws) = (0.3, 5, 20_000);
    let mut rng = Seed::from_number(9).generator();
    let firsts: Vec<f64> = (0..draws).map(|_| draw_dirichlet(alpha, count, &mut rng)[0]).collect();
    let mean = firsts.iter().sum::<f64>() / f64::from(draws);
    let variance = firsts.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / f64::from(draws);
    // Of a component of Dirichlet(a, ..., a) with k components: 1/k and (1/k)(1 - 1/k) / (k a + 1).
    assert!((mean - 0.2).abs() < 0.01, "{mean}");
    assert!((variance - 0.16 / 2.5).abs() < 0.004, "{variance}");
}

#[test]
fn no_concentration_is_too_small_or_too_large_to_draw() {
    let mut rng = Seed::from_number(9).generator();
    for alpha in [1e-300, 1e-6, 1.0, 1e12, 1e300] {
        let shares = draw_dirichlet(alpha, 1000, &mut rng);
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{alpha}");
    }
}

#[test]
fn a_power_law_gives_its_largest_client_the_promised_part() {
    let how = Partition::QuantitySkew(Sizes::Exponent(positive(1.0)));
    let parts = partition(&ten_classes(10_000), &how, 4, Seed::from_number(1)).unwrap();
    let mut sizes: Vec<usize> = parts.iter().map(Vec::len).collect();
    sizes.sort_unstable();
    // 9,996 rows in parts of 12/25, 6/25, 4/25 and 3/25, and one row each.
    for (size, part) in sizes.iter().zip([3.0, 4.0, 6.0, 12.0]) {
        assert!((*size as f64 - 1.0 - part / 25.0 * 9996.0).abs() <= 4.0, "{sizes:?}");
    }
}

#[test]
fn a_hundred_thousand_clients_are_no_burden() {
    let labels = ten_classes(400_000);
    for how in
        [Partition::Iid, shards(2), dirichlet(0.1), Partition::QuantitySkew(Sizes::Alpha(positive(0.5)))]
    {
        let parts = partition(&labels, &how, 100_000, Seed::from_number(1)).unwrap();
        assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), 400_000);
    }
}

#[test]
fn what_cannot_be_divided_is_refused_with_the_reason() {
    let (three, real) = (ten_classes(3), Labels::Real(vec![0.0; 3]));
    assert_eq!(refused(&three, &Partition::Iid, 0), "0 clients hold nothing; give at least 1");
    assert_eq!(refused(&three, &Partition::Iid, 4), "4 clients cannot share 3 rows; give at most 3 clients");
    let message = "2 clients with 2 shards each need more shards than the 3 rows; lower either";
    assert_eq!(refused(&three, &shards(2), 2), message);
    let message =
        "`dirichlet` divides by class, but the labels are real numbers; take `iid` or `quantity_skew`";
    assert_eq!(refused(&real, &dirichlet(0.5), 2), message);
    let natural = Partition::Natural(IdSource::Column("site".into()));
    let message = "a natural partition follows the ids in the data; load the data with its ids instead";
    assert_eq!(refused(&three, &natural, 2), message);
}

#[test]
fn a_partition_reads_as_it_is_typed() {
    #[derive(Deserialize)]
    struct Typed {
        partition: Partition,
    }
    let read =
        |typed: &str| toml::from_str::<Typed>(&format!("partition = {typed}")).map(|typed| typed.partition);
    assert_eq!(read("'iid'"), Ok(Partition::Iid));
    assert_eq!(read("{ shards = { per_client = 2 } }"), Ok(shards(2)));
    assert_eq!(read("{ dirichlet = { alpha = 0.5 } }"), Ok(dirichlet(0.5)));
    let alpha = Partition::QuantitySkew(Sizes::Alpha(positive(2.0)));
    assert_eq!(read("{ quantity_skew = { alpha = 2.0 } }"), Ok(alpha));
    let column = Partition::Natural(IdSource::Column("site".into()));
    assert_eq!(read("{ natural = { column = 'site' } }"), Ok(column));
    let files = read("{ natural = { files = { train = 'w' } } }").unwrap();
    let resolved = files.resolved(Path::new("/data"), &|_| None).unwrap();
    assert_eq!(resolved, read("{ natural = { files = { train = '/data/w' } } }").unwrap());
    for wrong in [
        "{ dirichlet = { alpha = 0.0 } }",
        "{ shards = { per_client = 0 } }",
        "{ dirichlet = { beta = 1.0 } }",
    ] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}
