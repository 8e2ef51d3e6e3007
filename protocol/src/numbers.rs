//! Bounds on the numbers of a task, judged from the task alone, before a site reads a record.
//!
//! A number that is not finite, or so large or so small that honest arithmetic overflows on some record, turns the site's
//! answer into a question about its records: "is there one that overflows?". So such numbers are refused whatever the
//! records are. The bounds are far from what any sensible plan has. What the bounds let through and a record breaks all the
//! same counts as a zero where the record is used; it is never an error.

use privacy::first_not_finite;

use crate::{
    DataSpec, Decline, OptimizerSpec, Positive, Spec, Standardise, Standardiser, StepId, Task, Work,
};

/// The largest magnitude of a cell that a training under a promise for records works on; larger ones count as this.
pub const CELL_MAX: f32 = 1e9;

/// The largest magnitude of a parameter.
const PARAMETER_MAX: f32 = 1e9;
/// The largest magnitude of a mean, a deviation, or a value for missing cells. A column may have any unit: cells are standardised in
/// f64 and clamped to [`CELL_MAX`] then, so that a distance in deviations that f64 cannot hold counts as that, and none is NaN.
const CELL_STATISTIC_MAX: f64 = 1e100;
/// The least deviation.
const DEVIATION_MIN: f64 = 1e-100;
/// The largest learning rate, on its own and with the schedule's factor; the same for weight decay and the proximal term.
const RATE_MAX: f64 = 1e6;
/// Norms and noise multipliers are within this and one over it.
const NORM_MAX: f64 = 1e9;
/// The most steps of a private training, on each of which noise is drawn.
const STEPS_MAX: u64 = 1 << 20;

/// The most passes over the records in one task, under any plan: a site must not be kept at work for ever.
const EPOCHS_MAX: u32 = 1 << 20;

/// Why a task is refused for its numbers. It follows from the task alone, so the server may read all of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TaskFault {
    /// The reason in one word.
    pub reason: Decline,
    /// Which number, and what it may be.
    pub message: String,
}

impl TaskFault {
    fn unsupported(message: String) -> Self {
        Self { reason: Decline::Unsupported, message }
    }
}

impl Task {
    /// Whether the task is what it is called, which policy and books go by, and its own numbers are such that a site can begin
    /// to work. Parameters are finite and epochs are bounded under any plan; under a promise that holds against the server all numbers are bounded, and no sums are asked for.
    ///
    /// # Errors
    /// [`TaskFault`] names the number at fault and its bounds.
    pub fn check_numbers(&self) -> Result<(), TaskFault> {
        let asked = match self.work {
            Work::Statistics { .. } => StepId::STATISTICS,
            Work::Train { .. } => StepId::TRAIN,
            Work::Evaluate { .. } => StepId::EVALUATE,
            Work::Method(_) => StepId::method(0),
        };
        if self.id.step.family() != asked.family() {
            let (said, asked) = (self.id.step.name(), asked.family());
            let message = format!("the task is called `{said}` and its work is `{asked}`");
            return Err(TaskFault::unsupported(message));
        }
        let parameters = self.work.model().map_or(&[][..], |model| model.values());
        if first_not_finite(parameters).is_some() {
            let message = "the model that the server sent is not finite".into();
            return Err(TaskFault { reason: Decline::NotFinite, message });
        }
        if self.spec.training.epochs > EPOCHS_MAX {
            let epochs = self.spec.training.epochs;
            let message = format!("training.epochs is {epochs}; at most {EPOCHS_MAX}");
            return Err(TaskFault::unsupported(message));
        }
        if !self.spec.privacy.holds_against_server() {
            return Ok(());
        }
        if let Some(place) = parameters.iter().position(|value| value.abs() > PARAMETER_MAX) {
            let value = parameters[place];
            let message = format!(
                "parameter {place} of the model that the server sent is {value:e}; at most {PARAMETER_MAX:e}"
            );
            return Err(TaskFault::unsupported(message));
        }
        if let Some(standardiser) = &self.standardiser {
            check_standardiser(standardiser)?;
        }
        match &self.work {
            Work::Statistics { .. } => {
                let message = "the sums of a statistics round carry no noise, and this plan's promise holds against the server";
                return Err(TaskFault::unsupported(message.into()));
            }
            Work::Train { learning_rate_scale, norm_max, .. } => {
                let rate = learning_rate(&self.spec) * learning_rate_scale;
                within("the learning rate with the schedule's factor", rate, 0.0, RATE_MAX)?;
                norm_max.map_or(Ok(()), |norm| norm_within("the round's update.norm_max", norm))?;
            }
            Work::Evaluate { .. } => {}
            Work::Method(work) => {
                let message = format!(
                    "what the method `{}` asks for carries no noise, and this plan's promise holds against the server",
                    work.method
                );
                return Err(TaskFault::unsupported(message));
            }
        }
        self.spec.check_numbers()
    }
}

impl Spec {
    /// The plan's own numbers, under a promise that holds against the server.
    fn check_numbers(&self) -> Result<(), TaskFault> {
        within("training.optimizer's learning rate", learning_rate(self), 0.0, RATE_MAX)?;
        within("training.optimizer's weight decay", weight_decay(self), 0.0, RATE_MAX)?;
        within("strategy.mu", self.proximal_mu, 0.0, RATE_MAX)?;
        norm_within("update.norm_max", self.update.norm_max)?;
        if let Some(norm) = self.training.gradient_norm_max {
            norm_within("training.gradient_norm_max", norm)?;
        }
        if let Some(local) = &self.privacy.local {
            norm_within("privacy.local.noise_multiplier", local.noise_multiplier)?;
        }
        if let Some(examples) = &self.privacy.examples {
            norm_within("privacy.examples.noise_multiplier", examples.noise_multiplier)?;
            norm_within("privacy.examples.norm_max", examples.norm_max)?;
        }
        match &self.data {
            DataSpec::Own => Ok(()),
            DataSpec::Tensor(tensor) => norm_within("data.tensor.divide_by", tensor.divide_by),
            DataSpec::Table(table) => {
                if let crate::Missing::Constant(value) = table.missing {
                    within("data.table.missing", value, -CELL_STATISTIC_MAX, CELL_STATISTIC_MAX)?;
                }
                match &table.standardise {
                    Standardise::Given { mean, std } => check_standardiser(&Standardiser {
                        mean: mean.clone(),
                        std: std.iter().map(|std| std.value()).collect(),
                    }),
                    Standardise::None | Standardise::Federated | Standardise::Site => Ok(()),
                }
            }
        }
    }
}

/// Whether a private training of so many steps is one that a site begins.
///
/// # Errors
/// [`TaskFault`] with the number and its bound.
pub(crate) fn check_steps(steps: u64) -> Result<(), TaskFault> {
    if steps <= STEPS_MAX {
        return Ok(());
    }
    let message = format!(
        "the training would make {steps} noised steps; at most {STEPS_MAX}: lower training.epochs or raise batch_size"
    );
    Err(TaskFault::unsupported(message))
}

fn check_standardiser(standardiser: &Standardiser) -> Result<(), TaskFault> {
    for mean in &standardiser.mean {
        within("a mean of data.table.standardise", *mean, -CELL_STATISTIC_MAX, CELL_STATISTIC_MAX)?;
    }
    for std in &standardiser.std {
        within("a deviation of data.table.standardise", *std, DEVIATION_MIN, CELL_STATISTIC_MAX)?;
    }
    Ok(())
}

fn learning_rate(spec: &Spec) -> f64 {
    spec.training.optimizer.learning_rate()
}

impl OptimizerSpec {
    /// The learning rate before any schedule.
    pub fn learning_rate(&self) -> f64 {
        match self {
            Self::Sgd { learning_rate, .. }
            | Self::Adam { learning_rate }
            | Self::AdamW { learning_rate, .. } => learning_rate.value(),
        }
    }
}

fn weight_decay(spec: &Spec) -> f64 {
    match spec.training.optimizer {
        OptimizerSpec::Sgd { weight_decay, .. } | OptimizerSpec::AdamW { weight_decay, .. } => weight_decay,
        OptimizerSpec::Adam { .. } => 0.0,
    }
}

fn norm_within(what: &str, value: Positive) -> Result<(), TaskFault> {
    within(what, value.value(), 1.0 / NORM_MAX, NORM_MAX)
}

/// NaN is within nothing.
fn within(what: &str, value: f64, least: f64, most: f64) -> Result<(), TaskFault> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(TaskFault::unsupported(format!("{what} is {value:e}; from {least:e} to {most:e}")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Parameters, Round, RunId, TaskId};

    const NOISE: &str =
        r#"{"examples": {"noise_multiplier": 1.0, "norm_max": 1.0, "delta": 1e-5, "epsilon_max": 1.0}}"#;

    fn task(privacy: &str, more: &str, parameters: &[f32]) -> Task {
        let json = format!(
            r#"{{"model": "logistic", "cohort_max": 4, "update": {{"weights": "uniform"}}, "privacy": {privacy},
            "data": {{"table": {{"label": "y", "target": {{"classes": 2}}, "features": ["a"] {more}}}}},
            "training": {{"batch_size": 8, "optimizer": {{"sgd": {{"learning_rate": 0.1}}}}}}}}"#
        );
        let model = Arc::new(Parameters::new(parameters.to_vec()));
        Task {
            id: TaskId::new(RunId(1), Round(1), StepId::TRAIN),
            spec: Arc::new(Spec::from_json(&json).unwrap()),
            seed: None,
            standardiser: None,
            work: Work::Train { model, learning_rate_scale: 1.0, norm_max: None },
        }
    }

    fn fault(task: &Task) -> Option<String> {
        task.check_numbers().err().map(|fault| fault.message)
    }

    #[test]
    fn numbers_up_to_their_bounds_pass_and_beyond_them_are_named() {
        assert_eq!(fault(&task(NOISE, "", &[1e9, -1e9, 1e-40, 0.0])), None);
        for (parameters, says) in [([0.0, 1.001e9], "parameter 1"), ([f32::NAN, 0.0], "not finite")] {
            assert!(fault(&task(NOISE, "", &parameters)).unwrap().contains(says));
        }
        let given = |mean: &str, std: &str| {
            task(
                NOISE,
                &format!(r#", "standardise": {{"given": {{"mean": [{mean}], "std": [{std}]}}}}"#),
                &[0.0],
            )
        };
        assert_eq!(fault(&given("-1e100", "1e-100")), None);
        assert!(fault(&given("1.1e100", "1")).unwrap().contains("a mean"));
        assert!(fault(&given("0", "0.9e-100")).unwrap().contains("a deviation"));
        let mut fast = task(NOISE, "", &[0.0]);
        let Work::Train { learning_rate_scale, .. } = &mut fast.work else { unreachable!("it trains") };
        *learning_rate_scale = 1.1e7;
        assert!(fault(&fast).unwrap().contains("the learning rate"));
        assert!(check_steps(STEPS_MAX).is_ok() && check_steps(STEPS_MAX + 1).is_err());
    }

    #[test]
    fn without_a_promise_against_the_server_only_finite_parameters_are_asked_for() {
        assert_eq!(fault(&task("{}", "", &[1e30])), None);
        assert!(fault(&task("{}", "", &[f32::INFINITY])).is_some());
        let mut endless = task("{}", "", &[0.0]);
        Arc::make_mut(&mut endless.spec).training.epochs = EPOCHS_MAX + 1;
        assert!(fault(&endless).unwrap().contains("training.epochs"));
    }

    #[test]
    fn a_task_is_what_it_is_called() {
        let mut task = task("{}", "", &[0.0]);
        task.id.step = StepId::EVALUATE;
        assert_eq!(fault(&task).unwrap(), "the task is called `evaluate` and its work is `train`");
    }
}
