//! The trainer: one resident model, one site's records, and the work a [`Learner`] is asked for.
//!
//! One trainer works on one core and starts no threads; with the same spec, parameters, records and seed it gives the same
//! bits. It never talks to a network, and it keeps nothing of one round for the next but caches.
#![expect(
    clippy::disallowed_methods,
    reason = "the seconds a site worked are measured here, and decide nothing"
)]

mod autograd;
mod batches;
mod closed;
mod engine;
mod gradients;
mod private;
mod profile;
mod steps;

use std::sync::Arc;
use std::time::Instant;

use candle_core::Device;
use privacy::first_not_finite;
use privacy::noise::{EntropyError, NoiseSource};
use privacy::{counted, verb};
use protocol::{
    Decline, EvaluateOrder, ExampleReleases, Label, Layout, LearnError, Learner, Metrics, ModelSpec, Record,
    RecordCount, Round, Seed, Spec, Standardiser, Statistic, Stop, Tensor, TrainOrder,
};

use self::engine::Engine;
pub use self::engine::gradient_path;
use self::private::Records;
pub use self::profile::{LayerTime, StepTime, step_time};
use crate::model::{Model, ModelError, Models, first_line};
use crate::{DataSource, Labels, Prepared, SiteData, View};

/// Trains and evaluates a spec's model on one site's records with candle.
///
/// The model is built once and kept as long as specs ask for the same one; a simulator's worker changes the records
/// between virtual clients by [`Trainer::set_site`].
///
/// Where the spec asks for a guarantee for single records (`privacy.examples`), it trains by DP-SGD and needs a permit in the
/// order. The parameters are then all that the guarantee covers: the metrics of training and evaluation are measured on the
/// records as they are, and must stay at the site. Whether it succeeds follows from no single record, and from the number of
/// records only where that is public: it is hidden unless the trainer is told otherwise.
pub struct Trainer {
    count: Count,
    complaint: Option<String>,
    device: Device,
    noise: NoiseOf,
    models: Models,
    source: Option<Box<dyn DataSource>>,
    site: Option<SiteData>,
    prepared: Option<Cached>,
    resident: Option<Resident>,
    layout: Layout,
}

/// Where the noise of a step comes from; the seed is the step's own, for tests.
type NoiseOf = fn(Seed) -> Result<NoiseSource, EntropyError>;

/// What is known outside of the number of training records.
#[derive(Clone, Copy, Debug)]
enum Count {
    Fixed(RecordCount),
    /// It is public, and as many as there are.
    Counted,
}

/// Records made ready, and the standardiser they were made ready with.
struct Cached {
    standardiser: Option<Standardiser>,
    records: Prepared,
}

/// The model in memory.
struct Resident {
    spec: Arc<Spec>,
    /// None for the values of a method, which nothing trains.
    engine: Option<Box<dyn Engine>>,
}

impl Trainer {
    /// A trainer with the built-in models on `source`'s records.
    pub fn new(source: Box<dyn DataSource>, device: Device) -> Self {
        Self { source: Some(source), ..Self::without_data(device) }
    }

    /// A trainer with the built-in models that is given its records later, by [`Trainer::set_site`] or
    /// [`Trainer::set_source`].
    pub fn without_data(device: Device) -> Self {
        let (source, site, prepared, resident) = (None, None, None, None);
        let (models, layout, noise) = (Models::new(), Layout::default(), entropy as NoiseOf);
        let (count, complaint) = (Count::Fixed(RecordCount::Hidden), None);
        Self { count, complaint, device, noise, models, source, site, prepared, resident, layout }
    }

    /// The same trainer at a site whose number of training records is known outside as `count` says, whatever it is.
    #[must_use]
    pub fn with_record_count(mut self, count: RecordCount) -> Self {
        self.count = Count::Fixed(count);
        self
    }

    /// The same trainer where the number of training records is public, as many as there are: in a simulation, whose records are
    /// at hand.
    #[must_use]
    pub fn with_counted_records(mut self) -> Self {
        self.count = Count::Counted;
        self
    }

    /// INSECURE: the same trainer with noise that follows from the order's seed, so that a private training repeats to the
    /// bit. Whoever knows the seed can take the noise off again, and what was noised so says that it was.
    #[cfg(any(test, feature = "insecure-test-noise"))]
    #[must_use]
    pub fn with_insecure_test_noise(mut self) -> Self {
        self.noise = |seed| {
            let mut bytes = [0; 32];
            rand::RngCore::fill_bytes(&mut seed.generator(), &mut bytes);
            Ok(NoiseSource::insecure(bytes))
        };
        self
    }

    /// The same trainer with a model of your own for `ModelSpec::Custom { name }`.
    #[must_use]
    pub fn with_model(
        mut self,
        name: impl Into<String>,
        build: impl Fn(&Spec, &Device) -> candle_core::Result<Box<dyn Model>> + Send + Sync + 'static,
    ) -> Self {
        self.models = self.models.with(name, build);
        self
    }

    /// The same trainer with these models instead of those it knew.
    #[must_use]
    pub fn with_models(mut self, models: Models) -> Self {
        self.models = models;
        self
    }

    /// Works on these records from now on, whatever the spec; the model stays. A source given before is dropped.
    pub fn set_site(&mut self, site: SiteData) {
        (self.source, self.site, self.prepared) = (None, Some(site), None);
    }

    /// Works on this source's records from now on; the model stays.
    pub fn set_source(&mut self, source: Box<dyn DataSource>) {
        (self.source, self.site, self.prepared) = (Some(source), None, None);
    }

    /// The prepared model; an error before [`Learner::prepare`].
    fn resident(&self) -> Result<&Resident, LearnError> {
        let unprepared = || LearnError::new(Decline::Failed, "a trainer must be prepared for a spec first");
        self.resident.as_ref().ok_or_else(unprepared)
    }

    /// Loads the source's records if they are not loaded yet.
    fn load_site(&mut self) -> Result<(), LearnError> {
        if let (None, Some(source), Some(resident)) = (&self.site, &mut self.source, &self.resident) {
            self.site = Some(source.load(&resident.spec)?);
        }
        Ok(())
    }

    fn site(&mut self) -> Result<&SiteData, LearnError> {
        self.load_site()?;
        let missing =
            || LearnError::new(Decline::Data, "the trainer has no records; give it a source or a site");
        self.site.as_ref().ok_or_else(missing)
    }

    /// Makes the records ready with `standardiser`, unless they are.
    fn ready(&mut self, standardiser: Option<&Standardiser>) -> Result<(), LearnError> {
        if self.prepared.as_ref().is_some_and(|cached| cached.standardiser.as_ref() == standardiser) {
            return Ok(());
        }
        self.prepared = None;
        let spec = Arc::clone(&self.resident()?.spec);
        let records = self.site()?.prepared(&spec, standardiser)?;
        self.prepared = Some(Cached { standardiser: standardiser.cloned(), records });
        Ok(())
    }

    /// The records, the model with `parameters` loaded, and its layout.
    fn loaded(
        &mut self,
        parameters: &[f32],
        standardiser: Option<&Standardiser>,
    ) -> Result<(&Prepared, &mut dyn Engine, &Arc<Spec>, &Layout), LearnError> {
        self.resident()?;
        if parameters.len() != self.layout.len() {
            let (came, needed) = (parameters.len(), self.layout.len());
            return Err(LearnError::new(
                Decline::Failed,
                format!(
                    "{came} parameters came for a model of {needed}; prepare the trainer for the same spec"
                ),
            ));
        }
        self.ready(standardiser)?;
        let (Some(resident), Some(cached)) = (&mut self.resident, &self.prepared) else {
            return Err(LearnError::new(
                Decline::Data,
                "the trainer has no records; give it a source or a site",
            ));
        };
        let Resident { spec, engine } = resident;
        let engine = engine.as_deref_mut().ok_or(ModelError::Values)?;
        engine.load(parameters)?;
        Ok((&cached.records, engine, spec, &self.layout))
    }
}

/// Training that protects single records.
impl Trainer {
    /// As [`Learner::train`]. Parameters that diverged are put back to what came, since noised steps have made them so: that
    /// is an update of nothing, and no error. Records that cannot be used count as zeros.
    fn train_private(
        &mut self,
        parameters: &mut [f32],
        order: &TrainOrder,
        stop: &Stop,
    ) -> Result<Metrics, LearnError> {
        let (started, noise) = (Instant::now(), self.noise);
        let undefined = || {
            let message =
                "no releases are defined: the plan takes all records in one step and their number is hidden";
            LearnError::new(Decline::Unsupported, message)
        };
        let releases = self.example_releases()?.ok_or_else(undefined)?;
        let found = self.site()?.train.len();
        let came = parameters.to_vec();
        let (records, engine, spec, layout) = self.loaded(parameters, order.standardiser.as_deref())?;
        let data = &records.train;
        let running = {
            let records = Records { engine: &mut *engine, data, spec };
            private::train(records, layout.len(), &releases, order, noise, stop)?
        };
        engine.store(parameters)?;
        let (used, left_out) = (data.len(), found.saturating_sub(data.len()));
        let diverged = check_finite(parameters, layout, order.round).err();
        if diverged.is_some() {
            parameters.copy_from_slice(&came);
        }
        let unused = match (used, left_out) {
            (0, _) => Some("no record could be used, so the update is noise alone; `consortia site check --plan` says why".to_owned()),
            (_, 0) => None,
            (_, left_out) => Some(format!(
                "{} {} not fit the plan and counted as zeros",
                counted(left_out, "record"),
                verb(left_out, "does", "do")
            )),
        };
        let complaints: Vec<String> = diverged.map(|error| error.message).into_iter().chain(unused).collect();
        self.complaint = (!complaints.is_empty()).then(|| complaints.join("; "));
        Ok(running.metrics(used as u64, started.elapsed().as_secs_f64()))
    }
}

/// # Errors
/// When a value is NaN or infinite; names the tensor.
fn check_finite(parameters: &[f32], layout: &Layout, round: Round) -> Result<(), LearnError> {
    let Some(place) = first_not_finite(parameters) else { return Ok(()) };
    let holds = |tensor: &&Tensor| tensor.range().contains(&place);
    let name = layout.tensors().iter().find(holds).map_or("", |tensor| tensor.name.as_str());
    let message = format!("after round {} `{name}` is not finite; try a lower learning rate", round.0);
    Err(LearnError::new(Decline::NotFinite, message))
}

/// A generator of the operating system's for one step, whatever the seed.
fn entropy(_: Seed) -> Result<NoiseSource, EntropyError> {
    NoiseSource::from_entropy()
}

impl Learner for Trainer {
    fn parameter_count(&self, spec: &Spec) -> Option<u64> {
        // A custom model says how large it is when it has been built.
        let layout = match spec.model {
            ModelSpec::Custom { .. } => None,
            _ => self.models.layout_of(spec).ok(),
        };
        layout.map(|layout| layout.len() as u64)
    }

    fn prepare(&mut self, spec: &Arc<Spec>) -> Result<(), LearnError> {
        if self.resident.as_ref().is_some_and(|resident| resident.spec == *spec) {
            return Ok(());
        }
        self.layout = self.models.layout_of(spec)?;
        match &mut self.resident {
            Some(resident) if resident.serves(spec) => resident.spec = Arc::clone(spec),
            _ => {
                // The old model's memory is given back before the new one takes its own.
                self.resident = None;
                let engine = match spec.model {
                    ModelSpec::Values { .. } => None,
                    ModelSpec::External(_) => return Err(ModelError::External.into()),
                    _ => Some(engine::build(spec, &self.models, &self.layout, &self.device)?),
                };
                self.resident = Some(Resident { spec: Arc::clone(spec), engine });
            }
        }
        self.prepared = None;
        if self.source.is_some() {
            self.site = None;
        }
        Ok(())
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn initialise(&mut self, seed: Seed) -> Result<Vec<f32>, LearnError> {
        Ok(self.models.initial_parameters(&self.resident()?.spec, seed)?)
    }

    fn statistics(&mut self) -> Result<Vec<Statistic>, LearnError> {
        let spec = Arc::clone(&self.resident()?.spec);
        self.site()?.statistics(&spec)
    }

    fn visit_records(
        &mut self,
        standardiser: Option<&Standardiser>,
        visit: &mut dyn FnMut(Record<'_>),
    ) -> Result<(), LearnError> {
        self.ready(standardiser)?;
        let Some(Cached { records, .. }) = &self.prepared else { return Ok(()) };
        let View { dataset, rows } = &records.train;
        let mut features = vec![0.0; dataset.width()];
        for row in rows.iter().map(|row| *row as usize) {
            dataset.copy_sample_into(row, &mut features);
            let label = match &dataset.labels {
                Labels::Classes(classes) => Label::Class(classes[row]),
                Labels::Real(values) => Label::Real(values[row]),
            };
            visit(Record { features: &features, label });
        }
        Ok(())
    }

    fn record_count(&mut self) -> Result<RecordCount, LearnError> {
        match self.count {
            Count::Fixed(count) => Ok(count),
            Count::Counted => Ok(RecordCount::Public(self.site()?.train.len() as u64)),
        }
    }

    fn take_complaint(&mut self) -> Option<String> {
        self.complaint.take()
    }

    fn example_releases(&mut self) -> Result<Option<ExampleReleases>, LearnError> {
        let spec = Arc::clone(&self.resident()?.spec);
        if spec.privacy.examples.is_none() {
            return Ok(None);
        }
        Ok(ExampleReleases::of(&spec.training, self.record_count()?))
    }

    fn train(
        &mut self,
        parameters: &mut [f32],
        order: &TrainOrder,
        stop: &Stop,
    ) -> Result<Metrics, LearnError> {
        self.complaint = None;
        if self.resident()?.spec.privacy.examples.is_some() {
            return self.train_private(parameters, order, stop);
        }
        let started = Instant::now();
        let (records, engine, spec, layout) = self.loaded(parameters, order.standardiser.as_deref())?;
        if records.train.is_empty() {
            return Err(LearnError::new(Decline::Data, "the site has no training records"));
        }
        let data = &records.train;
        let running = steps::train(&mut *engine, spec, data, order, stop)?;
        let examples = data.len() as u64;
        engine.store(parameters)?;
        check_finite(parameters, layout, order.round)?;
        Ok(running.metrics(examples, started.elapsed().as_secs_f64()))
    }

    fn evaluate(
        &mut self,
        parameters: &[f32],
        order: &EvaluateOrder,
        stop: &Stop,
    ) -> Result<Metrics, LearnError> {
        let started = Instant::now();
        let (records, engine, spec, _) = self.loaded(parameters, order.standardiser.as_deref())?;
        let Some(test) = records.test.as_ref().filter(|test| !test.is_empty()) else {
            return Ok(Metrics { seconds: started.elapsed().as_secs_f64(), ..Metrics::default() });
        };
        let running = steps::evaluate(engine, spec.loss(), test, stop)?;
        Ok(running.metrics(test.len() as u64, started.elapsed().as_secs_f64()))
    }
}

impl Resident {
    /// Whether the model in memory is the one that `spec` asks for.
    fn serves(&self, spec: &Spec) -> bool {
        self.spec.model == spec.model
            && self.spec.loss() == spec.loss()
            && self.spec.training.gradient == spec.training.gradient
            && self.spec.training.batch_size == spec.training.batch_size
            && self.spec.privacy.examples.is_some() == spec.privacy.examples.is_some()
            && self.spec.input_shape() == spec.input_shape()
            && self.spec.outputs() == spec.outputs()
            && !matches!(spec.model, ModelSpec::Custom { .. })
    }
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Trainer");
        debug.field("device", &self.device).field("models", &self.models).field("site", &self.site);
        debug.finish_non_exhaustive()
    }
}

/// candle failed in the middle of the work.
fn failed(error: candle_core::Error) -> LearnError {
    LearnError::new(Decline::Failed, format!("the model cannot be run: {}", first_line(&error)))
}

#[cfg(test)]
mod tests;
