//! Books on a disk: kept, killed in the middle of a write, damaged, exchanged, put in order.

mod damage;
mod segments;

use std::collections::BTreeMap;

use privacy::chain::{ChainWriter, read_lines};
use privacy::ledger::Unit;
use protocol::Task;

use super::*;
use crate::ledger::tests::{local, private};
use crate::participant::tests::train;

/// The books of a folder, file by file.
type Files = BTreeMap<String, Vec<u8>>;

fn files(state: &Path) -> Files {
    [LEDGER, AUDIT, HEADS]
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), std::fs::read(state.join(name)).ok()?)))
        .collect()
}

/// A folder with these books.
fn folder(files: &Files) -> tempfile::TempDir {
    let state = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(state.path().join(name), text).unwrap();
    }
    state
}

/// Does a task as a guard does: the ledger, then the log, which is told of it.
fn pay(books: &mut Books, task: &Task) {
    let reservation = books.ledger.reserve(task, None, false, None, Time::from_micros(9)).unwrap().unwrap();
    let allowed = AuditEvent::Allowed { task: task.id.into(), reservation: Some(reservation.record()) };
    books.audit.note(allowed).unwrap();
}

/// A training that costs something.
fn costly(round: u32) -> Task {
    private(round, local(1e6))
}

fn epsilon(account: &SiteAccount) -> f64 {
    account.total(Unit::Client, None, 1e-5).unwrap().epsilon.best()
}

fn recover(state: &Path) -> Option<Recovery> {
    recover_with(state, false)
}

fn recover_with(state: &Path, believes_server: bool) -> Option<Recovery> {
    let (delta, is_all_lost) = (1e-5, false);
    let order = RecoveryOrder {
        by: "ada".into(),
        believes_server,
        delta,
        is_all_lost,
        lost: None,
        without_segments: false,
    };
    recover_books(state, &order, || Time::from_micros(11)).unwrap()
}

/// A folder after `rounds` paid trainings in as many starts, with what it held after each.
fn lived(rounds: u32) -> (tempfile::TempDir, Vec<Files>) {
    let state = tempfile::tempdir().unwrap();
    let mut lives = Vec::new();
    for round in 1..=rounds {
        pay(&mut open(state.path()).unwrap(), &costly(round));
        lives.push(files(state.path()));
    }
    (state, lives)
}

fn open(state: &Path) -> Result<Books, BooksError> {
    open_with(state, SegmentBytes::default())
}

fn open_with(state: &Path, segment: SegmentBytes) -> Result<Books, BooksError> {
    let digest = Digest::of(b"federation");
    open_books(state, digest, digest, "test", segment, || Time::from_micros(5))
}

fn book(state: &Path) {
    let mut books = open(state).unwrap();
    let reservation = books.ledger.reserve(&train(1, 3), None, false, None, Time::from_micros(9)).unwrap();
    assert!(reservation.is_some());
}

#[test]
fn books_go_on_after_a_restart_and_are_held_by_one_program() {
    let state = tempfile::tempdir().unwrap();
    book(state.path());
    let books = open(state.path()).unwrap();
    assert_eq!((books.ledger.account().history().attempts(), books.torn.len()), (1, 0));
    assert!(matches!(open(state.path()), Err(BooksError::Held(_))));
    assert!(are_books_held(state.path()).unwrap());
    assert!(matches!(open_audit(state.path(), || Time::ZERO), Err(BooksError::Held(_))));
    drop(books);
    assert!(!are_books_held(state.path()).unwrap());
    let audit = std::fs::read(state.path().join("audit.jsonl")).unwrap();
    assert_eq!(read_lines(&audit).unwrap().links.len(), 2);
}

#[test]
fn half_a_line_is_cut_off_and_said_and_any_other_damage_is_an_error() {
    for name in ["ledger.jsonl", "audit.jsonl"] {
        let state = tempfile::tempdir().unwrap();
        book(state.path());
        book(state.path());
        let path = state.path().join(name);
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&text[..], &text[..40]].concat()).unwrap();
        let books = open(state.path()).unwrap();
        assert_eq!(books.torn, [Torn { path: path.clone(), bytes: 40 }]);
        drop(books);
        assert!(std::fs::read(&path).unwrap().starts_with(&text));
        let mut damaged = text.clone();
        damaged[200] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        let said = open(state.path()).unwrap_err().to_string();
        assert!(said.contains(name) && said.contains("line 1"), "{said}");
        assert_eq!(std::fs::read(&path).unwrap(), damaged, "nothing was changed");
    }
}

#[test]
fn a_ledger_that_is_gone_or_older_than_the_log_stops_the_start_and_is_made_again_byte_for_byte() {
    let (_, lives) = lived(4);
    let last = &lives[3];
    let damages: [(&str, Option<Vec<u8>>); 3] =
        [("gone", None), ("empty", Some(Vec::new())), ("older", Some(lives[1][LEDGER].clone()))];
    for (what, text) in damages {
        let mut damaged = last.clone();
        match text {
            Some(text) => drop(damaged.insert(LEDGER.into(), text)),
            None => drop(damaged.remove(LEDGER)),
        }
        let state = folder(&damaged);
        let refused = open(state.path()).unwrap_err().to_string();
        assert!(refused.contains(LEDGER) && refused.contains("site recover"), "{what}: {refused}");
        assert_eq!(check_books(state.path()).unwrap_err().to_string(), refused);
        assert_eq!(files(state.path()), damaged, "{what}: nothing was changed");
        let recovery = recover(state.path()).unwrap();
        assert_eq!((recovery.lost, &recovery.unbounded[..]), (0, &[][..]), "{what}");
        assert_eq!(files(state.path())[LEDGER], last[LEDGER], "{what}");
        assert!(recover(state.path()).is_none());
        pay(&mut open(state.path()).unwrap(), &costly(5));
        assert_eq!(check_books(state.path()).unwrap().history.head().records, 5);
    }
}

#[test]
fn a_log_that_is_gone_or_older_than_the_ledger_stops_the_start_and_copies_the_ledger_anew() {
    let (_, lives) = lived(4);
    for text in [None, Some(lives[1][AUDIT].clone()), Some(lives[2][AUDIT].clone())] {
        let mut damaged = lives[3].clone();
        match text {
            Some(text) => drop(damaged.insert(AUDIT.into(), text)),
            None => drop(damaged.remove(AUDIT)),
        }
        // With the remembered ends and without them.
        for has_heads in [true, false] {
            if !has_heads {
                damaged.remove(HEADS);
            }
            let state = folder(&damaged);
            let refused = open(state.path()).unwrap_err().to_string();
            assert!(refused.contains("site recover"), "{refused}");
            let recovery = recover(state.path()).unwrap();
            // With the ledger alone nobody knows whether it is whole.
            let is_known = has_heads || damaged.contains_key(AUDIT);
            assert_eq!((recovery.lost, recovery.is_uncounted), (u64::from(!is_known), !is_known));
            let mut cut = files(state.path());
            let ledger = cut[LEDGER].clone();
            assert!(ledger.starts_with(&lives[3][LEDGER]));
            // The new log holds the whole ledger.
            cut.remove(LEDGER);
            let state = folder(&cut);
            assert_eq!(recover(state.path()).unwrap().restored, 4 + recovery.lost);
            assert_eq!(files(state.path())[LEDGER], ledger);
        }
    }
}

#[test]
fn where_no_book_is_left_that_knows_how_long_the_ledger_was_a_loss_without_a_bound_is_charged_or_the_number_given()
 {
    let (_, lives) = lived(3);
    let last = &lives[2];
    let whole = epsilon(&SiteAccount::read(&last[LEDGER]).unwrap());
    let cut = |name: &str, lines: usize| {
        let ends = last[name].iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
        let end = ends.take(lines).last().unwrap_or(0);
        (name.to_owned(), last[name][..end].to_vec())
    };
    let garbage = |name: &str| (name.to_owned(), b"{}\n".to_vec());
    let torn = |name: &str| (name.to_owned(), last[name][..40].to_vec());
    let cases: [&[(String, Vec<u8>)]; 6] = [
        &[cut(LEDGER, 1)],
        &[cut(LEDGER, 3)],
        &[cut(LEDGER, 2), torn(AUDIT)],
        &[cut(LEDGER, 2), garbage(AUDIT), garbage(HEADS)],
        // A log that was cut, too: it lacks more than a crash explains.
        &[cut(LEDGER, 3), cut(AUDIT, 1)],
        &[garbage(LEDGER)],
    ];
    for (case, files_left) in cases.iter().enumerate() {
        let damaged: Files = files_left.iter().cloned().collect();
        let state = folder(&damaged);
        assert!(open(state.path()).is_err(), "{case}");
        let recovery = recover(state.path()).unwrap();
        assert_eq!((recovery.is_uncounted, recovery.unbounded.len()), (true, 2), "{case}");
        assert!(epsilon(open(state.path()).unwrap().ledger.account()).is_infinite(), "{case}");
        assert!(recover(state.path()).is_none(), "{case}");
        // Killed before the log followed, it charges nothing twice.
        let half: Files = [(LEDGER.to_owned(), files(state.path())[LEDGER].clone())].into();
        let state = folder(&half);
        assert!(recover(state.path()).is_some());
        assert_eq!(files(state.path())[LEDGER], half[LEDGER], "{case}");
    }
    let state = folder(&[cut(LEDGER, 1)].into());
    let (delta, is_all_lost, lost) = (1e-5, false, Some(2));
    let (believes_server, without_segments) = (false, false);
    let order =
        RecoveryOrder { by: "ada".into(), believes_server, delta, is_all_lost, lost, without_segments };
    assert_eq!(recover_books(state.path(), &order, || Time::ZERO).unwrap().unwrap().lost, 2);
    assert_eq!(epsilon(open(state.path()).unwrap().ledger.account()), whole);
}

#[test]
fn half_a_line_is_no_book() {
    let (_, lives) = lived(1);
    for name in [LEDGER, AUDIT, HEADS] {
        let whole = folder(&[(name.to_owned(), lives[0][name].clone())].into());
        assert!(has_books(whole.path()), "{name}");
        for length in [0, 1, 40] {
            let torn = folder(&[(name.to_owned(), lives[0][name][..length].to_vec())].into());
            assert!(!has_books(torn.path()), "{length} bytes of {name}");
        }
    }
    let nothing = br#"{"version":1,"ledger":{"records":0,"head":"0"},"audit":{"records":0,"head":"0"}}"#;
    let zeros = String::from_utf8_lossy(nothing).replace("\"0\"", &format!("\"{}\"", Digest::default()));
    assert!(!has_books(folder(&[(HEADS.to_owned(), zeros.into_bytes())].into()).path()));
}

#[test]
fn a_folder_killed_at_any_instant_of_a_reservation_opens_with_all_that_was_reserved() {
    let state = tempfile::tempdir().unwrap();
    let mut books = open(state.path()).unwrap();
    pay(&mut books, &costly(1));
    let before = files(state.path());
    pay(&mut books, &costly(2));
    let after = files(state.path());
    let growth = |name: &str| after[name][before[name].len()..].to_vec();
    let mut instants = Vec::new();
    let mut now = before.clone();
    // Each file grows by its bytes, one after the other; the ends are renamed into their place.
    for name in [LEDGER, AUDIT] {
        let bytes = growth(name);
        for cut in [0, 1, bytes.len() / 2, bytes.len() - 1, bytes.len()] {
            now.insert(name.into(), [&before[name][..], &bytes[..cut]].concat());
            instants.push(now.clone());
        }
    }
    now.insert(HEADS.into(), after[HEADS].clone());
    instants.push(now);
    for (at, instant) in instants.iter().enumerate() {
        let state = folder(instant);
        let books = open(state.path()).unwrap_or_else(|error| panic!("instant {at}: {error}"));
        let reserved = books.ledger.history().head().records;
        assert_eq!(reserved, if at < 4 { 1 } else { 2 }, "instant {at}");
        drop(books);
        // The start has copied what the log lacked.
        let mut without = files(state.path());
        without.remove(LEDGER);
        let state = folder(&without);
        assert_eq!(recover(state.path()).unwrap().restored, reserved, "instant {at}");
    }
}

#[test]
fn a_recovery_killed_at_any_instant_can_be_given_again_and_charges_once() {
    let (_, lives) = lived(3);
    // Neither ledger nor log: only their ends are known.
    let damaged = Files::from([(HEADS.to_owned(), lives[2][HEADS].clone())]);
    let done = folder(&damaged);
    let recovery = recover(done.path()).unwrap();
    assert_eq!((recovery.lost, recovery.unbounded.len()), (3, 2));
    let after = files(done.path());
    let mut now = damaged;
    for name in [LEDGER, AUDIT, HEADS] {
        let state = folder(&now);
        let refused = open(state.path()).unwrap_err().to_string();
        assert!(refused.contains("site recover"), "{refused}");
        recover(state.path()).unwrap();
        assert_eq!(files(state.path())[LEDGER], after[LEDGER], "before {name}");
        let books = open(state.path()).unwrap();
        assert!(epsilon(books.ledger.account()).is_infinite());
        now.insert(name.into(), after[name].clone());
    }
    open(folder(&now).path()).unwrap();
}

#[test]
fn the_books_of_the_release_before_are_taken_over_and_missed_when_they_are_gone() {
    let state = tempfile::tempdir().unwrap();
    let paper = |name: &str| -> Box<dyn Write + Send> {
        Box::new(OpenOptions::new().create(true).append(true).open(state.path().join(name)).unwrap())
    };
    let mut ledger = SiteLedger::open(&[], paper(LEDGER), Digest::of(b"federation")).unwrap();
    let chain = privacy::chain::Chain::new();
    let audit = Audit::new(ChainWriter::new(chain, paper(AUDIT)), || Time::ZERO);
    for round in 1..4 {
        let task = costly(round);
        let reservation = ledger.reserve(&task, None, false, None, Time::ZERO).unwrap().unwrap();
        let reservation = Some(reservation.record());
        audit.note(AuditEvent::Allowed { task: task.id.into(), reservation }).unwrap();
    }
    let before = files(state.path());
    assert!(!String::from_utf8(before[AUDIT].clone()).unwrap().contains("\"ledger\""));
    let mut gone = before.clone();
    gone.remove(LEDGER);
    let lost = folder(&gone);
    let refused = open(lost.path()).unwrap_err().to_string();
    assert!(refused.contains("0 records where audit.jsonl knows of 3"), "{refused}");
    let recovery = recover(lost.path()).unwrap();
    assert_eq!((recovery.restored, recovery.lost, recovery.unbounded.len()), (0, 3, 2));
    assert!(epsilon(open(lost.path()).unwrap().ledger.account()).is_infinite());
    // An older copy gives an example of what a training costs.
    let first = before[LEDGER].iter().position(|byte| *byte == b'\n').unwrap() + 1;
    gone.insert(LEDGER.into(), before[LEDGER][..first].to_vec());
    let older = folder(&gone);
    assert_eq!(recover(older.path()).unwrap().lost, 2);
    let books = open(older.path()).unwrap();
    assert_eq!(epsilon(books.ledger.account()), epsilon(&SiteAccount::read(&before[LEDGER]).unwrap()));
    // In order, they are taken over, and copied.
    drop(open(state.path()).unwrap());
    let mut copied = files(state.path());
    copied.remove(LEDGER);
    let state = folder(&copied);
    assert_eq!(recover(state.path()).unwrap().restored, 3);
    assert_eq!(files(state.path())[LEDGER], before[LEDGER]);
}

/// A folder with a ledger alone, of more bytes than two records of the log hold.
fn long_ledger() -> tempfile::TempDir {
    let paper = crate::ledger::tests::Paper::default();
    let mut ledger = crate::ledger::tests::ledger(&paper);
    for round in 1..=5000 {
        let _ = ledger.reserve(&costly(round), None, false, None, Time::ZERO).unwrap();
    }
    assert!(paper.text().len() > 2 * privacy::chain::LINE_MAX);
    folder(&Files::from([(LEDGER.to_owned(), paper.text())]))
}

#[test]
fn a_long_ledger_is_copied_again_where_the_log_is_lost() {
    let state = long_ledger();
    assert!(open(state.path()).unwrap_err().to_string().contains("site recover"));
    let recovery = recover(state.path()).unwrap();
    assert_eq!((recovery.restored, recovery.is_uncounted), (0, true));
    assert!(recover(state.path()).is_none());
    pay_again(state.path());
    // The log has all of it now.
    let mut gone = files(state.path());
    let before = gone.remove(LEDGER).unwrap();
    let state = folder(&gone);
    assert_eq!(recover(state.path()).unwrap().restored, 5003);
    assert_eq!(files(state.path())[LEDGER], before);
}

/// Two trainings that no budget limits.
fn pay_again(state: &Path) {
    let mut books = open(state).unwrap();
    pay(&mut books, &train(5001, 3));
    pay(&mut books, &train(5002, 3));
}

#[test]
fn what_a_server_remembers_is_charged_when_a_person_believes_it() {
    let (state, lives) = lived(3);
    let known = LedgerHead { records: 9, head: Digest::of(b"another machine's") };
    let (audit, _) = open_audit(state.path(), || Time::ZERO).unwrap();
    audit.seal(AuditEvent::LedgerRefused { server: "fed:4433".into(), known, answered: 1 }).unwrap();
    drop(audit);
    assert!(recover(state.path()).is_none(), "a server's word alone changes nothing");
    let recovery = recover_with(state.path(), true).unwrap();
    assert_eq!(recovery.lost, 10, "nothing shows that the two have a record in common");
    assert!(recover_with(state.path(), true).is_none(), "it is charged once");
    let books = open(state.path()).unwrap();
    assert_eq!(books.ledger.history().replaced(), [known.head]);
    let before = epsilon(&SiteAccount::read(&lives[2][LEDGER]).unwrap());
    assert!(epsilon(books.ledger.account()) > before);
}

#[test]
fn the_loss_of_a_ledger_without_records_is_named_by_its_updates_and_charged_anew_when_more_have_come() {
    let (state, _) = lived(1);
    let empty = LedgerHead::default();
    let refuse = |answered| {
        let (audit, _) = open_audit(state.path(), || Time::ZERO).unwrap();
        let server = "fed:4433".into();
        audit.seal(AuditEvent::LedgerRefused { server, known: empty, answered }).unwrap();
    };
    let claim = protocol::wire::LedgerClaim::default();
    for answered in [4, 6] {
        refuse(answered);
        assert_eq!(recover_with(state.path(), true).unwrap().lost, answered);
        assert!(recover_with(state.path(), true).is_none(), "it is charged once");
        let text = &files(state.path())[LEDGER];
        assert_eq!(LedgerHistory::read(text).unwrap().replaced()[0], claim.name_of_loss(answered));
    }
}
