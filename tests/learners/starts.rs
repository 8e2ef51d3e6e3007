//! The file that a run of an external model begins with: what is refused, and that nothing is left of it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use client::net::{Identity, OperatorClient, OperatorError};
use protocol::wire::{AdminRequest, FrameKind, encode};
use protocol::{Layout, Parameters};
use server::net::SERVER_NAME;

use crate::intruder::{Credentials, Intruder, socket};
use crate::processes::{command, serve};
use crate::same::simulated;
use crate::stage::{Stage, TENSORS, consortia, errors, learner_table, plan, start_file, text, write_start};

/// Files of models that the server keeps.
fn kept(stage: &Stage) -> usize {
    std::fs::read_dir(stage.path("fed/state/blobs")).map_or(0, Iterator::count)
}

fn runs(stage: &Stage) -> serde_json::Value {
    command(&["run", "ls", "--dir", stage.fed(), "--server", &stage.address])
}

/// What `run submit` says of a plan whose start file is this.
fn refused(stage: &Stage, start: Option<&[u8]>) -> String {
    let file = stage.path("start.safetensors");
    match start {
        Some(bytes) => std::fs::write(&file, bytes).unwrap(),
        None => std::fs::remove_file(&file).unwrap(),
    }
    let plan = stage.write_plan("plan.toml", &plan(1, 1, ""));
    let said = consortia(&["run", "submit", text(&plan), "--dir", stage.fed(), "--server", &stage.address]);
    assert_eq!(said.status.code(), Some(2), "{}", errors(&said));
    errors(&said)
}

#[test]
fn a_file_that_no_run_can_begin_with_is_refused_by_name() {
    let stage = Stage::new(&[]);
    let whole = start_file(&TENSORS, 0.25);
    let nan = start_file(&TENSORS, f32::NAN);
    let cut = &whole[..whole.len() - 5];
    let cases: [(Option<&[u8]>, &str); 6] = [
        (Some(&nan), "has the value NaN; a run begins with finite values"),
        (Some(cut), "start.safetensors"),
        (Some(b"this is no model"), "start.safetensors"),
        (Some(b""), "start.safetensors"),
        (Some(&start_file(&[], 0.0)), "start.safetensors"),
        (None, "there is no such file; it comes with the plan"),
    ];
    for (start, told) in cases {
        let said = refused(&stage, start);
        assert!(said.contains(told) && said.contains("model.external.start"), "{said}");
    }
    assert_eq!(kept(&stage), 0);
    // A plan of another model takes no file along, and the server goes on.
    write_start(&stage.path("start.safetensors"), &TENSORS, 0.25);
    stage.submit(&plan(1, 1, ""), None);
    assert_eq!(kept(&stage), 1);
}

/// An operator who follows no rules of the command.
async fn operator(stage: &Stage) -> OperatorClient {
    let identity = Identity::load(&stage.path("fed/operator")).unwrap();
    OperatorClient::connect(&stage.address, SERVER_NAME, &identity).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_who_sends_what_no_file_holds_is_refused_and_nothing_is_left() {
    let stage = Stage::new(&[]);
    let layout = |tensors: &[(&str, &[usize])]| {
        Layout::new(tensors.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec()))).unwrap()
    };
    let many: Vec<(String, Vec<usize>)> = (0..10_001).map(|number| (format!("t{number}"), vec![1])).collect();
    let usual = layout(&TENSORS);
    let logistic = "name = \"logistic\"\nrounds = 1\nmodel = \"logistic\"\n[data.tensor]\nshape = [6]\ntarget = { classes = 2 }\n\
        [training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.05 } }\n";
    let outside = plan(1, 1, "");
    let ones = |len: usize| Parameters::new(vec![1.0; len]);
    let cases: [(&str, &str, Layout, Parameters, &str); 6] = [
        ("another plan", logistic, usual.clone(), ones(8), "whose model is not external"),
        ("a longer length", &outside, usual.clone(), ones(9), "9 values are announced for tensors of 8"),
        ("a shorter length", &outside, usual.clone(), ones(7), "7 values are announced for tensors of 8"),
        ("many tensors", &outside, Layout::new(many).unwrap(), ones(10_001), "at most 10000"),
        (
            "a value that is none",
            &outside,
            usual.clone(),
            Parameters::new(vec![f32::INFINITY; 8]),
            "has the value inf",
        ),
        ("no plan", "rounds = ", usual.clone(), ones(8), "line 1"),
    ];
    for (name, plan, layout, values, told) in cases {
        let operator = operator(&stage).await;
        let said =
            operator.submit_start(plan.to_owned(), None, &layout, values).await.unwrap_err().to_string();
        assert!(said.contains(told), "{name}: {said}");
    }
    // One that is cut off amid its values: by the operator who goes, while the server still waits for the rest.
    let large = layout(&[("w", &[1 << 24])]);
    let values = Parameters::new(vec![0.5; 1 << 24]);
    for wait in [1, 20, 60] {
        let operator = operator(&stage).await;
        let sent = operator.submit_start(outside.clone(), None, &large, values.clone());
        match tokio::time::timeout(Duration::from_millis(wait), sent).await {
            Err(_) | Ok(Err(OperatorError::Lost(_))) => {}
            Ok(other) => panic!("64 MiB were submitted within {wait} ms: {other:?}"),
        }
    }
    assert_eq!(kept(&stage), 0);
    assert!(runs(&stage).as_array().unwrap().is_empty());
    let run = operator(&stage).await.submit_start(outside, None, &usual, ones(8)).await.unwrap();
    assert_eq!((kept(&stage), runs(&stage)[0]["run"].as_str()), (1, Some(&*run.to_string())));
}

/// What the server says to an operator who sends this request, these bytes behind it, and no more.
async fn said_to(stage: &Stage, request: &AdminRequest, body: &[u8]) -> String {
    let config = Credentials::of(&stage.path("fed/operator")).config();
    let peer = Intruder::connect(&socket(), stage.address.parse().unwrap(), config).await.unwrap();
    let (mut send, mut recv) = peer.connection.open_bi().await.unwrap();
    send.write_all(&encode(FrameKind::AdminRequest, request)).await.unwrap();
    // A server that has refused the request reads no further.
    let _ = send.write_all(body).await;
    let _ = send.finish();
    String::from_utf8_lossy(&recv.read_to_end(1 << 20).await.unwrap()).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_that_is_a_lie_takes_no_memory_and_leaves_nothing() {
    let stage = Stage::new(&[]);
    let check = async |name: &str, tensors: &[(&str, &[u64])], model_len: u64, bytes: usize, told: &str| {
        let tensors = tensors.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
        let request = AdminRequest::SubmitStart { plan_toml: plan(1, 1, ""), seed: None, tensors, model_len };
        let said = said_to(&stage, &request, &vec![0; bytes]).await;
        assert!(said.contains(told), "{name}: {said}");
    };
    let (whole, cut): ([(&str, &[u64]); 3], _) =
        ([("w", &[2, 2]), ("b", &[]), ("a", &[3])], "the values of the start file");
    check("less than was said", &whole, 8, 20, cut).await;
    check("nothing", &whole, 8, 0, cut).await;
    check("a cut value", &whole, 8, 31, cut).await;
    check("more than was said", &whole, 8, 36, cut).await;
    check("all there may be, and nothing", &[("w", &[1 << 30])], 1 << 30, 0, cut).await;
    check("too much", &[("w", &[1 << 40])], 1 << 40, 32, "at most 1073741824 are allowed").await;
    check("what nobody can count", &[("w", &[u64::MAX, u64::MAX])], 8, 32, "w").await;
    check("a name twice", &[("w", &[4]), ("w", &[4])], 8, 32, "`w`").await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", stage.server.child.id())).unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim();
    let most: u64 = most.split(' ').next().unwrap().parse().unwrap();
    assert!(most < 1 << 20, "the server took {most} KiB");
    assert_eq!(kept(&stage), 0);
    stage.submit(&plan(1, 1, ""), None);
}

/// Over HTTP no file can come along.
#[test]
fn the_admin_port_says_what_to_do_with_a_plan_that_begins_with_a_file() {
    let stage = Stage::new(&[]);
    let fed = stage.fed();
    let address = &stage.admin;
    let token = std::fs::read_to_string(Path::new(fed).join("operator/admin.token")).unwrap();
    let body = serde_json::json!({ "plan_toml": plan(1, 1, "") }).to_string();
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!(
        "POST /api/v1/runs HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        token.trim(),
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 4"), "{said}");
    assert!(said.contains("submit it by `consortia run submit`, which sends the file along"), "{said}");
    assert_eq!(kept(&stage), 0);
}

#[test]
fn a_server_that_dies_amid_a_run_goes_on_to_the_same_model() {
    let mut stage = Stage::new(&["client-1"]);
    let site = stage.run_with("client-1", &[("BEHAVIOUR", "learns"), ("RECORDS", "0"), ("DELAY_MS", "100")]);
    let plan = plan(8, 1, "");
    let learner = learner_table("simulation.learner", &[("BEHAVIOUR", "learns")]);
    let file = stage
        .write_plan("simulated.toml", &format!("{plan}\n[simulation]\nseed = 3\nclients = 1\n{learner}"));
    let expected = simulated(&file)["model_sha256"].clone();
    let run = stage.submit(&plan, Some(3));
    // What it began with is the server's now.
    std::fs::remove_file(stage.path("start.safetensors")).unwrap();
    for _ in 0..2 {
        site.next("an answer", |line| line["event"] == "accepted");
        let fed = stage.fed().to_owned();
        stage.server.child.kill().unwrap();
        stage.server.child.wait().unwrap();
        stage.server = serve(&fed, &stage.address).0;
    }
    let end = stage.end_of(&run);
    assert_eq!((&end["state"], &end["model_sha256"]), (&"finished".into(), &expected), "{end}");
}
