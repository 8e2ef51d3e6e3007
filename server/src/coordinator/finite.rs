//! The one rule for everything that becomes the run's model: no number of it may be infinite or none at all.
//!
//! Whatever workflow, rule or optimizer made it. A release that breaks the rule is not made: the model of the last release stands, where there is one,
//! and the run ends with what was found where, and what to change.

use std::sync::Arc;

use privacy::first_not_finite;
use protocol::{Parameters, Standardiser};

use super::Coordinator;
use crate::optimizer::ModelUpdate;
use crate::workflow::Effect;

impl Coordinator {
    /// The same coordinator, which calls the tensors of its model by these names, in layout order, when it says what is wrong with one.
    #[must_use]
    pub fn with_tensor_names(mut self, names: Vec<String>) -> Self {
        self.tensor_names = names;
        self
    }

    /// Does what follows from a step to model and standardiser; nothing of it where a number would not be finite, or where there are not as
    /// many as the model has. Gives whether the model was released.
    ///
    /// # Errors
    /// A sentence: what was found, and what to change.
    pub(super) fn apply(&mut self, effect: &mut Effect) -> Result<(), String> {
        match effect {
            Effect::StepModel(update) => self.step(update),
            Effect::SetModel(model) => {
                let values = model.values();
                self.check_length("the method's values", values.len())?;
                self.check_finite(values, || {
                    let name = self.plan.method.as_ref().map_or("NAME", |method| method.name.as_str());
                    format!(
                        "lower or raise the settings of [method.{name}], and see whether a site's records have values that no record can have \
                         (data.standardise = \"federated\" brings large ones near to 1)"
                    )
                })?;
                self.state.model = Arc::new(std::mem::replace(model, Parameters::new(Vec::new())));
                (self.rounded, self.sha256) = (None, None);
                Ok(())
            }
            Effect::Standardise(standardiser) if !standardiser.fits(standardiser.mean.len()) => {
                Err("the sites' statistics give a mean or a deviation that is not finite, so nothing is standardised by them; see whether \
                     a column has values that no record can have, or leave out data.standardise = \"federated\""
                    .to_owned())
            }
            Effect::Standardise(standardiser) => {
                let none = Standardiser { mean: Vec::new(), std: Vec::new() };
                self.state.standardiser = Some(Arc::new(std::mem::replace(standardiser, none)));
                Ok(())
            }
            Effect::Measured | Effect::Nothing => Ok(()),
        }
    }

    /// The optimizer's step, or none.
    fn step(&mut self, update: &ModelUpdate) -> Result<(), String> {
        self.check_length("the update", update.len())?;
        if let ModelUpdate::Unprotected(vector) = update {
            // What a rule makes is remembered and moved in f32.
            let vector: Vec<f32> = vector.iter().map(|value| *value as f32).collect();
            self.check_finite(&vector, || self.advice(update))?;
        }
        // An optimizer works in place, and of what it spoils nothing can be had back.
        let before = Arc::clone(&self.state.model);
        self.state.optimizer.clear();
        self.optimizer.step(Arc::make_mut(&mut self.state.model).values_mut(), update);
        let state = self.optimizer.state();
        let values = std::iter::once(self.state.model.values()).chain(state.iter().map(|vector| &vector[..]));
        let checked = { values }.try_for_each(|values| self.check_finite(values, || self.advice(update)));
        if checked.is_err() {
            self.state.model = before;
            return checked;
        }
        (self.rounded, self.sha256) = (None, None);
        self.state.optimizer = state;
        Ok(())
    }

    fn check_length(&self, what: &str, found: usize) -> Result<(), String> {
        match self.state.model.len() {
            expected if expected == found => Ok(()),
            expected => Err(format!(
                "{what} number {found} and the model's {expected}; this is a defect of the method"
            )),
        }
    }

    fn check_finite(&self, values: &[f32], advice: impl Fn() -> String) -> Result<(), String> {
        let Some(place) = first_not_finite(values) else { return Ok(()) };
        let (tensor, place_within) = self.tensor_of(place);
        Err(format!(
            "value {place_within} of {tensor} would be {}, which is not finite in f32, so {}; {}",
            values[place],
            self.what_stands(),
            advice()
        ))
    }

    /// What is left of a run whose step gives no model.
    pub(super) fn what_stands(&self) -> &'static str {
        match self.state.releases {
            0 => "no model is released",
            _ => "the model of the last release stands",
        }
    }

    /// The tensor in which a value is, and its place within it, from 0.
    fn tensor_of(&self, place: usize) -> (String, usize) {
        let mut first = 0;
        for (number, length) in self.tensors.iter().enumerate() {
            if place < first + length {
                let name = self.tensor_names.get(number);
                let numbered = || format!("tensor {number} of {} of the model", self.tensors.len());
                return (name.map_or_else(numbered, |name| format!("`{name}`")), place - first);
            }
            first += length;
        }
        ("the model".to_owned(), place)
    }

    /// What to change where an optimizer's step went astray.
    fn advice(&self, update: &ModelUpdate) -> String {
        let rule = match update {
            ModelUpdate::Unprotected(_) => "the settings of [aggregation] and ",
            ModelUpdate::Released(_) => "",
        };
        let noise = match &self.plan.spec.privacy.central {
            Some(_) => ", update.norm_max (the noise is scaled to it)",
            None => ", update.norm_max",
        };
        let optimizer = match self.plan.strategy.adaptive() {
            Some(_) => "the strategy's learning_rate and tau",
            None => "the strategy's learning_rate, if it has one,",
        };
        format!(
            "lower training.optimizer's learning_rate{noise}, and bring {rule}{optimizer} nearer to the defaults"
        )
    }
}
