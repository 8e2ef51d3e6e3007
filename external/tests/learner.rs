//! Learners that do well, and learners that do badly in every way that was thought of: each costs its task and nothing else.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and time what they measure"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use external::{ClientPlace, ExternalLearner, LearnerSettings};
use protocol::{
    Decline, EvaluateOrder, LearnError, Learner as _, Metrics, Round, Seed, Spec, Stop, TrainOrder,
};

fn spec() -> Arc<Spec> {
    let spec = r#"{
        "model": {"external": {"start": "start.safetensors", "tensors": [
            {"name": "w", "shape": [2, 2]}, {"name": "b", "shape": []}, {"name": "a", "shape": [3]}
        ]}},
        "training": {"epochs": 2, "batch_size": 16, "optimizer": {"sgd": {"learning_rate": 1.0}}},
        "cohort_max": 10,
        "learner": {"config": {"width": 2}, "metrics": ["auc"]}
    }"#;
    Arc::new(Spec::from_json(spec).unwrap())
}

fn settings(behaviour: &str) -> LearnerSettings {
    let settings = LearnerSettings {
        command: vec![env!("CARGO_BIN_EXE_external-player").to_owned()],
        environment: [("BEHAVIOUR".to_owned(), behaviour.to_owned())].into(),
        start_seconds: 20,
        silent_seconds: 2,
        end_seconds: 1,
        ..LearnerSettings::default()
    };
    settings.checked().unwrap()
}

fn order() -> TrainOrder {
    let seed = Seed::from_number(7);
    TrainOrder { round: Round(3), seed, learning_rate_scale: 0.5, standardiser: None, permit: None }
}

const START: [f32; 8] = [1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0];

fn train(learner: &mut ExternalLearner, stop: &Stop) -> Result<(Vec<f32>, Metrics), LearnError> {
    learner.prepare(&spec())?;
    let mut values = START.to_vec();
    values.resize(learner.layout().len(), 0.0);
    let metrics = learner.train(&mut values, &order(), stop)?;
    Ok((values, metrics))
}

#[test]
fn a_result_counts_for_fedprox_only_where_the_learner_has_added_its_term() {
    let folder = tempfile::tempdir().unwrap();
    let mut proximal = Spec::clone(&spec());
    proximal.proximal_mu = 0.25;
    let of = |behaviour: &str, spec: Spec| {
        let mut learner = ExternalLearner::new(settings(behaviour), folder.path().to_owned(), "north");
        learner.prepare(&Arc::new(spec)).unwrap();
        learner.train(&mut START.clone(), &order(), &Stop::default())
    };
    assert!(of("", proximal.clone()).is_ok());
    assert!(of("adds no term", Spec::clone(&spec())).is_ok());
    let error = of("adds no term", proximal).unwrap_err();
    assert!(error.message.contains("fedprox with mu = 0.25"), "{}", error.message);
}

fn attempt(behaviour: &str, folder: &Path) -> Result<(Vec<f32>, Metrics), LearnError> {
    train(&mut ExternalLearner::new(settings(behaviour), folder.to_owned(), "north"), &Stop::default())
}

#[test]
fn values_go_out_and_come_back_in_the_plans_order_whatever_the_learners_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut learner = ExternalLearner::new(settings(""), folder.path().to_owned(), "north");
    let (values, metrics) = train(&mut learner, &Stop::default()).unwrap();
    // The learner has `a`, `b`, `w`, and adds 1, 2 and 3.
    assert_eq!(values, [4.0, 5.0, 6.0, 7.0, 12.0, 21.0, 31.0, 41.0]);
    assert_eq!((metrics.examples, metrics.accuracy), (4, Some(1.0)));
    // The seed travels whole.
    assert_eq!(metrics.loss, order().seed.to_number() as f64);
    let evaluated =
        learner.evaluate(&values, &EvaluateOrder { standardiser: None }, &Stop::default()).unwrap();
    assert_eq!((evaluated.loss, evaluated.examples), (127.0, 8));
    assert_eq!(learner.parameter_count(&spec()), Some(8));
}

#[test]
fn what_stays_at_the_site_is_behind_the_plans_tensors_and_begins_as_the_learner_says() {
    let folder = tempfile::tempdir().unwrap();
    let mut learner = ExternalLearner::new(settings("keeps a head"), folder.path().to_owned(), "north");
    learner.prepare(&spec()).unwrap();
    assert_eq!((learner.layout().len(), learner.layout().shared_len()), (10, 8));
    assert_eq!(learner.initialise(Seed::from_number(1)).unwrap()[8..], [0.5, -0.5]);
    let mut values = [&START[..], &[100.0, 200.0]].concat();
    learner.train(&mut values, &order(), &Stop::default()).unwrap();
    // `a`, `head`, `b`, `w`.
    assert_eq!(values, [5.0, 6.0, 7.0, 8.0, 13.0, 21.0, 31.0, 41.0, 102.0, 202.0]);
    // The plan's tensors alone are not the whole of it.
    let (order, stop) = (EvaluateOrder { standardiser: None }, Stop::default());
    let error = learner.evaluate(&START, &order, &stop).unwrap_err();
    assert!(error.message.contains("8 values are given for its 10 parameters"), "{error:?}");
}

#[test]
fn what_a_learner_does_wrong_costs_its_task_and_is_told() {
    let folder = tempfile::tempdir().unwrap();
    for (behaviour, reason, told) in [
        ("exits at once", Decline::Failed, "exit status: 3"),
        ("prints into the channel", Decline::Failed, "Does the learner print into the channel?"),
        ("is of another release", Decline::Unsupported, "speaks versions [7]"),
        ("has another model", Decline::Unsupported, "the learner has a [5], b [], w [2, 2]"),
        (
            "keeps too much",
            Decline::Unsupported,
            "more than 1073741824 values, at `p` of shape [70368744177664]",
        ),
        ("dies", Decline::Failed, "closed its connection (exit status: 9)"),
        ("hangs", Decline::Failed, "silent for 2 s"),
        ("fails", Decline::Failed, "no patients\nTraceback:\n  line 7"),
        ("sends no number", Decline::NotFinite, "tensor `a` has NaN at place 2 of its 3 values"),
        ("sends too few", Decline::Failed, "28 bytes of values where 32 are due"),
        ("sends too many", Decline::Failed, "4032 bytes of values where 32 are due"),
        ("has no loss", Decline::Failed, "no `loss`"),
        ("has a strange metric", Decline::Failed, "metric `temperature` is not among the plan's"),
        ("is too accurate", Decline::Failed, "loss 1, accuracy 1.5 and 4 examples"),
        ("answers another request", Decline::Failed, "a `result` while request 2 is open"),
        ("says a huge length", Decline::Failed, "its header has 4294967295 bytes"),
        ("says a huge body", Decline::Failed, "a body of 1099511627775 bytes"),
        ("sends half a frame", Decline::Failed, "silent for 2 s"),
    ] {
        let began = Instant::now();
        let error = attempt(behaviour, folder.path()).unwrap_err();
        assert!(error.reason == reason && error.message.contains(told), "{behaviour}: {error:?}");
        assert!(began.elapsed() < Duration::from_secs(15), "{behaviour}: {:?}", began.elapsed());
    }
}

#[test]
fn a_learner_that_died_is_started_again_for_the_next_task_and_one_that_said_so_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut learner = ExternalLearner::new(settings("dies once"), folder.path().to_owned(), "north");
    let stop = Stop::default();
    assert!(train(&mut learner, &stop).unwrap_err().message.contains("exit status: 9"));
    let (values, _) = train(&mut learner, &stop).unwrap();
    assert_eq!(values[0], 4.0);
    let mut kept = ExternalLearner::new(settings("fails"), folder.path().to_owned(), "north");
    let began = Instant::now();
    for _ in 0..3 {
        assert!(train(&mut kept, &stop).unwrap_err().message.contains("no patients"));
    }
    // No pause follows a script's own error.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn one_that_ends_between_two_tasks_costs_neither() {
    let folder = tempfile::tempdir().unwrap();
    let mut learner = ExternalLearner::new(settings("fails and ends@3"), folder.path().to_owned(), "north");
    let (stop, began) = (Stop::default(), Instant::now());
    assert!(train(&mut learner, &stop).unwrap_err().message.contains("no patients"));
    // The process is still about to end.
    let evaluated = learner.evaluate(&START, &EvaluateOrder { standardiser: None }, &stop);
    assert_eq!(evaluated.unwrap().examples, 8);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // One that dies as soon as it is asked is asked twice, and then left alone for a while, longer each time.
    let mut learner = ExternalLearner::new(settings("dies unheard"), folder.path().to_owned(), "north");
    let mut said: Vec<String> = Vec::new();
    while !said.last().is_some_and(|said| said.contains("times in a row")) {
        assert!(said.len() < 8, "{said:?}");
        said.push(train(&mut learner, &stop).unwrap_err().message);
    }
    assert!(said[0].contains("exit status: 9"), "{said:?}");
}

#[test]
fn one_that_comes_back_with_another_personal_part_is_told_so_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let mut learner = ExternalLearner::new(settings("changes its head"), folder.path().to_owned(), "north");
    assert!(train(&mut learner, &Stop::default()).unwrap_err().message.contains("exit status: 9"));
    for _ in 0..2 {
        let error = train(&mut learner, &Stop::default()).unwrap_err();
        assert!(error.message.contains("its personal tensors are others than before"), "{error:?}");
    }
}

#[test]
fn an_error_has_the_last_that_the_learner_printed() {
    let folder = tempfile::tempdir().unwrap();
    let error = attempt("dies", folder.path()).unwrap_err().message;
    let told = "(exit status: 9); the last that it printed:\nthis is a line of standard output\npatient Miller is 81";
    assert!(error.ends_with(told), "{error}");
}

/// A folder is where the learner starts, so that a relative path of it leads elsewhere.
#[test]
fn a_learner_finds_its_folder_by_a_whole_path() {
    let folder = tempfile::tempdir_in(".").unwrap();
    let relative = Path::new(".").join(folder.path().file_name().unwrap());
    attempt("tells its surroundings", &relative).unwrap();
    let told = std::fs::read(relative.join("surroundings.json")).unwrap();
    let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
    let home = format!("HOME={}", relative.canonicalize().unwrap().display());
    assert!(told["environment"].as_array().unwrap().contains(&home.clone().into()), "{home}: {told}");
}

/// Under a promise that holds against the server nothing that a script does before a task is paid for may show.
#[test]
fn what_goes_wrong_before_a_task_is_paid_for_is_told_with_its_work() {
    let folder = tempfile::tempdir().unwrap();
    let spec = Spec {
        privacy: serde_json::from_str(
            r#"{"local": {"noise_multiplier": 1.0, "delta": 1e-5, "epsilon_max": 9.0}}"#,
        )
        .unwrap(),
        ..(*spec()).clone()
    };
    for behaviour in ["exits at once", "has another model", "is of another release"] {
        let mut learner = ExternalLearner::new(settings(behaviour), folder.path().to_owned(), "north");
        for _ in 0..2 {
            learner.prepare(&Arc::new(spec.clone())).unwrap();
            assert_eq!(
                (learner.layout().len(), learner.initialise(Seed::from_number(1)).unwrap().len()),
                (8, 8)
            );
            learner.train(&mut START.to_vec(), &order(), &Stop::default()).unwrap_err();
        }
    }
}

#[test]
fn one_that_fails_again_and_again_is_left_alone_for_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let mut learner = ExternalLearner::new(settings("exits at once"), folder.path().to_owned(), "north");
    let mut said = Vec::new();
    for _ in 0..4 {
        said.push(train(&mut learner, &Stop::default()).unwrap_err().message);
    }
    assert!(said[..3].iter().all(|said| said.contains("exit status: 3")), "{said:?}");
    let error = train(&mut learner, &Stop::default()).unwrap_err().message;
    assert!(error.contains("failed 4 times in a row; it is started again in"), "{error}");
}

/// Nobody may see that it is left alone, and an answer of nothing costs as much as one of something.
#[test]
fn a_task_that_is_answered_all_the_same_waits_for_a_learner_to_be_started_again_and_not_for_long() {
    let folder = tempfile::tempdir().unwrap();
    let local = r#"{"local": {"noise_multiplier": 1.0, "delta": 1e-5, "epsilon_max": 9.0}}"#;
    let spec = Spec { privacy: serde_json::from_str(local).unwrap(), ..(*spec()).clone() };
    let mut learner = ExternalLearner::new(settings("exits at once"), folder.path().to_owned(), "north");
    let mut waited = Duration::ZERO;
    for _ in 0..5 {
        let began = Instant::now();
        learner.prepare(&Arc::new(spec.clone())).unwrap();
        let error = learner.train(&mut START.to_vec(), &order(), &Stop::default()).unwrap_err();
        let of_either = ["exit status: 3", "it is started again in"];
        assert!(of_either.iter().any(|told| error.message.contains(told)), "{error:?}");
        // A server sees a round that is missed, and may see how long an answer takes.
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        waited += began.elapsed();
    }
    assert!(
        waited > Duration::from_secs(3),
        "answers of nothing would spend a budget in no time: {waited:?}"
    );
}

#[test]
fn a_stop_ends_a_task_soon_whether_or_not_the_learner_heeds_it() {
    let folder = tempfile::tempdir().unwrap();
    for behaviour in ["heeds a stop", "works for ever"] {
        let mut learner = ExternalLearner::new(settings(behaviour), folder.path().to_owned(), "north");
        let stop = Stop::default();
        learner.prepare(&spec()).unwrap();
        let later = stop.clone();
        let timer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            later.stop();
        });
        let began = Instant::now();
        let error = train(&mut learner, &stop).unwrap_err();
        timer.join().unwrap();
        let is_its = error.reason == Decline::Stopped || error.message.contains("after it was told to stop");
        assert!(is_its && began.elapsed() < Duration::from_secs(5), "{behaviour}: {error:?}");
    }
}

#[test]
fn an_owner_that_is_to_end_waits_for_no_learner() {
    let folder = tempfile::tempdir().unwrap();
    for behaviour in ["hangs from its start on", "works for ever", "hangs"] {
        let settings = LearnerSettings { silent_seconds: 600, end_seconds: 600, ..settings(behaviour) };
        let (ending, began) = (Stop::default(), Instant::now());
        let learner = ExternalLearner::new(settings, folder.path().to_owned(), "north");
        let mut learner = learner.with_ending(ending.clone());
        let timer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            ending.stop();
        });
        train(&mut learner, &Stop::default()).unwrap_err();
        learner.end();
        timer.join().unwrap();
        assert!(began.elapsed() < Duration::from_secs(5), "{behaviour}: {:?}", began.elapsed());
    }
}

#[test]
fn a_limit_of_time_holds_for_a_learner_that_is_heard() {
    let folder = tempfile::tempdir().unwrap();
    let settings = LearnerSettings { task_seconds: Some(1), ..settings("works for ever") };
    let mut learner = ExternalLearner::new(settings, folder.path().to_owned(), "north");
    let error = train(&mut learner, &Stop::default()).unwrap_err();
    assert!(error.message.contains("more than 1 s (`task_seconds`)"), "{error:?}");
}

/// Whether a descriptor of this process closes when another program takes its place, as all do that this code opens.
fn closes(number: &str) -> bool {
    const CLOSE_ON_EXEC: u32 = 0o2_000_000;
    let Ok(told) = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")) else { return true };
    let flags = told.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    u32::from_str_radix(flags.trim(), 8).unwrap() & CLOSE_ON_EXEC != 0
}

#[test]
fn a_learner_finds_what_it_needs_and_nothing_of_its_agent() {
    let folder = tempfile::tempdir().unwrap();
    let _key = std::fs::File::open(env!("CARGO_BIN_EXE_external-player")).unwrap();
    attempt("tells its surroundings", folder.path()).unwrap();
    let told = std::fs::read(folder.path().join("surroundings.json")).unwrap();
    let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
    let of = |key: &str| -> Vec<String> {
        told[key].as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()).collect()
    };
    let mut names: Vec<String> =
        of("environment").iter().map(|one| one.split('=').next().unwrap().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["BEHAVIOUR", "CONSORTIA_LEARNER", "HOME", "LANG", "PATH", "PYTHONUNBUFFERED"]);
    // What whoever started this program left open for all is not the agent's.
    let is_inherited = |one: &String| {
        let number = one.split(' ').next().unwrap();
        number.parse::<u32>().unwrap() > 2 && !closes(number)
    };
    let open: Vec<String> = of("open").into_iter().filter(|one| !is_inherited(one)).collect();
    let count = |what: &str| open.iter().filter(|one| one.contains(what)).count();
    // The channel, its two duplicates, two outputs, and the folder that it lists.
    assert_eq!((count(" socket:"), count(" pipe:"), count("/proc/"), open.len()), (3, 2, 1, 6), "{open:?}");
    let here = folder.path().canonicalize().unwrap();
    assert_eq!(told["folder"].as_str().unwrap(), here.to_str().unwrap());
}

#[test]
fn one_that_is_asked_to_end_ends_and_one_that_does_not_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    for behaviour in ["", "does not end"] {
        let mut learner = ExternalLearner::new(settings(behaviour), folder.path().to_owned(), "north");
        learner.prepare(&spec()).unwrap();
        let began = Instant::now();
        learner.end();
        assert!(began.elapsed() < Duration::from_secs(4), "{behaviour}: {:?}", began.elapsed());
    }
}

#[test]
fn a_learner_attaches_by_file_and_token_and_another_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let settings = LearnerSettings { command: Vec::new(), attach: true, ..settings("") };
    let mut learner = ExternalLearner::new(settings.checked().unwrap(), folder.path().to_owned(), "north");
    learner.serve(ClientPlace { name: "north".into(), index: 0, clients: 1 });
    let file = folder.path().join("attach.json");
    // One after the other: the first of two that wait together is not known.
    let players = |behaviours: &'static [&str]| {
        let file = file.clone();
        std::thread::spawn(move || {
            while !file.exists() {
                std::thread::sleep(Duration::from_millis(10));
            }
            let play = |behaviour: &&str| {
                let mut player = std::process::Command::new(env!("CARGO_BIN_EXE_external-player"));
                player.env("CONSORTIA_LEARNER", &file).env("BEHAVIOUR", behaviour).status().unwrap().code()
            };
            behaviours.iter().map(play).collect::<Vec<_>>()
        })
    };
    let first = players(&["has a wrong token", "dies"]);
    let error = train(&mut learner, &Stop::default()).unwrap_err();
    assert!(error.message.contains("closed its connection"), "{error:?}");
    assert_eq!(first.join().unwrap(), [Some(1), Some(9)]);
    let next = players(&[""]);
    let (values, _) = train(&mut learner, &Stop::default()).unwrap();
    assert_eq!(values[0], 4.0);
    learner.end();
    assert_eq!(next.join().unwrap(), [Some(0)]);
    drop(learner);
    assert!(!file.exists());
}

#[test]
fn a_plan_of_this_program_and_a_command_that_is_not_there_are_declined() {
    let folder = tempfile::tempdir().unwrap();
    let settings = LearnerSettings { command: vec!["/no/such/program".into()], ..settings("") };
    let mut learner = ExternalLearner::new(settings, folder.path().to_owned(), "north");
    let error = learner.prepare(&spec()).unwrap_err();
    assert!(error.message.contains("`/no/such/program` cannot be started in"), "{error:?}");
    let built_in = r#"{"model": "linear", "cohort_max": 2, "data": {"tensor": {"shape": [1], "target": "real"}},
        "training": {"batch_size": 1, "optimizer": {"sgd": {"learning_rate": 1.0}}}}"#;
    let error = learner.prepare(&Arc::new(Spec::from_json(built_in).unwrap())).unwrap_err();
    assert!(
        error.reason == Decline::Unsupported && error.message.contains("must be `external`"),
        "{error:?}"
    );
}
