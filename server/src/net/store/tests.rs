//! What a store remembers, and what it says of damage.

use std::path::Path;

use protocol::wire::{Control, EnrolRejection, Member, ModelChoice, Quarantine, RoundSummary, RunState};
use protocol::{Decline, Metrics, Rejection, Round, Standardiser, StepId, TaskId};

use super::messages::Verdict;
use super::place::Place;
use super::*;
use crate::{Commit, LedgerReservation, RunEnd};
use privacy::accounting::{Mechanism, Relation};
use privacy::chain::Link;
use privacy::ledger::{Charge, Composition, Ledger, Terms, Unit};

pub(super) const RUN: RunId = RunId(7);

/// A state of this test's own, in the database that this module's tests are for.
fn place() -> Option<Place> {
    Place::of(module_path!())
}

pub(super) fn layout() -> Layout {
    Layout::new([("weight".to_owned(), vec![2, 1]), ("bias".to_owned(), vec![1])]).unwrap()
}

pub(super) fn begin(values: [f32; 3]) -> Checkpoint {
    Checkpoint::begin(Parameters::new(values.to_vec()))
}

pub(super) async fn submit(store: &Store, run: RunId, checkpoint: &Checkpoint) {
    let layout = layout();
    let (name, plan_toml) = ("hearts", "rounds = 3");
    let (seed, calibrated, layout) = (Some(u64::MAX), None, &layout);
    let new = Submission { run, name, rounds: 3, plan_toml, seed, calibrated, layout, checkpoint };
    store.submit(&new).await.unwrap();
}

pub(super) fn commit(round: u32, values: [f32; 3]) -> Commit {
    let client = ClientId::new("north").unwrap();
    let metrics = Metrics { loss: 0.1 + 0.2, accuracy: Some(0.5), examples: 9, seconds: 0.25 };
    let summary = RoundSummary {
        round,
        released: true,
        cohort: 2,
        answered: 2,
        train: Some(metrics),
        sites: None,
        central: None,
        seconds: 1.5,
        epsilon: Some(0.1),
        further: Default::default(),
    };
    let record = ClientRecord {
        connected: false,
        accepted: round,
        releases: round,
        released_last: round,
        refused: [(Rejection::TooSlow, 2)].into(),
        declined: [(Decline::Data, 1)].into(),
        test: Some(metrics),
    };
    let third = 1.0 / 3.0;
    let checkpoint = Checkpoint {
        round: Round(round),
        optimizer: vec![Arc::new(vec![0.5, -1.5, 2.5]), Arc::new(vec![9.0; 3])],
        standardiser: Some(Arc::new(Standardiser { mean: vec![0.1, third], std: vec![1e-300, 2.0] })),
        summary: Some(summary.clone()),
        workflow: [3, 0, 255].into(),
        ..begin(values)
    };
    let task = TaskId::new(RUN, Round(round), StepId::TRAIN);
    Commit {
        checkpoint,
        summary,
        reports: vec![(client.clone(), task, metrics)],
        clients: vec![(client, record)],
        reservation: None,
        statement: None,
    }
}

async fn queue(store: &Store) -> Vec<RunId> {
    store.queue().await.unwrap().into_iter().map(|queued| queued.run).collect()
}

fn blobs_in(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("blobs")).unwrap().count()
}

#[tokio::test]
async fn what_is_committed_is_there_bit_for_bit_after_reopening() {
    let Some(dir) = place() else { return };
    let done = commit(1, [1.0, -0.0, f32::MIN_POSITIVE]);
    {
        let store = dir.open().await;
        submit(&store, RUN, &begin([0.0; 3])).await;
        let sha256 = store.commit(RUN, &layout(), &done).await.unwrap();
        assert_eq!(sha256, done.checkpoint.model.sha256());
        store.close().await;
    }
    let store = dir.open().await;
    assert_eq!(queue(&store).await, [RUN]);
    let stored = store.load(RUN).await.unwrap();
    assert_eq!(stored.checkpoint, done.checkpoint);
    assert_eq!(stored.checkpoint.model.sha256(), done.checkpoint.model.sha256());
    assert_eq!((stored.seed, stored.plan_toml.as_str()), (Some(u64::MAX), "rounds = 3"));
    assert_eq!(stored.layout, layout());
    assert_eq!(stored.clients.into_iter().collect::<Vec<_>>(), done.clients);
}

#[tokio::test]
async fn a_site_without_records_to_measure_on_has_no_voice_in_which_model_is_best() {
    let Some(dir) = place() else { return };
    let store = dir.open().await;
    submit(&store, RUN, &begin([0.0; 3])).await;
    for (round, accuracy) in [(1u8, 0.6), (2, 0.9), (3, 0.7)] {
        let mut done = commit(round.into(), [f32::from(round); 3]);
        let task = TaskId::new(RUN, Round(round.into()), StepId::EVALUATE);
        let measured = Metrics { loss: 0.3, accuracy: Some(accuracy), examples: 9, seconds: 0.1 };
        let told = [("north", measured), ("south", Metrics::default()), ("west", Metrics::default())];
        done.reports =
            told.into_iter().map(|(name, metrics)| (ClientId::new(name).unwrap(), task, metrics)).collect();
        done.summary.sites = Some(measured);
        store.commit(RUN, &layout(), &done).await.unwrap();
    }
    assert_eq!(store.model(RUN, ModelChoice::Best).await.unwrap().unwrap().line.round, 2);
}

#[tokio::test]
async fn a_second_server_on_the_same_state_is_refused() {
    let Some(dir) = place() else { return };
    let first = dir.open().await;
    assert!(matches!(dir.try_open().await, Err(StoreError::Locked(_))));
    first.close().await;
    drop(first);
    assert!(dir.try_open().await.is_ok());
}

#[tokio::test]
async fn of_the_models_the_last_ones_and_the_best_keep_their_files_and_of_the_optimizer_the_last_two() {
    let Some(dir) = place() else { return };
    let store = dir.open().await.keeping(Some(2));
    submit(&store, RUN, &begin([0.0; 3])).await;
    for round in 1..5u8 {
        let mut done = commit(round.into(), [f32::from(round); 3]);
        let accuracy = Some(if round == 2 { 0.9 } else { 0.5 });
        done.summary.sites = done.summary.train.map(|metrics| Metrics { accuracy, ..metrics });
        store.commit(RUN, &layout(), &done).await.unwrap();
    }
    // The models of rounds 2, 3 and 4; the optimizer's state of the last two.
    assert_eq!(blobs_in(dir.path()), 5);
    let mut last = commit(5, [9.0; 3]);
    last.checkpoint.end = Some(RunEnd::Finished);
    store.commit(RUN, &layout(), &last).await.unwrap();
    assert_eq!(blobs_in(dir.path()), 3);
    let models = store.models(RUN).await.unwrap();
    let kept: Vec<u32> = models.iter().filter(|one| one.line.kept).map(|one| one.line.round).collect();
    assert_eq!((models.len(), kept), (6, vec![2, 4, 5]));
    assert!(models.iter().all(|one| one.line.kept == Path::new(&one.place).exists()));
    assert_eq!(models[3].line.parent_sha256.as_ref(), Some(&models[2].line.sha256));
    let best = store.model(RUN, ModelChoice::Best).await.unwrap().unwrap();
    assert_eq!((best.line.round, best.line.best), (2, true));
    assert!(store.model(RUN, ModelChoice::Round(6)).await.unwrap().is_none());
    let (file, sha256) = store.model_place(RUN).await.unwrap();
    assert!(Path::new(&file).exists());
    assert_eq!(sha256, last.checkpoint.model.sha256());
    assert!(queue(&store).await.is_empty());
}

#[tokio::test]
async fn the_commit_of_an_evaluation_replaces_the_rounds_line_and_writes_no_model() {
    let Some(dir) = place() else { return };
    let store = dir.open().await;
    submit(&store, RUN, &begin([0.0; 3])).await;
    let mut done = commit(1, [1.0; 3]);
    store.commit(RUN, &layout(), &done).await.unwrap();
    let (file, _) = store.model_place(RUN).await.unwrap();
    let written = std::fs::metadata(&file).unwrap().modified().unwrap();
    done.summary.central = done.summary.train;
    store.commit(RUN, &layout(), &done).await.unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().modified().unwrap(), written);
    let summary = store.summary(None).await.unwrap().unwrap();
    assert_eq!(summary.history, [done.summary]);
    assert_eq!(summary.clients[0].refused, [("too_slow".to_owned(), 2)]);
}

#[tokio::test]
async fn a_damaged_model_is_reported_by_name() {
    let Some(dir) = place() else { return };
    let store = dir.open().await;
    submit(&store, RUN, &begin([1.0, 2.0, 3.0])).await;
    let (file, _) = store.model_place(RUN).await.unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let error = store.load(RUN).await.unwrap_err().to_string();
    assert!(error.contains(&file), "{error}");
}

#[tokio::test]
async fn runs_are_listed_newest_first_and_a_failed_one_says_why() {
    let Some(dir) = place() else { return };
    let store = dir.open().await;
    submit(&store, RUN, &begin([0.0; 3])).await;
    submit(&store, RunId(1), &begin([0.0; 3])).await;
    store.end(RUN, &RunEnd::Failed("no lattice".into())).await.unwrap();
    let runs = store.summaries().await.unwrap();
    assert_eq!(
        runs.iter().map(|run| (run.run, run.state)).collect::<Vec<_>>(),
        [(RunId(1), RunState::Queued), (RUN, RunState::Failed)]
    );
    assert_eq!(runs[1].message, "no lattice");
    assert_eq!(queue(&store).await, [RunId(1)]);
    assert!(matches!(store.load(RunId(2)).await, Err(StoreError::NoSuchRun(_))));
}

#[tokio::test]
async fn metrics_that_are_not_finite_never_make_a_state_unreadable() {
    let Some(dir) = place() else { return };
    let store = dir.open().await;
    submit(&store, RUN, &begin([0.0; 3])).await;
    let mut hostile = commit(1, [1.0; 3]);
    let infinite = Some(Metrics { loss: f64::INFINITY, ..Metrics::default() });
    (hostile.summary.train, hostile.clients[0].1.test) = (infinite, infinite);
    store.commit(RUN, &layout(), &hostile).await.unwrap();
    assert_eq!(store.load(RUN).await.unwrap().checkpoint.summary.unwrap().train, None);
}

pub(super) fn a_book() -> (Ledger, Vec<Link>) {
    let terms = Terms {
        population: "wards".into(),
        unit: Unit::Client,
        relation: Relation::ZeroOut,
        delta: 1e-5,
        epsilon_max: 5.0,
    };
    let (mut ledger, first) = Ledger::found(terms).unwrap();
    let mechanism = Mechanism::Gaussian { noise_multiplier: 4.0 };
    let charge = Charge { mechanism, composition: Composition::Each { at_most: None } };
    let (_, reserved) = ledger.reserve("r", 1, &charge, 1).unwrap();
    (ledger, vec![first, reserved])
}

#[tokio::test]
async fn numbers_may_be_missing_in_one_commit_and_there_in_the_next() {
    let Some(dir) = place() else { return };
    let store = dir.open().await;
    submit(&store, RUN, &begin([0.0; 3])).await;
    for (round, norm_max) in [(1, None), (2, Some(0.1)), (3, None), (4, Some(1e-300))] {
        let mut done = commit(round, [round as f32; 3]);
        done.checkpoint.norm_max = norm_max.map(|norm| protocol::Positive::new(norm).unwrap());
        done.reports[0].2.accuracy = norm_max;
        store.commit(RUN, &layout(), &done).await.unwrap();
        assert_eq!(store.load(RUN).await.unwrap().checkpoint, done.checkpoint);
    }
}

#[tokio::test]
async fn what_sites_measured_is_told_by_round_and_what_they_answered_over_the_newest_runs() {
    let Some(dir) = place() else { return };
    let store = dir.open().await;
    for run in [RUN, RunId(8)] {
        submit(&store, run, &begin([0.0; 3])).await;
        for round in 1..4u8 {
            let mut done = commit(round.into(), [f32::from(round); 3]);
            let (south, mut task, mut metrics) = done.reports[0].clone();
            task.run = run;
            (metrics.accuracy, metrics.examples) = (None, u64::from(round) << 40);
            done.reports = vec![(south, task, metrics)];
            store.commit(run, &layout(), &done).await.unwrap();
        }
    }
    let reports = store.reports(RUN, 2).await.unwrap();
    assert_eq!(reports.iter().map(|report| report.round).collect::<Vec<_>>(), [2, 3]);
    let last = Report {
        round: 3,
        kind: "train".into(),
        site: ClientId::new("north").unwrap(),
        loss: 0.1 + 0.2,
        accuracy: None,
        examples: 3 << 40,
        seconds: 0.25,
    };
    assert_eq!(reports[1], last);
    assert!(store.reports(RunId(9), 0).await.unwrap().is_empty());
    let counts = Counts {
        runs: 2,
        accepted: 6,
        refused: [(Rejection::TooSlow.name(), 4)].into(),
        declined: [(Decline::Data.name(), 2)].into(),
    };
    assert_eq!(store.counts().await.unwrap(), [(ClientId::new("north").unwrap(), counts)].into());
    assert_eq!(store.plan_toml(RUN).await.unwrap(), "rounds = 3");
    assert!(matches!(store.plan_toml(RunId(9)).await, Err(StoreError::NoSuchRun(RunId(9)))));
    let Described { seed, standardiser, .. } = store.description(RUN).await.unwrap();
    assert_eq!((seed, standardiser.map(|one| one.std)), (Some(u64::MAX), Some(vec![1e-300, 2.0])));
    assert_eq!(store.summary(Some(RUN)).await.unwrap().unwrap().history.len(), 3);
    assert_eq!(store.summary(None).await.unwrap().unwrap().run, RunId(8));
}

#[tokio::test]
async fn invites_and_revocations_are_remembered_and_an_invite_is_good_once() {
    let Some(dir) = place() else { return };
    let store = dir.open().await;
    let north = ClientId::new("north").unwrap();
    store.add_invite(&north, "t1", 10, 20).await.unwrap();
    assert!(store.ask("t1", "stranger", "a:1", 11).await.unwrap());
    store.add_invite(&north, "t2", 10, 30).await.unwrap();
    // Of two invites of one name only the newer one is good, also where somebody waits with the older one.
    for key in ["k", "stranger"] {
        let shown = store.show("t1", key, 15).await.unwrap();
        assert!(matches!(shown, Shown::Refused(EnrolRejection::Unknown)));
        assert!(!store.use_invite("t1", key, "pem", 15).await.unwrap());
    }
    assert!(store.asking().await.unwrap().is_empty());
    assert!(matches!(store.show("t2", "k", 15).await.unwrap(), Shown::Good(site) if site == north));
    assert!(store.use_invite("t2", "k", "pem", 15).await.unwrap());
    assert!(!store.use_invite("t2", "other", "pem", 16).await.unwrap());
    assert!(matches!(store.show("t2", "k", 17).await.unwrap(), Shown::Again { .. }));
    store.revoke(&north, 40).await.unwrap();
    store.revoke(&north, 50).await.unwrap();
    assert_eq!(store.revocations().await.unwrap(), [(north.clone(), 50)].into());
    let member = Member {
        site: north,
        invited: 10,
        expires: 30,
        joined: Some(15),
        revoked: Some(50),
        quarantine: None,
        waiting: vec![],
        certificates: vec![],
        seen: None,
    };
    assert_eq!(store.members(60).await.unwrap(), [member]);
}

#[tokio::test]
async fn what_was_certified_up_to_a_revocation_is_void_until_it_would_have_ended() {
    let Some(dir) = place() else { return };
    let store = dir.open().await;
    let [north, south] = ["north", "south"].map(|name| ClientId::new(name).unwrap());
    for (site, serial, issued, expires) in
        [(&north, "4a", 10, 100), (&north, "4b", 40, 130), (&north, "4c", 51, 140), (&south, "4d", 10, 100)]
    {
        store.add_certificate(site, &Issued { serial: serial.into(), issued, expires }).await.unwrap();
    }
    assert!(store.void(60).await.unwrap().is_empty());
    store.revoke(&north, 50).await.unwrap();
    let good = async |now| -> Vec<Vec<String>> {
        let serials = |member: Member| member.certificates.into_iter().map(|one| one.serial).collect();
        store.members(now).await.unwrap().into_iter().map(serials).collect()
    };
    // Of a revoked site, what was issued after; of all, what is not over by itself.
    assert_eq!(good(60).await, [vec!["4c".to_owned()], vec!["4d".to_owned()]]);
    assert_eq!(good(101).await, [vec!["4c".to_owned()]]);
    let void = |serial: &str| Void { serial: serial.into(), revoked: 50 };
    assert_eq!(store.void(60).await.unwrap(), [void("4a"), void("4b")]);
    assert_eq!(store.void(101).await.unwrap(), [void("4b")]);
}

#[tokio::test]
async fn who_waits_for_an_operator_keeps_the_invite_and_others_are_refused_until_there_is_a_verdict() {
    let Some(dir) = place() else { return };
    let store = dir.open().await;
    let north = ClientId::new("north").unwrap();
    for (token, site) in [("t1", "north"), ("t2", "south"), ("t3", "west")] {
        store.add_invite(&ClientId::new(site).unwrap(), token, 10, 30).await.unwrap();
    }
    assert!(
        store.ask("t1", "k1", "a:1", 12).await.unwrap() && store.ask("t2", "k2", "b:1", 11).await.unwrap()
    );
    assert!(!store.ask("t1", "other", "c:1", 13).await.unwrap());
    assert!(!store.use_invite("t1", "other", "pem", 13).await.unwrap());
    store.close().await;
    drop(store);
    let store = dir.open().await;
    let refusal = async |token: &str, key: &str| match store.show(token, key, 15).await.unwrap() {
        Shown::Refused(refusal) => refusal,
        _ => panic!("{token} is not refused"),
    };
    assert!(matches!(store.show("t1", "k1", 15).await.unwrap(), Shown::Waiting));
    assert_eq!(refusal("t1", "other").await, EnrolRejection::Used);
    assert!(matches!(store.show("t3", "k3", 15).await.unwrap(), Shown::Good(_)));
    let asking = store.asking().await.unwrap();
    let waits = |one: &Asking| (one.key_sha256.clone(), one.asked, one.expires, one.address.clone());
    let expected = [("k2".into(), 11, 30, "b:1".into()), ("k1".into(), 12, 30, "a:1".into())];
    assert_eq!(asking.iter().map(waits).collect::<Vec<_>>(), expected);
    store.decide("t1", Verdict::Approved, 15).await.unwrap();
    store.decide("t2", Verdict::Refused, 15).await.unwrap();
    assert!(matches!(store.show("t1", "k1", 15).await.unwrap(), Shown::Approved(site) if site == north));
    assert_eq!(refusal("t1", "other").await, EnrolRejection::Used);
    assert_eq!(refusal("t2", "k2").await, EnrolRejection::Denied);
    assert_eq!(refusal("t2", "other").await, EnrolRejection::Unknown);
    assert!(store.asking().await.unwrap().is_empty());
    assert!(store.use_invite("t1", "k1", "pem", 16).await.unwrap());
    assert!(matches!(store.show("t1", "k1", 17).await.unwrap(), Shown::Again { .. }));
}

#[tokio::test]
async fn a_quarantine_holds_until_it_is_ended_and_keeps_its_beginning() {
    let Some(dir) = place() else { return };
    let store = dir.open().await;
    let [north, south] = ["north", "south"].map(|name| ClientId::new(name).unwrap());
    store.add_invite(&north, "t1", 10, 20).await.unwrap();
    store.quarantine(&north, 30, "odd norms").await.unwrap();
    store.quarantine(&north, 40, "").await.unwrap();
    // One that was never invited, as a site with a bundle.
    store.quarantine(&south, 50, "new machine").await.unwrap();
    store.close().await;
    drop(store);
    let store = dir.open().await;
    let held = |since, reason: &str| Quarantine { since, reason: reason.to_owned() };
    let expected = [(north.clone(), held(30, "")), (south.clone(), held(50, "new machine"))];
    assert_eq!(store.quarantines().await.unwrap(), expected.into());
    let members = store.members(60).await.unwrap();
    assert_eq!(members.iter().map(|member| &member.site).collect::<Vec<_>>(), [&north, &south]);
    assert!(members.iter().all(|member| member.quarantine.is_some()));
    assert!(store.end_quarantine(&north).await.unwrap() && !store.end_quarantine(&north).await.unwrap());
    assert_eq!(store.quarantines().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_look_sees_what_is_stored_and_cannot_write() {
    let Some(dir) = place() else { return };
    let database = dir.database("b");
    assert!(matches!(Store::look_into(dir.path(), &database).await, Err(StoreError::Empty(_))));
    let store = dir.open().await;
    submit(&store, RUN, &begin([0.0; 3])).await;
    let look = Store::look_into(dir.path(), &database).await.unwrap();
    assert_eq!(queue(&look).await, [RUN]);
    assert!(look.end(RUN, &RunEnd::Stopped).await.is_err());
    assert_eq!(queue(&store).await, [RUN]);
}

#[tokio::test]
async fn a_ledger_comes_back_and_grows_in_the_transaction_of_a_commit() {
    let Some(dir) = place() else { return };
    let (mut ledger, links) = a_book();
    let store = dir.open().await;
    submit(&store, RUN, &begin([0.0; 3])).await;
    store
        .append_to_ledger(&LedgerReservation { population: "wards".into(), links: links.clone() })
        .await
        .unwrap();
    let settled = ledger.settle();
    let mut with_reservation = commit(1, [1.0; 3]);
    with_reservation.reservation = Some(LedgerReservation { population: "wards".into(), links: settled });
    with_reservation.statement = Some("{}".into());
    store.commit(RUN, &layout(), &with_reservation).await.unwrap();
    assert_eq!(Ledger::replay(&store.ledger("wards").await.unwrap()).unwrap(), ledger);
    let model = store.model(RUN, ModelChoice::Last).await.unwrap().unwrap();
    assert_eq!((model.line.round, model.statement.as_deref()), (1, Some("{}")));
    assert_eq!(store.populations().await.unwrap(), ["wards"]);
    assert!(store.ledger("others").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_commit_whose_records_have_no_place_in_the_ledger_changes_nothing_at_all() {
    let Some(dir) = place() else { return };
    let (_, links) = a_book();
    let store = dir.open().await;
    submit(&store, RUN, &begin([0.0; 3])).await;
    store
        .append_to_ledger(&LedgerReservation { population: "wards".into(), links: links.clone() })
        .await
        .unwrap();
    let mut twice = commit(1, [1.0; 3]);
    twice.reservation = Some(LedgerReservation { population: "wards".into(), links: links[1..].to_vec() });
    assert!(store.commit(RUN, &layout(), &twice).await.is_err());
    assert_eq!(store.load(RUN).await.unwrap().checkpoint.round, Round(0));
    assert_eq!(store.ledger("wards").await.unwrap(), links);
}

#[tokio::test]
async fn no_statement_of_the_database_changes_or_removes_a_record() {
    let Some(dir) = place() else { return };
    let (_, links) = a_book();
    let store = dir.open().await;
    store.append_to_ledger(&LedgerReservation { population: "wards".into(), links }).await.unwrap();
    for sql in ["UPDATE ledger SET record = '{}'", "DELETE FROM ledger"] {
        let refused = sqlx::query(sql).execute(&store.pool).await.unwrap_err().to_string();
        assert!(refused.contains("append-only"), "{refused}");
    }
}

#[tokio::test]
async fn an_operator_s_wish_is_there_after_reopening_and_a_run_that_was_ended_keeps_nothing_it_needed_to_go_on()
 {
    let Some(dir) = place() else { return };
    let store = dir.open().await;
    submit(&store, RUN, &begin([0.0; 3])).await;
    store.commit(RUN, &layout(), &commit(1, [1.0; 3])).await.unwrap();
    store.wish(RUN, Control::Pause).await.unwrap();
    store.close().await;
    drop(store);
    let store = dir.open().await;
    assert_eq!(store.queue().await.unwrap()[0].control, Control::Pause);
    assert_eq!(store.summaries().await.unwrap()[0].state, RunState::Paused);
    store.end(RUN, &RunEnd::Stopped).await.unwrap();
    assert_eq!(store.summaries().await.unwrap()[0].state, RunState::Stopped);
    // Two models; the optimizer's state is gone.
    assert_eq!(blobs_in(dir.path()), 2);
    assert_eq!(store.load(RUN).await.unwrap().checkpoint.end, Some(RunEnd::Stopped));
}

#[tokio::test]
async fn a_name_that_older_releases_allowed_is_said_and_keeps_no_server_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    for sql in [
        "INSERT INTO invites (token_sha256, site, created, expires) VALUES ('a', '..', 1, 2)",
        "INSERT INTO revocations (site, before) VALUES ('-rf', 5)",
        "INSERT INTO quarantines (site, since, reason) VALUES ('.x', 5, '')",
        "INSERT INTO revocations (site, before) VALUES ('north', 5)",
    ] {
        sqlx::query(sql).execute(&store.pool).await.unwrap();
    }
    let said: Vec<String> = store.names_refused().await.unwrap().into_iter().collect();
    assert_eq!(said, ["-rf", "..", ".x"]);
    assert_eq!(store.revocations().await.unwrap().len(), 1);
    assert!(store.quarantines().await.unwrap().is_empty());
    assert_eq!(store.members(60).await.unwrap().len(), 1);
    let shown = store.show("a", "key", 1).await.unwrap();
    assert!(matches!(shown, Shown::Refused(EnrolRejection::Unknown)));
    // What no release ever allowed is damage, as before.
    sqlx::query("INSERT INTO revocations (site, before) VALUES ('a b', 5)")
        .execute(&store.pool)
        .await
        .unwrap();
    assert!(matches!(store.revocations().await, Err(StoreError::Member { .. })));
    store.close().await;
}

#[tokio::test]
async fn the_best_model_that_is_known_from_commit_to_commit_is_the_one_that_is_found_from_the_beginning() {
    let Some(dir) = place() else { return };
    let store = dir.open().await;
    submit(&store, RUN, &begin([0.0; 3])).await;
    let task = |round| TaskId::new(RUN, Round(round), StepId::EVALUATE);
    let measured = |at: u32, accuracy| Metrics {
        loss: f64::from((at * 37) % 11) / 10.0,
        accuracy,
        examples: u64::from(at % 4),
        seconds: 0.1,
    };
    let mut expected = Vec::new();
    for round in 1..=20u32 {
        let mut done = commit(round, [round as f32; 3]);
        done.reports.clear();
        store.commit(RUN, &layout(), &done).await.unwrap();
        // The evaluation of the round comes later, or never, and of some sites only.
        if round % 5 != 0 {
            let accuracy = (round != 13).then(|| f64::from((round * 29) % 17) / 17.0);
            for (at, name) in ["north", "south", "west"].iter().enumerate() {
                let report = measured(round + at as u32, accuracy);
                done.reports.push((ClientId::new(name).unwrap(), task(round), report));
            }
            done.summary.sites = Some(measured(round, accuracy));
            store.commit(RUN, &layout(), &done).await.unwrap();
        }
        let fresh = Store::look_into(dir.path(), &dir.database("look")).await.unwrap();
        let (known, found) = (store.best(RUN).await.unwrap(), fresh.best(RUN).await.unwrap());
        fresh.close().await;
        assert_eq!(known, found, "after round {round}");
        expected.push(known);
    }
    expected.dedup();
    assert!(expected.len() > 3, "the best model hardly changes: {expected:?}");
    let models = store.models(RUN).await.unwrap();
    assert_eq!(models.iter().filter(|model| model.line.best).count(), 1);
    for (before, limit, rounds) in
        [(None, 2, vec![19, 20]), (Some(4), 3, vec![1, 2, 3]), (Some(1), 9, vec![0]), (Some(0), 9, vec![])]
    {
        let page = store.models_before(RUN, before, limit).await.unwrap();
        let found: Vec<u32> = page.iter().map(|model| model.line.round).collect();
        assert_eq!(found, rounds);
        for model in page {
            assert_eq!(Some(&model), models.get(model.line.round as usize));
        }
    }
}
