//! The methods that a plan may name beside federated training. Each stands in a file of its own and is registered by whoever builds the
//! program; nothing in this crate names one.
//!
//! ```toml
//! [method.NAME]
//! # what NAME reads
//! ```
//!
//! Rules that see every update, and steps before them, are named in a plan's `[aggregation]` and registered in the same way.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use protocol::{
    ANSWER_BYTES_MAX, BLOCKS_MAX, DataSpec, Name, PayloadSpec, Positive, SpecError, StepId, StepLabel,
};
use serde::de::DeserializeOwned;

use crate::config::ConfigError;
use crate::plan::{AggregationConfig, Named, Plan};
use crate::workflow::{AggregationRule, PreStep, Workflow};

/// A method, as plans name it.
pub trait Method: Send + Sync {
    /// The name: a plan asks for it by a table `[method.NAME]`.
    fn name(&self) -> Name;

    /// The version that sites must know.
    fn version(&self) -> u16;

    /// Reads the method's table of a plan. [`read_settings`] does most of it.
    ///
    /// # Errors
    /// [`SpecError`] whose key is the setting's name in that table.
    fn plan(&self, settings: toml::Table, data: &DataSpec) -> Result<Arc<dyn PlannedMethod>, SpecError>;
}

/// A method with its settings.
pub trait PlannedMethod: fmt::Debug + Send + Sync {
    /// The shape of the values that it computes, which are the run's model. They begin at random, uniform from -1 to 1, and are kept, told
    /// and compared as f32.
    fn shape(&self) -> Vec<usize>;

    /// The steps that a run of this method puts to sites, by the names that logs and checks call them, and what an answer to each carries at
    /// most. A plan is refused whose answers would be larger than any site may send.
    fn steps(&self) -> Vec<MethodStep>;

    /// Whether each of its rounds may end with a part of those who were asked, so that a plan may ask more clients than a round needs
    /// (`[cohort] oversample`). Its steps then end as [`CohortPlan::close`](crate::CohortPlan::close) says.
    fn may_oversample(&self) -> bool {
        false
    }

    /// What a run of this method does. `plan` is the run's plan.
    ///
    /// # Errors
    /// [`SpecError`] where the plan cannot be carried out.
    fn workflow(&self, plan: &Arc<Plan>) -> Result<Box<dyn Workflow>, SpecError>;
}

/// A step of a method, as logs and checks speak of it.
#[derive(Clone, Debug, PartialEq)]
pub struct MethodStep {
    /// Its number.
    pub step: StepId,
    /// Its name, of a word or two.
    pub name: Name,
    /// What an answer carries, at most.
    pub answer: PayloadSpec,
}

/// What a plan says to a rule or step beside its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Corrupted clients among those of a round, at most: f.
    pub corrupted: usize,
    /// Updates of the smallest round of which nobody is missing: n, less what earlier steps have put together.
    pub updates: usize,
}

/// A rule that sees every update, as plans name it.
pub trait Rule: Send + Sync {
    /// The name.
    fn name(&self) -> Name;

    /// Reads its settings. [`read_settings`] does most of it.
    ///
    /// # Errors
    /// [`SpecError`] whose key is the setting's name.
    fn plan(&self, settings: toml::Table, given: &Given) -> Result<Arc<dyn AggregationRule>, SpecError>;
}

/// A step before a rule, as plans name it.
pub trait Step: Send + Sync {
    /// The name.
    fn name(&self) -> Name;

    /// Reads its settings. [`read_settings`] does most of it.
    ///
    /// # Errors
    /// [`SpecError`] whose key is the setting's name.
    fn plan(&self, settings: toml::Table, given: &Given) -> Result<Box<dyn PreStep>, SpecError>;
}

/// The method of a plan.
#[derive(Clone, Debug)]
pub struct MethodPlan {
    /// Its name.
    pub name: Name,
    /// The version that sites must know.
    pub version: u16,
    /// What its settings mean.
    pub planned: Arc<dyn PlannedMethod>,
}

impl MethodPlan {
    /// What logs call a step.
    pub fn label_of(&self, step: StepId) -> StepLabel {
        let named = self.planned.steps().into_iter().find(|one| one.step == step);
        let own = named.and_then(|one| one.name.as_literal());
        let label = self.name.as_literal().zip(own).map(|(method, own)| StepLabel::new(method, own));
        label.unwrap_or_default()
    }

    /// Refuses answers that no site could send.
    pub(crate) fn check_answers(&self) -> Result<(), SpecError> {
        let key = || format!("method.{}", self.name);
        for MethodStep { name, answer, .. } in self.planned.steps() {
            let step_name = format!("`{name}`");
            if answer.blocks.len() > BLOCKS_MAX {
                let found = answer.blocks.len();
                let message = format!(
                    "an answer to its step {step_name} has {found} blocks; at most {BLOCKS_MAX} are allowed"
                );
                return Err(SpecError::new(key(), message));
            }
            let bytes = answer.bytes_max();
            if bytes.is_none_or(|bytes| bytes > ANSWER_BYTES_MAX) {
                let bytes = bytes.map_or_else(|| "more than 2^64".to_owned(), |bytes| bytes.to_string());
                let message = format!(
                    "each site's answer to its step {step_name} has {bytes} bytes; at most {ANSWER_BYTES_MAX} are allowed: lower the settings \
                     that multiply them, or give fewer columns"
                );
                return Err(SpecError::new(key(), message));
            }
        }
        Ok(())
    }
}

/// The settings of a method or rule as its own type, which should deny unknown fields.
///
/// # Errors
/// [`SpecError`] says what is not understood; its key is the setting, or empty where one is missing.
pub fn read_settings<T: DeserializeOwned>(settings: toml::Table) -> Result<T, SpecError> {
    protocol::read_table(&settings)
}

/// The range of settings that numbers of a model are multiplied or divided by. Beyond it they are lost in rounding, or infinite.
const MAGNITUDE_MIN: f64 = 1e-12;
/// See [`MAGNITUDE_MIN`].
pub(crate) const MAGNITUDE_MAX: f64 = 1e12;

/// Refuses a factor, divisor or radius by which no model moves, or each one breaks.
///
/// # Errors
/// [`SpecError`] of the setting `key` when it is not from 1e-12 to 1e12.
pub fn check_magnitude(value: Positive, key: &str) -> Result<(), SpecError> {
    let (least, most) = (MAGNITUDE_MIN, MAGNITUDE_MAX);
    if (least..=most).contains(&value.value()) {
        return Ok(());
    }
    Err(SpecError::new(key, format!("{:e} is not from {least:e} to {most:e}", value.value())))
}

/// The methods that plans may name. Cheap to clone.
#[derive(Clone, Default)]
pub struct Methods {
    methods: BTreeMap<Name, Arc<dyn Method>>,
    rules: BTreeMap<Name, Arc<dyn Rule>>,
    steps: BTreeMap<Name, Arc<dyn Step>>,
}

impl Methods {
    /// The same, and this method; another of its name gives way.
    #[must_use]
    pub fn with(mut self, method: impl Method + 'static) -> Self {
        self.methods.insert(method.name(), Arc::new(method));
        self
    }

    /// The same, and this rule; another of its name gives way.
    #[must_use]
    pub fn with_rule(mut self, rule: impl Rule + 'static) -> Self {
        self.rules.insert(rule.name(), Arc::new(rule));
        self
    }

    /// The same, and this step before a rule; another of its name gives way.
    #[must_use]
    pub fn with_step(mut self, step: impl Step + 'static) -> Self {
        self.steps.insert(step.name(), Arc::new(step));
        self
    }

    /// Whether there is a method of this name.
    pub(crate) fn knows(&self, name: &str) -> bool {
        name.parse().is_ok_and(|name: Name| self.methods.contains_key(&name))
    }

    /// Refuses a table that names a rule, or a step before it, that is not registered.
    pub(crate) fn check_names(&self, typed: &AggregationConfig) -> Result<(), SpecError> {
        found(&self.rules, "aggregation.rule", "rule", &typed.rule)?;
        typed
            .before
            .iter()
            .try_for_each(|step| found(&self.steps, "aggregation.before", "step", step).map(|_| ()))
    }

    /// The rule that a plan names.
    pub(crate) fn rule(&self, typed: &Named, given: &Given) -> Result<Arc<dyn AggregationRule>, SpecError> {
        let rule = found(&self.rules, "aggregation.rule", "rule", typed)?;
        rule.plan(typed.settings.clone(), given)
            .map_err(|error| within(&format!("aggregation.rule.{}", typed.name), error))
    }

    /// The step that a plan names.
    pub(crate) fn step(&self, typed: &Named, given: &Given) -> Result<Box<dyn PreStep>, SpecError> {
        let step = found(&self.steps, "aggregation.before", "step", typed)?;
        step.plan(typed.settings.clone(), given).map_err(|error| {
            let message = if error.key.is_empty() {
                error.message
            } else {
                format!("{}: {}", error.key, error.message)
            };
            SpecError::new("aggregation.before", format!("{}: {message}", typed.name))
        })
    }

    /// Reads the text of a `federation.toml` that may name these methods.
    ///
    /// # Errors
    /// As [`Plan::parse`].
    pub fn parse(&self, text: &str) -> Result<Plan, ConfigError> {
        Plan::parse_with(text, self)
    }

    /// The one table of `[method]`, read by the method that it names.
    pub(crate) fn plan(&self, typed: toml::Table, data: &DataSpec) -> Result<MethodPlan, SpecError> {
        let mut tables = typed.into_iter();
        let (Some((name, settings)), None) = (tables.next(), tables.next()) else {
            return Err(SpecError::new("method", "give one method, as a table [method.NAME]"));
        };
        let key = format!("method.{name}");
        let method = name.parse().ok().and_then(|name: Name| self.methods.get(&name));
        let Some(method) = method else {
            let known = known(&self.methods);
            let message = format!("this program knows no such method; it knows: {known}");
            return Err(SpecError::new(key, message));
        };
        let toml::Value::Table(settings) = settings else {
            return Err(SpecError::new(key, "give a table"));
        };
        let planned = method.plan(settings, data).map_err(|error| within(&key, error))?;
        Ok(MethodPlan { name: method.name(), version: method.version(), planned })
    }
}

/// The names of what is registered.
fn known<T: ?Sized>(registered: &BTreeMap<Name, Arc<T>>) -> String {
    match registered.is_empty() {
        true => "none".to_owned(),
        false => registered.keys().map(Name::as_str).collect::<Vec<_>>().join(", "),
    }
}

/// What is registered under the name that was typed.
fn found<'a, T: ?Sized>(
    registered: &'a BTreeMap<Name, Arc<T>>,
    key: &str,
    what: &str,
    typed: &Named,
) -> Result<&'a Arc<T>, SpecError> {
    let found = typed.name.parse().ok().and_then(|name: Name| registered.get(&name));
    found.ok_or_else(|| {
        let message =
            format!("this program knows no {what} `{}`; it knows: {}", typed.name, known(registered));
        SpecError::new(key, message)
    })
}

/// The error of a setting in the table `key`.
fn within(key: &str, error: SpecError) -> SpecError {
    let dot = if error.key.is_empty() { "" } else { "." };
    SpecError::new(format!("{key}{dot}{}", error.key), error.message)
}

impl fmt::Debug for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.methods.keys())
            .entries(self.rules.keys())
            .entries(self.steps.keys())
            .finish()
    }
}
