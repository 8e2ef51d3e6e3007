//! What is said between a federation's parties, and the few types all of them share. No input or output happens here.
//!
//! Reading order: [`ClientId`], [`Round`], [`TaskId`] (who and when) · [`Layout`], [`Parameters`] (the model as bytes) ·
//! [`Spec`] (what every site must know of a run) · [`Task`], [`Learner`], [`Answer`] (work and its result) ·
//! [`wire`] (messages per direction and their frames).

mod bounds;
mod capabilities;
mod codec;
mod config;
mod guarantee;
mod ids;
mod invite;
mod layers;
mod layout;
mod learner;
mod numbers;
mod payload;
mod seed;
mod spec;
mod task;
mod time;
pub mod wire;

pub use bounds::{
    BAND_ROUNDS_MAX, BANDS_MAX, COHORT_MAX, EXAMPLES_MAX, PARAMETERS_MAX, PLAN_BYTES_MAX, ROUNDS_MAX,
    VALUES_MAX, check_rounds,
};
pub use capabilities::{CAPABILITIES_MAX, Capabilities, CapabilitiesError, Capability};
pub use codec::{BroadcastCodec, PackedError, UpdateCodec};
pub use config::{ConfigError, in_plain_words, read_table, read_toml};
pub use guarantee::{
    BAND_UNIT, CentralPrivacy, Clipping, ExamplePrivacy, LocalPrivacy, MetricsRule, NoiseCorrelation,
    PrivacySpec, Sampling,
};
pub use ids::{ClientId, IdError, Round, RunId, StepId, StepLabel, TaskId, is_plain_name, software_name};
pub use invite::{Invite, InviteError, Token, spoken};
pub use layers::LayerSpec;
pub use layout::{Layout, LayoutError, Parameters, Placement, Tensor};
pub use learner::{
    EvaluateOrder, ExampleReleases, Label, LearnError, Learner, LentPermit, Record, RecordCount, Statistic,
    Stop, TrainOrder, Trains,
};
pub use numbers::{CELL_MAX, TaskFault};
pub use payload::{
    ANSWER_BYTES_MAX, BLOCKS_MAX, Block, BlockHead, BlockSpec, Contribution, DType, Length, Name,
    PayloadSpec, SUMS, UPDATE, Values,
};
pub use seed::{Purpose, Seed};
pub use spec::{
    CONFIG_MAX, Categorical, ClassName, DataSpec, EXTERNAL_METRICS_MAX, EXTERNAL_TENSORS_MAX,
    EvaluationRecords, External, ExternalModel, ExternalTensor, GradientPath, LearnerSpec, Loss, Missing,
    ModelSpec, OptimizerSpec, Positive, Spec, SpecError, Standardise, TableSpec, Target, TargetSpec,
    TensorSpec, TrainingSpec, UpdateSpec, VALUES_TENSOR, Weighting, flag_of,
};
pub use task::{
    Answer, Decline, METRIC_MAX, MethodWork, Metrics, NUMBERS_MAX, Outcome, Rejection, Standardiser, Task,
    Work, find_impossible,
};
pub use time::Time;
