//! The models of a run: every release is kept, named by its round, with what was measured of it and what may be said about its
//! privacy. A server may be told to keep the files of the last ones only; the best one's is always kept.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use protocol::wire::{ModelChoice, ModelLine, RoundSummary};
use protocol::{Parameters, RunId};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::sweeping::Unused;
use super::{Files, Store, StoreError, rows};
use crate::best::Score;

/// Runs of which it is remembered what was measured.
const RUNS_KNOWN: usize = 16;
/// Rounds whose measurements are read at a time.
const PAGE: i64 = if cfg!(test) { 3 } else { 1000 };

/// What was measured of the models of a few runs. It grows with runs, never with rounds.
#[derive(Default)]
pub(super) struct Opinions(Mutex<BTreeMap<RunId, Opinion>>);

/// The models of the runs that are being worked on whose files are kept, by round. A run has no more of them than it may keep, the best
/// one and the one that is new.
#[derive(Default)]
pub(super) struct Kept(Mutex<BTreeMap<RunId, BTreeMap<u32, String>>>);

impl Kept {
    fn of(&self, run: RunId) -> Option<BTreeMap<u32, String>> {
        self.runs().get(&run).cloned()
    }

    fn know(&self, run: RunId, kept: BTreeMap<u32, String>) {
        self.runs().insert(run, kept);
    }

    /// The run is over.
    pub(super) fn forget(&self, run: RunId) {
        self.runs().remove(&run);
    }

    fn runs(&self) -> MutexGuard<'_, BTreeMap<RunId, BTreeMap<u32, String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was measured of the models of one run.
#[derive(Clone, Copy)]
struct Opinion {
    /// All rounds up to this one are in it. They are not measured again: a round is committed after the evaluation of the one before.
    through: i64,
    by_server: Leader,
    by_sites: Leader,
}

/// The best of those models that have a score.
#[derive(Clone, Copy, Default)]
struct Leader {
    by_accuracy: Option<(u32, Score)>,
    by_loss: Option<(u32, Score)>,
    /// Whether a score has no accuracy.
    lacks_accuracy: bool,
}

impl Default for Opinion {
    fn default() -> Self {
        Self { through: -1, by_server: Leader::default(), by_sites: Leader::default() }
    }
}

impl Opinion {
    /// Adds what was measured of a later model: by the server on data of its own, and by the sites (`voices`, or, where their reports are
    /// not kept, their mean).
    fn add(&mut self, round: u32, server: Option<Score>, sites: Option<Score>) {
        self.through = round.into();
        self.by_server.add(round, server);
        self.by_sites.add(round, sites);
    }

    /// The round of the model that the evaluations found best: by the server's own data where it has any, else by what the sites say of
    /// it. All are compared by one measure: by accuracy where there is one of every model (of equal accuracies the lower loss), else by loss;
    /// the earlier of two equals.
    fn best(&self) -> Option<u32> {
        self.by_server.best().or_else(|| self.by_sites.best())
    }
}

impl Leader {
    fn add(&mut self, round: u32, score: Option<Score>) {
        let Some(score) = score else { return };
        let lead = |leader: &mut Option<(u32, Score)>, by_accuracy: bool| {
            if leader.is_none_or(|(_, best)| score.is_better(best, by_accuracy)) {
                *leader = Some((round, score));
            }
        };
        lead(&mut self.by_loss, false);
        match score.accuracy {
            Some(_) => lead(&mut self.by_accuracy, true),
            None => self.lacks_accuracy = true,
        }
    }

    fn best(&self) -> Option<u32> {
        let leader = if self.lacks_accuracy { self.by_loss } else { self.by_accuracy };
        leader.map(|(round, _)| round)
    }
}

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
        self.models_before(run, None, i64::MAX).await
    }

    /// The newest `limit` models of a run, of rounds before `before` where that is given, oldest first.
    pub(crate) async fn models_before(
        &self,
        run: RunId,
        before: Option<u32>,
        limit: i64,
    ) -> Result<Vec<StoredModel>, StoreError> {
        let sql = "SELECT models.*, rounds.summary, \
                   (SELECT parents.sha256 FROM models AS parents WHERE parents.run = models.run \
                   AND parents.round < models.round ORDER BY parents.round DESC LIMIT 1) AS parent \
                   FROM models LEFT JOIN rounds \
                   ON rounds.run = models.run AND rounds.round = models.round AND models.round > 0 \
                   WHERE models.run = $1 AND models.round < $2 ORDER BY models.round DESC LIMIT $3";
        let before = before.map_or(i64::MAX, i64::from);
        let found = sqlx::query(sql).bind(run.to_string()).bind(before).bind(limit);
        let found = found.fetch_all(&self.pool).await?;
        let best = self.best(run).await?;
        found.iter().rev().map(|row| self.stored_model(row, best)).collect()
    }

    /// The round of the model that the evaluations found best; `None` where nothing was measured.
    pub(crate) async fn best(&self, run: RunId) -> Result<Option<u32>, StoreError> {
        Ok(self.opinion(run).await?.best())
    }

    /// One model of a run; `None` when the run has no such model.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be read.
    pub async fn model(&self, run: RunId, choice: ModelChoice) -> Result<Option<StoredModel>, StoreError> {
        let round = match choice {
            ModelChoice::Last => None,
            ModelChoice::Best => match self.best(run).await? {
                Some(round) => Some(round),
                None => return Ok(None),
            },
            ModelChoice::Round(round) => Some(round),
        };
        let before = round.map(|round| round.saturating_add(1));
        let found = self.models_before(run, before, 1).await?.pop();
        Ok(found.filter(|model| round.is_none_or(|round| model.line.round == round)))
    }

    /// The values of a model whose file is kept.
    ///
    /// # Errors
    /// [`StoreError::Blob`] names a damaged or missing file.
    pub(crate) async fn values(&self, model: &StoredModel) -> Result<Parameters, StoreError> {
        Ok(Parameters::new(self.tensors(&model.blob).await?))
    }

    /// Gives up the files of all but the last `last` models of a run and the best one; `new` is the one that was added just now. Which are
    /// kept is read once for a run, and known from then on.
    pub(super) async fn thin(
        &self,
        run: RunId,
        last: u32,
        new: Option<&(u32, String)>,
    ) -> Result<(), StoreError> {
        let mut kept = match self.kept.of(run) {
            Some(kept) => kept,
            None => self.read_kept(run).await?,
        };
        kept.extend(new.cloned());
        let surplus = kept.len().saturating_sub(last.max(1) as usize);
        let mut given_up: BTreeMap<u32, String> =
            kept.iter().take(surplus).map(|(round, blob)| (*round, blob.clone())).collect();
        if !given_up.is_empty()
            && let Some(best) = self.best(run).await?
        {
            given_up.remove(&best);
        }
        if !given_up.is_empty() {
            let mut transaction = self.begin().await?;
            for round in given_up.keys() {
                sqlx::query("UPDATE models SET kept = 0 WHERE run = $1 AND round = $2")
                    .bind(run.to_string())
                    .bind(i64::from(*round))
                    .execute(&mut *transaction)
                    .await?;
            }
            transaction.commit().await?;
        }
        kept.retain(|round, _| !given_up.contains_key(round));
        self.kept.know(run, kept);
        self.sweep.add(given_up.into_values().map(Unused::Blob));
        Ok(())
    }

    async fn read_kept(&self, run: RunId) -> Result<BTreeMap<u32, String>, StoreError> {
        let sql = "SELECT run, round, blob FROM models WHERE run = $1 AND kept = 1";
        let found = sqlx::query(sql).bind(run.to_string()).fetch_all(&self.pool).await?;
        let model = |row: &AnyRow| Ok((rows::number(row, "round")?, row.try_get("blob")?));
        found.iter().map(model).collect()
    }

    /// What was measured of a run's models up to now. What was read before is not read again, but for the newest round, which an
    /// evaluation may still change.
    async fn opinion(&self, run: RunId) -> Result<Opinion, StoreError> {
        let mut known = self.opinions().remove(&run).unwrap_or_default();
        let sql = "SELECT rounds.run AS run, rounds.round AS round, rounds.summary AS summary \
                   FROM rounds JOIN models ON models.run = rounds.run AND models.round = rounds.round \
                   WHERE rounds.run = $1 AND rounds.round > $2 AND rounds.round > 0 ORDER BY rounds.round LIMIT $3";
        loop {
            let found = sqlx::query(sql).bind(run.to_string()).bind(known.through).bind(PAGE);
            let found = found.fetch_all(&self.pool).await?;
            let voices = self.voices(run, known.through, found.last()).await?;
            let mut opinion = known;
            for row in &found {
                // All but the last.
                known = opinion;
                let (round, summary): (_, RoundSummary) =
                    (rows::number(row, "round")?, rows::json(row, "summary")?);
                let sites = voices.get(&round).and_then(|voices| Score::median(voices));
                let sites = sites.or_else(|| summary.sites.as_ref().and_then(Score::of));
                opinion.add(round, summary.central.as_ref().and_then(Score::of), sites);
            }
            if (found.len() as i64) < PAGE {
                let mut kept = self.opinions();
                while kept.len() >= RUNS_KNOWN {
                    kept.pop_first();
                }
                kept.insert(run, known);
                return Ok(opinion);
            }
        }
    }

    /// What the sites said of the models of the rounds after `after`, up to that of `last`.
    async fn voices(
        &self,
        run: RunId,
        after: i64,
        last: Option<&AnyRow>,
    ) -> Result<BTreeMap<u32, Vec<Score>>, StoreError> {
        let mut voices: BTreeMap<u32, Vec<Score>> = BTreeMap::new();
        let Some(last) = last else { return Ok(voices) };
        let sql = "SELECT run, round, loss, accuracy FROM reports \
                   WHERE run = $1 AND kind = 'evaluate' AND examples > 0 AND round > $2 AND round <= $3";
        let found = sqlx::query(sql).bind(run.to_string()).bind(after);
        for row in found.bind(last.try_get::<i64, _>("round")?).fetch_all(&self.pool).await? {
            let voice = Score { loss: row.try_get("loss")?, accuracy: row.try_get("accuracy")? };
            voices.entry(rows::number(&row, "round")?).or_default().push(voice);
        }
        Ok(voices)
    }

    fn opinions(&self) -> MutexGuard<'_, BTreeMap<RunId, Opinion>> {
        self.opinions.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stored_model(&self, row: &AnyRow, best: Option<u32>) -> Result<StoredModel, StoreError> {
        let measured = row.try_get::<Option<String>, _>("summary")?.is_some();
        let summary: Option<RoundSummary> = if measured { Some(rows::json(row, "summary")?) } else { None };
        let blob: String = row.try_get("blob")?;
        let round = rows::number(row, "round")?;
        let line = ModelLine {
            round,
            sha256: row.try_get("sha256")?,
            parent_sha256: row.try_get("parent")?,
            sites: summary.as_ref().and_then(|summary| summary.sites),
            central: summary.as_ref().and_then(|summary| summary.central),
            epsilon: summary.and_then(|summary| summary.epsilon),
            best: best == Some(round),
            kept: row.try_get::<i64, _>("kept")? != 0,
        };
        let place = self.blobs.show(&blob);
        Ok(StoredModel { line, place, blob, statement: row.try_get("statement")? })
    }
}

#[cfg(test)]
mod tests {
    use protocol::Metrics;

    use super::*;

    /// Which of these models is best, given what is told of each by those that keep their reports.
    fn best<'a>(
        lines: impl Iterator<Item = &'a ModelLine> + Clone,
        told: impl Fn(&ModelLine) -> Option<Score>,
    ) -> Option<usize> {
        let mut opinion = Opinion::default();
        for line in lines.clone() {
            let sites = told(line).or_else(|| line.sites.as_ref().and_then(Score::of));
            opinion.add(line.round, line.central.as_ref().and_then(Score::of), sites);
        }
        let (best, mut lines) = (opinion.best()?, lines);
        lines.position(|line| line.round == best)
    }

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

    #[test]
    fn of_equally_accurate_models_the_one_of_lower_loss_is_best_and_then_the_earlier_one() {
        let lines = [
            line(1, Some((0.5, Some(0.8))), None),
            line(2, Some((0.4, Some(0.8))), None),
            line(3, Some((0.4, Some(0.8))), None),
            line(4, Some((0.6, Some(0.8))), None),
        ];
        assert_eq!(best(lines.iter(), |_| None), Some(1));
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
