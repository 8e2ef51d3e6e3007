//! The server of a private run dies two hundred times, most of them between two steps of a round that were chosen so that a
//! crash there would hurt: nothing is ever released twice, every release is paid, and no raw sum is on the disk.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and wait for real time to pass"
)]

#[path = "support/chance.rs"]
mod chance;
#[path = "support/member.rs"]
mod member;
#[path = "support/processes.rs"]
mod processes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chance::draw;
use member::Member;
use privacy::ledger::{Ledger, Record};
use privacy::{Encoded, Lattice, NormBound, clip};
use processes::{Process, command, serve, submit};
use protocol::{
    EvaluateOrder, Layout, LearnError, Learner, Metrics, Parameters, Round, Seed, Spec, Statistic, Stop,
    TrainOrder,
};
use server::net::Store;

/// Every point at which the server can be told to die.
const POINTS: [&str; 15] = [
    "reservation-due",
    "reservation-uncommitted",
    "reserved",
    "sending",
    "answered",
    "folded",
    "noised",
    "model-on-disk",
    "spent-uncommitted",
    "transaction-full",
    "transaction-done",
    "release-logged",
    "published",
    "committed",
    "told",
];
/// Deaths at points, and deaths at any instant.
const DEATHS: usize = 156;
const KILLS: u64 = 44;
/// Enough that the run outlives all of them.
const ROUNDS: u32 = 2000;
const SITES: [&str; 3] = ["north", "south", "west"];
/// What every site's training changes: a pattern that a raw sum on a disk would show.
const DELTA: [f32; 14] =
    [0.01, -0.02, 0.03, 0.015, -0.025, 0.035, 0.011, -0.021, 0.031, 0.016, -0.026, 0.036, 0.012, -0.022];

fn plan() -> String {
    format!(
        "name = \"deadly\"\nrounds = {ROUNDS}\nmodel = \"logistic\"\n\
         [data.tensor]\nshape = [6]\ntarget = {{ classes = 2 }}\n\
         [training]\nbatch_size = 8\noptimizer = {{ sgd = {{ learning_rate = 0.05 }} }}\n\
         [update]\nnorm_max = 1.0\n\
         [cohort]\nclients_min = 3\nquorum = 3\n\
         [privacy.central]\npopulation = \"wards\"\ndelta = 1e-5\nepsilon_max = 9\nnoise_multiplier = 40\ndenominator = 3\n\
         sampling = {{ availability = {{ participations_max = {ROUNDS} }} }}\n"
    )
}

/// Every model that was put to a site, by round.
type Seen = Arc<Mutex<BTreeMap<u32, BTreeSet<String>>>>;

/// A learner that changes every model alike and notes what it was given.
struct Patterned {
    layout: Layout,
    seen: Seen,
}

impl Learner for Patterned {
    fn prepare(&mut self, _: &Arc<Spec>) -> Result<(), LearnError> {
        Ok(())
    }
    fn layout(&self) -> &Layout {
        &self.layout
    }
    fn initialise(&mut self, _: Seed) -> Result<Vec<f32>, LearnError> {
        Ok(vec![0.0; DELTA.len()])
    }
    fn statistics(&mut self) -> Result<Vec<Statistic>, LearnError> {
        Ok(Vec::new())
    }
    fn train(&mut self, values: &mut [f32], order: &TrainOrder, _: &Stop) -> Result<Metrics, LearnError> {
        let Round(round) = order.round;
        let given = Parameters::new(values.to_vec()).sha256();
        self.seen.lock().unwrap().entry(round).or_default().insert(given);
        values.iter_mut().zip(DELTA).for_each(|(value, change)| *value += change);
        Ok(Metrics { examples: 1, ..Metrics::default() })
    }
    fn evaluate(&mut self, _: &[f32], _: &EvaluateOrder, _: &Stop) -> Result<Metrics, LearnError> {
        Ok(Metrics::default())
    }
}

fn learner(seen: &Seen) -> Box<dyn Learner> {
    let layout = Layout::new([("w".to_owned(), vec![DELTA.len()])]).unwrap();
    Box::new(Patterned { layout, seen: Arc::clone(seen) })
}

/// Three sites that try to reach the server, which may die before it greets them.
fn members(folder: &Path, address: &str, seen: &Seen) -> Vec<Member> {
    let identity = |name: &str| folder.join("sites").join(name);
    SITES.map(|name| Member::knock(address, &identity(name), name, learner(seen)).0).into()
}

/// The bytes of the raw sum of three sites' updates of `scale` times the pattern: of its first four coordinates, as i64.
fn raw_sum() -> Vec<u8> {
    let lattice = Lattice::plan(NormBound::new(1.0).unwrap(), 1 << 20, 1, DELTA.len()).unwrap();
    let clipped = clip(DELTA.to_vec(), lattice.bound()).unwrap();
    let encoded = Encoded::encode(&clipped, lattice.weigh(1), &lattice).unwrap();
    encoded.points()[..4].iter().flat_map(|point| (3 * i64::from(*point)).to_le_bytes()).collect()
}

/// No file of the state holds the raw sum. The pattern is not exact in floats (a site sends what training changed), so the
/// high bytes of each coordinate are compared, which small differences leave alone.
fn assert_no_raw_sum(state: &Path) {
    let pattern = raw_sum();
    let fits =
        |window: &[u8]| (0..4).all(|at| window[at * 8 + 3..at * 8 + 8] == pattern[at * 8 + 3..at * 8 + 8]);
    for folder in [state.to_owned(), state.join("blobs"), state.join("secrets")] {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let Ok(bytes) = std::fs::read(&path) else { continue };
            assert!(!bytes.windows(32).any(fits), "{} holds a raw sum", path.display());
        }
    }
}

/// Whatever file of a model can be read was paid for, as the dead server left it.
async fn assert_nothing_unpaid(state: &Path) {
    let store = Store::look(state).await.unwrap();
    let run = store.summary(None).await.unwrap().unwrap().run;
    let paid: BTreeSet<String> =
        store.models(run).await.unwrap().into_iter().map(|model| model.place).collect();
    store.close().await;
    for entry in std::fs::read_dir(state.join("blobs")).unwrap() {
        let path = entry.unwrap().path().display().to_string();
        assert!(
            !path.ends_with(".safetensors") || paid.contains(&path),
            "{path} can be read and is not paid for"
        );
    }
}

/// The ledger and the rounds of the state, between two lives.
async fn check_books(state: &Path, seen: &Seen) -> u64 {
    let store = Store::open(state).await.unwrap();
    let links = store.ledger("wards").await.unwrap();
    let ledger = Ledger::replay(&links).unwrap();
    let summary = store.summary(None).await.unwrap().unwrap();
    store.close().await;
    let mut released = BTreeMap::new();
    for link in &links {
        if let Record::Spent { round, release, noised, .. } = link.read().unwrap() {
            assert!(noised.is_some());
            assert_eq!(released.insert(round, release.sha256), None, "round {round} was released twice");
        }
    }
    assert_eq!(ledger.releases(), released.len() as u64);
    let last = summary.rounds_done;
    let stored: BTreeSet<u32> =
        summary.history.iter().filter(|round| round.released).map(|round| round.round).collect();
    let first_told = summary.history.first().map_or(0, |round| round.round);
    let reserved: BTreeSet<u32> = released.keys().copied().filter(|round| *round >= first_told).collect();
    assert_eq!(stored, reserved, "releases and ledger differ");
    // What sites were given in a round is the one release of the round before, in every life.
    for (round, models) in &*seen.lock().unwrap() {
        assert_eq!(models.len(), 1, "round {round} was put to sites with {} models", models.len());
        if let Some(sha256) = released.get(&(round - 1)) {
            assert_eq!(models.first(), Some(sha256), "round {round}");
        }
    }
    u64::from(last)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_two_hundred_times_releases_each_round_once_and_pays_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("federation");
    let (shown, state) = (folder.to_str().unwrap(), folder.join("state"));
    command(&["server", "init", shown, "--listen", "127.0.0.1:0"]);
    for name in SITES {
        command(&["server", "issue", name, "--dir", shown]);
    }
    let file = dir.path().join("federation.toml");
    std::fs::write(&file, plan()).unwrap();
    let (server, address) = serve(shown, "127.0.0.1:0");
    submit(file.to_str().unwrap(), shown, &address, None);
    server.kill();

    let seen = Seen::default();
    let mut done = 0;
    for death in 0..DEATHS + KILLS as usize {
        let crash =
            (death < DEATHS).then(|| (POINTS[death % POINTS.len()], 1 + draw(death as u64, 4) as u32));
        // The port stays the same: the first life took it.
        let listen = ["server", "run", shown, "--listen", &address, "--while-stdin-open"];
        let server = Process::start_with(&listen, crash);
        let members = members(&folder, &address, &seen);
        if crash.is_some() {
            server.rest();
        } else {
            tokio::time::sleep(Duration::from_millis(draw(death as u64, 400))).await;
            drop(server.kill());
        }
        drop(members);
        assert_nothing_unpaid(&state).await;
        if death % 10 == 9 || death >= DEATHS {
            // The books of a crash agree, at whatever instant it came.
            command(&["audit", "verify", shown]);
            let now = check_books(&state, &seen).await;
            assert!(now >= done, "round {now} after round {done}");
            done = now;
            assert_no_raw_sum(&state);
        }
        assert!(done < u64::from(ROUNDS), "the run ended before death {death}; give it more rounds");
    }
    let (server, _) = serve(shown, &address);
    for name in SITES {
        let identity = folder.join("sites").join(name);
        Member::join(&address, &identity, name, learner(&seen)).await.leave().await;
    }
    server.kill();
    assert!(done > 50, "only {done} rounds were released in all these lives");
}
