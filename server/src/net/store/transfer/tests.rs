//! What a state looks like in its new database.

use privacy::accounting::{Mechanism, Relation};
use privacy::ledger::{Charge, Composition, Terms, Unit};
use protocol::{ClientId, Layout, Parameters, RunId};

use super::*;
use crate::net::store::place::Place;
use crate::net::store::{Database, Submission};
use crate::{Checkpoint, LedgerReservation};

const RUNS: u64 = 3;

/// A stopped server's state with runs, a ledger and an invite.
async fn stopped(dir: &Path) {
    let store = Store::open(dir).await.unwrap();
    let layout = Layout::new([("w".to_owned(), vec![2])]).unwrap();
    for run in 1..=RUNS {
        let mut checkpoint = Checkpoint::begin(Parameters::new(vec![run as f32, -0.0]));
        checkpoint.norm_max = (run == 2).then(|| protocol::Positive::new(0.1).unwrap());
        let (run, name, plan_toml) = (RunId(run), "hearts", "rounds = 3");
        let (layout, checkpoint, seed) = (&layout, &checkpoint, Some(u64::MAX));
        store
            .submit(&Submission {
                run,
                name,
                rounds: 3,
                plan_toml,
                seed,
                calibrated: None,
                layout,
                checkpoint,
            })
            .await
            .unwrap();
    }
    let (unit, relation) = (Unit::Client, Relation::ZeroOut);
    let terms = Terms { population: "wards".into(), unit, relation, delta: 1e-5, epsilon_max: 5.0 };
    let (mut ledger, first) = Ledger::found(terms).unwrap();
    let mechanism = Mechanism::Gaussian { noise_multiplier: 4.0 };
    let charge = Charge { mechanism, composition: Composition::Each { at_most: None } };
    let (_, reserved) = ledger.reserve("r", 1, &charge, 1).unwrap();
    store
        .append_to_ledger(&LedgerReservation { population: "wards".into(), links: vec![first, reserved] })
        .await
        .unwrap();
    store.add_invite(&ClientId::new("north").unwrap(), "t", 1, 2).await.unwrap();
    store.close().await;
}

fn target(place: &Place) -> Postgres {
    let Database::Postgres(target) = place.database("a") else { panic!("not in PostgreSQL") };
    target
}

async fn queued(store: &Store) -> Vec<RunId> {
    store.queue().await.unwrap().into_iter().map(|queued| queued.run).collect()
}

#[tokio::test]
async fn a_state_goes_on_in_its_new_database_as_it_was_and_not_in_the_old_one() {
    let Some(place) = Place::in_postgres() else { return };
    stopped(place.path()).await;
    let here = Store::open(place.path()).await.unwrap();
    let (loaded, ledger) = (here.load(RunId(2)).await.unwrap(), here.ledger("wards").await.unwrap());
    here.close().await;
    drop(here);
    let done = Store::transfer(place.path(), &target(&place)).await.unwrap();
    assert!(done.rows.contains(&("runs".to_owned(), 3)) && done.rows.contains(&("ledger".to_owned(), 2)));
    assert_eq!(done.ledgers, ["wards"]);
    assert!(!place.path().join("state.sqlite").exists() && done.kept.exists());
    assert!(matches!(Store::open(place.path()).await, Err(StoreError::Moved(_))));
    let there = place.open().await;
    let again = there.load(RunId(2)).await.unwrap();
    assert_eq!((again.checkpoint, again.seed), (loaded.checkpoint, loaded.seed));
    assert_eq!(there.ledger("wards").await.unwrap(), ledger);
    assert_eq!(there.members(60).await.unwrap().len(), 1);
    assert_eq!(queued(&there).await, [1, 2, 3].map(RunId));
    // The numbers of runs go on where they were.
    let layout = Layout::new([("w".to_owned(), vec![1])]).unwrap();
    let (run, name, plan_toml, checkpoint) =
        (RunId(9), "new", "", &Checkpoint::begin(Parameters::new(vec![1.0])));
    there
        .submit(&Submission {
            run,
            name,
            rounds: 1,
            plan_toml,
            seed: None,
            calibrated: None,
            layout: &layout,
            checkpoint,
        })
        .await
        .unwrap();
    assert_eq!(there.summaries().await.unwrap()[0].run, RunId(9));
}

#[tokio::test]
async fn a_database_that_holds_something_or_that_a_server_works_with_is_refused_and_nothing_changes() {
    let Some(place) = Place::in_postgres() else { return };
    let leads = place.open().await;
    stopped(place.path()).await;
    let mixed = Store::lead(place.path(), &place.database("b")).await;
    assert!(matches!(mixed, Err(StoreError::TwoStates { .. })));
    let renews = async {
        loop {
            leads.renew().await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let target_of = target(&place);
    let held = tokio::select! {
        held = Store::transfer(place.path(), &target_of) => held.unwrap_err(),
        never = renews => match never {},
    };
    assert!(matches!(held, TransferError::Held(_)), "{held}");
    leads.add_invite(&ClientId::new("south").unwrap(), "u", 1, 2).await.unwrap();
    leads.close().await;
    let full = Store::transfer(place.path(), &target(&place)).await.unwrap_err();
    assert!(matches!(&full, TransferError::NotEmpty { table, rows: 1, .. } if table == "invites"), "{full}");
    assert_eq!(place.query("SELECT count(*) FROM runs"), "0");
    let here = Store::open(place.path()).await.unwrap();
    assert_eq!(queued(&here).await.len() as u64, RUNS);
}

#[tokio::test]
async fn a_ledger_that_was_changed_is_not_taken_along() {
    let Some(place) = Place::in_postgres() else { return };
    stopped(place.path()).await;
    let pool = database::sqlite(place.path(), true).await.unwrap();
    let forge = "DROP TRIGGER ledger_never_changes; UPDATE ledger SET record = replace(record, '4.0', '9.0')";
    sqlx::raw_sql(forge).execute(&pool).await.unwrap();
    pool.close().await;
    let refused = Store::transfer(place.path(), &target(&place)).await.unwrap_err();
    assert!(matches!(refused, TransferError::Store(StoreError::Books(_))), "{refused}");
    assert_eq!(place.query("SELECT count(*) FROM information_schema.tables WHERE table_name = 'runs'"), "0");
    assert!(place.path().join("state.sqlite").exists());
}

#[tokio::test]
async fn a_move_that_was_cut_off_at_any_step_is_given_again_and_no_server_starts_meanwhile() {
    let Some(place) = Place::in_postgres() else { return };
    stopped(place.path()).await;
    let (rows, mark) = (place.path().join("state.sqlite"), place.path().join(MIGRATING));
    // Killed before the transaction was made.
    std::fs::write(&mark, "being moved").unwrap();
    let refused = Store::open(place.path()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Moving(_)) && refused.to_string().contains("again"), "{refused}");
    let done = Store::transfer(place.path(), &target(&place)).await.unwrap();
    assert!(!mark.exists() && done.kept.exists());
    // Killed after it was made, and before the old file had its new name.
    std::fs::rename(&done.kept, &rows).unwrap();
    std::fs::write(&mark, "being moved").unwrap();
    assert!(matches!(Store::open(place.path()).await, Err(StoreError::Moving(_))));
    let again = Store::transfer(place.path(), &target(&place)).await.unwrap();
    assert_eq!(again.rows, done.rows);
    assert!(!mark.exists() && !rows.exists());
    // A database in which a server has worked since is not taken for that copy.
    let led = Store::lead(place.path(), &place.database("b")).await.unwrap();
    led.add_invite(&ClientId::new("south").unwrap(), "t2", 1, 2).await.unwrap();
    led.close().await;
    drop(led);
    std::fs::rename(&done.kept, &rows).unwrap();
    std::fs::write(&mark, "being moved").unwrap();
    let refused = Store::transfer(place.path(), &target(&place)).await.unwrap_err();
    assert!(matches!(refused, TransferError::NotEmpty { .. }), "{refused}");
    assert!(
        matches!(Store::open(place.path()).await, Err(StoreError::Moving(_))),
        "the old state starts again"
    );
}
