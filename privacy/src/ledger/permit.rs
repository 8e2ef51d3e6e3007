//! The right to release: what only a ledger can give.

use super::Reservation;
use super::records::Noised;

/// The right to a number of releases with at least this much noise, reserved in a ledger. It cannot be copied, stored or
/// made by anyone but a ledger:
///
/// ```compile_fail,E0277
/// fn copy(_: impl Clone) {}
/// fn take(permit: privacy::Permit) { copy(permit) }
/// ```
#[derive(Debug)]
#[must_use = "a permit is a reservation: spend it or cancel it"]
pub struct Permit {
    reservation: Reservation,
    left: u64,
    noised: Option<Noised>,
}

/// A permit that does not cover a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PermitError {
    /// Every release it was for has been made.
    #[error("the permit was for {0} releases, and all of them have been made; reserve again")]
    Spent(u64),
}

impl Permit {
    pub(super) fn new(reservation: Reservation) -> Self {
        let left = reservation.releases;
        Self { reservation, left, noised: None }
    }

    /// What it is for.
    pub fn reservation(&self) -> &Reservation {
        &self.reservation
    }

    /// The noise it asks for, over the sensitivity of a release.
    pub fn noise_multiplier(&self) -> f64 {
        self.reservation.charge.mechanism.noise_multiplier()
    }

    /// Releases that may still be made with it.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Whether something was noised with it.
    pub(super) fn is_touched(&self) -> bool {
        self.noised.is_some()
    }

    /// Takes the right to one release, before its noise is drawn.
    pub(crate) fn take(&mut self) -> Result<(), PermitError> {
        self.left = self.left.checked_sub(1).ok_or(PermitError::Spent(self.reservation.releases))?;
        Ok(())
    }

    /// Remembers how a release was noised; of several, the one with the least noise and the worst provenance.
    pub(crate) fn note(&mut self, noised: Noised) {
        self.noised = Some(match self.noised.take() {
            Some(before) => before.worse(noised),
            None => noised,
        });
    }

    pub(super) fn into_parts(self) -> (Reservation, Option<Noised>) {
        (self.reservation, self.noised)
    }
}
