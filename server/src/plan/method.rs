//! What a plan does: it trains its model, or it follows a method.

use protocol::{ConfigError, ModelSpec, Name, PrivacySpec, SpecError, TrainingSpec};

use super::{EvaluationPlan, FederationConfig, Strategy, UpdateConfig};
use crate::methods::{MethodPlan, Methods};
use crate::schedule::Schedule;

/// What means something to training alone, and nothing to any method.
const OF_TRAINING: [&str; 9] = [
    "model",
    "training",
    "learner",
    "strategy",
    "schedule",
    "aggregation",
    "update",
    "evaluation",
    "personal_layers",
];

/// Refuses the first setting that a method ignores and that stands in the text of a plan, also where it says what it would be by default: who
/// has typed it expects something of it. Nothing is found in a text that is no plan of a known method.
pub(super) fn check_typed(text: &str, methods: &Methods) -> Result<(), ConfigError> {
    let file: toml::Table = crate::config::read_toml(text)?;
    let named = file.get("method").and_then(|table| table.as_table()?.keys().next());
    let Some(name) = named.filter(|name| methods.knows(name)) else { return Ok(()) };
    // `aggregation` has no default: `check_beside` refuses it with a reason of its own.
    let keys = OF_TRAINING.into_iter().chain(["privacy"]).filter(|key| *key != "aggregation");
    let found = keys.into_iter().find_map(|key| Some((key, file.get(key)?)));
    let Some((key, value)) = found else { return Ok(()) };
    let inner = value.as_table().and_then(|table| table.keys().next());
    let key = match inner.filter(|_| !["model", "training", "privacy"].contains(&key)) {
        Some(inner) => format!("{key}.{inner}"),
        None => key.to_owned(),
    };
    let error = if key == "privacy" { no_promise(name) } else { SpecError::new(key, ignored(name)) };
    Err(ConfigError::of(text, &error))
}

fn ignored(method: &str) -> String {
    format!("the method `{method}` trains no model by gradients and ignores this; leave it out")
}

fn no_promise(method: &str) -> SpecError {
    let message = format!("the method `{method}` adds no noise, so nothing can be promised; leave this out");
    SpecError::new("privacy", message)
}

impl FederationConfig {
    /// The plan as text, with every default written out, but for what its method ignores.
    ///
    /// # Errors
    /// [`toml::ser::Error`], where a number of it has no form in TOML.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let mut table = toml::Table::try_from(self)?;
        if self.method.is_some() {
            for key in OF_TRAINING.into_iter().chain(["privacy"]) {
                table.remove(key);
            }
        }
        toml::to_string_pretty(&table)
    }
}

/// The first setting that means something to training alone, where one was typed that is not the default.
pub(super) struct BesideMethod(Option<&'static str>);

impl BesideMethod {
    pub(super) fn of(typed: &FederationConfig) -> Self {
        let of_training = [
            ("model", typed.model.is_some()),
            ("training", typed.training.is_some()),
            ("learner", !typed.learner.is_absent()),
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
        if let ModelSpec::External(external) = &model
            && external.is_known()
        {
            let message = "the tensors are those of the start file, which `run submit` and `simulate` read; leave this out";
            return Err(SpecError::new("model.external.tensors", message));
        }
        let training = typed.training.take();
        let training = match (&model, training) {
            (ModelSpec::External(_), training) => training.unwrap_or_default().external()?,
            (_, Some(training)) => training.built_in()?,
            (_, None) => return Err(missing("training")),
        };
        Ok((None, model, training))
    }

    /// Refuses what a method would not do.
    fn check(&self, method: &Name, privacy: &PrivacySpec) -> Result<(), SpecError> {
        if let Some(key) = self.0 {
            return Err(SpecError::new(key, ignored(method.as_str())));
        }
        if !privacy.is_none() {
            return Err(no_promise(method.as_str()));
        }
        Ok(())
    }
}
