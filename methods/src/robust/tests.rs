//! Rules against values that were computed by hand, what a few corrupted updates can do to them, and plans that cannot be carried out.

use std::sync::Arc;

use protocol::Seed;
use rand::Rng;
use server::workflow::{AggregationRule, KeptUpdates, PreStep, Training, Workflow};
use server::{Given, Rule, Step};

use super::*;
use crate::Registry;

fn updates(values: &[&[i32]]) -> KeptUpdates {
    after(values, None)
}

fn after(values: &[&[i32]], previous: Option<Vec<f32>>) -> KeptUpdates {
    let values: Vec<Vec<i32>> = values.iter().map(|values| values.to_vec()).collect();
    let dimension = values[0].len();
    KeptUpdates::of(values, dimension, 0.5, previous, Seed::from_number(3))
}

fn rule(rule: impl Rule, corrupted: usize, settings: &str) -> Arc<dyn AggregationRule> {
    let given = Given { corrupted, updates: 100 };
    rule.plan(toml::from_str(settings).unwrap(), &given).unwrap()
}

fn step(step: impl Step, corrupted: usize, settings: &str) -> Box<dyn PreStep> {
    let given = Given { corrupted, updates: 100 };
    step.plan(toml::from_str(settings).unwrap(), &given).unwrap()
}

fn near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (one, other) in found.iter().zip(expected) {
        assert!((one - other).abs() < 1e-9 * other.abs().max(1.0), "{found:?} are not {expected:?}");
    }
}

const FIVE: [&[i32]; 5] = [&[0, 10], &[1, 12], &[2, 11], &[3, 13], &[1000, -1000]];

#[test]
fn a_median_is_the_value_in_the_middle_or_between_the_two() {
    let median = rule(CoordinateMedian, 1, "");
    assert_eq!(median.aggregate(&updates(&FIVE)).unwrap(), [2.0, 11.0]);
    assert_eq!(median.aggregate(&updates(&FIVE[..4])).unwrap(), [1.5, 11.5]);
}

#[test]
fn a_trimmed_mean_leaves_out_as_many_at_each_end_as_are_corrupted_or_as_its_share_says() {
    near(&rule(TrimmedMean, 1, "").aggregate(&updates(&FIVE)).unwrap(), &[2.0, 11.0]);
    near(&rule(TrimmedMean, 0, "").aggregate(&updates(&FIVE[..2])).unwrap(), &[0.5, 11.0]);
    // Two of five at each end.
    near(&rule(TrimmedMean, 1, "beta = 0.4").aggregate(&updates(&FIVE)).unwrap(), &[2.0, 11.0]);
    near(
        &rule(TrimmedMean, 1, "beta = 0.2").aggregate(&updates(&[&[0], &[1], &[5], &[9], &[90]])).unwrap(),
        &[5.0],
    );
    // 0.4 of three are one, and two are corrupted of the five that were planned: never fewer than these.
    near(
        &rule(TrimmedMean, 2, "beta = 0.4").aggregate(&updates(&[&[0], &[1], &[5], &[9], &[90]])).unwrap(),
        &[5.0],
    );
}

#[test]
fn krum_takes_the_update_whose_nearest_others_are_nearest() {
    // Of five with one corrupted, two others count: scores of the first coordinate alone are 1+4, 1+1, 1+1, 1+4 and far.
    let line: [&[i32]; 5] = [&[0], &[1], &[2], &[3], &[1000]];
    assert_eq!(rule(Krum, 1, "").aggregate(&updates(&line)).unwrap(), [1.0]);
    // Multi-Krum takes n - f - 2 = 2 of them, or as many as it is told.
    near(&rule(MultiKrum, 1, "").aggregate(&updates(&line)).unwrap(), &[1.5]);
    near(&rule(MultiKrum, 1, "select = 4").aggregate(&updates(&line)).unwrap(), &[1.5]);
    near(&rule(MultiKrum, 1, "select = 1").aggregate(&updates(&line)).unwrap(), &[1.0]);
}

#[test]
fn a_geometric_median_follows_weiszfeld_from_the_mean() {
    // From the mean of 0, 0 and 6, which is 2: weights 1/2, 1/2 and 1/4, so 6/5; then 1/1.2 twice and 1/4.8: 6/9.
    let three: [&[i32]; 3] = [&[0], &[0], &[6]];
    near(&rule(GeometricMedian, 1, "steps = 1").aggregate(&updates(&three)).unwrap(), &[1.2]);
    near(&rule(GeometricMedian, 1, "steps = 2").aggregate(&updates(&three)).unwrap(), &[6.0 / 9.0]);
    // The corners of a square have their centre, whatever a fifth one at the centre says.
    let square: [&[i32]; 4] = [&[0, 0], &[2, 0], &[0, 2], &[2, 2]];
    near(&rule(GeometricMedian, 1, "").aggregate(&updates(&square)).unwrap(), &[1.0, 1.0]);
    // Where all are alike, nu divides.
    near(&rule(GeometricMedian, 1, "").aggregate(&updates(&[&[7], &[7], &[7]])).unwrap(), &[7.0]);
}

#[test]
fn clipping_goes_from_the_aggregate_before_by_clipped_differences() {
    // Radius 2 steps of the lattice (1 in units of the parameters): from 0, steps of 1, 2 and 2 clipped from 8.
    let three: [&[i32]; 3] = [&[1], &[2], &[8]];
    let clipping = |settings| rule(CentredClipping, 1, settings);
    near(&clipping("radius = 1.0\nsteps = 1").aggregate(&updates(&three)).unwrap(), &[5.0 / 3.0]);
    // From 5/3: -2/3, 1/3 and 2.
    let second = 5.0 / 3.0 + (-2.0 / 3.0 + 1.0 / 3.0 + 2.0) / 3.0;
    near(&clipping("radius = 1.0\nsteps = 2").aggregate(&updates(&three)).unwrap(), &[second]);
    // After an aggregate of 2 in units of the parameters, 4 steps: clipped to -2, -2 and 2.
    let third = 4.0 - 2.0 / 3.0;
    near(&clipping("radius = 1.0\nsteps = 1").aggregate(&after(&three, Some(vec![2.0]))).unwrap(), &[third]);
    // Without a radius it is the median of the distances: 2.
    near(&clipping("steps = 1").aggregate(&updates(&three)).unwrap(), &[5.0 / 3.0]);
    assert!(clipping("").begins_from_previous() && !rule(Krum, 1, "").begins_from_previous());
}

#[test]
fn mixing_takes_the_mean_of_the_nearest() {
    let line: [&[i32]; 4] = [&[0], &[1], &[3], &[100]];
    let mixed = step(NearestNeighbourMixing, 1, "").mix(&updates(&line)).unwrap();
    let mut values = Vec::new();
    mixed.visit(&mut |_, part| values.extend(part.iter().map(|one| one[0]))).unwrap();
    near(&values, &[4.0 / 3.0, 4.0 / 3.0, 4.0 / 3.0, 104.0 / 3.0]);
    // And a rule sees the mixed ones, after another step, too.
    near(&rule(CoordinateMedian, 1, "").aggregate(&mixed).unwrap(), &[4.0 / 3.0]);
    let twice = step(NearestNeighbourMixing, 1, "").mix(&mixed).unwrap();
    near(&rule(CoordinateMedian, 1, "").aggregate(&twice).unwrap(), &[4.0 / 3.0]);
}

#[test]
fn buckets_are_means_that_chance_puts_together_and_hold_everybody_once() {
    let values: Vec<Vec<i32>> = (0..7).map(|power| vec![1 << power]).collect();
    let seen = |seed| {
        let kept = KeptUpdates::of(values.clone(), 1, 0.5, None, Seed::from_number(seed));
        let mixed = step(Bucketing, 1, "size = 2").mix(&kept).unwrap();
        let mut found = Vec::new();
        mixed.visit(&mut |_, part| found.extend(part.iter().map(|one| one[0]))).unwrap();
        found
    };
    let buckets = seen(1);
    assert_eq!(buckets.len(), 4);
    // Three buckets of two and one of one: powers of two show who is where.
    near(&[buckets[..3].iter().map(|mean| 2.0 * mean).sum::<f64>() + buckets[3]], &[127.0]);
    assert!(buckets == seen(1) && buckets != seen(2));
}

#[test]
fn how_many_updates_are_needed_follows_from_rule_and_steps() {
    assert_eq!(rule(Krum, 2, "").updates_min(), 7);
    assert_eq!(rule(MultiKrum, 2, "").updates_min(), 7);
    for least in [
        rule(CoordinateMedian, 2, "").updates_min(),
        rule(TrimmedMean, 2, "").updates_min(),
        rule(GeometricMedian, 2, "").updates_min(),
        rule(CentredClipping, 2, "").updates_min(),
        step(NearestNeighbourMixing, 2, "").updates_min(1),
    ] {
        assert_eq!(least, 5);
    }
    let buckets = step(Bucketing, 2, "size = 3");
    assert_eq!((buckets.updates_min(7), buckets.updates_left(19), buckets.updates_left(18)), (19, 7, 6));
}

/// Honest updates around (100, -50, ..) and a third of corrupted ones far away: every rule stays within the spread of the honest ones.
#[test]
fn a_few_corrupted_updates_do_not_move_a_rule_beyond_the_honest_ones() {
    let mut chance = Seed::from_number(9).generator();
    let honest: Vec<Vec<i32>> =
        (0..11).map(|_| (0..6).map(|i| 100 * (i + 1) + chance.random_range(-10..=10)).collect()).collect();
    for far in [1 << 29, -(1 << 29), 0] {
        let corrupted = (0..4).map(|i| vec![far + i; 6]);
        let all: Vec<Vec<i32>> = corrupted.chain(honest.iter().cloned()).collect();
        let kept = KeptUpdates::of(all, 6, 0.5, Some(vec![50.0; 6]), Seed::from_number(1));
        let rules = [
            (rule(CoordinateMedian, 4, ""), 10.0),
            (rule(TrimmedMean, 4, ""), 10.0),
            (rule(Krum, 4, ""), 10.0),
            (rule(MultiKrum, 4, ""), 10.0),
            // The distance of a geometric median from the honest ones is at most 2 (n - f) / (n - 2 f) of theirs from it, and the
            // algorithm is near it after so many steps; a clipped mean moves by its radius for each corrupted one.
            (rule(GeometricMedian, 4, "steps = 100"), 120.0),
            (rule(CentredClipping, 4, "steps = 20"), 700.0),
        ];
        let mixed = step(NearestNeighbourMixing, 4, "").mix(&kept).unwrap();
        for (rule, reach) in rules {
            for seen in [&kept, &mixed] {
                let found = rule.aggregate(seen).unwrap();
                for (i, value) in found.iter().enumerate() {
                    let middle = 100.0 * (i as f64 + 1.0);
                    assert!(
                        (value - middle).abs() <= reach,
                        "{}: {value} for {middle} at {far}",
                        rule.describe()
                    );
                }
            }
        }
    }
}

fn read(aggregation: &str, more: &str) -> Result<server::Plan, String> {
    let text = format!(
        "name = \"t\"\nrounds = 1\nmodel = \"linear\"\n\
         data = {{ table = {{ label = \"y\", target = \"real\", features = [\"a\"] }} }}\n\
         training = {{ batch_size = 8, optimizer = {{ sgd = {{ learning_rate = 0.1 }} }} }}\n{more}\n[aggregation]\n{aggregation}\n"
    );
    Registry::standard().server().parse(&text).map_err(|error| error.to_string())
}

#[test]
fn a_plan_that_a_program_has_put_together_is_refused_beside_a_promise_too() {
    let text = "name = \"t\"\nrounds = 1\nmodel = \"linear\"\n\
        data = { table = { label = \"y\", target = \"real\", features = [\"a\"] } }\n\
        training = { batch_size = 8, optimizer = { sgd = { learning_rate = 0.1 } } }\n\
        cohort = { clients_min = 10 }\nupdate = { norm_max = 1.0 }\n[privacy.central]\ndelta = 1e-5\nepsilon_max = 10\n\
        noise_multiplier = 2\ndenominator = 10\nsampling = { availability = { participations_max = 10 } }\n";
    let mut private = Registry::standard().server().parse(text).unwrap();
    private.aggregation = read("rule = \"krum\"\ncorrupted = 2", TEN).unwrap().aggregation;
    let refused = Training::new(Arc::new(private), vec![2], false).unwrap_err();
    assert!(refused.to_string().contains("sees every update one by one"), "{refused}");
}

#[test]
fn what_is_stored_of_another_rule_is_refused() {
    let workflow = |rule: &str| {
        let plan = read(&format!("rule = \"{rule}\"\ncorrupted = 2"), TEN).unwrap();
        Training::new(Arc::new(plan), vec![2], false).unwrap()
    };
    let eight = [0; 8];
    assert!(workflow("centred_clipping").recall(&eight).is_ok() && workflow("krum").recall(&[]).is_ok());
    assert!(workflow("centred_clipping").recall(&eight[..4]).unwrap_err().contains("was the plan changed"));
    assert!(workflow("krum").recall(&eight).is_err());
    let mut clipping = workflow("centred_clipping");
    clipping.recall(&[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]).unwrap();
    assert_eq!(clipping.memory(), [0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]);
}

const TEN: &str = "cohort = { clients_min = 10 }";

#[test]
fn every_rule_and_step_can_be_named_with_its_settings() {
    for (rule, needed) in [
        ("\"coordinate_median\"", 5),
        ("{ trimmed_mean = { beta = 0.3 } }", 5),
        ("\"krum\"", 7),
        ("{ multi_krum = { select = 3 } }", 7),
        ("{ geometric_median = { nu = 1e-4, steps = 3 } }", 5),
        ("{ centred_clipping = { radius = 2.0 } }", 5),
    ] {
        let plan =
            read(&format!("rule = {rule}\ncorrupted = 2\nbefore = [\"nearest_neighbour_mixing\"]"), TEN);
        let plan = plan.unwrap();
        let aggregation = plan.aggregation.unwrap();
        assert_eq!(aggregation.rule.updates_min(), needed, "{rule}");
        assert_eq!(plan.spec.update.weights, protocol::Weighting::Uniform);
    }
    let buckets = "rule = \"coordinate_median\"\ncorrupted = 2\nbefore = [{ bucketing = { size = 2 } }, \"nearest_neighbour_mixing\"]";
    let plan = read(buckets, TEN).unwrap();
    let rule = plan.aggregation.unwrap().rule;
    assert_eq!(rule.updates_min(), 9);
    assert_eq!(
        rule.describe(),
        "buckets of 2, then nearest_neighbour_mixing with 2 corrupted, then coordinate_median with 2 corrupted"
    );
}

#[test]
fn corrupted_clients_that_send_nothing_do_not_stop_a_run() {
    let quorum = |rule: &str, cohort: &str| {
        read(&format!("rule = \"{rule}\"\ncorrupted = 2"), cohort).unwrap().cohort.quorum
    };
    assert_eq!(quorum("coordinate_median", TEN), 8);
    assert_eq!(quorum("krum", "cohort = { clients_min = 8 }"), 7);
    assert_eq!(quorum("krum", "cohort = { clients_min = 10, quorum = 9 }"), 9);
}

#[test]
fn what_cannot_be_carried_out_is_refused_with_the_reason_and_what_to_do() {
    let median = "rule = \"coordinate_median\"\ncorrupted = 2";
    let central = "cohort = { clients_min = 10 }\nupdate = { norm_max = 1.0 }\n[privacy.central]\ndelta = 1e-5\nepsilon_max = 10\n\
        noise_multiplier = 2\ndenominator = 10\nsampling = { availability = { participations_max = 10 } }\n";
    for (aggregation, more, named) in [
        (median, central, "sees every update one by one"),
        (
            median,
            "cohort = { clients_min = 10 }\nupdate = { weights = \"examples\" }",
            "counts every client alike",
        ),
        (median, "cohort = { clients_min = 4 }", "needs 5 updates, and a round may ask only 4"),
        (median, "", "a round may ask only 1"),
        (median, "cohort = { clients_min = 10, fraction = 0.4 }", "a round may ask only 4"),
        ("rule = \"krum\"\ncorrupted = 4", TEN, "needs 11 updates"),
        ("rule = \"coordinate_median\"\ncorrupted = 3\nbefore = [\"bucketing\"]", TEN, "needs 13 updates"),
        ("rule = { trimmed_mean = { beta = 0.1 } }\ncorrupted = 2", TEN, "give at least 0.2"),
        ("rule = { trimmed_mean = { beta = 0.5 } }\ncorrupted = 2", TEN, "0.5 is not from 0 to below 0.5"),
        ("rule = { multi_krum = { select = 9 } }\ncorrupted = 2", TEN, "9 is not from 1 to 8"),
        ("rule = { geometric_median = { steps = 0 } }\ncorrupted = 2", TEN, "0 is not from 1 to 1000"),
        ("rule = { centred_clipping = { radius = 0 } }\ncorrupted = 2", TEN, "0"),
        ("rule = { krum = { select = 2 } }\ncorrupted = 2", TEN, "select"),
        (
            "rule = \"median\"\ncorrupted = 2",
            TEN,
            "centred_clipping, coordinate_median, geometric_median, krum",
        ),
        (
            "rule = \"krum\"\ncorrupted = 2\nbefore = [\"buckets\"]",
            TEN,
            "bucketing, nearest_neighbour_mixing",
        ),
        (
            "rule = \"krum\"\ncorrupted = 2\nbefore = [{ bucketing = { size = 1 } }]",
            TEN,
            "1 is not from 2 to 10",
        ),
        ("rule = { krum = {}, median = {} }\ncorrupted = 2", TEN, "one name is enough"),
        ("rule = \"krum\"\ncorrupted = -1", TEN, "-1"),
        ("rule = \"krum\"", TEN, "missing field `corrupted`"),
    ] {
        let error = read(aggregation, more).unwrap_err();
        assert!(error.contains(named), "{aggregation} {more}:\n{error}");
    }
    let message = read("rule = { trimmed_mean = { beta = 0.1 } }\ncorrupted = 2", TEN).unwrap_err();
    assert!(message.contains("aggregation.rule.trimmed_mean.beta"), "{message}");
}

#[test]
fn distances_and_radii_by_which_every_release_breaks_are_refused_and_the_others_give_numbers() {
    let given = Given { corrupted: 1, updates: 5 };
    for (settings, key) in [("nu = 1e-320", "nu"), ("nu = 1e300", "nu"), ("nu = 1e13", "nu")] {
        let error = GeometricMedian.plan(toml::from_str(settings).unwrap(), &given).unwrap_err();
        assert_eq!((&error.key[..], error.message.contains("from 1e-12 to 1e12")), (key, true), "{error}");
    }
    let error = CentredClipping.plan(toml::from_str("radius = 1e-200").unwrap(), &given).unwrap_err();
    assert_eq!(error.key, "radius");
    // Lattices as fine and as coarse as any: distances are counted in their steps.
    for step in [5e-324, 1e-300, 1.0, 1e300] {
        for nu in ["nu = 1e-12", "nu = 1e12", ""] {
            let median = rule(GeometricMedian, 1, nu);
            // Three updates at one place, from which the distance is 0.
            let values = vec![vec![1, 2], vec![1, 2], vec![1, 2], vec![i32::MAX, i32::MIN], vec![0, 0]];
            let aggregate = median.aggregate(&KeptUpdates::of(values, 2, step, None, Seed::from_number(3)));
            let aggregate = aggregate.unwrap();
            assert!(aggregate.iter().all(|value| value.is_finite()), "{step:e}, {nu}: {aggregate:?}");
        }
    }
}
