//! The models of scripted runs, by their hashes.
//!
//! Updates are made here and not trained, so no processor rounds them otherwise: what a coordinator makes of given answers is the same on
//! every machine and in every release. Whoever changes a hash changes the model of every seeded run that exists.

use sha2::{Digest as _, Sha256};

use super::private::{COIN, EVERY, FIXED, plan, private_setup, seeded};
use super::*;

/// Sites of every run here.
const SITES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// A number in -1..1 that follows from its arguments; multiplied and added in integers, so that nothing rounds.
fn value_of(client: &ClientId, round: u32, place: u32) -> f32 {
    let name = u32::from(client.as_str().as_bytes()[0]);
    let mixed = (name * 7919 + round * 104_729 + place * 1_299_709) % 2048;
    (mixed as f32 - 1024.0) / 1024.0
}

fn answer_of(client: &ClientId, task: &Task) -> Outcome {
    let round = task.id.round.0;
    let examples = u64::from(round * 13 + u32::from(client.as_str().as_bytes()[0])) % 40 + 1;
    let Work::Train { model, norm_max, .. } = &task.work else { return honest(task, 2.0, examples) };
    let norm_max = norm_max.unwrap_or(task.spec.update.norm_max);
    let lattice = task.spec.lattice_within(norm_max, &[1; DIMENSION]).unwrap();
    let update = (0..model.len() as u32).map(|place| value_of(client, round, place)).collect();
    let clipped = lattice.clip(update).unwrap();
    let encoded = Encoded::encode(&clipped, lattice.weigh(examples), &lattice).unwrap();
    let weight = encoded.weight().value();
    let within = if clipped.norm_before() <= norm_max.value() { 1 } else { -1 };
    let vote = if task.spec.privacy.is_adaptive() { within } else { 0 };
    let metrics = Metrics { loss: 0.5, accuracy: Some(0.25), examples, seconds: 0.5 };
    Outcome::trained(encoded.into_points(), weight, vote, metrics)
}

/// SHA-256 of all that the run decided: who was asked for what, from which values, and what was committed. The first 16 digits.
fn transcript_of(setup: Setup) -> String {
    let mut stage = Stage::with(setup);
    stage.join(&SITES);
    let mut hash = Sha256::new();
    let bits = |hash: &mut Sha256, values: &[f32]| {
        values.iter().for_each(|value| hash.update(value.to_bits().to_le_bytes()));
    };
    let mut committed = 0;
    while stage.end.is_none() {
        let sent = stage.take_sent();
        if sent.is_empty() {
            stage.wait_for_deadline();
        }
        for (client, task) in sent {
            let (title, round, run) = (task.id.step_title(), task.id.round, task.id.run);
            hash.update(format!("{client} {title} of round {round} in run {run}"));
            if let Work::Train { model, learning_rate_scale, norm_max } = &task.work {
                bits(&mut hash, model.values());
                hash.update(learning_rate_scale.to_bits().to_le_bytes());
                hash.update(norm_max.map_or(0, |norm| norm.value().to_bits()).to_le_bytes());
            }
            let outcome = answer_of(&client, &task);
            stage.answer(&client, task.id, outcome);
        }
        for commit in &stage.commits[committed..] {
            let Checkpoint { round, model, optimizer, standardiser, releases, .. } = &commit.checkpoint;
            let RoundSummary { released, cohort, answered, .. } = commit.summary;
            hash.update(format!("{round} {releases} {standardiser:?} {released} {cohort} {answered}"));
            bits(&mut hash, model.values());
            optimizer.iter().for_each(|vector| bits(&mut hash, vector));
        }
        committed = stage.commits.len();
    }
    assert!(stage.coordinator.checkpoint().releases > 2, "{:?}", stage.end);
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// A run of six rounds with statistics before them, a warm-up, and cohorts of four of five.
fn run_of(extra: &str) -> Setup {
    let plan = format!(
        "name = \"t\"\nrounds = 6\nmodel = \"linear\"\n\
         [data.table]\nlabel = \"y\"\ntarget = \"real\"\nfeatures = [\"a\", \"b\"]\nstandardise = \"federated\"\n\
         [training]\nbatch_size = 8\noptimizer = {{ sgd = {{ learning_rate = 0.1 }} }}\n\
         [cohort]\nclients_min = 4\nfraction = 0.8\n\
         [schedule]\nwarm_up = 3\n\
         {extra}"
    );
    Setup { plan: Arc::new(Plan::parse(&plan).unwrap()), ..setup("", begin()) }
}

fn begin() -> Checkpoint {
    Checkpoint::begin(Parameters::new(vec![0.25; DIMENSION]))
}

fn private_run(sampling: &str, more: &str) -> Setup {
    let setup = private_setup(&plan(6, 1e4, sampling, more), begin(), &[], seeded(3));
    // Who is drawn follows from the seed, which is told.
    Setup { is_seeded: true, ..setup }
}

#[test]
fn every_strategy_makes_of_given_updates_the_model_that_it_always_made() {
    let runs = [
        ("", "cca03d132314c4da"),
        ("[strategy.fedavgm]\n", "8d94cf0f30a4b319"),
        ("[strategy.fedadagrad]\n", "ac70a594803007c3"),
        ("[strategy.fedadam]\n", "1889ac78abe645ff"),
        ("[strategy.fedyogi]\n", "44a20c8736cc75e5"),
        ("[update]\nweights = \"uniform\"\n", "0c3d05c7c19dd773"),
        ("[update]\nbroadcast = \"f16\"\ncodec = \"int8\"\n", "07c9618a4f118c44"),
        ("[update]\nnorm_max = 0.5\nweight_max = 7\n", "64c30f8886ec5512"),
    ];
    for (extra, expected) in runs {
        assert_eq!(transcript_of(run_of(extra)), expected, "{extra}");
    }
}

#[test]
fn every_way_to_noise_makes_of_given_updates_the_model_that_it_always_made() {
    let adaptive = "clipping = { adaptive = {} }\n";
    let runs = [
        (EVERY, "", "fce97e555667ce63"),
        (COIN, "", "e696735336392ffe"),
        (FIXED, "", "dd427ce4cef465da"),
        (EVERY, adaptive, "7817a0c4a991ad45"),
        (COIN, adaptive, "412edf3cd74fc0d7"),
        (EVERY, "noise = \"tree\"\n", "1646313fd6f0b32c"),
        (EVERY, "noise = { square_root = { bands = 3 } }\n", "4260bfcdf7289da5"),
    ];
    for (sampling, more, expected) in runs {
        assert_eq!(transcript_of(private_run(sampling, more)), expected, "{sampling} {more}");
    }
}
