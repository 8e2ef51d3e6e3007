//! A learner in a process of its own, in any language: a script trains, and the agent or the simulator asks it over one documented
//! channel (docs/learner.md).
//!
//! [`ExternalLearner`] is a [`protocol::Learner`] like any other. The process is launched or attaches itself; it is given parameters and
//! numbers of the plan, in a clean environment, and is handed nothing of the agent's folders. Whatever it does costs its task and nothing else: it is
//! ended when it is silent, works for too long or breaks the rules of the channel, and launched again for the next task, after a pause that
//! grows with failures in a row. Nothing that it sends is trusted: lengths, names and finiteness are checked here, and what bounds an update
//! comes behind it.

mod attach;
mod channel;
mod connection;
mod error;
mod frames;
mod launch;
mod learner;
mod model;
mod settings;

pub use attach::AttachError;
pub use channel::ChannelError;
pub use error::ExternalError;
pub use frames::{ClientPlace, HEADER_MAX, VERSION};
pub use learner::ExternalLearner;
pub use settings::{LearnerSettings, SettingsError};
