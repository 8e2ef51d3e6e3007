//! Learners and sites that are killed at any moment: runs go on, nothing is paid twice, and no process is left.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use privacy::ledger::{Ledger, Record};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use server::net::Store;

use crate::chance::draw;
use crate::is_thorough;
use crate::processes::{PATIENCE, Process, command};
use crate::stage::{Stage, consortia, errors, is_alive, learner_table, learners_number, plan, text, until};

/// How often a learner is killed.
fn kills() -> u32 {
    if is_thorough() { 50 } else { 8 }
}

/// What a training takes: a moment at random is amid one more often than not.
const DELAY_MS: u64 = 80;

const LEARNER: [(&str, &str); 4] =
    [("BEHAVIOUR", "learns"), ("RECORDS", "0"), ("DELAY_MS", "80"), ("TELLS_ITS_NUMBER", "")];

fn send(number: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(number).unwrap()).unwrap();
    // It may have ended.
    let _ = kill_process(pid, signal);
}

/// Kills the learner of one of these sites at a moment that `seed` chooses, again and again.
fn kill_learners(stage: &Stage, sites: &[&str], seed: u64) {
    let mut killed = BTreeSet::new();
    for turn in 0..kills() {
        let draw = |what: u64, bound: u64| draw(seed + 16 * u64::from(turn) + what, bound);
        let folder = stage.path(sites[draw(0, sites.len() as u64) as usize]).join("learner");
        let number = until("no learner is started again", || {
            learners_number(&folder).filter(|number| !killed.contains(number) && is_alive(*number))
        });
        std::thread::sleep(Duration::from_millis(draw(1, 3 * DELAY_MS)));
        send(number, Signal::KILL);
        killed.insert(number);
    }
}

/// What a site has told its own people.
fn told(site: &Process) -> String {
    let lines: String = site.lines.try_iter().map(|line| line.to_string()).collect();
    lines + &site.errors.lock().unwrap()
}

/// The sum of the answers of a run's rounds.
fn answers(end: &Value) -> u64 {
    end["history"].as_array().unwrap().iter().map(|round| round["answered"].as_u64().unwrap()).sum()
}

fn assert_unheard(stage: &Stage) {
    let heard = stage.servers_words();
    for word in ["line of standard output", "signal:", "SIGKILL", "closed its connection"] {
        assert!(!heard.contains(word), "the server has `{word}`");
    }
}

#[test]
fn a_site_whose_learner_is_killed_pays_for_each_answer_once() {
    let rounds = 4 * kills();
    let stage = Stage::new(&["north"]);
    let site = stage.run_with("north", &LEARNER);
    let local = "[privacy.local]\nnoise_multiplier = 50.0\ndelta = 1e-5\nepsilon_max = 50.0\n";
    let run = stage.submit(&plan(rounds, 1, local), None);
    kill_learners(&stage, &["north"], 1);
    let end = stage.end_of(&run);
    assert_eq!((&end["state"], answers(&end)), (&"finished".into(), u64::from(rounds)), "{end}");
    // Whatever goes wrong is answered all the same, by noise, and is paid for as any answer.
    let ledger = command(&["budget", "show", text(&stage.site_file("north"))]);
    assert_eq!(ledger["runs"][0]["client"]["protected"], rounds, "{ledger}");
    assert_eq!(ledger["lost"], 0, "{ledger}");
    let said = told(&site);
    assert!(said.contains("signal: 9 (SIGKILL)"), "{said}");
    assert_unheard(&stage);
    let checked = consortia(&["site", "audit", text(&stage.site_file("north"))]);
    assert!(checked.status.success(), "{}", errors(&checked));
}

#[test]
fn a_server_whose_sites_learners_are_killed_pays_for_each_release_once() {
    let rounds = 4 * kills();
    let mut stage = Stage::new(&["north", "south"]);
    let sites = ["north", "south"].map(|name| stage.run_with(name, &LEARNER));
    let central = format!(
        "[privacy.central]\npopulation = \"wards\"\ndelta = 1e-5\nepsilon_max = 9\nnoise_multiplier = 60\ndenominator = 2\nclients_min = 1\n\
         sampling = {{ availability = {{ participations_max = {rounds} }} }}\n"
    );
    let plan = plan(rounds, 2, &central).replace("quorum = 1\n", "quorum = 1\nfailures_max = 1000\n");
    let run = stage.submit(&plan, None);
    kill_learners(&stage, &["north", "south"], 1 << 20);
    let end = stage.end_of(&run);
    assert_eq!((&end["state"], &end["rounds_done"]), (&"finished".into(), &rounds.into()), "{end}");
    let said: String = sites.iter().map(told).collect();
    assert!(said.contains("signal: 9 (SIGKILL)"), "{said}");
    assert_unheard(&stage);
    drop(sites);
    drop(stage.server.child.stdin.take());
    stage.server.child.wait().unwrap();
    let state = stage.path("fed/state");
    let (links, summary) = tokio::runtime::Runtime::new().unwrap().block_on(async {
        let store = Store::open(&state).await.unwrap();
        let read = (store.ledger("wards").await.unwrap(), store.summary(None).await.unwrap().unwrap());
        store.close().await;
        read
    });
    let mut paid = BTreeSet::new();
    for link in &links {
        if let Record::Spent { round, .. } = link.read().unwrap() {
            assert!(paid.insert(round), "round {round} was paid for twice");
        }
    }
    let released: BTreeSet<u32> =
        summary.history.iter().filter(|round| round.released).map(|round| round.round).collect();
    assert_eq!(released, paid);
    assert_eq!(Ledger::replay(&links).unwrap().releases(), paid.len() as u64);
}

/// How a site ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Asked,
    Killed,
}

#[test]
fn a_site_that_ends_leaves_no_learner_behind() {
    let behaviours = ["learns", "hangs", "works for ever", "does not end", "hangs from its start on"];
    std::thread::scope(|scope| {
        for behaviour in behaviours {
            for end in [End::Asked, End::Killed] {
                scope.spawn(move || leave(behaviour, end));
            }
        }
    });
}

fn leave(behaviour: &str, end: End) {
    let stage = Stage::new(&["north"]);
    let learner = [("BEHAVIOUR", behaviour), ("TELLS_ITS_NUMBER", ""), ("DELAY_MS", "100000")];
    stage.tell_site(
        "north",
        &learner_table("learner", &learner).replace("silent_seconds = 2", "silent_seconds = 100"),
    );
    let mut site = stage.run_site("north", &[]);
    stage.submit(&plan(3, 1, ""), None);
    let folder = stage.path("north/learner");
    let number = until("no learner is started", || learners_number(&folder));
    std::thread::sleep(Duration::from_millis(300));
    let (began, what) = (Instant::now(), format!("`{behaviour}`, {end:?}"));
    match end {
        End::Asked => {
            send(site.child.id(), Signal::TERM);
            let status = until(&format!("{what}: the site does not end"), || site.child.try_wait().unwrap());
            assert!(status.success(), "{what}: {status}");
        }
        End::Killed => drop(site.kill()),
    }
    while is_alive(number) {
        assert!(began.elapsed() < PATIENCE, "{what}: the learner lives");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(began.elapsed() < Duration::from_secs(30), "{what}: {:?}", began.elapsed());
}

#[test]
fn a_simulation_that_is_interrupted_waits_for_no_learner() {
    let stage = Stage::new(&[]);
    for behaviour in ["hangs from its start on", "works for ever"] {
        let learner = [("BEHAVIOUR", behaviour), ("TELLS_ITS_NUMBER", "")];
        let learner = learner_table("simulation.learner", &learner);
        let learner = learner
            .replace("end_seconds = 1", "end_seconds = 600")
            .replace("silent_seconds = 2", "silent_seconds = 600");
        let plan = plan(2, 1, "");
        let file =
            stage.write_plan("plan.toml", &format!("{plan}[simulation]\nseed = 1\nclients = 1\n{learner}"));
        let mut simulation =
            Process::start(&["simulate", text(&file), "--out", text(&stage.path("results"))]);
        let number = until("no learner is started", || learners_number(&stage.path("")));
        std::thread::sleep(Duration::from_millis(300));
        let began = Instant::now();
        send(simulation.child.id(), Signal::INT);
        until("the simulation does not end", || simulation.child.try_wait().unwrap());
        assert!(began.elapsed() < Duration::from_secs(20), "{behaviour}: {:?}", began.elapsed());
        until("the learner lives", || (!is_alive(number)).then_some(()));
        std::fs::remove_file(stage.path("number")).unwrap();
    }
}
