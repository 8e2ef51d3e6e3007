//! Who may write: one server at a time, and one that was deposed nothing more.

use privacy::accounting::Relation;
use privacy::ledger::{Ledger, Terms, Unit};
use protocol::wire::Control;
use protocol::{ClientId, Layout, Parameters, RunId};
use tokio::time::sleep;

use super::*;
use crate::net::store::Submission;
use crate::net::store::place::{LEASE, Place};
use crate::{Checkpoint, LedgerReservation, RunEnd};

async fn lead(place: &Place, replica: &str) -> Store {
    Store::lead(place.path(), &place.database(replica)).await.unwrap()
}

async fn submit(store: &Store, run: u64) -> Result<(), StoreError> {
    let layout = Layout::new([("w".to_owned(), vec![1])]).unwrap();
    let checkpoint = &Checkpoint::begin(Parameters::new(vec![1.0]));
    let (run, name, plan_toml, layout) = (RunId(run), "hearts", "rounds = 3", &layout);
    store
        .submit(&Submission {
            run,
            name,
            rounds: 3,
            plan_toml,
            seed: None,
            calibrated: None,
            layout,
            checkpoint,
        })
        .await
}

fn reservation() -> LedgerReservation {
    let (unit, relation) = (Unit::Client, Relation::ZeroOut);
    let terms = Terms { population: "wards".into(), unit, relation, delta: 1e-5, epsilon_max: 5.0 };
    LedgerReservation { population: "wards".into(), links: vec![Ledger::found(terms).unwrap().1] }
}

fn is_deposed<T>(done: Result<T, StoreError>) -> bool {
    matches!(done, Err(StoreError::Deposed { holder, epoch: 2, own: 1 }) if holder == "b")
}

async fn queued(store: &Store) -> Vec<RunId> {
    store.queue().await.unwrap().into_iter().map(|queued| queued.run).collect()
}

#[tokio::test]
async fn whoever_was_deposed_can_write_nothing_more() {
    let Some(place) = Place::in_postgres() else { return };
    let deposed = lead(&place, "a").await;
    submit(&deposed, 1).await.unwrap();
    // Nobody renews the lease of `a`.
    let leads = lead(&place, "b").await;
    assert_eq!((deposed.epoch(), leads.epoch()), (Some(1), Some(2)));
    let site = ClientId::new("north").unwrap();
    assert!(is_deposed(submit(&deposed, 2).await));
    assert!(is_deposed(deposed.append_to_ledger(&reservation()).await));
    assert!(is_deposed(deposed.end(RunId(1), &RunEnd::Stopped).await));
    assert!(is_deposed(deposed.add_invite(&site, "t", 1, 2).await));
    assert!(is_deposed(deposed.use_invite("t", "k", "pem", 1).await));
    assert!(is_deposed(deposed.revoke(&site, 1).await));
    assert!(is_deposed(deposed.wish(RunId(1), Control::Pause).await));
    assert!(is_deposed(deposed.renew().await));
    let met = deposed.load(RunId(9)).await.unwrap_err();
    assert!(is_deposed::<()>(Err(deposed.verdict(met).await)));
    // It gives back what it has no more, which changes nothing.
    deposed.close().await;
    assert_eq!(queued(&leads).await, [RunId(1)]);
    assert!(leads.ledger("wards").await.unwrap().is_empty() && leads.members(60).await.unwrap().is_empty());
    leads.renew().await.unwrap();
    leads.append_to_ledger(&reservation()).await.unwrap();
}

#[tokio::test]
async fn a_lease_that_is_renewed_is_not_taken_and_one_that_is_given_back_is_taken_at_once() {
    let Some(place) = Place::in_postgres() else { return };
    let leads = lead(&place, "a").await;
    let database = place.database("b");
    let mut waits = Box::pin(Store::lead(place.path(), &database));
    for _ in 0..12 {
        assert!(timeout(LEASE / 4, &mut waits).await.is_err(), "two servers lead");
        leads.renew().await.unwrap();
    }
    leads.close().await;
    assert_eq!(place.query("SELECT expires FROM leases"), "0");
    assert_eq!(waits.await.unwrap().epoch(), Some(2));
}

#[tokio::test]
async fn a_transaction_that_stands_still_holds_a_takeover_up_for_a_while_and_comes_to_nothing() {
    let Some(place) = Place::in_postgres() else { return };
    let stalled = lead(&place, "a").await;
    submit(&stalled, 1).await.unwrap();
    let mut transaction = stalled.begin().await.unwrap();
    sqlx::query("UPDATE runs SET name = 'late'").execute(&mut *transaction).await.unwrap();
    let leads = lead(&place, "b").await;
    assert!(transaction.commit().await.is_err());
    assert_eq!(leads.summaries().await.unwrap()[0].name, "hearts");
}

#[tokio::test]
async fn one_machine_has_one_server_of_a_name() {
    let Some(place) = Place::in_postgres() else { return };
    let _leads = lead(&place, "a").await;
    let again = Store::lead(place.path(), &place.database("a")).await;
    assert!(matches!(again, Err(StoreError::Locked(_))));
}

#[tokio::test]
async fn a_database_that_refuses_is_an_error_and_one_that_is_not_there_is_waited_for() {
    let Some(place) = Place::in_postgres() else { return };
    let of =
        |url: &str| Database::Postgres(Postgres::new(url, None, "a").unwrap().with_lease(LEASE).unwrap());
    let absent = of(&format!("postgres://postgres@localhost/absent?host={}", place.socket()));
    assert!(matches!(Store::lead(place.path(), &absent).await, Err(StoreError::Database(_))));
    let nobody = of("postgres://postgres@localhost/absent?host=/nowhere");
    let waits = timeout(LEASE, Store::lead(place.path(), &nobody)).await;
    assert!(waits.is_err(), "a server that cannot reach its database gave up");
}

#[tokio::test]
async fn servers_that_begin_at_once_make_one_schema() {
    let Some(place) = Place::in_postgres() else { return };
    let turns = ["a", "b", "c"].map(|replica| {
        let (dir, database) = (place.path().to_owned(), place.database(replica));
        tokio::spawn(async move {
            let store = Store::lead(&dir, &database).await.unwrap();
            sleep(Duration::from_millis(50)).await;
            store.close().await;
            store.epoch().unwrap()
        })
    });
    let mut epochs = Vec::new();
    for turn in turns {
        epochs.push(turn.await.unwrap());
    }
    epochs.sort_unstable();
    assert_eq!(epochs, [1, 2, 3]);
    assert_eq!(place.query("SELECT version FROM schema_version"), SCHEMA.to_string());
}

#[tokio::test]
async fn a_state_of_the_first_schema_is_taken_along() {
    let dir = tempfile::tempdir().unwrap();
    let pool = database::sqlite(dir.path(), true).await.unwrap();
    sqlx::raw_sql(database::MIGRATIONS[0].both).execute(&pool).await.unwrap();
    let rows = "INSERT INTO runs (run, name, rounds, plan_toml, tensors) VALUES ('0000000000000009', 'old', 3, '', '[]'); \
                INSERT INTO checkpoints (run, round, evaluated, failures, model, model_sha256) \
                VALUES ('0000000000000009', 2, 1, 0, 'm', 's'); \
                INSERT INTO clients VALUES ('0000000000000009', 'north', 2, '[]', '[]', NULL); PRAGMA user_version = 1";
    sqlx::raw_sql(rows).execute(&pool).await.unwrap();
    pool.close().await;
    let store = Store::open(dir.path()).await.unwrap();
    let summary = store.summary(None).await.unwrap().unwrap();
    assert_eq!((summary.name.as_str(), summary.rounds_done, summary.clients.len()), ("old", 2, 1));
}
