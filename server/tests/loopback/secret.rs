//! Runs whose cohorts are drawn in secret: what a server shows of them, what it declares, and what its statements say after a
//! history of real and seeded runs.

use std::sync::Arc;

use privacy::accounting::{Event, Mechanism, gaussian};
use privacy::chain::Link;
use privacy::ledger::{Cohorts, Ledger, Release, Terms};
use protocol::wire::{ConnectError, Greeting, ModelChoice, Receipt};
use serde_json::{Value, json};
use server::net::{Server, Store};
use server::{Adversary, Claim, LedgerReservation, Plan, PrivacyStatement};
use sqlx::{AnyConnection, Connection as _, Row as _};

use super::admin::{Watched, config, round};
use super::federation::{PLAN, Site, ToyRoom, honest};
use super::ledgers::{greet, ledger, opening};

const NOISE: f64 = 4.0;
const DELTA: f64 = 1e-5;

/// Everybody is drawn, by a coin that always falls so, and the server must not say it.
fn plan(sampling: &str) -> String {
    format!(
        "{PLAN}[privacy.central]\ndelta = {DELTA}\nepsilon_max = 99\nnoise_multiplier = {NOISE}\ndenominator = 3\n\
         population = \"wards\"\nsampling = {sampling}\n"
    )
}

const COIN: &str = "{ poisson = { rate = 1.0 } }";

async fn train(watched: &Watched, body: Value) -> String {
    let reply = watched.post("/api/v1/runs", &body).await;
    assert_eq!(reply.status, 201, "{reply:?}");
    reply.json()["run"].as_str().unwrap().to_owned()
}

async fn finished(watched: &Watched, run: &str) -> Value {
    watched.until(&format!("/api/v1/runs/{run}"), |run| run["state"] == "finished").await
}

const NAMES: [&str; 3] = ["north", "south", "west"];
/// Records of each site's ledger when it connects.
const RECORDS: u64 = 5;

/// A machine that shows the certificate of this site.
async fn connects(watched: &Watched, name: &str) -> Site {
    let (federation, address) = (&watched.federation, watched.server.local_addr());
    let identity = federation.site_identity(name);
    Site::connect(address, Some(&identity), federation.authority.ca_pem()).await.unwrap()
}

/// The same, which shows this ledger, too.
async fn comes(watched: &Watched, name: &str, machine: &str, records: u64) -> (Site, Greeting) {
    let site = connects(watched, name).await;
    let greeting = greet(&site, &ledger(machine, records, RECORDS), &[]).await;
    (site, greeting)
}

async fn sites_with_ledgers(watched: &Watched) -> Vec<Site> {
    let mut sites = Vec::new();
    for name in NAMES {
        let (site, greeting) = comes(watched, name, name, RECORDS).await;
        assert!(matches!(greeting, Greeting::Welcome { .. }), "{greeting:?}");
        sites.push(site);
    }
    sites
}

/// Of each site what is remembered of its ledger: records, updates that were counted, rounds that it may have trained in.
async fn remembered(watched: &Watched) -> Vec<(i64, i64, i64)> {
    sqlx::any::install_default_drivers();
    let path = watched.federation.state().join("state.sqlite");
    let mut rows = AnyConnection::connect(&format!("sqlite:{}?mode=ro", path.display())).await.unwrap();
    let sql = "SELECT records, answered, secret_rounds FROM site_ledgers ORDER BY site";
    let found = sqlx::query(sql).fetch_all(&mut rows).await.unwrap();
    found.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// Machines with copied certificates and other ledgers are told, and written down, the same of every site, without a number.
async fn nobody_reads_from_refusals_who_was_drawn(watched: &Watched, rounds: u64) {
    for name in NAMES {
        let (_site, greeting) = comes(watched, name, "thief", RECORDS - 1).await;
        let Greeting::Rejected(ConnectError::LedgerForked { known, answered }) = &greeting else {
            panic!("{name}: {greeting:?}");
        };
        assert_eq!((known.records, *answered), (RECORDS, rounds), "{name}");
    }
    let refused = |log: &Value| -> Vec<Value> {
        let records = log["records"].as_array().unwrap().iter().map(|one| one["record"].clone());
        records.filter(|record| record["event"] == "ledger_refused").collect()
    };
    // The log is written after the refusal.
    let log = watched.until("/api/v1/audit", |log| refused(log).len() == NAMES.len()).await;
    for record in refused(&log) {
        let reason = record["reason"].as_str().unwrap();
        assert!(!reason.contains(|letter: char| letter.is_ascii_digit()), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_that_was_drawn_in_secret_and_one_that_was_not_leave_the_same_in_rows_refusals_and_logs() {
    let watched = Watched::new().await;
    let sites = sites_with_ledgers(&watched).await;
    let fixed = "{ fixed = { population = 3, sample = 1 } }";
    let run = watched.submit(&plan(fixed).replace("denominator = 3", "denominator = 1")).await;
    for _ in 0..3 {
        let asked = tokio::select! {
            asked = sites[0].next_task() => asked,
            asked = sites[1].next_task() => asked,
            asked = sites[2].next_task() => asked,
        };
        let answer = honest(&asked.task, 1.0);
        assert_eq!(asked.answer(answer).await, Receipt::Accepted);
    }
    finished(&watched, &run).await;
    assert_eq!(remembered(&watched).await, [(RECORDS as i64, 0, 3); 3]);
    // A copy with the ledger that was shown is let in whether or not its site was drawn, and without being asked for a proof.
    for name in NAMES {
        let first = opening(&ledger(name, RECORDS, RECORDS));
        let greeting = connects(&watched, name).await.greet_with(&first).await;
        assert!(matches!(greeting, Greeting::Welcome { .. }), "{name}: {greeting:?}");
    }
    nobody_reads_from_refusals_who_was_drawn(&watched, 3).await;
    // The site itself goes on with what it has reserved.
    let (_site, greeting) = comes(&watched, "north", "north", RECORDS + 2).await;
    assert!(matches!(greeting, Greeting::Welcome { .. }), "{greeting:?}");
    assert_eq!(remembered(&watched).await[0], (RECORDS as i64 + 2, 0, 0));
    watched.server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_shows_nobody_who_or_how_many_were_drawn_in_secret() {
    let watched = Watched::new().await;
    let sites = sites_with_ledgers(&watched).await;
    let run = watched.submit(&plan(COIN)).await;
    for _ in 0..3 {
        round(&sites).await;
    }
    let whole = finished(&watched, &run).await;
    for line in whole["history"].as_array().unwrap() {
        assert_eq!((&line["cohort"], &line["answered"]), (&Value::Null, &Value::Null), "{line}");
        assert_eq!(
            (&line["seconds"], &line["train"], &line["released"]),
            (&Value::Null, &Value::Null, &json!(true))
        );
    }
    for site in whole["sites"].as_array().unwrap() {
        assert_eq!(
            (&site["accepted"], &site["refused"], &site["declined"]),
            (&Value::Null, &json!({}), &json!({}))
        );
    }
    assert_eq!(watched.get(&format!("/api/v1/runs/{run}/reports")).await.json(), json!([]));
    for site in watched.get("/api/v1/sites").await.json().as_array().unwrap() {
        assert_eq!(site["accepted"], 0, "{site}");
    }
    let numbers = watched.get("/metrics").await.body;
    for line in [
        "consortia_rounds_total{outcome=\"released\"} 3",
        "consortia_answers_accepted_total{task=\"train\"} 0",
        "consortia_model_bytes_sent_total 0",
        "consortia_update_bytes_received_total 0",
        "consortia_phase_seconds_count{phase=\"collecting\"} 0",
    ] {
        assert!(numbers.contains(&format!("{line}\n")), "there is no `{line}` in\n{numbers}");
    }
    let log = watched.get("/api/v1/audit").await.json();
    let told = |record: &Value| record["record"]["event"].as_str().unwrap().to_owned();
    let events: Vec<String> = log["records"].as_array().unwrap().iter().map(told).collect();
    assert_eq!(events.iter().filter(|event| *event == "round").count(), 3, "{events:?}");
    for shown in ["opened", "accepted", "refused", "declined", "closed"] {
        assert!(!events.contains(&shown.to_owned()), "{events:?}");
    }
    assert_eq!(remembered(&watched).await, [(RECORDS as i64, 0, 3); 3]);
    nobody_reads_from_refusals_who_was_drawn(&watched, 3).await;
    watched.server.shutdown().await.unwrap();
}

fn best(claim: &Claim) -> f64 {
    [claim.epsilon.rdp, claim.epsilon.pld].into_iter().flatten().fold(f64::INFINITY, f64::min)
}

fn claim(statement: &PrivacyStatement, adversary: Adversary) -> &Claim {
    statement.claims.iter().find(|claim| claim.adversary == adversary).unwrap()
}

/// Epsilon of so many releases that nothing hides.
fn exact(releases: u32) -> f64 {
    gaussian::epsilon(NOISE / f64::from(releases).sqrt(), DELTA).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_after_real_and_seeded_runs_are_right_against_each_adversary() {
    let watched = Watched::new().await;
    let sites = watched.federation.sites(&watched.server).await;
    let real = watched.submit(&plan(COIN)).await;
    for _ in 0..3 {
        round(&sites).await;
    }
    finished(&watched, &real).await;
    let seeded = train(&watched, json!({ "plan_toml": plan(COIN), "seed": 7 })).await;
    for _ in 0..3 {
        round(&sites).await;
    }
    // A seed keeps no secret: what it draws may be seen.
    assert_eq!(finished(&watched, &seeded).await["history"][0]["answered"], 3);
    let open = watched.submit(&plan("{ availability = { participations_max = 2 } }\nclients_min = 3")).await;
    for _ in 0..2 {
        round(&sites).await;
    }
    watched.until(&format!("/api/v1/runs/{open}"), |run| run["state"] == "budget_exhausted").await;
    let Watched { federation, server, .. } = watched;
    server.shutdown().await.unwrap();

    let store = Store::open(&federation.state()).await.unwrap();
    let ledger = Ledger::replay(&store.ledger("wards").await.unwrap()).unwrap();
    let conduct = |run: &str| ledger.conduct(run).map(|conduct| conduct.cohorts);
    assert_eq!(
        [&real, &seeded, &open].map(|run| conduct(run)),
        [Cohorts::Secret, Cohorts::Known, Cohorts::Known].map(Some)
    );
    let statement = store.released(Some(open.parse().unwrap()), ModelChoice::Last).await.unwrap().statement;
    let (unaware, aware) = (
        claim(&statement, Adversary::DoesNotSeeParticipants),
        claim(&statement, Adversary::SeesParticipants),
    );
    assert_eq!((unaware.releases, aware.releases), (8, 8));
    assert!(best(aware) >= exact(8) && best(aware) <= exact(8) * 1.01, "{} {}", best(aware), exact(8));
    // Five of the eight hide behind nothing. (A coin of rate 1 hides nothing either, but is counted as a coin.)
    assert!(best(unaware) >= exact(5) && best(unaware) <= exact(8) * 1.1, "{}", best(unaware));
    let known = |event: &Event| matches!(event.mechanism(), Mechanism::Gaussian { .. });
    assert_eq!(unaware.events.iter().map(known).collect::<Vec<_>>(), [false, true, true]);
    // What the seeded run was not declared to be is told of it where there was nobody to declare.
    let seeded_one =
        store.released(Some(seeded.parse().unwrap()), ModelChoice::Last).await.unwrap().statement;
    assert!(seeded_one.claims.is_empty() && seeded_one.void.is_some());

    // A ledger of an earlier version, which declares nothing, of these two runs and of one that nobody knows.
    let central = Plan::parse(&plan(COIN)).unwrap().spec.privacy.central.clone().unwrap();
    let terms = Terms { population: "old".to_owned(), ..central.terms() };
    let (mut old, first) = Ledger::found(terms).unwrap();
    let mut links: Vec<Link> = vec![first];
    for run in [&real, &seeded, &"00000000000000ff".to_owned()] {
        let (permit, reserved) = old.reserve(run, 1, &central.charge(), 1).unwrap();
        links.extend([reserved, old.spend(permit, Release::default()).unwrap().1]);
    }
    store.append_to_ledger(&LedgerReservation { population: "old".to_owned(), links }).await.unwrap();
    store.close().await;
    drop(store);
    let server = Server::start(config(&federation, [127, 0, 0, 1], false), Arc::new(ToyRoom)).await.unwrap();
    let _ = federation.operator(&server).await;
    server.shutdown().await.unwrap();
    let store = Store::open(&federation.state()).await.unwrap();
    let found = Ledger::replay(&store.ledger("old").await.unwrap()).unwrap();
    let sampled = |event: &Event| matches!(event.mechanism(), Mechanism::PoissonGaussian { .. });
    assert_eq!(found.events().iter().map(sampled).collect::<Vec<_>>(), [true, false, false]);
    assert_eq!(found.conduct(&seeded).map(|conduct| conduct.cohorts), Some(Cohorts::Known));
    store.close().await;
}
