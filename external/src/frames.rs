//! What travels between an agent and a learner: docs/learner.md, frame by frame.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The version of the channel that this code speaks.
pub const VERSION: u32 = 1;
/// Bytes of a header, at most.
pub const HEADER_MAX: usize = 1 << 20;
/// Bytes of a frame before its header.
pub(crate) const HEAD: usize = 12;
/// Characters of a learner's name for its software, at most.
pub(crate) const SOFTWARE_MAX: usize = 200;
/// Bytes of a learner's traceback, at most.
pub(crate) const DETAILS_MAX: usize = 64 << 10;

/// A tensor of f32 by name and shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TensorShape<'a> {
    /// Unique in its model.
    pub name: Cow<'a, str>,
    /// Empty for a scalar.
    pub shape: Cow<'a, [usize]>,
}

/// A tensor of the learner's own list.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct LearnerTensor {
    /// Unique in its model.
    pub name: String,
    /// Empty for a scalar.
    pub shape: Vec<usize>,
    /// Whether it stays at the site.
    #[serde(default)]
    pub personal: bool,
}

/// For whom a learner works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientPlace {
    /// The client's name.
    pub name: String,
    /// Its number, from 0.
    pub index: usize,
    /// How many clients this learner may be asked to work for; 1 at a site.
    pub clients: usize,
}

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ToLearner<'a> {
    Welcome {
        version: u32,
        software: &'a str,
        alive_seconds: u64,
        silent_seconds: u64,
        body_max: u64,
    },
    Refused {
        reason: &'a str,
    },
    Prepare {
        id: u64,
        config: &'a serde_json::Map<String, serde_json::Value>,
        tensors: Vec<TensorShape<'a>>,
        metrics: &'a [String],
    },
    Initialise {
        id: u64,
        client: &'a ClientPlace,
        seed: u64,
    },
    Train {
        id: u64,
        round: u32,
        client: &'a ClientPlace,
        seed: u64,
        epochs: u32,
        batch_size: usize,
        learning_rate_scale: f64,
        /// Of FedProx; else none.
        #[serde(skip_serializing_if = "Option::is_none")]
        proximal_mu: Option<f64>,
    },
    Evaluate {
        id: u64,
        client: &'a ClientPlace,
    },
    Acknowledged {
        id: u64,
    },
    Rejected {
        id: u64,
        reason: &'a str,
    },
    Stop {
        id: u64,
    },
    End,
}

/// What a learner says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum FromLearner {
    Hello {
        versions: Vec<u32>,
        #[serde(default)]
        software: String,
        token: Option<String>,
    },
    Alive,
    Accepted {
        id: u64,
    },
    Result(Outcome),
    Failed {
        id: u64,
        error: String,
        #[serde(default)]
        details: String,
    },
    /// Of a later version; it is passed over.
    #[serde(other)]
    Unknown,
}

impl FromLearner {
    /// Its `type`.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Alive => "alive",
            Self::Accepted { .. } => "accepted",
            Self::Result(_) => "result",
            Self::Failed { .. } => "failed",
            Self::Unknown => "frame of an unknown type",
        }
    }
}

/// What a request led to.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) id: u64,
    /// Of `prepare`.
    #[serde(default)]
    pub(crate) tensors: Vec<LearnerTensor>,
    /// Of `train` and `evaluate`.
    #[serde(default)]
    pub(crate) examples: u64,
    #[serde(default)]
    pub(crate) metrics: BTreeMap<String, f64>,
    /// That of the request, from a learner whose objective had the term.
    pub(crate) proximal_mu: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_of_an_unknown_type_and_unknown_fields_are_passed_over() {
        let read = |text: &str| serde_json::from_str::<FromLearner>(text);
        assert_eq!(read(r#"{"type":"picture","colour":[1,{"deep":2}]}"#).unwrap(), FromLearner::Unknown);
        let hello = read(r#"{"type":"hello","versions":[1,2],"software":"mine","mood":"good"}"#).unwrap();
        assert_eq!(hello, FromLearner::Hello { versions: vec![1, 2], software: "mine".into(), token: None });
        assert!(read(r#"{"versions":[1]}"#).is_err() && read("[]").is_err());
        assert!(read(r#"{"type":"result","id":1,"metrics":{"loss":NaN}}"#).is_err());
    }

    #[test]
    fn requests_are_written_as_the_page_shows_them() {
        let client = ClientPlace { name: "north".into(), index: 0, clients: 1 };
        let train = ToLearner::Train {
            id: 2,
            round: 1,
            client: &client,
            seed: 42,
            epochs: 1,
            batch_size: 32,
            learning_rate_scale: 1.0,
            proximal_mu: None,
        };
        let page = include_str!("../../docs/learner.md");
        let shown = serde_json::to_string(&train).unwrap();
        assert!(page.contains(&shown), "{shown}");
        let welcome = ToLearner::Welcome {
            version: VERSION,
            software: concat!("consortia ", env!("CARGO_PKG_VERSION")),
            alive_seconds: 5,
            silent_seconds: 60,
            body_max: 8 << 30,
        };
        let shown = serde_json::to_string(&welcome).unwrap();
        assert!(page.contains(&shown), "{shown}");
        let (config, shape) = ([("width".to_owned(), 2.into())].into_iter().collect(), [2]);
        let tensors = vec![TensorShape { name: "w".into(), shape: shape[..].into() }];
        let prepare = ToLearner::Prepare { id: 1, config: &config, tensors, metrics: &[] };
        let shown = serde_json::to_string(&prepare).unwrap();
        assert!(page.contains(&shown), "{shown}");
    }
}
