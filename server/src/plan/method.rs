//! What a plan does: it trains its model, or it follows a method.

use protocol::{ModelSpec, Name, PrivacySpec, SpecError, TrainingSpec};

use super::{EvaluationPlan, FederationConfig, Strategy, UpdateConfig};
use crate::methods::{MethodPlan, Methods};
use crate::schedule::Schedule;

/// The first setting that means something to training alone, where one was typed.
pub(super) struct BesideMethod(Option<&'static str>);

impl BesideMethod {
    pub(super) fn of(typed: &FederationConfig) -> Self {
        let of_training = [
            ("model", typed.model.is_some()),
            ("training", typed.training.is_some()),
            ("strategy", typed.strategy != Strategy::default()),
            ("schedule", typed.schedule != Schedule::default()),
            ("aggregation", typed.aggregation.is_some()),
            ("update", typed.update != UpdateConfig::default()),
            ("evaluation", typed.evaluation != EvaluationPlan::default()),
            ("personal_layers", !typed.personal_layers.is_empty()),
        ];
        Self(of_training.into_iter().find(|(_, is_typed)| *is_typed).map(|(key, _)| key))
    }

    /// What a plan does: its method with the values that this computes, or the training of its model.
    pub(super) fn resolve(
        self,
        typed: &mut FederationConfig,
        methods: &Methods,
        privacy: &PrivacySpec,
    ) -> Result<(Option<MethodPlan>, ModelSpec, TrainingSpec), SpecError> {
        let missing = |key: &str| SpecError::new("", format!("missing field `{key}`"));
        if let Some(table) = typed.method.take() {
            let method = methods.plan(table, &typed.data)?;
            self.check(&method.name, privacy)?;
            if typed.cohort.oversample.is_some() && !method.planned.may_oversample() {
                let message = format!(
                    "a round of the method `{}` needs an answer of everybody whom it asks, so asking more would only cost; leave this out, and \
                     give `grace_seconds` so that no round waits for a site that is gone",
                    method.name
                );
                return Err(SpecError::new("cohort.oversample", message));
            }
            method.check_answers()?;
            let shape = method.planned.shape();
            return Ok((Some(method), ModelSpec::Values { shape }, TrainingSpec::unused()));
        }
        if matches!(typed.model, Some(ModelSpec::Values { .. })) {
            return Err(SpecError::new(
                "model.values",
                "values belong to a method; give a table [method.NAME] instead",
            ));
        }
        let model = typed.model.take().ok_or_else(|| missing("model"))?;
        let training = typed.training.take().ok_or_else(|| missing("training"))?;
        Ok((None, model, training))
    }

    /// Refuses what a method would not do.
    fn check(&self, method: &Name, privacy: &PrivacySpec) -> Result<(), SpecError> {
        if let Some(key) = self.0 {
            let message = format!(
                "the method `{method}` trains no model by gradients, so this means nothing; leave it out"
            );
            return Err(SpecError::new(key, message));
        }
        if !privacy.is_none() {
            let message =
                format!("the method `{method}` adds no noise, so nothing can be promised; leave this out");
            return Err(SpecError::new("privacy", message));
        }
        Ok(())
    }
}
