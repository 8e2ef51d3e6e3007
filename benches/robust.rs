//! Measures which rules stand which attacks: the table of docs/robust.md.
//!
//! Digits of MNIST (the first 6000 for training, 2000 to test), 10 and 20 clients, alike or by Dirichlet's law with 0.5. One line of JSON a
//! cell goes into the file named, and a cell that is there is not measured again, so that it may be stopped and gone on with. `--table`
//! prints what is there.
//!
//! ```text
//! $ cargo bench --profile release --bench robust -- $CONSORTIA_DATA/mnist cells.jsonl
//! $ cargo bench --profile release --bench robust -- --table cells.jsonl
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Error, Result};
use consortia::first_model;
use consortia::learning::device::Device;
use consortia::learning::{Dataset, IdxSource, Partition, SiteData, SourceSpec, View, load, partition};
use consortia::methods::Registry;
use consortia::protocol::{ClientId, Purpose, Round, Seed};
use consortia::server::{RunEnd, RunProgress};
use consortia::simulations::{AdversariesConfig, AvailabilityConfig, Population, Simulator};
use serde_json::{Value, json};

const SEED: u64 = 1;
const CLIENTS: [usize; 2] = [10, 20];
const SHARES: [f64; 4] = [0.2, 0.1, 0.3, 0.4];
const DIVISIONS: [(&str, &str); 2] = [("iid", "\"iid\""), ("dirichlet", "{ dirichlet = { alpha = 0.5 } }")];
const RULES: [(&str, &str); 10] = [
    ("mean", ""),
    ("median", "rule = \"coordinate_median\""),
    ("trimmed mean", "rule = \"trimmed_mean\""),
    ("Krum", "rule = \"krum\""),
    ("Multi-Krum", "rule = \"multi_krum\""),
    ("geometric median", "rule = \"geometric_median\""),
    ("centred clipping", "rule = \"centred_clipping\""),
    ("mixing, median", "rule = \"coordinate_median\"\nbefore = [\"nearest_neighbour_mixing\"]"),
    ("mixing, geom. median", "rule = \"geometric_median\"\nbefore = [\"nearest_neighbour_mixing\"]"),
    ("buckets, geom. median", "rule = \"geometric_median\"\nbefore = [\"bucketing\"]"),
];
const ATTACKS: [(&str, &str); 14] = [
    ("ALIE", "\"alie\""),
    ("min-max", "\"min_max\""),
    ("sign flip", "\"sign_flip\""),
    ("inner product 10", "{ inner_product = { epsilon = 10 } }"),
    ("min-sum", "\"min_sum\""),
    ("label flip", "\"label_flip\""),
    ("backdoor", "\"backdoor\""),
    ("mimic", "\"mimic\""),
    ("Gaussian", "\"gaussian\""),
    ("inner product .5", "{ inner_product = { epsilon = 0.5 } }"),
    ("random labels", "\"random_labels\""),
    ("zero", "\"zero\""),
    ("norm 1e30", "\"norm\""),
    ("inner product .1", "{ inner_product = { epsilon = 0.1 } }"),
];

fn plan(clients: usize, corrupted: usize, rule: &str) -> String {
    let rule = if rule.is_empty() {
        String::new()
    } else {
        format!("[aggregation]\ncorrupted = {corrupted}\n{rule}\n")
    };
    format!(
        "name = \"robust\"\nrounds = 25\nmodel = {{ mlp = {{ hidden = [32] }} }}\nupdate = {{ weights = \"uniform\" }}\n\
         data = {{ tensor = {{ shape = [1, 28, 28], target = {{ classes = 10 }}, divide_by = 255 }} }}\n\
         training = {{ batch_size = 32, optimizer = {{ sgd = {{ learning_rate = 0.1 }} }} }}\n\
         evaluation = {{ every = 0, sites = \"none\" }}\ncohort = {{ clients_min = {clients}, quorum = 1 }}\n{rule}"
    )
}

/// One cell: accuracy and attack success of the last model, or why there is none.
fn measure(
    digits: &(Arc<Dataset>, Arc<Dataset>),
    clients: usize,
    division: &str,
    rule: &str,
    attack: &str,
    corrupted: usize,
) -> Result<Value> {
    let plan = match Registry::standard().server().parse(&plan(clients, corrupted, rule)) {
        Ok(plan) => plan,
        Err(error) => return Ok(json!({ "refused": error.to_string().lines().next() })),
    };
    let typed: BTreeMap<String, Partition> = toml::from_str(&format!("p = {division}"))?;
    let seed = Seed::from_number(SEED).derive(Purpose::Partition, Round(0), None);
    let parts = partition(&digits.0.labels, &typed["p"], clients, seed)?;
    let site = |(number, rows): (usize, Vec<u32>)| {
        let train = View { dataset: Arc::clone(&digits.0), rows: rows.into() };
        Ok((ClientId::new(&format!("c{number:02}"))?, SiteData { train, test: None }))
    };
    let sites = parts.into_iter().enumerate().map(site).collect::<Result<_>>()?;
    let empty = View { dataset: Arc::clone(&digits.0), rows: Arc::new([]) };
    let central = SiteData { train: empty, test: Some(View::whole(Arc::clone(&digits.1))) };
    let table: AdversariesConfig = toml::from_str(&format!("count = {corrupted}\nattack = {attack}"))?;
    let population =
        Population::of(sites, Some(central), Device::Cpu).poisoned(Some(&table), SEED, &plan.spec)?;
    let first = first_model(population.models(), &plan.spec, Seed::from_number(SEED)).map_err(Error::msg)?;
    let spec = Arc::clone(&plan.spec);
    let simulator = Simulator::new(plan, first.shared, SEED, AvailabilityConfig::default())?.with_threads(1);
    let outcome = simulator.with_adversaries(Some(table.clone())).run(&population, &mut |_| {})?;
    if outcome.end != RunEnd::Finished {
        return Ok(json!({ "refused": outcome.end.message(RunProgress::default()) }));
    }
    let last = outcome.rounds.iter().rev().find_map(|round| round.central).and_then(|all| all.accuracy);
    let rates = population.backdoor_rates(&table.attack, &outcome.model, None, &spec);
    let (success, without) = rates.map(|rates| (rates.with_pattern, rates.without_pattern)).unzip();
    Ok(json!({ "accuracy": last, "success": success, "success_without_pattern": without }))
}

fn key(cell: &Value) -> String {
    ["clients", "division", "rule", "attack", "corrupted"].map(|part| cell[part].to_string()).join(" ")
}

fn read(file: &Path) -> BTreeMap<String, Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let cells = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    cells.map(|cell| (key(&cell), cell)).collect()
}

fn fill(folder: &Path, file: &Path) -> Result<()> {
    let path = |name: &str| folder.join(name);
    let source = SourceSpec::Idx(IdxSource {
        train_images: path("train-images-idx3-ubyte.gz"),
        train_labels: path("train-labels-idx1-ubyte.gz"),
        test_images: Some(path("t10k-images-idx3-ubyte.gz")),
        test_labels: Some(path("t10k-labels-idx1-ubyte.gz")),
    });
    let spec = Registry::standard().server().parse(&plan(10, 0, ""))?.spec;
    let found = load(&source, &spec.data).map_err(|error| Error::msg(error.to_string()))?;
    let first = |view: &View, rows: u32| Arc::new(view.dataset.select(&(0..rows).collect::<Vec<_>>()));
    let digits = (first(&found.train, 6000), first(found.test.as_ref().context("test files")?, 2000));
    drop(found);
    let mut done = read(file);
    let mut out = std::fs::OpenOptions::new().create(true).append(true).open(file)?;
    // Clean runs first, then each attack by the share that is asked for most.
    let clean = [("none", "\"zero\"", 0.0)];
    let attacked = SHARES.iter().flat_map(|share| ATTACKS.map(|(name, attack)| (name, attack, *share)));
    for (name, attack, share) in clean.into_iter().chain(attacked) {
        for clients in CLIENTS {
            for (division, typed) in DIVISIONS {
                for (rule, settings) in RULES {
                    let corrupted = (share * clients as f64).round() as usize;
                    let mut cell = json!({ "clients": clients, "division": division, "rule": rule, "attack": name,
                        "corrupted": corrupted });
                    if done.contains_key(&key(&cell)) {
                        continue;
                    }
                    cell["found"] = measure(&digits, clients, typed, settings, attack, corrupted)?;
                    writeln!(out, "{cell}")?;
                    done.insert(key(&cell), cell);
                }
            }
        }
    }
    Ok(())
}

/// What was found of one rule and attack: the shares `.1 .2 .3 .4` in their order.
struct Row<'a>(Vec<Option<&'a Value>>);

impl Row<'_> {
    /// One number of each share in percent; `-` where the rule needs more clients, `?` where nothing was measured.
    fn percent(&self, what: &str) -> String {
        let shown = |cell: &Option<&Value>| match cell.map(|cell| cell["found"][what].as_f64()) {
            Some(Some(share)) => format!("{:.0}", 100.0 * share),
            Some(None) => "-".into(),
            None => "?".into(),
        };
        self.0.iter().map(shown).collect::<Vec<_>>().join(" / ")
    }

    /// The largest share that costs at most five points of the clean mean, and opens a backdoor for at most a tenth, with all below it.
    fn survived(&self, clean: f64) -> String {
        let stands = |cell: &&Option<&Value>| {
            let found = cell.map_or(&Value::Null, |cell| &cell["found"]);
            let opens = found["success"].as_f64().is_some_and(|success| success > 0.1);
            found["accuracy"].as_f64().is_some_and(|accuracy| accuracy >= clean - 0.05) && !opens
        };
        let count = self.0.iter().take_while(stands).count();
        let is_known = self.0.iter().take(count + 1).all(Option::is_some);
        if is_known { ["0", ".1", ".2", ".3", ".4"][count].into() } else { "?".into() }
    }
}

fn table(file: &Path) -> String {
    let (cells, mut text) = (read(file), String::new());
    for (clients, (division, _)) in CLIENTS.iter().flat_map(|clients| DIVISIONS.map(|one| (clients, one))) {
        let cell = |rule: &str, attack: &str, share: f64| {
            let corrupted = (share * *clients as f64).round() as usize;
            let part = json!({ "clients": clients, "division": division, "rule": rule, "attack": attack,
                "corrupted": corrupted });
            cells.get(&key(&part))
        };
        let row = |rule: &str, attack: &str| {
            Row([0.1, 0.2, 0.3, 0.4].map(|share| cell(rule, attack, share)).into())
        };
        let line = |name: &str, of: &dyn Fn(&str) -> String| {
            format!("| {name} | {} |\n", RULES.map(|(rule, _)| of(rule)).join(" | "))
        };
        let clean =
            cell("mean", "none", 0.0).and_then(|cell| cell["found"]["accuracy"].as_f64()).unwrap_or(1.0);
        let head = format!("{}|{}\n", line("attack", &str::to_owned), "---|".repeat(RULES.len() + 1));
        let _ = write!(
            text,
            "\n### {clients} clients, {division}\n\nAccuracy in percent at .1 / .2 / .3 / .4:\n\n{head}"
        );
        text += &line("none", &|rule| Row(vec![cell(rule, "none", 0.0)]).percent("accuracy"));
        for (attack, _) in ATTACKS {
            text += &line(attack, &|rule| row(rule, attack).percent("accuracy"));
        }
        text += &line("backdoor: opens", &|rule| row(rule, "backdoor").percent("success"));
        let _ = write!(text, "\nThe largest share that was survived:\n\n{head}");
        for (attack, _) in ATTACKS {
            text += &line(attack, &|rule| row(rule, attack).survived(clean));
        }
    }
    text
}

fn main() -> Result<()> {
    // Cargo says to every bench that it is one.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match &args[..] {
        [word, cells] if word == "--table" => print!("{}", table(Path::new(cells))),
        [folder, cells] => fill(Path::new(folder), Path::new(cells))?,
        _ => println!(
            "give the folder of MNIST and a file for cells, or --table and the file: nothing is measured"
        ),
    }
    Ok(())
}
