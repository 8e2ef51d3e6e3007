//! The same of a log in many files: what a start reads of them, and what is brought back.

use privacy::chain::segments::closed_path;

use super::*;

const ROUNDS: u32 = 14;

/// A state with a log of several segments, and its database as it was after each round.
async fn long() -> (tempfile::TempDir, Vec<tempfile::TempDir>) {
    let dir = tempfile::tempdir().unwrap();
    let mut books = Books::found(dir.path()).await;
    let mut before = Vec::new();
    for round in 1..=ROUNDS {
        books.release(round, false).await.unwrap();
        let (task, reason) = (format!("train {round}"), "x".repeat(700));
        books.log.write(Time::ZERO, Some(RUN), &Event::Withheld { task, reason: &reason }).unwrap();
        before.push(image(dir.path()));
    }
    books.close().await;
    assert!(files_of(&log(dir.path())).unwrap().len() > 3);
    (dir, before)
}

fn log(dir: &Path) -> PathBuf {
    dir.join("audit.jsonl")
}

/// Opens a state as a server does, lets its log go on, and looks at all of its books.
async fn goes_on(dir: &Path) -> usize {
    let store = Store::open(dir).await.unwrap();
    let unlogged = store.take_unlogged().len();
    let mut opened = open_log(dir, &store).unwrap();
    for _ in 0..12 {
        let reason = "y".repeat(700);
        let event = Event::Withheld { task: "train 99".to_owned(), reason: &reason };
        opened.write(Time::ZERO, Some(RUN), &event).unwrap();
    }
    opened.member(Time::ZERO, &Member::EnrolmentsRefused { count: 1 }).unwrap();
    store.revoke(&ClientId::new("west").unwrap(), 7).await.unwrap();
    store.close().await;
    drop(store);
    let looking = Store::look(dir).await.unwrap();
    looking.check_books(dir).await.unwrap();
    looking.close().await;
    unlogged
}

/// The database of an earlier moment in a folder.
fn turn_back(dir: &Path, earlier: &Path) {
    for name in ["state.sqlite", "state.sqlite-wal", "state.sqlite-shm"] {
        let _ = fs::remove_file(dir.join(name));
        let _ = fs::copy(earlier.join(name), dir.join(name));
    }
}

#[tokio::test]
async fn a_start_reads_the_newest_segment_and_misses_no_release_in_the_others() {
    let (dir, _) = long().await;
    let first = closed_path(&log(dir.path()), 1);
    fs::write(&first, "a start that reads this fails").unwrap();
    let looking = Store::look(dir.path()).await.unwrap();
    let said = looking.check_books(dir.path()).await.unwrap_err().to_string();
    looking.close().await;
    assert!(said.contains("audit.000001.jsonl: line 1"), "{said}");
    // Moved away, it is missed by nobody who starts.
    fs::remove_file(&first).unwrap();
    assert_eq!(goes_on(dir.path()).await, 0, "what was told is told again");
}

#[tokio::test]
async fn a_database_that_was_turned_back_over_segments_is_refused_counted_and_brought_back() {
    let (dir, before) = long().await;
    for round in [2, 6, ROUNDS - 1] {
        let state = image(dir.path());
        turn_back(state.path(), before[round as usize - 1].path());
        let lost = u64::from(ROUNDS - round);
        let said = refused(state.path()).await;
        let first = format!("round {} of run", round + 1);
        assert!(said.contains(&first) && said.contains(&format!("N is {lost} for this folder")), "{said}");
        // Where the part is elsewhere in which the database ends, nobody can go on from it.
        let archived = image(state.path());
        fs::remove_file(closed_path(&log(archived.path()), 1)).unwrap();
        let brought = Store::bring_back(archived.path(), Some(lost)).await;
        assert_eq!(matches!(brought, Err(BackupError::Archived(_))), round == 2, "{brought:?}");

        let few = Store::bring_back(state.path(), Some(lost - 1)).await;
        assert!(matches!(few, Err(BackupError::TooFew { .. })), "{few:?}");
        Store::bring_back(state.path(), Some(lost)).await.unwrap();
        assert!(state.path().join("audit.jsonl.forgotten").exists());
        assert_eq!(goes_on(state.path()).await, 0);
    }
}

#[tokio::test]
async fn without_its_newest_segment_a_state_is_refused_and_goes_on_from_the_one_before() {
    let (dir, _) = long().await;
    fs::remove_file(log(dir.path())).unwrap();
    assert!(refused(dir.path()).await.contains("the file is not there"));
    let closed = files_of(&log(dir.path())).unwrap().len();
    Store::bring_back(dir.path(), Some(0)).await.unwrap();
    assert_eq!(files_of(&log(dir.path())).unwrap().len(), closed, "the last closed one is current again");
    goes_on(dir.path()).await;
}

#[tokio::test]
async fn a_rotation_that_was_killed_is_finished_by_the_next_start() {
    let (dir, _) = long().await;
    let next = dir.path().join("audit.jsonl.new");
    fs::rename(log(dir.path()), &next).unwrap();
    let looking = Store::look(dir.path()).await.unwrap();
    looking.check_books(dir.path()).await.unwrap();
    looking.close().await;
    assert_eq!(goes_on(dir.path()).await, 0);
    assert!(!next.exists());
}

#[tokio::test]
async fn a_backup_holds_all_segments_and_ends_where_its_database_does() {
    let (dir, before) = long().await;
    let files = files_of(&log(dir.path())).unwrap();
    // Of the newest state, and of one whose database is older than the last segments.
    for round in [ROUNDS, 5] {
        let state = image(before[round as usize - 1].path());
        for file in &files {
            fs::copy(file, state.path().join(file.file_name().unwrap())).unwrap();
        }
        let looking = Store::look(state.path()).await.unwrap();
        let copy = state.path().join("copy");
        looking.back_up(state.path(), &copy).await.unwrap();
        looking.close().await;
        let copied = files_of(&log(&copy)).unwrap();
        if round == ROUNDS {
            for (from, to) in files.iter().zip(&copied) {
                assert!(fs::read(from).unwrap() == fs::read(to).unwrap(), "{}", to.display());
            }
        }
        assert!(copied.len() <= files.len() && copied.last() == Some(&log(&copy)));
        Store::bring_back(&copy, Some(0)).await.unwrap();
        goes_on(&copy).await;
    }
    fs::remove_file(&files[1]).unwrap();
    let looking = Store::look(dir.path()).await.unwrap();
    let copy = dir.path().join("copy");
    looking.back_up(dir.path(), &copy).await.unwrap();
    looking.close().await;
    assert_eq!(files_of(&log(&copy)).unwrap().len(), files.len() - 1, "what was moved away is not copied");
}
