//! Records: where they are read from, how they lie in memory, and how they are made ready for a model.
//!
//! Refuses to guess: a cell, a file or a length that does not fit the plan is an error that names the place.

mod dataset;
mod prepare;

pub use dataset::{Dataset, Labels, View};
pub use prepare::{DataSource, Prepared, SiteData};
