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
