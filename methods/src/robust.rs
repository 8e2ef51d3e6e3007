//! Rules that see every update of a round and keep a few corrupted clients from deciding where the model goes, and steps before them.
//!
//! ```toml
//! [aggregation]
//! rule = "krum"        # or with settings: { trimmed_mean = { beta = 0.3 } }
//! corrupted = 2        # f, of the n updates of a round
//! before = ["nearest_neighbour_mixing"]
//! ```
//!
//! One file each. They weigh all updates alike, and promise nothing about privacy: the server sees each update. Values are in steps of the
//! lattice; sums go over updates in the order of their clients' names.

mod bucketing;
mod centred_clipping;
mod coordinate_median;
mod distances;
mod geometric_median;
mod krum;
mod mixing;
mod trimmed_mean;

pub use bucketing::Bucketing;
pub use centred_clipping::CentredClipping;
pub use coordinate_median::CoordinateMedian;
pub use geometric_median::GeometricMedian;
pub use krum::{Krum, MultiKrum};
pub use mixing::NearestNeighbourMixing;
pub use trimmed_mean::TrimmedMean;

use protocol::SpecError;
use serde::Deserialize;

/// The table of a rule without settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoSettings {}

/// A setting out of range.
fn fault<T>(key: &str, message: String) -> Result<T, SpecError> {
    Err(SpecError::new(key, message))
}

#[cfg(test)]
mod tests;
