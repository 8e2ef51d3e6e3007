//! An interrupted simulation, gone on with, ends as one that nobody interrupted; and it says what went wrong at its clients.

use privacy::noise::NoiseSource;
use protocol::Decline;

use super::*;

/// Watches, keeps what to go on from, and stops a simulation when a round opens.
#[derive(Default)]
struct Collected {
    snapshots: Vec<String>,
    stop_in: Option<(u32, Stop)>,
    declined: Vec<(String, Option<String>)>,
}

impl Watch for Collected {
    fn note(&mut self, seen: Observation<'_>) {
        match (seen.note, &self.stop_in) {
            (Note::Opened { task, .. }, Some((round, stop))) if task.round.0 == *round => stop.stop(),
            (Note::Declined { detail, .. }, _) => {
                let own = seen.error.map(|error| error.message.clone());
                self.declined.push((detail.clone(), own));
            }
            _ => {}
        }
    }

    fn stored(&mut self, stored: Stored<'_>) {
        let snapshot = stored.snapshot.and_then(|snapshot| snapshot());
        self.snapshots.extend(snapshot.map(|snapshot| serde_json::to_string(&snapshot).unwrap()));
    }
}

/// Noise whose n-th vector is always the same.
fn seeded() -> NoiseRng {
    let mut drawn = 0u8;
    NoiseRng::of(move || {
        drawn += 1;
        Ok(NoiseSource::insecure([drawn; 32]))
    })
}

fn simulator(plan: &str, availability: AvailabilityConfig) -> Simulator {
    let start = Parameters::new(vec![0.0; 2]);
    Simulator::new(Plan::parse(&format!("{PLAN}{plan}")).unwrap(), start, 5, availability)
        .unwrap()
        .with_threads(2)
        .with_chance(seeded())
}

fn play(simulator: Simulator, toys: &Toys, kept: &mut Collected) -> Outcome {
    let optimizer = simulator.plan.strategy.optimizer();
    simulator.run_watched(optimizer, toys, kept).unwrap()
}

/// All of an outcome that must not depend on an interruption.
fn facts(outcome: &Outcome) -> impl PartialEq + std::fmt::Debug {
    (
        (outcome.end.clone(), outcome.model.sha256(), outcome.rounds.clone(), outcome.clients.clone()),
        (outcome.updates, outcome.elapsed, outcome.best.clone(), outcome.ledger.len()),
        outcome.statement.clone(),
    )
}

const CENTRAL: &str = "[update]\nnorm_max = 60.0\n[privacy.central]\ndelta = 1e-5\nepsilon_max = 1000\nnoise_multiplier = 2\ndenominator = 10\n";

fn plans() -> Vec<(String, AvailabilityConfig)> {
    let fair = AvailabilityConfig::default();
    let foul = AvailabilityConfig { latency_spread: 1.0, dropout: 0.1, availability: 0.7, ..fair };
    let cohort = "cohort = { clients_min = 10, count = 20, quorum = 5, deadline_seconds = 3 }\n";
    let everybody = "sampling = { availability = { participations_max = 1000 } }\n";
    vec![
        (String::new(), fair),
        (cohort.to_owned(), foul),
        (format!("{cohort}strategy = {{ fedadam = {{}} }}\n"), foul),
        (format!("{cohort}evaluation = {{ every = 2 }}\n"), foul),
        ("update = { codec = { top_k = { fraction = 0.5 } } }\n".to_owned(), fair),
        (format!("{CENTRAL}sampling = {{ poisson = {{ rate = 0.3 }} }}\n"), foul),
        (format!("{CENTRAL}{everybody}noise = \"tree\"\n"), foul),
        (format!("{CENTRAL}{everybody}clipping = {{ adaptive = {{ count_noise = 7.0 }} }}\n"), fair),
    ]
}

#[test]
fn a_world_that_goes_on_from_any_round_ends_with_the_same_bits() {
    for (plan, availability) in plans() {
        let (toys, mut kept) = (Toys::new(50), Collected::default());
        let whole = play(simulator(&plan, availability), &toys, &mut kept);
        assert_eq!(whole.end, RunEnd::Finished, "{plan}");
        assert!(kept.snapshots.len() >= 3, "{plan}");
        for snapshot in kept.snapshots.iter().take(3) {
            let snapshot: Snapshot = serde_json::from_str(snapshot).unwrap();
            let round = snapshot.round();
            let rest = play(
                simulator(&plan, availability).with_snapshot(snapshot),
                &toys,
                &mut Collected::default(),
            );
            assert_eq!(
                format!("{:?}", facts(&rest)),
                format!("{:?}", facts(&whole)),
                "from round {round}: {plan}"
            );
        }
    }
}

#[test]
fn a_world_that_is_stopped_drops_its_round_and_goes_on_with_the_same_bits() {
    for (plan, availability) in plans() {
        let toys = Toys::new(50);
        let whole = play(simulator(&plan, availability), &toys, &mut Collected::default());
        for round in 1..=4 {
            let stop = Stop::default();
            let mut kept = Collected { stop_in: Some((round, stop.clone())), ..Collected::default() };
            let stopped = play(simulator(&plan, availability).with_stop(stop), &toys, &mut kept);
            if stopped.end == RunEnd::Finished {
                // It was told while its last model was measured, which is the end of a round.
                continue;
            }
            assert_eq!(stopped.end, RunEnd::Stopped, "round {round}: {plan}");
            let Some(snapshot) = stopped.snapshot else {
                assert_eq!(round, 1, "{plan}");
                continue;
            };
            assert!(snapshot.round() + 1 == round, "{} before {round}: {plan}", snapshot.round());
            let text = serde_json::to_string(&snapshot).unwrap();
            let snapshot: Snapshot = serde_json::from_str(&text).unwrap();
            let rest = play(
                simulator(&plan, availability).with_snapshot(snapshot),
                &toys,
                &mut Collected::default(),
            );
            assert_eq!(
                format!("{:?}", facts(&rest)),
                format!("{:?}", facts(&whole)),
                "round {round}: {plan}"
            );
        }
    }
}

#[test]
fn a_snapshot_of_another_world_is_refused() {
    let (toys, mut kept) = (Toys::new(50), Collected::default());
    play(simulator("", AvailabilityConfig::default()), &toys, &mut kept);
    let snapshot = || serde_json::from_str::<Snapshot>(&kept.snapshots[0]).unwrap();
    let fewer = Toys::new(49);
    let begun = simulator("", AvailabilityConfig::default()).with_snapshot(snapshot());
    let refused = begun.run(&fewer, &mut |_| {}).unwrap_err();
    assert!(refused.to_string().contains("population"), "{refused}");
    let plan = Plan::parse(PLAN).unwrap();
    let other =
        Simulator::new(plan, Parameters::new(vec![0.0; 2]), 6, AvailabilityConfig::default()).unwrap();
    let refused = other.with_snapshot(snapshot()).run(&toys, &mut |_| {}).unwrap_err();
    assert!(refused.to_string().contains("seed"), "{refused}");
}

/// Clients that cannot train.
struct Broken(Vec<ClientId>);

struct BrokenLearner(Layout);

impl Workforce for Broken {
    fn clients(&self) -> &[ClientId] {
        &self.0
    }
    fn worker(&self) -> Box<dyn Worker + '_> {
        Box::new(BrokenLearner(Layout::new([("w".to_owned(), vec![2])]).unwrap()))
    }
    fn central(&self) -> Option<Box<dyn Learner>> {
        None
    }
}

impl Worker for BrokenLearner {
    fn visit(&mut self, _: usize) -> &mut dyn Learner {
        self
    }
}

impl Learner for BrokenLearner {
    fn prepare(&mut self, _: &Arc<Spec>) -> Result<(), LearnError> {
        Ok(())
    }
    fn layout(&self) -> &Layout {
        &self.0
    }
    fn initialise(&mut self, _: Seed) -> Result<Vec<f32>, LearnError> {
        Ok(vec![0.0; 2])
    }
    fn statistics(&mut self) -> Result<Vec<Statistic>, LearnError> {
        Ok(Vec::new())
    }
    fn train(&mut self, _: &mut [f32], _: &TrainOrder, _: &Stop) -> Result<Metrics, LearnError> {
        Err(LearnError::new(Decline::Data, "line 7 of ward.csv: `x` is no number"))
    }
    fn evaluate(&mut self, _: &[f32], _: &EvaluateOrder, _: &Stop) -> Result<Metrics, LearnError> {
        Ok(Metrics::default())
    }
}

#[test]
fn a_world_whose_clients_all_decline_has_failed_in_their_own_words_but_not_beside_a_promise() {
    let broken = Broken((0..3).map(|i| ClientId::new(&format!("c{i}")).unwrap()).collect());
    let run = |plan: &str| {
        let simulator = simulator(plan, AvailabilityConfig::default());
        let (optimizer, mut kept) = (simulator.plan.strategy.optimizer(), Collected::default());
        (simulator.run_watched(optimizer, &broken, &mut kept).unwrap(), kept.declined)
    };
    for failures_max in [1, 10, 4_000_000_000_u32] {
        let (outcome, declined) = run(&format!("cohort = {{ failures_max = {failures_max} }}\n"));
        let RunEnd::Failed(why) = &outcome.end else { panic!("{:?}", outcome.end) };
        assert!(why.contains("c0, c1, c2 declined (data") && why.contains("line 7 of ward.csv"), "{why}");
        assert!(declined.iter().all(|(detail, _)| detail.contains("line 7")), "{declined:?}");
    }
    let everybody = "sampling = { availability = { participations_max = 1000 } }\n";
    let (outcome, declined) = run(&format!("cohort = {{ failures_max = 2 }}\n{CENTRAL}{everybody}"));
    let RunEnd::Failed(why) = &outcome.end else { panic!("{:?}", outcome.end) };
    assert!(why.contains("declined") && !why.contains("ward.csv"), "{why}");
    assert!(!declined.is_empty());
    for (detail, own) in declined {
        assert!(!detail.contains("ward.csv") && own.is_some_and(|own| own.contains("ward.csv")), "{detail}");
    }
}
