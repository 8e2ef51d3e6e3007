//! Methods beside federated training: federated k-means of the bundled plan, and a toy with two exchanges in a round, each simulated and
//! over QUIC with the same bits.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and certificates need a date"
)]

#[path = "support/federation.rs"]
#[allow(dead_code, reason = "these tests need a part of it")]
mod federation;
#[path = "support/member.rs"]
#[allow(dead_code, reason = "these tests need a part of it")]
mod member;
#[path = "methods/toss.rs"]
mod poisson_sample;
#[path = "support/processes.rs"]
#[allow(dead_code, reason = "these tests need a part of it")]
mod processes;
#[path = "support/trio.rs"]
#[allow(dead_code, reason = "these tests need a part of it")]
mod trio;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use client::net::{Agent, AgentConfig, AgentEvent, Identity};
use client::{Participant, SiteMethods};
use consortia::{Room, first_model};
use learning::SiteData;
use learning::device::Device;
use methods::Registry;
use protocol::wire::RunSummary;
use protocol::{ClientId, Round, Seed, Stop};
use server::net::{Server, ServerConfig};
use server::{Methods, Note};
use simulations::{AvailabilityConfig, Outcome, Population, Scenario, Simulator};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use federation::Federation;
use member::PATIENCE;
use poisson_sample::{COMMIT, Conduct, REVEAL, Toss};
use processes::{Process, command, serve, submit};

const SEED: u64 = 7;

fn examples() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples"))
}

/// `examples/kmeans.toml`, simulated, and its clients.
fn grouped(threads: usize) -> (Outcome, Population) {
    let text = std::fs::read_to_string(examples().join("kmeans.toml")).unwrap();
    let registry = Registry::standard();
    let scenario = Scenario::parse_with(&text, examples(), &|_| None, registry.server()).unwrap();
    let spec = &scenario.plan.spec;
    let population = Population::build(&scenario.simulation, spec, Device::Cpu).unwrap();
    let population = population.with_methods(registry.site().clone());
    let first = first_model(population.models(), spec, Seed::from_number(SEED)).unwrap();
    let simulator =
        Simulator::new(scenario.plan, first.shared, SEED, scenario.simulation.availability).unwrap();
    (simulator.with_threads(threads).run(&population, &mut |_| {}).unwrap(), population)
}

#[test]
fn the_centres_are_those_that_the_pooled_records_would_have() {
    let (outcome, population) = grouped(2);
    assert!(outcome.rounds.last().unwrap().round < 50, "it ends when no centre moves");
    let losses: Vec<f64> = outcome.rounds.iter().filter_map(|line| Some(line.train?.loss)).collect();
    assert!(losses.len() > 5, "{losses:?}");
    assert!(losses.windows(2).all(|pair| pair[1] <= pair[0]), "{losses:?}");
    let standardiser = outcome.standardiser.unwrap();
    let SiteData { train, .. } = population.pooled().unwrap();
    let records: Vec<Vec<f64>> = train
        .rows
        .iter()
        .map(|row| {
            let cells = train.dataset.sample(*row as usize);
            cells
                .iter()
                .enumerate()
                .map(|(column, cell)| standardiser.standardised(column, f64::from(*cell)))
                .collect()
        })
        .collect();
    assert_eq!(outcome.rounds.last().unwrap().train.unwrap().examples, records.len() as u64);
    // Where federated k-means has ended, a step of Lloyd's algorithm over the pooled records moves nothing.
    let centres: Vec<&[f32]> = outcome.model.values().chunks(13).collect();
    let (mut sums, mut counts) = ([[0.0; 13]; 3], [0.0; 3]);
    for record in &records {
        let distance = |centre: &&[f32]| -> f64 {
            centre.iter().zip(record).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum()
        };
        let nearest =
            (0..3).min_by(|a, b| distance(&centres[*a]).total_cmp(&distance(&centres[*b]))).unwrap();
        counts[nearest] += 1.0;
        sums[nearest].iter_mut().zip(record).for_each(|(sum, value)| *sum += value);
    }
    for (centre, (sum, count)) in centres.iter().zip(sums.iter().zip(counts)) {
        assert!(count > 20.0, "{counts:?}");
        for (value, sum) in centre.iter().zip(sum) {
            assert!((f64::from(*value) - sum / count).abs() < 2e-4, "{value} and {}", sum / count);
        }
    }
}

#[test]
fn a_simulation_that_was_stopped_goes_on_to_the_same_centres() {
    let (whole, population) = grouped(1);
    let text = std::fs::read_to_string(examples().join("kmeans.toml")).unwrap();
    let begin = |stop: Stop| {
        let registry = Registry::standard();
        let scenario = Scenario::parse_with(&text, examples(), &|_| None, registry.server()).unwrap();
        let first = first_model(population.models(), &scenario.plan.spec, Seed::from_number(SEED)).unwrap();
        Simulator::new(scenario.plan, first.shared, SEED, scenario.simulation.availability)
            .unwrap()
            .with_stop(stop)
    };
    let stop = Stop::default();
    let stopped = begin(stop.clone()).run(&population, &mut |seen| {
        if matches!(seen.note, Note::Round(line) if line.round == 3) {
            stop.stop();
        }
    });
    let stopped = stopped.unwrap();
    assert!(stopped.rounds.len() < whole.rounds.len());
    let rest = begin(Stop::default())
        .with_snapshot(stopped.snapshot.unwrap())
        .run(&population, &mut |_| {})
        .unwrap();
    assert_eq!((rest.model.sha256(), rest.rounds.len()), (whole.model.sha256(), whole.rounds.len()));
}

#[test]
fn processes_over_quic_find_the_simulated_centres_where_their_policies_allow_it() {
    let (simulated, _) = grouped(1);
    assert_eq!(simulated.model.sha256(), grouped(3).0.model.sha256());
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let folder = path("federation");
    command(&["server", "init", &folder, "--listen", "127.0.0.1:0"]);
    let (_server, address) = serve(&folder, "127.0.0.1:0");
    let records = examples().join("data/heart_disease.csv");
    // One of them tells no metrics.
    let join = |site: &str, tasks: &str| {
        let home = path(site);
        if !Path::new(&home).exists() {
            command(&["server", "issue", site, "--dir", &folder]);
        }
        std::fs::create_dir_all(Path::new(&home).join("state")).unwrap();
        let identity = Path::new(&folder).join("sites").join(site);
        let text = format!(
            "server = \"{address}\"\nidentity = {identity:?}\nstate = \"state\"\ndevice = \"cpu\"\n[data.csv]\n\
             train = {records:?}\nsplit_column = \"split\"\nwhere = {{ site = \"{site}\" }}\n"
        );
        let file = Path::new(&home).join("site.toml");
        std::fs::write(&file, text).unwrap();
        let policy = client::PLAIN_POLICY.replace("tasks = [", &format!("tasks = [{tasks}"));
        let told = "metrics = [\"loss\", \"accuracy\", \"examples\", \"seconds\", \"further\"]";
        assert!(policy.contains(told));
        let policy = if site == "va" { policy.replace(told, "metrics = []") } else { policy };
        std::fs::write(Path::new(&home).join("policy.toml"), policy).unwrap();
        let process = Process::start(&["site", "run", file.to_str().unwrap(), "--while-stdin-open"]);
        process.event("connected");
        process
    };
    let _sites = ["cleveland", "hungarian", "switzerland"].map(|site| join(site, "\"method:kmeans\", "));
    let plan = examples().join("kmeans.toml");
    let run = submit(plan.to_str().unwrap(), &folder, &address, Some(SEED));
    let _last = join("va", "\"method:kmeans\", ");
    let watch = |run: &str| Process::start(&["run", "watch", run, "--dir", &folder, "--server", &address]);
    let end = watch(&run).last_line();
    assert_eq!(end["state"], "finished", "{end}");
    assert_eq!(end["rounds_done"], simulated.rounds.last().unwrap().round);
    assert_eq!(end["model_sha256"], simulated.model.sha256());
    assert_eq!(end["message"], format!("converged after {} of 50 rounds", end["rounds_done"]));
    // The loss is that of all records, though one site tells no metrics.
    let expected = simulated.rounds.last().unwrap().train.unwrap();
    let told = &end["history"].as_array().unwrap().last().unwrap()["train"];
    assert_eq!(told["examples"], expected.examples, "{told}");
    assert!((told["loss"].as_f64().unwrap() - expected.loss).abs() < 1e-9, "{told}");
    // A site that trains for anybody has not allowed this.
    drop(_last);
    let _wary = join("va", "");
    let short = std::fs::read_to_string(&plan).unwrap().replace("[cohort]", "[cohort]\nfailures_max = 1");
    let file = path("short.toml");
    std::fs::write(&file, short).unwrap();
    let run = submit(&file, &folder, &address, Some(SEED));
    let last = watch(&run).rest().pop().unwrap();
    assert_eq!(last["state"], "failed", "{last}");
    assert!(last["message"].as_str().unwrap().contains("va declined (policy)"), "{last}");
    // Records say which method and which step; the site that would do no round has not told its statistics either.
    let read = |file: &str| std::fs::read_to_string(dir.path().join(file)).unwrap();
    let titled = "\"title\":\"kmeans: assign\"";
    for book in ["audit.jsonl", "ledger.jsonl"] {
        assert!(read(&format!("cleveland/state/{book}")).contains(titled), "{book}");
    }
    assert!(read("federation/state/audit.jsonl").contains("kmeans: assign 1"));
    let wary = read("va/state/audit.jsonl");
    let denied = wary.lines().find(|line| line.contains("\"denied\"")).unwrap();
    assert!(denied.contains("\"kind\":\"statistics\"") && denied.contains("no other task"), "{denied}");
}

#[test]
fn statistics_are_of_all_sites_however_few_a_round_asks() {
    let text = std::fs::read_to_string(examples().join("kmeans.toml")).unwrap();
    let few = text.replace("clients_min = 4\nquorum = 4", "clients_min = 2\ncount = 2");
    let training = "model = \"logistic\"\ntraining = { batch_size = 16, optimizer = { sgd = { learning_rate = 0.05 } } }";
    let trained = few.replace("rounds = 50", "rounds = 2").replace("[method.kmeans]\nclusters = 3", "");
    let trained = trained.replace("name = \"groups\"", &format!("name = \"groups\"\n{training}"));
    let registry = Registry::standard();
    let simulated = |text: &str| {
        let scenario = Scenario::parse_with(text, examples(), &|_| None, registry.server()).unwrap();
        let spec = &scenario.plan.spec;
        let population = Population::build(&scenario.simulation, spec, Device::Cpu).unwrap();
        let population = population.with_methods(registry.site().clone());
        let first = first_model(population.models(), spec, Seed::from_number(SEED)).unwrap();
        let availability = scenario.simulation.availability;
        let simulator = Simulator::new(scenario.plan, first.shared, SEED, availability).unwrap();
        simulator.run(&population, &mut |_| {}).unwrap()
    };
    let whole = simulated(&text).standardiser;
    for plan in [&few, &trained] {
        let outcome = simulated(plan);
        assert_eq!(outcome.standardiser, whole, "a site was left out of the statistics");
        assert_eq!(outcome.rounds[1].cohort, 2);
        assert!(outcome.clients.values().all(|client| client.refused.is_empty()));
    }
}

#[test]
fn what_a_plan_of_a_method_does_is_told_and_nothing_of_training() {
    let plan = examples().join("kmeans.toml");
    let facts = command(&["check", plan.to_str().unwrap()]);
    assert_eq!((&facts["method"], &facts["values"]), (&"kmeans, version 1".into(), &39.into()), "{facts}");
    assert!(facts["privacy"].as_str().unwrap().contains("answers to the method `kmeans`"), "{facts}");
    // Three centres of 13 columns, each with a number of records and a sum of distances, in 32 bytes.
    assert_eq!(facts["bytes_up_per_client_and_round"], 3 * 15 * 32, "{facts}");
    assert_eq!(facts["answers"], "`kmeans: assign` has at most 1440 bytes");
    let of_training = ["lattice_step", "cpu_gradients", "update_codec", "evaluated_rounds"];
    assert!(of_training.iter().all(|fact| facts.get(fact).is_none()), "{facts}");
}

#[test]
fn an_audit_of_updates_is_refused_where_a_plan_has_none() {
    let plan = examples().join("kmeans.toml");
    let dir = tempfile::tempdir().unwrap();
    for audit in ["gdp", "one-run", "one-shot"] {
        let mut simulate = std::process::Command::new(env!("CARGO_BIN_EXE_consortia"));
        simulate.args(["simulate", plan.to_str().unwrap(), "--audit", audit, "--out"]).arg(dir.path());
        let output = simulate.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains("--audit") && told.contains("`kmeans`"), "{told}");
        assert!(dir.path().read_dir().unwrap().next().is_none(), "nothing was begun");
    }
}

#[test]
fn more_clients_than_a_round_needs_are_asked_where_the_method_can_do_with_some_of_them() {
    let text = std::fs::read_to_string(examples().join("kmeans.toml")).unwrap();
    let surplus = |text: &str| {
        text.replace("clients_min = 4\nquorum = 4", "clients_min = 4\ncount = 2\noversample = 2.0")
    };
    let registry = Registry::standard();
    let plan = registry.server().parse(&surplus(&text)).unwrap();
    assert_eq!(plan.cohort.oversample, Some(2.0));
    let tossing = surplus(&tossing(1).replace("clients_min = 3", "clients_min = 4\nquorum = 4"));
    let error = Methods::default().with(Toss::default()).parse(&tossing).unwrap_err().to_string();
    assert!(error.contains("cohort.oversample") && error.contains("`toss`"), "{error}");
}

#[test]
fn a_plan_s_method_is_read_with_line_and_setting() {
    let text = std::fs::read_to_string(examples().join("kmeans.toml")).unwrap();
    let registry = Registry::standard();
    let refused = |old: &str, new: &str| {
        assert!(text.contains(old));
        registry.server().parse(&text.replace(old, new)).unwrap_err().to_string()
    };
    let cases = [
        (
            "clusters = 3",
            "clusters = 1",
            "line 13, column 12: method.kmeans.clusters: 1 is not from 2 to 1000",
        ),
        ("clusters = 3", "cluster = 3", "unknown field `cluster`"),
        ("clusters = 3", "clusters = 3\ntolerance = -1.0", "tolerance: -1 is not 0 or more"),
        ("[method.kmeans]", "[method.kmean]", "this program knows no such method; it knows: kmeans"),
        (
            "name = \"groups\"",
            "name = \"groups\"\nmodel = \"linear\"",
            "model: the method `kmeans` trains no model by gradients",
        ),
        // What says the default is refused, too.
        (
            "[cohort]",
            "[evaluation]\nevery = 1\n[cohort]",
            "line 25, column 9: evaluation.every: the method `kmeans`",
        ),
        ("[cohort]", "[update]\n[cohort]", "line 24, column 2: update: the method `kmeans`"),
        ("[cohort]", "[privacy]\n[cohort]", "line 24, column 2: privacy: the method `kmeans` adds no noise"),
        (
            "name = \"groups\"",
            "name = \"groups\"\nstrategy = \"fedavg\"",
            "line 10, column 12: strategy: the method `kmeans` trains no model by gradients and ignores this",
        ),
        (
            "name = \"groups\"",
            "name = \"groups\"\nschedule = { decay = \"constant\" }",
            "schedule.decay: the method `kmeans`",
        ),
        (
            "name = \"groups\"",
            "name = \"groups\"\npersonal_layers = []",
            "personal_layers: the method `kmeans`",
        ),
        (
            "[cohort]",
            "[training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.1 } }\n[cohort]",
            "line 24, column 2: training: the method `kmeans`",
        ),
        (
            "[cohort]",
            "[privacy.local]\nnoise_multiplier = 1.0\ndelta = 1e-5\nepsilon_max = 9.0\n[cohort]",
            "privacy: the method `kmeans` adds no noise",
        ),
        (
            "[method.kmeans]\nclusters = 3",
            "model = { values = { shape = [3] } }",
            "values belong to a method",
        ),
    ];
    for (old, new, expected) in cases {
        let error = refused(old, new);
        assert!(error.contains(expected), "{new}: {error}");
    }
    assert!(server::Plan::parse(&text).unwrap_err().to_string().contains("it knows: none"));
}

const TOSS: &str = "name = \"toss\"\nrounds = ROUNDS\n[method.toss]\n[data.tensor]\nshape = [6]\ntarget = { classes = 2 }\n\
    [cohort]\nclients_min = 3\nquorum = 2\ngrace_seconds = 0.3\n";

fn tossing(rounds: u32) -> String {
    TOSS.replace("ROUNDS", &rounds.to_string())
}

fn simulated_toss(rounds: u32, availability: AvailabilityConfig, observe: &mut dyn FnMut(&Note)) -> Outcome {
    let plan = Methods::default().with(Toss::default()).parse(&tossing(rounds)).unwrap();
    let population = Population::of(trio::sites(), None, Device::Cpu);
    let population = population.with_methods(SiteMethods::default().with(Toss::default()));
    let first = first_model(population.models(), &plan.spec, Seed::from_number(SEED)).unwrap();
    let simulator = Simulator::new(plan, first.shared, SEED, availability).unwrap();
    simulator.run(&population, &mut |seen| observe(seen.note)).unwrap()
}

#[test]
fn a_step_has_two_exchanges_and_goes_on_without_a_client_that_vanishes_between_them() {
    let all = simulated_toss(3, AvailabilityConfig::default(), &mut |_| {});
    assert_eq!((all.rounds.len(), all.model.values()[1]), (3, 3.0));
    let (mut committed, mut revealed) = (Vec::new(), Vec::new());
    let availability = AvailabilityConfig { dropout: 0.3, ..AvailabilityConfig::default() };
    let outcome = simulated_toss(30, availability, &mut |note| {
        if let Note::Closed { task, answered, .. } = note {
            match task.step {
                COMMIT => committed.push((task.round, *answered)),
                REVEAL => revealed.push((task.round, *answered)),
                step => panic!("{}", step.name()),
            }
        }
    });
    let lost = |(round, answered): &&(Round, usize)| {
        revealed.iter().any(|(again, count)| again == round && count < answered)
    };
    assert!(committed.iter().filter(lost).count() > 3, "{committed:?} {revealed:?}");
    // A round in which two revealed is over, one in which fewer did is not.
    for (round, count) in &revealed {
        let line = outcome.rounds.iter().find(|line| line.round == round.0).unwrap();
        assert_eq!((line.released, line.answered as usize), (*count >= 2, *count), "{line:?}");
    }
    assert!(revealed.iter().all(|(_, count)| *count <= 3));
    let last = outcome.rounds.iter().rfind(|line| line.released).unwrap();
    assert_eq!(outcome.model.values()[1], last.answered as f32);
}

/// The three sites at a server that knows the toss; the last one behaves as told. Gives the run's end, with the server and its sites.
async fn tossed_over_quic(
    rounds: u32,
    last: Conduct,
    vanish: Option<mpsc::UnboundedReceiver<ClientId>>,
) -> RunSummary {
    let federation = Federation::new();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = ServerConfig::new(federation.folder("state"), listen, federation.folder("identity"));
    let room = Room::new().with_methods(Methods::default().with(Toss::default()));
    let server = Server::start(config, Arc::new(room)).await.unwrap();
    let mut agents = Vec::new();
    for (number, (name, data)) in trio::sites().into_iter().enumerate() {
        let conduct = if number == 2 { last.clone() } else { Conduct::Honest };
        let participant = Participant::new(name.clone(), trio::learner(data));
        let participant = participant.with_methods(SiteMethods::default().with(Toss(conduct)));
        let identity = Identity::load(&federation.issue(name.as_str())).unwrap();
        let (sender, mut events) = mpsc::channel(64);
        let config = AgentConfig::any_of(vec![server.local_addr().to_string()]);
        let agent = Agent::new(participant, identity, config).with_events(sender);
        let leave = CancellationToken::new();
        agents.push((leave.clone(), tokio::spawn(agent.run(leave))));
        let greeted = async {
            while let Some(event) = events.recv().await {
                if matches!(event, AgentEvent::Connected { .. }) {
                    return;
                }
            }
            panic!("{name}'s agent ended before it was greeted");
        };
        timeout(PATIENCE, greeted).await.unwrap();
        tokio::spawn(async move { while events.recv().await.is_some() {} });
    }
    let operator = federation.operator(&server).await;
    let run = operator.submit(&tossing(rounds), SEED).await;
    if let Some(mut asked) = vanish {
        let who = timeout(PATIENCE, asked.recv()).await.unwrap().unwrap();
        assert_eq!(who.as_str(), "west");
        agents[2].1.abort();
        agents[2].0.cancel();
    }
    operator.follow(run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn over_quic_two_exchanges_give_the_simulated_bits() {
    let end = tossed_over_quic(3, Conduct::Honest, None).await;
    let simulated = simulated_toss(3, AvailabilityConfig::default(), &mut |_| {});
    assert_eq!(
        (end.rounds_done, end.model_sha256.as_str()),
        (3, simulated.model.sha256().as_str()),
        "{end:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn over_quic_a_site_that_vanishes_between_two_exchanges_is_left_out() {
    let (told, asked) = mpsc::unbounded_channel();
    let end = tossed_over_quic(1, Conduct::Hangs(told), Some(asked)).await;
    assert_eq!((end.rounds_done, end.history[0].released, end.history[0].answered), (1, true, 2), "{end:?}");
    assert!(end.history[0].seconds < 60.0, "the round waited for its deadline");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_quic_a_secret_that_does_not_fit_its_commitment_is_refused() {
    let end = tossed_over_quic(1, Conduct::Cheats, None).await;
    assert_eq!((end.rounds_done, end.history[0].answered), (1, 2), "{end:?}");
    let west = end.clients.iter().find(|client| client.client.as_str() == "west").unwrap();
    let refused: Vec<(&str, u32)> =
        west.refused.iter().map(|(reason, count)| (reason.as_str(), *count)).collect();
    assert_eq!(refused, [("out_of_range", 1)]);
}
