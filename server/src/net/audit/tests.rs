//! Whatever the server writes down, its own readers read: every kind of record, with whatever texts come from outside.

use std::collections::BTreeMap;

use protocol::wire::RoundSummary;
use protocol::{ClientId, Round, StepId};
use serde_json::json;

use super::witness::Witness;
use super::*;

const RUN: RunId = RunId(7);
const NOW: Time = Time::from_micros(1);

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
        Submitted { name: text, plan_sha256: text.to_owned(), rehearsal: true, by }
        Opened { task: task.clone(), cohort: usize::MAX }
        Accepted { client, task: task.clone() }
        Refused { client, task: Some(task.clone()), reason: Refusal::NormExceeded }
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
    };
    let mut notes = every!(Note {
        Waiting { connected: 0, needed: 1 }
        Opened { task: task(), cohort: 3 }
        Accepted { client: client(), task: task(), metrics: None }
        Refused { client: client(), task: Some(task()), reason: Refusal::Malformed, detail: text() }
        Declined { client: client(), task: task(), reason: Decline::Failed, detail: text() }
        Closed { task: task(), answered: 0, missing: 3, quorum: false }
        Withheld { task: task(), reason: text() }
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
        let mut log = AuditLog::open(&path, Arc::default(), NOW).unwrap();
        let mut count = 1;
        for event in events(&text) {
            log.write(NOW, Some(RUN), &event).unwrap();
            count += 1;
        }
        for record in records(&text) {
            log.member(NOW, &record).unwrap();
            count += 1;
        }
        let read = Witness::read(dir.path()).unwrap();
        assert_eq!(read.logs[0].hashes.len(), count);
        assert!(read.twice.is_empty() && read.releases.len() == 1 && read.plans.len() == 1, "{read:?}");
        assert_eq!(read.revoked[&ClientId::new("north").unwrap()].0, 9);
        for note in notes(&text) {
            log.note(NOW, RUN, &note).unwrap();
        }
        log.sync().unwrap();
        drop(log);
        let read = Witness::read(dir.path()).unwrap();
        // That clients are waited for is not written down.
        assert_eq!(read.logs[0].hashes.len(), count + notes(&text).len() - 1);
        assert!(lines_of(dir.path(), RUN, usize::MAX).unwrap().len() > events(&text).len());
        assert!(AuditLog::open(&path, Arc::default(), NOW).is_ok());
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
    let read = Witness::read(dir.path()).unwrap();
    assert_eq!(read.version.unwrap().0, 5);
    assert_eq!(read.revoked[&ClientId::new("north").unwrap()].0, 0);
    std::fs::write(&path, [good, bad].concat()).unwrap();
    let said = Witness::read(dir.path()).unwrap_err().to_string();
    assert!(said.contains("line 3") && said.contains("not understood"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_record_that_the_disk_has_no_room_for_is_added_once_when_there_is_some() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let mut log = AuditLog::open(&path, Arc::default(), NOW).unwrap();
    for round in 1..4 {
        let full = File::options().write(true).open("/dev/full").unwrap();
        log.writer = ChainWriter::new(log.writer.chain(), Synced(full));
        let error = StoreError::from(log.released(NOW, RUN, round, "ab").unwrap_err());
        assert!(error.may_be_tried_again() && error.passes(), "{error}");
        // A part of the line is on the disk.
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"{\"sequence\":").unwrap();
        log.released(NOW, RUN, round, "ab").unwrap();
    }
    let lines = read_lines(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!((lines.torn, lines.links.len(), lines.chain.len()), (0, 4, log.writer.chain().len()));
}

#[test]
fn the_last_lines_of_a_run_are_found_from_the_end_of_a_log_of_many_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let mut log = AuditLog::open(&path, Arc::default(), NOW).unwrap();
    let other = RunId(8);
    let reason = "x".repeat(700);
    for round in 0..2500u64 {
        let now = Time::from_micros(round);
        if round == 300 {
            let (name, plan_sha256) = ("p", String::new());
            let event = Event::Submitted { name, plan_sha256, rehearsal: false, by: "ada" };
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
