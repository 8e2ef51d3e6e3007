//! What is learned: models, data, partitions, local training and evaluation. The only crate that links candle; it knows
//! nothing of networks, and starts no threads: parallelism is one [`Trainer`] a core.
//!
//! Reading order: [`Trainer`] (a [`protocol::Learner`] on candle) · [`Model`], [`Models`] (what it trains; yours too) ·
//! [`ops`] (layers with checked gradients) · [`device`] (where it runs) · the data it learns from · [`onnx`] (how it leaves).

pub mod device;
mod initialise;
mod kernels;
mod layers;
mod model;
pub mod onnx;
pub mod ops;
mod optimizer;
mod training;

pub use initialise::initial_parameters;
pub use model::{Mode, Model, ModelError, Models, layout_of};
pub use training::{LayerTime, StepTime, Trainer, gradient_path, step_time};

mod data;
mod partition;

pub use data::{
    ColumnSurvey, CsvSource, DataSource, Dataset, Decimal, Features, FileSource, Fraction, IdFiles, IdSource,
    Identified, IdxSource, Labels, NaturalClient, NumpySource, Prepared, Separator, SiteData, SourceError,
    SourceSpec, TableSurvey, View, expand, header, load, load_measured, load_measured_with_ids,
    load_with_ids, probe, survey,
};
pub use partition::{Partition, PartitionError, Sizes, partition};
