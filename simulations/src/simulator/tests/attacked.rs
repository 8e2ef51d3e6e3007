//! Corrupted clients: what they send travels like everything else, and follows from the seed alone.

use protocol::Rejection;

use super::*;
use crate::AdversariesConfig;

/// Of the toys, four rounds of which every update counts the same and none is clipped but what is far too long.
const ALIKE: &str = "update = { weights = \"uniform\", norm_max = 1e5 }\n";
const ATTACKS: [&str; 10] = [
    "\"sign_flip\"",
    "\"gaussian\"",
    "\"zero\"",
    "\"norm\"",
    "{ alie = { z = 2 } }",
    "\"inner_product\"",
    "\"min_max\"",
    "{ min_sum = { direction = \"sign\" } }",
    "\"mimic\"",
    "\"backdoor\"",
];

fn attacked(plan: &str, adversaries: &str, availability: AvailabilityConfig, threads: usize) -> Outcome {
    let plan = Plan::parse(&format!("{PLAN}{plan}")).unwrap();
    let adversaries: AdversariesConfig = toml::from_str(adversaries).unwrap();
    let simulator = Simulator::new(plan, Parameters::new(vec![0.0; 2]), 5, availability).unwrap();
    let simulator = simulator.with_threads(threads).with_adversaries(Some(adversaries));
    simulator.run(&Toys::new(50), &mut |_| {}).unwrap()
}

fn late() -> AvailabilityConfig {
    AvailabilityConfig { latency_spread: 1.0, ..AvailabilityConfig::default() }
}

/// The number in a toy's name, which is the first value of its update.
fn number(client: &ClientId) -> f64 {
    client.as_str()[1..].parse().unwrap()
}

/// Sums of the first values over honest and corrupted clients.
fn sums(outcome: &Outcome) -> (f64, f64) {
    let bad: f64 = outcome.corrupted.iter().map(number).sum();
    (1225.0 - bad, bad)
}

#[test]
fn neither_threads_nor_the_order_of_arrival_change_what_is_sent() {
    let mut models = BTreeSet::new();
    for attack in ATTACKS {
        let table = format!("share = 0.3\nattack = {attack}\n");
        let calm = attacked(ALIKE, &table, AvailabilityConfig::default(), 1);
        assert_eq!((calm.corrupted.len(), calm.end.clone()), (15, RunEnd::Finished));
        assert_eq!(calm.model.sha256(), attacked(ALIKE, &table, late(), 3).model.sha256(), "{attack}");
        models.insert(calm.model.sha256());
        let availability = AvailabilityConfig { dropout: 0.1, availability: 0.8, ..late() };
        let plan = format!(
            "{ALIKE}cohort = {{ clients_min = 10, count = 20, quorum = 5, deadline_seconds = 3, oversample = 1.3 }}\n"
        );
        let one = attacked(&plan, &table, availability, 1);
        for threads in [2, 7] {
            let many = attacked(&plan, &table, availability, threads);
            assert_eq!(one.model.sha256(), many.model.sha256(), "{attack}");
            assert_eq!((one.elapsed, one.updates), (many.elapsed, many.updates));
        }
    }
    assert_eq!(models.len(), ATTACKS.len(), "two attacks did the same");
}

#[test]
fn a_mean_moves_as_the_attack_says() {
    let moved = |attack: &str| {
        let outcome = attacked(ALIKE, &format!("count = 10\nattack = {attack}\n"), late(), 2);
        let (good, bad) = sums(&outcome);
        (f64::from(outcome.model.values()[0]) / 4.0, good, bad)
    };
    let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-3, "{found}, {expected}");
    let (found, good, bad) = moved("{ sign_flip = { scale = 3 } }");
    near(found, (good - 3.0 * bad) / 50.0);
    let (found, good, _) = moved("\"zero\"");
    near(found, good / 50.0);
    let (found, good, _) = moved("{ inner_product = { epsilon = 0.5 } }");
    near(found, (good - 10.0 * 0.5 * good / 40.0) / 50.0);
    let (found, good, _) = moved("{ mimic = { client = \"c007\" } }");
    near(found, (good + 10.0 * 7.0) / 50.0);
    let (found, good, bad) = moved("{ backdoor = { scale = 2 } }");
    near(found, (good + 2.0 * bad) / 50.0);
}

#[test]
fn an_update_beyond_the_norm_is_refused_by_its_norm_and_the_others_count() {
    let outcome = attacked(ALIKE, "count = 10\nattack = \"norm\"\n", late(), 2);
    let (good, _) = sums(&outcome);
    assert!((f64::from(outcome.model.values()[0]) - 4.0 * good / 40.0).abs() < 1e-3);
    assert_eq!((outcome.corrupted.len(), outcome.updates), (10, 4 * 40));
    for (client, record) in &outcome.clients {
        let refused = record.refused.get(&Rejection::NormExceeded).copied().unwrap_or_default();
        assert_eq!(refused, if outcome.corrupted.contains(client) { 4 } else { 0 }, "{client}");
    }
}

#[test]
fn what_is_sent_is_never_longer_than_an_honest_update_may_be() {
    for attack in
        ["\"gaussian\"", "{ sign_flip = { scale = 1e300 } }", "{ inner_product = { epsilon = 1e30 } }"]
    {
        let bounded = "update = { weights = \"uniform\", norm_max = 1 }\n";
        let outcome = attacked(bounded, &format!("count = 49\nattack = {attack}\n"), late(), 2);
        assert_eq!(outcome.updates, 4 * 50, "{attack}");
    }
}

#[test]
fn colluders_in_a_round_without_an_honest_client_know_their_own_updates() {
    // Of 50 clients 49 are corrupted, and two take part in a round: most rounds have no honest one.
    let plan = format!("{ALIKE}cohort = {{ clients_min = 50, count = 2 }}\n");
    for (attack, factor) in [("{ inner_product = { epsilon = 2 } }", -2.0), ("\"min_max\"", -0.5)] {
        let outcome = attacked(&plan, &format!("count = 49\nattack = {attack}\n"), late(), 2);
        assert_eq!((outcome.updates, outcome.rounds.len()), (8, 4), "{attack}");
        let honest = (0..50)
            .map(|n| format!("c{n:03}"))
            .find(|name| !outcome.corrupted.iter().any(|corrupted| corrupted.as_str() == name));
        let honest = outcome.clients[&ClientId::new(&honest.unwrap()).unwrap()].accepted;
        assert_eq!(honest, 0, "{attack}: with this seed no round draws the honest one");
        let told: f64 =
            outcome.clients.iter().map(|(client, record)| f64::from(record.accepted) * number(client)).sum();
        let found = f64::from(outcome.model.values()[0]);
        assert!((found - factor * told / 2.0).abs() < 1e-2, "{attack}: {found}, {told}");
    }
}

#[test]
fn a_round_that_asks_more_than_it_needs_takes_the_answers_of_one_moment_by_chance() {
    let plan = Plan::parse(&format!("{PLAN}cohort = {{ clients_min = 50, count = 10, oversample = 5 }}\n"));
    let world = |seed| {
        let world = Simulator::new(
            plan.clone().unwrap(),
            Parameters::new(vec![0.0; 2]),
            seed,
            AvailabilityConfig::default(),
        );
        let outcome = world.unwrap().run(&Toys::new(50), &mut |_| {}).unwrap();
        let accepted = |(client, record): (&ClientId, &ClientRecord)| (client.clone(), record.accepted);
        outcome.clients.iter().map(accepted).collect::<Vec<_>>()
    };
    let one = world(5);
    let taken = one.iter().filter(|(_, accepted)| *accepted > 0).count();
    assert!(taken > 20, "the same {taken} of 50 clients in each of four rounds");
    assert!(one.iter().rev().take(25).any(|(_, accepted)| *accepted > 0), "the last by name take part");
    assert_eq!(one, world(5));
    assert_ne!(one, world(6));
}

#[test]
fn without_anybody_corrupted_nothing_changes() {
    let honest = attacked(ALIKE, "share = 0.0\nattack = \"alie\"\n", late(), 2);
    let (plain, _) = run(ALIKE, late(), 2);
    assert!(honest.corrupted.is_empty() && honest.model.sha256() == plain.model.sha256());
}

#[test]
fn more_corrupted_clients_than_there_are_is_no_simulation() {
    let simulator =
        Simulator::new(Plan::parse(PLAN).unwrap(), Parameters::new(vec![0.0; 2]), 5, late()).unwrap();
    let table = toml::from_str("count = 51\nattack = \"zero\"\n").unwrap();
    let simulator = simulator.with_adversaries(Some(table));
    let error = simulator.run(&Toys::new(50), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("51 of 50 clients would be corrupted"), "{error}");
}
