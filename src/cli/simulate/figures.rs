//! The last numbers of a simulation: its losses, its test metrics and its price.

use command::results::figure;
use privacy::accounting::Figure;
use protocol::wire::RoundSummary;
use protocol::{Metrics, ModelSpec, Spec};

use super::super::output::share;

/// Epsilon of all releases of the run, where its plan promises client-level privacy at the server: 0 when nothing was released.
pub(super) fn epsilon(spec: &Spec, rounds: &[RoundSummary]) -> Option<f64> {
    spec.privacy.central.as_ref()?;
    Some(rounds.iter().rev().find_map(|round| round.epsilon).unwrap_or(0.0))
}

/// What the run would have cost, had it been no simulation.
pub(super) fn describe_price(spec: &Spec, epsilon: Option<f64>) -> String {
    let bounded = |what: &str, epsilon_max: f64, delta: f64| {
        format!(
            "at most {} at delta {} for {what}, where each site stops",
            Figure(epsilon_max),
            Figure(delta)
        )
    };
    match (epsilon, &spec.privacy.examples, &spec.privacy.local) {
        (Some(0.0), ..) => "0: nothing was released".to_owned(),
        (Some(epsilon), ..) => {
            format!("{:.4}, if this were no simulation; see privacy_statement.json", Figure(epsilon))
        }
        (None, Some(examples), _) => bounded("each record", examples.epsilon_max.value(), examples.delta),
        (None, None, Some(local)) => bounded("each client", local.epsilon_max.value(), local.delta),
        (None, None, None) => "infinite: the plan has no [privacy]".to_owned(),
    }
}

/// The line of the last evaluation; none for a method, whose values are not evaluated.
pub(super) fn describe_test(spec: &Spec, test: Option<Metrics>, have_tests: bool) -> String {
    let none = if have_tests { "-" } else { "- (there are no test records)" };
    match spec.is_squared() {
        _ if matches!(spec.model, ModelSpec::Values { .. }) => String::new(),
        true => {
            let rmse = test.map_or_else(|| none.to_owned(), |metrics| figure(metrics.loss.sqrt()));
            format!("test RMSE      {rmse}\n")
        }
        false => {
            let accuracy = test.map_or_else(|| none.to_owned(), |metrics| share(metrics.accuracy));
            format!("test accuracy  {accuracy}\n")
        }
    }
}

/// The last losses of a simulation.
pub(super) struct Losses {
    /// Of test records.
    pub(super) test: Option<f64>,
    /// Of training.
    pub(super) trained: Option<f64>,
    /// The line of the table.
    pub(super) shown: String,
}

impl Losses {
    /// Of these rounds. A method's values are not evaluated: what its sites measured is all that there is.
    pub(super) fn of(spec: &Spec, rounds: &[RoundSummary], test: Option<Metrics>) -> Self {
        let trained = rounds.iter().rev().find_map(|round| round.train).map(|metrics| metrics.loss);
        let is_method = matches!(spec.model, ModelSpec::Values { .. });
        let test = test.map(|metrics| metrics.loss).or_else(|| trained.filter(|_| is_method));
        let shown = match (test, trained) {
            (None, Some(trained)) => format!("training loss  {:.4}", Figure(trained)),
            (None, None) => "loss           -".to_owned(),
            (Some(loss), _) => format!("loss           {:.4}", Figure(loss)),
        };
        Self { test, trained, shown }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(privacy: &str) -> Spec {
        let json = format!(
            r#"{{"model": "logistic", "data": {{"tensor": {{"shape": [2], "target": {{"classes": 2}}}}}},
            "training": {{"batch_size": 0, "optimizer": {{"sgd": {{"learning_rate": 0.1}}}}}}, "cohort_max": 1048576,
            "update": {{"weights": "uniform"}}, "privacy": {{{privacy}}}}}"#
        );
        Spec::from_json(&json).unwrap()
    }

    #[test]
    fn a_private_run_that_released_nothing_has_cost_nothing_and_one_without_privacy_everything() {
        let central = |sampling: &str| {
            spec(&format!(
                r#""central": {{"population": "p", "relation": "zero_out", "delta": 1e-5, "epsilon_max": 2.0, "noise_multiplier": 1.0,
                "rounds": 1, "denominator": 1.0, "sampling": {sampling}, "noise": "independent", "clipping": "fixed",
                "metrics": "off", "clients_min": 0}}"#
            ))
        };
        let private = central(r#"{"poisson": {"rate": 0.5}}"#);
        assert_eq!(epsilon(&private, &[]), Some(0.0));
        assert_eq!(describe_price(&private, epsilon(&private, &[])), "0: nothing was released");
        let plain = spec("");
        assert!(describe_price(&plain, epsilon(&plain, &[])).contains("infinite"));
        let records = spec(
            r#""examples": {"noise_multiplier": 1.0, "norm_max": 1.0, "delta": 1e-5, "epsilon_max": 3.0}"#,
        );
        assert!(
            describe_price(&records, epsilon(&records, &[]))
                .starts_with("at most 3 at delta 1e-5 for each record")
        );
    }
}
