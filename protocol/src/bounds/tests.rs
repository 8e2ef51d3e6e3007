//! Plans that ask for too much, and how fast they are refused.

use std::time::Duration;

use super::*;
/// A spec as it comes over the wire.
fn json(model: &str, data: &str, rest: &str) -> String {
    format!(
        r#"{{"model": {model}, "cohort_max": 4, "data": {data},
        "training": {{"batch_size": 8, "optimizer": {{"sgd": {{"learning_rate": 0.1}}}}}} {rest}}}"#
    )
}

const TABLE: &str = r#"{"table": {"label": "y", "target": {"classes": 2}, "features": ["a", "b"]}}"#;

/// The setting at fault; empty when the spec is accepted.
fn fault(json: &str) -> String {
    #[expect(clippy::disallowed_methods, reason = "how long a refusal takes is what is tested")]
    let began = std::time::Instant::now();
    let key = Spec::from_json(json).err().map_or_else(String::new, |error| error.key);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?} for {key}", began.elapsed());
    key
}

fn image(shape: &str) -> String {
    format!(r#"{{"tensor": {{"shape": {shape}, "target": {{"classes": 10}}}}}}"#)
}

fn central(rounds: u64, weights: usize) -> String {
    // The column of the inverse is 1, 1/2, 1/4 and so on, however many zeros follow.
    let weights: Vec<&str> = (0..weights).map(|at| if at == 0 { "524288" } else { "0" }).collect();
    let weights = weights.join(",");
    format!(
        r#", "update": {{"weights": "uniform"}}, "privacy": {{"central": {{"population": "p", "relation": "zero_out",
        "delta": 1e-6, "epsilon_max": 10.0, "noise_multiplier": 4.0, "rounds": {rounds}, "denominator": 4.0,
        "sampling": {{"availability": {{"participations_max": 4294967295}}}}, "noise": {{"banded": {{"weights": [{weights}]}}}},
        "clipping": "fixed", "metrics": "off", "clients_min": 1}}}}"#
    )
}

#[test]
fn rounds_times_bands_are_bounded_before_the_sensitivity_is_computed() {
    assert_eq!(fault(&json("\"linear\"", TABLE, &central(100, 8))), "");
    assert_eq!(fault(&json("\"linear\"", TABLE, &central(262_144, 64))), "");
    for (rounds, bands) in [(262_145, 64), (1_000_000, 17)] {
        let key = fault(&json("\"linear\"", TABLE, &central(rounds, bands)));
        assert_eq!(key, "privacy.central.noise", "{rounds} rounds, {bands} bands");
    }
    for rounds in [1_000_001, 100_000_000, u64::from(u32::MAX)] {
        assert_eq!(fault(&json("\"linear\"", TABLE, &central(rounds, 8))), "rounds", "{rounds}");
    }
    assert_eq!(fault(&json("\"linear\"", TABLE, &central(10, 65))), "privacy.central.noise");
}

#[test]
fn the_parameters_of_the_whole_layout_are_counted_without_building_it() {
    let huge = [
        r#"{"mlp": {"hidden": [4294967295, 4294967295]}}"#,
        r#"{"mlp": {"hidden": [18446744073709551615, 18446744073709551615]}}"#,
        r#"{"mlp": {"hidden": [100000, 100000]}}"#,
        r#"{"layers": [{"dense": {"outputs": 65536}}, {"dense": {"outputs": 65536}}]}"#,
        r#"{"layers": [{"embedding": {"symbols": 4294967295, "width": 4294967295}}, "last"]}"#,
        r#"{"layers": [{"embedding": {"symbols": 2, "width": 20000}}, {"lstm": {"hidden": 40000}}, "last"]}"#,
        r#"{"layers": [{"residual": {"layers": [{"dense": {"outputs": 1000000000}}, {"dense": {"outputs": 2}}]}}]}"#,
    ];
    for model in huge {
        assert_eq!(fault(&json(model, TABLE, "")), "model", "{model}");
        // What stays at the sites counts as well.
        let personal = r#", "personal_layers": ["dense1"]"#;
        assert_eq!(fault(&json(model, TABLE, personal)), "model", "{model}");
    }
    let cnn = r#"{"cnn": {"channels": [100000, 100000], "hidden": 1}}"#;
    assert_eq!(fault(&json(cnn, &image("[1, 28, 28]"), "")), "model");
    assert_eq!(fault(&json(r#"{"cnn": {}}"#, &image("[1, 28, 28]"), "")), "");
}

#[test]
fn values_of_a_sample_are_bounded_before_and_between_layers() {
    for shape in ["[18446744073709551615, 2]", "[1, 100000, 100000]", "[4294967296]"] {
        assert_eq!(fault(&json("\"linear\"", &image(shape), "")), "data", "{shape}");
    }
    assert_eq!(fault(&json("\"linear\"", &image("[1,1,1,1,1,1,1,1,1]"), "")), "data.tensor.shape");
    let wide = r#"{"layers": [{"convolution": {"channels": 100000, "kernel": 1}}]}"#;
    assert_eq!(fault(&json(wide, &image("[1, 1000, 1000]"), "")), "model");
}

#[test]
fn lists_and_texts_are_bounded() {
    let hidden = vec!["1"; 1025].join(",");
    assert_eq!(
        fault(&json(&format!(r#"{{"mlp": {{"hidden": [{hidden}]}}}}"#), TABLE, "")),
        "model.mlp.hidden"
    );
    let channels = vec!["1"; 64].join(",");
    let cnn = format!(r#"{{"cnn": {{"channels": [{channels}]}}}}"#);
    assert_eq!(fault(&json(&cnn, &image("[1, 28, 28]"), "")), "model.cnn.channels");
    let long = "x".repeat(257);
    assert_eq!(
        fault(&json(&format!(r#"{{"custom": {{"name": "{long}"}}}}"#), TABLE, "")),
        "model.custom.name"
    );
    let personal = format!(r#", "personal_layers": ["{long}"]"#);
    assert_eq!(fault(&json("\"linear\"", TABLE, &personal)), "personal_layers");
    let personal = format!(r#", "personal_layers": [{}]"#, vec!["\"dense\""; 1025].join(","));
    assert_eq!(fault(&json("\"linear\"", TABLE, &personal)), "personal_layers");
    assert_eq!(
        fault(&json("\"linear\"", &TABLE.replace("\"a\"", &format!("\"{long}\"")), "")),
        "data.table.features"
    );
    let columns = |count: usize| {
        let names: Vec<String> = (0..count).map(|index| format!("\"c{index}\"")).collect();
        TABLE.replace("\"a\", \"b\"", &names.join(","))
    };
    // Every column is compared with the others, and still in a moment.
    assert_eq!(fault(&json("\"linear\"", &columns(60_000), "")), "");
    assert_eq!(fault(&json("\"linear\"", &columns(65_537), "")), "data.table.features");
    let epochs = json("\"linear\"", TABLE, "")
        .replace("\"batch_size\": 8", "\"batch_size\": 8, \"epochs\": 4000000000");
    assert_eq!(fault(&epochs), "training.epochs");
    let cohort =
        json("\"linear\"", TABLE, "").replace("\"cohort_max\": 4", "\"cohort_max\": 18446744073709551615");
    assert_eq!(fault(&cohort), "cohort");
}

#[test]
fn what_is_counted_is_what_the_defaults_are_known_to_have() {
    let spec = Spec::from_json(&json(r#"{"cnn": {}}"#, &image("[1, 28, 28]"), "")).unwrap();
    assert_eq!(spec.parameters(), Some(1_663_370));
    let custom = Spec::from_json(&json(r#"{"custom": {"name": "mine"}}"#, TABLE, "")).unwrap();
    assert_eq!(custom.parameters(), None);
}
