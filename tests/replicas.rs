//! Three servers on one PostgreSQL database, of which one works at a time. It is killed, or stands still, again and again: another
//! one goes on, nothing is released twice, and the run ends as if nothing had happened.
//!
//! Without PostgreSQL on the machine these tests say that they skip.
#![cfg(target_os = "linux")]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and wait for real time to pass"
)]

#[path = "support/chance.rs"]
mod chance;
#[path = "support/deployed.rs"]
mod deployed;
#[path = "support/member.rs"]
mod member;
#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/processes.rs"]
mod processes;
#[path = "support/trio.rs"]
mod trio;

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chance::draw;
use member::{Member, PATIENCE};
use privacy::ledger::{Ledger, Record};
use processes::{Process, command, serve, submit};
use protocol::RunId;
use serde_json::Value;
use server::net::{Database, Postgres, Store};
use tempfile::TempDir;

const REPLICAS: [&str; 3] = ["a", "b", "c"];
/// Times that the server that leads is killed.
const KILLS: u64 = 20;
/// Enough rounds that the run outlives all of them.
const ROUNDS: u32 = 160;
/// The longest time from the first task of a turn to its end: some rounds.
const TURN_MS: u64 = 120;
const SEED: u64 = 11;
/// A site restarts now and then, too, which keeps its pauses short.
const SITES_RESTART: u64 = 4;

fn plan(privacy: &str) -> String {
    format!(
        "name = \"turns\"\nrounds = {ROUNDS}\nmodel = \"logistic\"\n\
         [data.tensor]\nshape = [6]\ntarget = {{ classes = 2 }}\n\
         [training]\nepochs = 4\nbatch_size = 8\noptimizer = {{ sgd = {{ learning_rate = 0.05 }} }}\n\
         [update]\nnorm_max = 1.0\n\
         [cohort]\nclients_min = 3\nquorum = 3\n{privacy}"
    )
}

fn central() -> String {
    format!(
        "[privacy.central]\npopulation = \"wards\"\ndelta = 1e-5\nepsilon_max = 9\nnoise_multiplier = 40\n\
         denominator = 3\nsampling = {{ availability = {{ participations_max = {ROUNDS} }} }}\n"
    )
}

/// A federation whose state is in PostgreSQL, and its servers.
struct Turns {
    dir: TempDir,
    url: String,
    addresses: Vec<String>,
    servers: Vec<Process>,
    database: Arc<postgres::Postgres>,
}

/// The three sites, which look for a server at these addresses, with commas between them.
fn members(folder: &Path, addresses: &str) -> Vec<Member> {
    let member = |(name, data): (protocol::ClientId, _)| {
        let identity = folder.join("sites").join(name.as_str());
        Member::knock(addresses, &identity, name.as_str(), trio::learner(data)).0
    };
    trio::sites().into_iter().map(member).collect()
}

impl Turns {
    /// The servers at work, unless there is no PostgreSQL.
    fn begin() -> Option<Self> {
        let database = postgres::Postgres::shared()?;
        let url = database.database();
        let dir = tempfile::tempdir().unwrap();
        deployed::federation(&dir.path().join("federation"));
        let file = dir.path().join("federation/server.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("{text}\n[state]\ndatabase = \"{url}\"\nlease_seconds = 1\n")).unwrap();
        // Free ports, which the servers take again in each of their lives.
        let sockets = REPLICAS.map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
        let addresses = sockets.iter().map(|socket| socket.local_addr().unwrap().to_string()).collect();
        drop(sockets);
        let mut turns = Self { dir, url, addresses, servers: Vec::new(), database };
        turns.servers = (0..REPLICAS.len()).map(|server| turns.start(server)).collect();
        Some(turns)
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("federation")
    }

    fn start(&self, server: usize) -> Process {
        let (folder, replica) = (self.folder(), REPLICAS[server]);
        let shown = folder.to_str().unwrap();
        let address = &self.addresses[server];
        let listen =
            ["server", "run", shown, "--listen", address, "--replica", replica, "--while-stdin-open"];
        Process::start(&listen)
    }

    /// Kills a server and starts it again.
    fn kill(&mut self, server: usize) {
        // Whoever is dead has let go of its lock and its port.
        self.servers.remove(server).kill();
        self.servers.insert(server, self.start(server));
    }

    /// Who leads with a later epoch than this one, and which epoch.
    fn leader_after(&self, epoch: u64) -> (usize, u64) {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            for (number, server) in self.servers.iter().enumerate() {
                while let Ok(line) = server.lines.try_recv() {
                    let leads = line["event"] == "leading";
                    if let Some(found) = line["epoch"].as_u64().filter(|found| leads && *found > epoch) {
                        return (number, found);
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let errors: Vec<_> =
            self.servers.iter().map(|server| server.errors.lock().unwrap().clone()).collect();
        panic!("nobody leads after epoch {epoch}: {errors:?}");
    }

    fn submit(&self, plan: &str, leads: usize, seed: Option<u64>) -> String {
        let file = self.dir.path().join("federation.toml");
        std::fs::write(&file, plan).unwrap();
        let folder = self.folder();
        submit(file.to_str().unwrap(), folder.to_str().unwrap(), &self.addresses[leads], seed)
    }

    /// The run's last summary.
    fn watch(&self, run: &str, leads: usize) -> Value {
        let (folder, address) = (self.folder(), &self.addresses[leads]);
        let shown = folder.to_str().unwrap();
        Process::start(&["run", "watch", run, "--dir", shown, "--server", address]).last_line()
    }

    /// Kills whoever leads, again and again, then lets the run come to its end; returns its last summary.
    async fn disturb(&mut self, run: &str, leads: usize, epoch: u64) -> Value {
        let (folder, addresses) = (self.folder(), self.addresses.join(","));
        let (mut leads, mut epoch) = (leads, epoch);
        let mut sites = members(&folder, &addresses);
        for kill in 0..KILLS {
            if kill % SITES_RESTART == SITES_RESTART - 1 {
                for site in std::mem::take(&mut sites) {
                    site.leave().await;
                }
                sites = members(&folder, &addresses);
            }
            let turn = Duration::from_millis(draw(SEED + kill, TURN_MS));
            let opened = self.servers[leads].event("opened");
            std::thread::sleep(turn);
            println!("kill {kill}: {} at epoch {epoch}, {turn:?} after {opened}", REPLICAS[leads]);
            self.kill(leads);
            (leads, epoch) = self.leader_after(epoch);
        }
        let end = self.watch(run, leads);
        assert_eq!((&end["state"], &end["rounds_done"]), (&"finished".into(), &ROUNDS.into()), "{end}");
        end
    }

    async fn look(&self) -> Store {
        let database = Database::Postgres(Postgres::new(&self.url, None, "look").unwrap());
        Store::look_into(&self.folder().join("state"), &database).await.unwrap()
    }
}

/// The model of the same run by one server, with its state in SQLite, that nobody disturbs.
fn undisturbed(plan: &str) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("federation");
    deployed::federation(&folder);
    let file = dir.path().join("federation.toml");
    std::fs::write(&file, plan).unwrap();
    let shown = folder.to_str().unwrap();
    let (_server, address) = serve(shown, "127.0.0.1:0");
    let run = submit(file.to_str().unwrap(), shown, &address, Some(SEED));
    let _sites = members(&folder, &address);
    let end = Process::start(&["run", "watch", &run, "--dir", shown, "--server", &address]).last_line();
    assert_eq!(end["state"], "finished", "{end}");
    end["model_sha256"].clone()
}

fn signal(server: &Process, name: &str) {
    let sent = Command::new("kill").args([name, &server.child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

/// Every audit log is a chain in order, whoever wrote it, and none is the log of two servers.
fn verify_audits(folder: &Path) {
    let logs = std::fs::read_dir(folder.join("state")).unwrap().map(|entry| entry.unwrap().file_name());
    let logs = logs.filter(|name| name.to_str().unwrap().starts_with("audit"));
    let logs: BTreeSet<String> = logs.map(|name| name.into_string().unwrap()).collect();
    let of_replicas: BTreeSet<String> = REPLICAS.map(|replica| format!("audit-{replica}.jsonl")).into();
    assert!(logs.len() > 1 && logs.is_subset(&of_replicas), "{logs:?}");
    command(&["audit", "verify", folder.to_str().unwrap()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_leads_is_killed_and_the_run_ends_with_the_bits_of_one_that_nobody_disturbed() {
    let Some(mut turns) = Turns::begin() else { return };
    let (leads, epoch) = turns.leader_after(0);
    let run = turns.submit(&plan(""), leads, Some(SEED));
    let end = turns.disturb(&run, leads, epoch).await;
    assert_eq!(end["model_sha256"], undisturbed(&plan("")));
    assert_eq!(end["model_sha256"], trio::simulated_model(&plan(""), SEED));
    let history = end["history"].as_array().unwrap();
    let numbers: Vec<u64> = history.iter().map(|round| round["round"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=u64::from(ROUNDS)).collect::<Vec<_>>());
    for client in end["clients"].as_array().unwrap() {
        assert_eq!(client["accepted"], ROUNDS, "an update counted twice or not at all: {client}");
    }
    verify_audits(&turns.folder());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_private_run_every_round_is_released_once_and_paid_once_whoever_is_killed() {
    let Some(mut turns) = Turns::begin() else { return };
    let (leads, epoch) = turns.leader_after(0);
    let run = turns.submit(&plan(&central()), leads, None);
    let end = turns.disturb(&run, leads, epoch).await;
    let store = turns.look().await;
    let links = store.ledger("wards").await.unwrap();
    let ledger = Ledger::replay(&links).unwrap();
    let stored = store.summary(Some(run.parse::<RunId>().unwrap())).await.unwrap().unwrap();
    let (mut spent, mut last) = (BTreeSet::new(), String::new());
    for link in &links {
        if let Record::Spent { round, release, noised, .. } = link.read().unwrap() {
            assert!(noised.is_some());
            assert!(spent.insert(round), "round {round} was released twice");
            last = release.sha256;
        }
    }
    let released: BTreeSet<u32> =
        stored.history.iter().filter(|round| round.released).map(|round| round.round).collect();
    assert_eq!((&spent, spent.len()), (&released, ROUNDS as usize), "releases and ledger differ");
    assert_eq!(ledger.releases(), u64::from(ROUNDS));
    assert!(ledger.open_reservations().is_empty());
    // What was noised last in the books is what the last server has.
    assert_eq!((&end["model_sha256"], &stored.model_sha256), (&last.clone().into(), &last));
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stood_still_finds_itself_deposed_writes_nothing_and_stands_by() {
    let Some(turns) = Turns::begin() else { return };
    let (leads, epoch) = turns.leader_after(0);
    let run = turns.submit(&plan(""), leads, Some(SEED));
    let _sites = deployed::members(&turns.folder(), &turns.addresses.join(",")).await;
    let stopped = &turns.servers[leads];
    stopped.event("round");
    signal(stopped, "-STOP");
    let (successor, next) = turns.leader_after(epoch);
    assert!(successor != leads && next == epoch + 1);
    // The sites have found their way, and rounds are made without the one that stands still.
    turns.servers[successor].event("round");
    signal(stopped, "-CONT");
    let said = stopped.event("deposed")["message"].as_str().unwrap().to_owned();
    assert!(said.contains(&format!("`{}` has taken the lease", REPLICAS[successor])), "{said}");
    assert_eq!(stopped.event("standby")["replica"], REPLICAS[leads]);
    // Its log says so, too; it comes by another pipe.
    let began = Instant::now();
    while !stopped.errors.lock().unwrap().contains("this server is deposed") {
        assert!(began.elapsed() < PATIENCE, "{}", stopped.errors.lock().unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    let end = turns.watch(&run, successor);
    assert_eq!(end["model_sha256"], trio::simulated_model(&plan(""), SEED), "{end}");
    let lease = turns.database.query(&turns.url, "SELECT holder, epoch FROM leases");
    assert_eq!(lease, format!("{}|{next}", REPLICAS[successor]));
    verify_audits(&turns.folder());
}

/// Waits until the log of a server has these words.
fn logged(server: &Process, words: &str) {
    let began = Instant::now();
    while !server.errors.lock().unwrap().contains(words) {
        assert!(began.elapsed() < PATIENCE, "no `{words}` in {}", server.errors.lock().unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_takes_no_writes_for_a_while_is_waited_out_and_the_run_goes_on() {
    let Some(mut turns) = Turns::begin() else { return };
    let (leads, epoch) = turns.leader_after(0);
    let run = turns.submit(&plan(""), leads, Some(SEED));
    let _sites = members(&turns.folder(), &turns.addresses.join(","));
    turns.servers[leads].event("round");
    let name = turns.url.split_once("localhost/").unwrap().1.split_once('?').unwrap().0.to_owned();
    let switch = |on: &str| {
        // As a failover that points at a standby does it: lines end, and new ones lead to where nothing can be written.
        let alter = format!("ALTER DATABASE {name} SET default_transaction_read_only = {on}");
        let end = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
        let elsewhere = turns.url.replace(&format!("localhost/{name}?"), "localhost/postgres?");
        [alter, end].iter().for_each(|sql| drop(turns.database.query(&elsewhere, sql)));
    };
    switch("on");
    for server in &turns.servers {
        logged(server, "does not answer as it should");
        logged(server, "read-only transaction");
    }
    switch("off");
    let (leads, _) = turns.leader_after(epoch);
    let end = turns.watch(&run, leads);
    assert_eq!(end["model_sha256"], trio::simulated_model(&plan(""), SEED), "{end}");
    for server in &mut turns.servers {
        assert!(server.child.try_wait().unwrap().is_none(), "a server has ended");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_database_does_not_answer_ends_in_order_when_it_is_told_to() {
    let Some(mut turns) = Turns::begin() else { return };
    for idle in turns.servers.split_off(1) {
        idle.kill();
    }
    let (leads, _) = turns.leader_after(0);
    turns.submit(&plan(""), leads, Some(SEED));
    let _sites = members(&turns.folder(), &turns.addresses.join(","));
    turns.servers[leads].event("round");
    let others =
        "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()";
    let stand_still = |name: &str, pids: &[String]| {
        assert!(Command::new("kill").arg(name).args(pids).status().unwrap().success());
    };
    let pids: Vec<String> = turns.database.query(&turns.url, others).lines().map(str::to_owned).collect();
    stand_still("-STOP", &pids);
    std::thread::sleep(Duration::from_millis(200));
    let mut server = turns.servers.remove(leads);
    signal(&server, "-TERM");
    // Not `wait`, which closes stdin and so tells it a second time.
    let ended = loop {
        match server.child.try_wait().unwrap() {
            Some(ended) => break ended,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    stand_still("-CONT", &pids);
    // 1 would say that the time to end in order was over.
    assert_eq!(ended.code(), Some(0), "{}", server.errors.lock().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_moves_to_a_database_by_one_command_and_its_run_goes_on_there() {
    let Some(database) = postgres::Postgres::shared() else { return };
    let (url, dir) = (database.database(), tempfile::tempdir().unwrap());
    let folder = dir.path().join("federation");
    deployed::federation(&folder);
    let (file, shown) = (dir.path().join("federation.toml"), folder.to_str().unwrap());
    std::fs::write(&file, plan("")).unwrap();
    let (server, address) = serve(shown, "127.0.0.1:0");
    let run = submit(file.to_str().unwrap(), shown, &address, Some(SEED));
    let _sites = members(&folder, &address);
    server.event("round");
    server.kill();
    let moved = command(&["server", "migrate", shown, "--to", &url]);
    assert_eq!(moved["rows"]["runs"], 1, "{moved}");
    // A server that was not told where its state is now does not begin another one.
    let lost = Process::start(&["server", "run", shown, "--listen", &address]);
    assert!(lost.rest().is_empty() && lost.errors.lock().unwrap().contains("[state] database"));
    let config = folder.join("server.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{text}\n[state]\ndatabase = \"{url}\"\nlease_seconds = 1\n")).unwrap();
    let checked = command(&["check", config.to_str().unwrap()]);
    assert!(checked["database"].as_str().unwrap().starts_with("postgres://postgres@localhost/t"));
    let (_server, address) = serve(shown, &address);
    let end = Process::start(&["run", "watch", &run, "--dir", shown, "--server", &address]).last_line();
    assert_eq!(end["model_sha256"], trio::simulated_model(&plan(""), SEED), "{end}");
    let log = command(&["run", "log", &run, "--dir", shown, "--server", &address]);
    assert!(log.to_string().contains("finished"), "{log}");
}

#[test]
fn an_invite_s_servers_are_all_in_the_file_of_the_site_that_it_makes() {
    let Some(turns) = Turns::begin() else { return };
    let (leads, _) = turns.leader_after(0);
    let (folder, dir) = (turns.folder(), turns.dir.path().join("newcomer"));
    let (shown, home) = (folder.to_str().unwrap(), dir.to_str().unwrap());
    let [one, two, three] = [0, 1, 2].map(|server| turns.addresses[server].as_str());
    let mut asked = vec!["invite", "create", "newcomer", "--dir", shown, "--server", &turns.addresses[leads]];
    asked.extend(["--address", one, "--address", two, "--address", three]);
    let invite = command(&asked);
    let line = invite[0]["invite"].as_str().unwrap();
    // Two of the three only stand by: the invite is redeemed at the one that leads.
    command(&["site", "join", line, "--dir", home]);
    let written = std::fs::read_to_string(dir.join("site.toml")).unwrap();
    let servers = format!("servers = [\"{one}\", \"{two}\", \"{three}\"]");
    assert!(written.contains(&servers), "{written}");
}
