//! A commit that the storage refuses for a while.

use super::super::place::Place;
use super::super::tests::{RUN, begin, commit, layout, submit};

#[tokio::test]
async fn a_database_without_room_is_named_and_takes_the_same_commit_once_there_is_some() {
    let dir = Place::in_sqlite();
    let store = dir.open().await;
    submit(&store, RUN, &begin([0.0; 3])).await;
    let limit = async |pages: &str| {
        // Each connection has a limit of its own.
        let mut all = Vec::new();
        while let Ok(Ok(connection)) =
            tokio::time::timeout(std::time::Duration::from_millis(500), store.pool.acquire()).await
        {
            all.push(connection);
        }
        for connection in &mut all {
            let sql = format!("PRAGMA max_page_count = {pages}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut **connection).await.unwrap();
        }
    };
    limit("1").await;
    let mut done = commit(1, [1.0; 3]);
    done.statement = Some("x".repeat(1 << 20));
    let mut prepared = store.prepare(RUN, &layout(), &done).await.unwrap();
    let error = store.write(&mut prepared).await.unwrap_err();
    assert!(error.may_be_tried_again() && error.passes(), "{error}");
    let named = store.named(dir.path(), error).to_string();
    assert!(named.contains("the disk is full") && named.contains("state.sqlite"), "{named}");
    assert_eq!(store.load(RUN).await.unwrap().checkpoint, begin([0.0; 3]));
    limit("1000000").await;
    assert!(store.write(&mut prepared).await.unwrap());
    let written = store.written(prepared);
    store.finish(RUN, &written).await.unwrap();
    assert_eq!(store.load(RUN).await.unwrap().checkpoint, done.checkpoint);
}
