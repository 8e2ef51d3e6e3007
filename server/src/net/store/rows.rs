//! Rows of the database to values and back. Metrics that are not finite are left out rather than stored: JSON has no
//! word for them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use privacy::correlation::NoiseMemory;
use protocol::wire::{ClientSummary, Control, RoundSummary, RunState, RunSummary};
use protocol::{
    ClientId, IdError, Layout, Metrics, Parameters, Positive, Round, RunId, Standardiser, TaskId,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::sweeping::{Named, Unused};
use super::{Files, StoreError, database};
use crate::{Checkpoint, ClientRecord, RunEnd, RunProgress};

/// Rows that one statement writes. Each has at most ten values, and SQLite takes 32,766 of them at a time.
const ROWS_MAX: usize = 500;

fn wrong(row: &AnyRow, what: &'static str, message: impl ToString) -> StoreError {
    let run = row.try_get("run").unwrap_or_default();
    StoreError::Row { run, what, message: message.to_string() }
}

/// A JSON column.
pub(super) fn json<T: DeserializeOwned>(row: &AnyRow, column: &'static str) -> Result<T, StoreError> {
    serde_json::from_str(&row.try_get::<String, _>(column)?).map_err(|error| wrong(row, column, error))
}

fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("counts and finite numbers under plain keys have a JSON form")
}

/// The `run` column.
pub(super) fn run_id(row: &AnyRow) -> Result<RunId, StoreError> {
    row.try_get::<String, _>("run")?.parse().map_err(|error| wrong(row, "id", error))
}

/// A count.
pub(super) fn number(row: &AnyRow, column: &'static str) -> Result<u32, StoreError> {
    u32::try_from(row.try_get::<i64, _>(column)?).map_err(|error| wrong(row, column, error))
}

/// The seed of a seeded run.
pub(super) fn seed(row: &AnyRow) -> Result<Option<u64>, StoreError> {
    let text: Option<String> = row.try_get("seed")?;
    text.map(|text| text.parse()).transpose().map_err(|error| wrong(row, "seed", error))
}

/// Names and shapes of the shared tensors.
pub(super) fn layout(row: &AnyRow) -> Result<Layout, StoreError> {
    let tensors: Vec<(String, Vec<usize>)> = json(row, "tensors")?;
    Layout::new(tensors).map_err(|error| wrong(row, "tensors", error))
}

fn end(row: &AnyRow) -> Result<Option<RunEnd>, StoreError> {
    let ended: Option<String> = row.try_get("ended")?;
    Ok(match ended.as_deref() {
        None => None,
        Some("finished") => Some(RunEnd::Finished),
        Some("exhausted") => Some(RunEnd::BudgetExhausted(row.try_get("reason")?)),
        Some("stopped") => Some(RunEnd::Stopped),
        Some(_) => Some(RunEnd::Failed(row.try_get("reason")?)),
    })
}

/// How an end is written, and why it came.
pub(super) fn ended(end: &RunEnd) -> (&'static str, &str) {
    match end {
        RunEnd::Finished => ("finished", ""),
        RunEnd::Failed(reason) => ("failed", reason),
        RunEnd::BudgetExhausted(reason) => ("exhausted", reason),
        RunEnd::Stopped => ("stopped", ""),
    }
}

/// How an operator's wish is written. After a crash there is no open round left to be thrown away.
pub(super) fn wish(control: Control) -> &'static str {
    match control {
        Control::Resume => "resume",
        Control::Pause => "pause",
        Control::Stop | Control::StopNow => "stop",
    }
}

/// The `wish` column.
pub(super) fn control(row: &AnyRow) -> Result<Control, StoreError> {
    match row.try_get::<String, _>("wish")?.as_str() {
        "resume" => Ok(Control::Resume),
        "pause" => Ok(Control::Pause),
        "stop" => Ok(Control::Stop),
        other => Err(wrong(row, "wish", format!("`{other}` is invalid"))),
    }
}

/// A checkpoint, given what lies in files.
pub(super) fn checkpoint(
    row: &AnyRow,
    model: Arc<Parameters>,
    optimizer: Vec<Arc<Vec<f32>>>,
    summary: Option<RoundSummary>,
    noise: NoiseMemory,
) -> Result<Checkpoint, StoreError> {
    let norm_max: Option<f64> = row.try_get("norm_max")?;
    let norm_max = norm_max.map(Positive::new);
    Ok(Checkpoint {
        round: Round(number(row, "round")?),
        evaluated: row.try_get::<i64, _>("evaluated")? != 0,
        end: end(row)?,
        failures: number(row, "failures")?,
        model,
        optimizer,
        standardiser: standardiser(row)?.map(Arc::new),
        summary,
        norm_max: norm_max.transpose().map_err(|error| wrong(row, "norm_max", error))?,
        releases: number(row, "releases")?,
        noise,
        workflow: row.try_get::<Option<Vec<u8>>, _>("workflow")?.unwrap_or_default().into(),
    })
}

/// The `standardiser` column.
pub(super) fn standardiser(row: &AnyRow) -> Result<Option<Standardiser>, StoreError> {
    let bytes: Option<Vec<u8>> = row.try_get("standardiser")?;
    let read = bytes.map(|bytes| standardiser_of(&bytes));
    read.transpose().map_err(|message| wrong(row, "standardiser", message))
}

fn standardiser_of(bytes: &[u8]) -> Result<Standardiser, &'static str> {
    if !bytes.len().is_multiple_of(16) {
        return Err("not pairs of numbers");
    }
    let (values, _) = bytes.as_chunks::<8>();
    let mut values: Vec<f64> = values.iter().map(|eight| f64::from_le_bytes(*eight)).collect();
    let std = values.split_off(values.len() / 2);
    Ok(Standardiser { mean: values, std })
}

/// Puts the checkpoint in place of the one before; the files of that one become the spare ones. Gives the files that this checkpoint
/// names no more.
pub(super) async fn write_checkpoint(
    transaction: &mut AnyConnection,
    run: RunId,
    checkpoint: &Checkpoint,
    files: &Files,
    statement: Option<&str>,
) -> Result<Vec<Unused>, StoreError> {
    let before = Named::of(transaction, &run.to_string()).await?;
    let standardiser = checkpoint.standardiser.as_ref().map(|one| -> Vec<u8> {
        one.mean.iter().chain(&one.std).flat_map(|value| value.to_le_bytes()).collect()
    });
    let (ended, reason) =
        checkpoint.end.as_ref().map(ended).map_or((None, ""), |(ended, reason)| (Some(ended), reason));
    let sql = "INSERT INTO checkpoints (run, round, evaluated, ended, reason, failures, model, model_sha256, \
               optimizer, standardiser, norm_max, statement, releases, noise, workflow) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) \
               ON CONFLICT (run) DO UPDATE SET round = $2, evaluated = $3, ended = $4, reason = $5, failures = $6, \
               model_before = CASE WHEN $4 IS NOT NULL THEN NULL WHEN checkpoints.model = $7 \
               THEN checkpoints.model_before ELSE checkpoints.model END, \
               optimizer_before = CASE WHEN $4 IS NOT NULL THEN NULL WHEN checkpoints.model = $7 \
               THEN checkpoints.optimizer_before ELSE checkpoints.optimizer END, \
               model = $7, model_sha256 = $8, optimizer = $9, standardiser = $10, \
               norm_max = $11, statement = $12, releases = $13, noise = $14, workflow = $15 \
               RETURNING model, optimizer, model_before, optimizer_before, noise";
    // Not kept prepared: a missing number has another type there than one that is given.
    let row = sqlx::query(sql)
        .persistent(false)
        .bind(run.to_string())
        .bind(i64::from(checkpoint.round.0))
        .bind(i64::from(checkpoint.evaluated))
        .bind(ended)
        .bind(reason)
        .bind(i64::from(checkpoint.failures))
        .bind(&files.model)
        .bind(&files.model_sha256)
        .bind(files.optimizer.as_deref())
        .bind(standardiser)
        .bind(checkpoint.norm_max.map(Positive::value))
        .bind(statement)
        .bind(i64::from(checkpoint.releases))
        .bind(files.noise.as_deref())
        .bind((!checkpoint.workflow.is_empty()).then(|| checkpoint.workflow.to_vec()))
        .fetch_one(&mut *transaction)
        .await?;
    Ok(before.without(&Named::read(&row)?))
}

fn sound(metrics: Option<Metrics>) -> Option<Metrics> {
    metrics.filter(Metrics::is_sound)
}

/// Puts a round's line in place of the one before, if any.
pub(super) async fn write_round(
    transaction: &mut AnyConnection,
    run: RunId,
    summary: &RoundSummary,
) -> Result<(), StoreError> {
    let summary = RoundSummary {
        train: sound(summary.train),
        sites: sound(summary.sites),
        central: sound(summary.central),
        ..summary.clone()
    };
    let sql = "INSERT INTO rounds (run, round, summary) VALUES ($1, $2, $3) \
               ON CONFLICT (run, round) DO UPDATE SET summary = $3";
    sqlx::query(sql)
        .bind(run.to_string())
        .bind(i64::from(summary.round))
        .bind(to_json(&summary))
        .execute(&mut *transaction)
        .await?;
    Ok(())
}

/// The places of `rows` rows of values, each given as `row` has it with a `?` for a value. PostgreSQL wants numbers. SQLite takes them for
/// names, and looks through all of them for each.
fn places(rows: usize, row: &str, is_postgres: bool) -> String {
    let all = vec![format!("({row})"); rows].join(", ");
    if !is_postgres {
        return all;
    }
    let (mut text, mut number) = (String::new(), 0);
    for part in all.split_inclusive('?') {
        match part.strip_suffix('?') {
            Some(before) => {
                number += 1;
                let _ = write!(text, "{before}${number}");
            }
            None => text.push_str(part),
        }
    }
    text
}

/// Stores what clients measured.
pub(super) async fn write_reports(
    transaction: &mut AnyConnection,
    run: RunId,
    reports: &[(ClientId, TaskId, Metrics)],
) -> Result<(), StoreError> {
    let run = run.to_string();
    // No row twice in one statement, which PostgreSQL refuses: the last one counts.
    let sound: BTreeMap<_, _> = reports
        .iter()
        .filter_map(|(client, task, metrics)| Some(((task.round, task.step, client), sound(Some(*metrics))?)))
        .collect();
    let sound: Vec<_> = sound.into_iter().collect();
    let is_postgres = database::is_postgres(transaction);
    for batch in sound.chunks(ROWS_MAX) {
        // Where a number may be missing its type is said: what is missing has none.
        let row = "?, ?, ?, ?, ?, CAST(? AS DOUBLE PRECISION), ?, ?";
        let sql = format!(
            "INSERT INTO reports (run, round, kind, client, loss, accuracy, examples, seconds) VALUES {} \
             ON CONFLICT (run, round, kind, client) DO UPDATE SET loss = excluded.loss, \
             accuracy = excluded.accuracy, examples = excluded.examples, seconds = excluded.seconds",
            places(batch.len(), row, is_postgres)
        );
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false);
        for ((round, step, client), metrics) in batch {
            query = query
                .bind(&run)
                .bind(i64::from(round.0))
                .bind(step.name().into_owned())
                .bind(client.as_str())
                .bind(metrics.loss)
                .bind(metrics.accuracy)
                .bind(i64::try_from(metrics.examples).unwrap_or(i64::MAX))
                .bind(metrics.seconds);
        }
        query.execute(&mut *transaction).await?;
    }
    Ok(())
}

/// Puts clients' records in place of those before.
pub(super) async fn write_clients(
    transaction: &mut AnyConnection,
    run: RunId,
    clients: &[(ClientId, ClientRecord)],
) -> Result<(), StoreError> {
    let (run, is_postgres) = (run.to_string(), database::is_postgres(transaction));
    for batch in clients.chunks(ROWS_MAX) {
        let row = "?, ?, ?, ?, ?, CAST(? AS TEXT), ?, ?, ?";
        let sql = format!(
            "INSERT INTO clients (run, client, accepted, refused, declined, test, releases, released_last, checksum) \
             VALUES {} \
             ON CONFLICT (run, client) DO UPDATE SET accepted = excluded.accepted, refused = excluded.refused, \
             declined = excluded.declined, test = excluded.test, releases = excluded.releases, \
             released_last = excluded.released_last, checksum = excluded.checksum",
            places(batch.len(), row, is_postgres)
        );
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false);
        for (client, record) in batch {
            query = query
                .bind(&run)
                .bind(client.as_str())
                .bind(i64::from(record.accepted))
                .bind(to_json(&record.refused.iter().collect::<Vec<_>>()))
                .bind(to_json(&record.declined.iter().collect::<Vec<_>>()))
                .bind(sound(record.test).map(|test| to_json(&test)))
                .bind(i64::from(record.releases))
                .bind(i64::from(record.released_last))
                .bind(checksum(&run, client, record));
        }
        query.execute(&mut *transaction).await?;
    }
    Ok(())
}

/// The name of a site; none for one that older releases allowed and that would lead out of a folder or read as an option. Nobody
/// of such a name is let in.
pub(super) fn site_name(name: &str) -> Result<Option<ClientId>, IdError> {
    match ClientId::new(name) {
        Err(_) if name.starts_with(['.', '-']) && ClientId::new(&format!("a{}", &name[1..])).is_ok() => {
            Ok(None)
        }
        read => read.map(Some),
    }
}

/// Over the numbers that bound how often a client takes part.
fn checksum(run: &str, client: &ClientId, record: &ClientRecord) -> String {
    let ClientRecord { accepted, releases, released_last, .. } = record;
    let text = format!("{run} {client} {accepted} {releases} {released_last}");
    privacy::chain::Digest::of(text.as_bytes()).to_string()
}

/// A client's record; none for a name that is no site's any more.
pub(super) fn client(row: &AnyRow) -> Result<Option<(ClientId, ClientRecord)>, StoreError> {
    let name: String = row.try_get("client")?;
    let Some(client) = site_name(&name).map_err(|error| wrong(row, "client", error))? else {
        return Ok(None);
    };
    let tested = row.try_get::<Option<String>, _>("test")?.is_some();
    let record = ClientRecord {
        connected: false,
        accepted: number(row, "accepted")?,
        releases: number(row, "releases")?,
        released_last: number(row, "released_last")?,
        refused: json::<Vec<_>>(row, "refused")?.into_iter().collect(),
        declined: json::<Vec<_>>(row, "declined")?.into_iter().collect(),
        test: if tested { Some(json(row, "test")?) } else { None },
    };
    // A row of an older release has none.
    let written: Option<String> = row.try_get("checksum")?;
    if written.is_some_and(|written| {
        written != checksum(&row.try_get::<String, _>("run").unwrap_or_default(), &client, &record)
    }) {
        let what = "of client ".to_owned() + client.as_str() + " was changed after it was written";
        return Err(wrong(row, "row", what));
    }
    Ok(Some((client, record)))
}

/// A run's line without rounds and clients.
pub(super) fn summary(row: &AnyRow) -> Result<RunSummary, StoreError> {
    // A row of an older release counts the releases of private runs alone; of a run without one every round has failed.
    let rounds_done: u32 = number(row, "round")?;
    let releases = number(row, "releases")?.max(rounds_done.saturating_sub(number(row, "failures")?));
    let progress = RunProgress { rounds_done, rounds: number(row, "rounds")?, releases };
    let (state, message) = match (end(row)?, control(row)?) {
        (Some(end), _) => (end.state(), end.message(progress)),
        (None, Control::Pause) => (RunState::Paused, "paused by the operator".to_owned()),
        (None, _) => {
            let message = "waits for a place, or for the budget that another run is spending";
            (RunState::Queued, message.to_owned())
        }
    };
    Ok(RunSummary {
        run: run_id(row)?,
        name: row.try_get("name")?,
        state,
        message,
        rounds_done,
        rounds: progress.rounds,
        is_seeded: seed(row)?.is_some(),
        model_sha256: row.try_get("model_sha256")?,
        history: Vec::new(),
        clients: Vec::new(),
    })
}

/// A client for an operator's eyes.
pub(crate) fn client_summary(client: &ClientId, record: &ClientRecord) -> ClientSummary {
    record.summary(client)
}
