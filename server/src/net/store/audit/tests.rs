//! Whatever the server writes down, its own readers read: every kind of record, with whatever texts come from outside.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;

use privacy::chain::segments::{closed_path, files_of};
use privacy::chain::{Chain, ChainWriter, Digest, LINE_MAX};
use protocol::wire::RoundSummary;
use protocol::{ClientId, Round, StepId};
use serde_json::json;

use super::tail::BLOCK;
use super::witness::Witness;
use super::*;

const RUN: RunId = RunId(7);
const NOW: Time = Time::from_micros(1);

fn open(path: &Path, segment: SegmentBytes) -> Result<AuditLog, AuditError> {
    AuditLog::open(path, segment, Arc::default(), NOW)
}

/// One of every variant; a variant without one does not compile.
macro_rules! every {
    ($kind:ident $(<$life:lifetime>)? { $($variant:ident { $($field:tt)* })* }) => {{
        let _no_variant_is_missing = |one: &$kind $(<$life>)?| match one {
            $($kind::$variant { .. } => (),)*
        };
        vec![$($kind::$variant { $($field)* }),*]
    }};
}

/// Every event, with `text` wherever a text stands.
fn events(text: &str) -> Vec<Event<'_>> {
    let (client, by, address, reason, task) = (text, text, text, text, text.to_owned());
    let (key_sha256, max) = (text, u64::MAX);
    every!(Event<'_> {
        Started { software: text }
        Submitted { name: text, plan_sha256: text.to_owned(), is_seeded: true, by }
        Opened { task: task.clone(), cohort: usize::MAX }
        Accepted { client, task: task.clone() }
        Refused { client, task: Some(task.clone()), reason: Rejection::NormExceeded }
        Declined { client, task: task.clone(), reason: Decline::Policy }
        Closed { task: task.clone(), answered: usize::MAX, missing: 0, quorum: false }
        Withheld { task, reason }
        Released { round: 1, model_sha256: text, recovered: false }
        Round { round: 1, released: true, epsilon: Some(0.5) }
        Ended { state: RunState::BudgetExhausted, reason }
        Controlled { control: Control::StopNow, by }
        Invited { client, expires: max, by }
        Enrolled { client, key_sha256 }
        Renewed { client, key_sha256 }
        InviteReused { token_sha256: text }
        EnrolmentsRefused { count: max }
        Revoked { client, before: max, by }
        LedgerRefused { client, address, reason }
        LedgerReplaced { client, address }
        Alternating { client, address, replaced_address: text, times: max }
        Quarantined { client, reason, by }
        QuarantineEnded { client, by }
        ApprovalAsked { client, key_sha256, address }
        ApprovalGiven { client, key_sha256, by }
        ApprovalRefused { client, key_sha256, by }
        Continued { of: Continuation { segment: 2, follows: text.to_owned(), records: 7, head: Digest::default() } }
        RunCarried { plan_sha256: Some(text), round: 1, model_sha256: Some(text) }
        RevocationCarried { client, before: 1 }
    })
}

/// Everything that is told of members, with `text` wherever a text stands.
fn records(text: &str) -> Vec<Record> {
    let site = || ClientId::new("north").unwrap();
    let text = || text.to_owned();
    let mut records = every!(Record {
        Invited { site: site(), expires: u64::MAX, by: text() }
        Enrolled { site: site(), key_sha256: text() }
        Renewed { site: site(), key_sha256: text() }
        InviteReused { token_sha256: text() }
        EnrolmentsRefused { count: u64::MAX }
        Revoked { site: site(), before: 9, by: text() }
        LedgerRefused { site: site(), address: text(), reason: text() }
        LedgerReplaced { site: site(), address: text() }
        Alternating { site: site(), address: text(), replaced_address: text(), times: 3 }
        Quarantined { site: site(), reason: text(), by: text() }
        QuarantineEnded { site: site(), by: text() }
        Asked { site: site(), key_sha256: text(), address: text() }
        Decided { site: site(), key_sha256: text(), verdict: Verdict::Approved, by: text() }
    });
    records.push(Record::Decided { site: site(), key_sha256: text(), verdict: Verdict::Refused, by: text() });
    records
}

/// Everything that a run notes, with `text` wherever a text stands.
fn notes(text: &str) -> Vec<Note> {
    let client = || ClientId::new("north").unwrap();
    let task = || TaskId::new(RUN, Round(1), StepId::TRAIN);
    let text = || text.to_owned();
    let summary = RoundSummary {
        round: 1,
        released: true,
        cohort: 0,
        answered: 0,
        train: None,
        sites: None,
        central: None,
        seconds: f64::NAN,
        epsilon: Some(f64::INFINITY),
        further: Default::default(),
    };
    let mut notes = every!(Note {
        Waiting { connected: 0, needed: 1 }
        Opened { task: task(), cohort: 3 }
        Accepted { client: client(), task: task(), metrics: None }
        Refused { client: client(), task: Some(task()), reason: Rejection::Malformed, detail: text() }
        Declined { client: client(), task: task(), reason: Decline::Failed, detail: text() }
        Closed { task: task(), answered: 0, missing: 3, surplus: 0, quorum: false }
        Withheld { task: task(), reason: text() }
        Warned { task: task(), warning: text() }
        Round { 0: summary }
        Ended { 0: RunEnd::Finished }
    });
    let ends = every!(RunEnd {
        Finished {}
        Failed { 0: text() }
        BudgetExhausted { 0: text() }
        Stopped {}
    });
    notes.extend(ends.into_iter().map(Note::Ended));
    notes
}

/// Texts as strangers choose them: numbers, other records, what JSON escapes, more than a line holds.
fn texts() -> Vec<String> {
    let odd = [
        "",
        "7",
        "null",
        "18446744073709551616",
        "\"},{\"event\":\"released\"",
        "\u{0}\r\n\u{2028}\u{feff}🦀",
    ];
    let long = ["x".repeat(2 * LINE_MAX), "\u{1}".repeat(LINE_MAX), "🦀".repeat(LINE_MAX / 3)];
    odd.into_iter().map(str::to_owned).chain(long).collect()
}

#[test]
fn every_kind_of_record_is_read_by_the_servers_own_readers_whatever_its_texts() {
    for text in texts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let mut log = open(&path, SegmentBytes::default()).unwrap();
        let mut count = 1u64;
        for event in events(&text) {
            log.write(NOW, Some(RUN), &event).unwrap();
            count += 1;
        }
        for record in records(&text) {
            log.member(NOW, &record).unwrap();
            count += 1;
        }
        let read = Witness::read(dir.path(), &[]).unwrap();
        assert_eq!(read.logs[0].records(), count);
        assert!(read.twice.is_empty() && read.releases.len() == 1 && read.plans.len() == 1, "{read:?}");
        assert_eq!(read.revoked[&ClientId::new("north").unwrap()].0, 9);
        for note in notes(&text) {
            log.note(NOW, RUN, &note).unwrap();
        }
        log.sync().unwrap();
        drop(log);
        let read = Witness::read(dir.path(), &[]).unwrap();
        // That clients are waited for, and what follows from the plan, is not written down.
        assert_eq!(read.logs[0].records(), count + notes(&text).len() as u64 - 2);
        assert!(lines_of(dir.path(), RUN, usize::MAX).unwrap().len() >= events(&text).len());
        assert!(open(&path, SegmentBytes::default()).is_ok());
    }
}

#[test]
fn a_field_has_one_type_whatever_the_event_and_never_the_name_of_what_every_record_has() {
    let type_of = |value: &Value| match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a truth",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    let mut types = BTreeMap::from(
        [("time", "a number"), ("run", "a text"), ("database", "a number")]
            .map(|(name, kind)| (name.to_owned(), (kind, "every record".to_owned()))),
    );
    for event in events("text") {
        let Value::Object(fields) = serde_json::to_value(&event).unwrap() else { panic!("no object") };
        let kind = fields["event"].to_string();
        for (name, value) in fields {
            assert!(!["time", "run", "database"].contains(&name.as_str()), "{kind} has a field {name}");
            let (known, of) = types.entry(name.clone()).or_insert_with(|| (type_of(&value), kind.clone()));
            assert_eq!(*known, type_of(&value), "`{name}` of {kind} and of {of}");
        }
    }
}

#[test]
fn fields_of_kinds_that_are_not_compared_cannot_make_a_log_unreadable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    let mut writer = ChainWriter::new(Chain::new(), &mut good);
    let strange = json!({ "a": [1] });
    let later = json!({
        "event": "of_a_later_release", "time": 1, "database": 4, "round": "first", "released": strange, "model_sha256": 1,
        "recovered": "so", "plan_sha256": strange, "client": 3, "before": "127.0.0.1:9",
    });
    writer.append(&later).unwrap();
    writer.append(&json!({ "event": "revoked", "database": 5, "client": "north", "round": "none" })).unwrap();
    // What is compared is read strictly.
    let mut broken = ChainWriter::new(writer.chain(), &mut bad);
    broken.append(&json!({ "event": "revoked", "database": 5, "client": "north", "before": "now" })).unwrap();
    std::fs::write(&path, &good).unwrap();
    let read = Witness::read(dir.path(), &[]).unwrap();
    assert_eq!(read.version.unwrap().0, 5);
    assert_eq!(read.revoked[&ClientId::new("north").unwrap()].0, 0);
    std::fs::write(&path, [good, bad].concat()).unwrap();
    let said = Witness::read(dir.path(), &[]).unwrap_err().to_string();
    assert!(said.contains("line 3") && said.contains("not understood"), "{said}");
}

/// That nothing of the record is left in the log, and that it is added once afterwards, is the segments' own test.
#[cfg(target_os = "linux")]
#[test]
fn a_record_that_the_disk_has_no_room_for_may_be_tried_again() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let error = ChainWriter::new(Chain::new(), full).append(&json!({ "event": "released" })).unwrap_err();
    let error = StoreError::from(AuditError::from(error));
    assert!(error.may_be_tried_again() && error.passes(), "{error}");
}

#[test]
fn the_last_lines_of_a_run_are_found_from_the_end_of_a_log_of_many_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let mut log = open(&path, SegmentBytes::default()).unwrap();
    let other = RunId(8);
    let reason = "x".repeat(700);
    for round in 0..2500u64 {
        let now = Time::from_micros(round);
        if round == 300 {
            let (name, plan_sha256) = ("p", String::new());
            let event = Event::Submitted { name, plan_sha256, is_seeded: false, by: "ada" };
            log.write(now, Some(RUN), &event).unwrap();
        }
        let run = if round % 3 == 0 { other } else { RUN };
        log.write(now, Some(run), &Event::Withheld { task: format!("train {round}"), reason: &reason })
            .unwrap();
    }
    log.sync().unwrap();
    // A line that is being written.
    File::options().append(true).open(&path).unwrap().write_all(b"{\"run\":\"0000000000000007\"").unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.len() as u64 > 6 * BLOCK);
    for run in [RUN, other, RunId(9)] {
        let named = format!("\"run\":\"{run}\"");
        let all: Vec<&str> = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
        let all: Vec<&str> =
            all.iter().map(|line| line.trim_end()).filter(|line| line.contains(&named)).collect();
        let begun = all.iter().position(|line| line.contains("submitted")).unwrap_or(0);
        for bytes in [0, 500, 5000, 1 << 19, usize::MAX] {
            let found = lines_of(dir.path(), run, bytes).unwrap();
            let mut held = 0;
            let fit = all[begun..].iter().rev().take_while(|line| {
                held += line.len();
                held <= bytes
            });
            let expected = &all[all.len() - fit.count()..];
            assert!(found == expected, "{run}, {bytes}: {} and {}", found.len(), expected.len());
        }
    }
}

/// A log of many segments: of a run that is released round by round, of one that was before, and of a site that was revoked at the start.
fn rotated() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let mut log = open(&path, SegmentBytes::new(SegmentBytes::MIN).unwrap()).unwrap();
    let site = ClientId::new("south").unwrap();
    log.member(NOW, &Record::Revoked { site, before: 9, by: "ada".into() }).unwrap();
    for (run, rounds) in [(RunId(8), 1..4), (RUN, 1..40)] {
        let plan_sha256 = format!("plan of {run}");
        let event = Event::Submitted { name: "p", plan_sha256, is_seeded: false, by: "ada" };
        log.write(NOW, Some(run), &event).unwrap();
        for round in rounds {
            log.released(Time::from_micros(u64::from(round)), run, round, &format!("model {round}")).unwrap();
        }
    }
    (dir, path)
}

#[test]
fn the_newest_segment_says_what_all_do_of_releases_plans_and_revocations() {
    let (dir, path) = rotated();
    let files = files_of(&path).unwrap();
    assert!(files.len() > 3, "{files:?}");
    let all = Witness::read(dir.path(), &[]).unwrap();
    for closed in &files[..files.len() - 2] {
        std::fs::remove_file(closed).unwrap();
    }
    let newest = Witness::read_newest(dir.path()).unwrap();
    assert!(newest.releases.len() < 20 && newest.twice.is_empty() && all.twice.is_empty());
    for run in [RUN, RunId(8)] {
        assert!((1..4).all(|round| newest.knows(run, round)));
        assert_eq!(newest.plans[&run].0, all.plans[&run].0);
    }
    assert!(newest.knows(RUN, 39) && !newest.knows(RUN, 40) && !newest.knows(RunId(8), 4));
    assert_eq!(newest.releases[&(RunId(8), 3)].0.as_deref(), Some("model 3"));
    assert_eq!(newest.revoked[&ClientId::new("south").unwrap()].0, 9);
    assert_eq!(newest.logs[0].records(), all.logs[0].records());
    // The next start goes on, and what it carries is the same.
    let mut log = open(&path, SegmentBytes::new(SegmentBytes::MIN).unwrap()).unwrap();
    for round in 40..60 {
        log.released(NOW, RUN, round, "later").unwrap();
    }
    let later = Witness::read_newest(dir.path()).unwrap();
    assert!(
        later.knows(RUN, 2) && later.knows(RunId(8), 3) && later.plans.len() == 2 && later.revoked.len() == 1
    );
}

#[test]
fn a_run_is_told_from_all_segments_and_not_what_they_say_again() {
    let (dir, path) = rotated();
    let lines = lines_of(dir.path(), RUN, usize::MAX).unwrap();
    assert_eq!(lines.len(), 40, "submitted, and every release");
    assert!(lines[0].contains("submitted") && lines[39].contains("model 39"));
    assert_eq!(lines_of(dir.path(), RunId(8), usize::MAX).unwrap().len(), 4);
    assert_eq!(lines_of(dir.path(), RUN, 2 * lines[39].len() + 1).unwrap().len(), 2);
    // Of one that was moved away, what is left.
    std::fs::remove_file(closed_path(&path, 1)).unwrap();
    let left = lines_of(dir.path(), RUN, usize::MAX).unwrap();
    assert!(left.len() < 40 && left.last() == lines.last());
}
