//! Why a learner did not do what it was asked for, and what the server hears of it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use protocol::{Decline, LearnError};

use crate::attach::AttachError;
use crate::channel::ChannelError;
use crate::frames::VERSION;

/// Why a learner did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExternalError {
    /// It cannot be started.
    #[error("the learner `{command}` cannot be started in {}: {source}", folder.display())]
    Start {
        /// The program.
        command: String,
        /// Its folder.
        folder: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Nobody attached.
    #[error("no learner attached within {} s (`start_seconds`); start one with CONSORTIA_LEARNER={}", waited.as_secs(), file.display())]
    Nobody {
        /// How long.
        waited: Duration,
        /// What a learner reads.
        file: PathBuf,
    },
    /// It cannot attach.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The connection is of no more use.
    #[error("{fault}{exit}")]
    Broken {
        /// What was wrong.
        fault: ChannelError,
        /// How its process ended and what it printed last, where it has one.
        exit: String,
        /// Whether a learner that had answered before was gone before it answered any of this request.
        is_unheard: bool,
    },
    /// It speaks other versions.
    #[error(
        "the learner speaks versions {0:?} of the channel, and this program {VERSION}; install the package of this release"
    )]
    Version(Vec<u32>),
    /// It failed too often.
    #[error("the learner failed {failures} times in a row; it is started again in {} s", wait.as_secs())]
    Pausing {
        /// How often.
        failures: u32,
        /// For how long.
        wait: Duration,
    },
    /// It said so itself.
    #[error("the learner's script failed: {error}{details}")]
    Script {
        /// In a line.
        error: String,
        /// Its traceback, on lines of its own.
        details: String,
    },
    /// Another model than the plan's.
    #[error("the learner's model is not the plan's: {0}")]
    Model(String),
    /// What it gave cannot be.
    #[error("the learner's answer was not taken: {0}")]
    Answer(String),
    /// A value that is none.
    #[error(
        "the learner's answer was not taken: tensor `{tensor}` has {value} at place {place} of its {len} values"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// NaN or an infinity.
        value: f32,
        /// From 0.
        place: usize,
        /// How many it has.
        len: usize,
    },
    /// It was told to stop.
    #[error("the learner was told to stop")]
    Stopped,
    /// The plan is for other learners.
    #[error(
        "the plan trains a model of this program, and this site has a learner of its own (`[learner]`): its model must be `external`"
    )]
    NotExternal,
    /// The plan promises what no external learner can be held to.
    #[error(
        "the plan protects single records ([privacy.examples]), for which the gradient of each record must be clipped and noised where it is \
         computed: in an external learner nobody can account for that. Take [privacy.local] or [privacy.central], or a model of this program"
    )]
    NoExamples,
}

impl From<ExternalError> for LearnError {
    fn from(error: ExternalError) -> Self {
        let reason = match &error {
            ExternalError::NotExternal
            | ExternalError::NoExamples
            | ExternalError::Model(_)
            | ExternalError::Version(_) => Decline::Unsupported,
            ExternalError::NotFinite { .. } => Decline::NotFinite,
            ExternalError::Stopped => Decline::Stopped,
            _ => Decline::Failed,
        };
        Self::new(reason, error.to_string())
    }
}

pub(crate) fn broken(fault: ChannelError) -> ExternalError {
    ExternalError::Broken { fault, exit: String::new(), is_unheard: false }
}

pub(crate) fn rubbish(what: &str) -> ExternalError {
    broken(ChannelError::Rubbish(what.to_owned()))
}
