//! The server at a glance, and its numbers for Prometheus.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::Shared;
use super::views::Problem;
use crate::net::engine::metrics::{Observed, state_name};
use crate::net::membership::members::now;
use crate::net::transport::messages::SOFTWARE;

/// The media type of what Prometheus reads.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The server at a glance.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Status {
    software: &'static str,
    /// When the server was started, and what time it is there.
    started: u64,
    now: u64,
    /// Where it listens for sites (UDP).
    address: String,
    /// Where sites reach it, as invites say.
    addresses: Vec<String>,
    sites_connected: usize,
    /// Runs by state.
    #[schema(value_type = BTreeMap<String, u64>)]
    runs: BTreeMap<&'static str, u64>,
    storage_bytes: u64,
}

async fn runs_by_state(admin: &Shared) -> Result<BTreeMap<&'static str, u64>, String> {
    let mut runs = BTreeMap::new();
    for run in admin.operators.list().await? {
        *runs.entry(state_name(run.state)).or_default() += 1;
    }
    Ok(runs)
}

async fn storage_bytes(admin: &Shared) -> u64 {
    let state = admin.places.state.clone();
    tokio::task::spawn_blocking(move || bytes_below(&state)).await.unwrap_or(0)
}

/// Bytes of the files in a folder. What goes while it is looked at counts nothing.
fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let bytes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => bytes_below(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    });
    bytes.sum()
}

/// The server at a glance.
#[utoipa::path(get, path = "/api/v1/status", responses((status = OK, body = Status)))]
pub(super) async fn status(State(admin): State<Shared>) -> Result<Json<Status>, Problem> {
    Ok(Json(Status {
        software: SOFTWARE,
        started: admin.started,
        now: now(),
        address: admin.address.to_string(),
        addresses: admin.addresses.clone(),
        sites_connected: admin.presence.connected(),
        runs: runs_by_state(&admin).await.map_err(Problem::ours)?,
        storage_bytes: storage_bytes(&admin).await,
    }))
}

/// Everything that is counted.
pub(super) async fn metrics(State(admin): State<Shared>) -> Result<Response, Problem> {
    let observed = Observed {
        runs: runs_by_state(&admin).await.map_err(Problem::ours)?,
        sites_connected: admin.presence.connected(),
        sites_quarantined: admin.operators.members.quarantined(),
        tunnels: admin.presence.tunnels(),
        certificates: admin.credentials.ends(),
        epsilons: admin.books.epsilons().await.map_err(Problem::ours)?,
        storage_bytes: storage_bytes(&admin).await,
    };
    Ok(([(CONTENT_TYPE, OPENMETRICS)], admin.metrics.text(&observed)).into_response())
}
