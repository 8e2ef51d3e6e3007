//! The models of a run: every release is kept, named by its round, with what was measured of it and what may be said about its
//! privacy. A server may be told to keep the files of the last ones only; the best one's is always kept.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use protocol::wire::{ModelChoice, ModelLine, RoundSummary};
use protocol::{Parameters, RunId};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::{Files, Store, StoreError, rows};
use crate::best::Score;

/// Runs whose sites' opinions are remembered.
const RUNS_KNOWN: usize = 16;

/// What the sites say of the models of a few runs, by round.
#[derive(Default)]
pub(super) struct Medians(Mutex<BTreeMap<RunId, BTreeMap<u32, Score>>>);

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
        let medians = self.medians(run).await?;
        let sites = |line: &ModelLine| medians.get(&line.round).copied();
        if let Some(best) = best(models.iter().map(|model| &model.line), sites) {
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

    /// What the sites say of the model of each round that they evaluated. The reports of a round come at once and stay: those of
    /// earlier rounds are not read again.
    async fn medians(&self, run: RunId) -> Result<BTreeMap<u32, Score>, StoreError> {
        let mut known =
            self.medians.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&run).unwrap_or_default();
        let after = known.last_key_value().map_or(-1, |(round, _)| i64::from(*round));
        let sql = "SELECT round, loss, accuracy FROM reports \
                   WHERE run = $1 AND kind = 'evaluate' AND examples > 0 AND round > $2";
        let found = sqlx::query(sql).bind(run.to_string()).bind(after).fetch_all(&self.pool).await?;
        let mut voices: BTreeMap<u32, Vec<Score>> = BTreeMap::new();
        for row in &found {
            let voice = Score { loss: row.try_get("loss")?, accuracy: row.try_get("accuracy")? };
            voices.entry(rows::number(row, "round")?).or_default().push(voice);
        }
        known.extend(voices.iter().filter_map(|(round, voices)| Some((*round, Score::median(voices)?))));
        let mut kept = self.medians.0.lock().unwrap_or_else(PoisonError::into_inner);
        while kept.len() >= RUNS_KNOWN {
            kept.pop_first();
        }
        kept.insert(run, known.clone());
        Ok(known)
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

/// Which model the evaluations found best: by the server's own data where it has any, else by what the sites say of it (`sites`,
/// or, where their reports are not kept, their mean); the earlier of two equals. All are compared by one measure: by accuracy where
/// there is one of every model, else by loss.
fn best<'a>(
    lines: impl Iterator<Item = &'a ModelLine> + Clone,
    sites: impl Fn(&ModelLine) -> Option<Score>,
) -> Option<usize> {
    let central = |line: &ModelLine| line.central.as_ref().and_then(Score::of);
    let is_central = lines.clone().any(|line| central(line).is_some());
    let score = |line: &ModelLine| match is_central {
        true => central(line),
        false => sites(line).or_else(|| line.sites.as_ref().and_then(Score::of)),
    };
    let scored: Vec<(usize, Score)> =
        lines.enumerate().filter_map(|(at, line)| Some((at, score(line)?))).collect();
    let by_accuracy = scored.iter().all(|(_, score)| score.accuracy.is_some());
    let goods = scored.iter().map(|(at, score)| (*at, score.good(by_accuracy)));
    goods.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use protocol::Metrics;

    use super::*;

    fn line(round: u32, sites: Option<(f64, Option<f64>)>, central: Option<f64>) -> ModelLine {
        let metrics = |(loss, accuracy)| Metrics { loss, accuracy, examples: 9, ..Metrics::default() };
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
        assert_eq!(best(by_sites.iter(), |_| None), Some(2));
        let by_loss = [
            line(1, Some((0.5, None)), None),
            line(2, Some((0.4, None)), None),
            line(3, Some((0.4, None)), None),
        ];
        assert_eq!(best(by_loss.iter(), |_| None), Some(1));
        let by_server =
            [line(1, Some((0.5, Some(0.99))), Some(0.7)), line(2, Some((0.5, Some(0.1))), Some(0.8))];
        assert_eq!(best(by_server.iter(), |_| None), Some(1));
        assert_eq!(best([line(0, None, None)].iter(), |_| None), None);
    }

    fn told(loss: f64, accuracy: Option<f64>) -> Score {
        Score { loss, accuracy }
    }

    #[test]
    fn accuracies_and_losses_are_never_compared_with_each_other() {
        let lines: Vec<ModelLine> = (1..=3).map(|round| line(round, None, None)).collect();
        let chosen =
            |voices: [&[Score]; 3]| best(lines.iter(), |line| Score::median(voices[line.round as usize - 1]));
        // A negative loss below every accuracy, beside accuracies that grow.
        let mixed = [
            &[told(0.9, Some(0.5)), told(0.8, None), told(0.9, Some(0.6))][..],
            &[told(0.6, Some(0.7)), told(0.5, None), told(0.6, Some(0.7))],
            &[told(0.3, Some(0.8)), told(0.4, None), told(0.3, Some(0.9))],
        ];
        assert_eq!(chosen(mixed), Some(2));
        // One model has accuracies from all, the others not: a loss of 0.3 is better than one of 2.
        let early = [&[told(2.0, Some(0.1))][..], &[told(0.3, None)], &[told(0.5, None)]];
        assert_eq!(chosen(early), Some(1));
        assert_eq!(Score::median(&[told(0.2, Some(0.9)), told(0.7, Some(0.4))]), Some(told(0.7, Some(0.4))));
    }

    #[test]
    fn who_has_measured_nothing_has_no_voice() {
        let empty = Metrics { loss: 0.0, accuracy: Some(1.0), examples: 0, seconds: 0.0 };
        let mut lines = [line(1, None, None), line(2, Some((0.4, Some(0.8))), None)];
        (lines[0].sites, lines[0].central) = (Some(empty), Some(empty));
        assert_eq!(best(lines.iter(), |_| None), Some(1));
    }

    #[test]
    fn one_site_cannot_choose_which_model_is_best_whatever_it_says() {
        let lines: Vec<ModelLine> = (1..=3).map(|round| line(round, Some((0.0, None)), None)).collect();
        let accuracy = |voices: Vec<f64>| {
            let voices: Vec<Score> = voices.into_iter().map(|voice| told(0.0, Some(voice))).collect();
            Score::median(&voices)
        };
        // The honest sites find the third model best, by a hair.
        let honest = [[0.80, 0.81, 0.82], [0.70, 0.71, 0.72], [0.60, 0.61, 0.62]];
        for wanted in 0..3 {
            for (best_of_all, worst) in [(1.0, 0.0), (1e30, -1e30)] {
                let liar: Vec<f64> =
                    (0..3).map(|at| if at == wanted { best_of_all } else { worst }).collect();
                let said = |line: &ModelLine| {
                    let at = line.round as usize - 1;
                    accuracy(honest.iter().map(|site| site[at]).chain([liar[at]]).collect())
                };
                let chosen = best(lines.iter(), said).unwrap();
                // At most it moves the choice between models that the others cannot tell apart by more than a hair.
                let good = said(&lines[chosen]).unwrap().accuracy.unwrap();
                assert!((0.60..=0.72).contains(&good), "{good}");
            }
        }
        let apart = [[0.5, 0.6, 0.9], [0.4, 0.6, 0.8], [0.3, 0.5, 0.9]];
        for wanted in 0..2 {
            let said = |line: &ModelLine| {
                let at = line.round as usize - 1;
                let lie = if at == wanted { 1e30 } else { -1e30 };
                accuracy(apart.iter().map(|site| site[at]).chain([lie]).collect())
            };
            assert_eq!(best(lines.iter(), said), Some(2), "a site chose model {wanted}");
        }
    }
}
