//! Records: where they are read from, how they lie in memory, and how they are made ready for a model.
//!
//! Refuses to guess: a cell, a file or a length that does not fit the plan is an error that names the place.

mod alone;
mod array;
mod cells;
mod classes;
mod dataset;
mod features;
mod files;
mod idx;
mod load;
mod numpy;
mod origin;
mod prepare;
mod source;
mod table;

pub use dataset::{Dataset, Labels, View};
pub use features::Features;
pub use load::{FileSource, load, load_measured};
pub use origin::{Identified, NaturalClient, load_measured_with_ids, load_with_ids};
#[cfg(test)]
pub(crate) use prepare::symbols;
pub use prepare::{DataSource, Prepared, SiteData};
pub use source::{
    CsvSource, Decimal, Fraction, IdFiles, IdSource, IdxSource, NumpySource, Separator, SourceError,
    SourceSpec, expand,
};
pub use table::{ColumnSurvey, TableSurvey, header, probe, survey};
