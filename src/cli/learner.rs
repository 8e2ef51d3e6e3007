//! What learns at a site: the trainer of this program, over the site's records, and the site's own program for external models.

use std::path::Path;
use std::sync::Arc;

use external::ExternalLearner;
use learning::device::select;
use learning::{FileSource, Trainer};
use protocol::{
    Decline, EvaluateOrder, ExampleReleases, Layout, LearnError, Learner, Metrics, Record, RecordCount, Seed,
    Spec, Standardiser, Statistic, Stop, TrainOrder, Trains,
};

use super::failure::{Failure, Kind, OrFail};
use super::folder::SiteFile;

/// See the module. A site has one of them, or both.
pub(super) struct SiteLearner {
    trainer: Option<Trainer>,
    external: Option<ExternalLearner>,
    /// Whether the plan in hand has an external model.
    is_external: bool,
    records: RecordCount,
    ending: Stop,
    empty: Layout,
}

impl SiteLearner {
    /// Of a site of this name. The folder in which the site's own program works is made if it is not there.
    pub(super) fn of(file: &SiteFile, name: &str) -> Result<Self, Failure> {
        let trainer = file.data.as_ref().map(|source| {
            let device = select(&file.device).or_fail(Kind::Configuration, "device")?;
            let trainer = Trainer::new(Box::new(FileSource::new(source.clone())), device);
            Ok(trainer.with_record_count(file.record_count()))
        });
        let ending = Stop::default();
        let external = file.learner.as_ref().map(|settings| {
            let folder = file.learner_folder();
            make_folder(&folder).or_fail(Kind::Run, folder.display())?;
            Ok(ExternalLearner::new(settings.clone(), folder, name).with_ending(ending.clone()))
        });
        let (trainer, external) = (trainer.transpose()?, external.transpose()?);
        let records = file.record_count();
        Ok(Self { trainer, external, is_external: false, records, ending, empty: Layout::default() })
    }

    /// By what is said that the site is to end: its own program is not waited for any longer then.
    pub(super) fn ending(&self) -> Stop {
        self.ending.clone()
    }

    /// Starts the site's own program and compares its model with the plan's, before a run.
    pub(super) fn look(&mut self, spec: &Spec) -> Result<(), LearnError> {
        self.is_external = true;
        match &mut self.external {
            Some(external) => external.look(spec),
            None => self.current().map(|_| ()),
        }
    }

    /// The one for the plan in hand.
    fn current(&mut self) -> Result<&mut dyn Learner, LearnError> {
        if self.is_external {
            let missing = || {
                let message = "the plan's model is external, and this site has no program for it: name one under `[learner]` in site.toml";
                LearnError::new(Decline::Unsupported, message)
            };
            return Ok(self.external.as_mut().ok_or_else(missing)?);
        }
        let missing = || {
            let message = "the plan's model is one that this program trains, on records that site.toml does not name: name them under `[data]`";
            LearnError::new(Decline::Unsupported, message)
        };
        Ok(self.trainer.as_mut().ok_or_else(missing)?)
    }
}

#[cfg(unix)]
fn make_folder(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(not(unix))]
fn make_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)
}

impl Drop for SiteLearner {
    fn drop(&mut self) {
        if let Some(external) = &mut self.external {
            external.end();
        }
    }
}

impl Learner for SiteLearner {
    fn parameter_count(&self, spec: &Spec) -> Option<u64> {
        match spec.external() {
            Some(_) => self.external.as_ref()?.parameter_count(spec),
            None => self.trainer.as_ref()?.parameter_count(spec),
        }
    }

    fn trains(&self) -> Trains {
        match (&self.trainer, &self.external) {
            (_, None) => Trains::BuiltIn,
            (None, Some(_)) => Trains::External,
            (Some(_), Some(_)) => Trains::Both,
        }
    }

    fn prepare(&mut self, spec: &Arc<Spec>) -> Result<(), LearnError> {
        self.is_external = spec.external().is_some();
        self.current()?.prepare(spec)
    }

    fn layout(&self) -> &Layout {
        let current: Option<&dyn Learner> = match self.is_external {
            true => self.external.as_ref().map(|learner| learner as &dyn Learner),
            false => self.trainer.as_ref().map(|learner| learner as &dyn Learner),
        };
        current.map_or(&self.empty, Learner::layout)
    }

    fn initialise(&mut self, seed: Seed) -> Result<Vec<f32>, LearnError> {
        self.current()?.initialise(seed)
    }

    fn statistics(&mut self) -> Result<Vec<Statistic>, LearnError> {
        self.current()?.statistics()
    }

    fn visit_records(
        &mut self,
        standardiser: Option<&Standardiser>,
        visit: &mut dyn FnMut(Record<'_>),
    ) -> Result<(), LearnError> {
        self.current()?.visit_records(standardiser, visit)
    }

    fn record_count(&mut self) -> Result<RecordCount, LearnError> {
        // Whoever trains, the site's file says it.
        Ok(self.records)
    }

    fn take_further(&mut self) -> Vec<f64> {
        self.current().map_or_else(|_| Vec::new(), |learner| learner.take_further())
    }

    fn take_complaint(&mut self) -> Option<String> {
        self.current().ok()?.take_complaint()
    }

    fn example_releases(&mut self) -> Result<Option<ExampleReleases>, LearnError> {
        self.current()?.example_releases()
    }

    fn train(
        &mut self,
        parameters: &mut [f32],
        order: &TrainOrder,
        stop: &Stop,
    ) -> Result<Metrics, LearnError> {
        self.current()?.train(parameters, order, stop)
    }

    fn evaluate(
        &mut self,
        parameters: &[f32],
        order: &EvaluateOrder,
        stop: &Stop,
    ) -> Result<Metrics, LearnError> {
        self.current()?.evaluate(parameters, order, stop)
    }
}
