//! Who is simulated: clients that share the records of a data set in this process, or clients of external learners.

use std::num::NonZeroUsize;

use learning::device::Device;
use methods::Registry;
use protocol::{Spec, Stop};
use simulations::{ExternalClients, Population, PopulationError, SimulationConfig, Workforce};

use super::super::cores::cores;
use super::super::failure::{Failure, Kind, OrFail};

/// See the module.
pub(super) enum Crowd {
    Records(Box<Population>),
    Learners(Box<ExternalClients>),
}

impl Crowd {
    /// Reads the records of the plan in this file, or starts the first learner, and says how many work at a time: as many as typed, or as there
    /// are learners, or cores. Nobody waits for learners after a `stop`.
    pub(super) fn begin(
        simulation: &SimulationConfig,
        spec: &Spec,
        device: Device,
        (threads, file): (Option<usize>, String),
        stop: &Stop,
    ) -> Result<(Self, usize), Failure> {
        let processes = simulation.learner.as_ref().and_then(|learner| learner.processes);
        let threads = threads.or_else(|| processes.map(NonZeroUsize::get)).unwrap_or_else(cores).max(1);
        let crowd =
            Self::build(simulation, spec, device, threads, stop).or_fail(Kind::Configuration, file)?;
        if let Self::Learners(clients) = &crowd {
            clients.start(spec).map_err(|error| Failure::new(Kind::Run, error.message))?;
        }
        Ok((crowd, threads))
    }

    fn build(
        simulation: &SimulationConfig,
        spec: &Spec,
        device: Device,
        threads: usize,
        stop: &Stop,
    ) -> Result<Self, PopulationError> {
        if spec.external().is_some() {
            let clients = ExternalClients::build(simulation, threads, cores())?;
            return Ok(Self::Learners(Box::new(clients.with_ending(stop.clone()))));
        }
        let population = Population::build(simulation, spec, device)?;
        Ok(Self::Records(Box::new(population.with_methods(Registry::standard().site().clone()))))
    }

    pub(super) fn workforce(&self) -> &dyn Workforce {
        match self {
            Self::Records(population) => &**population,
            Self::Learners(clients) => &**clients,
        }
    }

    /// What is known of the records; nothing of those that external learners read.
    pub(super) fn population(&self) -> Option<&Population> {
        match self {
            Self::Records(population) => Some(population),
            Self::Learners(_) => None,
        }
    }

    /// Whether anybody may have test records.
    pub(super) fn may_test(&self) -> bool {
        self.population().is_none_or(Population::has_tests)
    }
}
