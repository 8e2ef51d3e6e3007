//! Models as they may leave a server: tensors, and beside them what may be said about their privacy. No model leaves without that.

use protocol::wire::{ModelChoice, ModelLine};
use protocol::{Layout, Parameters, Positive, RunId, Standardiser};

use super::{Described, Store, StoreError};
use crate::plan::typed_privacy;
use crate::plan::{EvaluationPlan, Evaluators};
use crate::{Methods, Plan, PrivacyStatement, StatementError, Subject};

/// A model that may leave.
#[derive(Clone, Debug, PartialEq)]
pub struct ArchivedModel {
    /// Its run.
    pub run: RunId,
    /// What is known of it.
    pub line: ModelLine,
    /// What may be said about it.
    pub statement: PrivacyStatement,
    /// Its tensors.
    pub layout: Layout,
    /// Their values.
    pub model: Parameters,
    /// The standardisation it expects, where its plan asks for a common one.
    pub standardiser: Option<Standardiser>,
}

/// Why a model does not leave.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The state cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no run at all.
    #[error("there is no run here yet")]
    NoRun,
    /// The run has no such model.
    #[error("run {0} has no such model; `run models` lists those it has")]
    NoModel(RunId),
    /// None of its models was measured.
    #[error(
        "run {run} has no best model: {why}; `--model last` takes the newest, `--model ROUND` any that `run models` lists"
    )]
    NoBest {
        /// The run.
        run: RunId,
        /// Why none was.
        why: String,
    },
    /// Its file was given up.
    #[error("the model of round {0} is no longer kept (`[models] keep_last` in server.toml)")]
    GivenUp(u32),
    /// The stored plan or statement is not understood.
    #[error("run {run}: the stored {what} is not understood ({message})")]
    Unreadable {
        /// The run.
        run: RunId,
        /// Plan or statement.
        what: &'static str,
        /// What is wrong.
        message: String,
    },
    /// The statement does not hold.
    #[error("the privacy statement does not hold: {0}; nothing was exported")]
    Statement(#[from] StatementError),
    /// It must not leave.
    #[error("{0}; nothing was exported")]
    Refused(String),
}

impl Store {
    /// A model of a run (the newest run when `None`) that may leave, with its statement, whose numbers were computed again.
    ///
    /// # Errors
    /// [`ArchiveError`] when there is none, or it must not leave.
    pub async fn released(
        &self,
        run: Option<RunId>,
        choice: ModelChoice,
    ) -> Result<ArchivedModel, ArchiveError> {
        let run = match run {
            Some(run) => run,
            None => self.summary(None).await?.ok_or(ArchiveError::NoRun)?.run,
        };
        let Described { plan_toml, seed, layout, standardiser } = self.description(run).await?;
        let unreadable = |what, message| ArchiveError::Unreadable { run, what, message };
        let stored = self.model(run, choice).await?.ok_or_else(|| match choice {
            ModelChoice::Best => ArchiveError::NoBest { run, why: why_unmeasured(&plan_toml) },
            ModelChoice::Last | ModelChoice::Round(_) => ArchiveError::NoModel(run),
        })?;
        let (line, round) = (&stored.line, stored.line.round);
        if !line.kept {
            return Err(ArchiveError::GivenUp(round));
        }
        let statement = match &stored.statement {
            // One of an earlier version becomes what can still be claimed; its plan need not be one of today's.
            Some(text) => PrivacyStatement::read(text).map_err(|error| match error {
                StatementError::Form(message) => unreadable("privacy statement", message),
                other => ArchiveError::Statement(other),
            })?,
            None if round == 0 || promises_nothing(&plan_toml).map_err(|why| unreadable("plan", why))? => {
                let (model_sha256, is_seeded) = (line.sha256.clone(), seed.is_some());
                let subject = Subject { model_sha256, run: run.to_string(), round, is_seeded };
                PrivacyStatement::of(subject, &protocol::PrivacySpec::default(), None)
                    .map_err(|error| unreadable("privacy statement", error.to_string()))?
            }
            None => {
                let why = "the run promises privacy, but its model has no statement";
                return Err(ArchiveError::Refused(why.to_owned()));
            }
        };
        may_leave(&statement, &line.sha256)?;
        let model = self.values(&stored).await?;
        Ok(ArchivedModel { run, line: stored.line, statement, layout, model, standardiser })
    }
}

/// Whether a run's plan has no promise of privacy.
fn promises_nothing(plan_toml: &str) -> Result<bool, String> {
    let typed = typed_privacy(plan_toml).map_err(|error| error.to_string())?;
    Ok(typed.central.is_none() && typed.local.is_none() && typed.examples.is_none())
}

/// Why no model of a run with this plan was measured.
fn why_unmeasured(plan_toml: &str) -> String {
    // The noise says nothing about evaluations: it is not searched for.
    let noise = Positive::new(1.0).ok();
    let Some(Ok(Plan { evaluation, rounds, .. })) =
        Plan::parse_accepted(plan_toml, &Methods::default(), noise)
    else {
        return "none of its models was evaluated".to_owned();
    };
    let EvaluationPlan { every, sites, central, .. } = evaluation;
    match (sites, central) {
        (Evaluators::None, false) => {
            "its plan has neither sites nor server evaluate ([evaluation] sites = \"none\", central = false)".to_owned()
        }
        (Evaluators::None, true) => {
            "no site evaluates ([evaluation] sites = \"none\" in its plan, or metrics that a promise of privacy keeps at the sites), and this server has no \
             test records ([central.csv] in server.toml)"
                .to_owned()
        }
        (Evaluators::All, _) => {
            let due = match every {
                0 => format!("its plan has only the model of round {rounds} evaluated ([evaluation] every = 0)"),
                1 => "its plan has every model evaluated".to_owned(),
                every => format!("its plan has the model of every {every}th round evaluated, and of the last one"),
            };
            format!("{due}, and no evaluation has brought a number so far; sites without test records measure nothing")
        }
    }
}

/// Whether a model with this fingerprint may leave with this statement.
fn may_leave(statement: &PrivacyStatement, model_sha256: &str) -> Result<(), ArchiveError> {
    if let Some(void) = statement.void.as_ref().filter(|void| void.starts_with("INSECURE")) {
        return Err(ArchiveError::Refused(void.clone()));
    }
    if statement.model_sha256 != model_sha256 {
        let why = "the statement is about another model than the stored one";
        return Err(ArchiveError::Refused(why.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_a_best_model_says_why_it_has_none() {
        let plan = |more: &str| {
            format!(
                "name = \"p\"\nrounds = 30\nmodel = \"logistic\"\n[data.tensor]\nshape = [6]\ntarget = {{ classes = 2 }}\n\
                 [training]\nbatch_size = 8\noptimizer = {{ sgd = {{ learning_rate = 0.05 }} }}\n{more}"
            )
        };
        let private = "[cohort]\nclients_min = 10\n[privacy.central]\ndelta = 1e-5\nepsilon_max = 8.0\nepsilon = 4.0\n\
                       denominator = 10\nsampling = { availability = { participations_max = 30, separation_min = 1 } }\n";
        for (more, said) in [
            ("[evaluation]\nsites = \"none\"\ncentral = false\n", "neither sites nor server"),
            ("[evaluation]\nsites = \"none\"\n", "no site evaluate"),
            ("[evaluation]\nevery = 0\n", "only the model of round 30"),
            ("[evaluation]\nevery = 7\n", "every 7th round"),
            ("", "no evaluation has brought a number"),
            (private, "keeps at the sites"),
        ] {
            let why = why_unmeasured(&plan(more));
            assert!(why.contains(said), "{more}: {why}");
        }
        assert_eq!(why_unmeasured("rounds = 3"), "none of its models was evaluated");
    }

    #[test]
    fn a_model_with_noise_that_can_be_predicted_or_with_another_model_s_statement_does_not_leave() {
        let subject = Subject { model_sha256: "ab".into(), run: "r".into(), round: 1, is_seeded: false };
        let good = PrivacyStatement::of(subject, &protocol::PrivacySpec::default(), None).unwrap();
        assert!(may_leave(&good, "ab").is_ok() && may_leave(&good, "cd").is_err());
        let void = "INSECURE: the noise came from a test's seed and can be taken off again";
        let insecure = PrivacyStatement { void: Some(void.into()), ..good.clone() };
        assert!(may_leave(&insecure, "ab").is_err());
        let seeded = PrivacyStatement { void: Some("a seeded run".into()), ..good };
        assert!(may_leave(&seeded, "ab").is_ok());
    }
}
