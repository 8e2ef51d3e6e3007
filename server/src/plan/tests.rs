//! Plans as text: defaults, and the line of every mistake.

use protocol::COHORT_MAX;

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
    assert_eq!(plan.spec.update.weight_max, 131_072);
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
    assert_eq!((line, message.as_str()), (12, "update.norm_max: -1 is not a positive number"));
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

#[test]
fn buffers_that_are_none_and_a_quorum_beyond_every_cohort_are_refused_by_their_value() {
    for (buffers, said) in [
        ("[]", "buffers = []"),
        ("[[nan, inf]]", "[NaN, inf]"),
        ("[[0.5, 0.1], [1.0, 0.1]]", "[1, 0.1]"),
        ("[[-0.1, 0.1]]", "[-0.1, 0.1]"),
        ("[[0.5, nan]]", "[0.5, NaN]"),
        ("[[0.5, 1.5]]", "[0.5, 1.5]"),
        ("[[0.5, -1.0]]", "[0.5, -1]"),
    ] {
        let noise = format!("noise = {{ buffered = {{ buffers = {buffers}, bands = 4 }} }}\n");
        let (_, message) = fault(&central(&format!("noise_multiplier = 1\n{EVERYBODY}{noise}")));
        assert!(message.contains(said), "{message}");
    }
    for many in [COHORT_MAX + 1, 4_000_000_000] {
        let (_, message) =
            fault(&central(&format!("noise_multiplier = 1\n{EVERYBODY}clients_min = {many}\n")));
        assert!(message.contains("clients_min") && message.contains(&many.to_string()), "{message}");
    }
}

#[test]
fn nothing_in_a_plan_caps_a_secret_cohort_or_lets_it_decide_about_a_release() {
    let fixed = "noise_multiplier = 1\nsampling = { fixed = { population = 100, sample = 10 } }\n";
    let poisson = "noise_multiplier = 1\nsampling = { poisson = { rate = 0.1 } }\n";
    let open = format!("noise_multiplier = 1\n{EVERYBODY}");
    for secret in [fixed, poisson] {
        for (cohort, key) in [
            ("count = 50", "cohort.count"),
            ("fraction = 1.0", "cohort.fraction"),
            ("quorum = 1", "cohort.quorum"),
        ] {
            let cohort = format!("[cohort]\nclients_min = 50\n{cohort}\n");
            let (line, message) = fault(&format!("{cohort}{}", central(secret)));
            assert!(line == 13 && message.starts_with(key), "{line}: {message}");
            assert!(parse(&format!("{cohort}{}", central(&open))).is_ok(), "{cohort}");
        }
        let (_, message) = fault(&central(&format!("{secret}clients_min = 1\n")));
        assert!(message.contains("a quorum beside poisson or fixed sampling"), "{message}");
        // How many must be connected, and how long a round waits, is decided before and without the draw.
        let early = "[cohort]\nclients_min = 50\ndeadline_seconds = 9\nfailures_max = 2\n";
        let plan = parse(&format!("{early}{}", central(&format!("{secret}clients_min = 0\n")))).unwrap();
        assert_eq!((plan.cohort.quorum, plan.spec.cohort_max), (0, COHORT_MAX));
        // A site refuses such a cap, too, whoever has made the task.
        let mut capped = (*plan.spec).clone();
        capped.cohort_max = 49;
        assert_eq!(capped.checked().unwrap_err().key, "cohort.count");
    }
    let large = fixed.replace("100", "3000000").replace("sample = 10", "sample = 2000000");
    assert!(fault(&central(&large)).1.contains("at most 1048576"));
}

#[cfg(feature = "net")]
#[test]
fn only_a_run_that_nothing_biases_is_declared_secret() {
    use ::privacy::ledger::{Cohorts, Conduct, SiteMetrics};
    let text = |rest: &str| format!("{HEAD}{DATA}{TRAINING}{rest}");
    let poisson = central("noise_multiplier = 1\nsampling = { poisson = { rate = 0.1 } }\n");
    let open = central(&format!("noise_multiplier = 1\n{EVERYBODY}"));
    let cohorts = |plan: &str, is_seeded| conduct_of(&text(plan), is_seeded).cohorts;
    assert_eq!(cohorts(&poisson, false), Cohorts::Secret);
    assert_eq!(cohorts(&poisson, true), Cohorts::Known);
    assert_eq!(cohorts(&open, false), Cohorts::Known);
    // What earlier versions accepted.
    for biased in [
        format!("[cohort]\ncount = 3\n{poisson}"),
        format!("[cohort]\nquorum = 1\n{poisson}"),
        format!("{poisson}clients_min = 2\n"),
    ] {
        assert_eq!(cohorts(&biased, false), Cohorts::Known, "{biased}");
    }
    let told = conduct_of(&text(&format!("{poisson}metrics = \"outside_the_guarantee\"\n")), false);
    assert_eq!(told, Conduct { cohorts: Cohorts::Secret, metrics: SiteMetrics::Told });
    assert_eq!(conduct_of("nonsense", false).cohorts, Cohorts::Known);
    assert!(draws_secretly(&text(&poisson)) && !draws_secretly(&text(&open)) && draws_secretly("nonsense"));
}

#[test]
fn a_surplus_is_asked_where_there_is_somebody_to_ask_and_chance_is_no_secret() {
    let plan = parse("[cohort]\nclients_min = 4\ncount = 10\noversample = 1.3\n").unwrap();
    assert_eq!((plan.cohort.size_of(100), plan.cohort.asked_of(100), plan.cohort.asked_of(11)), (10, 13, 11));
    let plan = parse("[cohort]\nfraction = 0.5\noversample = 1\n").unwrap();
    assert_eq!((plan.cohort.asked_of(100), plan.cohort.oversample), (50, None));
    for wrong in [
        "count = 3\noversample = 0.9",
        "count = 3\noversample = 11",
        "count = 3\noversample = nan",
        "oversample = 1.3",
    ] {
        let (_, message) = fault(&format!("[cohort]\n{wrong}\n"));
        assert!(message.contains("cohort.oversample"), "{message}");
    }
    let secret = "[update]\nnorm_max = 1.0\n[privacy.central]\ndelta = 1e-5\nepsilon_max = 9.0\nnoise_multiplier = 4.0\n\
                  denominator = 2\nsampling = { poisson = { rate = 0.5 } }\n";
    for key in ["oversample = 1.3", "grace_seconds = 9"] {
        let (_, message) = fault(&format!("[cohort]\n{key}\n{secret}"));
        assert!(message.contains("poisson") && message.contains("leave"), "{message}");
    }
}

#[test]
fn factors_and_divisors_by_which_every_model_breaks_or_none_moves_are_refused_by_name() {
    for (setting, key) in [
        ("fedadam = { tau = 1e-200 }", "fedadam.tau"),
        ("fedyogi = { tau = 1e200 }", "fedyogi.tau"),
        ("fedadagrad = { tau = 5e-324 }", "fedadagrad.tau"),
        ("fedadam = { learning_rate = 1e300 }", "fedadam.learning_rate"),
        ("fedavgm = { learning_rate = 1e13 }", "fedavgm.learning_rate"),
        ("fedprox = { mu = 1e300 }", "fedprox.mu"),
    ] {
        let (_, message) = fault(&format!("[strategy]\n{setting}\n"));
        assert!(message.contains(key) && message.contains("1e12"), "{setting}: {message}");
    }
    for fine in ["fedadam = { tau = 1e-9 }", "fedavgm = { learning_rate = 1e-12 }", "fedprox = { mu = 0 }"] {
        parse(&format!("[strategy]\n{fine}\n")).unwrap();
    }
}
