//! The world in one process: virtual clients, a virtual clock and weather, around the very coordinator, participants and
//! learners of a deployment. No network, no database, no async runtime.
//!
//! Reading order: [`Scenario`] (a federation file plus its `[simulation]` table) · [`Population`] (who holds what) ·
//! [`Weather`] (who is there, how fast, who drops out) · [`Adversaries`] (who attacks, and how) · [`World`] (the loop that runs it) · [`Aggregator`] (releases without
//! rounds) · [`attack`] and [`audit`] (what an adversary makes of all this).

mod adversaries;
mod aggregator;
pub mod attack;
pub mod audit;
mod population;
mod scenario;
mod synthetic;
mod weather;
mod workers;
mod world;

pub use adversaries::{Adversaries, AdversariesConfig, AdversariesError, Attack, Direction};
pub use aggregator::{Aggregator, AggregatorError, Entropy, Promise, lattice_of, plain_mean};
pub use population::{Population, PopulationError};
pub use scenario::{DatasetConfig, Scenario, ScenarioError, SimulationConfig};
pub use synthetic::SyntheticSource;
pub use weather::{Weather, WeatherConfig};
pub use workers::{Worker, Workforce};
pub use world::{Best, Observation, Outcome, Snapshot, SnapshotError, Stored, Watch, World, WorldError};
