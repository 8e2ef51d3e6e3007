//! What lets programs of different releases speak with each other: a hello that says what a site knows, and what is said of a frame or
//! a task that is not understood.

use serde::{Deserialize, Serialize};

use super::codec::decode_prefix;
use super::messages::{Hello, PROBE};
use crate::{Capabilities, Seed, Standardiser, TaskId};

/// The ALPN protocols of sites and operators, the preferred one first. A client offers all of them, and the server takes the first that
/// both know: a program of an earlier release offers, or takes, the last alone.
pub const ALPNS: [&[u8]; 2] = [ALPN_CAPABLE, super::ALPN];
/// ALPN of the protocol in which a hello is a [`CapableHello`] and an answer may be announced by [`Resent`].
pub const ALPN_CAPABLE: &[u8] = b"consortia/2";
/// The most bytes of a [`CapableHello`].
pub const HELLO_MAX: usize = 16 * 1024;

/// The client's first words over [`ALPN_CAPABLE`], in the place of [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapableHello {
    /// See [`Hello::software`].
    pub software: String,
    /// What it knows. A server asks it for nothing else.
    pub capabilities: Capabilities,
}

impl CapableHello {
    /// Whether its client takes no part.
    pub fn is_probe(&self) -> bool {
        self.software.ends_with(PROBE)
    }
}

/// A program of the release before says nothing of what it knows.
impl From<Hello> for CapableHello {
    fn from(hello: Hello) -> Self {
        Self { software: hello.software, capabilities: Capabilities::of_earlier_release() }
    }
}

/// A site's answer on a stream that began with a frame of a kind that it does not know: it has passed over that frame, reads nothing that
/// follows, and does nothing about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsupported {
    /// The kind's number.
    pub kind: u8,
}

/// Stands before the header of an answer that was computed for an earlier stream and is sent again: what it cost was reserved then, so that
/// no record of the site's ledger has to follow from this one. Only over [`ALPN_CAPABLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resent;

/// A task whose header is not understood: it can be declined, and no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadTask {
    /// Which task.
    pub id: TaskId,
    /// The number of its kind of work, where that is what is not known.
    pub work: Option<u32>,
}

/// The fields of a task's header up to the number of its work. They were the same in every release and stay so.
#[derive(Deserialize)]
struct Prefix {
    _id: TaskId,
    _spec_json: String,
    _seed: Option<Seed>,
    _standardiser: Option<Standardiser>,
    work: u32,
}

/// Kinds of work that this program knows: the variants of [`super::WorkHeader`].
const WORKS: u32 = 4;

impl UnreadTask {
    /// Of the body of a task's header, or of its beginning, that does not decode; `None` where not even the task's id can be read.
    pub fn of(body: &[u8]) -> Option<Self> {
        let work = decode_prefix::<Prefix>(body).map(|prefix| prefix.work).filter(|work| *work >= WORKS);
        decode_prefix(body).map(|id| Self { id, work })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FRAME_HEAD, FrameKind, TaskHeader, WorkHeader, decode, encode};
    use super::*;
    use crate::{Round, RunId, StepId};

    fn body(work: WorkHeader) -> Vec<u8> {
        let id = TaskId::new(RunId(5), Round(2), StepId::method(3));
        let header = TaskHeader {
            id,
            spec_json: "{}".into(),
            seed: Some(Seed::from_number(1)),
            standardiser: Some(Standardiser { mean: vec![1.0], std: vec![2.0] }),
            work,
            model_len: 0,
        };
        encode(FrameKind::Task, &header)[FRAME_HEAD..].to_vec()
    }

    #[test]
    fn work_of_an_unknown_kind_is_known_by_its_task_and_its_number() {
        let mut later = body(WorkHeader::Evaluate);
        let at = later.len() - 12;
        later[at..at + 4].copy_from_slice(&WORKS.to_le_bytes());
        assert!(decode::<TaskHeader>(&later).is_err());
        let unread = UnreadTask::of(&later).unwrap();
        assert_eq!((unread.id.run, unread.id.step, unread.work), (RunId(5), StepId::method(3), Some(WORKS)));
        let cut = UnreadTask::of(&later[..20]).unwrap();
        assert_eq!((cut.id, cut.work), (unread.id, None));
        assert_eq!(UnreadTask::of(&later[..15]), None);
    }

    #[test]
    fn every_kind_of_work_of_this_program_is_below_the_first_unknown_one() {
        let method = WorkHeader::Method {
            method: "m".parse().unwrap(),
            version: 1,
            numbers: Vec::new(),
            blocks: Vec::new(),
        };
        let train = WorkHeader::Train { learning_rate_scale: 1.0, norm_max: None };
        let all = [WorkHeader::Statistics, train, WorkHeader::Evaluate, method];
        assert_eq!(all.len() as u32, WORKS);
        for work in all {
            assert_eq!(UnreadTask::of(&body(work)).unwrap().work, None);
        }
    }
}
