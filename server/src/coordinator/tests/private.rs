//! The coordinator of a private run: nothing without a reservation, nothing beyond the budget, nothing twice.
//!
//! Noise comes from seeds here, so every test is exact: no false alarms.

use privacy::accounting::gaussian;
use privacy::chain::Link;
use privacy::ledger::{Cohorts, Conduct, Ledger, Record, SiteMetrics};
use privacy::noise::NoiseSource;
use protocol::{Contribution, Decline};

use super::*;

const NOISE: f64 = 4.0;

pub(super) fn plan(rounds: u32, epsilon_max: f64, sampling: &str, more: &str) -> String {
    format!(
        "name = \"p\"\nrounds = {rounds}\nmodel = \"linear\"\n\
         [data.table]\nlabel = \"y\"\ntarget = \"real\"\nfeatures = [\"a\"]\n\
         [training]\nbatch_size = 8\noptimizer = {{ sgd = {{ learning_rate = 0.1 }} }}\n\
         [update]\nnorm_max = 1.0\n\
         [cohort]\nclients_min = 2\n\
         [privacy.central]\ndelta = 1e-5\nepsilon_max = {epsilon_max}\nnoise_multiplier = {NOISE}\ndenominator = 2\n\
         sampling = {sampling}\n{more}"
    )
}

pub(super) const EVERY: &str = "{ availability = { participations_max = 1000 } }";

/// Noise that follows from a number and the number of vectors drawn before.
pub(super) fn seeded(number: u8) -> NoiseRng {
    let mut drawn = 0;
    NoiseRng::of(move || {
        drawn += 1;
        Ok(NoiseSource::insecure([number.wrapping_add(drawn); 32]))
    })
}

pub(super) fn private_setup(plan: &str, checkpoint: Checkpoint, links: &[Link], chance: NoiseRng) -> Setup {
    let plan = Arc::new(Plan::parse(plan).unwrap());
    let ledger = if links.is_empty() {
        Ledger::found(plan.spec.privacy.central.as_ref().unwrap().terms()).unwrap().0
    } else {
        Ledger::replay(links).unwrap()
    };
    Setup {
        plan,
        is_seeded: false,
        dp_context: Some(DpContext { ledger, chance, threads: 1 }),
        ..setup("", checkpoint)
    }
}

fn begin() -> Checkpoint {
    Checkpoint::begin(Parameters::new(vec![0.0; DIMENSION]))
}

/// A private run, with the first record of its ledger on its disk.
pub(super) fn private(plan: &str) -> Stage {
    let terms = Plan::parse(plan).unwrap().spec.privacy.central.as_ref().unwrap().terms();
    let mut stage = Stage::with(private_setup(plan, begin(), &[], seeded(0)));
    stage.ledger.push(Ledger::found(terms).unwrap().1);
    stage
}

pub(super) fn records(stage: &Stage) -> Vec<Record> {
    stage.ledger.iter().map(|link| link.read().unwrap()).collect()
}

#[test]
fn the_budget_ends_the_run_exactly_where_the_formula_says_and_a_restart_does_not_fill_it() {
    let plan = plan(50, 2.0, EVERY, "");
    let mut stage = private(&plan);
    stage.join(&["a", "b"]);
    while stage.end.is_none() {
        stage.answer_all(0.1);
    }
    let releases = stage.coordinator.checkpoint().releases;
    let of = |rounds: u32| gaussian::epsilon(NOISE / f64::from(rounds).sqrt(), 1e-5).unwrap();
    assert!(of(releases) <= 2.0 && of(releases + 1) > 2.0, "{releases}");
    assert!(matches!(&stage.end, Some(RunEnd::BudgetExhausted(why)) if why.contains("epsilon")));
    assert!(matches!(records(&stage).last(), Some(Record::Refused { .. })));
    let last = stage.commits.last().unwrap();
    assert_eq!(last.checkpoint.round, Round(releases), "the last release stands");

    // The same ledger pays for no other run of the population either.
    let mut again = Stage::with(private_setup(&plan, begin(), &stage.ledger, seeded(9)));
    again.join(&["a", "b"]);
    assert!(matches!(again.end, Some(RunEnd::BudgetExhausted(_))) && again.sent.is_empty());
}

#[test]
fn nothing_is_asked_of_anybody_before_the_reservation_is_on_disk() {
    let mut stage = private(&plan(3, 9.0, EVERY, ""));
    stage.commits_succeed = false;
    stage.join(&["a", "b"]);
    assert!(stage.sent.is_empty());
    assert!(matches!(records(&stage)[..], [Record::Opened { .. }, Record::Reserved { round: 1, .. }]));
    stage.handle(Event::Reserved);
    assert_eq!(stage.sent.len(), 2);
}

#[test]
fn a_crash_before_the_commit_gives_the_reservation_back_and_releases_once() {
    let plan = plan(3, 9.0, EVERY, "");
    let mut stage = private(&plan);
    stage.join(&["a", "b"]);
    let on_disk = stage.ledger.clone();
    stage.answer_all(0.1);
    // The process dies with the reservation on disk and the commit not.
    let mut again = Stage::with(private_setup(&plan, begin(), &on_disk, seeded(50)));
    again.ledger = on_disk;
    again.join(&["a", "b"]);
    again.answer_all(0.1);
    let found = records(&again);
    assert!(matches!(
        found[1..],
        [
            Record::Reserved { .. },
            Record::Cancelled { .. },
            Record::Reserved { .. },
            Record::Spent { .. },
            ..
        ]
    ));
    let ledger = Ledger::replay(&again.ledger).unwrap();
    assert_eq!(ledger.releases(), 1);
}

#[test]
fn whatever_the_order_of_the_answers_the_noised_model_is_the_same() {
    let names = ["a", "b", "c", "d", "e"];
    let model = |turn: usize| {
        let mut stage = private(&plan(1, 9.0, EVERY, ""));
        stage.commits_succeed = false;
        stage.join(&names);
        stage.handle(Event::Reserved);
        let mut sent = stage.take_sent();
        sent.rotate_left(turn);
        if turn % 2 == 1 {
            sent.reverse();
        }
        for (client, task) in sent {
            let value = f32::from(client.as_str().as_bytes()[0] - b'a') / 7.0;
            stage.answer(&client, task.id, honest(&task, value, 1));
        }
        stage.model().iter().map(|value| value.to_bits()).collect::<Vec<_>>()
    };
    let first = model(0);
    assert!((1..20).all(|turn| model(turn % 5) == first));
}

#[test]
fn without_entropy_the_round_is_off_and_its_reservation_given_back() {
    let plan = plan(3, 9.0, EVERY, "");
    let chance = NoiseRng::of(NoiseSource::from_failing_entropy);
    let mut stage = Stage::with(private_setup(&plan, begin(), &[], chance));
    stage.join(&["a", "b"]);
    stage.answer_all(0.1);
    assert_eq!(stage.model(), [0.0, 0.0]);
    assert!(stage.notes.iter().any(|note| matches!(note, Note::Withheld { .. })));
    assert!(!stage.commits[0].summary.released);
    let found = records(&stage);
    assert!(matches!(found[..], [Record::Reserved { .. }, Record::Cancelled { .. }, ..]), "{found:?}");
}

#[test]
fn no_client_takes_part_more_often_or_earlier_than_the_plan_says() {
    let sampling = "{ availability = { participations_max = 2, separation_min = 2 } }";
    let mut stage = private(
        &plan(50, 9.0, sampling, "clients_min = 1\n")
            .replace("clients_min = 2\n", "clients_min = 2\ncount = 1\n"),
    );
    stage.join(&["a", "b"]);
    let mut turns: BTreeMap<ClientId, Vec<u32>> = BTreeMap::new();
    while stage.end.is_none() {
        for (client, task) in stage.take_sent() {
            turns.entry(client.clone()).or_default().push(task.id.round.0);
            stage.answer(&client, task.id, honest(&task, 0.1, 1));
        }
    }
    assert!(turns.values().all(|rounds| rounds.len() == 2 && rounds[1] - rounds[0] >= 2), "{turns:?}");
    let why = stage.end.unwrap();
    assert!(matches!(&why, RunEnd::BudgetExhausted(why) if why.contains("2 releases")), "{why:?}");
}

#[test]
fn secret_coins_are_tossed_for_all_who_are_enrolled_and_an_empty_cohort_is_released_as_noise() {
    let mut stage = private(&plan(40, 9.0, "{ poisson = { rate = 0.5 } }", ""));
    stage.join(&["a", "b", "c"]);
    // Enrolled and not there: its coins are tossed, and it counts as a zero.
    stage.handle(Event::Left(id("c")));
    let mut cohorts = Vec::new();
    while stage.end.is_none() {
        let sent = stage.take_sent();
        cohorts.push(sent.len());
        for (client, task) in sent {
            stage.answer(&client, task.id, honest(&task, 0.1, 1));
        }
        if cohorts.len() > 200 {
            panic!("the run does not end: {}", stage.coordinator.status());
        }
    }
    assert!(stage.commits.iter().all(|commit| commit.summary.released));
    // Empty ones are over before anybody sees that they were open.
    assert!(cohorts.len() < 40 && [1, 2].iter().all(|size| cohorts.contains(size)), "{cohorts:?}");
    assert_eq!(Ledger::replay(&stage.ledger).unwrap().releases(), 40);
}

pub(super) const FIXED: &str = "{ fixed = { population = 3, sample = 2 } }";
pub(super) const COIN: &str = "{ poisson = { rate = 0.5 } }";

#[test]
fn a_round_of_a_secret_cohort_is_released_whoever_of_it_answers() {
    for sampling in [COIN, FIXED] {
        let mut stage = private(&plan(30, 99.0, sampling, ""));
        stage.join(&["a", "b", "c"]);
        let mut turn = 0;
        while stage.end.is_none() {
            for (client, task) in stage.take_sent() {
                turn += 1;
                // One answers, one declines, one sends nonsense, one is late.
                match turn % 4 {
                    0 => stage.answer(&client, task.id, honest(&task, 0.1, 1)),
                    1 => {
                        let (reason, detail) = (Decline::Stopped, String::new());
                        stage.answer(&client, task.id, Outcome::Declined { reason, detail });
                    }
                    2 => stage.answer(&client, task.id, Outcome::evaluated(Metrics::default())),
                    _ => {}
                }
            }
            if stage.end.is_none() {
                stage.wait_for_deadline();
            }
        }
        assert_eq!(stage.end, Some(RunEnd::Finished), "{sampling}");
        assert!(stage.commits.iter().all(|commit| commit.summary.released), "{sampling}");
        assert_eq!(Ledger::replay(&stage.ledger).unwrap().releases(), 30);
    }
}

#[test]
fn everybody_who_is_drawn_counts_however_many_they_are() {
    let mut stage = private(&plan(3, 99.0, "{ poisson = { rate = 1.0 } }", ""));
    let names: Vec<String> = (0..40).map(|index| format!("c{index:02}")).collect();
    // The first two open a round; the others are there for the next.
    stage.join(&names.iter().map(String::as_str).collect::<Vec<_>>());
    stage.answer_all(0.01);
    let sent = stage.take_sent();
    assert_eq!(sent.len(), 40);
    for (client, task) in sent {
        stage.answer(&client, task.id, honest(&task, 0.01, 1));
    }
    assert!(stage.receipts.iter().all(|(_, receipt)| *receipt == Receipt::Accepted), "{:?}", stage.receipts);
}

#[test]
fn nothing_that_leaves_the_coordinator_shows_who_or_how_many_were_drawn() {
    // The same round with nobody, one and all of the others: what is told of it is the same.
    for (sampling, more) in [(COIN, ""), (FIXED, ""), (COIN, "metrics = \"outside_the_guarantee\"\n")] {
        let mut stage = private(&plan(12, 99.0, sampling, more));
        stage.join(&["a", "b", "c"]);
        while stage.end.is_none() {
            let status = stage.coordinator.status();
            assert!(!(status.contains("train") && status.contains(" of ")), "{status}");
            for (client, task) in stage.take_sent() {
                stage.now = stage.now + Duration::from_secs(3);
                let outcome = match (client.as_str(), &task.work) {
                    ("a", Work::Train { .. }) => {
                        Outcome::Declined { reason: Decline::Stopped, detail: String::new() }
                    }
                    ("b", Work::Train { .. }) => Outcome::evaluated(Metrics::default()),
                    _ => honest(&task, 0.1, 1),
                };
                stage.answer(&client, task.id, outcome);
            }
        }
        for note in &stage.notes {
            let shown = match note {
                Note::Opened { task, .. }
                | Note::Accepted { task, .. }
                | Note::Declined { task, .. }
                | Note::Closed { task, .. } => Some(*task),
                Note::Refused { task, .. } => *task,
                _ => None,
            };
            assert!(shown.is_none_or(|task| task.step == StepId::EVALUATE), "{note:?}");
        }
        for Commit { summary, reports, clients, .. } in &stage.commits {
            assert_eq!((summary.cohort, summary.answered, summary.seconds), (0, 0, 0.0));
            assert!(summary.participation().is_none() && summary.train.is_none());
            assert!(reports.iter().all(|(_, task, _)| task.step == StepId::EVALUATE));
            for (_, record) in clients {
                let counts = (record.accepted, record.releases, record.refused.len(), record.declined.len());
                assert_eq!(counts, (0, 0, 0, 0));
            }
        }
        // Who is enrolled is public, and stored from the beginning.
        assert_eq!(stage.commits[0].clients.len(), 3);
    }
}

#[test]
fn a_seeded_run_shows_its_cohorts_since_everybody_can_compute_them() {
    let setup = private_setup(&plan(1, 99.0, "{ poisson = { rate = 1.0 } }", ""), begin(), &[], seeded(0));
    let mut stage = Stage::with(Setup { is_seeded: true, ..setup });
    stage.join(&["a", "b"]);
    stage.answer_all(0.1);
    assert_eq!((stage.commits[0].summary.cohort, stage.commits[0].summary.answered), (2, 2));
    let declares =
        |stage: &Stage| records(stage).iter().any(|record| matches!(record, Record::Declared { .. }));
    assert!(!declares(&stage), "nobody's secret is declared");
    let mut real = private(&plan(1, 99.0, COIN, ""));
    real.join(&["a", "b"]);
    assert!(declares(&real));
    let conduct = Conduct { cohorts: Cohorts::Secret, metrics: SiteMetrics::Hidden };
    assert_eq!(Ledger::replay(&real.ledger).unwrap().conduct(&RunId(1).to_string()), Some(conduct));
    assert!(stage.notes.iter().any(|note| matches!(note, Note::Accepted { .. })));
}

#[test]
fn a_round_that_is_given_up_after_its_secret_draw_is_paid_for() {
    for (sampling, releases) in [(COIN, 1), (FIXED, 1), (EVERY, 0)] {
        let mut stage = private(&plan(5, 99.0, sampling, ""));
        stage.commits_succeed = false;
        stage.join(&["a", "b", "c"]);
        // NoiseRng may draw nobody, and then the round is over at once: this one draws somebody.
        stage.handle(Event::Reserved);
        assert!(!stage.take_sent().is_empty(), "{sampling}");
        stage.handle(Event::Control(Control::StopNow));
        let ledger = Ledger::replay(&stage.ledger).unwrap();
        assert_eq!((ledger.releases(), ledger.open_reservations().len()), (releases, 0), "{sampling}");
    }
    // Before the draw nothing is known, and nothing is paid.
    let mut stage = private(&plan(5, 99.0, COIN, ""));
    stage.commits_succeed = false;
    stage.join(&["a", "b"]);
    stage.handle(Event::Control(Control::Stop));
    stage.handle(Event::Reserved);
    assert_eq!(Ledger::replay(&stage.ledger).unwrap().releases(), 0);
}

#[test]
fn a_fixed_sample_waits_for_its_population_and_draws_from_nothing_less() {
    let mut stage = private(&plan(2, 99.0, FIXED, ""));
    stage.join(&["a", "b"]);
    assert!(stage.sent.is_empty() && stage.ledger.len() == 1, "nothing is reserved before");
    assert!(stage.coordinator.status().contains("2 of the 3 clients"), "{}", stage.coordinator.status());
    stage.join(&["c"]);
    assert_eq!(stage.sent.len(), 2);
}

#[test]
fn one_client_moves_the_release_by_no_more_than_the_clipping_norm_over_the_denominator() {
    for update in ["", "weights = \"examples\"\nweight_max = 100\n"] {
        let plan = plan(1, 9.0, EVERY, "").replace("norm_max = 1.0\n", &format!("norm_max = 1.0\n{update}"));
        let model = |with_giant: bool| {
            let mut stage = private(&plan);
            stage.commits_succeed = false;
            stage.join(&["a", "b", "giant"]);
            stage.handle(Event::Reserved);
            for (client, task) in stage.take_sent() {
                let giant = client.as_str() == "giant";
                let (value, examples) = if giant { (1e6, 1_000_000) } else { (0.01, 10) };
                let outcome = if giant && !with_giant {
                    Outcome::Declined { reason: Decline::Stopped, detail: String::new() }
                } else {
                    honest(&task, value, examples)
                };
                stage.answer(&client, task.id, outcome);
            }
            stage.model()
        };
        let (with, without) = (model(true), model(false));
        let square = with.iter().zip(&without).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        let moved = square.sqrt();
        assert!(moved <= 0.5 * (1.0 + 1e-6) && moved > 0.49, "{moved}");
    }
}

const ADAPTIVE: &str = "clipping = { adaptive = { count_noise = 7.0 } }\n";

#[test]
fn the_norm_follows_the_votes_and_the_next_task_says_so() {
    let mut stage = private(&plan(3, 9.0, EVERY, ADAPTIVE));
    stage.join(&["a", "b"]);
    let norm = |task: &Task| match task.work {
        Work::Train { norm_max, .. } => norm_max.map(protocol::Positive::value),
        _ => None,
    };
    assert_eq!(norm(&stage.sent[0].1), Some(1.0));
    stage.answer_all(1e-4);
    let committed = stage.commits[0].checkpoint.norm_max.map(protocol::Positive::value);
    assert_eq!(norm(&stage.sent[0].1), committed);
    assert!(committed.is_some_and(|norm| norm != 1.0));
    // A later life clips to the norm that was committed.
    let checkpoint = stage.commits[0].checkpoint.clone();
    let plan = plan(3, 9.0, EVERY, ADAPTIVE);
    let mut later = Stage::with(private_setup(&plan, checkpoint, &stage.ledger, seeded(3)));
    later.join(&["a", "b"]);
    assert_eq!(norm(&later.sent[0].1), committed);
}

#[test]
fn a_vote_that_is_none_is_refused() {
    for (more, bad) in [(ADAPTIVE, 0), (ADAPTIVE, 2), (ADAPTIVE, -128), ("", 1)] {
        let mut stage = private(&plan(3, 9.0, EVERY, more));
        stage.join(&["a", "b"]);
        let (client, task) = stage.take_sent().remove(0);
        let done = honest(&task, 0.1, 1).into_contribution().unwrap();
        stage.answer(&client, task.id, Outcome::Done(Contribution { vote: bad, ..done }));
        assert_eq!(stage.refusals("a"), [(Rejection::BadVote, 1)], "{more} {bad}");
    }
}

#[test]
fn what_sites_measure_is_not_kept_unless_the_plan_says_that_it_is_outside_the_guarantee() {
    let run = |more: &str| {
        let mut stage = private(&plan(1, 9.0, EVERY, more));
        stage.join(&["a", "b"]);
        stage.answer_all(0.1);
        stage.answer_all(0.1);
        stage
    };
    let hidden = run("");
    assert!(hidden.commits.iter().all(|commit| commit.reports.is_empty() && commit.summary.train.is_none()));
    assert_eq!(hidden.commits.len(), 1, "nobody is asked to evaluate");
    let open = run("metrics = \"outside_the_guarantee\"\n");
    assert!(open.commits[0].summary.train.is_some() && open.commits[1].summary.sites.is_some());
    assert!(open.commits[0].statement.as_ref().unwrap().contains("losses, accuracies"));
}

#[test]
fn a_statement_says_what_its_events_give_and_test_noise_claims_nothing() {
    let mut stage = private(&plan(2, 9.0, EVERY, ""));
    stage.join(&["a", "b"]);
    stage.answer_all(0.1);
    let statement = stage.commits[0].statement.clone().unwrap();
    let statement: crate::PrivacyStatement = serde_json::from_str(&statement).unwrap();
    assert!(statement.claims.is_empty() && statement.void.unwrap().contains("INSECURE"));

    let entropy = Stage::with(private_setup(&plan(2, 9.0, EVERY, ""), begin(), &[], NoiseRng::system()));
    let mut stage = entropy;
    stage.join(&["a", "b"]);
    stage.answer_all(0.1);
    let text = stage.commits[0].statement.clone().unwrap();
    let mut statement: crate::PrivacyStatement = serde_json::from_str(&text).unwrap();
    assert_eq!(statement.recompute(), Ok(()));
    assert_eq!(statement.claims[0].epsilon.pld, stage.commits[0].summary.epsilon);
    statement.claims[0].epsilon.rdp = Some(0.1);
    assert!(statement.recompute().is_err());
}

#[test]
fn correlated_noise_goes_on_where_it_was_after_a_restart() {
    for noise in ["noise = \"tree\"\n", "noise = { square_root = { bands = 3 } }\n"] {
        let plan = plan(6, 9.0, EVERY, noise);
        let mut whole = private(&plan);
        whole.join(&["a", "b"]);
        while whole.end.is_none() {
            whole.answer_all(0.1);
        }
        // Three rounds, then another life whose chance goes on where the first one's was.
        let mut first = private(&plan);
        first.join(&["a", "b"]);
        (0..3).for_each(|_| first.answer_all(0.1));
        let checkpoint = first.commits[2].checkpoint.clone();
        let kept: usize =
            first.commits[..3].iter().map(|commit| commit.reservation.as_ref().unwrap().links.len()).sum();
        let links: Vec<Link> = first.ledger[..1 + kept + 3].to_vec();
        let mut second = Stage::with(private_setup(&plan, checkpoint, &links, seeded(3)));
        second.join(&["a", "b"]);
        while second.end.is_none() {
            second.answer_all(0.1);
        }
        assert_eq!(second.model(), whole.model(), "{noise}");
        let paid = Ledger::replay(&whole.ledger).unwrap();
        assert_eq!((paid.events().len(), paid.releases()), (1, 6), "paid as a whole");
    }
}

#[test]
fn a_ledger_with_other_terms_is_not_paid_from() {
    let cheap = plan(3, 2.0, EVERY, "");
    let terms = Plan::parse(&cheap).unwrap().spec.privacy.central.as_ref().unwrap().terms();
    let links = [Ledger::found(terms).unwrap().1];
    let setup = private_setup(&plan(3, 200.0, EVERY, ""), begin(), &links, seeded(0));
    let error = Coordinator::new(setup).unwrap_err().to_string();
    assert!(error.contains("a budget is not changed afterwards"), "{error}");
    let without = Setup { dp_context: None, ..private_setup(&cheap, begin(), &links, seeded(0)) };
    assert!(Coordinator::new(without).is_err());
}

/// Of a model of two tensors with one value each.
fn tensor_by_tensor(noise: &str) -> Stage {
    let plan = plan(3, 9.0, EVERY, &format!("clipping = \"per_layer\"\n{noise}"));
    let setup = private_setup(&plan, begin(), &[], seeded(0));
    Stage::with(Setup { tensors: vec![1; DIMENSION], ..setup })
}

#[test]
fn an_update_with_all_its_norm_in_one_tensor_is_refused_though_the_whole_is_within_the_bound() {
    let mut stage = tensor_by_tensor("");
    stage.join(&["a", "b"]);
    for (client, task) in stage.take_sent() {
        let lattice = task.spec.lattice_within(task.spec.update.norm_max, &[1, 1]).unwrap();
        let far = if client == id("a") { lattice.range() - 1 } else { lattice.layer_range() };
        let flat = Lattice::plan(lattice.bound(), lattice.clients_max(), 1, 2).unwrap();
        assert!(Encoded::admit(vec![far, 0], 1, &flat).is_ok(), "as a whole it is not too long");
        let metrics = Metrics::default();
        stage.answer(&client, task.id, Outcome::trained(vec![far, 0], 1, 0, metrics));
    }
    assert_eq!(stage.refusals("a"), [(Rejection::NormExceeded, 1)]);
    assert_eq!(stage.refusals("b"), []);
}

#[test]
fn a_run_that_clips_tensor_by_tensor_books_how_many_and_enough_noise_for_all_of_them() {
    for noise in ["", "noise = \"tree\"\n", "noise = { square_root = { bands = 2 } }\n"] {
        let mut stage = tensor_by_tensor(noise);
        stage.join(&["a", "b"]);
        while stage.end.is_none() {
            stage.answer_all(0.1);
        }
        assert_eq!(stage.end, Some(RunEnd::Finished));
        let noised = |record: Record| match record {
            Record::Spent { noised, .. } => noised,
            _ => None,
        };
        let noised: Vec<_> = records(&stage).into_iter().filter_map(noised).collect();
        assert_eq!(noised.len(), 3);
        for one in noised {
            assert_eq!(one.layers, Some(2));
            assert!(one.sigma.value() >= NOISE * one.sensitivity as f64);
        }
    }
}

#[test]
fn a_plan_that_clips_tensor_by_tensor_needs_the_tensors_of_its_model() {
    let plan = plan(3, 9.0, EVERY, "clipping = \"per_layer\"\n");
    for (tensors, found) in [(vec![], 0), (vec![1, 2], 3)] {
        let setup = Setup { tensors, ..private_setup(&plan, begin(), &[], seeded(0)) };
        let refused = Coordinator::new(setup).err();
        assert_eq!(refused, Some(SetupError::Tensors { expected: DIMENSION, found }));
    }
}
