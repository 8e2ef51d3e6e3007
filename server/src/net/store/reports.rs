//! What operators look at in the database beside a run's summary.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{ClientId, RunId};
use sqlx::Row;

use super::{Store, StoreError, rows};
use crate::plan::draws_secretly;

/// Reports that are told at most, the newest ones.
const REPORTS_MAX: i64 = 50_000;
/// Runs over which sites' answers are counted, the newest ones.
const COUNTED: i64 = 20;

/// Runs among which the newest one of a site is looked for.
const LOOKED_AT: i64 = 1000;

/// What one site measured in one round.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Report {
    pub(crate) round: u32,
    /// `train` or `evaluate`.
    pub(crate) kind: String,
    pub(crate) site: ClientId,
    pub(crate) loss: f64,
    pub(crate) accuracy: Option<f64>,
    pub(crate) examples: u64,
    pub(crate) seconds: f64,
}

/// A site's answers over the newest runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) runs: u32,
    pub(crate) accepted: u64,
    pub(crate) refused: BTreeMap<&'static str, u64>,
    pub(crate) declined: BTreeMap<&'static str, u64>,
}

impl Store {
    /// A run's plan as it was typed.
    pub(crate) async fn plan_toml(&self, run: RunId) -> Result<String, StoreError> {
        let found = sqlx::query("SELECT plan_toml FROM runs WHERE run = $1").bind(run.to_string());
        let row = found.fetch_optional(&self.pool).await?.ok_or(StoreError::NoSuchRun(run))?;
        Ok(row.try_get("plan_toml")?)
    }

    /// The plan of a run as it was typed, and whether it has a seed; `None` for a run that is not here.
    pub(crate) async fn origin(&self, run: &str) -> Result<Option<(String, bool)>, StoreError> {
        let found = sqlx::query("SELECT * FROM runs WHERE run = $1").bind(run);
        let Some(row) = found.fetch_optional(&self.pool).await? else { return Ok(None) };
        Ok(Some((row.try_get("plan_toml")?, rows::seed(&row)?.is_some())))
    }

    /// The run of this id, or else the newest one, where the site has taken part in it: where an answer of it counts. Who took part in a run
    /// whose cohorts are drawn in secret is not stored; every member has then.
    pub(crate) async fn took_part(
        &self,
        site: &ClientId,
        run: Option<RunId>,
    ) -> Result<Option<RunId>, StoreError> {
        let runs = match run {
            Some(run) => sqlx::query("SELECT * FROM runs WHERE run = $1").bind(run.to_string()),
            None => sqlx::query("SELECT * FROM runs ORDER BY sequence DESC LIMIT $1").bind(LOOKED_AT),
        };
        for row in runs.fetch_all(&self.pool).await? {
            let (run, plan_toml): (_, String) = (rows::run_id(&row)?, row.try_get("plan_toml")?);
            if rows::seed(&row)?.is_none() && draws_secretly(&plan_toml) {
                return Ok(Some(run));
            }
            let client = sqlx::query("SELECT * FROM clients WHERE run = $1 AND client = $2");
            let client = client.bind(run.to_string()).bind(site.as_str()).fetch_optional(&self.pool).await?;
            let record = client.as_ref().map(rows::client).transpose()?.flatten();
            if record.is_some_and(|(_, record)| record.accepted > 0) {
                return Ok(Some(run));
            }
        }
        Ok(None)
    }

    /// What sites measured from this round on, oldest first; nothing where the plan keeps metrics at the sites.
    pub(crate) async fn reports(&self, run: RunId, from: u32) -> Result<Vec<Report>, StoreError> {
        let sql = "SELECT * FROM reports WHERE run = $1 AND round >= $2 ORDER BY round DESC, client LIMIT $3";
        let found = sqlx::query(sql).bind(run.to_string()).bind(i64::from(from)).bind(REPORTS_MAX);
        let mut reports = Vec::new();
        for row in found.fetch_all(&self.pool).await?.iter().rev() {
            let (name, round): (String, i64) = (row.try_get("client")?, row.try_get("round")?);
            let wrong = |message| StoreError::Row { run: run.to_string(), what: "report", message };
            let Some(site) = rows::site_name(&name).map_err(|error| wrong(error.to_string()))? else {
                continue;
            };
            reports.push(Report {
                round: u32::try_from(round).map_err(|error| wrong(error.to_string()))?,
                kind: row.try_get("kind")?,
                site,
                loss: row.try_get("loss")?,
                accuracy: row.try_get("accuracy")?,
                examples: row.try_get::<i64, _>("examples")?.cast_unsigned(),
                seconds: row.try_get("seconds")?,
            });
        }
        Ok(reports)
    }

    /// The answers of every site over the newest runs.
    pub(crate) async fn counts(&self) -> Result<BTreeMap<ClientId, Counts>, StoreError> {
        let newest = sqlx::query("SELECT * FROM runs ORDER BY sequence DESC LIMIT $1").bind(COUNTED);
        let mut secret = BTreeSet::new();
        for row in newest.fetch_all(&self.pool).await? {
            let plan_toml: String = row.try_get("plan_toml")?;
            if rows::seed(&row)?.is_none() && draws_secretly(&plan_toml) {
                secret.insert(rows::run_id(&row)?);
            }
        }
        let sql = "SELECT * FROM clients WHERE run IN (SELECT run FROM runs ORDER BY sequence DESC LIMIT $1)";
        let found = sqlx::query(sql).bind(COUNTED).fetch_all(&self.pool).await?;
        let mut all: BTreeMap<ClientId, Counts> = BTreeMap::new();
        for row in &found {
            let Some((site, record)) = rows::client(row)? else { continue };
            let counts = all.entry(site).or_default();
            counts.runs += 1;
            // An earlier version has counted who took part where that is a secret now.
            if secret.contains(&rows::run_id(row)?) {
                continue;
            }
            counts.accepted += u64::from(record.accepted);
            for (reason, count) in record.refused {
                *counts.refused.entry(reason.name()).or_default() += u64::from(count);
            }
            for (reason, count) in record.declined {
                *counts.declined.entry(reason.name()).or_default() += u64::from(count);
            }
        }
        Ok(all)
    }
}
