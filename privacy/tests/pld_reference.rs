//! The privacy loss accountant against values made by others: every row of the reference table that it can
//! answer.
//!
//! A promise below `accept_lo` is under-reporting, the one error that must never pass; above `accept_hi` it is
//! needlessly cautious. Where the table gives a number alone, the tolerances are those the table was published
//! with. The rows came from an accountant in Python, from a second one with error bounds, and from exact
//! formulas.

use std::collections::BTreeMap;

use privacy::accounting::pld::{self, PrivacyLoss};
use privacy::accounting::{AccountingError, Event, Mechanism, Relation};

type Row = BTreeMap<String, String>;

fn rows(kind: &str) -> Vec<Row> {
    let mut lines = include_str!("reference/dp_reference.csv").lines();
    let names = fields(lines.next().expect("the table has a heading"));
    let rows: Vec<Row> = lines.map(|line| names.iter().cloned().zip(fields(line)).collect()).collect();
    let found: Vec<_> = rows.into_iter().filter(|row: &Row| row["kind"] == kind).collect();
    assert!(!found.is_empty(), "the table has no rows of kind {kind}");
    found
}

/// The fields of one line; a quoted one may hold commas and doubled quotes.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            _ => fields.last_mut().expect("there is a first field").push(c),
        }
    }
    fields
}

fn number(row: &Row, name: &str) -> f64 {
    row[name].parse().unwrap_or_else(|_| panic!("{}: {name} is {:?}", row["id"], row[name]))
}

fn relation(row: &Row) -> Relation {
    match row["neighbour"].as_str() {
        "add_or_remove_one" => Relation::AddOrRemoveOne,
        "replace_one" => Relation::ReplaceOne,
        other => panic!("{}: relation {other}", row["id"]),
    }
}

fn sampled(rate: f64, noise_multiplier: f64, count: f64) -> Event {
    let mechanism = if rate == 1.0 {
        Mechanism::Gaussian { noise_multiplier }
    } else {
        Mechanism::PoissonGaussian { noise_multiplier, sampling_rate: rate }
    };
    Event::new(mechanism, count as u64).expect("the table holds events in range")
}

/// The tolerance of rows made at a grid of 1e-4.
fn assert_near_the_grid(row: &Row, found: f64) {
    let given = number(row, "epsilon");
    let (least, most) = (given * 0.995 - 1e-3, given * 1.01 + 1e-3);
    assert!((least..=most).contains(&found), "{}: {found} against {given}", row["id"]);
}

#[test]
fn no_main_row_is_under_reported_and_none_is_needlessly_cautious() {
    for row in rows("poisson_gaussian").into_iter().chain(rows("gaussian_composed")) {
        let event = sampled(number(&row, "q"), number(&row, "sigma"), number(&row, "T"));
        let found = pld::epsilon(&[event], relation(&row), number(&row, "delta")).unwrap();
        let (least, most) = (number(&row, "accept_lo"), number(&row, "accept_hi"));
        assert!(found >= least, "{} is under-reported: {found} below {least}", row["id"]);
        assert!(found <= most, "{} is too cautious: {found} above {most}", row["id"]);
        assert!(
            found <= number(&row, "eps_rdp_default_orders") + 1e-3,
            "{} is above RDP: {found}",
            row["id"]
        );
    }
}

#[test]
fn one_release_is_exact() {
    for row in rows("poisson_gauss_T1_exact") {
        let (rate, sigma, delta) = (number(&row, "q"), number(&row, "sigma"), number(&row, "delta"));
        let exact = number(&row, "epsilon");
        let found = pld::single_release_epsilon(sigma, rate, relation(&row), delta).unwrap();
        assert!((found / exact - 1.0).abs() < 1e-8, "{}: {found} against {exact}", row["id"]);
        let gridded = pld::epsilon(&[sampled(rate, sigma, 1.0)], relation(&row), delta).unwrap();
        assert!(gridded >= exact * (1.0 - 1e-9) && gridded < exact + 1e-4, "{}: {gridded}", row["id"]);
    }
    for row in rows("gaussian_composed") {
        let sigma = number(&row, "sigma") / number(&row, "T").sqrt();
        let exact = number(&row, "exact_epsilon");
        let found = pld::single_release_epsilon(sigma, 1.0, relation(&row), number(&row, "delta")).unwrap();
        assert!((found / exact - 1.0).abs() < 1e-8, "{}: {found} against {exact}", row["id"]);
    }
}

#[test]
fn replacing_one_moves_the_sum_by_twice_the_clipping_norm() {
    for row in rows("poisson_gauss") {
        let event = sampled(number(&row, "q"), number(&row, "sigma"), number(&row, "T"));
        assert_near_the_grid(&row, pld::epsilon(&[event], relation(&row), number(&row, "delta")).unwrap());
    }
}

#[test]
fn a_truncated_sample_costs_what_the_table_says() {
    for row in rows("truncated_poisson_gauss") {
        let mechanism = Mechanism::TruncatedPoissonGaussian {
            noise_multiplier: number(&row, "sigma"),
            sampling_rate: number(&row, "q"),
            population: number(&row, "n") as u64,
            sample_max: number(&row, "m") as u64,
        };
        let event = Event::new(mechanism, number(&row, "T") as u64).unwrap();
        assert_near_the_grid(&row, pld::epsilon(&[event], relation(&row), number(&row, "delta")).unwrap());
    }
}

#[test]
fn phases_of_different_noise_compose_in_any_order() {
    for row in rows("heterogeneous_composition").iter().filter(|row| row["accountant"] == "PLD_1e-4") {
        let numbers = row["phases"].replace(['[', ']', ' '], "");
        let numbers: Vec<f64> = numbers.split(',').map(|number| number.parse().unwrap()).collect();
        let mut events: Vec<_> =
            numbers.chunks(3).map(|phase| sampled(phase[0], phase[1], phase[2])).collect();
        let found = pld::epsilon(&events, relation(row), number(row, "delta")).unwrap();
        assert_near_the_grid(row, found);
        events.reverse();
        let turned = pld::epsilon(&events, relation(row), number(row, "delta")).unwrap();
        assert!((turned - found).abs() < 1e-9, "{}: {turned} against {found}", row["id"]);
    }
}

#[test]
fn the_calibrated_noise_of_the_table_spends_its_budget() {
    for row in rows("calibrate_sigma").iter().filter(|row| row["accountant"] == "PLD_1e-4") {
        let event = |factor: f64| sampled(number(row, "q"), number(row, "sigma") * factor, number(row, "T"));
        let spent = |factor| pld::epsilon(&[event(factor)], relation(row), number(row, "delta")).unwrap();
        let budget = number(row, "epsilon");
        assert!(spent(1.0 - 1e-5) > budget, "{}: {} is under {budget}", row["id"], spent(1.0 - 1e-5));
        assert!(spent(1.0 + 1e-3) <= budget, "{}: {} is over {budget}", row["id"], spent(1.0 + 1e-3));
    }
}

#[test]
fn the_discrete_gaussian_is_exact() {
    for row in rows("discrete_gaussian_exact") {
        let sensitivity = number(&row, "sensitivity") as u32;
        let loss = PrivacyLoss::discrete_gaussian(number(&row, "sigma"), sensitivity).unwrap();
        let (found, exact) = (loss.epsilon(number(&row, "delta")).unwrap(), number(&row, "epsilon"));
        assert!((found / exact - 1.0).abs() < 1e-8, "{}: {found} against {exact}", row["id"]);
    }
}

#[test]
fn numbers_out_of_range_are_refused_and_never_cost_nothing() {
    let event = sampled(0.01, 1.0, 100.0);
    for delta in [f64::NAN, -1.0, 0.0, 9e-13, 1.0, f64::INFINITY] {
        let refused = pld::epsilon(&[event], Relation::AddOrRemoveOne, delta);
        assert!(matches!(refused, Err(AccountingError::Delta { .. })), "{delta}: {refused:?}");
    }
    for (sigma, rate) in [(f64::NAN, 0.1), (-1.0, 0.1), (f64::INFINITY, 0.1), (1.0, 1.1), (1.0, f64::NAN)] {
        let refused = pld::single_release_epsilon(sigma, rate, Relation::AddOrRemoveOne, 1e-5);
        assert!(refused.is_err(), "{sigma}, {rate}");
        assert!(PrivacyLoss::poisson_gaussian(sigma, rate, Relation::AddOrRemoveOne, 1e-4).is_err());
    }
    let without_replacement =
        Mechanism::WithoutReplacementGaussian { noise_multiplier: 1.0, population: 10, sample: 1 };
    let unknown = Event::new(without_replacement, 1).unwrap();
    let refused = pld::epsilon(&[event, unknown], Relation::ReplaceOne, 1e-5);
    assert!(matches!(refused, Err(AccountingError::Unsupported { .. })));
    let endless = sampled(0.5, 1.0, 1e7 + 1.0);
    assert!(pld::epsilon(&[endless], Relation::AddOrRemoveOne, 1e-5).is_err());
}

#[test]
fn a_release_without_noise_costs_everything() {
    for rate in [1e-9, 0.5, 1.0] {
        for noise in [0.0, f64::MIN_POSITIVE, 1e-200] {
            let events = [sampled(0.01, 1.0, 10.0), sampled(rate, noise, 1.0)];
            for relation in [Relation::AddOrRemoveOne, Relation::ReplaceOne, Relation::ZeroOut] {
                assert_eq!(pld::epsilon(&events, relation, 1e-5), Ok(f64::INFINITY), "{rate}, {noise}");
            }
        }
    }
}

#[test]
fn extreme_noise_is_answered_without_a_panic() {
    for sigma in [1e-5, 0.02, 1e3, 1e300] {
        for rate in [1e-300, 1e-3, 1.0] {
            for count in [1.0, 1e7] {
                let event = sampled(rate, sigma, count);
                let found = pld::epsilon(&[event], Relation::AddOrRemoveOne, 1e-6).unwrap();
                assert!(found >= 0.0, "{sigma}, {rate}, {count}: {found}");
                if sigma < 0.05 && rate >= 1e-3 {
                    assert!(found > 0.4 / (sigma * sigma), "{sigma}, {rate}, {count}: {found}");
                }
            }
        }
    }
}

#[test]
fn a_promise_grows_with_releases_and_rate_and_shrinks_with_noise_and_delta() {
    let epsilon = |rate, sigma, count, delta| {
        pld::epsilon(&[sampled(rate, sigma, count)], Relation::AddOrRemoveOne, delta).unwrap()
    };
    let base = epsilon(0.05, 1.2, 200.0, 1e-6);
    assert!(base <= epsilon(0.06, 1.2, 200.0, 1e-6));
    assert!(base <= epsilon(0.05, 1.1, 200.0, 1e-6));
    assert!(base <= epsilon(0.05, 1.2, 240.0, 1e-6));
    assert!(base <= epsilon(0.05, 1.2, 200.0, 5e-7));
    let (two, three) = (sampled(0.05, 1.2, 80.0), sampled(0.05, 1.2, 120.0));
    let split = pld::epsilon(&[two, three], Relation::AddOrRemoveOne, 1e-6).unwrap();
    assert!((split - base).abs() < 1e-6, "{split} against {base}");
    let loss = PrivacyLoss::new(&[two], Relation::AddOrRemoveOne).unwrap();
    let back = loss.delta(loss.epsilon(1e-6).unwrap()).unwrap();
    assert!((back / 1e-6 - 1.0).abs() < 1e-6, "{back}");
}
