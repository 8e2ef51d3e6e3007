//! Randomness as an argument. A simulation has one seed; every use derives its own generator by hashing, so that order
//! and threads do not matter. In production a seed is 32 fresh bytes from the operating system.

use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{ClientId, Round};

/// 32 bytes from which generators are derived. Never printed.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed([u8; 32]);

/// What a derived generator is for; two purposes never share a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The first model.
    Initialise,
    /// Which clients take part in a round.
    Cohort,
    /// Batches and dropout at a site.
    Train,
    /// How a data set is divided among virtual clients.
    Partition,
    /// Latency, loss and churn of virtual clients.
    AvailabilityModel,
    /// A run's id in a simulation.
    Run,
    /// Noise, in builds for tests.
    Noise,
    /// What a lossy codec decides by chance.
    Codec,
    /// What a method's work at a site draws.
    Method,
    /// Which virtual clients of a simulation are corrupted, and what they send by chance.
    Adversary,
    /// What an aggregation rule draws in a round.
    Aggregation,
}

impl Seed {
    /// The seed that stands for a number typed by a user (simulations, seeded runs and tests).
    pub fn from_number(number: u64) -> Self {
        Self::from_bytes(Sha256::new().chain_update(b"consortia seed").chain_update(number.to_le_bytes()))
    }

    /// 32 bytes from the operating system.
    pub fn from_entropy(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The seed of one purpose in one round, for one client (or for the coordinator).
    #[must_use]
    pub fn derive(&self, purpose: Purpose, round: Round, client: Option<&ClientId>) -> Self {
        let name = client.map_or("", ClientId::as_str);
        let hash = Sha256::new().chain_update(self.0).chain_update([purpose as u8]);
        Self::from_bytes(hash.chain_update(round.0.to_le_bytes()).chain_update(name.as_bytes()))
    }

    /// A generator that starts from this seed.
    pub fn generator(&self) -> ChaCha20Rng {
        ChaCha20Rng::from_seed(self.0)
    }

    /// A number below 2^53 that follows from this seed, for generators of other programs: every language has such a number.
    pub fn to_number(self) -> u64 {
        let hash = Sha256::new().chain_update(b"consortia number").chain_update(self.0).finalize();
        hash.iter().take(7).fold(0, |number, byte| number << 8 | u64::from(*byte)) >> 3
    }

    fn from_bytes(hash: Sha256) -> Self {
        Self(hash.finalize().into())
    }
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_purpose_round_and_client_has_a_seed_of_its_own() {
        let seed = Seed::from_number(7);
        let (a, b) = (ClientId::new("a").unwrap(), ClientId::new("b").unwrap());
        let all = [
            seed.derive(Purpose::Train, Round(1), Some(&a)),
            seed.derive(Purpose::Train, Round(1), Some(&b)),
            seed.derive(Purpose::Train, Round(2), Some(&a)),
            seed.derive(Purpose::AvailabilityModel, Round(1), Some(&a)),
            seed.derive(Purpose::Train, Round(1), None),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|other| other != one));
        }
        assert_eq!(all[0], Seed::from_number(7).derive(Purpose::Train, Round(1), Some(&a)));
    }
}
