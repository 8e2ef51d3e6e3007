//! A federation whose model is one vector and whose training is one addition: what moves and what waits is all there is to measure.

use std::sync::{Arc, Barrier};
use std::time::Instant;

use protocol::{
    EvaluateOrder, Layout, LearnError, Learner, Metrics, Parameters, Seed, Spec, Statistic, Stop, TrainOrder,
};
use server::net::{InitialModel, ModelRoom};

/// The plan but for its number of rounds and clients.
const PLAN: &str = "name = \"transport\"\nmodel = { custom = { name = \"vector\" } }\n\
    data = { tensor = { shape = [1], target = \"real\" } }\n\
    training = { batch_size = 1, optimizer = { sgd = { learning_rate = 0.1 } } }\n\
    evaluation = { sites = \"none\", central = false }\n";

/// What each site says it has trained on.
pub(super) const EXAMPLES: u64 = 10;

/// A room whose every model is one vector of zeros.
pub(super) struct VectorRoom(pub(super) usize);

impl ModelRoom for VectorRoom {
    fn begin(&self, _: &Spec, _: Seed) -> Result<InitialModel, String> {
        let layout = vector(self.0).map_err(|error| error.to_string())?;
        Ok(InitialModel { layout, shared: Parameters::new(vec![0.0; self.0]) })
    }

    fn central(&self, _: &Spec) -> Option<Box<dyn Learner>> {
        None
    }
}

/// The layout of a vector.
pub(super) fn vector(parameters: usize) -> Result<Layout, protocol::LayoutError> {
    Layout::new([("vector".to_owned(), vec![parameters])])
}

/// The plan of a measurement.
pub(super) fn plan(sites: usize, rounds: usize) -> String {
    format!("rounds = {rounds}\n{PLAN}cohort = {{ clients_min = {sites}, count = {sites} }}\n")
}

/// The same of a measurement whose sites have programs of their own.
pub(super) fn start_plan(sites: usize, rounds: usize) -> String {
    format!(
        "rounds = {rounds}\nname = \"transport\"\nmodel = {{ external = {{ start = \"zeros\" }} }}\n\
         evaluation = {{ sites = \"none\", central = false }}\ncohort = {{ clients_min = {sites}, count = {sites} }}\n"
    )
}

/// A learner that hardly works: it adds a constant to the model, and says how long that took. Before that it waits until every site of the
/// meeting has come.
#[derive(Debug)]
pub struct Adder {
    layout: Layout,
    examples: u64,
    meeting: Option<Arc<Barrier>>,
}

impl Adder {
    /// A learner of a model of this layout that says it has trained on so many examples.
    pub fn new(layout: Layout, examples: u64) -> Self {
        Self { layout, examples, meeting: None }
    }

    /// The same learner meeting others before it trains.
    pub(super) fn meeting(self, meeting: Arc<Barrier>) -> Self {
        Self { meeting: Some(meeting), ..self }
    }
}

impl Learner for Adder {
    fn prepare(&mut self, _: &Arc<Spec>) -> Result<(), LearnError> {
        Ok(())
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn initialise(&mut self, _: Seed) -> Result<Vec<f32>, LearnError> {
        Ok(vec![0.0; self.layout.len()])
    }

    fn statistics(&mut self) -> Result<Vec<Statistic>, LearnError> {
        Ok(Vec::new())
    }

    fn train(&mut self, parameters: &mut [f32], _: &TrainOrder, _: &Stop) -> Result<Metrics, LearnError> {
        if let Some(meeting) = &self.meeting {
            meeting.wait();
        }
        let began = Instant::now();
        parameters.iter_mut().for_each(|value| *value += 1e-3);
        let seconds = began.elapsed().as_secs_f64();
        Ok(Metrics { loss: 0.0, accuracy: None, examples: self.examples, seconds })
    }

    fn evaluate(&mut self, _: &[f32], _: &EvaluateOrder, _: &Stop) -> Result<Metrics, LearnError> {
        Ok(Metrics::default())
    }
}
