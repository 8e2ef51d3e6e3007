//! What a collector of OpenTelemetry hears of a small run: server, site and collector are processes or threads of their own, over
//! loopback. Built with the feature `otel` only.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot go on says so by panicking, and waits for real processes"
)]

#[path = "support/processes.rs"]
#[expect(dead_code, reason = "nothing is killed here")]
mod processes;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value as Held};
use opentelemetry_proto::tonic::trace::v1::{Span, status::StatusCode};
use processes::{Process, command, submit};
use prost::Message;
use tempfile::TempDir;

const PLAN: &str = "name = \"small\"\nrounds = 2\nmodel = \"logistic\"\n\
    [data.table]\nlabel = \"label\"\ntarget = { classes = 2 }\nfeatures = [\"age\", \"chol\"]\nstandardise = \"site\"\n\
    [training]\nbatch_size = 16\noptimizer = { sgd = { learning_rate = 0.05 } }\n\
    [cohort]\nclients_min = 1\nquorum = 1\ndeadline_seconds = 60\n";
const ROWS: &str = "age,chol,label\n51,200,0\n62,310,1\n47,190,0\n70,280,1\n";

/// A span with the service that told it.
struct Heard {
    service: String,
    span: Span,
}

impl Heard {
    fn text(&self, name: &str) -> String {
        text_of(&self.span.attributes, name)
    }
}

/// An attribute as text; empty when it is not there.
fn text_of(attributes: &[KeyValue], name: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|attribute| attribute.value.clone()).and_then(|value| value.value) {
        Some(Held::StringValue(text)) => text,
        Some(Held::IntValue(number)) => number.to_string(),
        Some(Held::DoubleValue(number)) => number.to_string(),
        None => String::new(),
        other => panic!("{name}: {other:?}"),
    }
}

/// Answers every request with an empty success, and keeps the spans and the tokens that came.
#[derive(Clone, Default)]
struct Collector {
    heard: Arc<Mutex<Vec<Heard>>>,
    tokens: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    fn open(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let collector = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                collector.answer(stream.unwrap());
            }
        });
        endpoint
    }

    fn answer(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut lines = reader.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty());
        assert_eq!(lines.next().unwrap(), "POST /v1/traces HTTP/1.1");
        let headers: Vec<(String, String)> = lines
            .map(|line| {
                line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.into())).unwrap()
            })
            .collect();
        let header = |name: &str| headers.iter().find(|(held, _)| held == name).unwrap().1.clone();
        assert_eq!(header("content-type"), "application/x-protobuf");
        let mut body = vec![0; header("content-length").parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        self.tokens.lock().unwrap().push(header("x-token"));
        for group in ExportTraceServiceRequest::decode(body.as_slice()).unwrap().resource_spans {
            let service = text_of(&group.resource.unwrap().attributes, "service.name");
            let spans = group.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let heard = spans.map(|span| Heard { service: service.clone(), span });
            self.heard.lock().unwrap().extend(heard);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    }
}

/// A federation with one site, both with these variables, through one run.
struct Stage {
    dir: TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Stage {
    fn new(endpoint: &str) -> Self {
        let environment = vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.to_owned()),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-token=secret".to_owned()),
        ];
        let stage = Self { dir: tempfile::tempdir().unwrap(), environment };
        let federation = stage.path("fed");
        command(&["server", "init", text(&federation), "--listen", "127.0.0.1:0"]);
        command(&["server", "issue", "north", "--dir", text(&federation)]);
        std::fs::write(stage.path("plan.toml"), PLAN).unwrap();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the plan and returns the run's id, and how long it took both programs to end after they were told to.
    fn run(&self) -> (String, Duration) {
        let federation = self.path("fed");
        let server = ["server", "run", text(&federation), "--listen", "127.0.0.1:0", "--while-stdin-open"];
        let mut server = Process::start_among(&server, &self.environment);
        let address = server.event("listening")["address"].as_str().unwrap().to_owned();
        let (site, bundle) = (self.path("site"), federation.join("sites/north"));
        let (init, bundle) = (["site", "init", text(&site), "--server", &address, "--bundle"], text(&bundle));
        command(&[&init[..], &[bundle, "--policy", "plain"]].concat());
        std::fs::write(site.join("data.csv"), ROWS).unwrap();
        let run = submit(text(&self.path("plan.toml")), text(&federation), &address, None);
        let file = site.join("site.toml");
        let site = ["site", "run", text(&file), "--while-stdin-open"];
        let site_name = ("OTEL_SERVICE_NAME", "north's".to_owned());
        let mut site = Process::start_among(&site, &[&self.environment[..], &[site_name]].concat());
        assert_eq!(server.event("ended")["state"], "finished");
        let began = Instant::now();
        for process in [&mut site, &mut server] {
            drop(process.child.stdin.take());
            assert!(process.child.wait().unwrap().success(), "{}", process.errors.lock().unwrap());
        }
        (run, began.elapsed())
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_run_is_one_trace_from_the_server_to_its_sites() {
    let collector = Collector::default();
    let (run, _) = Stage::new(&collector.open()).run();
    let heard = collector.heard.lock().unwrap();
    assert!(collector.tokens.lock().unwrap().iter().all(|token| token == "secret"));
    let named = |name: &str| heard.iter().filter(|heard| heard.span.name == name).collect::<Vec<_>>();

    let runs = named("run");
    assert_eq!(runs.len(), 1);
    let whole = runs[0];
    assert_eq!((whole.text("consortia.run"), whole.text("consortia.name")), (run, "small".to_owned()));
    assert_eq!(whole.text("consortia.state"), "finished");
    assert_eq!(whole.service, "consortia-server");
    assert!(whole.span.parent_span_id.is_empty());
    for heard in heard.iter() {
        let Span { start_time_unix_nano: start, end_time_unix_nano: end, .. } = heard.span;
        assert_eq!(heard.span.trace_id, whole.span.trace_id, "{:?}", heard.span);
        assert!(start <= end && start > 0, "{:?}", heard.span);
    }

    let rounds = named("round");
    let numbers = rounds.iter().map(|round| round.text("consortia.round")).collect::<Vec<_>>();
    assert_eq!(numbers, ["1", "2"]);
    for round in rounds {
        assert_eq!(round.span.parent_span_id, whole.span.span_id);
        assert_eq!(round.text("consortia.outcome"), "released");
        assert_eq!(
            (round.text("consortia.clients"), round.text("consortia.answered")),
            ("1".into(), "1".into())
        );
        let within = |name: &str| {
            let parts = named(name).into_iter();
            parts.filter(|part| part.span.parent_span_id == round.span.span_id).collect::<Vec<_>>()
        };
        let [release] = within("release")[..] else { panic!("one release a round") };
        assert!(release.span.start_time_unix_nano >= round.span.start_time_unix_nano);
        assert!(release.span.end_time_unix_nano <= round.span.end_time_unix_nano);
        let tasks = within("task");
        let train = tasks.iter().find(|task| task.text("consortia.task") == "train").unwrap();
        assert_eq!(
            (train.text("consortia.site"), train.text("consortia.outcome")),
            ("north".into(), "accepted".into())
        );
        // The site's own span is below the server's of the same task, told by another service.
        let own = named("site task").into_iter().find(|own| own.span.parent_span_id == train.span.span_id);
        let own = own.expect("the site tells of the task that it was given");
        assert_eq!((own.service.as_str(), own.text("consortia.site")), ("north's", "north".to_owned()));
        assert_eq!(own.text("consortia.round"), round.text("consortia.round"));
        assert_eq!(own.span.events[0].name, "answering");
        assert_ne!(own.span.status.clone().unwrap_or_default().code, StatusCode::Error as i32);
    }
}

#[test]
fn a_collector_that_never_answers_holds_up_no_run_and_no_end_for_long() {
    // Connections are made by the system and nobody takes them.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_, ending) = Stage::new(&format!("http://{}", silent.local_addr().unwrap())).run();
    silent.set_nonblocking(true).unwrap();
    assert!(silent.accept().is_ok(), "nobody called");
    // Two programs, one after the other, each with 2 s for its last spans and some for the rest of its end.
    assert!(ending < Duration::from_secs(10), "{ending:?}");
}
