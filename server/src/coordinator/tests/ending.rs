//! What is said of a run that goes on, or ends, and is not what its plan has asked for.

use protocol::Decline;

use super::*;

const TWO: &str = "[cohort]\nclients_min = 2\n";

/// A run of four rounds, of which those that are listed find a quorum.
fn ended(found: [bool; 4], extra: &str) -> Stage {
    let text = format!("{PLAN}{TWO}{extra}").replace("rounds = 2", "rounds = 4");
    let begin = Checkpoint::begin(Parameters::new(vec![0.0; DIMENSION]));
    let plan = Arc::new(Plan::parse(&text).unwrap());
    let mut stage = Stage::with(Setup { plan, ..setup(TWO, begin) });
    stage.join(&["a", "b"]);
    for is_found in found {
        if is_found {
            stage.answer_all(0.25);
        } else {
            for (client, task) in stage.take_sent() {
                let detail = "the disk is full".to_owned();
                stage.answer(&client, task.id, Outcome::Declined { reason: Decline::Failed, detail });
            }
        }
    }
    stage
}

#[test]
fn a_run_whose_last_rounds_released_nothing_has_failed_and_says_how_many_and_why() {
    let stage = ended([true, false, false, false], "[evaluation]\nsites = \"none\"\n");
    let Some(RunEnd::Failed(why)) = &stage.end else { panic!("{:?}", stage.end) };
    assert!(why.starts_with("the last 3 rounds of 4 released nothing"), "{why}");
    assert!(
        why.contains("the model is that of an earlier round") && why.contains("the disk is full"),
        "{why}"
    );
    assert_eq!(stage.commits.last().unwrap().checkpoint.end, stage.end, "as it is stored");
}

#[test]
fn a_run_of_which_most_has_come_is_finished_and_says_how_many_rounds_released_nothing() {
    for (found, nothing) in [
        ([true, false, false, true], 2),
        ([false, false, false, true], 3),
        ([true, true, true, false], 1),
        ([true, true, false, false], 2),
        ([true; 4], 0),
    ] {
        let stage = ended(found, "[evaluation]\nsites = \"none\"\n");
        assert_eq!(stage.end, Some(RunEnd::Finished), "{found:?}");
        let releases = found.into_iter().filter(|found| *found).count() as u32;
        let said = RunEnd::Finished.message(RunProgress { rounds_done: 4, rounds: 4, releases });
        let told = match nothing {
            0 => "all rounds are done".to_owned(),
            _ => format!("all rounds are done, and {nothing} of them released nothing"),
        };
        assert_eq!(said, told);
    }
}

fn warnings(stage: &Stage) -> Vec<(u32, String)> {
    let warned = |note: &Note| match note {
        Note::Warned { task, warning } => Some((task.round.0, warning.clone())),
        _ => None,
    };
    stage.notes.iter().filter_map(warned).collect()
}

#[test]
fn updates_that_a_coarse_lattice_rounds_away_are_warned_of_before_the_first_round_and_after_each() {
    let stage = ended([true; 4], "[update]\nnorm_max = 1e9\n[evaluation]\nsites = \"none\"\n");
    assert_eq!(stage.model(), [0.0; DIMENSION]);
    let told = warnings(&stage);
    assert_eq!(told.iter().map(|(round, _)| *round).collect::<Vec<_>>(), [1, 1, 2, 3, 4]);
    assert!(told[0].1.starts_with("update.norm_max = "), "{}", told[0].1);
    for (_, warning) in &told {
        assert!(
            warning.contains("step") && warning.contains("Set update.norm_max to at most")
                || warning.contains("set update.norm_max to at most"),
            "{warning}"
        );
        assert!(!warning.contains("0000000000"), "{warning}");
    }
    for fixed in ["update.weight_max", "learning rate"] {
        assert!(told[0].1.contains(fixed), "{}", told[0].1);
    }
    assert!(told[1].1.contains("zero in every value"), "{}", told[1].1);
}

#[test]
fn a_lattice_that_is_fine_is_not_warned_of_and_a_round_that_moves_nothing_is_all_the_same() {
    assert_eq!(warnings(&ended([true; 4], "[evaluation]\nsites = \"none\"\n")), []);
    let mut stage = Stage::new(TWO);
    stage.join(&["a", "b"]);
    stage.answer_all(0.0);
    let told = warnings(&stage);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].1.contains("learning_rate"), "{told:?}");
}

#[test]
fn what_was_measured_on_no_records_is_no_measurement() {
    let stage = |examples| {
        let mut stage = Stage::new(TWO);
        stage.join(&["a", "b"]);
        stage.answer_all(0.25);
        for (client, task) in stage.take_sent() {
            let metrics = Metrics { examples, ..Metrics::default() };
            assert!(matches!(task.work, Work::Evaluate { .. }));
            stage.answer(&client, task.id, Outcome::evaluated(metrics));
        }
        (stage.coordinator.clients()[&id("a")].test, stage.commits.last().unwrap().summary.sites)
    };
    assert_eq!(stage(0), (None, None));
    assert!(stage(3).0.is_some() && stage(3).1.is_some());
}
