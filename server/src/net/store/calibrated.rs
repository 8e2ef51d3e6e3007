//! The noise that was found for a plan when it was accepted, in the row of its run: so that nobody searches for it again when the run
//! begins, or at every start.
//!
//! It is kept with a checksum over itself and the plan. A number that was changed, or belongs to another plan, is no noise of this run.

use privacy::chain::Digest;
use protocol::{Positive, RunId};

use super::{Store, StoreError};

/// The column for this noise multiplier of this plan.
pub(super) fn write(plan_toml: &str, noise_multiplier: Positive) -> String {
    let bits = noise_multiplier.value().to_bits();
    format!("{bits:016x} {}", checksum(plan_toml, bits))
}

/// The noise multiplier in the column of this plan.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub(crate) fn read(plan_toml: &str, column: &str) -> Result<Positive, String> {
    let read = || {
        let (bits, sum) = column.split_once(' ')?;
        let bits = u64::from_str_radix(bits, 16).ok()?;
        let noise_multiplier = Positive::new(f64::from_bits(bits)).ok()?;
        (sum == checksum(plan_toml, bits).to_string()).then_some(noise_multiplier)
    };
    read().ok_or_else(|| {
        "the stored noise is not the one that was found for this plan: the database was changed; restore the newest backup, or submit the plan \
         again"
            .to_owned()
    })
}

fn checksum(plan_toml: &str, bits: u64) -> Digest {
    Digest::of(format!("{} {bits:016x}", Digest::of(plan_toml.as_bytes())).as_bytes())
}

impl Store {
    /// Keeps the noise multiplier that was found for a run which an earlier release has accepted.
    pub(crate) async fn calibrated(
        &self,
        run: RunId,
        plan_toml: &str,
        noise_multiplier: Positive,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("UPDATE runs SET calibrated = $1 WHERE run = $2")
            .bind(write(plan_toml, noise_multiplier))
            .bind(run.to_string())
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.commit().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_comes_back_to_the_bit_for_its_own_plan_and_for_no_other() {
        let noise = Positive::new(0.1 + 0.2).unwrap();
        let column = write("rounds = 3", noise);
        assert_eq!(read("rounds = 3", &column).unwrap(), noise);
        assert!(read("rounds = 4", &column).is_err());
        for at in 0..column.len() {
            let mut changed = column.clone().into_bytes();
            changed[at] ^= 1;
            assert!(read("rounds = 3", &String::from_utf8(changed).unwrap()).is_err(), "byte {at}");
        }
        assert!(read("rounds = 3", "").is_err());
    }
}
