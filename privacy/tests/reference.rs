//! Every number of the reference file that is not a loss distribution's, an audit's or a sampler's, recomputed; those
//! have tests of their own.
//!
//! The tolerances are those of the file: Rényi epsilons to 1e-6, exact ones to 1e-8, calibrated noise within 1e-5 below
//! and 1e-3 above, integers exactly. An epsilon below the least true one (`accept_lo`) is under-reporting and fails.
//! A row of a kind that no test claims fails too, so a row can neither be skipped nor forgotten.

#![expect(clippy::unwrap_used, reason = "a reference that cannot be read is a failure")]

#[path = "reference/rows.rs"]
mod rows;

use privacy::accounting::distributed::{self, DistributedNoise};
use privacy::accounting::matrix::Toeplitz;
use privacy::accounting::{Event, Mechanism, Relation, calibration, gaussian, rdp, tree, zcdp};
use privacy::adaptive::{QuantileClip, QuantileRule, update_noise_multiplier};

use rows::{Row, near, rows, rows_of};

/// Kinds that are recomputed here.
const HERE: [&str; 15] = [
    "adaptive_clip_noise_split",
    "adaptive_clip_trajectory",
    "calibrate_sigma",
    "distributed_discrete_gaussian",
    "distributed_skellam",
    "gaussian_composed",
    "heterogeneous_composition",
    "mf_toeplitz_banded",
    "mf_toeplitz_blt",
    "mf_toeplitz_sqrt",
    "poisson_gaussian",
    "sampled_wor_gaussian",
    "tree_multi_participation_no_restart",
    "tree_single_participation",
    "zcdp_to_approxdp",
];
/// Kinds that are recomputed beside the privacy loss distribution, the audits, the sampler and the secure sum.
const ELSEWHERE: [&str; 7] = [
    "audit_clopper_pearson",
    "audit_one_run_lower_bound",
    "discrete_gaussian_exact",
    "discrete_gaussian_pmf",
    "poisson_gauss",
    "poisson_gauss_T1_exact",
    "truncated_poisson_gauss",
];
/// The graph of a secure sum is no matter of this crate's accountants.
const GRAPH: &str = "secagg_harary_params";

fn poisson(noise_multiplier: f64, sampling_rate: f64, count: u64) -> Event {
    let mechanism = if sampling_rate == 1.0 {
        Mechanism::Gaussian { noise_multiplier }
    } else {
        Mechanism::PoissonGaussian { noise_multiplier, sampling_rate }
    };
    Event::new(mechanism, count).unwrap()
}

#[test]
fn every_row_has_a_test_that_claims_it() {
    let rows = rows();
    assert_eq!(rows.len(), 102, "the reference file has changed; read what is new in it");
    for row in rows {
        let kind = row.text("kind");
        let claimed = HERE.contains(&kind) || ELSEWHERE.contains(&kind) || kind == GRAPH;
        assert!(claimed, "{}: no test claims kind {kind}; write one", row.text("id"));
    }
}

/// RDP of a main row: its value at both sets of orders, its best orders, and never below the truth.
fn check_main(row: &Row) {
    let id = row.text("id");
    let event = poisson(row.number("sigma"), row.number("q"), row.whole("T"));
    let delta = row.number("delta");
    for (orders, epsilon, order) in [
        (rdp::orders(), "eps_rdp_default_orders", "rdp_default_order"),
        (rdp::integer_orders(), "eps_rdp_integer_orders", "rdp_integer_order"),
    ] {
        let found = rdp::epsilon_at_orders(&[event], Relation::AddOrRemoveOne, delta, &orders).unwrap();
        assert!(found.epsilon >= row.number("accept_lo"), "{id} under-reports: {}", found.epsilon);
        near(id, found.epsilon, row.number(epsilon), 1e-6);
        near(id, found.order, row.number(order), 1e-12);
    }
}

#[test]
fn the_renyi_accountant_agrees_on_sampled_gaussians() {
    let rows = rows_of("poisson_gaussian");
    assert_eq!(rows.len(), 25);
    rows.iter().for_each(check_main);
}

#[test]
fn the_renyi_accountant_and_the_exact_one_agree_on_composed_gaussians() {
    for row in rows_of("gaussian_composed") {
        check_main(&row);
        let (id, delta) = (row.text("id"), row.number("delta"));
        let event = poisson(row.number("sigma"), 1.0, row.whole("T"));
        let noise = gaussian::composed(&[event], Relation::AddOrRemoveOne).unwrap().unwrap();
        let found = gaussian::epsilon(noise, delta).unwrap();
        assert!(found >= row.number("accept_lo"), "{id} under-reports: {found}");
        near(id, found, row.number("exact_epsilon"), 1e-8);
    }
}

#[test]
fn fixed_size_samples_agree() {
    for row in rows_of("sampled_wor_gaussian") {
        // The file's sigma is over the 2C that a replaced unit moves the sum by; ours is over C.
        let mechanism = Mechanism::WithoutReplacementGaussian {
            noise_multiplier: 2.0 * row.number("sigma"),
            population: row.whole("n"),
            sample: row.whole("m"),
        };
        let event = Event::new(mechanism, row.whole("T")).unwrap();
        let found =
            rdp::epsilon_at_orders(&[event], Relation::ReplaceOne, row.number("delta"), &rdp::orders())
                .unwrap();
        near(row.text("id"), found.epsilon, row.number("epsilon"), 1e-6);
        near(row.text("id"), found.order, row.number("order"), 1e-12);
    }
}

#[test]
fn phases_of_different_noise_agree() {
    let mut seen = 0;
    for row in rows_of("heterogeneous_composition").iter().filter(|row| row.text("accountant") == "RDP") {
        let phases: Vec<(f64, f64, u64)> = serde_json::from_str(row.text("phases")).unwrap();
        let events: Vec<Event> =
            phases.iter().map(|(rate, noise, count)| poisson(*noise, *rate, *count)).collect();
        let found = rdp::epsilon(&events, Relation::AddOrRemoveOne, row.number("delta")).unwrap();
        near(row.text("id"), found, row.number("epsilon"), 1e-6);
        seen += 1;
    }
    assert_eq!(seen, 2);
}

#[test]
fn concentrated_privacy_agrees() {
    for row in rows_of("zcdp_to_approxdp") {
        let (id, rho, delta) = (row.text("id"), row.number("rho"), row.number("delta"));
        let event = poisson((0.5 / rho).sqrt(), 1.0, 1);
        assert!((zcdp::rho(&[event], Relation::ZeroOut).unwrap() / rho - 1.0).abs() < 1e-12);
        let found = rdp::epsilon(&[event], Relation::ZeroOut, delta).unwrap();
        near(id, found, row.number("epsilon"), 1e-6);
        near(id, zcdp::epsilon(rho, delta).unwrap(), row.noted("continuous-alpha optimum="), 1e-8);
        let simple = row.noted("simple bound rho+2sqrt(rho ln(1/delta))=");
        near(id, zcdp::epsilon_simple(rho, delta).unwrap(), simple, 1e-6);
        let exact = row.noted("if mechanism is exactly Gaussian with this rho: ");
        near(id, zcdp::epsilon_gaussian(rho, delta).unwrap(), exact, 1e-8);
    }
}

#[test]
fn calibrated_noise_agrees() {
    let mut seen = 0;
    for row in rows_of("calibrate_sigma").iter().filter(|row| row.text("accountant") == "RDP") {
        let (target, delta) = (row.number("epsilon"), row.number("delta"));
        let of = |noise| {
            let event = poisson(noise, row.number("q"), row.whole("T"));
            rdp::epsilon(&[event], Relation::AddOrRemoveOne, delta)
        };
        let found = calibration::calibrate(target, of).unwrap();
        let relative = found / row.number("sigma") - 1.0;
        assert!((-1e-5..=1e-3).contains(&relative), "{}: {found}, {relative:e} off", row.text("id"));
        assert!(of(found).unwrap() <= target, "{}: the promise is not kept", row.text("id"));
        seen += 1;
    }
    assert_eq!(seen, 4);
}

#[test]
fn calibrated_noise_without_sampling_agrees_with_the_exact_one() {
    let row = rows_of("calibrate_sigma").pop().unwrap();
    let (target, delta) = (row.number("epsilon"), row.number("delta"));
    let exact = gaussian::noise_multiplier(target, delta).unwrap() * (row.whole("T") as f64).sqrt();
    near(row.text("id"), exact, row.noted("exact analytic sigma="), 1e-8);
}

#[test]
fn trees_with_one_participation_agree() {
    for row in rows_of("tree_single_participation") {
        // Restarted trees: one participation touches one of them, at worst the deepest.
        let steps: Vec<u64> =
            serde_json::from_str(&format!("[{}]", row.text("T").trim_matches(['[', ']']))).unwrap();
        let steps = steps.into_iter().max().unwrap();
        assert_eq!(
            f64::from(tree::depth(steps)),
            row.noted("max depth=ceil(log2(steps+1))="),
            "{}",
            row.text("id")
        );
        let mechanism = Mechanism::Tree {
            noise_multiplier: row.number("sigma"),
            steps,
            participations_max: 1,
            separation_min: 1,
        };
        let event = Event::new(mechanism, 1).unwrap();
        let found =
            rdp::epsilon_at_orders(&[event], Relation::ZeroOut, row.number("delta"), &rdp::orders()).unwrap();
        near(row.text("id"), found.epsilon, row.number("epsilon"), 1e-6);
        near(row.text("id"), found.order, row.number("order"), 1e-12);
    }
}

#[test]
fn trees_with_many_participations_agree() {
    for row in rows_of("tree_multi_participation_no_restart") {
        // The file counts the rounds strictly between two participations; ours is the difference of their numbers.
        let (steps, most) = (row.whole("T"), row.whole("max_participation"));
        let separation = row.whole("min_separation") + 1;
        let squares = tree::sensitivity_squared(steps, most, separation).unwrap();
        assert_eq!(squares, row.number("value"), "{}", row.text("id"));
        let mechanism = Mechanism::Tree {
            noise_multiplier: row.number("sigma"),
            steps,
            participations_max: most,
            separation_min: separation,
        };
        let events = [Event::new(mechanism, 1).unwrap()];
        near(row.text("id"), zcdp::rho(&events, Relation::ZeroOut).unwrap(), row.number("rho"), 1e-12);
        let noise = gaussian::composed(&events, Relation::ZeroOut).unwrap().unwrap();
        let found = gaussian::epsilon(noise, row.number("delta")).unwrap();
        near(row.text("id"), found, row.number("epsilon"), 1e-8);
        assert!(rdp::epsilon(&events, Relation::ZeroOut, row.number("delta")).unwrap() >= found);
    }
}

fn check_matrix(row: &Row, matrix: &Toeplitz) {
    let found = matrix.sensitivity(row.whole("max_participation"), row.whole("min_separation")).unwrap();
    near(row.text("id"), found, row.number("value"), 1e-8);
    near(row.text("id"), matrix.error_max(), row.noted("max_t ||row_t(A C^-1)||="), 1e-8);
}

#[test]
fn correlated_noise_agrees() {
    for row in rows_of("mf_toeplitz_sqrt") {
        let steps = row.whole("T") as usize;
        check_matrix(&row, &Toeplitz::square_root(steps, steps).unwrap());
    }
    for row in rows_of("mf_toeplitz_banded") {
        let bands = row.whole("min_separation") as usize;
        check_matrix(&row, &Toeplitz::square_root(row.whole("T") as usize, bands).unwrap());
    }
    for row in rows_of("mf_toeplitz_blt") {
        let matrix = Toeplitz::buffered(row.whole("T") as usize, &[(0.99, 0.2), (0.6, 0.25)]);
        check_matrix(&row, &matrix.unwrap());
    }
}

/// The release that the row's note describes; checks the norm after rounding on the way.
fn distributed_noise(row: &Row) -> (DistributedNoise, serde_json::Value) {
    let note: serde_json::Value = serde_json::from_str(row.text("note")).unwrap();
    let field = |name: &str| note[name].as_f64().unwrap();
    let (lattice_step, dimension) = (field("gamma"), note["dim"].as_u64().unwrap());
    let norm_max = distributed::rounded_norm(field("clip"), lattice_step, dimension, field("beta")).unwrap();
    near(row.text("id"), norm_max, field("D2_rounded"), 1e-12);
    let contributors = row.whole("n");
    (
        DistributedNoise {
            norm_max,
            lattice_step,
            noise_local: field("local_sigma"),
            dimension,
            contributors,
        },
        note,
    )
}

#[test]
fn distributed_noise_agrees() {
    for row in rows_of("distributed_discrete_gaussian") {
        let (noise, note) = distributed_noise(&row);
        let tau = note["tau"].as_f64().unwrap();
        assert!((noise.distance().unwrap() - tau).abs() <= 1e-9 * tau, "{}", row.text("id"));
        let found = noise.epsilon_discrete_gaussian(row.whole("T"), row.number("delta")).unwrap();
        near(row.text("id"), found.epsilon, row.number("epsilon"), 1e-6);
        near(row.text("id"), found.order, row.number("order"), 1e-12);
    }
    for row in rows_of("distributed_skellam") {
        let (noise, _) = distributed_noise(&row);
        let found = noise.epsilon_skellam(row.whole("T"), row.number("delta")).unwrap();
        near(row.text("id"), found.epsilon, row.number("epsilon"), 1e-6);
        near(row.text("id"), found.order, row.number("order"), 1e-12);
    }
}

#[test]
fn the_noise_of_adaptive_clipping_is_split_as_told() {
    let mut refused = 0;
    for row in rows_of("adaptive_clip_noise_split") {
        let found = update_noise_multiplier(row.number("sigma"), row.number("sigma_b"));
        if row.text("value") == "ERROR" {
            assert!(found.is_err(), "{}", row.text("id"));
            refused += 1;
        } else {
            near(row.text("id"), found.unwrap(), row.number("value"), 1e-12);
        }
    }
    assert_eq!(refused, 1);
}

#[test]
fn adaptive_clipping_walks_the_given_way() {
    for row in rows_of("adaptive_clip_trajectory") {
        let note: serde_json::Value = serde_json::from_str(row.text("note")).unwrap();
        let rounds: Vec<Vec<f64>> = serde_json::from_value(note["norms_per_round"].clone()).unwrap();
        let noises: Vec<f64> = serde_json::from_value(note["injected_count_noise"].clone()).unwrap();
        let wanted: Vec<String> = serde_json::from_str(row.text("value")).unwrap();
        let clients = note["fixed_denominator_m"].as_u64().unwrap();
        let rule = QuantileRule {
            quantile: note["target_unclipped_quantile"].as_f64().unwrap(),
            rate: note["lr"].as_f64().unwrap(),
            ..QuantileRule::median(clients)
        };
        let mut clip = QuantileClip::new(rule, note["C0"].as_f64().unwrap()).unwrap();
        assert_eq!(rounds.len(), wanted.len());
        for ((norms, noise), wanted) in rounds.iter().zip(noises).zip(wanted) {
            let votes: i64 = norms.iter().map(|norm| clip.vote(*norm)).sum();
            // The file's bits are one half each; a vote is twice that, and so is its noise.
            clip.update(votes as f64 + 2.0 * noise).unwrap();
            near(row.text("id"), clip.bound(), wanted.parse().unwrap(), 1e-12);
        }
    }
}

#[test]
fn a_ledger_read_from_a_file_costs_what_it_cost() {
    let ledger = include_str!("reference/ledger.json");
    let events: Vec<Event> = serde_json::from_str(ledger).unwrap();
    let found = rdp::epsilon(&events, Relation::ZeroOut, 1e-6).unwrap();
    near("ledger.json", found, LEDGER_EPSILON, 1e-9);
    let again: Vec<Event> = serde_json::from_str(&serde_json::to_string(&events).unwrap()).unwrap();
    assert_eq!(rdp::epsilon(&again, Relation::ZeroOut, 1e-6).unwrap(), found);
}

/// What `ledger.json` cost when it was written.
const LEDGER_EPSILON: f64 = 3.366_845_564_472_462;
