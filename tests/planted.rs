//! Records do not leave a site. Marks are planted in a site's data, and a far end written for this test, which is no server of
//! ours, puts every kind of task to a real agent with a real learner. Every byte of every stream that the site sends is kept
//! and searched for the marks: as text, and as the bytes of numbers.
//!
//! What is searched is what the site says inside the encrypted connection; nothing else leaves it. The controls show that the
//! search finds a mark that does leave.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and certificates need a date"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use client::net::{Agent, AgentConfig, Identity, open_books};
use client::{Guard, PLAIN_POLICY, Participant, Policy};
use consortia::protocol::wire::{
    AnswerBody, AnswerHeader, FRAME_HEAD, FrameHead, FrameKind, Greeting, HEADER_MAX, Receipt, TaskHeader,
    decode, encode,
};
use consortia::protocol::{
    ClientId, Decline, EvaluateOrder, Layout, LearnError, Learner, Metrics, Parameters, Round, RunId, Seed,
    Spec, Standardiser, Statistic, StepId, Stop, Task, TaskId, Time, TrainOrder, Work,
};
use consortia::server::Plan;
use consortia::server::net::Authority;
use learning::device::Device;
use learning::{FileSource, Models, SourceSpec, Trainer};
use privacy::chain::Digest;
use privacy::chain::segments::SegmentBytes;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint, RecvStream};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// In the name of a column and in cells that no plan uses, in a cell that a plan trips over, and in the name of the file.
const WORD: &str = "zebrafinch-7731";
/// In a column that no plan uses, and in one row of a column that every plan uses.
const NUMBERS: [f64; 2] = [7_919.531_25, 83_461.437_5];
const PATIENCE: Duration = Duration::from_secs(120);

fn plan(features: &str, update: &str) -> Spec {
    let text = format!(
        "name = \"planted\"\nrounds = 1\nmodel = {{ mlp = {{ hidden = [8] }} }}\n\
         [data.table]\nlabel = \"ill\"\ntarget = {{ classes = 2 }}\nfeatures = [{features}]\nstandardise = \"federated\"\n\
         [training]\nepochs = 2\nbatch_size = 8\noptimizer = {{ sgd = {{ learning_rate = 0.1 }} }}\n\
         [update]\nnorm_max = 5\n{update}\n"
    );
    Spec::clone(&Plan::parse(&text).unwrap().spec)
}

/// A table with the marks, and the source that reads it.
fn plant(dir: &Path) -> SourceSpec {
    let [unused, used] = NUMBERS;
    let mut text = format!("age,pulse,ill,note {WORD},weight\n");
    for row in 0..60 {
        let age = if row == 17 { used } else { 30.0 + f64::from(row) * 0.71 };
        let note = if row % 5 == 0 { WORD } else { "none" };
        let weight = if row % 7 == 0 { unused } else { 60.5 };
        text += &format!("{age},{},{},{note},{weight}\n", 60 + row % 40, row % 2);
    }
    let train = dir.join(format!("records {WORD}.csv"));
    std::fs::write(&train, text).unwrap();
    let source = format!("[csv]\ntrain = {:?}\n", train.display().to_string());
    server::read_toml(&source).unwrap()
}

/// Every shape in which a mark could leave, with its name.
fn shapes() -> Vec<(String, Vec<u8>)> {
    let mut shapes = vec![(WORD.to_owned(), WORD.as_bytes().to_vec())];
    for number in NUMBERS {
        let single = number as f32;
        shapes.extend([
            (format!("{number} as text"), number.to_string().into_bytes()),
            (format!("{number} as f64"), number.to_le_bytes().to_vec()),
            (format!("{number} as f64, big-endian"), number.to_be_bytes().to_vec()),
            (format!("{number} as f32"), single.to_le_bytes().to_vec()),
            (format!("{number} as f32, big-endian"), single.to_be_bytes().to_vec()),
        ]);
    }
    shapes
}

/// The marks that are in these bytes.
fn found(bytes: &[u8]) -> Vec<String> {
    let is_in = |mark: &[u8]| bytes.windows(mark.len()).any(|window| window == mark);
    shapes().into_iter().filter(|(_, mark)| is_in(mark)).map(|(name, _)| name).collect()
}

/// What stands where a server would: it greets, puts tasks and keeps all that it hears.
struct FarEnd {
    connection: Connection,
    heard: Vec<u8>,
}

fn listen(authority: &Authority) -> Endpoint {
    let identity = authority.issue_server(&[], SystemTime::now()).unwrap();
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes()).collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    tls.alpn_protocols = vec![b"consortia/1".to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap()
}

/// The bytes of the next frame; none where the stream has ended.
async fn frame(recv: &mut RecvStream, kind: FrameKind) -> Option<Vec<u8>> {
    let mut bytes = vec![0; FRAME_HEAD];
    recv.read_exact(&mut bytes).await.ok()?;
    let head = FrameHead::parse(bytes[..].try_into().unwrap(), kind, HEADER_MAX).unwrap();
    bytes.resize(FRAME_HEAD + head.len, 0);
    recv.read_exact(&mut bytes[FRAME_HEAD..]).await.unwrap();
    Some(bytes)
}

impl FarEnd {
    async fn greet(endpoint: &Endpoint) -> Self {
        let connection = timeout(PATIENCE, endpoint.accept()).await.unwrap().unwrap().await.unwrap();
        let (mut send, mut recv) = connection.accept_bi().await.unwrap();
        let mut heard = frame(&mut recv, FrameKind::Hello).await.expect("a site says hello");
        // A site that keeps a ledger claims it next, and then waits; one that keeps none has no more to say.
        heard.extend(frame(&mut recv, FrameKind::LedgerClaim).await.unwrap_or_default());
        let welcome = Greeting::Welcome { software: "far end".into(), you: "north".into() };
        send.write_all(&encode(FrameKind::Greeting, &welcome)).await.unwrap();
        send.finish().unwrap();
        Self { connection, heard }
    }

    /// Puts a task to the site and hears the whole answer.
    async fn put(&mut self, task: &Task) -> AnswerBody {
        let (mut send, mut recv) = self.connection.open_bi().await.unwrap();
        let json = task.spec.to_json();
        send.write_all(&encode(FrameKind::Task, &TaskHeader::of(task, &json))).await.unwrap();
        let model = task.work.model().map_or(&[][..], |model| model.values());
        let bytes: Vec<u8> = model.iter().flat_map(|value| value.to_le_bytes()).collect();
        send.write_all(&bytes).await.unwrap();
        let answer = timeout(PATIENCE, recv.read_to_end(1 << 26)).await.unwrap().unwrap();
        send.write_all(&encode(FrameKind::Receipt, &Receipt::Accepted)).await.unwrap();
        let _ = send.finish();
        let head = answer[..FRAME_HEAD].try_into().unwrap();
        let head = FrameHead::parse(head, FrameKind::Answer, HEADER_MAX).unwrap();
        let header: AnswerHeader = decode(&answer[FRAME_HEAD..FRAME_HEAD + head.len]).unwrap();
        self.heard.extend(answer);
        header.body
    }
}

fn task(spec: &Spec, round: u32, work: Work) -> Task {
    let kind = match work {
        Work::Statistics { .. } => StepId::STATISTICS,
        Work::Train { .. } => StepId::TRAIN,
        Work::Evaluate { .. } => StepId::EVALUATE,
        Work::Method(_) => StepId::method(0),
    };
    let id = TaskId::new(RunId(u64::from(round)), Round(round), kind);
    let standardiser = Standardiser { mean: vec![50.0, 80.0], std: vec![12.0, 11.0] };
    let (spec, standardiser) = (Arc::new(spec.clone()), Some(Arc::new(standardiser)));
    Task { id, spec, seed: Some(Seed::from_number(5)), standardiser, work }
}

fn statistics(spec: &Spec) -> Task {
    task(spec, 0, Work::Statistics { names: spec.statistics() })
}

fn train(spec: &Spec, round: u32) -> Task {
    let len = Models::new().layout_of(spec).unwrap().shared_len();
    let model = Parameters::new((0..len).map(|place| (place as f32 * 0.37).sin() * 0.3).collect());
    task(spec, round, Work::Train { model: Arc::new(model), learning_rate_scale: 1.0, norm_max: None })
}

/// The agent of a site, and the token that ends it.
fn start(
    dir: &Path,
    authority: &Authority,
    server: &str,
    participant: Participant,
    software: &str,
) -> CancellationToken {
    let bundle: PathBuf = dir.join("bundles").join(software);
    let north = authority.issue_site(participant.id(), SystemTime::now()).unwrap();
    north.write_identity(&bundle).unwrap();
    let config = AgentConfig { software: software.to_owned(), ..AgentConfig::new(server) };
    let agent = Agent::new(participant, Identity::load(&bundle).unwrap(), config);
    let leave = CancellationToken::new();
    tokio::spawn(agent.run(leave.clone()));
    leave
}

fn north(learner: Box<dyn Learner>) -> Participant {
    Participant::new(ClientId::new("north").unwrap(), learner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_planted_in_a_site_s_records_leaves_it() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(&dir.path().join("authority"), SystemTime::now()).unwrap();
    let source = plant(dir.path());
    let state = dir.path().join("state");
    std::fs::create_dir_all(&state).unwrap();
    let digest = Digest::of(b"");
    let books = open_books(&state, digest, digest, "test", SegmentBytes::default(), || Time::ZERO).unwrap();
    let guard = Guard::new(Policy::parse(PLAIN_POLICY).unwrap(), books.ledger, books.audit, || Time::ZERO);
    let trainer = Trainer::new(Box::new(FileSource::new(source)), Device::Cpu);
    let endpoint = listen(&authority);
    let address = endpoint.local_addr().unwrap().to_string();
    let leave = start(dir.path(), &authority, &address, north(Box::new(trainer)).with_guard(guard), "a site");
    let mut far = FarEnd::greet(&endpoint).await;

    let used = "\"age\", \"pulse\"";
    let exact = plan(used, "");
    assert!(matches!(far.put(&statistics(&exact)).await, AnswerBody::Counted { len: 24 }));
    assert!(matches!(far.put(&train(&exact, 1)).await, AnswerBody::Trained { .. }));
    for (round, codec) in
        (2..).zip(["\"packed\"", "\"f16\"", "\"bf16\"", "\"int8\"", "{ top_k = { fraction = 0.5 } }"])
    {
        let spec = plan(used, &format!("codec = {codec}"));
        let answer = far.put(&train(&spec, round)).await;
        assert!(matches!(answer, AnswerBody::Compressed { .. }), "{codec}: {answer:?}");
    }
    let Work::Train { model, .. } = train(&exact, 0).work else { unreachable!("it trains") };
    let evaluate = task(&exact, 9, Work::Evaluate { model });
    let evaluated = far.put(&evaluate).await;
    // The site has no test records; whatever it says of that is searched, too.
    assert!(matches!(evaluated, AnswerBody::Evaluated { .. } | AnswerBody::Declined { .. }), "{evaluated:?}");
    // A column of words, a column that is not there (the learner's message lists those that are), a model of another length.
    let words = plan(&format!("\"age\", \"note {WORD}\""), "");
    let absent = plan("\"age\", \"height\"", "");
    let mut short = train(&exact, 12);
    short.work = Work::Train {
        model: Arc::new(Parameters::new(vec![0.0; 3])),
        learning_rate_scale: 1.0,
        norm_max: None,
    };
    for (task, reason) in [
        (train(&words, 10), Decline::Data),
        (train(&absent, 11), Decline::Data),
        (statistics(&absent), Decline::Data),
        (short, Decline::Unsupported),
    ] {
        let answer = far.put(&task).await;
        assert!(
            matches!(&answer, AnswerBody::Declined { reason: told, .. } if *told == reason),
            "{answer:?}"
        );
    }
    assert!(far.heard.len() > 1_000, "only {} bytes were heard", far.heard.len());
    assert_eq!(found(&far.heard), Vec::<String>::new());
    // The site's own files do hold what was searched for: the marks were there to be sent.
    let records = std::fs::read(dir.path().join(format!("records {WORD}.csv"))).unwrap();
    assert_eq!(found(&records).len(), 3, "each mark as text");
    leave.cancel();
}

/// A learner that gives a record away as a measurement, and has no statistics.
struct Leaky(Layout);

impl Learner for Leaky {
    fn prepare(&mut self, _: &Arc<Spec>) -> Result<(), LearnError> {
        Ok(())
    }
    fn layout(&self) -> &Layout {
        &self.0
    }
    fn initialise(&mut self, _: Seed) -> Result<Vec<f32>, LearnError> {
        Ok(vec![0.0; self.0.len()])
    }
    fn statistics(&mut self) -> Result<Vec<Statistic>, LearnError> {
        Ok(Vec::new())
    }
    fn train(&mut self, _: &mut [f32], _: &TrainOrder, _: &Stop) -> Result<Metrics, LearnError> {
        Ok(Metrics { loss: NUMBERS[0], examples: 1, ..Metrics::default() })
    }
    fn evaluate(&mut self, _: &[f32], _: &EvaluateOrder, _: &Stop) -> Result<Metrics, LearnError> {
        Ok(Metrics { loss: NUMBERS[1], examples: 1, ..Metrics::default() })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_search_finds_what_does_leave() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(&dir.path().join("authority"), SystemTime::now()).unwrap();
    // A plan that names the mark itself: a site may repeat to a server what the server has said.
    let spec = plan(&format!("\"{WORD}\", \"age\""), "");
    let layout = Models::new().layout_of(&spec).unwrap();
    let endpoint = listen(&authority);
    let address = endpoint.local_addr().unwrap().to_string();
    let leave = start(dir.path(), &authority, &address, north(Box::new(Leaky(layout))), "a site");
    let mut far = FarEnd::greet(&endpoint).await;
    assert_eq!(found(&far.heard), Vec::<String>::new());
    let declined = far.put(&statistics(&spec)).await;
    assert!(matches!(declined, AnswerBody::Declined { .. }), "{declined:?}");
    assert_eq!(found(&far.heard), [WORD], "in the detail of an answer that declines");
    far.put(&train(&spec, 1)).await;
    let [trained, evaluated] = NUMBERS.map(|number| format!("{number} as f64"));
    assert_eq!(found(&far.heard), [WORD, &trained], "in the metrics of a training");
    let Work::Train { model, .. } = train(&spec, 1).work else { unreachable!("it trains") };
    far.put(&task(&spec, 2, Work::Evaluate { model })).await;
    assert_eq!(found(&far.heard), [WORD, &trained, &evaluated], "in the metrics of an evaluation");
    leave.cancel();

    let leave =
        start(dir.path(), &authority, &address, north(Box::new(Leaky(Layout::new([]).unwrap()))), WORD);
    assert_eq!(found(&FarEnd::greet(&endpoint).await.heard), [WORD], "in the greeting");
    leave.cancel();
}
