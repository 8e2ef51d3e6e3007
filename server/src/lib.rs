//! Who decides: the plan, the coordinator of one run, aggregation and server optimizers; and, behind the feature `net`,
//! the server around them.
//!
//! Reading order: [`Plan`] (what was typed, parsed into what it means) · [`workflow`] (what comes next) · [`Coordinator`] (a state machine without input
//! or output: [`Event`] in, [`Action`] out) · [`ServerOptimizer`] (how what a round has found moves the model) · `net` (QUIC,
//! sessions, the store).

pub mod best;
mod config;
mod coordinator;
pub mod methods;
mod optimizer;
mod plan;
mod schedule;
mod selection;
mod statement;
pub mod workflow;
mod worsened;

#[cfg(feature = "net")]
pub mod net;

pub use self::methods::{Given, Method, MethodPlan, MethodStep, Methods, PlannedMethod, Rule, Step};
pub use config::{ConfigError, read_toml};
pub use coordinator::{
    Action, Checked, Checker, Checkpoint, ClientRecord, Commit, Coordinator, DpContext, Event,
    LedgerReservation, NoiseRng, Note, ProtectionError, RunEnd, RunProgress, Setup, SetupError,
};
pub use optimizer::{Adaptive, AdaptiveKind, Averaging, ModelUpdate, ServerOptimizer, StateError};
pub use plan::{
    AdaptiveConfig, AggregationConfig, AggregationPlan, CentralConfig, ClippingConfig, CohortConfig,
    CohortPlan, CohortSize, EvaluationPlan, Evaluators, FederationConfig, Named, NoiseConfig, Plan,
    PrivacyConfig, Strategy, TrainingConfig, UpdateConfig,
};
pub use schedule::{Decay, Schedule};
pub use statement::{
    Adversary, Claim, PrivacyStatement, RunPart, STATEMENT_VERSION, StatementError, Subject, against,
    assumptions, describe, outside,
};
pub use worsened::Worsened;
