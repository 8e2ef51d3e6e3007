//! What an outbox keeps, in files and in memory, and what it throws away.

use std::sync::Arc;

use protocol::{Answer, Outcome, Parameters, Stop, UpdateCodec};

use super::*;
use crate::participant::tests::{Mood, entropy, participant, task, train};

fn answer(task: &Task) -> Packed {
    let answer: Answer = participant(&[], Mood::Well).perform(task, entropy(), &Stop::default());
    assert!(matches!(answer.outcome, Outcome::Done(_)));
    let (header, payload) = AnswerHeader::pack(answer, UpdateCodec::Exact);
    packed(header, payload)
}

fn anywhere(_: Option<LedgerHead>) -> bool {
    true
}

fn files(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn an_answer_comes_back_byte_for_byte_also_in_another_life_and_names_the_attempt_at_hand() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("outbox");
    let asked = train(1, 3);
    let kept = answer(&asked);
    let mut outbox = Outbox::open(&folder).unwrap();
    let mut memory = Outbox::default();
    for outbox in [&mut outbox, &mut memory] {
        outbox.keep(&asked, &kept, None).unwrap();
        assert_eq!(outbox.find(&asked, anywhere), Ok(Some(kept.clone())));
    }
    drop(outbox);
    fs::write(folder.join("0000000000000001.new"), b"half").unwrap();
    let mut outbox = Outbox::open(&folder).unwrap();
    assert_eq!(files(&folder), ["0000000000000001.answer"]);
    let renewed = Task { id: asked.id.next_attempt(), ..asked.clone() };
    let again = outbox.find(&renewed, anywhere).unwrap().unwrap();
    assert_eq!((again.header.task, &again.values), (renewed.id, &kept.values));
    outbox.forget_task(train(2, 3).id);
    assert_eq!(files(&folder).len(), 1, "the receipt of another task is no matter of it");
    outbox.forget_task(asked.id);
    assert!(outbox.find(&asked, anywhere).unwrap().is_none() && files(&folder).is_empty());
}

#[test]
fn another_task_of_the_same_name_or_another_ledger_gets_nothing_and_ends_what_was_kept() {
    let asked = train(1, 3);
    let model = Arc::new(Parameters::new(vec![0.75; 3]));
    let other_model = Task {
        work: Work::Train { model: Arc::clone(&model), learning_rate_scale: 1.0, norm_max: None },
        ..asked.clone()
    };
    let mut spec = (*asked.spec).clone();
    spec.training.epochs += 1;
    let other_plan = Task { spec: Arc::new(spec), ..asked.clone() };
    let other_work = Task { work: Work::Evaluate { model }, ..asked.clone() };
    for other in [other_model, other_plan, other_work] {
        assert_eq!(other.id, asked.id);
        let mut outbox = Outbox::default();
        outbox.keep(&asked, &answer(&asked), None).unwrap();
        assert_eq!(outbox.find(&other, anywhere), Err(Unusable::Stale));
        assert_eq!(outbox.find(&asked, anywhere), Ok(None));
    }
    let mut outbox = Outbox::default();
    let head = LedgerHead { records: 3, head: Digest::of(b"third") };
    outbox.keep(&asked, &answer(&asked), Some(head)).unwrap();
    assert_eq!(outbox.find(&asked, |then| then != Some(head)), Err(Unusable::Ledger));
    // A step that is over is nobody's error.
    outbox.keep(&asked, &answer(&asked), None).unwrap();
    assert_eq!(outbox.find(&train(2, 3), anywhere), Ok(None));
    assert_eq!(outbox.find(&asked, anywhere), Ok(None));
}

#[test]
fn a_file_with_any_wrong_byte_or_end_is_thrown_away_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let asked = train(1, 3);
    let kept = answer(&asked);
    let path = dir.path().join("0000000000000001.answer");
    Outbox::open(dir.path()).unwrap().keep(&asked, &kept, None).unwrap();
    let whole = fs::read(&path).unwrap();
    let spoilt = (0..whole.len()).map(|at| {
        let mut spoilt = whole.clone();
        spoilt[at] ^= 1;
        spoilt
    });
    let cut = (0..whole.len()).step_by(7).map(|end| whole[..end].to_vec());
    let longer = [[&whole[..], b"x"].concat()];
    for bytes in spoilt.chain(cut).chain(longer) {
        fs::write(&path, bytes).unwrap();
        let found = Outbox::open(dir.path()).unwrap().find(&asked, anywhere);
        let Err(Unusable::Damaged { path: named, .. }) = found else { panic!("{found:?}") };
        assert!(named == path && !path.exists());
    }
    fs::write(&path, whole).unwrap();
    assert_eq!(Outbox::open(dir.path()).unwrap().find(&asked, anywhere), Ok(Some(kept)));
}

#[test]
fn answers_of_few_runs_are_kept_and_the_newest_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut outbox = Outbox::open(dir.path()).unwrap();
    let of = |run: u64| {
        let mut asked = task(1, train(1, 3).work);
        asked.id.run = RunId(run);
        asked
    };
    for run in 0..ANSWERS_MAX as u64 + 3 {
        outbox.keep(&of(run), &answer(&of(run)), None).unwrap();
    }
    assert_eq!(files(dir.path()).len(), ANSWERS_MAX);
    for run in 0..ANSWERS_MAX as u64 + 3 {
        assert_eq!(outbox.find(&of(run), anywhere).unwrap().is_some(), run >= 3, "{run}");
    }
}

#[cfg(unix)]
#[test]
fn what_is_kept_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("outbox");
    let asked = train(1, 3);
    Outbox::open(&folder).unwrap().keep(&asked, &answer(&asked), None).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(&folder.join("0000000000000001.answer"))), (0o700, 0o600));
}
