//! Specs as JSON, and the setting that every contradiction names.

use super::*;

fn spec() -> Spec {
    let table = TableSpec {
        label: "label".into(),
        target: Target::Classes(2).into(),
        features: vec!["age".into(), "chol".into()],
        categorical: vec![Categorical { column: "cp".into(), values: vec!["1".into(), "2".into()] }],
        standardise: Standardise::Federated,
        missing: Missing::Mean,
    };
    let optimizer =
        OptimizerSpec::Sgd { learning_rate: Positive::new(0.1).unwrap(), momentum: 0.0, weight_decay: 0.0 };
    Spec {
        model: ModelSpec::Logistic,
        data: DataSpec::Table(table),
        training: TrainingSpec {
            epochs: 1,
            batch_size: 8,
            loss: Loss::Auto,
            optimizer,
            gradient_norm_max: None,
            accumulate: 1,
            gradient: GradientPath::Auto,
        },
        update: UpdateSpec::default(),
        personal_layers: vec![],
        proximal_mu: 0.0,
        cohort_max: 4,
        evaluation_records: Default::default(),
        privacy: PrivacySpec::default(),
        learner: LearnerSpec::default(),
    }
}

fn key_at_fault(change: impl FnOnce(&mut Spec)) -> String {
    let mut spec = spec();
    change(&mut spec);
    spec.checked().unwrap_err().key
}

#[test]
fn a_spec_travels_as_json_and_comes_back_the_same() {
    let spec = spec().checked().unwrap();
    assert_eq!(Spec::from_json(&spec.to_json()), Ok(spec));
}

#[test]
fn json_from_outside_passes_the_same_checks() {
    let wrong = spec().to_json().replace("\"epochs\":1", "\"epochs\":0");
    assert_eq!(Spec::from_json(&wrong).unwrap_err().key, "training.epochs");
    assert!(Spec::from_json("{}").is_err());
}

#[test]
fn the_statistics_are_three_a_numeric_column_and_none_without_federated_standardisation() {
    assert_eq!(
        spec().statistics(),
        ["count/age", "sum/age", "square/age", "count/chol", "sum/chol", "square/chol"]
    );
    let mut plain = spec();
    let DataSpec::Table(table) = &mut plain.data else { unreachable!() };
    table.standardise = Standardise::Site;
    assert!(plain.statistics().is_empty());
    assert_eq!((plain.input_shape(), plain.outputs()), (vec![4], 2));
}

#[test]
fn every_contradiction_names_its_setting() {
    assert_eq!(key_at_fault(|spec| spec.training.epochs = 0), "training.epochs");
    assert_eq!(key_at_fault(|spec| spec.training.accumulate = 0), "training.accumulate");
    assert_eq!(key_at_fault(|spec| spec.training.loss = Loss::MeanSquared), "training.loss");
    assert_eq!(key_at_fault(|spec| spec.proximal_mu = f64::NAN), "strategy.mu");
    assert_eq!(key_at_fault(|spec| spec.model = ModelSpec::Mlp { hidden: vec![] }), "model.mlp.hidden");
    let cnn = ModelSpec::Cnn { channels: vec![4], kernel: 5, hidden: 8 };
    assert_eq!(key_at_fault(|spec| spec.model = cnn), "model");
    let table = |change: fn(&mut TableSpec)| {
        key_at_fault(|spec| {
            let DataSpec::Table(table) = &mut spec.data else { unreachable!() };
            change(table);
        })
    };
    assert_eq!(table(|table| table.features.push("age".into())), "data.table.features");
    assert_eq!(table(|table| table.label = "age".into()), "data.table.label");
    assert_eq!(table(|table| table.target = Target::Classes(1).into()), "data");
    assert_eq!(table(|table| table.categorical[0].values.clear()), "data.table.categorical");
    let given = |table: &mut TableSpec| table.standardise = Standardise::Given { mean: vec![], std: vec![] };
    assert_eq!(table(given), "data.table.standardise");
    let not_finite = |table: &mut TableSpec| {
        let std = vec![Positive::new(1.0).unwrap(); 2];
        table.standardise = Standardise::Given { mean: vec![0.0, f64::NAN], std };
    };
    assert_eq!(table(not_finite), "data.table.standardise");
    let endless = |table: &mut TableSpec| table.missing = Missing::Constant(f64::INFINITY);
    assert_eq!(table(endless), "data.table.missing");
}

#[test]
fn a_plan_without_a_lattice_is_refused() {
    let mut wide = spec();
    wide.update.weight_max = 0;
    assert_eq!(wide.lattice(10).unwrap_err().key, "update.weight_max");
    wide.update.weights = Weighting::Uniform;
    assert_eq!(wide.lattice(10).unwrap().weight_max(), 1);
}

fn external() -> Spec {
    let model = ExternalModel { start: "start.safetensors".into(), tensors: Vec::new() };
    Spec { model: ModelSpec::External(model), data: DataSpec::Own, ..spec() }
}

#[test]
fn an_external_model_gets_its_tensors_from_a_file() {
    let tensors = || [("w".to_owned(), vec![2, 3]), ("b".to_owned(), vec![])];
    let known = external().checked().unwrap().with_tensors(tensors()).unwrap();
    assert_eq!(known.parameters(), Some(7));
    assert_eq!(Spec::from_json(&known.to_json()).unwrap(), known);
    assert!(!known.is_squared(), "what its loss is, only its program knows");
    let fault = |tensors: Vec<(String, Vec<usize>)>| external().with_tensors(tensors).unwrap_err();
    assert!(fault(Vec::new()).message.contains("start.safetensors has no tensors"));
    assert!(
        fault(tensors().into_iter().chain(tensors()).collect()).message.contains("two tensors are named `w`")
    );
    assert!(fault(vec![("w".into(), vec![1 << 20, 1 << 20])]).message.contains("parameters"));
    assert!(fault(vec![("w".into(), vec![0])]).message.contains("[0]"));
    assert_eq!(spec().with_tensors(tensors()).unwrap_err().key, "model");
}

#[test]
fn records_and_model_are_both_external_or_neither_is() {
    let key = |change: fn(&mut Spec)| {
        let mut spec = external();
        change(&mut spec);
        spec.checked().unwrap_err().key
    };
    assert_eq!(key(|one| one.data = spec().data), "data");
    assert_eq!(key(|one| one.model = ModelSpec::Linear), "data");
    assert_eq!(key(|one| one.personal_layers = vec!["w".into()]), "personal_layers");
    assert_eq!(key(|one| one.learner.metrics = vec!["Auc".into()]), "learner.metrics");
    assert_eq!(key(|one| one.learner.metrics = vec!["loss".into()]), "learner.metrics");
    let large = serde_json::Value::from("x".repeat(CONFIG_MAX));
    let mut spec_with = external();
    spec_with.learner.config.insert("text".into(), large);
    assert_eq!(spec_with.checked().unwrap_err().key, "learner.config");
    for (value, key) in [
        (serde_json::json!(null), "learner.config.text"),
        (serde_json::json!([1, { "deep": null }]), "learner.config.text.1.deep"),
        (serde_json::json!({ "$__toml_private_datetime": "1979-05-27" }), "learner.config.text"),
    ] {
        let mut strange = external();
        strange.learner.config.insert("text".into(), value);
        assert_eq!(strange.checked().unwrap_err().key, key);
    }
    assert_eq!(key_at_fault(|one| one.learner.metrics = vec!["auc".into()]), "learner");
}
