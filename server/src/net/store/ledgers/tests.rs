//! What is remembered of sites' ledgers, over kills, too.

use super::super::tests::{RUN, begin, commit, layout, submit};
use super::*;

fn north() -> ClientId {
    ClientId::new("north").unwrap()
}

fn claim(records: u64) -> LedgerClaim {
    LedgerClaim { records, head: Digest::of(&records.to_le_bytes()) }
}

async fn show(store: &Store, session: u64, claim: LedgerClaim) {
    let before = store.shown_ledger(&north()).await.unwrap();
    let showing = Showing { certificate: Digest::of(b"certificate"), address: "127.0.0.1:1".into(), at: 9 };
    assert!(store.show_ledger(&north(), before, claim, &showing).await.unwrap());
    store.count_updates(&north(), session, claim);
}

async fn remembered(store: &Store) -> (LedgerClaim, u64) {
    let shown = store.shown_ledger(&north()).await.unwrap().unwrap();
    (shown.claim, shown.answered)
}

#[tokio::test]
async fn updates_are_written_down_with_the_round_that_they_moved_so_that_a_kill_forgets_none() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    submit(&store, RUN, &begin([0.0; 3])).await;
    show(&store, 1, claim(5)).await;
    for round in 1..=3 {
        store.count_update(&north(), 1);
        store.commit(RUN, &layout(), &commit(round, [round as f32; 3])).await.unwrap();
        // Another look sees what a server that is killed now would leave.
        let look = Store::look(dir.path()).await.unwrap();
        assert_eq!(remembered(&look).await, (claim(5), u64::from(round)));
        look.close().await;
    }
    // What came after the last round is written when the session ends; a session that is over counts nothing.
    store.count_update(&north(), 1);
    assert_eq!(remembered(&store).await, (claim(5), 4));
    store.end_count(&north(), 1).await.unwrap();
    store.count_update(&north(), 1);
    assert_eq!(remembered(&store).await, (claim(5), 4));
    store.close().await;
}

#[tokio::test]
async fn updates_from_before_a_ledger_was_shown_anew_are_in_that_ledger_already() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    submit(&store, RUN, &begin([0.0; 3])).await;
    show(&store, 1, claim(5)).await;
    store.count_update(&north(), 1);
    // Whoever asks for it waits for the transaction; this site was judged before it began.
    let before = store.shown_ledger(&north()).await.unwrap();
    let taken = store.unwritten.take();
    let showing = Showing { certificate: Digest::of(b"certificate"), address: "127.0.0.1:1".into(), at: 9 };
    assert!(store.show_ledger(&north(), before, claim(6), &showing).await.unwrap());
    store.count_updates(&north(), 2, claim(6));
    let mut transaction = store.begin().await.unwrap();
    taken.add(&mut transaction).await.unwrap();
    transaction.commit().await.unwrap();
    taken.written();
    assert_eq!(remembered(&store).await, (claim(6), 0));
    store.count_update(&north(), 1);
    store.count_update(&north(), 2);
    store.commit(RUN, &layout(), &commit(1, [1.0; 3])).await.unwrap();
    assert_eq!(remembered(&store).await, (claim(6), 1));
    store.close().await;
}

/// A run that draws in secret, and what rounds of it leave.
#[tokio::test]
async fn a_round_of_a_secret_cohort_counts_once_for_every_site_that_was_connected_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let (plan_toml, layout, checkpoint) =
        ("a plan that only a later release understands", layout(), begin([0.0; 3]));
    let new = super::super::Submission {
        run: RUN,
        name: "hearts",
        rounds: 3,
        plan_toml,
        seed: None,
        calibrated: None,
        layout: &layout,
        checkpoint: &checkpoint,
    };
    store.submit(&new).await.unwrap();
    let rounds = async || store.shown_ledger(&north()).await.unwrap().unwrap().secret_rounds;
    show(&store, 1, claim(5)).await;
    store.commit(RUN, &layout, &commit(1, [1.0; 3])).await.unwrap();
    // The commit of an evaluation is none of a round.
    store.commit(RUN, &layout, &commit(1, [1.0; 3])).await.unwrap();
    assert_eq!(rounds().await, 1);
    // It was asked in the round that was open when it left, perhaps, and in no later one.
    store.end_count(&north(), 1).await.unwrap();
    for round in 2..4 {
        store.commit(RUN, &layout, &commit(round, [round as f32; 3])).await.unwrap();
        assert_eq!(rounds().await, 2);
    }
    store.count_updates(&north(), 2, claim(5));
    store.commit(RUN, &layout, &commit(4, [4.0; 3])).await.unwrap();
    assert_eq!(remembered(&store).await, (claim(5), 0));
    assert_eq!(rounds().await, 3);
    show(&store, 3, claim(8)).await;
    assert_eq!(rounds().await, 0);
    store.close().await;
}

/// Lets every commit of a round fail, or none.
async fn break_rounds(store: &Store, is_broken: bool) {
    let sql = if is_broken {
        "CREATE TRIGGER broken BEFORE INSERT ON rounds BEGIN SELECT RAISE (ABORT, 'broken'); END"
    } else {
        "DROP TRIGGER broken"
    };
    sqlx::query(sql).execute(&store.pool).await.unwrap();
}

#[tokio::test]
async fn updates_whose_commit_fails_are_counted_with_the_next_one_or_at_the_end_of_the_session() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    submit(&store, RUN, &begin([0.0; 3])).await;
    show(&store, 1, claim(5)).await;
    let on_disk = async || {
        let look = Store::look(dir.path()).await.unwrap();
        let remembered = remembered(&look).await.1;
        look.close().await;
        remembered
    };
    break_rounds(&store, true).await;
    for round in 1..=2 {
        store.count_update(&north(), 1);
        store.commit(RUN, &layout(), &commit(1, [1.0; 3])).await.unwrap_err();
        assert_eq!((on_disk().await, remembered(&store).await), (0, (claim(5), round)));
    }
    break_rounds(&store, false).await;
    store.count_update(&north(), 1);
    store.commit(RUN, &layout(), &commit(1, [1.0; 3])).await.unwrap();
    assert_eq!((on_disk().await, remembered(&store).await), (3, (claim(5), 3)));
    store.count_update(&north(), 1);
    break_rounds(&store, true).await;
    store.commit(RUN, &layout(), &commit(2, [2.0; 3])).await.unwrap_err();
    // The session is over before anything could be written.
    store.end_count(&north(), 1).await.unwrap();
    assert_eq!((on_disk().await, remembered(&store).await), (4, (claim(5), 4)));
    store.close().await;
}

#[tokio::test]
async fn the_last_updates_of_a_session_that_cannot_be_written_at_its_end_are_written_with_the_next_round() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    submit(&store, RUN, &begin([0.0; 3])).await;
    show(&store, 1, claim(5)).await;
    store.count_update(&north(), 1);
    let sql = "CREATE TRIGGER broken BEFORE UPDATE ON site_ledgers BEGIN SELECT RAISE (ABORT, 'broken'); END";
    sqlx::query(sql).execute(&store.pool).await.unwrap();
    store.end_count(&north(), 1).await.unwrap_err();
    assert_eq!(remembered(&store).await, (claim(5), 1));
    sqlx::query("DROP TRIGGER broken").execute(&store.pool).await.unwrap();
    store.commit(RUN, &layout(), &commit(1, [1.0; 3])).await.unwrap();
    store.close().await;
    let look = Store::look(dir.path()).await.unwrap();
    assert_eq!(remembered(&look).await, (claim(5), 1));
    look.close().await;
}

#[tokio::test]
async fn whoever_asks_while_updates_are_being_written_sees_each_of_them_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    submit(&store, RUN, &begin([0.0; 3])).await;
    show(&store, 1, claim(5)).await;
    for is_written in [false, true] {
        store.count_update(&north(), 1);
        let taken = store.unwritten.take();
        let asked = remembered(&store);
        tokio::pin!(asked);
        let early = tokio::time::timeout(std::time::Duration::from_millis(20), &mut asked).await;
        assert!(early.is_err(), "an answer before the transaction has ended: {early:?}");
        let mut transaction = store.begin().await.unwrap();
        taken.add(&mut transaction).await.unwrap();
        if is_written {
            transaction.commit().await.unwrap();
            taken.written();
        } else {
            drop((transaction, taken));
        }
        assert_eq!(asked.await, (claim(5), 1 + u64::from(is_written)));
    }
    store.close().await;
}

#[tokio::test]
async fn a_round_of_a_secret_cohort_whose_commit_fails_is_counted_once_when_it_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let (plan_toml, layout, checkpoint) =
        ("a plan that only a later release understands", layout(), begin([0.0; 3]));
    let (run, name, rounds, layout) = (RUN, "hearts", 3, &layout);
    let (seed, calibrated, checkpoint) = (None, None, &checkpoint);
    let new = super::super::Submission { run, name, rounds, plan_toml, seed, calibrated, layout, checkpoint };
    store.submit(&new).await.unwrap();
    show(&store, 1, claim(5)).await;
    store.end_count(&north(), 1).await.unwrap();
    let sql = "CREATE TRIGGER broken BEFORE UPDATE ON site_ledgers BEGIN SELECT RAISE (ABORT, 'broken'); END";
    sqlx::query(sql).execute(&store.pool).await.unwrap();
    store.commit(RUN, layout, &commit(1, [1.0; 3])).await.unwrap_err();
    sqlx::query("DROP TRIGGER broken").execute(&store.pool).await.unwrap();
    store.commit(RUN, layout, &commit(1, [1.0; 3])).await.unwrap();
    let shown = store.shown_ledger(&north()).await.unwrap().unwrap();
    assert_eq!((shown.answered, shown.secret_rounds), (0, 1));
    store.close().await;
}
