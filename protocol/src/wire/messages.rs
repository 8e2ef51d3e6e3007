//! What client and server say to each other.

use std::sync::Arc;

use privacy::chain::Digest;
use serde::{Deserialize, Serialize};

use crate::{
    Answer, BLOCKS_MAX, Block, BlockHead, Contribution, DType, Decline, MethodWork, Metrics, NUMBERS_MAX,
    Name, Outcome, Parameters, PayloadSpec, Positive, Rejection, RunId, SUMS, Seed, Spec, Standardiser, Task,
    TaskId, UPDATE, UpdateCodec, Values, Work,
};

/// The client's first words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Name and version of its software, for the operator's log. Where it ends with [`PROBE`], the client only looks whether it would be
    /// let in: it gets no task, takes no other connection's place, and nothing that it claims is remembered.
    pub software: String,
}

/// How a client's software ends that takes no part.
pub const PROBE: &str = " (site check)";

impl Hello {
    /// Whether its client takes no part.
    pub fn is_probe(&self) -> bool {
        self.software.ends_with(PROBE)
    }
}

/// What a site with a ledger says behind its hello: how long the ledger is. A server that knows no such message passes over it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerClaim {
    /// Records.
    pub records: u64,
    /// The hash of the last of them; zeros without one.
    pub head: Digest,
}

impl LedgerClaim {
    /// By what a ledger that has charged the loss of this one, and of `answered` updates that came after it was claimed, names it in
    /// [`LedgerProof::replaced`]: its head; where it has no record, the SHA-256 of [`LOST_WITHOUT_RECORDS`] and the number, since the
    /// zeros that stand for its head name nothing.
    pub fn name_of_loss(&self, answered: u64) -> Digest {
        if self.records > 0 {
            return self.head;
        }
        Digest::of(format!("{LOST_WITHOUT_RECORDS}{answered}").as_bytes())
    }
}

/// What [`LedgerClaim::name_of_loss`] hashes, with the decimal number behind it.
pub const LOST_WITHOUT_RECORDS: &str = "a ledger without records, and updates: ";

/// A site's answer to [`Greeting::Prove`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerProof {
    /// The head that the ledger had at that length; none when it is shorter.
    pub head: Option<Digest>,
    /// Ledgers that were lost and whose loss this one has charged, each by [`LedgerClaim::name_of_loss`], newest first, at most
    /// [`REPLACED_MAX`].
    pub replaced: Vec<Digest>,
}

/// Heads of lost ledgers that a proof names at most.
pub const REPLACED_MAX: usize = 16;

/// The server's answer to a hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Greeting {
    /// Tasks will follow.
    Welcome {
        /// Name and version of the server's software.
        software: String,
        /// The name that the server read from the client's certificate.
        you: String,
    },
    /// The connection will be closed.
    Rejected(ConnectError),
    /// Only to a site that has claimed a ledger, of which the server remembers another head: a [`LedgerProof`] is due, and then
    /// another greeting follows.
    Prove {
        /// The length of the ledger that the server remembers.
        records: u64,
    },
}

/// Why a connection is closed by the server; also the text of the QUIC close.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ConnectError {
    /// Another protocol version.
    #[error(
        "the server speaks protocol version {server}, this client version {client}; install the same release on both sides"
    )]
    Version {
        /// The server's.
        server: u16,
        /// The client's.
        client: u16,
    },
    /// The first message was not a hello.
    #[error("the first message was not a hello of this protocol")]
    NotAHello,
    /// A certificate of this federation, but not for a site.
    #[error("no certificate came that names a site; ask the operator for an invite")]
    NotASite,
    /// The same site has connected again; the newer connection stays.
    #[error("the same site has connected again, and the newer connection replaces this one")]
    Superseded,
    /// The server is going down and will be back.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The server has all the connections it allows.
    #[error("the server has as many connections as it allows; try again later")]
    Busy,
    /// The site's certificate is void.
    #[error("the operator has revoked this site's certificate; ask for a new invite if that was a mistake")]
    Revoked,
    /// The first message did not come in time: a machine or a line is busy.
    #[error("the first message did not come in time; try again later")]
    Late,
    /// The site's ledger does not go on from the one that the server remembers. Only to a site that has claimed a ledger. The text has
    /// no numbers: it stands in logs, and the length of a ledger shows how often a site was drawn in secret.
    #[error(
        "the server remembers a ledger of this site, and the ledger here does not go on from it: this folder is a copy or an older backup. Run one \
         copy only; where this is the one that is left, `consortia site recover --believe-server` charges what is missing"
    )]
    LedgerForked {
        /// What it remembers.
        known: LedgerClaim,
        /// At most as many records as that ledger has reserved since then: updates that came, and of runs with secret cohorts all rounds,
        /// which are the same for every connected site.
        answered: u64,
    },
    /// The server remembers a ledger of this site, which claims none now.
    #[error(
        "the server remembers a ledger of this site, and none was named; start the site's program with its state folder, or ask the operator for \
         a new invite"
    )]
    LedgerMissing,
}

/// What the server tells a site between tasks, on a stream of its own that it finishes; nothing is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// The operator holds the site in quarantine: no task will come, and none that is open is wanted any more.
    Quarantined {
        /// Why, in the operator's words; may be empty.
        reason: String,
    },
    /// The quarantine is over.
    Released,
}

/// What a site asks for beside its tasks, on a stream of its own of a connection that only looks ([`PROBE`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SiteRequest {
    /// Send the last released model of a run that the site took part in. It is answered as an operator's request for a model.
    Model {
        /// The run; the newest of them when `None`.
        run: Option<RunId>,
    },
}

/// A task without raw values. The model's `model_len` words of 4 bytes follow: values of f32, or what the plan's broadcast codec makes of
/// them; then the values of a method's blocks, one block after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskHeader {
    /// Which task.
    pub id: TaskId,
    /// The [`Spec`] as JSON.
    pub spec_json: String,
    /// The run's seed, where it is a seeded run.
    pub seed: Option<Seed>,
    /// Federation-wide standardisation, once known.
    pub standardiser: Option<Standardiser>,
    /// The work.
    pub work: WorkHeader,
    /// Words of 4 bytes that follow.
    pub model_len: u64,
}

/// The work of a task without raw values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum WorkHeader {
    /// [`Work::Statistics`].
    Statistics,
    /// [`Work::Train`].
    Train {
        /// The schedule's factor.
        learning_rate_scale: f64,
        /// The round's clipping norm, where it is not the plan's.
        norm_max: Option<Positive>,
    },
    /// [`Work::Evaluate`].
    Evaluate,
    /// [`Work::Method`]. A program that does not know the method declines it; one of the first release cannot read this variant.
    Method {
        /// The method.
        method: Name,
        /// Its version.
        version: u16,
        /// Named numbers.
        numbers: Vec<(Name, f64)>,
        /// The blocks that follow, in order.
        blocks: Vec<BlockHead>,
    },
}

/// Why a task's header does not make a task.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskHeaderError {
    /// The plan does not parse or does not make sense.
    #[error("the plan in the task is not understood: {0}; is this site's software older than the server's?")]
    Spec(String),
    /// The task contradicts itself.
    #[error("the task contradicts itself: {0}")]
    Contradiction(&'static str),
}

impl TaskHeader {
    /// The header of `task`. `spec_json` is the JSON of the task's spec, made once a run by [`Spec::to_json`].
    pub fn of(task: &Task, spec_json: &str) -> Self {
        let work = match &task.work {
            Work::Statistics { .. } => WorkHeader::Statistics,
            Work::Train { learning_rate_scale, norm_max, .. } => {
                WorkHeader::Train { learning_rate_scale: *learning_rate_scale, norm_max: *norm_max }
            }
            Work::Evaluate { .. } => WorkHeader::Evaluate,
            Work::Method(work) => WorkHeader::Method {
                method: work.method.clone(),
                version: work.version,
                numbers: work.numbers.clone(),
                blocks: work.blocks.iter().map(Block::head).collect(),
            },
        };
        Self {
            id: task.id,
            spec_json: spec_json.to_owned(),
            seed: task.seed,
            standardiser: task.standardiser.as_deref().cloned(),
            work,
            model_len: task
                .work
                .model()
                .map_or(0, |model| task.spec.update.broadcast.words(model.len()) as u64),
        }
    }

    /// The blocks that follow the model.
    pub fn blocks(&self) -> &[BlockHead] {
        match &self.work {
            WorkHeader::Method { blocks, .. } => blocks,
            WorkHeader::Statistics | WorkHeader::Train { .. } | WorkHeader::Evaluate => &[],
        }
    }

    /// Bytes of raw values that follow; `None` when no machine could hold them.
    pub fn payload_bytes(&self) -> Option<u64> {
        let model = self.model_len.checked_mul(size_of::<f32>() as u64)?;
        self.blocks().iter().try_fold(model, |sum, block| sum.checked_add(block.bytes()?))
    }

    /// The task, once the model's words and the values of the blocks have come, in order.
    ///
    /// # Errors
    /// [`TaskHeaderError`] when the spec or the numbers do not make sense.
    pub fn into_task(self, words: Vec<f32>, values: Vec<Values>) -> Result<Task, TaskHeaderError> {
        let spec =
            Spec::from_json(&self.spec_json).map_err(|error| TaskHeaderError::Spec(error.to_string()))?;
        let contradiction = |what| Err(TaskHeaderError::Contradiction(what));
        let model = Arc::new(Parameters::new(spec.update.broadcast.unpack(words)));
        let work = match self.work {
            WorkHeader::Statistics => Work::Statistics { names: spec.statistics() },
            WorkHeader::Train { learning_rate_scale, norm_max } => {
                if !(learning_rate_scale.is_finite() && learning_rate_scale >= 0.0) {
                    return contradiction("the learning rate's factor is not a number of at least 0");
                }
                Work::Train { model, learning_rate_scale, norm_max }
            }
            WorkHeader::Evaluate => Work::Evaluate { model },
            WorkHeader::Method { method, version, numbers, blocks } => {
                if numbers.len() > NUMBERS_MAX || blocks.len() > BLOCKS_MAX {
                    return contradiction("it has more numbers or blocks than a task may have");
                }
                if !numbers.iter().all(|(_, number)| number.is_finite()) {
                    return contradiction("one of its numbers is not finite");
                }
                let blocks = joined(blocks, values).ok_or(TaskHeaderError::Contradiction(
                    "the values that came are not those that were announced",
                ))?;
                Work::Method(Arc::new(MethodWork { method, version, numbers, blocks }))
            }
        };
        let standardiser = self.standardiser.map(Arc::new);
        Ok(Task { id: self.id, spec: Arc::new(spec), seed: self.seed, standardiser, work })
    }
}

/// The blocks that heads and values make; `None` where they do not fit.
fn joined(heads: Vec<BlockHead>, values: Vec<Values>) -> Option<Vec<Block>> {
    let fits = |(head, values): (&BlockHead, &Values)| {
        head.dtype == values.dtype() && head.len == values.len() as u64
    };
    let fit = heads.len() == values.len() && heads.iter().zip(&values).all(fits);
    fit.then(|| heads.into_iter().zip(values).map(|(head, values)| Block::new(head.name, values)).collect())
}

/// An answer without its raw values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnswerHeader {
    /// The task it answers.
    pub task: TaskId,
    /// What came of it.
    pub body: AnswerBody,
}

/// What came of a task, without raw values. What training answers has forms of its own, which take fewer bytes than the general one and are
/// all that sites of the first release send.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AnswerBody {
    /// `len` lattice points (i32) follow: the block [`UPDATE`].
    Trained {
        /// Lattice points that follow.
        len: u64,
        /// Weight of the update.
        weight: u32,
        /// Whether it was within the norm, where the plan asks.
        vote: i8,
        /// Metrics of the training.
        metrics: Metrics,
    },
    /// Nothing follows.
    Evaluated {
        /// Metrics of the model.
        metrics: Metrics,
    },
    /// `len` words (i64) follow: the block [`SUMS`].
    Counted {
        /// Words that follow.
        len: u64,
    },
    /// Nothing follows.
    Declined {
        /// Why.
        reason: Decline,
        /// For the operator.
        detail: String,
    },
    /// `bytes` bytes follow: the short form of `len` lattice points by the plan's codec.
    Compressed {
        /// Bytes that follow.
        bytes: u64,
        /// Lattice points that they say.
        len: u64,
        /// Weight of the update.
        weight: u32,
        /// Whether it was within the norm, where the plan asks.
        vote: i8,
        /// Metrics of the training.
        metrics: Metrics,
    },
    /// The values of these blocks follow, one block after the other.
    Contributed {
        /// See [`Contribution::weight`].
        weight: u32,
        /// See [`Contribution::vote`].
        vote: i8,
        /// What was measured on the way.
        metrics: Option<Metrics>,
        /// The blocks that follow, in order.
        blocks: Vec<BlockHead>,
    },
    /// What an external learner has done of a plan that names further metrics: an update, as [`AnswerBody::Trained`] or
    /// [`AnswerBody::Compressed`] have it, or an evaluation.
    Measured {
        /// Lattice points of the update; none for an evaluation.
        len: Option<u64>,
        /// Bytes that follow instead of the points, where the update has a short form.
        packed: Option<u64>,
        /// Weight of the update.
        weight: u32,
        /// Whether it was within the norm, where the plan asks.
        vote: i8,
        /// Metrics of the training, or of the model.
        metrics: Metrics,
        /// See [`Contribution::further`].
        further: Vec<f64>,
    },
}

/// The raw values that follow an answer's header, one vector after the other.
pub type Payload = Vec<Values>;

/// The most bytes of a decline's detail that travel.
const DETAIL_MAX: usize = 512;

impl AnswerHeader {
    /// Splits an answer into its header and the values that follow it.
    pub fn split(answer: Answer) -> (Self, Payload) {
        let (body, payload) = match answer.outcome {
            Outcome::Done(contribution) => divided(contribution),
            Outcome::Declined { reason, detail } => {
                let end = detail
                    .char_indices()
                    .map(|(at, c)| at + c.len_utf8())
                    .take_while(|end| *end <= DETAIL_MAX);
                let end = end.last().unwrap_or(0);
                (AnswerBody::Declined { reason, detail: detail[..end].to_owned() }, Payload::new())
            }
        };
        (Self { task: answer.task, body }, payload)
    }

    /// [`AnswerHeader::split`], with an update in the short form of `codec` where it has one. Points may always travel as they are.
    pub fn pack(answer: Answer, codec: UpdateCodec) -> (Self, Payload) {
        let (header, payload) = Self::split(answer);
        let is_update = matches!(header.body, AnswerBody::Trained { .. } | AnswerBody::Measured { .. });
        let ([Values::I32(points)], true) = (&payload[..], is_update) else { return (header, payload) };
        let Some(short) = codec.pack(points) else { return (header, payload) };
        let bytes = short.len() as u64;
        let body = match header.body {
            AnswerBody::Trained { len, weight, vote, metrics } => {
                AnswerBody::Compressed { bytes, len, weight, vote, metrics }
            }
            AnswerBody::Measured { len, weight, vote, metrics, further, .. } => {
                AnswerBody::Measured { len, packed: Some(bytes), weight, vote, metrics, further }
            }
            other => other,
        };
        (Self { task: header.task, body }, vec![Values::U8(short)])
    }

    /// The blocks that the answer has, whatever form they travel in.
    pub fn blocks(&self) -> Vec<BlockHead> {
        let one = |name, dtype, len| vec![BlockHead { name, dtype, len }];
        match &self.body {
            AnswerBody::Trained { len, .. } | AnswerBody::Compressed { len, .. } => {
                one(UPDATE, DType::I32, *len)
            }
            AnswerBody::Measured { len: Some(len), .. } => one(UPDATE, DType::I32, *len),
            AnswerBody::Counted { len } => one(SUMS, DType::I64, *len),
            AnswerBody::Evaluated { .. } | AnswerBody::Measured { .. } | AnswerBody::Declined { .. } => {
                Vec::new()
            }
            AnswerBody::Contributed { blocks, .. } => blocks.clone(),
        }
    }

    /// The types and numbers of the values that follow, vector by vector.
    pub fn values(&self) -> Vec<(DType, u64)> {
        match self.short_form() {
            Some((bytes, _)) => vec![(DType::U8, bytes)],
            None => self.blocks().iter().map(|block| (block.dtype, block.len)).collect(),
        }
    }

    /// Bytes of memory that the answer takes, with its short form where it has one; `None` when no machine could hold them.
    pub fn memory_bytes(&self) -> Option<u64> {
        match self.short_form() {
            Some((bytes, len)) => len.checked_mul(size_of::<i32>() as u64)?.checked_add(bytes),
            None => self.payload_bytes(),
        }
    }

    /// Bytes of an update's short form, and the points that they say; `None` where values travel as they are.
    pub fn short_form(&self) -> Option<(u64, u64)> {
        match self.body {
            AnswerBody::Compressed { bytes, len, .. } => Some((bytes, len)),
            AnswerBody::Measured { len: Some(len), packed: Some(bytes), .. } => Some((bytes, len)),
            _ => None,
        }
    }

    /// Bytes of raw values that the header announces; `None` when no machine could hold them.
    pub fn payload_bytes(&self) -> Option<u64> {
        let bytes = |(dtype, len): (DType, u64)| len.checked_mul(dtype.width() as u64);
        self.values().into_iter().try_fold(0u64, |sum, values| sum.checked_add(bytes(values)?))
    }

    /// Joins the header with its values, of which a short form is `codec`'s. `None` when they are of another type or number than
    /// announced, or no short form. The caller has checked the lengths.
    pub fn join(self, payload: Payload, codec: UpdateCodec) -> Option<Answer> {
        let heads = self.blocks();
        let outcome = match self.body {
            AnswerBody::Declined { reason, detail } => {
                payload.is_empty().then_some(Outcome::Declined { reason, detail })?
            }
            AnswerBody::Compressed { len, weight, vote, metrics, .. } => {
                let [Values::U8(packed)] = &payload[..] else { return None };
                let points = codec.unpack(packed, usize::try_from(len).ok()?).ok()?;
                Outcome::trained(points, weight, vote, metrics)
            }
            AnswerBody::Trained { weight, vote, metrics, .. } => {
                let blocks = joined(heads, payload)?;
                Outcome::Done(Contribution {
                    weight,
                    vote,
                    metrics: Some(metrics),
                    ..Contribution::of(blocks)
                })
            }
            AnswerBody::Measured { len, packed, weight, vote, metrics, further } => {
                let blocks = match (len, packed, &payload[..]) {
                    (Some(len), Some(_), [Values::U8(packed)]) => {
                        let points = codec.unpack(packed, usize::try_from(len).ok()?).ok()?;
                        vec![Block::new(UPDATE, Values::I32(points))]
                    }
                    (_, None, _) => joined(heads, payload)?,
                    (_, Some(_), _) => return None,
                };
                Outcome::Done(Contribution { weight, vote, metrics: Some(metrics), further, blocks })
            }
            AnswerBody::Evaluated { metrics } => payload.is_empty().then(|| Outcome::evaluated(metrics))?,
            AnswerBody::Counted { .. } => Outcome::Done(Contribution::of(joined(heads, payload)?)),
            AnswerBody::Contributed { weight, vote, metrics, .. } => {
                let blocks = joined(heads, payload)?;
                Outcome::Done(Contribution { weight, vote, metrics, ..Contribution::of(blocks) })
            }
        };
        Some(Answer { task: self.task, outcome })
    }

    /// Compares what is announced with what the task expects, before any memory is taken.
    ///
    /// # Errors
    /// The reason why the answer is refused.
    pub fn check_lengths(&self, expected: &PayloadSpec) -> Result<(), Rejection> {
        if matches!(self.body, AnswerBody::Declined { .. }) {
            return Ok(());
        }
        let short = self.short_form();
        // A short form of no update has no points, and nothing to be unpacked into.
        let is_of_nothing = matches!(self.body, AnswerBody::Measured { len: None, packed: Some(_), .. });
        if (short.is_some() && expected.codec == UpdateCodec::Exact) || is_of_nothing {
            return Err(Rejection::WrongKind);
        }
        expected.check(&self.blocks())?;
        match short {
            Some((bytes, len))
                if usize::try_from(len).is_ok_and(|len| bytes > expected.codec.bytes_max(len)) =>
            {
                Err(Rejection::Oversize)
            }
            _ => Ok(()),
        }
    }
}

/// The form in which a contribution travels, and its values.
fn divided(contribution: Contribution) -> (AnswerBody, Payload) {
    let Contribution { weight, vote, metrics, further, blocks } = contribution;
    let body = match (&blocks[..], metrics) {
        ([Block { name, values: Values::I32(points) }], Some(metrics))
            if *name == UPDATE && !further.is_empty() =>
        {
            let len = Some(points.len() as u64);
            AnswerBody::Measured { len, packed: None, weight, vote, metrics, further }
        }
        ([], Some(metrics)) if !further.is_empty() => {
            AnswerBody::Measured { len: None, packed: None, weight, vote, metrics, further }
        }
        ([Block { name, values: Values::I32(points) }], Some(metrics)) if *name == UPDATE => {
            AnswerBody::Trained { len: points.len() as u64, weight, vote, metrics }
        }
        ([Block { name, values: Values::I64(words) }], None) if *name == SUMS && (weight, vote) == (1, 0) => {
            AnswerBody::Counted { len: words.len() as u64 }
        }
        ([], Some(metrics)) if (weight, vote) == (1, 0) => AnswerBody::Evaluated { metrics },
        _ => {
            let blocks = blocks.iter().map(Block::head).collect();
            AnswerBody::Contributed { weight, vote, metrics, blocks }
        }
    };
    (body, blocks.into_iter().map(|block| block.values).collect())
}

/// The server's last words on a task's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Receipt {
    /// The answer counts.
    Accepted,
    /// The answer does not count.
    Refused(Rejection),
}
