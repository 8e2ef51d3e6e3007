//! Runs: list them, look at one, hand a plan in.
#![expect(unused_qualifications, reason = "the macro of utoipa writes them")]

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use protocol::wire::{ClientSummary, Control, ModelChoice};
use protocol::{RunId, StepId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::views::{Problem, PromiseView, RunSiteView, RunView, WholeRunView};
use super::{Caller, Shared};
use crate::PrivacyStatement;
use crate::net::engine::service::hides_participation;
use crate::net::store::archive::ArchiveError;
use crate::net::store::{Report, StoreError};

/// Which rounds.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct From {
    /// Tell no round before this one.
    #[serde(default)]
    from: u32,
}

/// What a site measured in a round.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReportView {
    round: u32,
    /// train or evaluate.
    kind: String,
    site: String,
    loss: f64,
    accuracy: Option<f64>,
    examples: u64,
    seconds: f64,
}

/// A plan to become a run.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SubmitBody {
    /// The text of a federation.toml.
    plan_toml: String,
    /// Makes it a seeded run.
    #[serde(default)]
    seed: Option<u64>,
}

/// A new run.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Submitted {
    run: String,
}

/// The run that a path names, which must be here.
pub(super) async fn run_of(admin: &Shared, text: &str) -> Result<(RunId, String), Problem> {
    let missing = |error: String| Problem::new(StatusCode::NOT_FOUND, error);
    let run: RunId = text.parse().map_err(|_| missing(format!("`{text}` is no run")))?;
    match admin.operators.store.plan_toml(run).await {
        Ok(plan_toml) => Ok((run, plan_toml)),
        Err(StoreError::NoSuchRun(run)) => Err(missing(format!("there is no run {run} here"))),
        Err(error) => Err(Problem::ours(error)),
    }
}

/// The newest 200 runs, newest first.
#[utoipa::path(get, path = "/api/v1/runs", responses((status = OK, body = [RunView])))]
pub(super) async fn list(State(admin): State<Shared>) -> Result<Json<Vec<RunView>>, Problem> {
    let runs = admin.operators.list().await.map_err(Problem::ours)?;
    Ok(Json(runs.iter().map(RunView::from).collect()))
}

/// Takes a plan into the queue.
#[utoipa::path(
    post,
    path = "/api/v1/runs",
    request_body = SubmitBody,
    responses((status = CREATED, body = Submitted), (status = BAD_REQUEST, body = Problem))
)]
pub(super) async fn submit(
    State(admin): State<Shared>,
    Extension(caller): Extension<Caller>,
    body: Result<Json<SubmitBody>, JsonRejection>,
) -> Result<(StatusCode, Json<Submitted>), Problem> {
    let Json(SubmitBody { plan_toml, seed }) = body.map_err(rejected)?;
    let run = admin.operators.submit(plan_toml, seed, None, &caller.name()).await.map_err(Problem::bad)?;
    Ok((StatusCode::CREATED, Json(Submitted { run: run.to_string() })))
}

/// A run as it is now.
#[utoipa::path(
    get,
    path = "/api/v1/runs/{run}",
    params(("run" = String, Path, description = "16 hexadecimal digits"), From),
    responses((status = OK, body = WholeRunView), (status = NOT_FOUND, body = Problem))
)]
pub(super) async fn one(
    State(admin): State<Shared>,
    Path(run): Path<String>,
    from: Result<Query<From>, QueryRejection>,
) -> Result<Json<WholeRunView>, Problem> {
    let Query(From { from }) = from.map_err(Problem::bad)?;
    let (run, plan_toml) = run_of(&admin, &run).await?;
    let summary = admin.operators.current(Some(run)).await.map_err(Problem::ours)?;
    let seen = admin.presence.sites();
    let here = |client: &ClientSummary| seen.get(&client.client).is_some_and(|seen| seen.left.is_none());
    let hidden = hides_participation(&summary, &plan_toml);
    let site = |client: &ClientSummary| match RunSiteView::new(client, here(client)) {
        view if hidden => view.without_participation(),
        view => view,
    };
    // A plan of an earlier version need not be one of today's.
    let spec = admin.operators.room.methods().parse(&plan_toml).ok().map(|plan| plan.spec);
    Ok(Json(WholeRunView {
        plan_toml,
        squared_error: spec.as_ref().is_some_and(|spec| spec.is_squared()),
        evaluation_records: spec.as_ref().map(|spec| spec.evaluation_records).unwrap_or_default().name(),
        promises: spec.as_ref().map(|spec| PromiseView::all(&spec.privacy)).unwrap_or_default(),
        history: summary.history.iter().filter(|line| line.round >= from).map(Into::into).collect(),
        sites: summary.clients.iter().map(site).collect(),
        run: RunView::from(&summary),
    }))
}

/// What each site measured, by round; nothing where the plan keeps metrics at the sites, and no training of a run whose cohorts are
/// drawn in secret.
#[utoipa::path(
    get,
    path = "/api/v1/runs/{run}/reports",
    params(("run" = String, Path, description = "16 hexadecimal digits"), From),
    responses((status = OK, body = [ReportView]), (status = NOT_FOUND, body = Problem))
)]
pub(super) async fn reports(
    State(admin): State<Shared>,
    Path(run): Path<String>,
    from: Result<Query<From>, QueryRejection>,
) -> Result<Json<Vec<ReportView>>, Problem> {
    let Query(From { from }) = from.map_err(Problem::bad)?;
    let (run, plan_toml) = run_of(&admin, &run).await?;
    let summary = admin.operators.current(Some(run)).await.map_err(Problem::ours)?;
    let mut found = admin.operators.store.reports(run, from).await.map_err(Problem::ours)?;
    if hides_participation(&summary, &plan_toml) {
        // Those of an earlier version; evaluations are put to everybody.
        found.retain(|report| report.kind == StepId::EVALUATE.name());
    }
    let view = |Report { round, kind, site, loss, accuracy, examples, seconds }| {
        let site = String::from(site);
        ReportView { round, kind, site, loss, accuracy, examples, seconds }
    };
    Ok(Json(found.into_iter().map(view).collect()))
}

/// What may be said of the privacy of a run's last model, as `privacy_statement.json` beside the model says it.
#[utoipa::path(
    get,
    path = "/api/v1/runs/{run}/statement",
    params(("run" = String, Path, description = "16 hexadecimal digits")),
    responses((status = OK, body = serde_json::Value), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem))
)]
pub(super) async fn statement(
    State(admin): State<Shared>,
    Path(run): Path<String>,
) -> Result<Json<PrivacyStatement>, Problem> {
    let (run, _) = run_of(&admin, &run).await?;
    let shelved = admin.operators.store.released(Some(run), ModelChoice::Last).await;
    shelved.map(|shelved| Json(shelved.statement)).map_err(|error| match error {
        ArchiveError::Store(error) => Problem::ours(error),
        error => Problem::new(StatusCode::CONFLICT, error.to_string()),
    })
}

/// How a run is to stop.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct How {
    /// At once: what the open round has collected is thrown away. Otherwise the open round ends as usual.
    #[serde(default)]
    now: bool,
}

/// Lets a run pause: the open round ends as usual, and no other opens.
#[utoipa::path(
    post,
    path = "/api/v1/runs/{run}/pause",
    params(("run" = String, Path, description = "16 hexadecimal digits")),
    responses((status = OK, body = RunView), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem))
)]
pub(super) async fn pause(
    State(admin): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(run): Path<String>,
) -> Result<Json<RunView>, Problem> {
    control(&admin, caller, &run, Control::Pause).await
}

/// Lets a run go on.
#[utoipa::path(
    post,
    path = "/api/v1/runs/{run}/resume",
    params(("run" = String, Path, description = "16 hexadecimal digits")),
    responses((status = OK, body = RunView), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem))
)]
pub(super) async fn resume(
    State(admin): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(run): Path<String>,
) -> Result<Json<RunView>, Problem> {
    control(&admin, caller, &run, Control::Resume).await
}

/// Ends a run; its last released model stays.
#[utoipa::path(
    post,
    path = "/api/v1/runs/{run}/stop",
    params(("run" = String, Path, description = "16 hexadecimal digits"), How),
    responses((status = OK, body = RunView), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem))
)]
pub(super) async fn stop(
    State(admin): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(run): Path<String>,
    how: Result<Query<How>, QueryRejection>,
) -> Result<Json<RunView>, Problem> {
    let Query(How { now }) = how.map_err(Problem::bad)?;
    control(&admin, caller, &run, if now { Control::StopNow } else { Control::Stop }).await
}

async fn control(
    admin: &Shared,
    caller: Caller,
    run: &str,
    control: Control,
) -> Result<Json<RunView>, Problem> {
    let (run, _) = run_of(admin, run).await?;
    let controlled = admin.operators.control(run, control, &caller.name()).await;
    let refused = |error| Problem::new(StatusCode::CONFLICT, error);
    controlled.map(|run| Json(RunView::from(&run))).map_err(refused)
}

/// A body that is not what was asked for.
pub(super) fn rejected(rejection: JsonRejection) -> Problem {
    Problem::new(rejection.status(), rejection.body_text())
}
