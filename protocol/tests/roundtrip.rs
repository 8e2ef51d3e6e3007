//! Properties of the codec: every message comes back as it was sent, and no bytes whatever make a reader panic, or take
//! memory that the bytes do not pay for.

#![expect(clippy::unwrap_used, reason = "a test that finds nothing to unwrap has failed")]

use privacy::WORDS;
use privacy::chain::Digest;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use protocol::wire::{
    ADMIN_MAX, AdminReply, AdminRequest, AnswerBody, AnswerHeader, Applicant, CapableHello, Certificate,
    ClientSummary, CodecError, ConnectError, Control, FRAME_HEAD, FrameHead, FrameKind, Greeting, HEADER_MAX,
    Hello, LedgerClaim, LedgerProof, Member, ModelChoice, ModelLine, Notice, Quarantine, REPLACED_MAX,
    Receipt, Resent, RoundSummary, RunState, RunSummary, SMALL_MAX, Seen, SiteRequest, TaskHeader,
    Unsupported, WorkHeader, decode, encode,
};
use protocol::{
    Answer, Block, BlockHead, CAPABILITIES_MAX, Capabilities, Capability, ClientId, Contribution, DType,
    Decline, Metrics, Name, Outcome, PayloadSpec, Positive, Rejection, Round, RunId, SUMS, Seed, Spec,
    Standardiser, StepId, TaskId, UpdateCodec, Values,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

const KINDS: [FrameKind; 13] = [
    FrameKind::Hello,
    FrameKind::Greeting,
    FrameKind::Task,
    FrameKind::Answer,
    FrameKind::Receipt,
    FrameKind::AdminRequest,
    FrameKind::AdminReply,
    FrameKind::Notice,
    FrameKind::LedgerClaim,
    FrameKind::LedgerProof,
    FrameKind::Unsupported,
    FrameKind::Resent,
    FrameKind::SiteRequest,
];

fn task_id() -> impl Strategy<Value = TaskId> {
    let kind = prop::sample::select(vec![StepId::STATISTICS, StepId::TRAIN, StepId::EVALUATE]);
    (any::<u64>(), any::<u32>(), kind)
        .prop_map(|(run, round, kind)| TaskId::new(RunId(run), Round(round), kind))
}

fn capabilities() -> impl Strategy<Value = Capabilities> {
    let capability = ("[!-~]{1,80}", any::<u16>()).prop_map(|(name, version)| Capability { name, version });
    let list = prop::collection::btree_set(capability, 0..=CAPABILITIES_MAX);
    list.prop_map(|list| Capabilities::try_from(Vec::from_iter(list)).unwrap())
}

fn number() -> impl Strategy<Value = f64> {
    prop::num::f64::ANY.prop_filter("NaN is not equal to itself", |value| !value.is_nan())
}

fn metrics() -> impl Strategy<Value = Metrics> {
    (number(), option::of(number()), any::<u64>(), number())
        .prop_map(|(loss, accuracy, examples, seconds)| Metrics { loss, accuracy, examples, seconds })
}

fn refusal() -> impl Strategy<Value = Rejection> {
    prop::sample::select(Rejection::ALL.to_vec())
}

fn decline() -> impl Strategy<Value = Decline> {
    use Decline::{Budget, Data, Failed, NotFinite, Paused, Policy, Stopped, Unsupported};
    prop::sample::select(vec![Unsupported, Data, NotFinite, Stopped, Failed, Policy, Budget, Paused])
}

fn greeting() -> impl Strategy<Value = Greeting> {
    use ConnectError::{Busy, Late, LedgerMissing, NotAHello, NotASite, Revoked, ShuttingDown, Superseded};
    let others = vec![NotAHello, NotASite, Superseded, ShuttingDown, Busy, Revoked, Late, LedgerMissing];
    let others = prop::sample::select(others);
    let forked =
        (claim(), any::<u64>()).prop_map(|(known, answered)| ConnectError::LedgerForked { known, answered });
    let version =
        (any::<u16>(), any::<u16>()).prop_map(|(server, client)| ConnectError::Version { server, client });
    prop_oneof![
        (".{0,40}", ".{0,40}").prop_map(|(software, you)| Greeting::Welcome { software, you }),
        others.prop_map(Greeting::Rejected),
        version.prop_map(Greeting::Rejected),
        forked.prop_map(Greeting::Rejected),
        any::<u64>().prop_map(|records| Greeting::Prove { records }),
    ]
}

fn claim() -> impl Strategy<Value = LedgerClaim> {
    (any::<u64>(), digest()).prop_map(|(records, head)| LedgerClaim { records, head })
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<u64>().prop_map(|number| Digest::of(&number.to_le_bytes()))
}

fn task_header() -> impl Strategy<Value = TaskHeader> {
    let work = prop_oneof![
        Just(WorkHeader::Statistics),
        (number(), option::of(1e-6f64..1e6)).prop_map(|(learning_rate_scale, norm_max)| WorkHeader::Train {
            learning_rate_scale,
            norm_max: norm_max.map(|norm| Positive::new(norm).unwrap()),
        }),
        Just(WorkHeader::Evaluate),
        (name(), any::<u16>(), vec((name(), number()), 0..4), vec(head(), 0..4)).prop_map(
            |(method, version, numbers, blocks)| WorkHeader::Method { method, version, numbers, blocks }
        ),
    ];
    let standardiser = (vec(number(), 0..9), vec(number(), 0..9));
    let standardiser = standardiser.prop_map(|(mean, std)| Standardiser { mean, std });
    let seed = any::<[u8; 32]>().prop_map(Seed::from_entropy);
    (task_id(), ".{0,300}", option::of(seed), option::of(standardiser), work, any::<u64>()).prop_map(
        |(id, spec_json, seed, standardiser, work, model_len)| TaskHeader {
            id,
            spec_json,
            seed,
            standardiser,
            work,
            model_len,
        },
    )
}

fn answer_header() -> impl Strategy<Value = AnswerHeader> {
    let body = prop_oneof![
        (any::<u64>(), any::<u32>(), any::<i8>(), metrics())
            .prop_map(|(len, weight, vote, metrics)| AnswerBody::Trained { vote, len, weight, metrics }),
        metrics().prop_map(|metrics| AnswerBody::Evaluated { metrics }),
        (any::<[u64; 2]>(), any::<u32>(), any::<i8>(), metrics()).prop_map(
            |([bytes, len], weight, vote, metrics)| AnswerBody::Compressed {
                bytes,
                len,
                weight,
                vote,
                metrics
            }
        ),
        any::<u64>().prop_map(|len| AnswerBody::Counted { len }),
        (decline(), ".{0,100}").prop_map(|(reason, detail)| AnswerBody::Declined { reason, detail }),
        (any::<u32>(), any::<i8>(), option::of(metrics()), vec(head(), 0..4)).prop_map(
            |(weight, vote, metrics, blocks)| AnswerBody::Contributed { weight, vote, metrics, blocks }
        ),
    ];
    (task_id(), body).prop_map(|(task, body)| AnswerHeader { task, body })
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        (vec(any::<i32>(), 0..50), any::<u32>(), any::<i8>(), metrics())
            .prop_map(|(points, weight, vote, metrics)| Outcome::trained(points, weight, vote, metrics)),
        metrics().prop_map(Outcome::evaluated),
        vec(any::<i64>(), 0..50).prop_map(Outcome::counted),
        (decline(), ".{0,100}").prop_map(|(reason, detail)| Outcome::Declined { reason, detail }),
        (any::<u32>(), any::<i8>(), option::of(metrics()), vec(block(), 0..4)).prop_map(
            |(weight, vote, metrics, blocks)| {
                Outcome::Done(Contribution { weight, vote, metrics, ..Contribution::of(blocks) })
            }
        ),
        (option::of(vec(any::<i32>(), 0..50)), any::<u32>(), metrics(), vec(-1e9..1e9, 1..4)).prop_map(
            |(points, weight, metrics, further)| {
                let evaluated = Outcome::evaluated(metrics);
                let outcome = points.map_or(evaluated, |points| Outcome::trained(points, weight, 0, metrics));
                match outcome {
                    Outcome::Done(done) => Outcome::Done(Contribution { further, ..done }),
                    other => other,
                }
            }
        ),
    ]
}

fn name() -> impl Strategy<Value = Name> {
    prop::sample::select(vec!["update", "sums", "key", "a-share.1"]).prop_map(|name| name.parse().unwrap())
}

fn dtype() -> impl Strategy<Value = DType> {
    use DType::{F32, F64, I32, I64, U8, U32, U64};
    prop::sample::select(vec![I32, I64, U32, U64, F32, F64, U8])
}

fn head() -> impl Strategy<Value = BlockHead> {
    (name(), dtype(), any::<u64>()).prop_map(|(name, dtype, len)| BlockHead { name, dtype, len })
}

/// Small integers, so that those which are floating are equal to themselves.
fn block() -> impl Strategy<Value = Block> {
    (name(), dtype(), vec(any::<u8>(), 0..9)).prop_map(|(name, dtype, bytes)| {
        let bytes: Vec<u8> = bytes
            .iter()
            .flat_map(|byte| {
                let mut wide = vec![0; dtype.width()];
                wide[0] = *byte;
                wide
            })
            .collect();
        Block::new(name, Values::from_le_bytes(dtype, &bytes).unwrap())
    })
}

fn request() -> impl Strategy<Value = AdminRequest> {
    prop_oneof![
        (".{0,300}", any::<Option<u64>>())
            .prop_map(|(plan_toml, seed)| AdminRequest::Submit { plan_toml, seed }),
        (".{0,300}", any::<Option<u64>>(), vec((".{0,20}", vec(any::<u64>(), 0..4)), 0..3), any::<u64>())
            .prop_map(|(plan_toml, seed, tensors, model_len)| AdminRequest::SubmitStart {
                plan_toml,
                seed,
                tensors,
                model_len
            }),
        Just(AdminRequest::List),
        any::<Option<u64>>().prop_map(|run| AdminRequest::Watch { run: run.map(RunId) }),
        (any::<u64>(), control())
            .prop_map(|(run, control)| AdminRequest::Control { run: RunId(run), control }),
        any::<Option<u64>>().prop_map(|run| AdminRequest::Log { run: run.map(RunId) }),
        any::<Option<u64>>().prop_map(|run| AdminRequest::Models { run: run.map(RunId) }),
        (any::<Option<u64>>(), any::<u32>())
            .prop_map(|(run, before)| AdminRequest::ModelsBefore { run: run.map(RunId), before }),
        (any::<Option<u64>>(), choice())
            .prop_map(|(run, choice)| AdminRequest::Model { run: run.map(RunId), choice }),
        (client(), ".{0,80}").prop_map(|(site, reason)| AdminRequest::Quarantine { site, reason }),
        client().prop_map(|site| AdminRequest::Release { site }),
        (client(), any::<Option<String>>()).prop_map(|(site, phrase)| AdminRequest::Approve { site, phrase }),
        (client(), any::<Option<String>>()).prop_map(|(site, phrase)| AdminRequest::Refuse { site, phrase }),
        any::<Option<u64>>().prop_map(|run| AdminRequest::Plan { run: run.map(RunId) }),
    ]
}

fn client() -> impl Strategy<Value = ClientId> {
    "[a-z0-9_][a-z0-9._-]{0,63}".prop_map(|name| ClientId::new(&name).unwrap())
}

fn control() -> impl Strategy<Value = Control> {
    use Control::{Pause, Resume, Stop, StopNow};
    prop::sample::select(vec![Pause, Resume, Stop, StopNow])
}

fn choice() -> impl Strategy<Value = ModelChoice> {
    prop_oneof![Just(ModelChoice::Last), Just(ModelChoice::Best), any::<u32>().prop_map(ModelChoice::Round)]
}

fn model_line() -> impl Strategy<Value = ModelLine> {
    let (text, measured) = (|| "[0-9a-f]{0,64}", || option::of(metrics()));
    let texts = (text(), option::of(text()));
    (any::<u32>(), texts, measured(), measured(), option::of(number()), any::<[bool; 2]>()).prop_map(
        |(round, (sha256, parent_sha256), sites, central, epsilon, [best, kept])| ModelLine {
            round,
            sha256,
            parent_sha256,
            sites,
            central,
            epsilon,
            best,
            kept,
        },
    )
}

fn fetched_model() -> impl Strategy<Value = AdminReply> {
    let tensors = vec((".{0,20}", vec(any::<u64>(), 0..4)), 0..3);
    let scales = option::of((vec(number(), 0..3), vec(number(), 0..3)));
    (any::<(u64, u64)>(), model_line(), ".{0,100}", tensors, scales).prop_map(
        |((run, model_len), line, statement, tensors, scales)| AdminReply::Model {
            run: RunId(run),
            line,
            statement,
            tensors,
            standardiser: scales.map(|(mean, std)| Standardiser { mean, std }),
            model_len,
        },
    )
}

fn round_summary() -> impl Strategy<Value = RoundSummary> {
    let measured = || option::of(metrics());
    (any::<[u32; 3]>(), any::<bool>(), measured(), measured(), measured(), number(), option::of(number()))
        .prop_map(|([round, cohort, answered], released, train, sites, central, seconds, epsilon)| {
            let further = Default::default();
            RoundSummary {
                round,
                released,
                cohort,
                answered,
                train,
                sites,
                central,
                seconds,
                epsilon,
                further,
            }
        })
}

fn client_summary() -> impl Strategy<Value = ClientSummary> {
    let counts = || vec(("[a-z_]{1,12}", any::<u32>()), 0..4);
    (client(), any::<bool>(), any::<u32>(), counts(), counts(), option::of(metrics())).prop_map(
        |(client, connected, accepted, refused, declined, test)| ClientSummary {
            client,
            connected,
            accepted,
            refused,
            declined,
            test,
        },
    )
}

fn run_summary() -> impl Strategy<Value = RunSummary> {
    use RunState::{BudgetExhausted, Failed, Finished, Paused, Queued, Running, Stopped, Stopping};
    let states = vec![Queued, Running, Finished, Failed, BudgetExhausted, Paused, Stopping, Stopped];
    let state = prop::sample::select(states);
    let texts = (".{0,40}", ".{0,80}", "[0-9a-f]{0,64}");
    let lists = (vec(round_summary(), 0..5), vec(client_summary(), 0..5));
    (any::<u64>(), state, texts, any::<(u32, u32, bool)>(), lists).prop_map(
        |(run, state, (name, message, model_sha256), numbers, (history, clients))| RunSummary {
            run: RunId(run),
            name,
            state,
            message,
            rounds_done: numbers.0,
            rounds: numbers.1,
            is_seeded: numbers.2,
            model_sha256,
            history,
            clients,
        },
    )
}

fn reply() -> impl Strategy<Value = AdminReply> {
    prop_oneof![
        any::<u64>().prop_map(|run| AdminReply::Submitted { run: RunId(run) }),
        vec(run_summary(), 0..3).prop_map(AdminReply::Runs),
        run_summary().prop_map(AdminReply::Run),
        ".{0,300}".prop_map(AdminReply::Error),
        ".{0,300}".prop_map(AdminReply::Plan),
        vec(".{0,100}", 0..4).prop_map(AdminReply::Log),
        vec(model_line(), 0..3).prop_map(AdminReply::Models),
        vec(member(), 0..4).prop_map(AdminReply::Members),
        fetched_model(),
    ]
}

fn member() -> impl Strategy<Value = Member> {
    let quarantine = (any::<u64>(), ".{0,40}").prop_map(|(since, reason)| Quarantine { since, reason });
    let times = (any::<[u64; 2]>(), option::of(any::<u64>()), option::of(any::<u64>()));
    let applicant = (".{0,20}", any::<[u64; 2]>(), ".{0,20}")
        .prop_map(|(phrase, [since, expires], address)| Applicant { phrase, since, expires, address });
    let certificate = (".{0,20}", any::<[u64; 2]>()).prop_map(|(serial, [issued, expires])| Certificate {
        serial,
        issued,
        expires,
    });
    let seen = (any::<u64>(), option::of(any::<u64>()), ".{0,20}", ".{0,20}")
        .prop_map(|(since, left, address, software)| Seen { since, left, address, software });
    let known = (vec(certificate, 0..3), option::of(seen));
    (client(), times, option::of(quarantine), vec(applicant, 0..3), known).prop_map(
        |(site, ([invited, expires], joined, revoked), quarantine, waiting, (certificates, seen))| Member {
            site,
            invited,
            expires,
            joined,
            revoked,
            quarantine,
            waiting,
            certificates,
            seen,
        },
    )
}

fn notice() -> impl Strategy<Value = Notice> {
    prop_oneof![".{0,80}".prop_map(|reason| Notice::Quarantined { reason }), Just(Notice::Released)]
}

/// Writes a message, reads it back, and tries every shorter body and one that is a byte too long.
fn comes_back<T>(kind: FrameKind, message: &T) -> Result<(), TestCaseError>
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let frame = encode(kind, message);
    let (head, body) = frame.split_at(FRAME_HEAD);
    let head = FrameHead::parse(head.try_into().unwrap(), kind, ADMIN_MAX).unwrap();
    prop_assert_eq!(head.len, body.len());
    prop_assert_eq!(&decode::<T>(body).unwrap(), message);
    for end in (0..body.len()).step_by(body.len() / 64 + 1) {
        prop_assert!(decode::<T>(&body[..end]).is_err(), "{} of {} bytes are a message", end, body.len());
    }
    let longer = [body, &[0]].concat();
    prop_assert!(matches!(decode::<T>(&longer), Err(CodecError::Body(_))));
    Ok(())
}

/// Reads bytes as a message; what is read is written as the same bytes.
fn reads<T: Serialize + DeserializeOwned>(kind: FrameKind, bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(message) = decode::<T>(bytes) {
        prop_assert_eq!(&encode(kind, &message)[FRAME_HEAD..], bytes);
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_greeting_comes_back_as_it_was_sent(
        software in ".{0,200}",
        greeting in greeting(),
        claim in claim(),
        proof in (option::of(digest()), vec(digest(), 0..=REPLACED_MAX)),
        capabilities in capabilities(),
        kind in any::<u8>(),
    ) {
        let (head, replaced) = proof;
        comes_back(FrameKind::LedgerClaim, &claim)?;
        comes_back(FrameKind::LedgerProof, &LedgerProof { head, replaced })?;
        comes_back(FrameKind::Hello, &Hello { software: software.clone() })?;
        comes_back(FrameKind::Hello, &CapableHello { software, capabilities })?;
        comes_back(FrameKind::Unsupported, &Unsupported { kind })?;
        comes_back(FrameKind::Resent, &Resent)?;
        comes_back(FrameKind::SiteRequest, &SiteRequest::Model { run: None })?;
        comes_back(FrameKind::Greeting, &greeting)?;
    }

    #[test]
    fn a_task_comes_back_as_it_was_sent(header in task_header()) {
        comes_back(FrameKind::Task, &header)?;
    }

    #[test]
    fn an_answer_comes_back_as_it_was_sent(header in answer_header()) {
        comes_back(FrameKind::Answer, &header)?;
    }

    #[test]
    fn a_receipt_comes_back_as_it_was_sent(reason in refusal()) {
        comes_back(FrameKind::Receipt, &Receipt::Refused(reason))?;
        comes_back(FrameKind::Receipt, &Receipt::Accepted)?;
    }

    #[test]
    fn a_notice_comes_back_as_it_was_sent(notice in notice()) {
        comes_back(FrameKind::Notice, &notice)?;

    }

    #[test]
    fn an_operator_s_messages_come_back_as_they_were_sent(request in request(), reply in reply()) {
        comes_back(FrameKind::AdminRequest, &request)?;
        comes_back(FrameKind::AdminReply, &reply)?;
    }

    #[test]
    fn an_answer_is_split_and_joined_without_loss(task in task_id(), outcome in outcome()) {
        let answer = Answer { task, outcome };
        let (header, payload) = AnswerHeader::split(answer.clone());
        let sizes: usize = payload.iter().map(|values| values.len() * values.dtype().width()).sum();
        prop_assert_eq!(header.payload_bytes(), Some(sizes as u64));
        prop_assert_eq!(header.join(payload, UpdateCodec::Exact), Some(answer));
    }

    #[test]
    fn a_packed_answer_comes_back_and_its_lengths_are_the_plan_s(task in task_id(), points in vec(-500..500, 1..50)) {
        let metrics = Metrics::default();
        let answer = Answer { task, outcome: Outcome::trained(points, 1, 0, metrics) };
        let (header, payload) = AnswerHeader::pack(answer.clone(), UpdateCodec::Packed);
        let points = answer.outcome.points().unwrap();
        if let [Values::U8(bytes)] = &payload[..] {
            prop_assert!(bytes.len() < 4 * points.len());
            prop_assert_eq!(header.payload_bytes(), Some(bytes.len() as u64));
            prop_assert_eq!(header.memory_bytes(), Some((bytes.len() + 4 * points.len()) as u64));
            let check = |codec, dimension| header.check_lengths(&PayloadSpec::update(dimension, codec));
            prop_assert_eq!(check(UpdateCodec::Packed, points.len()), Ok(()));
            prop_assert_eq!(check(UpdateCodec::Exact, points.len()), Err(Rejection::WrongKind));
            prop_assert!(check(UpdateCodec::Packed, points.len() + 1).is_err());
            let mut longer = bytes.clone();
            longer.push(0);
            prop_assert_eq!(header.clone().join(vec![Values::U8(longer)], UpdateCodec::Packed), None);
        }
        prop_assert_eq!(header.join(payload, UpdateCodec::Packed), Some(answer));
    }

    #[test]
    fn only_the_planned_lengths_pass(header in answer_header(), dimension in 0usize..9, statistics in 0usize..9) {
        let declines = matches!(header.body, AnswerBody::Declined { .. });
        let passes = |spec: PayloadSpec| header.check_lengths(&spec).is_ok();
        let trained = matches!(header.body, AnswerBody::Trained { len, .. } if len == dimension as u64);
        prop_assert_eq!(passes(PayloadSpec::update(dimension, UpdateCodec::Exact)), trained || declines);
        let words = statistics * WORDS;
        let counted = matches!(header.body, AnswerBody::Counted { len } if len == words as u64);
        prop_assert_eq!(passes(PayloadSpec::one(SUMS, DType::I64, words)), counted || declines);
        let bare = header.blocks().is_empty();
        prop_assert_eq!(passes(PayloadSpec::none()), bare);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in vec(any::<u8>(), 0..300)) {
        reads::<Hello>(FrameKind::Hello, &bytes)?;
        reads::<CapableHello>(FrameKind::Hello, &bytes)?;
        reads::<Unsupported>(FrameKind::Unsupported, &bytes)?;
        reads::<Resent>(FrameKind::Resent, &bytes)?;
        reads::<SiteRequest>(FrameKind::SiteRequest, &bytes)?;
        reads::<Greeting>(FrameKind::Greeting, &bytes)?;
        reads::<TaskHeader>(FrameKind::Task, &bytes)?;
        reads::<AnswerHeader>(FrameKind::Answer, &bytes)?;
        reads::<Receipt>(FrameKind::Receipt, &bytes)?;
        reads::<Notice>(FrameKind::Notice, &bytes)?;
        reads::<LedgerClaim>(FrameKind::LedgerClaim, &bytes)?;
        reads::<LedgerProof>(FrameKind::LedgerProof, &bytes)?;
        reads::<AdminRequest>(FrameKind::AdminRequest, &bytes)?;
        reads::<AdminReply>(FrameKind::AdminReply, &bytes)?;
    }

    #[test]
    fn a_message_with_a_few_wrong_bytes_is_read_or_refused(
        reply in reply(), header in task_header(), faults in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let spoilt = |mut frame: Vec<u8>| {
            let mut body = frame.split_off(FRAME_HEAD);
            faults.iter().for_each(|(place, byte)| *place.get_mut(&mut body[..]) = *byte);
            body
        };
        reads::<AdminReply>(FrameKind::AdminReply, &spoilt(encode(FrameKind::AdminReply, &reply)))?;
        let body = spoilt(encode(FrameKind::Task, &header));
        reads::<TaskHeader>(FrameKind::Task, &body)?;
        if let Ok(header) = decode::<TaskHeader>(&body) {
            // Random text is no plan: it is refused, whatever the rest says.
            prop_assert!(header.into_task(Vec::new(), Vec::new()).is_err());
        }
    }

    #[test]
    fn a_head_is_checked_before_anything_is_read(head in any::<[u8; FRAME_HEAD]>(), limit in 0usize..1 << 22) {
        for kind in KINDS {
            prop_assert!(FrameHead::parse(head, kind, limit).is_err() || head.starts_with(b"CSRT"));
        }
        // The same with the right beginning, so that the length decides.
        let mut right = encode(FrameKind::Task, &());
        right[8..].copy_from_slice(&head[8..]);
        let announced = u32::from_le_bytes(head[8..].try_into().unwrap()) as usize;
        match FrameHead::parse(right.try_into().unwrap(), FrameKind::Task, limit) {
            Ok(head) => prop_assert!(head.len == announced && announced <= limit),
            Err(error) => prop_assert_eq!(error, CodecError::Oversize { limit, found: announced }),
        }
    }

    #[test]
    fn text_that_is_no_plan_is_refused_as_a_plan(text in ".{0,200}") {
        prop_assert!(Spec::from_json(&text).is_err());
    }

    #[test]
    fn a_length_that_no_bytes_pay_for_is_an_error(claim in 1u64 << 24..=u64::MAX, rest in vec(any::<u8>(), 0..64)) {
        let claimed = |before: &[u8]| [before, &claim.to_le_bytes(), &rest].concat();
        let variant = |number: u32| number.to_le_bytes();
        prop_assert!(decode::<Hello>(&claimed(&[])).is_err());
        prop_assert!(decode::<Greeting>(&claimed(&variant(0))).is_err());
        prop_assert!(decode::<AdminRequest>(&claimed(&variant(0))).is_err());
        prop_assert!(decode::<AdminReply>(&claimed(&variant(1))).is_err());
        prop_assert!(decode::<AdminReply>(&claimed(&variant(3))).is_err());
        // A task's header: its plan, and, behind an empty plan and no seed, the standardiser's means.
        prop_assert!(decode::<TaskHeader>(&claimed(&[0; 16])).is_err());
        let mut before = vec![0; 16 + 8 + 1];
        before.push(1);
        prop_assert!(decode::<TaskHeader>(&claimed(&before)).is_err());
        // An answer that declines: its detail.
        let mut before = vec![0; 16];
        before.extend(variant(3));
        before.extend(variant(1));
        prop_assert!(decode::<AnswerHeader>(&claimed(&before)).is_err());
    }
}

#[test]
fn a_claim_of_exabytes_takes_no_memory_and_no_time() {
    // Memory for either claim would abort the test.
    let body = [&1u32.to_le_bytes()[..], &(1u64 << 60).to_le_bytes()].concat();
    assert!(decode::<AdminReply>(&body).is_err());
    assert!(decode::<Hello>(&body[4..]).is_err());
}

#[test]
fn the_limits_leave_room_for_the_largest_messages_that_are_sent() {
    let detail = "ä".repeat(1000);
    let task = TaskId::new(RunId(1), Round(1), StepId::TRAIN);
    let declined = Answer { task, outcome: Outcome::Declined { reason: Decline::Data, detail } };
    let (header, _) = AnswerHeader::split(declined);
    let AnswerBody::Declined { detail, .. } = &header.body else { panic!("a decline stays one") };
    assert_eq!(detail.len(), 512);
    assert!(encode(FrameKind::Answer, &header).len() - FRAME_HEAD <= SMALL_MAX);
    const { assert!(SMALL_MAX < HEADER_MAX && HEADER_MAX < ADMIN_MAX) };
}
