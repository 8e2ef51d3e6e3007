//! Who is there, how long work takes and who drops out: chance in a simulation, drawn from (seed, round, client), so that
//! neither threads nor order can change it.

use std::time::Duration;

use protocol::{ClientId, Positive, Purpose, Round, Seed, SpecError, TaskId};
use rand::Rng;
use rand_distr::{Distribution, LogNormal};
use serde::{Deserialize, Serialize};

/// The table `[simulation.availability]` as typed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AvailabilityConfig {
    /// NoiseRng that a client is connected in a round, above 0 up to 1.
    pub availability: f64,
    /// NoiseRng that a client that was asked goes away without answering, from 0 up to 1.
    pub dropout: f64,
    /// Median of the virtual seconds between a task and its answer.
    pub latency_seconds: Positive,
    /// Spread of the latency: standard deviation of its logarithm; 0 makes all alike.
    pub latency_spread: f64,
}

impl Default for AvailabilityConfig {
    fn default() -> Self {
        let latency_seconds = Positive::new(1.0).expect("one is positive");
        Self { availability: 1.0, dropout: 0.0, latency_seconds, latency_spread: 0.0 }
    }
}

impl AvailabilityConfig {
    pub(crate) fn check(&self) -> Result<(), SpecError> {
        let fault = |key: &str, value: f64, range: &str| {
            Err(SpecError::new(format!("simulation.availability.{key}"), format!("{value} is not {range}")))
        };
        if !(self.availability > 0.0 && self.availability <= 1.0) {
            return fault("availability", self.availability, "above 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&self.dropout) {
            return fault("dropout", self.dropout, "from 0 to 1");
        }
        if !(0.0..=10.0).contains(&self.latency_spread) {
            return fault("latency_spread", self.latency_spread, "from 0 to 10");
        }
        Ok(())
    }
}

/// What happens to one task at one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientFate {
    /// The answer arrives after this time.
    Answers(Duration),
    /// The client goes away after this time.
    Leaves(Duration),
}

/// Who is there in a simulation, how fast, and who drops out.
#[derive(Clone, Copy, Debug)]
pub struct AvailabilityModel {
    config: AvailabilityConfig,
    latency: LogNormal<f64>,
    seed: Seed,
}

impl AvailabilityModel {
    /// AvailabilityModel that follows from `seed`.
    ///
    /// # Errors
    /// [`SpecError`] names the setting out of range.
    pub fn new(config: AvailabilityConfig, seed: Seed) -> Result<Self, SpecError> {
        config.check()?;
        let latency = LogNormal::new(config.latency_seconds.value().ln(), config.latency_spread)
            .map_err(|error| SpecError::new("simulation.availability.latency_spread", error.to_string()))?;
        Ok(Self { config, latency, seed })
    }

    /// Whether a client is connected, in the `turn`-th draw of who is.
    pub(crate) fn is_online(&self, client: &ClientId, turn: u32) -> bool {
        self.config.availability >= 1.0
            || self.generator(client, Round(turn), 0).random_bool(self.config.availability)
    }

    /// Whether every client is always there.
    pub(crate) fn is_fair(&self) -> bool {
        self.config.availability >= 1.0 && self.config.dropout <= 0.0
    }

    pub(crate) fn fate(&self, client: &ClientId, task: TaskId) -> ClientFate {
        if self.config.latency_spread == 0.0 && self.config.dropout == 0.0 {
            // What every draw would say.
            let seconds = self.config.latency_seconds.value().ln().exp().clamp(0.0, 1e9);
            return ClientFate::Answers(Duration::from_secs_f64(seconds));
        }
        let mut generator = self.generator(client, task.round, 1 + stream_of(task));
        let seconds = self.latency.sample(&mut generator).clamp(0.0, 1e9);
        let latency = Duration::from_secs_f64(seconds);
        if generator.random_bool(self.config.dropout) {
            ClientFate::Leaves(latency / 2)
        } else {
            ClientFate::Answers(latency)
        }
    }

    /// Which of the answers of one moment comes first: by chance, so that a round which takes the first ones does not take always those of
    /// the same clients.
    pub(crate) fn order_at_ties(&self, client: &ClientId, task: TaskId) -> u32 {
        self.generator(client, task.round, (1 << 40) + stream_of(task)).random()
    }

    fn generator(&self, client: &ClientId, round: Round, stream: u64) -> impl Rng {
        let mut generator = self.seed.derive(Purpose::AvailabilityModel, round, Some(client)).generator();
        generator.set_stream(stream);
        generator
    }
}

/// Every attempt at every step has chance of its own.
fn stream_of(task: TaskId) -> u64 {
    u64::from(task.attempt) << 16 | u64::from(task.step.number())
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{RunId, StepId};

    #[test]
    fn without_chance_every_draw_says_the_same() {
        let task = TaskId::new(RunId(1), Round(1), StepId::TRAIN);
        for seconds in [1.0, 0.3, 7.0, 1e-3, 3600.0] {
            let latency_seconds = Positive::new(seconds).unwrap();
            let plain = AvailabilityConfig { latency_seconds, ..AvailabilityConfig::default() };
            // So seldom that nobody leaves, and the draw is made.
            let drawn = AvailabilityConfig { dropout: f64::MIN_POSITIVE, ..plain };
            let fate = |config| {
                let availability = AvailabilityModel::new(config, Seed::from_number(1)).unwrap();
                availability.fate(&ClientId::new("a").unwrap(), task)
            };
            assert_eq!(fate(plain), fate(drawn));
        }
    }

    #[test]
    fn chances_are_what_was_asked_for() {
        let config = AvailabilityConfig {
            availability: 0.3,
            dropout: 0.2,
            latency_spread: 0.5,
            ..AvailabilityConfig::default()
        };
        let availability = AvailabilityModel::new(config, Seed::from_number(1)).unwrap();
        let clients: Vec<ClientId> = (0..5000).map(|i| ClientId::new(&format!("c{i}")).unwrap()).collect();
        let share = |count: usize| count as f64 / 5000.0;
        let online = share(clients.iter().filter(|client| availability.is_online(client, 1)).count());
        assert!((online - 0.3).abs() < 0.04, "{online}");
        let task = TaskId::new(RunId(1), Round(1), StepId::TRAIN);
        let fates: Vec<ClientFate> = clients.iter().map(|client| availability.fate(client, task)).collect();
        let left = share(fates.iter().filter(|fate| matches!(fate, ClientFate::Leaves(_))).count());
        assert!((left - 0.2).abs() < 0.04, "{left}");
        let slow =
            |fate: &&ClientFate| matches!(fate, ClientFate::Answers(latency) if latency.as_secs_f64() > 1.0);
        let above_median = share(fates.iter().filter(slow).count()) / (1.0 - left);
        assert!((above_median - 0.5).abs() < 0.04, "{above_median}");
    }
}
