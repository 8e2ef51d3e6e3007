//! What an agent does, told to whoever prints it.

use std::net::SocketAddr;
use std::time::Duration;

use protocol::{Decline, Rejection, StepId, TaskId};

/// One step of an agent's life. Meant for a terminal or a log at the site: messages may name files and values of the
/// site and are never sent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AgentEvent {
    /// The server has greeted us.
    Connected {
        /// Its address.
        server: SocketAddr,
        /// Whether packets travel in a TCP stream.
        over_tcp: bool,
        /// Name and version of its software.
        software: String,
        /// The name it knows us by, from our certificate.
        you: String,
    },
    /// There is no connection, and the agent will try again.
    Waiting {
        /// What happened and what to do about it.
        error: String,
        /// Until the next attempt.
        retry_in: Duration,
    },
    /// A task has arrived with its model, and work on it begins.
    Started {
        /// The task.
        task: TaskId,
    },
    /// The answer to the task was computed before and is sent again as it was: nothing is trained or charged anew.
    Resending {
        /// The task.
        task: TaskId,
    },
    /// What was kept as the answer to the task cannot be sent again and was thrown away: the task is done once more, and charged once more.
    Discarded {
        /// The task.
        task: TaskId,
        /// Why it cannot be sent.
        why: String,
    },
    /// A training was charged to the site's privacy budget before, and has been charged once more: there was no answer of it to send again.
    ChargedAgain {
        /// The task.
        task: TaskId,
    },
    /// The task is done and its answer leaves.
    Answering {
        /// The task.
        task: TaskId,
    },
    /// The site did not do a task; the server was told the reason and nothing else of this.
    Declined {
        /// The task.
        task: TaskId,
        /// The reason in one word.
        reason: Decline,
        /// The full message.
        message: String,
    },
    /// Something went wrong with the records of a task, and it was answered all the same: the plan's promise lets nobody outside
    /// see it. This is for the site's own people.
    Complained {
        /// The task.
        task: TaskId,
        /// What it was.
        message: String,
    },
    /// The server took the answer.
    Accepted {
        /// The task.
        task: TaskId,
    },
    /// The server did not take the answer.
    Refused {
        /// The task.
        task: TaskId,
        /// Its reason.
        refusal: Rejection,
        /// What that means for the site.
        meaning: &'static str,
    },
    /// A task came to nothing: the server no longer wanted it, its bytes made no sense, or the line broke.
    Abandoned {
        /// The task, when its header could be read.
        task: Option<TaskId>,
        /// Why.
        error: String,
    },
    /// The operator holds the site in quarantine: no task will come.
    Quarantined {
        /// Why, in the operator's words; may be empty.
        reason: String,
    },
    /// The operator has ended the quarantine.
    Released,
    /// The agent, which has been connected, has said goodbye.
    Left,
}

/// What a refused answer means for the site.
pub(super) fn meaning(refusal: Rejection) -> &'static str {
    match refusal {
        Rejection::Unsolicited => "the server did not ask this site; nothing to do",
        Rejection::Stale => {
            "the round ended without this answer: enough others had come, or its deadline was over; if it is so in every round, a faster machine or a \
             later deadline helps"
        }
        Rejection::Duplicate => "the server already has this site's answer; nothing to do",
        Rejection::Malformed | Rejection::WrongKind | Rejection::WrongShape | Rejection::OutOfRange => {
            "the server does not understand the answer; install the same release on both sides"
        }
        Rejection::NormExceeded | Rejection::WrongWeight | Rejection::BadVote => {
            "the update breaks the plan's bounds; install the same release on both sides"
        }
        Rejection::BadMetrics => "the metrics are not finite; check the site's data",
        Rejection::Oversize => {
            "the answer is larger than the plan allows; install the same release on both sides"
        }
        Rejection::Truncated => "the line broke during the upload; the server may ask again",
        Rejection::Quarantined => "the operator holds this site in quarantine; ask why",
        Rejection::TooSlow => {
            "the upload paused for too long, or was slow while others waited; the reason with which the server closed the connection has the limits"
        }
    }
}

impl std::fmt::Display for AgentEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connected { server, over_tcp, software, you } => {
                let how = if *over_tcp { " over TCP" } else { "" };
                write!(f, "connected to {server}{how} ({software}) as {you}")
            }
            Self::Waiting { error, retry_in } => {
                let seconds = retry_in.as_secs_f64();
                // Shorter than one could read it.
                if seconds < 0.05 {
                    return write!(f, "not connected: {error}; trying again at once");
                }
                write!(f, "not connected: {error}; trying again in {seconds:.1} s")
            }
            Self::Started { task } => write!(f, "{}", begun(*task)),
            Self::Resending { task } => {
                write!(f, "the {task} was done before: its answer is sent again, and nothing is charged")
            }
            Self::Discarded { task, why } => {
                write!(
                    f,
                    "the answer that was kept for the {task} is thrown away ({why}); the task is done anew, and charged again"
                )
            }
            Self::ChargedAgain { task } => {
                write!(
                    f,
                    "the {task} was charged before and is charged again: the first time ended without an answer that could be sent again, as when \
                     a connection or a program ends during the work"
                )
            }
            Self::Answering { task } => write!(f, "answering the {task}"),
            Self::Declined { task, reason, message } => {
                write!(f, "declined the {task} ({}): {message}", reason.name())
            }
            Self::Complained { task, message } => {
                write!(f, "the {task} met an error that the server is not told: {message}")
            }
            Self::Accepted { task } => write!(f, "the server has noted the answer to the {task}"),
            Self::Refused { task, refusal, meaning } => {
                write!(f, "the server did not take the answer to the {task} ({}): {meaning}", refusal.name())
            }
            Self::Abandoned { task: Some(task), error } => write!(f, "gave up the {task}: {error}"),
            Self::Abandoned { task: None, error } => write!(f, "gave up a task: {error}"),
            Self::Quarantined { reason } => {
                let why = if reason.is_empty() { "no reason was given" } else { reason };
                write!(
                    f,
                    "the operator holds this site in quarantine ({why}): no task comes until the operator releases it"
                )
            }
            Self::Released => f.write_str("the operator has released this site from quarantine"),
            Self::Left => f.write_str("left the federation's server"),
        }
    }
}

fn begun(task: TaskId) -> String {
    let doing = match task.step {
        StepId::STATISTICS => "counting".into(),
        StepId::TRAIN => "training".into(),
        StepId::EVALUATE => "evaluating".into(),
        _ => task.step_title(),
    };
    format!("{doing} in round {} of run {}", task.round, task.run)
}
