//! Layer lists drawn at random, those that make sense and those that do not: whatever the plan's check accepts, both ways to a
//! gradient run and agree and ONNX can say; what it refuses, all refuse.

use rand::Rng;

use super::*;
use crate::onnx::{Export, Inputs, export};

/// A list of up to so many layers, and what it is in JSON.
fn list(most: usize, depth: usize, generator: &mut ChaCha20Rng) -> String {
    let count = generator.random_range(0..=most);
    let layers: Vec<String> = (0..count).map(|_| layer(depth, generator)).collect();
    format!("[{}]", layers.join(", "))
}

fn layer(depth: usize, generator: &mut ChaCha20Rng) -> String {
    let small = generator.random_range(1..6);
    let side = generator.random_range(1..4);
    match generator.random_range(0..if depth == 0 { 14 } else { 18 }) {
        0 => format!(r#"{{"dense": {{"outputs": {}}}}}"#, generator.random_range(1..10)),
        1 | 2 => {
            let (stride, padding) = (generator.random_range(1..3), generator.random_range(0..side));
            format!(
                r#"{{"convolution": {{"channels": {small}, "kernel": {side}, "stride": {stride}, "padding": {padding}}}}}"#
            )
        }
        3 => format!(r#"{{"max_pool": {{"size": {side}, "stride": {}}}}}"#, generator.random_range(1..4)),
        4 => r#""average_pool""#.into(),
        5 => r#""relu""#.into(),
        6 => [r#""gelu""#, r#""tanh""#, r#""sigmoid""#][generator.random_range(0..3)].into(),
        7 => r#"{"dropout": 0.3}"#.into(),
        8 => format!(r#"{{"group_norm": {{"groups": {side}}}}}"#),
        9 => r#""layer_norm""#.into(),
        10 => format!(r#"{{"embedding": {{"symbols": {small}, "width": {side}}}}}"#),
        11 => format!(r#"{{"lstm": {{"hidden": {small}}}}}"#),
        12 => format!(r#"{{"gru": {{"hidden": {small}}}}}"#),
        13 => r#""last""#.into(),
        _ => {
            let layers = list(3, depth - 1, generator);
            let shortcut = match generator.random_range(0..4) {
                0 => layers.clone(),
                1 => list(2, depth - 1, generator),
                _ => "[]".into(),
            };
            format!(r#"{{"residual": {{"layers": {layers}, "shortcut": {shortcut}}}}}"#)
        }
    }
}

fn shape(generator: &mut ChaCha20Rng) -> Vec<usize> {
    let sides = generator.random_range(1..6);
    let most = [0, 12, 7, 9, 3, 3][sides];
    let mut shape: Vec<usize> = (0..sides).map(|_| generator.random_range(1..=most)).collect();
    if sides == 3 {
        shape[0] = generator.random_range(1..5);
    }
    shape
}

/// A list that grows by layers that fit, and now and then ends with one that does not.
fn grown(shape: &[usize], generator: &mut ChaCha20Rng) -> String {
    let fits = |layers: &[String]| {
        let spec = spec_of(&format!("[{}]", layers.join(", ")), shape, 1);
        spec.is_ok_and(|spec| steps(&spec).is_ok())
    };
    let mut layers: Vec<String> = Vec::new();
    for _ in 0..generator.random_range(0..14) {
        layers.push(layer(3, generator));
        if !fits(&layers) {
            if generator.random_bool(0.02) {
                break;
            }
            layers.pop();
        }
    }
    format!("[{}]", layers.join(", "))
}

/// What became of a list.
#[derive(PartialEq)]
enum Became {
    Run,
    Refused,
}

fn try_list(layers: &str, shape: &[usize], generator: &mut ChaCha20Rng) -> Became {
    let batch = generator.random_range(1..6);
    let Ok(spec) = spec_of(layers, shape, batch) else { return Became::Refused };
    let accepted = crate::model::layout_of(&spec);
    let exported = |parameters: &[f32]| {
        let inputs = Inputs::Prepared;
        export(Export { name: "any", spec: &spec, parameters, inputs }).map(|file| file.len())
    };
    let Ok(layout) = accepted else {
        assert!(Models::new().build(&spec, &Device::Cpu).is_err(), "{layers} of {shape:?}");
        assert!(crate::gradient_path(&spec, &Device::Cpu).is_err(), "{layers} of {shape:?}");
        assert!(exported(&[]).is_err(), "{layers} of {shape:?}");
        return Became::Refused;
    };
    assert_eq!(spec.parameters(), Some(layout.len() as u64), "{layers} of {shape:?}");
    let case = Case { tolerance: 1e-3, floor: 1.0, ..Case::new(layers, shape, batch, generator) };
    case.check();
    exported(&case.parameters).unwrap_or_else(|error| panic!("{layers} of {shape:?}: {error}"));
    Became::Run
}

#[test]
fn whatever_the_check_accepts_runs_on_both_ways_alike_and_exports() {
    let count = if std::env::var_os("CONSORTIA_THOROUGH").is_some() { 20_000 } else { 200 };
    let (mut run, mut refused) = (0, 0);
    for number in 0..count {
        let generator = &mut Seed::from_number(1_000_000 + number).generator();
        let shape = shape(generator);
        let layers = match generator.random_range(0..4) {
            0 => list(3, 2, generator),
            _ => grown(&shape, generator),
        };
        match try_list(&layers, &shape, generator) {
            Became::Run => run += 1,
            Became::Refused => refused += 1,
        }
    }
    assert!(run > count / 2 && refused > count / 50, "{run} of {count} ran, {refused} were refused");
}

#[test]
fn a_residual_connection_without_layers_passes_its_input_on() {
    let generator = &mut Seed::from_number(5).generator();
    let empty = r#"{"residual": {"layers": []}}"#;
    let beside = r#"{"residual": {"layers": [], "shortcut": [{"dense": {"outputs": 6}}, "tanh"]}}"#;
    let inside = r#"{"residual": {"layers": [{"residual": {"layers": []}}, "gelu"]}}"#;
    let image =
        r#"{"residual": {"layers": [], "shortcut": [{"convolution": {"channels": 3, "kernel": 3}}]}}"#;
    for (layers, shape) in [
        (format!("[{empty}]"), vec![6]),
        (format!("[{beside}, {empty}, {{\"dense\": {{\"outputs\": 4}}}}, {inside}]"), vec![6]),
        (format!("[{image}, {empty}, \"relu\", {{\"max_pool\": {{\"size\": 2}}}}, {empty}]"), vec![3, 5, 4]),
        (format!("[{empty}, {{\"gru\": {{\"hidden\": 3}}}}, {empty}]"), vec![4, 2]),
    ] {
        for _ in 0..3 {
            assert!(try_list(&layers, &shape, generator) == Became::Run, "{layers}");
        }
    }
}

#[test]
fn records_of_four_sides_are_rows_to_every_layer() {
    let generator = &mut Seed::from_number(6).generator();
    let layers = r#"["layer_norm", {"residual": {"layers": ["tanh"]}}, {"dense": {"outputs": 5}}]"#;
    assert!(try_list(layers, &[2, 3, 2, 2], generator) == Became::Run);
    let symbols = r#"[{"embedding": {"symbols": 4, "width": 3}}, "last"]"#;
    assert!(try_list(symbols, &[2, 1, 2, 2], generator) == Became::Run);
}

#[test]
fn symbols_come_from_records_alone() {
    let generator = &mut Seed::from_number(7).generator();
    let embedding = r#"{"embedding": {"symbols": 4, "width": 3}}"#;
    for before in [
        r#"{"dense": {"outputs": 3}}"#,
        r#""relu""#,
        r#"{"dropout": 0.5}"#,
        r#"{"residual": {"layers": []}}"#,
    ] {
        assert!(
            try_list(&format!("[{before}, {embedding}]"), &[5], generator) == Became::Refused,
            "{before}"
        );
    }
    let two = format!(r#"[{{"residual": {{"layers": [{embedding}], "shortcut": [{embedding}]}}}}, "last"]"#);
    assert!(try_list(&two, &[5], generator) == Became::Run);
}
