//! One plan, one seed, one learner: one model, simulated and deployed.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::is_thorough;
use crate::processes::{Process, command};
use crate::stage::{Stage, consortia, errors, learner_table, plan, text};

/// The names that a simulation gives its clients, from which their seeds follow.
const NAMES: [&str; 4] = ["client-1", "client-2", "client-3", "client-4"];

/// The model of a simulation of the plan in this file.
pub(crate) fn simulated(file: &Path) -> Value {
    command(&["simulate", text(file), "--out", text(&file.with_extension("results"))])
}

/// The plan as a simulation's, whose learner is started by this table.
fn simulation(plan: &str, seed: u64, clients: usize, learner: &str) -> String {
    format!("{plan}\n[simulation]\nseed = {seed}\nclients = {clients}\n{learner}")
}

#[test]
fn a_simulation_and_its_sites_make_the_same_model() {
    let stage = Stage::new(&NAMES[..3]);
    let number = |index: usize| index.to_string();
    let sites: Vec<Process> = (0..3)
        .map(|index| stage.run_with(NAMES[index], &[("BEHAVIOUR", "learns"), ("RECORDS", &number(index))]))
        .collect();
    let plans = [("whole", ""), ("small", "codec = \"int8\"\nbroadcast = \"bf16\"\n")];
    for seed in if is_thorough() { 0..8 } else { 7..8 } {
        for (name, update) in plans {
            let plan = plan(3, 3, "").replace("norm_max = 20.0\n", &format!("norm_max = 20.0\n{update}"));
            let mut found = Vec::new();
            for processes in [1, 3] {
                let learner = learner_table("simulation.learner", &[("BEHAVIOUR", "learns")]);
                let learner =
                    learner.replace("silent_seconds", &format!("processes = {processes}\nsilent_seconds"));
                let file = stage.write_plan(&format!("{name}.toml"), &simulation(&plan, seed, 3, &learner));
                found.push(simulated(&file)["model_sha256"].as_str().unwrap().to_owned());
            }
            found.push(stage.finish(&plan, Some(seed))["model_sha256"].as_str().unwrap().to_owned());
            assert!(found.iter().all(|one| *one == found[0]), "{name}, seed {seed}: {found:?}");
        }
    }
    drop(sites);
}

/// A Python with NumPy, where there is one.
fn python() -> Option<PathBuf> {
    let named = std::env::var_os("CONSORTIA_PYTHON").unwrap_or_else(|| "python3".into());
    let found = Command::new(named).args(["-c", "import numpy, sys; print(sys.executable)"]).output().ok()?;
    found.status.success().then(|| String::from_utf8(found.stdout).unwrap().trim().into())
}

#[test]
fn the_example_in_numpy_makes_the_same_model_simulated_and_at_four_hospitals() {
    let Some(python) = python() else {
        return eprintln!("skipped: neither CONSORTIA_PYTHON nor python3 is a Python with NumPy");
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (example, package) = (root.join("examples/python/heart_numpy.py"), root.join("python"));
    let table = root.join("examples/data/heart_disease.csv");
    let stage = Stage::new(&NAMES);
    let mut first = Command::new(&python);
    first.args([&example, &table]).env("PYTHONPATH", &package);
    let start = stage.path("heart_numpy.safetensors");
    assert!(first.env("CONSORTIA_SAVE_INITIAL", &start).status().unwrap().success());
    let learner = |name: &str, table: &Path| {
        let words = [&python, &example, table].map(|word| toml::Value::from(text(word)));
        format!(
            "[{name}]\ncommand = {}\nenvironment = {{ PYTHONPATH = \"{}\", PYTHONDONTWRITEBYTECODE = \"1\" }}\n",
            toml::Value::from(words.to_vec()),
            package.display()
        )
    };
    let written = std::fs::read_to_string(root.join("examples/python/heart_numpy.toml")).unwrap();
    let plan = written.split("# From here on").next().unwrap().replace("rounds = 20", "rounds = 2");
    let file =
        stage.write_plan("heart.toml", &simulation(&plan, 7, 4, &learner("simulation.learner", &table)));
    let expected = simulated(&file);
    // Each hospital has its own rows alone; the script takes hospitals in the order of their names.
    let text = std::fs::read_to_string(&table).unwrap();
    let (header, rows) = text.split_once('\n').unwrap();
    let column = header.split(',').position(|name| name.trim() == "site").unwrap();
    let hospital = |row: &str| row.split(',').nth(column).unwrap().trim().to_owned();
    let mut hospitals: Vec<String> = rows.lines().map(hospital).collect();
    hospitals.sort();
    hospitals.dedup();
    assert_eq!(hospitals.len(), 4);
    let sites = hospitals.iter().zip(NAMES).map(|(name, site)| {
        let own: Vec<&str> = rows.lines().filter(|row| hospital(row) == *name).collect();
        let file = stage.path(&format!("{site}.csv"));
        std::fs::write(&file, format!("{header}\n{}\n", own.join("\n"))).unwrap();
        stage.tell_site(site, &learner("learner", &file));
        stage.run_site(site, &[])
    });
    let sites: Vec<Process> = sites.collect();
    let found = stage.finish(&plan, Some(7));
    assert_eq!(found["model_sha256"], expected["model_sha256"]);
    drop(sites);
}

/// What a simulation cannot do is said before its first round, with what the learner printed.
#[test]
fn a_simulation_whose_learner_does_not_start_says_what_it_printed() {
    let stage = Stage::new(&[]);
    let learner = learner_table("simulation.learner", &[("BEHAVIOUR", "exits at once")]);
    let file = stage.write_plan("plan.toml", &simulation(&plan(1, 1, ""), 7, 1, &learner));
    let said = consortia(&["simulate", text(&file), "--out", text(&stage.path("results"))]);
    assert_eq!(said.status.code(), Some(1));
    let words = errors(&said);
    assert!(
        words.contains("exit status: 3") && words.contains("this is a line of standard output"),
        "{words}"
    );
}
