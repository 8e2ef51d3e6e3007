//! Noise from a seed, in builds for tests and repeatable simulations only. What it noises is marked INSECURE.

use privacy::noise::NoiseSource;
use protocol::{Purpose, Round, Seed};
use rand::RngCore;
use server::NoiseRng;

/// The chance of the simulation with this seed: its n-th vector of noise is always the same.
pub(super) fn chance(seed: u64) -> NoiseRng {
    let seed = Seed::from_number(seed);
    let mut drawn = 0;
    NoiseRng::of(move || {
        drawn += 1;
        let mut bytes = [0; 32];
        seed.derive(Purpose::Noise, Round(drawn), None).generator().fill_bytes(&mut bytes);
        Ok(NoiseSource::insecure(bytes))
    })
}
