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

fn central(rest: &str) -> String {
    format!("[privacy.central]\ndelta = 1e-5\nepsilon_max = 5\ndenominator = 10\n{rest}")
}

const EVERYBODY: &str = "sampling = { availability = { participations_max = 3 } }\n";

#[test]
fn noise_follows_from_a_target_epsilon_and_private_plans_weigh_uniformly() {
    let plan = parse(&central(&format!("epsilon = 2\n{EVERYBODY}"))).unwrap();
    let promised = plan.spec.privacy.central.as_ref().unwrap();
    let events = promised.events(3).unwrap();
    let epsilon = ::privacy::accounting::epsilon(&events, promised.relation, promised.delta).unwrap().best();
    assert!(epsilon <= 2.0 && epsilon > 1.999, "{epsilon}");
    assert_eq!(plan.spec.update.weights, Weighting::Uniform);
    assert_eq!(plan.evaluation.sites, Evaluators::None);
    assert_eq!(promised.population, "t");
    for both in ["", "epsilon = 2\nnoise_multiplier = 1\n"] {
        assert!(fault(&central(&format!("{both}{EVERYBODY}"))).1.contains("not both and not neither"));
    }
}

#[test]
fn a_claim_that_the_cohorts_do_not_carry_is_refused() {
    let poisson = "noise_multiplier = 1\nsampling = { poisson = { rate = 0.1 } }\n";
    let everybody = format!("noise_multiplier = 1\n{EVERYBODY}");
    assert!(parse(&central(poisson)).is_ok() && parse(&central(&everybody)).is_ok());
    for (typed, said) in [
        (format!("{everybody}relation = \"add_or_remove_one\"\n"), "claim zero_out"),
        (format!("{poisson}relation = \"replace_one\"\n"), "poisson sampling is accounted for"),
        (format!("{poisson}noise = \"tree\"\n"), "claim nothing from chance"),
        (format!("{everybody}noise = \"tree\"\nclipping = {{ adaptive = {{}} }}\n"), "take fixed clipping"),
        (format!("{everybody}noise = {{ banded = {{ weights = [1048577] }} }}\n"), "1 to 64 weights"),
        (everybody.replace("= 3", "= 0"), "must be at least 1"),
        (poisson.replace("0.1", "1.5"), "above 0 and at most 1"),
    ] {
        let (_, message) = fault(&central(&typed));
        assert!(message.contains(said), "{typed}: {message}");
    }
}

#[test]
fn sums_without_noise_are_refused_where_clients_are_protected() {
    let rest = central(&format!("noise_multiplier = 1\n{EVERYBODY}"));
    let federated = DATA.replace("target", "standardise = \"federated\"\ntarget");
    let error = Plan::parse(&format!("{HEAD}{federated}{TRAINING}{rest}")).unwrap_err();
    assert!(error.message.contains("statistics round carry no noise"), "{}", error.message);
}

#[test]
fn correlated_noise_has_three_ways_to_be_typed() {
    for typed in [
        "{ square_root = { bands = 4 } }",
        "{ buffered = { buffers = [[0.9, 0.2], [0.5, 0.1]], bands = 6 } }",
        "{ banded = { weights = [524288, 131072] } }",
    ] {
        let plan = parse(&central(&format!("noise_multiplier = 1\n{EVERYBODY}noise = {typed}\n"))).unwrap();
        let promised = plan.spec.privacy.central.as_ref().unwrap();
        let scale = promised.noise_scale(10, 1 << 30).unwrap();
        assert!(scale > 1.0 && scale < 3.0, "{typed}: {scale}");
    }
}
