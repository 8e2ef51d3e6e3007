//! What a plan may say beside its model holds for external models, too.

use crate::same::simulated;
use crate::stage::{Stage, consortia, errors, learner_table, plan, text};

/// A plan with one of its tables changed.
struct Variant {
    name: &'static str,
    /// Before the first table.
    top: &'static str,
    update: &'static str,
    cohort: &'static str,
    tables: &'static str,
}

const PLAIN: Variant = Variant { name: "plain", top: "", update: "", cohort: "", tables: "" };

fn variants() -> Vec<Variant> {
    let strategies = [
        ("fedavg", "strategy = \"fedavg\"\n"),
        ("fedavgm", "strategy = { fedavgm = { learning_rate = 0.5, momentum = 0.5 } }\n"),
        ("fedadagrad", "strategy = \"fedadagrad\"\n"),
        ("fedadam", "strategy = \"fedadam\"\n"),
        ("fedyogi", "strategy = \"fedyogi\"\n"),
    ];
    let updates = [
        ("packed", "codec = \"packed\"\n"),
        ("f16", "codec = \"f16\"\n"),
        ("bf16", "codec = \"bf16\"\n"),
        ("int8", "codec = \"int8\"\n"),
        ("top_k", "codec = { top_k = { fraction = 0.5 } }\n"),
        ("broadcast f16", "broadcast = \"f16\"\n"),
        ("broadcast bf16", "broadcast = \"bf16\"\n"),
        ("uniform", "weights = \"uniform\"\n"),
    ];
    let cohorts = [("over-selection", "count = 3\noversample = 1.5\n"), ("a fraction", "fraction = 0.5\n")];
    let tables = [
        ("coordinate_median", "[aggregation]\nrule = \"coordinate_median\"\ncorrupted = 1\n"),
        ("trimmed_mean", "[aggregation]\nrule = \"trimmed_mean\"\ncorrupted = 1\n"),
        ("krum", "[aggregation]\nrule = \"krum\"\ncorrupted = 1\n"),
        ("multi_krum", "[aggregation]\nrule = \"multi_krum\"\ncorrupted = 1\n"),
        ("geometric_median", "[aggregation]\nrule = \"geometric_median\"\ncorrupted = 1\n"),
        ("centred_clipping", "[aggregation]\nrule = \"centred_clipping\"\ncorrupted = 1\n"),
        (
            "mixing",
            "[aggregation]\nrule = \"krum\"\ncorrupted = 1\nbefore = [\"nearest_neighbour_mixing\"]\n",
        ),
        (
            "central",
            "[privacy.central]\npopulation = \"wards\"\ndelta = 1e-5\nepsilon_max = 9\nnoise_multiplier = 20\ndenominator = 5\n\
             sampling = { availability = { participations_max = 3 } }\n",
        ),
        ("local", "[privacy.local]\nnoise_multiplier = 20.0\ndelta = 1e-5\nepsilon_max = 50.0\n"),
        ("availability", "[simulation.availability]\ndropout = 0.2\n"),
    ];
    let strategies = strategies.map(|(name, top)| Variant { name, top, ..PLAIN });
    let updates = updates.map(|(name, update)| Variant { name, update, ..PLAIN });
    let cohorts = cohorts.map(|(name, cohort)| Variant { name, cohort, ..PLAIN });
    let tables = tables.map(|(name, tables)| Variant { name, tables, ..PLAIN });
    strategies.into_iter().chain(updates).chain(cohorts).chain(tables).collect()
}

/// The plan of five clients that a variant makes.
fn written(variant: &Variant) -> String {
    let Variant { top, update, cohort, tables, .. } = variant;
    let learner = learner_table("simulation.learner", &[("BEHAVIOUR", "learns")]);
    let plan = plan(3, 5, "")
        .replace("[learner.config]", &format!("{top}[learner.config]"))
        .replace("norm_max = 20.0\n", &format!("norm_max = 20.0\n{update}"))
        .replace("deadline_seconds", &format!("{cohort}deadline_seconds"));
    format!("{plan}{tables}\n[simulation]\nseed = 7\nclients = 5\n{learner}")
}

#[test]
fn every_strategy_rule_codec_and_promise_works_with_an_external_model() {
    let stage = Stage::new(&[]);
    let mut models = std::collections::BTreeMap::new();
    for variant in variants() {
        let name = variant.name;
        let file = stage.write_plan(&format!("{}.toml", name.replace(' ', "-")), &written(&variant));
        let end = simulated(&file);
        assert!(end["state"] == "finished" && end["rounds"] == 3, "{name}: {end}");
        assert_eq!(end["declined"], serde_json::json!([]), "{name}: {end}");
        models.insert(name, end["model_sha256"].as_str().unwrap().to_owned());
    }
    // What differs in what it computes differs in its model: nothing is passed over.
    let of = |name: &str| &models[name];
    assert_eq!(of("fedavg"), of("packed"));
    for name in [
        "fedavgm",
        "fedadam",
        "fedyogi",
        "fedadagrad",
        "int8",
        "top_k",
        "krum",
        "coordinate_median",
        "local",
        "central",
    ] {
        assert_ne!(of("fedavg"), of(name), "{name}");
    }
}

#[test]
fn an_attack_is_on_updates_where_nobody_else_has_the_records() {
    let stage = Stage::new(&[]);
    let simulate = |attack: &str| {
        let tables = format!("[simulation.adversaries]\ncount = 1\nattack = \"{attack}\"\n");
        let file = stage.write_plan("plan.toml", &(written(&PLAIN) + &tables));
        consortia(&["simulate", text(&file), "--out", text(&stage.path("results"))])
    };
    assert!(simulate("sign_flip").status.success());
    for attack in ["label_flip", "random_labels"] {
        let said = errors(&simulate(attack));
        assert!(
            said.contains("which an external learner reads by itself") && said.contains(attack),
            "{said}"
        );
    }
}

#[test]
fn a_promise_for_single_records_is_refused_with_the_reason() {
    let stage = Stage::new(&["north"]);
    let examples =
        "[privacy.examples]\nnoise_multiplier = 1.0\nnorm_max = 1.0\ndelta = 1e-5\nepsilon_max = 9.0\n";
    let variant = Variant { update: "weights = \"uniform\"\n", tables: examples, ..PLAIN };
    let file = stage.write_plan("plan.toml", &written(&variant));
    let said = consortia(&["simulate", text(&file), "--out", text(&stage.path("results"))]);
    let words = errors(&said) + &String::from_utf8_lossy(&said.stdout);
    assert!(words.contains("privacy.examples") && words.contains("external"), "{:?} {words}", said.status);
}
