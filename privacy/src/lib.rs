//! What must not leak: clipping, the integer lattice and the exact sum.
//!
//! An update passes through four types, and each can be made in one way only:
//! [`Clipped`] by [`clip`] (or [`Lattice::clip`], layer by layer), [`Encoded`] by [`Encoded::encode`] (at a client) or [`Encoded::admit`] (at a server, which
//! trusts no client), [`Sum`] by folding `Encoded` values, [`Released`] from a `Sum`. Only a `Released` moves a model.
//!
//! This crate works on slices. It knows nothing of learning, networks or clocks, and of files only [`chain::segments`] does.

pub mod accounting;
pub mod adaptive;
pub mod audit;
pub mod chain;
mod clipping;
pub mod correlation;
mod kernels;
mod lattice;
mod layers;
pub mod ledger;
mod moments;
pub mod noise;
mod released;
mod statistics;
mod sum;
mod wide;
mod words;

pub use clipping::{Clipped, NormBound, NormBoundError, NotFinite, clip};
pub use kernels::first_not_finite;
pub use lattice::{Encoded, Inadmissible, Lattice, LatticeError, LocalNoiseError, Weight};
pub use ledger::Permit;
pub use moments::Moments;
pub use released::{Noising, ReleaseError, Released};
pub use statistics::{Statistics, StatisticsError};
pub use sum::{Sum, SumError};
pub use wide::{NotSummable, WORDS, WideSum};
pub use words::{counted, plural, verb};
