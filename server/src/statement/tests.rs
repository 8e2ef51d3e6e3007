//! Statements of mixed histories: each of their claims holds for every run that the ledger counts.
//!
//! What an epsilon must be is computed from the exact formula for Gaussian noise, not from the events that a claim lists.

use privacy::accounting::{Mechanism, gaussian};
use privacy::chain::Link;
use privacy::ledger::{Charge, Composition, Conduct, Release, Terms};
use protocol::{Clipping, NoiseCorrelation, Positive, Sampling};

use super::*;

const DELTA: f64 = 1e-5;
const SECRET: Conduct = Conduct { cohorts: Cohorts::Secret, metrics: SiteMetrics::Hidden };
const KNOWN: Conduct = Conduct { cohorts: Cohorts::Known, metrics: SiteMetrics::Hidden };
const TALKATIVE: Conduct = Conduct { cohorts: Cohorts::Known, metrics: SiteMetrics::Told };

fn positive(value: f64) -> Positive {
    Positive::new(value).unwrap()
}

/// A plan's promise with this sampling and noise.
fn promise(sampling: Sampling, noise_multiplier: f64, metrics: MetricsRule) -> CentralPrivacy {
    let relation = match sampling {
        Sampling::Fixed { .. } => Relation::ReplaceOne,
        Sampling::Poisson { .. } | Sampling::Availability { .. } => Relation::ZeroOut,
    };
    CentralPrivacy {
        population: "wards".into(),
        relation,
        delta: DELTA,
        epsilon_max: positive(99.0),
        noise_multiplier: positive(noise_multiplier),
        rounds: 10,
        denominator: positive(10.0),
        clients_min: u32::from(!sampling.is_secret()),
        sampling,
        noise: NoiseCorrelation::Independent,
        clipping: Clipping::Fixed,
        metrics,
    }
}

fn poisson(noise: f64) -> CentralPrivacy {
    promise(Sampling::Poisson { rate: 0.01 }, noise, MetricsRule::Off)
}

fn available(noise: f64, participations_max: u32) -> CentralPrivacy {
    promise(Sampling::Availability { participations_max, separation_min: 1 }, noise, MetricsRule::Off)
}

/// A ledger on which these runs have released so often, each with what it declared.
fn ledger(relation: Relation, runs: &[(&str, Option<Conduct>, &CentralPrivacy, u32)]) -> Ledger {
    let terms = Terms { relation, ..poisson(1.0).terms() };
    let (mut ledger, _) = Ledger::found(terms).unwrap();
    for (run, conduct, central, rounds) in runs {
        let _: Option<Link> = conduct.and_then(|conduct| ledger.declare(run, conduct));
        for round in 1..=*rounds {
            let (permit, _) = ledger.reserve(run, round, &central.charge(), 1).unwrap();
            let _ = ledger.spend(permit, Release::default()).unwrap();
        }
    }
    ledger
}

fn statement_of(run: &str, central: &CentralPrivacy, ledger: &Ledger) -> PrivacyStatement {
    let subject = Subject { model_sha256: "ab".into(), run: run.into(), round: 1, is_seeded: false };
    let privacy = PrivacySpec { central: Some(central.clone()), ..PrivacySpec::default() };
    let statement = PrivacyStatement::of(subject, &privacy, Some(ledger)).unwrap();
    assert_eq!(PrivacyStatement::read(&statement.to_json()).unwrap(), statement);
    statement
}

fn best(claim: &Claim) -> f64 {
    [claim.epsilon.rdp, claim.epsilon.pld].into_iter().flatten().fold(f64::INFINITY, f64::min)
}

/// Epsilon of so many unsampled releases of each noise, of which a unit moves a sum by `sensitivity` norms.
fn exact(releases: &[(f64, u32)], sensitivity: f64) -> f64 {
    let precision: f64 = releases.iter().map(|(noise, count)| f64::from(*count) / (noise * noise)).sum();
    gaussian::epsilon(1.0 / (precision.sqrt() * sensitivity), DELTA).unwrap()
}

fn assert_near(found: f64, exact: f64) {
    assert!(found >= exact * (1.0 - 1e-9) && found <= exact * 1.01, "{found}, exactly {exact}");
}

fn claim(statement: &PrivacyStatement, adversary: Adversary) -> &Claim {
    let of = |claim: &&Claim| claim.adversary == adversary;
    statement.claims.iter().find(of).unwrap_or_else(|| panic!("no claim for {adversary:?}"))
}

#[test]
fn a_statement_of_a_mixed_history_is_right_against_each_adversary_that_it_names() {
    let (real, open, talking) = (poisson(2.0), available(5.0, 3), available(6.0, 2));
    let runs = [
        ("talking", Some(TALKATIVE), &talking, 4),
        ("seeded", Some(KNOWN), &real, 2),
        ("real", Some(SECRET), &real, 5),
        ("open", Some(KNOWN), &open, 9),
    ];
    let ledger = ledger(Relation::ZeroOut, &runs);
    // Whichever run is the newest, the same is claimed.
    for (run, newest) in [("open", &open), ("real", &real)] {
        let statement = statement_of(run, newest, &ledger);
        assert_eq!(statement.claims.len(), 2);
        let unaware = claim(&statement, Adversary::DoesNotSeeParticipants);
        let aware = claim(&statement, Adversary::SeesParticipants);
        // Who sees everything: no release is sampled, and each client is in as many as its plan allows.
        assert_near(best(aware), exact(&[(6.0, 2), (2.0, 2), (2.0, 5), (5.0, 3)], 1.0));
        // Who does not: chance hides the real run's cohorts, and nothing hides the seeded ones.
        let floor = exact(&[(6.0, 2), (2.0, 2), (5.0, 3)], 1.0);
        assert!(best(unaware) >= floor && best(unaware) < best(aware) - 0.5, "{} {floor}", best(unaware));
        let sampled = |event: &Event| matches!(event.mechanism(), Mechanism::PoissonGaussian { .. });
        assert_eq!(unaware.events.iter().filter(|event| sampled(event)).count(), 1);
        assert_eq!(aware.events.iter().filter(|event| sampled(event)).count(), 0);
        for one in &statement.claims {
            assert_eq!(one.releases, 20, "over the whole ledger");
            let runs: Vec<(&str, u64)> =
                one.runs.iter().map(|part| (part.run.as_str(), part.releases)).collect();
            assert_eq!(runs, [("talking", 4), ("seeded", 2), ("real", 5), ("open", 9)]);
        }
        assert!(
            unaware.against.contains("neither who nor how many")
                && aware.against.contains("knows who took part")
        );
        let assumed = unaware.assumes.join("\n");
        for said in [
            "in run talking: no client took part in more than 2 releases",
            "in run open: no client took part in more than 3 releases",
            "in run real: each enrolled client took part by an independent coin of 0.01",
            "in run seeded: who took part did not depend on anybody's records",
        ] {
            assert!(assumed.contains(said), "{said}: {assumed}");
        }
        assert!(!aware.assumes.join("\n").contains("coin"), "{:?}", aware.assumes);
        let outside = statement.outside.join("\n");
        assert!(outside.contains("losses, accuracies") && outside.contains("run talking"), "{outside}");
        // The ledger keeps the budget for those who see no cohorts.
        assert_eq!((unaware.epsilon_max, aware.epsilon_max), (Some(99.0), None));
    }
}

#[test]
fn without_secret_sampling_there_is_one_claim_and_it_is_against_whoever_knows_the_cohorts() {
    let open = available(5.0, 3);
    let ledger =
        ledger(Relation::ZeroOut, &[("a", Some(KNOWN), &open, 9), ("b", Some(KNOWN), &poisson(2.0), 2)]);
    let statement = statement_of("a", &open, &ledger);
    let [only] = statement.claims.as_slice() else { panic!("{statement:?}") };
    assert_eq!((only.adversary, only.epsilon_max), (Adversary::SeesParticipants, Some(99.0)));
    assert_near(best(only), exact(&[(5.0, 3), (2.0, 2)], 1.0));
}

#[test]
fn a_run_of_an_earlier_version_counts_as_known_until_something_is_declared_and_its_metrics_as_unrecorded() {
    let real = poisson(2.0);
    let before = ledger(Relation::ZeroOut, &[("old", None, &real, 3), ("new", Some(SECRET), &real, 1)]);
    let statement = statement_of("new", &real, &before);
    let unaware = claim(&statement, Adversary::DoesNotSeeParticipants);
    assert!(best(unaware) >= exact(&[(2.0, 3)], 1.0));
    let outside = statement.outside.join("\n");
    assert!(outside.contains("kept no record, in run old"), "{outside}");
    let mut after = before;
    assert!(after.declare("old", SECRET).is_some());
    let again = statement_of("new", &real, &after);
    assert!(best(claim(&again, Adversary::DoesNotSeeParticipants)) < exact(&[(2.0, 3)], 1.0) / 2.0);
    assert!(!again.outside.join("\n").contains("no record"));
}

#[test]
fn an_exchange_moves_a_sum_twice_as_far_for_whoever_sees_who_took_part() {
    let fixed = promise(Sampling::Fixed { population: 200, sample: 2 }, 4.0, MetricsRule::Off);
    let runs = [("seeded", Some(KNOWN), &fixed, 1), ("real", Some(SECRET), &fixed, 4)];
    let statement = statement_of("real", &fixed, &ledger(Relation::ReplaceOne, &runs));
    let aware = claim(&statement, Adversary::SeesParticipants);
    assert_eq!(aware.relation, Relation::ReplaceOne);
    assert_near(best(aware), exact(&[(4.0, 5)], 2.0));
    let unaware = claim(&statement, Adversary::DoesNotSeeParticipants);
    assert!(best(unaware) >= exact(&[(4.0, 1)], 2.0) && best(unaware) < best(aware));
}

#[test]
fn whoever_sees_who_took_part_sees_who_is_there_and_is_promised_no_more_than_zeroing_out() {
    let real = CentralPrivacy { relation: Relation::AddOrRemoveOne, ..poisson(2.0) };
    let statement =
        statement_of("real", &real, &ledger(Relation::AddOrRemoveOne, &[("real", Some(SECRET), &real, 2)]));
    let relations: Vec<Relation> = statement.claims.iter().map(|claim| claim.relation).collect();
    assert_eq!(relations, [Relation::AddOrRemoveOne, Relation::ZeroOut]);
    assert_near(best(claim(&statement, Adversary::SeesParticipants)), exact(&[(2.0, 2)], 1.0));
    // A claim that was turned against the other adversary does not stand.
    let mut turned = statement;
    turned.claims[0].adversary = Adversary::SeesParticipants;
    assert_eq!(turned.recompute(), Err(StatementError::Adversary { claim: 1 }));
    turned.claims[0].adversary = Adversary::DoesNotSeeParticipants;
    turned.claims[0].runs.clear();
    assert_eq!(turned.recompute(), Err(StatementError::Parts { claim: 1 }));
}

#[test]
fn a_statement_of_version_1_keeps_only_what_holds_without_sampling() {
    let charge = poisson(2.0).charge();
    let Charge { mechanism, composition: Composition::Each { at_most: None } } = charge else {
        panic!("{charge:?}")
    };
    let events = [Event::new(mechanism, 3).unwrap()];
    let epsilon = Epsilons::from(accounting::epsilon(&events, Relation::ZeroOut, DELTA).unwrap());
    let head = ledger(Relation::ZeroOut, &[]).head();
    let old = serde_json::json!({
        "version": 1, "model_sha256": "ab", "run": "r", "round": 3, "software": "consortia 0.1.0", "outside": [],
        "claims": [{
            "unit": "client", "population": "wards", "relation": "zero_out", "delta": DELTA, "epsilon": epsilon,
            "epsilon_max": 2.0, "events": events, "releases": 3, "against": "whoever", "assumes": [], "mechanism": "noise",
            "ledger_head": head,
        }],
    });
    let read = PrivacyStatement::read(&old.to_string()).unwrap();
    let [only] = read.claims.as_slice() else { panic!("{read:?}") };
    assert_eq!((only.adversary, only.releases), (Adversary::SeesParticipants, 3));
    assert_near(best(only), exact(&[(2.0, 3)], 1.0));
    assert!(
        read.outside.join("\n").contains("any smaller epsilon against those who do not see who took part")
    );
    // What is exported again is read again, and what did not hold does not hold now.
    assert_eq!(PrivacyStatement::read(&read.to_json()).unwrap(), read);
    let mut wrong = old.clone();
    wrong["claims"][0]["epsilon"]["rdp"] = 0.1.into();
    assert!(matches!(PrivacyStatement::read(&wrong.to_string()), Err(StatementError::Epsilon { .. })));
    let mut newer = old;
    newer["version"] = 3.into();
    assert_eq!(PrivacyStatement::read(&newer.to_string()), Err(StatementError::Version(3)));
}

#[test]
fn a_seeded_run_claims_nothing_and_what_it_cost_is_in_later_statements() {
    let real = poisson(2.0);
    let ledger =
        ledger(Relation::ZeroOut, &[("seeded", Some(KNOWN), &real, 4), ("real", Some(SECRET), &real, 1)]);
    let subject = Subject { model_sha256: "ab".into(), run: "seeded".into(), round: 4, is_seeded: true };
    let privacy = PrivacySpec { central: Some(real.clone()), ..PrivacySpec::default() };
    let seeded = PrivacyStatement::of(subject, &privacy, Some(&ledger)).unwrap();
    assert!(seeded.claims.is_empty() && seeded.void.is_some());
    let later = statement_of("real", &real, &ledger);
    assert!(best(claim(&later, Adversary::DoesNotSeeParticipants)) >= exact(&[(2.0, 4)], 1.0));
}
