//! The unit of a column, and where its zero is, change no result: concentrations in mol/l or pmol/l, incomes in cents, times in Unix
//! seconds. What may differ is what writing the moved column in f64 has rounded away, and nothing else.
#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::fmt::Write as _;
use std::path::Path;

use consortia::first_model;
use learning::device::Device;
use protocol::Seed;
use server::Note;
use simulations::{Population, Scenario, Simulator};

const SEED: u64 = 7;
/// The columns that are measured in a unit.
const COLUMNS: [&str; 5] = ["age", "trestbps", "chol", "thalach", "oldpeak"];
/// About the deviation of each.
const SPREADS: [f64; 5] = [9.0, 18.0, 110.0, 26.0, 1.1];

const PLAN: &str = r#"
name = "units"
rounds = 5
model = "logistic"

[data.table]
label = "label"
target = { classes = 2 }
features = ["age", "sex", "trestbps", "chol", "thalach", "oldpeak", "cp_4"]
standardise = "STANDARDISE"
missing = "mean"

[training]
batch_size = 16
optimizer = { sgd = { learning_rate = 0.05 } }

[simulation]
seed = 7
partition = { natural = { column = "site" } }
dataset = { files = { csv = { train = "moved.csv", split_column = "split" } } }
"#;

/// What is done to a column: `x -> (x + offset * spread) * scale`.
#[derive(Clone, Copy, Debug)]
struct Move {
    scale: f64,
    offset: f64,
}

/// The bundled records with column `n` moved by `moves[n]`, in the digits that f64 needs.
fn moved(moves: &[Move; 5]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/heart_disease.csv");
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    let mut written = header.join(",") + "\n";
    for line in lines {
        for (place, cell) in line.split(',').enumerate() {
            let comma = if place == 0 { "" } else { "," };
            let column = COLUMNS.iter().position(|column| *column == header[place]);
            match (column, cell.parse::<f64>()) {
                (Some(column), Ok(value)) => {
                    let Move { scale, offset } = moves[column];
                    write!(written, "{comma}{:e}", (value + offset * SPREADS[column]) * scale).unwrap();
                }
                _ => write!(written, "{comma}{cell}").unwrap(),
            }
        }
        written.push('\n');
    }
    written
}

/// The model, and the accuracy of its last round.
fn trained(moves: &[Move; 5], standardise: &str) -> (Vec<f32>, f64) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("moved.csv"), moved(moves)).unwrap();
    let plan = PLAN.replace("STANDARDISE", standardise);
    let scenario = Scenario::parse(&plan, folder.path(), &|_| None).unwrap();
    let spec = &scenario.plan.spec;
    let population = Population::build(&scenario.simulation, spec, Device::Cpu).unwrap();
    let first = first_model(population.models(), spec, Seed::from_number(SEED)).unwrap();
    let simulator =
        Simulator::new(scenario.plan, first.shared, SEED, scenario.simulation.availability).unwrap();
    let mut accuracy = None;
    let outcome = simulator.run(&population, &mut |seen| {
        if let Note::Round(round) = seen.note {
            accuracy = round.sites.and_then(|sites| sites.accuracy).or(accuracy);
        }
    });
    (outcome.unwrap().model.values().to_vec(), accuracy.unwrap())
}

fn compare(moves: &[Move; 5], standardise: &str, plain: &(Vec<f32>, f64)) {
    let (model, accuracy) = trained(moves, standardise);
    // A cell has lost 2^-53 of what it is, in deviations at most so much of its offset; training passes it on.
    let lost = moves.iter().fold(0f64, |lost, one| lost.max(one.offset.abs())) * f64::EPSILON;
    let allowed = 1e-6 + 10.0 * lost;
    let pairs = model.iter().zip(&plain.0);
    let distance = pairs.fold(0f64, |most, (a, b)| most.max(f64::from((a - b).abs())));
    assert!(distance <= allowed, "{moves:?}: the model is {distance:e} away, {allowed:e} are allowed");
    assert_eq!(accuracy, plain.1, "{moves:?}");
}

#[test]
fn no_scale_and_no_offset_of_a_column_changes_the_model() {
    let whole = std::env::var_os("CONSORTIA_THOROUGH").is_some();
    let still = [Move { scale: 1.0, offset: 0.0 }; 5];
    let plain = trained(&still, "federated");
    let scales: &[i32] = if whole { &[-15, -12, -9, -6, -3, 0, 3, 6, 9, 12, 15] } else { &[-15, 0, 15] };
    let offsets: &[f64] = if whole { &[-1e8, -1e4, 0.0, 1.0, 1e2, 1e4, 1e6, 1e8] } else { &[-1e4, 0.0, 1e8] };
    for scale in scales {
        for offset in offsets {
            compare(&[Move { scale: 10f64.powi(*scale), offset: *offset }; 5], "federated", &plain);
        }
    }
    // Every column in a unit of its own, up to the ends of f64.
    let mixed = [(1e-15, 0.0), (1e15, 1e8), (1e-300, -1e3), (1e290, 1e3), (3.7, -1e8)];
    compare(&mixed.map(|(scale, offset)| Move { scale, offset }), "federated", &plain);
}

#[test]
fn a_site_that_standardises_by_its_own_numbers_does_not_see_units_either() {
    let plain = trained(&[Move { scale: 1.0, offset: 0.0 }; 5], "site");
    for (scale, offset) in [(1e-15, 1e8), (1e15, -1e8), (1e-200, 0.0)] {
        compare(&[Move { scale, offset }; 5], "site", &plain);
    }
}

#[test]
fn a_column_that_f64_has_flattened_counts_as_constant() {
    let mut moves = [Move { scale: 1.0, offset: 0.0 }; 5];
    moves[2].offset = 1e30;
    let (model, accuracy) = trained(&moves, "federated");
    assert!(model.iter().all(|value| value.is_finite()) && accuracy > 0.7);
    let again = trained(&moves, "federated");
    assert_eq!(model, again.0);
}
