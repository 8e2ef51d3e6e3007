//! What a plan that promises privacy may not ask for besides.
//!
//! A guarantee covers what passes through noise. Whatever else would carry a client's or a record's numbers to the server, or
//! a record's into the features of other records, is refused here.

use crate::COHORT_MAX;

use super::{DataSpec, Missing, Spec, SpecError, Standardise};

impl Spec {
    /// Checks that nothing goes past the noise.
    ///
    /// # Errors
    /// [`SpecError`] names the setting at fault.
    pub(super) fn check_privacy(&self) -> Result<(), SpecError> {
        self.privacy.check()?;
        let protects_clients = self.privacy.central.is_some() || self.privacy.local.is_some();
        if protects_clients && !self.statistics().is_empty() {
            let message = "the sums of a statistics round carry no noise; give means and deviations (`given`), or take \
                           each site's own (`site`)";
            return Err(SpecError::new("data.table.standardise", message));
        }
        if self.privacy.samples_secretly() && self.cohort_max < COHORT_MAX {
            let message = format!(
                "a sum may hold {} answers, and poisson or fixed sampling may draw more: who is left out would depend on who \
                 else was drawn, which the ledger does not account for; leave `count` out of [cohort]",
                self.cohort_max
            );
            return Err(SpecError::new("cohort.count", message));
        }
        self.check_records()
    }

    /// Checks the codec, on its own and against noise that sites add: what has been noised has no short form, and what is
    /// compressed after its noise would be remembered without it.
    ///
    /// # Errors
    /// [`SpecError`] names the setting at fault.
    pub(super) fn check_codec(&self) -> Result<(), SpecError> {
        self.update.codec.check()?;
        if self.privacy.local.is_some() && self.update.codec.is_lossy() {
            let message = "with [privacy.local] every coordinate is noise, which no lossy codec can say; take `exact` or \
                           `packed`, or promise privacy at the server ([privacy.central])";
            return Err(SpecError::new("update.codec", message));
        }
        Ok(())
    }

    /// The same where single records are protected (`privacy.examples`): only noised gradients may depend on them.
    fn check_records(&self) -> Result<(), SpecError> {
        if self.privacy.examples.is_none() {
            return Ok(());
        }
        let wrong = |key: &str, message: &str| Err(SpecError::new(key, message));
        if self.training.accumulate > 1 {
            let message = "with [privacy.examples] each batch is a release of its own; give a larger batch_size instead";
            return wrong("training.accumulate", message);
        }
        if self.training.gradient_norm_max.is_some() {
            let message = "with [privacy.examples] every record's gradient is clipped to privacy.examples.norm_max; \
                           leave this out";
            return wrong("training.gradient_norm_max", message);
        }
        let DataSpec::Table(table) = &self.data else { return Ok(()) };
        match (&table.standardise, table.missing) {
            (Standardise::Federated | Standardise::Site, _) => {
                let message = "a mean and a deviation of the records carry no noise, and with [privacy.examples] each \
                               record must stand alone; give public ones (`given`), or none";
                wrong("data.table.standardise", message)
            }
            (Standardise::None, Missing::Mean) => {
                let message = "the mean of the site's records carries no noise; with [privacy.examples] give a constant, \
                               drop the row, or standardise with given means";
                wrong("data.table.missing", message)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The setting at fault in a plan that protects single records.
    fn fault(training: &str, table: &str) -> String {
        let json = format!(
            r#"{{"model": "logistic", "cohort_max": 4,
            "data": {{"table": {{"label": "y", "target": {{"classes": 2}}, "features": ["a", "b"] {table}}}}},
            "training": {{"batch_size": 8, "optimizer": {{"sgd": {{"learning_rate": 0.1}}}} {training}}},
            "privacy": {{"examples": {{"noise_multiplier": 1.0, "norm_max": 1.0, "delta": 1e-5, "epsilon_max": 1.0}}}}}}"#
        );
        Spec::from_json(&json).err().map_or_else(String::new, |error| error.key)
    }

    #[test]
    fn a_codec_that_cannot_keep_what_the_plan_promises_is_refused_and_a_plan_without_one_is_written_as_before()
     {
        let spec = |rest: &str| {
            Spec::from_json(&format!(
                r#"{{"model": "logistic", "cohort_max": 4,
                "data": {{"table": {{"label": "y", "target": {{"classes": 2}}, "features": ["a"]}}}},
                "training": {{"batch_size": 8, "optimizer": {{"sgd": {{"learning_rate": 0.1}}}}}} {rest}}}"#
            ))
        };
        let key = |rest: &str| spec(rest).err().map_or_else(String::new, |error| error.key);
        assert_eq!(key(r#", "update": {"codec": "int8", "broadcast": "bf16"}"#), "");
        assert_eq!(key(r#", "update": {"codec": {"top_k": {"fraction": 0.01}}}"#), "");
        for fraction in ["0.0", "-1.0", "1.5"] {
            let update = format!(r#", "update": {{"codec": {{"top_k": {{"fraction": {fraction}}}}}}}"#);
            assert_eq!(key(&update), "update.codec", "{fraction}");
        }
        let local = r#""privacy": {"local": {"noise_multiplier": 1.0, "delta": 1e-5, "epsilon_max": 100.0}}"#;
        let uniform =
            |codec: &str| format!(r#", "update": {{"weights": "uniform", "codec": "{codec}"}}, {local}"#);
        assert_eq!(key(&uniform("packed")), "");
        for codec in ["f16", "bf16", "int8"] {
            assert_eq!(key(&uniform(codec)), "update.codec");
        }
        let json = spec("").unwrap().to_json();
        assert!(!json.contains("codec") && !json.contains("broadcast"), "{json}");
    }

    #[test]
    fn a_plan_that_protects_records_makes_no_use_of_them_past_the_noise() {
        let given = r#", "standardise": {"given": {"mean": [1, 2], "std": [1, 1]}}"#;
        let mean = r#", "missing": "mean""#;
        assert_eq!(fault("", ""), "");
        assert_eq!(fault("", given), "");
        assert_eq!(fault("", &format!("{given}{mean}")), "");
        assert_eq!(fault("", mean), "data.table.missing");
        for standardise in ["site", "federated"] {
            let standardise = format!(r#", "standardise": "{standardise}""#);
            assert_eq!(fault("", &standardise), "data.table.standardise");
        }
        assert_eq!(fault(r#", "accumulate": 2"#, ""), "training.accumulate");
        assert_eq!(fault(r#", "gradient_norm_max": 1.0"#, ""), "training.gradient_norm_max");
    }
}
