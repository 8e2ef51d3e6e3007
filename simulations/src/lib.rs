//! A federation in one process: virtual clients, a virtual clock and a model of who is there, around the very coordinator, participants and
//! learners of a deployment. No network, no database, no async runtime.
//!
//! Reading order: [`Scenario`] (a federation file plus its `[simulation]` table) · [`Population`] (who holds what) · [`ExternalClients`] (who
//! has scripts of their own) ·
//! [`AvailabilityModel`] (who is there, how fast, who drops out) · [`Adversaries`] (who attacks, and how) · [`Simulator`] (the loop that runs it) · [`Aggregator`] (releases without
//! rounds) · [`attack`] and [`audit`] (what an adversary makes of all this).

mod adversaries;
mod aggregator;
pub mod attack;
pub mod audit;
mod availability;
mod learners;
mod population;
mod scenario;
mod simulator;
mod synthetic;
mod workers;

pub use adversaries::{Adversaries, AdversariesConfig, AdversariesError, Attack, Direction};
pub use aggregator::{Aggregator, AggregatorError, Entropy, Promise, lattice_of, plain_mean};
pub use availability::{AvailabilityConfig, AvailabilityModel};
pub use learners::{ExternalClients, LearnerConfig};
pub use population::{BackdoorRates, Population, PopulationError};
pub use scenario::{DatasetConfig, Scenario, ScenarioError, SimulationConfig};
pub use simulator::{
    Best, Observation, Outcome, Simulator, SimulatorError, Snapshot, SnapshotError, Stored, Watch,
};
pub use synthetic::SyntheticSource;
pub use workers::{Worker, Workforce};
