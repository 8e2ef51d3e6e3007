//! Plans as text: defaults, and the line of every mistake.

use super::*;

const HEAD: &str = "name = \"t\"\nrounds = 3\nmodel = \"logistic\"\n";
const DATA: &str = "[data.table]\nlabel = \"y\"\ntarget = { classes = 2 }\nfeatures = [\"a\"]\n";
const TRAINING: &str = "[training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.1 } }\n";

fn parse(rest: &str) -> Result<Plan, ConfigError> {
    Plan::parse(&format!("{HEAD}{DATA}{TRAINING}{rest}"))
}

fn fault(rest: &str) -> (usize, String) {
    let error = parse(rest).unwrap_err();
    (error.line, error.message)
}

#[test]
fn a_short_plan_has_sensible_defaults() {
    let plan = parse("").unwrap();
    assert_eq!(plan.strategy, Strategy::FedAvg);
    assert_eq!((plan.cohort.clients_min, plan.cohort.quorum, plan.cohort.size_of(7)), (1, 1, 7));
    assert!(plan.evaluation.is_due(1, 3));
    assert_eq!(plan.spec.update.weight_max, 1000);
}

#[test]
fn every_strategy_has_a_name_and_a_row() {
    for (name, _) in Strategy::ROWS {
        let text = match name {
            "fedavg" => "strategy = \"fedavg\"\n".to_owned(),
            "fedprox" => "strategy = { fedprox = { mu = 0.1 } }\n".to_owned(),
            other => format!("strategy = {{ {other} = {{}} }}\n"),
        };
        let plan = Plan::parse(&format!("{text}{HEAD}{DATA}{TRAINING}")).unwrap();
        assert_eq!(plan.spec.proximal_mu, if name == "fedprox" { 0.1 } else { 0.0 });
    }
}

#[test]
fn errors_name_line_and_value() {
    assert_eq!(
        fault("[cohort]\nfraction = 1.5\n"),
        (12, "cohort.fraction: 1.5 is not above 0 and at most 1".into())
    );
    assert_eq!(fault("[cohort]\nclients_min = 4\nquorum = 5\n").0, 13);
    assert_eq!(fault("[cohort]\ncount = 3\nfraction = 0.5\n").0, 12);
    assert_eq!(fault("[schedule]\ndecay = { cosine = { floor = 2 } }\n").0, 12);
    assert_eq!(fault("[strategy.fedadam]\nbeta1 = 1.0\n").0, 12);
    let (line, message) = fault("[update]\nnorm_max = -1\n");
    assert_eq!((line, message.as_str()), (12, "-1 is not a positive number"));
    let (line, message) = fault("[update]\nnorm = 1\n");
    assert!(line == 12 && message.contains("unknown field `norm`"), "{message}");
    assert_eq!(fault("[update]\nweight_max = 9000000\n").0, 12);
}

#[test]
fn the_simulator_s_table_may_stand_in_the_same_file() {
    assert!(parse("[simulation]\nseed = 1\n").is_ok());
}

#[test]
fn a_plan_without_rounds_or_name_is_refused() {
    let text = format!("{HEAD}{DATA}{TRAINING}");
    assert_eq!(Plan::parse(&text.replace("rounds = 3", "rounds = 0")).unwrap_err().line, 2);
    assert_eq!(Plan::parse(&text.replace("\"t\"", "\"a b\"")).unwrap_err().line, 1);
}
