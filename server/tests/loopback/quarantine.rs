//! Sites that stay members and get no task.

use std::time::Duration;

use protocol::wire::{
    AdminReply, AdminRequest, AnswerHeader, ClientSummary, FrameKind, Notice, Receipt, SMALL_MAX, encode,
};
use protocol::{ClientId, RunId, Values};
use serde_json::json;
use server::net::Server;

use super::admin::Watched;
use super::federation::{Federation, PLAN, Site, honest, read};

/// As [`PLAN`], of whose three sites one answer suffices.
fn plan(clients_min: usize) -> String {
    PLAN.replace("clients_min = 3", &format!("clients_min = {clients_min}\nquorum = 1"))
}

async fn heard(site: &Site) -> Notice {
    let (_send, mut recv) = site.connection.accept_bi().await.unwrap();
    let notice = read(&mut recv, FrameKind::Notice, SMALL_MAX).await;
    assert!(recv.read_to_end(0).await.unwrap().is_empty(), "nothing follows a notice");
    notice
}

async fn quarantine(operator: &Site, site: &str, reason: &str) -> AdminReply {
    let (site, reason) = (ClientId::new(site).unwrap(), reason.to_owned());
    operator.ask(&AdminRequest::Quarantine { site, reason }).await
}

async fn release(operator: &Site, site: &str) -> AdminReply {
    operator.ask(&AdminRequest::Release { site: ClientId::new(site).unwrap() }).await
}

/// Waits until a run has counted this of a site: answers that count, and those that were refused for its quarantine.
async fn reaches(server: &Server, run: RunId, site: &str, accepted: u32, refused: u32) {
    let mut live = server.watch();
    let refused = vec![("quarantined".to_owned(), refused)];
    let fits = |line: &ClientSummary| {
        line.client.as_str() == site && line.accepted == accepted && line.refused == refused
    };
    while !server.run(Some(run)).await.unwrap().clients.iter().any(fits) {
        live.changed().await.unwrap();
    }
}

async fn is_idle(site: &Site) -> bool {
    tokio::time::timeout(Duration::from_millis(300), site.connection.accept_bi()).await.is_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_in_quarantine_gets_no_task_and_what_it_owed_is_refused() {
    let federation = Federation::new();
    let server = federation.serve().await;
    let operator = federation.operator(&server).await;
    let sites = federation.sites(&server).await;
    let run = operator.submit(&plan(3)).await;
    // North uploads when it happens, west has not begun to answer; south has answered, and that stands.
    let (mut north, mut west) = (sites[0].next_task().await, sites[2].next_task().await);
    assert_eq!(sites[1].train(2.0).await, Receipt::Accepted);
    let (header, payload) = AnswerHeader::split(honest(&north.task, 1.0));
    assert!(matches!(payload[..], [Values::I32(_)]));
    north.send.write_all(&encode(FrameKind::Answer, &header)).await.unwrap();
    for (site, reason) in [("north", "odd norms"), ("west", "")] {
        assert_eq!(quarantine(&operator, site, reason).await, AdminReply::Done);
    }
    for (index, asked, reason) in [(0, &mut north, "odd norms"), (2, &mut west, "")] {
        assert_eq!(heard(&sites[index]).await, Notice::Quarantined { reason: reason.to_owned() });
        assert!(asked.recv.read(&mut [0]).await.is_err(), "its task's stream is given up");
    }
    for site in ["north", "west"] {
        reaches(&server, run, site, 0, 1).await;
    }
    // Round 2 needs three, and only south is there to be asked. One that is connected anew is told again.
    assert!(is_idle(&sites[1]).await);
    let again = federation.site(&server, "north").await;
    assert_eq!(heard(&again).await, Notice::Quarantined { reason: "odd norms".to_owned() });
    assert!(is_idle(&again).await);
    assert_eq!(release(&operator, "north").await, AdminReply::Done);
    assert_eq!(heard(&again).await, Notice::Released);
    assert_eq!(release(&operator, "west").await, AdminReply::Done);
    assert_eq!(again.train(1.0).await, Receipt::Accepted);
    assert_eq!(sites[1].train(1.0).await, Receipt::Accepted);
    reaches(&server, run, "north", 1, 1).await;
    let AdminReply::Error(error) = release(&operator, "north").await else { panic!("it was released") };
    assert_eq!(error, "north is not in quarantine");
    let AdminReply::Error(error) = quarantine(&operator, "north", "two\nlines").await else { panic!() };
    assert!(error.contains("one line"), "{error}");
    server.shutdown().await.unwrap();
    let log = std::fs::read_to_string(federation.state().join("audit.jsonl")).unwrap();
    let north = r#""event":"quarantined","client":"north","reason":"odd norms","by":"ada""#;
    assert!(
        log.contains(north) && log.contains(r#""event":"quarantine_ended","client":"north","by":"ada""#),
        "{log}"
    );
    assert_eq!(log.matches(r#""reason":"quarantined""#).count(), 2, "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quarantine_lasts_over_a_restart_of_the_server() {
    let federation = Federation::new();
    let server = federation.serve().await;
    let operator = federation.operator(&server).await;
    let run = operator.submit(&plan(2)).await;
    assert_eq!(quarantine(&operator, "west", "moved").await, AdminReply::Done);
    server.shutdown().await.unwrap();

    let server = federation.serve().await;
    let operator = federation.operator(&server).await;
    let sites = federation.sites(&server).await;
    assert_eq!(heard(&sites[2]).await, Notice::Quarantined { reason: "moved".to_owned() });
    for _ in 0..3 {
        for site in &sites[..2] {
            assert_eq!(site.train(1.0).await, Receipt::Accepted);
        }
    }
    assert!(is_idle(&sites[2]).await);
    let AdminReply::Members(members) = operator.ask(&AdminRequest::Members).await else { panic!() };
    let west = members.iter().find(|member| member.site.as_str() == "west").unwrap();
    assert_eq!(west.quarantine.as_ref().map(|held| held.reason.as_str()), Some("moved"));
    assert!(server.run(Some(run)).await.unwrap().clients.iter().all(|line| line.client.as_str() != "west"));
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quarantine_is_begun_shown_counted_and_ended_over_http() {
    let watched = Watched::new().await;
    let north = watched.federation.site(&watched.server, "north").await;
    watched.until("/api/v1/sites", |sites| sites[0]["connected"] == true).await;
    let path = |verb: &str| format!("/api/v1/sites/north/{verb}");
    let held = watched.post(&path("quarantine"), &json!({ "reason": "odd norms" })).await;
    assert_eq!(held.status, 204, "{held:?}");
    assert_eq!(heard(&north).await, Notice::Quarantined { reason: "odd norms".to_owned() });
    let site = watched.get("/api/v1/sites").await.json()[0].clone();
    assert_eq!((&site["state"], &site["quarantine_reason"]), (&json!("quarantined"), &json!("odd norms")));
    assert!(site["quarantined"].is_u64() && site["connected"] == true, "{site}");
    let numbers = watched.get("/metrics").await.body;
    assert!(numbers.contains("consortia_sites_quarantined 1\n"), "{numbers}");
    assert!(numbers.contains("answers_refused_total{reason=\"quarantined\"} 0"), "{numbers}");
    assert_eq!(watched.post("/api/v1/sites/nobody/quarantine", &json!({})).await.status, 404);
    assert_eq!(watched.post(&path("quarantine"), &json!({ "why": "x" })).await.status, 422);
    assert_eq!(watched.post(&path("release"), &json!({})).await.status, 204);
    assert_eq!(heard(&north).await, Notice::Released);
    assert_eq!(watched.post(&path("release"), &json!({})).await.status, 409);
    assert_eq!(watched.get("/api/v1/sites").await.json()[0]["state"], "issued");
    watched.submit(PLAN).await;
    let log = watched.until("/api/v1/audit", |log| log["records"][0]["record"]["event"] == "submitted").await;
    for (record, event) in [(0, "submitted"), (1, "quarantine_ended"), (2, "quarantined")] {
        let record = &log["records"][record]["record"];
        assert_eq!(record["event"], event);
        assert!(record["by"].as_str().unwrap().starts_with("admin token, from 127.0.0.1:"), "{record}");
    }
    watched.server.shutdown().await.unwrap();
}
