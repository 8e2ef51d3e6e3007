//! The ways in which answers used to speak of records, put back one at a time around the real site.

use std::sync::Arc;

use learning::device::Device;
use learning::{DataSource, Trainer};
use protocol::{
    Contribution, Decline, EvaluateOrder, ExampleReleases, Layout, LearnError, Learner, Metrics, Outcome,
    RecordCount, Seed, Spec, Statistic, Stop, Task, TrainOrder, Work,
};

use super::site::Records;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mutant {
    /// One record that cannot be used ends the training.
    RecordRefused,
    /// A record whose cells or label are huge makes the loss unsound, and that ends the training.
    LossTold,
    /// A record is read when the learner is made ready, before anything is reserved.
    ReadEarly,
    /// What is charged and released follows from the true number of records.
    RecordsCounted,
    /// The permit is for the true number of records, whatever is reserved.
    StepsCounted,
    /// An update weighs as many as there are records.
    WeightTold,
    /// Metrics leave beside the promise.
    MetricsTold,
    /// An evaluation that tells nothing reads the records, and fails with them.
    EvaluationReads,
    /// What came to nothing is cancelled.
    Refunded,
    /// The detail of a refusal says how many records there are.
    DetailTold,
}

impl Mutant {
    pub(crate) const ALL: [Self; 10] = [
        Self::RecordRefused,
        Self::LossTold,
        Self::ReadEarly,
        Self::RecordsCounted,
        Self::StepsCounted,
        Self::WeightTold,
        Self::MetricsTold,
        Self::EvaluationReads,
        Self::Refunded,
        Self::DetailTold,
    ];

    /// The site's learner with the flaw in it.
    pub(crate) fn learner(self, trainer: Trainer, records: Records) -> Box<dyn Learner> {
        Box::new(Flawed { trainer, records, mutant: self, spec: None })
    }

    /// Whether what ends in an error costs nothing.
    pub(crate) fn refunds(self) -> bool {
        self == Self::Refunded
    }

    /// Puts the flaw into an answer, where it is one of the participant's.
    pub(crate) fn change(self, outcome: &mut Outcome, task: &Task, records: &Records, declared: Option<u64>) {
        match (self, outcome) {
            (Self::WeightTold, Outcome::Done(done)) if done.points().is_some() && declared.is_none() => {
                done.weight = u32::try_from(records.len()).unwrap();
            }
            (Self::MetricsTold, Outcome::Done(Contribution { metrics: Some(metrics), .. })) => {
                if let Ok(measured) = measure(task, records) {
                    *metrics = measured;
                }
            }
            (Self::EvaluationReads, outcome)
                if outcome.contribution().is_some_and(|done| done.blocks.is_empty()) =>
            {
                if let Err(error) = measure(task, records) {
                    *outcome = Outcome::Declined { reason: error.reason, detail: String::new() };
                }
            }
            (Self::DetailTold, Outcome::Declined { reason: Decline::Budget, detail }) => {
                *detail = format!("{} records", records.len());
            }
            _ => {}
        }
    }
}

/// What the task's model gives on the records, by a learner without a promise.
fn measure(task: &Task, records: &Records) -> Result<Metrics, LearnError> {
    let (Work::Train { model, .. } | Work::Evaluate { model }) = &task.work else {
        return Err(LearnError::new(Decline::Unsupported, "no model"));
    };
    let mut spec = (*task.spec).clone();
    spec.privacy = Default::default();
    spec.personal_layers.clear();
    let mut trainer = Trainer::new(Box::new(records.clone()), Device::Cpu);
    trainer.prepare(&Arc::new(spec))?;
    let order = EvaluateOrder { standardiser: None };
    trainer.evaluate(model.values(), &order, &Stop::default())
}

/// A learner with a flaw.
struct Flawed {
    trainer: Trainer,
    records: Records,
    mutant: Mutant,
    spec: Option<Arc<Spec>>,
}

impl Flawed {
    /// As the readers of plans without a promise: every record must be usable.
    fn read(&mut self, spec: &Spec) -> Result<(), LearnError> {
        let mut open = spec.clone();
        open.privacy = Default::default();
        self.records.load(&open)?.prepared(&open, None).map(|_| ())
    }

    fn is_huge(&mut self, spec: &Spec) -> bool {
        let Ok(data) = self.records.load(spec) else { return false };
        data.train.dataset.features.to_vec().iter().any(|cell| cell.abs() > 1e15)
    }
}

impl Learner for Flawed {
    fn parameter_count(&self, spec: &Spec) -> Option<u64> {
        self.trainer.parameter_count(spec)
    }

    fn prepare(&mut self, spec: &Arc<Spec>) -> Result<(), LearnError> {
        if self.mutant == Mutant::ReadEarly {
            self.read(spec)?;
        }
        self.trainer.prepare(spec)?;
        self.spec = Some(Arc::clone(spec));
        Ok(())
    }

    fn layout(&self) -> &Layout {
        self.trainer.layout()
    }

    fn initialise(&mut self, seed: Seed) -> Result<Vec<f32>, LearnError> {
        self.trainer.initialise(seed)
    }

    fn statistics(&mut self) -> Result<Vec<Statistic>, LearnError> {
        self.trainer.statistics()
    }

    fn record_count(&mut self) -> Result<RecordCount, LearnError> {
        match self.mutant {
            Mutant::RecordsCounted => Ok(RecordCount::Public(self.records.len())),
            _ => self.trainer.record_count(),
        }
    }

    fn take_complaint(&mut self) -> Option<String> {
        self.trainer.take_complaint()
    }

    fn example_releases(&mut self) -> Result<Option<ExampleReleases>, LearnError> {
        let releases = self.trainer.example_releases()?;
        let spec = self.spec.as_ref().map(|spec| spec.training.clone());
        match (self.mutant, spec) {
            (Mutant::StepsCounted | Mutant::RecordsCounted, Some(training)) if releases.is_some() => {
                Ok(ExampleReleases::of(&training, RecordCount::Public(self.records.len())))
            }
            _ => Ok(releases),
        }
    }

    fn train(
        &mut self,
        parameters: &mut [f32],
        order: &TrainOrder,
        stop: &Stop,
    ) -> Result<Metrics, LearnError> {
        if let Some(spec) = self.spec.clone() {
            if matches!(self.mutant, Mutant::RecordRefused | Mutant::Refunded) {
                self.read(&spec)?;
            }
            if self.mutant == Mutant::LossTold && self.is_huge(&spec) {
                return Err(LearnError::new(Decline::NotFinite, "the loss is above 1e30"));
            }
        }
        self.trainer.train(parameters, order, stop)
    }

    fn evaluate(
        &mut self,
        parameters: &[f32],
        order: &EvaluateOrder,
        stop: &Stop,
    ) -> Result<Metrics, LearnError> {
        self.trainer.evaluate(parameters, order, stop)
    }
}
