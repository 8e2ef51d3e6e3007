//! What a learner does wrong at a site costs its task, and nobody else hears of it.

use crate::processes::Process;
use crate::stage::{Stage, is_alive, log_with, plan, until};
use serde_json::Value;

/// What the server must never hear: what the learner prints, and how it ends.
const WORDS: [&str; 5] = ["Miller", "line of standard output", "exit status", "no patients", "silent for"];

/// Answers in each round of a run of two sites, whose second misbehaves in round 2.
fn answered(behaviour: &str, told: &[&str]) -> (Stage, Process, Vec<u64>) {
    let stage = Stage::new(&["north", "south"]);
    let good = stage.run_with("north", &[("BEHAVIOUR", "learns"), ("RECORDS", "0")]);
    let behaviour = format!("{behaviour}@2");
    let bad = stage.run_with("south", &[("BEHAVIOUR", &behaviour), ("RECORDS", "1")]);
    let end = stage.finish(&plan(4, 2, ""), None);
    drop(good);
    let answers = end["history"].as_array().unwrap().iter().map(|round| round["answered"].as_u64().unwrap());
    let answers = answers.collect();
    until_told(&bad, told, &behaviour);
    let heard = stage.servers_words();
    for word in WORDS {
        assert!(!heard.contains(word), "{behaviour}: the server has `{word}`");
    }
    (stage, bad, answers)
}

/// Waits until the site's own people are told all of this: on stdout, or in the log.
fn until_told(site: &Process, words: &[&str], behaviour: &str) {
    let mut said = String::new();
    until(&format!("{behaviour}: {words:?} are not told"), || {
        said += &site.lines.try_iter().map(|line| line.to_string()).collect::<String>();
        let log = site.errors.lock().unwrap();
        words.iter().all(|word| said.contains(word) || log.contains(word)).then_some(())
    });
}

#[test]
fn a_task_that_goes_wrong_costs_itself_alone() {
    let cases: [(&str, &[&str]); 7] = [
        ("hangs", &["silent for 2 s", "patient Miller is 81"]),
        ("ends at ease", &["exit status: 0", "patient Miller is 81"]),
        ("dies", &["exit status: 9"]),
        ("fails and ends", &["no patients"]),
        ("fails", &["no patients", "line 7"]),
        ("sends rubbish", &["Does the learner print into the channel?"]),
        ("sends no number", &["tensor `a` has NaN at place 2 of its 3 values"]),
    ];
    std::thread::scope(|scope| {
        // Side by side: they wait more than they work.
        for (behaviour, told) in cases {
            scope.spawn(move || {
                let (.., answers) = answered(behaviour, told);
                assert_eq!(answers, [2, 1, 2, 2], "{behaviour}");
            });
        }
    });
}

#[test]
fn what_is_only_noise_costs_nothing() {
    for (behaviour, told) in [("prints much", "line 19999"), ("prints without a newline", "xxxxxxxx")] {
        let (.., answers) = answered(behaviour, &[told]);
        assert_eq!(answers, [2, 2, 2, 2], "{behaviour}");
    }
}

/// The second answer is found when the next request is open, and breaks the rules of the channel then.
#[test]
fn a_second_answer_costs_one_task_at_most() {
    let (_stage, site, answers) = answered("answers twice", &[]);
    assert!(answers[0] == 2 && answers[1] == 2 && answers[3] == 2, "{answers:?}");
    log_with(&site, "a learner is connected");
}

#[test]
fn a_child_that_holds_the_learners_output_holds_up_nobody_and_is_killed() {
    let (stage, _site, answers) = answered("leaves a child that holds its output", &["exit status: 0"]);
    assert_eq!(answers, [2, 1, 2, 2]);
    let child = std::fs::read_to_string(stage.path("south/learner/child")).unwrap().parse().unwrap();
    until("the learner's child lives", || (!is_alive(child)).then_some(()));
}

/// A site's log has what its learner prints, unless it was told to be quiet.
#[test]
fn a_site_logs_what_its_learner_prints() {
    let stage = Stage::new(&["north"]);
    let site = stage.run_with("north", &[("BEHAVIOUR", "learns")]);
    stage.finish(&plan(1, 1, ""), None);
    let log = log_with(&site, "this is a line of standard output");
    let line: Value = log
        .lines()
        .find(|line| line.contains("standard output"))
        .map(|line| serde_json::from_str(line).unwrap())
        .unwrap();
    assert!(line["level"] == "INFO" && line["target"] == "learner", "{line}");
    assert_eq!((&line["fields"]["learner"], &line["fields"]["stream"]), (&"north".into(), &"out".into()));
}
