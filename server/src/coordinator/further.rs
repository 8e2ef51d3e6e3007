//! Metrics that external learners measured beside loss and accuracy, until their round is over.

use std::collections::BTreeMap;

use protocol::ClientId;

/// What each client has told, by name, so that no order of arrival changes a mean: the examples it counts by, and a number for each name of
/// the plan.
#[derive(Debug, Default)]
pub(super) struct FurtherReports(BTreeMap<ClientId, (u64, Vec<f64>)>);

impl FurtherReports {
    pub(super) fn add(&mut self, client: &ClientId, examples: u64, further: Vec<f64>) {
        if !further.is_empty() {
            self.0.insert(client.clone(), (examples, further));
        }
    }

    /// The mean of each over those clients that measured it, weighted by examples, of which each counts at most `weight_max`.
    pub(super) fn pooled(&self, names: &[String], weight_max: u64) -> BTreeMap<String, f64> {
        let mean = |place: usize| {
            let (mut sum, mut weights) = (0.0, 0.0);
            for (examples, further) in self.0.values() {
                let weight = (*examples).min(weight_max) as f64;
                if let Some(value) = further.get(place).filter(|value| value.is_finite()) {
                    (sum, weights) = (sum + weight * value, weights + weight);
                }
            }
            (weights > 0.0).then_some(sum / weights)
        };
        names.iter().enumerate().filter_map(|(place, name)| Some((name.clone(), mean(place)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_is_over_those_who_measured_and_weighs_them_by_examples() {
        let mut all = FurtherReports::default();
        let client = |name: &str| ClientId::new(name).unwrap();
        all.add(&client("a"), 10, vec![0.5, f64::NAN]);
        all.add(&client("b"), 1_000_000, vec![1.0, f64::NAN]);
        all.add(&client("c"), 5, vec![f64::NAN, f64::NAN]);
        let names = ["auc".to_owned(), "f1".to_owned()];
        let pooled = all.pooled(&names, 30);
        assert_eq!(pooled, BTreeMap::from([("auc".to_owned(), (0.5 * 10.0 + 30.0) / 40.0)]));
        assert!(FurtherReports::default().pooled(&names, 30).is_empty());
    }
}
