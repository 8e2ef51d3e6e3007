//! Whether a run has made its model worse: training that diverges and sites that attack end with all rounds done and a model of no use.

use std::fmt;

use privacy::accounting::Figure;
use protocol::Metrics;
use protocol::wire::RoundSummary;

/// How many times the loss of the first round that of the last is, of a model that is worse: of a classifier, whose cross-entropy also grows
/// where it becomes too sure of itself, and of others.
const TIMES_OF_CLASSES: f64 = 2.0;
/// See [`TIMES_OF_CLASSES`].
const TIMES: f64 = 10.0;
/// By how much a cross-entropy must have grown beside.
const NATS: f64 = 0.5;

/// A model that is worse after the last round than after the first that was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Worsened {
    measured: &'static str,
    /// The first measured round, and its loss.
    first: (u32, f64),
    last: u32,
    /// Of the last round; `None` where it could not be measured, as of a model whose loss is not finite.
    loss: Option<f64>,
    /// The round with the least loss.
    best: u32,
}

impl Worsened {
    /// Of the rounds of a run that is over, in their order: by the loss at the sites where they test, else by that of the server's own test
    /// records, else by that of training. `None` where it is not much worse, or nothing was measured.
    pub fn of(rounds: &[RoundSummary]) -> Option<Self> {
        type Measure = fn(&RoundSummary) -> Option<Metrics>;
        let measures: [(&'static str, Measure); 3] = [
            ("test loss", |round| round.sites),
            ("central test loss", |round| round.central),
            ("training loss", |round| round.train),
        ];
        let released = || rounds.iter().filter(|round| round.round > 0 && round.released);
        let (measured, measure) =
            measures.into_iter().find(|(_, measure)| released().any(|round| measure(round).is_some()))?;
        let found: Vec<(u32, Metrics)> =
            released().filter_map(|round| Some((round.round, measure(round)?))).collect();
        let (first, last) = (found.first()?, released().next_back()?);
        let best = found.iter().min_by(|one, other| one.1.loss.total_cmp(&other.1.loss))?.0;
        let of_last = measure(last);
        let is_worse = match of_last {
            // A training without metrics is one that keeps them to itself.
            None => measured != "training loss",
            Some(Metrics { loss, accuracy, .. }) => {
                let (times, beside) =
                    if accuracy.is_some() { (TIMES_OF_CLASSES, NATS) } else { (TIMES, 0.0) };
                !loss.is_finite()
                    || (first.1.loss >= 0.0 && loss > times * first.1.loss && loss > first.1.loss + beside)
            }
        };
        let loss = of_last.map(|metrics| metrics.loss);
        is_worse.then_some(Self { measured, first: (first.0, first.1.loss), last: last.round, loss, best })
    }
}

impl fmt::Display for Worsened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { measured, first: (round, first), last, loss, best } = self;
        match loss {
            Some(loss) => write!(f, "the {measured} of round {last} is {:.4}", Figure(*loss))?,
            None => {
                write!(f, "the {measured} of round {last} could not be measured, as where it is not finite")?
            }
        }
        write!(
            f,
            ", and that of round {round} was {:.4}: the model has become worse (the best one is of round {best}); see whether training diverges \
             (learning rates, the scale of the records) or sites are corrupted ([aggregation] tolerates a few)",
            Figure(*first)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(losses: &[Option<f64>], accuracy: Option<f64>) -> Vec<RoundSummary> {
        let line = |(number, loss): (usize, &Option<f64>)| RoundSummary {
            further: Default::default(),
            round: number as u32 + 1,
            released: true,
            cohort: 3,
            answered: 3,
            train: Some(Metrics { loss: 0.5, accuracy: None, examples: 9, seconds: 0.0 }),
            sites: loss.map(|loss| Metrics { loss, accuracy, examples: 9, seconds: 0.0 }),
            central: None,
            seconds: 1.0,
            epsilon: None,
        };
        losses.iter().enumerate().map(line).collect()
    }

    fn told(losses: &[Option<f64>], accuracy: Option<f64>) -> Option<String> {
        Worsened::of(&rounds(losses, accuracy)).map(|worsened| worsened.to_string())
    }

    #[test]
    fn a_model_that_ends_worse_than_it_began_is_told_with_its_best_round() {
        let said = told(&[Some(0.69), Some(0.31), Some(4.0)], Some(0.5)).unwrap();
        assert!(
            said.starts_with("the test loss of round 3 is 4.0000, and that of round 1 was 0.6900"),
            "{said}"
        );
        assert!(said.contains("of round 2"), "{said}");
        let said = told(&[Some(1.0), Some(1e29)], None).unwrap();
        assert!(said.contains("1.000e29"), "short: {said}");
        // The last model could not even be measured.
        let said = told(&[Some(0.69), None], Some(0.5)).unwrap();
        assert!(said.contains("could not be measured") && said.contains("not finite"), "{said}");
    }

    #[test]
    fn a_model_that_learns_or_becomes_too_sure_of_itself_is_not() {
        for losses in
            [&[Some(0.69), Some(0.1)][..], &[Some(0.1), Some(0.35)], &[Some(0.69)], &[None, None], &[]]
        {
            assert_eq!(told(losses, Some(0.9)), None, "{losses:?}");
        }
        // Without classes a loss has any scale.
        assert_eq!(told(&[Some(1e4), Some(5e4)], None), None);
        assert!(told(&[Some(1e-4), Some(5e-3)], None).is_some());
    }
}
