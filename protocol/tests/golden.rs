//! Golden bytes: every block of hexadecimal digits in `docs/protocol.md` is what the program writes and reads. A change
//! that fails here changes the wire: raise `VERSION` and the page together.

#![expect(clippy::unwrap_used, reason = "a test that finds nothing to unwrap has failed")]

use std::fmt::Debug;

use privacy::chain::Digest;
use privacy::{Encoded, Lattice, NormBound, Statistics, WideSum, clip};
use protocol::wire::{
    AdminReply, AdminRequest, AnswerBody, AnswerHeader, Applicant, CapableHello, Certificate, ClientSummary,
    ConnectError, Control, EnrolRejection, EnrolReply, EnrolRequest, FRAME_HEAD, FrameHead, FrameKind,
    Greeting, Hello, InviteText, LedgerClaim, LedgerProof, Member, ModelChoice, ModelLine, Notice,
    Quarantine, Receipt, Resent, RoundSummary, RunState, RunSummary, Seen, SiteRequest, TaskHeader,
    Unsupported, WorkHeader, decode, encode,
};
use protocol::{
    BlockHead, BroadcastCodec, Capabilities, Capability, ClientId, DType, Decline, Invite, Metrics, Name,
    Purpose, Rejection, Round, RunId, SUMS, Seed, Spec, Standardiser, StepId, TaskId, Token, UpdateCodec,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

const PAGE: &str = include_str!("../../docs/protocol.md");
const RUN: RunId = RunId(0x0123_4567_89ab_cdef);

/// The text of the page's fenced block with this heading.
fn block(heading: &str) -> &'static str {
    let opening = format!("\n```{heading}\n");
    let start = PAGE.find(&opening).unwrap_or_else(|| panic!("docs/protocol.md has no block `{heading}`"));
    let rest = &PAGE[start + opening.len()..];
    &rest[..rest.find("\n```").expect("every block is closed") + 1]
}

/// The bytes of a block: what stands before `|` in each line.
fn bytes(name: &str) -> Vec<u8> {
    let lines = block(&format!("hex {name}")).lines();
    let digits = lines.flat_map(|line| line.split('|').next().unwrap_or_default().split_whitespace());
    digits.map(|pair| u8::from_str_radix(pair, 16).unwrap_or_else(|_| panic!("{name}: `{pair}`"))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x} ")).collect()
}

/// The message is written as the block says, and the block is read as the message.
fn golden<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, kind: FrameKind, message: &T) {
    let expected = bytes(name);
    assert_eq!(
        hex(&encode(kind, message)),
        hex(&expected),
        "{name} is written otherwise than docs/protocol.md says"
    );
    let head = expected[..FRAME_HEAD].try_into().unwrap();
    let head = FrameHead::parse(head, kind, 1 << 20).unwrap();
    assert_eq!(head.len, expected.len() - FRAME_HEAD, "{name}");
    assert_eq!(decode::<T>(&expected[FRAME_HEAD..]).as_ref(), Ok(message), "{name}");
}

fn id(round: u32, kind: StepId) -> TaskId {
    TaskId::new(RUN, Round(round), kind)
}

fn task(id: TaskId, work: WorkHeader, model_len: u64) -> TaskHeader {
    TaskHeader { id, spec_json: "{}".into(), seed: None, standardiser: None, work, model_len }
}

#[test]
fn greetings_have_the_bytes_of_the_page() {
    golden("hello", FrameKind::Hello, &Hello { software: "example 1.0".into() });
    let method = Capability::method(&"k-means".parse().unwrap(), 1);
    let capabilities = Capabilities::of_this_release().with(method).unwrap();
    let capable = CapableHello { software: "example 2.0".into(), capabilities };
    golden("capable-hello", FrameKind::Hello, &capable);
    let lacking = Capabilities::try_from(vec![Capability::training(), Capability::attempts()]).unwrap();
    let lacking = CapableHello { software: "example 2.0".into(), capabilities: lacking };
    golden("lacking-hello", FrameKind::Hello, &lacking);
    let welcome = Greeting::Welcome { software: "consortia 0.1.0".into(), you: "cleveland".into() };
    golden("welcome", FrameKind::Greeting, &welcome);
    let rejected = Greeting::Rejected(ConnectError::Version { server: 1, client: 2 });
    golden("rejected", FrameKind::Greeting, &rejected);
    let head = Digest::of(b"a record");
    golden("ledger-claim", FrameKind::LedgerClaim, &LedgerClaim { records: 2, head });
    golden("ledger-prove", FrameKind::Greeting, &Greeting::Prove { records: 1 });
    let proof = LedgerProof { head: Some(head), replaced: vec![head] };
    golden("ledger-proof", FrameKind::LedgerProof, &proof);
    let known = LedgerClaim { records: 1, head };
    let forked = Greeting::Rejected(ConnectError::LedgerForked { known, answered: 3 });
    golden("ledger-forked", FrameKind::Greeting, &forked);
}

#[test]
fn tasks_have_the_bytes_of_the_page() {
    let train = TaskHeader {
        seed: Some(Seed::from_number(7)),
        standardiser: Some(Standardiser { mean: vec![54.5], std: vec![9.0] }),
        ..task(id(3, StepId::TRAIN), WorkHeader::Train { learning_rate_scale: 0.5, norm_max: None }, 2)
    };
    golden("task-train", FrameKind::Task, &train);
    golden("task-evaluate", FrameKind::Task, &task(id(3, StepId::EVALUATE), WorkHeader::Evaluate, 2));
    golden("task-statistics", FrameKind::Task, &task(id(0, StepId::STATISTICS), WorkHeader::Statistics, 0));
    let name = |name: &str| name.parse::<Name>().unwrap();
    let method = WorkHeader::Method {
        method: name("k-means"),
        version: 1,
        numbers: vec![(name("seed"), 2.0)],
        blocks: vec![BlockHead { name: name("centres"), dtype: DType::F64, len: 2 }],
    };
    golden("task-method", FrameKind::Task, &task(id(3, StepId::method(0)), method, 0));
    let model: Vec<u8> = [1.0f32, -0.5].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(bytes("model"), model);
}

#[test]
fn what_is_not_understood_and_what_is_sent_again_have_the_bytes_of_the_page() {
    golden("unsupported", FrameKind::Unsupported, &Unsupported { kind: 77 });
    golden("resent", FrameKind::Resent, &Resent);
    golden("site-request", FrameKind::SiteRequest, &SiteRequest::Model { run: Some(RUN) });
}

#[test]
fn answers_have_the_bytes_of_the_page() {
    let answer = |task, body| AnswerHeader { task, body };
    let metrics = Metrics { loss: 0.5, accuracy: Some(0.75), examples: 199, seconds: 1.5 };
    let trained = AnswerBody::Trained { len: 2, weight: 199, vote: 0, metrics };
    golden("answer-trained", FrameKind::Answer, &answer(id(3, StepId::TRAIN), trained));
    let further = vec![0.875];
    let measured =
        AnswerBody::Measured { len: Some(2), packed: None, weight: 199, vote: 0, metrics, further };
    golden("answer-measured", FrameKind::Answer, &answer(id(3, StepId::TRAIN), measured));
    let metrics = Metrics { loss: 0.25, accuracy: None, examples: 104, seconds: 0.0 };
    let evaluated = AnswerBody::Evaluated { metrics };
    golden("answer-evaluated", FrameKind::Answer, &answer(id(3, StepId::EVALUATE), evaluated));
    let counted = AnswerBody::Counted { len: 4 };
    golden("answer-counted", FrameKind::Answer, &answer(id(0, StepId::STATISTICS), counted));
    let declined = AnswerBody::Declined { reason: Decline::Data, detail: "no file".into() };
    golden("answer-declined", FrameKind::Answer, &answer(id(3, StepId::TRAIN), declined));
    let paused = AnswerBody::Declined { reason: Decline::Paused, detail: "the site has paused".into() };
    golden("answer-paused", FrameKind::Answer, &answer(id(3, StepId::TRAIN), paused));
    let blocks = vec![BlockHead { name: SUMS, dtype: DType::I64, len: 4 }];
    let contributed = AnswerBody::Contributed { weight: 1, vote: 0, metrics: None, blocks };
    golden("answer-contributed", FrameKind::Answer, &answer(id(3, StepId::method(0)), contributed));
    let metrics = Metrics { loss: 0.5, accuracy: None, examples: 199, seconds: 1.5 };
    let compressed = AnswerBody::Compressed { bytes: 8, len: 4, weight: 199, vote: 0, metrics };
    golden("answer-compressed", FrameKind::Answer, &answer(id(3, StepId::TRAIN), compressed));
}

#[test]
fn short_forms_have_the_bytes_of_the_page() {
    let points = [0, 1, -768, 1 << 30];
    let half = UpdateCodec::TopK { fraction: 0.5 };
    for (name, codec, points) in [
        ("codec-packed", UpdateCodec::Packed, &[3, -1, 0, 2][..]),
        ("codec-f16", UpdateCodec::F16, &points),
        ("codec-bf16", UpdateCodec::Bf16, &points),
        ("codec-int8", UpdateCodec::Int8, &[0, 8, -508, 12]),
        ("codec-top-k", half, &[0, -5, 0, 300]),
    ] {
        assert_eq!(codec.pack(points).unwrap(), bytes(name), "{name}");
        assert_eq!(codec.unpack(&bytes(name), points.len()).unwrap(), points, "{name}");
    }
    let model = [1.0f32, -0.5, 0.25];
    assert_eq!(BroadcastCodec::F16.pack(&model), bytes("model-f16"));
    assert_eq!(BroadcastCodec::Bf16.pack(&model), bytes("model-bf16"));
}

#[test]
fn raw_values_have_the_bytes_of_the_page() {
    let points: Vec<u8> = [1i32, -2].iter().flat_map(|point| point.to_le_bytes()).collect();
    assert_eq!(bytes("points"), points);
    let statistics = Statistics::encode(&[WideSum::of(-1.5).unwrap()]);
    let words: Vec<u8> = statistics.words().iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(bytes("statistic"), words);
}

#[test]
fn receipts_have_the_bytes_of_the_page() {
    golden("receipt-accepted", FrameKind::Receipt, &Receipt::Accepted);
    golden("receipt-refused", FrameKind::Receipt, &Receipt::Refused(Rejection::NormExceeded));
    golden("notice", FrameKind::Notice, &Notice::Quarantined { reason: "drift".into() });
    golden("notice-released", FrameKind::Notice, &Notice::Released);
}

#[test]
fn every_reason_of_a_refusal_has_its_number_and_its_name_on_the_page() {
    for (number, reason) in (0u8..).zip(Rejection::ALL) {
        assert_eq!(encode(FrameKind::Receipt, &Receipt::Refused(reason))[FRAME_HEAD + 4], number);
    }
    let names: Vec<String> = Rejection::ALL.iter().map(|reason| format!("`{}`", reason.name())).collect();
    let page = PAGE.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(page.contains(&names.join(", ")), "docs/protocol.md lists other reasons than Rejection::ALL");
}

#[test]
fn an_enrolment_has_the_bytes_of_the_page() {
    let token = Token::new([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    let request = EnrolRequest {
        token: Some(token.clone()),
        csr_der: vec![0x30, 1, 0],
        software: "example 1.0".into(),
    };
    golden("enrol", FrameKind::EnrolRequest, &request);
    let issued = EnrolReply::Issued { chain_pem: "site".into(), root_pem: "root".into() };
    golden("enrolled", FrameKind::EnrolReply, &issued);
    golden("enrol-refused", FrameKind::EnrolReply, &EnrolReply::Refused(EnrolRejection::Used));
    golden("enrol-waiting", FrameKind::EnrolReply, &EnrolReply::Waiting);
    let invite = Invite {
        site: ClientId::new("va").unwrap(),
        servers: vec!["fed.example:4433".into()],
        root_sha256: [0xaa; 32],
        token,
        expires: 1_800_000_000,
    };
    golden("invite", FrameKind::Invite, &invite);
}

#[test]
fn an_operator_s_messages_have_the_bytes_of_the_page() {
    let submit = AdminRequest::Submit { plan_toml: "x = 1".into(), seed: Some(7) };
    golden("submit", FrameKind::AdminRequest, &submit);
    let start = AdminRequest::SubmitStart {
        plan_toml: "x = 1".into(),
        seed: None,
        tensors: vec![("w".into(), vec![2, 3])],
        model_len: 6,
    };
    golden("submit-start", FrameKind::AdminRequest, &start);
    golden("list", FrameKind::AdminRequest, &AdminRequest::List);
    golden("watch", FrameKind::AdminRequest, &AdminRequest::Watch { run: Some(RUN) });
    golden("control", FrameKind::AdminRequest, &AdminRequest::Control { run: RUN, control: Control::Stop });
    golden("log-request", FrameKind::AdminRequest, &AdminRequest::Log { run: Some(RUN) });
    golden("models-request", FrameKind::AdminRequest, &AdminRequest::Models { run: None });
    let before = AdminRequest::ModelsBefore { run: None, before: 9 };
    golden("models-before", FrameKind::AdminRequest, &before);
    let model = AdminRequest::Model { run: Some(RUN), choice: ModelChoice::Round(3) };
    golden("model-request", FrameKind::AdminRequest, &model);
    golden("plan-request", FrameKind::AdminRequest, &AdminRequest::Plan { run: None });
    golden("plan", FrameKind::AdminReply, &AdminReply::Plan("x = 1".into()));
    golden("log", FrameKind::AdminReply, &AdminReply::Log(vec!["{}".into()]));
    golden("models", FrameKind::AdminReply, &AdminReply::Models(vec![model_line()]));
    let (line, statement, tensors) = (model_line(), "{}".to_owned(), vec![("w".to_owned(), vec![2, 1])]);
    let standardiser = Some(Standardiser { mean: vec![0.5], std: vec![2.0] });
    let model = AdminReply::Model { run: RUN, line, statement, tensors, standardiser, model_len: 2 };
    golden("model-file", FrameKind::AdminReply, &model);
    golden("submitted", FrameKind::AdminReply, &AdminReply::Submitted { run: RUN });
    golden("runs", FrameKind::AdminReply, &AdminReply::Runs(vec![]));
    golden("error", FrameKind::AdminReply, &AdminReply::Error("there is no run here yet".into()));
    golden("run", FrameKind::AdminReply, &AdminReply::Run(summary()));
}

#[test]
fn an_operator_s_messages_about_sites_have_the_bytes_of_the_page() {
    let va = ClientId::new("va").unwrap();
    let servers = vec!["fed.example:4433".to_owned()];
    let invite = AdminRequest::Invite { sites: vec![va.clone()], servers, seconds: 3600 };
    golden("invite-request", FrameKind::AdminRequest, &invite);
    golden("members-request", FrameKind::AdminRequest, &AdminRequest::Members);
    golden("revoke", FrameKind::AdminRequest, &AdminRequest::Revoke { site: va.clone() });
    let line =
        InviteText { site: va.clone(), text: "line".into(), phrase: "dafi".into(), expires: 1_800_000_000 };
    golden("invites", FrameKind::AdminReply, &AdminReply::Invites(vec![line]));
    let member = Member {
        site: va.clone(),
        invited: 1_700_000_000,
        expires: 1_700_003_600,
        joined: Some(1_700_000_060),
        revoked: None,
        quarantine: Some(Quarantine { since: 1_700_003_600, reason: "drift".into() }),
        waiting: vec![Applicant {
            phrase: "dafi".into(),
            since: 1_700_000_000,
            expires: 1_700_003_600,
            address: "h:1".into(),
        }],
        certificates: vec![Certificate {
            serial: "4a".into(),
            issued: 1_700_000_060,
            expires: 1_707_776_060,
        }],
        seen: Some(Seen {
            since: 1_700_000_090,
            left: None,
            address: "h:2".into(),
            software: "consortia".into(),
        }),
    };
    golden("members", FrameKind::AdminReply, &AdminReply::Members(vec![member]));
    golden("done", FrameKind::AdminReply, &AdminReply::Done);
    let quarantine = AdminRequest::Quarantine { site: va.clone(), reason: "drift".into() };
    golden("quarantine", FrameKind::AdminRequest, &quarantine);
    golden("release", FrameKind::AdminRequest, &AdminRequest::Release { site: va.clone() });
    let (site, phrase) = (va.clone(), Some("dafi".into()));
    golden("approve", FrameKind::AdminRequest, &AdminRequest::Approve { site, phrase });
    golden("refuse", FrameKind::AdminRequest, &AdminRequest::Refuse { site: va, phrase: None });
}

fn model_line() -> ModelLine {
    ModelLine {
        round: 3,
        sha256: "ab".into(),
        parent_sha256: Some("aa".into()),
        sites: Some(Metrics { loss: 0.5, accuracy: Some(0.75), examples: 254, seconds: 0.25 }),
        central: None,
        epsilon: Some(1.5),
        best: true,
        kept: true,
    }
}

fn summary() -> RunSummary {
    let round = RoundSummary {
        round: 1,
        released: true,
        cohort: 4,
        answered: 3,
        train: None,
        sites: None,
        central: Some(Metrics { loss: 0.5, accuracy: None, examples: 254, seconds: 0.25 }),
        seconds: 2.0,
        epsilon: None,
        further: Default::default(),
    };
    let client = ClientSummary {
        client: ClientId::new("va").unwrap(),
        connected: true,
        accepted: 5,
        refused: vec![("stale".into(), 2)],
        declined: vec![],
        test: None,
    };
    RunSummary {
        run: RUN,
        name: "heart".into(),
        state: RunState::Running,
        message: "waits".into(),
        rounds_done: 1,
        rounds: 20,
        is_seeded: true,
        model_sha256: "ab".into(),
        history: vec![round],
        clients: vec![client],
    }
}

#[test]
fn the_plan_on_the_page_is_the_plan_that_travels() {
    let page: serde_json::Value = serde_json::from_str(block("json spec")).unwrap();
    let spec = Spec::from_json(&page.to_string()).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&spec.to_json()).unwrap(), page);
}

#[test]
fn the_worked_examples_of_the_lattice_are_right() {
    let points = |norm_max: f64, delta: Vec<f32>| {
        let lattice = Lattice::plan(NormBound::new(norm_max).unwrap(), 4, 1000, delta.len()).unwrap();
        assert_eq!(lattice.range(), 1 << 30);
        let clipped = clip(delta, lattice.bound()).unwrap();
        Encoded::encode(&clipped, lattice.weigh(1), &lattice).unwrap().into_points()
    };
    let examples = [points(5.0, vec![30.0, 40.0]), points(1.0, vec![1.0, 2.0, 2.0])];
    assert_eq!(examples, [vec![644_245_094, 858_993_459], vec![357_913_600, 715_827_200, 715_827_200]]);
    let page = PAGE.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(examples.iter().flatten().all(|point| page.contains(&point.to_string())));
}

#[test]
fn the_seeds_of_a_seeded_run_are_derived_as_the_page_says() {
    let seed = Seed::from_number(7);
    let cleveland = ClientId::new("cleveland").unwrap();
    let seeds = [
        seed,
        seed.derive(Purpose::Train, Round(3), Some(&cleveland)),
        seed.derive(Purpose::Initialise, Round(0), None),
    ];
    let written: Vec<u8> =
        seeds.iter().flat_map(|seed| encode(FrameKind::Hello, seed).split_off(FRAME_HEAD)).collect();
    assert_eq!(hex(&written), hex(&bytes("seeds")));
}
