//! The models of a run: every release is kept, named by its round, with what was measured of it and what may be said about its
//! privacy. A server may be told to keep the files of the last ones only; the best one's is always kept.

use protocol::wire::{ModelChoice, ModelLine, RoundSummary};
use protocol::{Parameters, RunId};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::{Files, Store, StoreError, rows};

/// A model of a run and its file.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredModel {
    /// Its line.
    pub line: ModelLine,
    /// Where its safetensors file is: a path, or an address in object storage. It ends with the SHA-256 of the file's bytes.
    pub place: String,
    /// The file's name without its ending.
    pub(crate) blob: String,
    /// What may be said about its privacy, as JSON; `None` where its plan promises none.
    pub statement: Option<String>,
}

/// Adds the model that a round made; `false` when it was there, as after an evaluation.
///
/// # Errors
/// [`StoreError::ReleasedTwice`] when the round has released another one.
pub(super) async fn add(
    transaction: &mut AnyConnection,
    run: RunId,
    round: u32,
    files: &Files,
    statement: Option<&str>,
) -> Result<bool, StoreError> {
    let sql = "INSERT INTO models (run, round, blob, sha256, statement) VALUES ($1, $2, $3, $4, $5) \
               ON CONFLICT (run, round) DO NOTHING";
    let added = sqlx::query(sql)
        .bind(run.to_string())
        .bind(i64::from(round))
        .bind(&files.model)
        .bind(&files.model_sha256)
        .bind(statement)
        .execute(&mut *transaction)
        .await?;
    if added.rows_affected() == 1 {
        return Ok(true);
    }
    let sql = "SELECT sha256 FROM models WHERE run = $1 AND round = $2";
    let found = sqlx::query(sql).bind(run.to_string()).bind(i64::from(round));
    let sha256: String = found.fetch_one(&mut *transaction).await?.try_get("sha256")?;
    if sha256 == files.model_sha256 { Ok(false) } else { Err(StoreError::ReleasedTwice { run, round }) }
}

impl Store {
    /// Every model of a run, oldest first.
    ///
    /// # Errors
    /// [`StoreError`] when they cannot be read.
    pub async fn models(&self, run: RunId) -> Result<Vec<StoredModel>, StoreError> {
        let sql = "SELECT models.*, rounds.summary FROM models LEFT JOIN rounds \
                   ON rounds.run = models.run AND rounds.round = models.round AND models.round > 0 \
                   WHERE models.run = $1 ORDER BY models.round";
        let found = sqlx::query(sql).bind(run.to_string()).fetch_all(&self.pool).await?;
        let mut models = Vec::with_capacity(found.len());
        for row in &found {
            let parent = models.last().map(|before: &StoredModel| before.line.sha256.clone());
            models.push(self.stored_model(row, parent)?);
        }
        if let Some(best) = best(models.iter().map(|model| &model.line)) {
            models[best].line.best = true;
        }
        Ok(models)
    }

    /// One model of a run; `None` when the run has no such model.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be read.
    pub async fn model(&self, run: RunId, choice: ModelChoice) -> Result<Option<StoredModel>, StoreError> {
        let mut models = self.models(run).await?;
        let wanted = |model: &StoredModel| match choice {
            ModelChoice::Last => true,
            ModelChoice::Best => model.line.best,
            ModelChoice::Round(round) => model.line.round == round,
        };
        Ok(models.iter().rposition(wanted).map(|at| models.swap_remove(at)))
    }

    /// The values of a model whose file is kept.
    ///
    /// # Errors
    /// [`StoreError::Blob`] names a damaged or missing file.
    pub(crate) async fn values(&self, model: &StoredModel) -> Result<Parameters, StoreError> {
        Ok(Parameters::new(self.tensors(&model.blob).await?))
    }

    /// Gives up the files of all but the last `last` models of a run and the best one.
    pub(super) async fn thin(&self, run: RunId, last: u32) -> Result<(), StoreError> {
        let models = self.models(run).await?;
        let old = models.len().saturating_sub(last.max(1) as usize);
        let mut transaction = self.begin().await?;
        for model in models[..old].iter().filter(|model| model.line.kept && !model.line.best) {
            sqlx::query("UPDATE models SET kept = 0 WHERE run = $1 AND round = $2")
                .bind(run.to_string())
                .bind(i64::from(model.line.round))
                .execute(&mut *transaction)
                .await?;
        }
        Ok(transaction.commit().await?)
    }

    fn stored_model(&self, row: &AnyRow, parent_sha256: Option<String>) -> Result<StoredModel, StoreError> {
        let measured = row.try_get::<Option<String>, _>("summary")?.is_some();
        let summary: Option<RoundSummary> = if measured { Some(rows::json(row, "summary")?) } else { None };
        let blob: String = row.try_get("blob")?;
        let line = ModelLine {
            round: rows::number(row, "round")?,
            sha256: row.try_get("sha256")?,
            parent_sha256,
            sites: summary.as_ref().and_then(|summary| summary.sites),
            central: summary.as_ref().and_then(|summary| summary.central),
            epsilon: summary.and_then(|summary| summary.epsilon),
            best: false,
            kept: row.try_get::<i64, _>("kept")? != 0,
        };
        let place = self.blobs.show(&blob);
        Ok(StoredModel { line, place, blob, statement: row.try_get("statement")? })
    }
}

/// Which model the evaluations found best: by the server's own data where it has any, else by the sites'; by accuracy where there
/// is one, else by loss; the earlier of two equals.
fn best<'a>(lines: impl Iterator<Item = &'a ModelLine> + Clone) -> Option<usize> {
    let central = lines.clone().any(|line| line.central.is_some());
    let score = |line: &ModelLine| {
        let metrics = if central { line.central } else { line.sites }?;
        Some(metrics.accuracy.unwrap_or(-metrics.loss))
    };
    let scored = lines.enumerate().filter_map(|(at, line)| Some((at, score(line)?)));
    scored.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use protocol::Metrics;

    use super::*;

    fn line(round: u32, sites: Option<(f64, Option<f64>)>, central: Option<f64>) -> ModelLine {
        let metrics = |(loss, accuracy)| Metrics { loss, accuracy, ..Metrics::default() };
        ModelLine {
            round,
            sha256: String::new(),
            parent_sha256: None,
            sites: sites.map(metrics),
            central: central.map(|accuracy| metrics((0.0, Some(accuracy)))),
            epsilon: None,
            best: false,
            kept: true,
        }
    }

    #[test]
    fn the_best_model_is_the_most_accurate_or_else_the_one_of_least_loss() {
        let by_sites = [
            line(0, None, None),
            line(1, Some((0.5, Some(0.8))), None),
            line(2, Some((0.9, Some(0.9))), None),
        ];
        assert_eq!(best(by_sites.iter()), Some(2));
        let by_loss = [
            line(1, Some((0.5, None)), None),
            line(2, Some((0.4, None)), None),
            line(3, Some((0.4, None)), None),
        ];
        assert_eq!(best(by_loss.iter()), Some(1));
        let by_server =
            [line(1, Some((0.5, Some(0.99))), Some(0.7)), line(2, Some((0.5, Some(0.1))), Some(0.8))];
        assert_eq!(best(by_server.iter()), Some(1));
        assert_eq!(best([line(0, None, None)].iter()), None);
    }
}
