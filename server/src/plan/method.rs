//! What a plan may not have beside a method.

use protocol::{Name, PrivacySpec, SpecError};

use super::{EvaluationPlan, FederationConfig, Strategy, UpdateConfig};
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
            ("update", typed.update != UpdateConfig::default()),
            ("evaluation", typed.evaluation != EvaluationPlan::default()),
            ("personal_layers", !typed.personal_layers.is_empty()),
        ];
        Self(of_training.into_iter().find(|(_, is_typed)| *is_typed).map(|(key, _)| key))
    }

    /// Refuses what a method would not do.
    pub(super) fn check(&self, method: &Name, privacy: &PrivacySpec) -> Result<(), SpecError> {
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
