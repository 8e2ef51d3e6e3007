//! Who is simulated: clients that share the records of a data set in this process, or clients of external learners.

use learning::device::Device;
use methods::Registry;
use protocol::Spec;
use simulations::{ExternalClients, Population, PopulationError, SimulationConfig, Workforce};

use super::super::cores::cores;

/// See the module.
pub(super) enum Crowd {
    Records(Box<Population>),
    Learners(Box<ExternalClients>),
}

impl Crowd {
    /// Reads the records, or says how learners are started; `threads` work at a time.
    pub(super) fn build(
        simulation: &SimulationConfig,
        spec: &Spec,
        device: Device,
        threads: usize,
    ) -> Result<Self, PopulationError> {
        if spec.external().is_some() {
            let clients = ExternalClients::build(simulation, threads, cores())?;
            return Ok(Self::Learners(Box::new(clients)));
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
