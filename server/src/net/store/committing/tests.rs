//! A commit that the storage refuses for a while.

use std::sync::Arc;

use protocol::wire::Control;
use protocol::{ClientId, Metrics, RunId};

use super::super::place::Place;
use super::super::tests::{RUN, begin, commit, layout, submit};
use crate::{ClientRecord, LedgerReservation, RunEnd};

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

#[tokio::test]
async fn what_thousands_of_sites_report_is_stored_whole_and_as_it_was_reported_last() {
    for dir in [Some(Place::in_sqlite()), Place::in_postgres()].into_iter().flatten() {
        let store = dir.open().await;
        submit(&store, RUN, &begin([0.0; 3])).await;
        for round in 1..=2u32 {
            let mut done = commit(1, [1.0; 3]);
            let ((_, task, metrics), (_, record)) = (done.reports.remove(0), done.clients.remove(0));
            for site in 0..1203u32 {
                let client = ClientId::new(&format!("s{site:04}")).unwrap();
                // Missing in the first row, in the last, and in between; and once what no number is.
                let accuracy = (!site.is_multiple_of(3)).then_some(0.5);
                let loss = if site == 7 { f64::NAN } else { f64::from(site * round) };
                done.reports.push((client.clone(), task, Metrics { loss, accuracy, ..metrics }));
                let test = (!site.is_multiple_of(2)).then_some(metrics);
                done.clients.push((client, ClientRecord { accepted: site + round, test, ..record.clone() }));
            }
            store.commit(RUN, &layout(), &done).await.unwrap();
            let reports = store.reports(RUN, 0).await.unwrap();
            assert_eq!(reports.len(), 1202);
            for report in reports {
                let site: u32 = report.site.as_str()[1..].parse().unwrap();
                let told = (report.loss, report.accuracy.is_some());
                assert_eq!(told, (f64::from(site * round), !site.is_multiple_of(3)), "{site}");
            }
            assert_eq!(store.load(RUN).await.unwrap().clients.into_iter().collect::<Vec<_>>(), done.clients);
        }
        store.close().await;
    }
}

#[tokio::test]
async fn a_commit_reads_no_row_of_a_kept_model_again() {
    let dir = Place::in_sqlite();
    let store = dir.open().await.keeping(Some(2));
    submit(&store, RUN, &begin([0.0; 3])).await;
    for round in 1..=3u8 {
        store.commit(RUN, &layout(), &commit(round.into(), [f32::from(round); 3])).await.unwrap();
    }
    // Behind its back: a commit that looked would take these for the newest, and give up the others.
    for round in 100..103 {
        let sql = "INSERT INTO models (run, round, blob, sha256, kept) VALUES ($1, $2, 'x', 'x', 1)";
        sqlx::query(sql).bind(RUN.to_string()).bind(round).execute(&store.pool).await.unwrap();
    }
    store.commit(RUN, &layout(), &commit(4, [4.0; 3])).await.unwrap();
    let models = store.models(RUN).await.unwrap();
    let kept = models.iter().filter(|model| model.line.kept).map(|model| model.line.round);
    assert_eq!(kept.collect::<Vec<_>>(), [3, 4, 100, 101, 102]);
}

#[tokio::test]
async fn a_commit_publishes_its_own_release_and_not_one_of_another_run() {
    let dir = Place::in_sqlite();
    let store = dir.open().await;
    let runs = [RUN, RunId(8)];
    let mut paid = Vec::new();
    for run in runs {
        submit(&store, run, &begin([0.0; 3])).await;
        let mut done = commit(1, [run.0 as f32; 3]);
        done.reservation = Some(LedgerReservation { population: "p".into(), links: Vec::new() });
        paid.push(done);
    }
    let layout = layout();
    let mut first = store.prepare(RUN, &layout, &paid[0]).await.unwrap();
    store.write(&mut first).await.unwrap();
    // The first one's release stands in no audit log yet.
    store.commit(runs[1], &layout, &paid[1]).await.unwrap();
    let unpublished = store.unpublished().await.unwrap();
    assert_eq!(unpublished.len(), 2, "its model and its optimizer's state wait: {unpublished:?}");
    let written = store.written(first);
    store.finish(RUN, &written).await.unwrap();
    assert!(store.unpublished().await.unwrap().is_empty());
    for run in runs {
        assert_eq!(store.load(run).await.unwrap().checkpoint.model.values(), [run.0 as f32; 3]);
    }
}

#[tokio::test]
async fn a_run_that_ends_in_the_queue_takes_no_file_of_a_commit_that_is_not_written_yet() {
    let dir = Place::in_sqlite();
    let store = dir.open().await;
    submit(&store, RUN, &begin([0.0; 3])).await;
    submit(&store, RunId(8), &begin([1.0; 3])).await;
    let (layout, done) = (layout(), commit(1, [2.0; 3]));
    let mut prepared = store.prepare(RUN, &layout, &done).await.unwrap();
    store.end(RunId(8), &RunEnd::Stopped).await.unwrap();
    store.write(&mut prepared).await.unwrap();
    let written = store.written(prepared);
    store.finish(RUN, &written).await.unwrap();
    assert_eq!(store.load(RUN).await.unwrap().checkpoint, done.checkpoint);
    // An end that is there already stays.
    assert!(!store.end_queued(RunId(8), &RunEnd::Finished).await.unwrap());
    assert_eq!(store.load(RunId(8)).await.unwrap().checkpoint.end, Some(RunEnd::Stopped));
}

#[tokio::test]
async fn writers_of_one_program_take_turns() {
    let dir = Place::in_sqlite();
    let store = Arc::new(dir.open().await);
    submit(&store, RUN, &begin([0.0; 3])).await;
    let writing = (0..20u32).map(|round| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let control = if round.is_multiple_of(2) { Control::Pause } else { Control::Resume };
            store.wish(RUN, control).await
        })
    });
    for done in writing.collect::<Vec<_>>() {
        done.await.unwrap().unwrap();
    }
}
