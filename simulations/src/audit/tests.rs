//! What an audit refuses; the audits themselves are in `tests/gdp.rs` and in `in_run/tests.rs`.

use privacy::noise::{EntropyError, NoiseSource};
use protocol::Seed;

use super::*;

/// Noise that repeats with the seed, another one each time it is asked for.
pub(super) fn noise(seed: u64) -> impl FnMut() -> Result<NoiseSource, EntropyError> {
    let mut turn = 0u64;
    move || {
        turn += 1;
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&turn.to_le_bytes());
        Ok(NoiseSource::insecure(bytes))
    }
}

#[test]
fn models_of_another_length_are_refused() {
    let canaries = Canaries::new(4, 8, Seed::from_number(1)).unwrap();
    let (short, long) = (protocol::Parameters::new(vec![0.0; 7]), protocol::Parameters::new(vec![0.0; 8]));
    let wrong = AuditError::Dimension { expected: 8, found: 7 };
    assert_eq!(one_run(&canaries, &long, &short, 1.0, 1e-5, 0.05), Err(wrong.clone()));
    assert_eq!(one_shot(&canaries, &short, &long, 1.0, 1e-5), Err(wrong));
}
