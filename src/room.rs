//! What a server knows of models: those of the `learning` crate, and a central test set if it has one.

use learning::device::Device;
use learning::{FileSource, Models, SourceSpec, Trainer};
use protocol::{Learner, Parameters, Purpose, Round, Seed, Spec};
use server::Methods;
use server::net::{InitialModel, ModelRoom};

/// The models a server can begin, and the records it evaluates on.
#[derive(Debug)]
pub struct Room {
    models: Models,
    methods: Methods,
    central: Option<SourceSpec>,
    device: Device,
}

impl Room {
    /// The built-in models, and no records.
    pub fn new() -> Self {
        Self { models: Models::new(), methods: Methods::default(), central: None, device: Device::Cpu }
    }

    /// The same room with models of your own.
    #[must_use]
    pub fn with_models(mut self, models: Models) -> Self {
        self.models = models;
        self
    }

    /// The same room where plans may name these methods.
    #[must_use]
    pub fn with_methods(mut self, methods: Methods) -> Self {
        self.methods = methods;
        self
    }

    /// The same room evaluating every model on the test records of `source`, on `device`.
    #[must_use]
    pub fn with_central(mut self, source: SourceSpec, device: Device) -> Self {
        (self.central, self.device) = (Some(source), device);
        self
    }
}

impl Default for Room {
    fn default() -> Self {
        Self::new()
    }
}

/// Where a run begins: the layout of its model and the first values of what is shared. A simulation and a deployment
/// with the same seed begin alike, because both begin here.
///
/// # Errors
/// A sentence that names what the models cannot do.
pub fn first_model(models: &Models, spec: &Spec, seed: Seed) -> Result<InitialModel, String> {
    let layout = models.layout_of(spec).map_err(|error| error.to_string())?;
    let seed = seed.derive(Purpose::Initialise, Round(0), None);
    let full = models.initial_parameters(spec, seed).map_err(|error| error.to_string())?;
    let shared = Parameters::new(layout.gather_shared(&full));
    Ok(InitialModel { layout, shared })
}

impl ModelRoom for Room {
    fn begin(&self, spec: &Spec, seed: Seed) -> Result<InitialModel, String> {
        first_model(&self.models, spec, seed)
    }

    fn central(&self, _: &Spec) -> Option<Box<dyn Learner>> {
        let source = FileSource::new(self.central.clone()?);
        let trainer = Trainer::new(Box::new(source), self.device.clone()).with_models(self.models.clone());
        Some(Box::new(trainer))
    }

    fn methods(&self) -> Methods {
        self.methods.clone()
    }
}
