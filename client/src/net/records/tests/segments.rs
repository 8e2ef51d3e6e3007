//! Books whose log is in many files: they open from the newest one, and are put in order from all.

use privacy::chain::segments::{closed_path, files_of};

use super::*;

fn small() -> SegmentBytes {
    SegmentBytes::new(SegmentBytes::MIN).unwrap()
}

fn log(state: &Path) -> PathBuf {
    state.join(AUDIT)
}

/// A folder after paid trainings in a few starts, whose log has several segments.
fn long() -> tempfile::TempDir {
    let state = tempfile::tempdir().unwrap();
    for start in 0..3 {
        let mut books = open_with(state.path(), small()).unwrap();
        for round in 1..9 {
            pay(&mut books, &costly(8 * start + round));
        }
    }
    assert!(files_of(&log(state.path())).unwrap().len() > 3);
    state
}

fn all_files(state: &Path) -> Files {
    let books = [LEDGER, HEADS].map(|name| state.join(name));
    let paths = files_of(&log(state)).unwrap().into_iter().chain(books);
    paths
        .filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), std::fs::read(&path).ok()?)))
        .collect()
}

fn records(state: &Path) -> u64 {
    check_books(state).unwrap().history.head().records
}

#[test]
fn books_open_from_the_newest_segment_and_copy_nothing_twice() {
    let state = long();
    let (ledger, before) = (records(state.path()), all_files(state.path()));
    for closed in files_of(&log(state.path())).unwrap().iter().rev().skip(2) {
        std::fs::remove_file(closed).unwrap();
    }
    assert_eq!(records(state.path()), ledger);
    let mut books = open_with(state.path(), small()).unwrap();
    let started = all_files(state.path())[AUDIT].clone();
    // The start may have begun a file.
    let started = started.strip_prefix(&before[AUDIT][..]).unwrap_or(&started);
    assert!(!String::from_utf8_lossy(started).contains("\"new\":[{"), "the ledger is copied anew");
    pay(&mut books, &costly(99));
    drop(books);
    assert_eq!(records(state.path()), ledger + 1);
    // What the log knows of the ledger it knows from the first record of the newest segment on.
    std::fs::write(state.path().join(LEDGER), "").unwrap();
    let refused = open(state.path()).unwrap_err().to_string();
    assert!(
        refused.contains("0 records where audit.jsonl knows of") || refused.contains("heads.json"),
        "{refused}"
    );
}

#[test]
fn a_lost_ledger_is_made_again_from_the_copies_in_all_segments() {
    let state = long();
    let whole = all_files(state.path());
    let mut gone = whole.clone();
    gone.remove(LEDGER);
    let again = folder(&gone);
    let recovery = recover(again.path()).unwrap();
    assert_eq!((recovery.lost, &recovery.unbounded[..]), (0, &[][..]));
    assert_eq!(all_files(again.path())[LEDGER], whole[LEDGER]);
    open_with(again.path(), small()).unwrap();

    // With copies in segments that were moved away: not before somebody says that they are gone.
    let first = closed_path(Path::new(AUDIT), 1).to_str().unwrap().to_owned();
    let mut archived = gone;
    archived.remove(&first);
    let away = folder(&archived);
    let (delta, is_all_lost, believes_server) = (1e-5, false, false);
    let mut order = RecoveryOrder {
        by: "ada".into(),
        believes_server,
        delta,
        is_all_lost,
        lost: None,
        without_segments: false,
    };
    let refused = recover_books(away.path(), &order, || Time::ZERO).unwrap_err().to_string();
    assert!(refused.contains("not here (1)") && refused.contains("--without-segments"), "{refused}");
    assert_eq!(all_files(away.path()), archived, "nothing was changed");
    std::fs::write(away.path().join(&first), &whole[&first]).unwrap();
    assert_eq!(recover(away.path()).unwrap().lost, 0);
    let lost = folder(&archived);
    order.without_segments = true;
    assert!(recover_books(lost.path(), &order, || Time::ZERO).unwrap().unwrap().lost > 0);
    let spent = epsilon(&SiteAccount::read(&whole[LEDGER]).unwrap());
    assert!(epsilon(open(lost.path()).unwrap().ledger.account()) >= spent);
}

#[test]
fn a_segment_behind_one_with_copies_in_many_records_knows_of_all_of_them() {
    let state = long_ledger();
    recover(state.path()).unwrap();
    let parts = String::from_utf8(all_files(state.path())[AUDIT].clone()).unwrap();
    assert!(parts.matches(r#""event":"copied""#).count() > 1);
    // It is longer than a segment is to be, so that the next start begins another.
    open_with(state.path(), small()).unwrap();
    let whole = all_files(state.path());
    let newest = String::from_utf8_lossy(&whole[AUDIT]);
    let copied = format!(r#""copied":{},"#, records(state.path()));
    assert!(newest.contains(&copied) && !newest.contains(r#""new":[{"#), "{newest}");
    let first = closed_path(Path::new(AUDIT), 1).to_str().unwrap().to_owned();
    let mut archived = whole.clone();
    archived.remove(&first);
    let away = folder(&archived);
    let mut books = open_with(away.path(), small()).unwrap();
    pay(&mut books, &train(5001, 3));
    // And the ledger is made again from the parts.
    let mut gone = whole.clone();
    gone.remove(LEDGER);
    let again = folder(&gone);
    let recovery = recover(again.path()).unwrap();
    assert_eq!((recovery.restored, recovery.lost), (records(state.path()), 0));
    assert_eq!(all_files(again.path())[LEDGER], whole[LEDGER]);
}

#[test]
fn where_the_newest_segment_is_gone_or_damaged_the_log_goes_on_from_the_one_before() {
    let state = long();
    let (whole, ledger) = (all_files(state.path()), records(state.path()));
    for text in [None, Some(Vec::new()), Some(b"garbage\n".to_vec()), Some(whole[AUDIT][..900].to_vec())] {
        let mut damaged = whole.clone();
        damaged.remove(AUDIT);
        damaged.extend(text.map(|text| (AUDIT.to_owned(), text)));
        let state = folder(&damaged);
        let refused = open_with(state.path(), small()).unwrap_err().to_string();
        assert!(refused.contains("site recover"), "{refused}");
        assert!(recover(state.path()).is_some(), "{refused}");
        let mut books = open_with(state.path(), small()).unwrap();
        pay(&mut books, &costly(99));
        drop(books);
        assert_eq!(records(state.path()), ledger + 1);
        assert!(has_books(state.path()));
    }
}

#[test]
fn books_killed_at_any_instant_of_a_rotation_open_with_all_that_was_reserved() {
    let state = long();
    let (whole, ledger) = (all_files(state.path()), records(state.path()));
    let last = files_of(&log(state.path())).unwrap().len() as u64 - 1;
    let closed = closed_path(Path::new(AUDIT), last).to_str().unwrap().to_owned();
    // The newest segment under the name that it has before it gets the log's.
    let mut between = whole.clone();
    let newest = between.remove(AUDIT).unwrap();
    between.insert(format!("{AUDIT}.new"), newest);
    let state = folder(&between);
    assert_eq!(records(state.path()), ledger);
    open_with(state.path(), small()).unwrap();
    assert_eq!(records(state.path()), ledger);
    assert!(!state.path().join(format!("{AUDIT}.new")).exists());
    // The ends that are remembered may be those of the segment before.
    let text = &whole[&closed];
    let segment = privacy::chain::segments::read_segment(text).unwrap().lines;
    let known = segment.links[segment.links.len() / 2].clone();
    let mut heads: serde_json::Value = serde_json::from_slice(&whole[HEADS]).unwrap();
    heads["audit"]["records"] = (known.sequence + 1).into();
    heads["audit"]["head"] = known.hash.to_string().into();
    let mut earlier = whole.clone();
    earlier.insert(HEADS.into(), heads.to_string().into_bytes());
    open_with(folder(&earlier).path(), small()).unwrap();
    heads["audit"]["head"] = Digest::default().to_string().into();
    earlier.insert(HEADS.into(), heads.to_string().into_bytes());
    let refused = open_with(folder(&earlier).path(), small()).unwrap_err().to_string();
    assert!(refused.contains("is not the one that heads.json knows"), "{refused}");
}
