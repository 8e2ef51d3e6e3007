//! Whether a model can be learned through its noise, before anybody starts a hopeless run.
//!
//! Lengths are in units of the clipping norm C. A round's mean of updates is at most C long; its noise has a length of about
//! z sqrt(d) / m, for d coordinates and a denominator of m. Over T rounds the updates can add up to T C, and independent noise
//! to sqrt(T) times that of one round: R = z sqrt(d) / (m sqrt(T)). Correlated noise adds up to less.
//!
//! R is a rule for choosing, not a bound: it says how far the largest possible signal reaches, and real ones are smaller.

use ::privacy::adaptive::update_noise_multiplier;
use protocol::{CentralPrivacy, Clipping, ExamplePrivacy, Layout, LocalPrivacy, NoiseCorrelation};
use server::Plan;

/// A model is usable up to this R, and hopeless above [`HOPELESS`].
const USABLE: f64 = 1.0;
const HOPELESS: f64 = 3.0;

/// Lengths of noise.
pub(super) struct Signal {
    /// Of one round, over the clipping norm.
    pub(super) round: f64,
    /// Of the run, over the largest possible signal.
    pub(super) run: f64,
    /// What the noise is added to.
    pub(super) noised: Noised,
    clients: f64,
    dimension: usize,
}

/// What noise is added to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Noised {
    /// Updates, at the server or at each client.
    Updates,
    /// The gradient of each step at a site.
    Gradients,
}

impl Noised {
    /// What has the mean that is compared.
    pub(super) fn of(self) -> &'static str {
        match self {
            Self::Updates => "a round's updates",
            Self::Gradients => "one step's gradients at the smallest cohort, with one step a pass",
        }
    }

    /// When noise is added, as wide as the longer word.
    pub(super) fn time(self) -> &'static str {
        match self {
            Self::Updates => "round",
            Self::Gradients => "step ",
        }
    }

    fn levers(self) -> &'static str {
        match self {
            Self::Updates => "raise the cohort",
            Self::Gradients => "raise the batch, the passes or the cohort",
        }
    }
}

/// What is known of signal and noise.
pub(super) enum Heard {
    /// Both.
    Is(Signal),
    /// What follows from the number of records of a site.
    ByRecords(ByRecords),
}

/// Lengths of noise where a site's records are one batch: for a site with one record; with n it is the n-th part.
pub(super) struct ByRecords {
    /// Of one step, over the clipping norm.
    pub(super) step: f64,
    /// Of the run, over the largest possible signal.
    pub(super) run: f64,
}

impl ByRecords {
    /// From how many records at each site on the model is usable.
    pub(super) fn usable(&self) -> u64 {
        (self.run / USABLE).ceil() as u64
    }

    /// Below how many it is hopeless.
    pub(super) fn hopeless(&self) -> u64 {
        (self.run / HOPELESS).ceil() as u64
    }
}

impl Signal {
    /// What noise does to a plan's model; `None` for plans that add none.
    pub(super) fn of(plan: &Plan, layout: &Layout) -> Result<Option<Heard>, String> {
        let privacy = &plan.spec.privacy;
        match (&privacy.central, &privacy.local) {
            (Some(central), _) => {
                Self::of_central(plan, central, layout).map(|signal| Some(Heard::Is(signal)))
            }
            (None, Some(local)) => Ok(Some(Heard::Is(Self::of_local(plan, local, layout.shared_len())))),
            (None, None) => {
                let of = |examples| Self::of_examples(plan, examples, layout.len());
                Ok(privacy.examples.as_ref().map(of))
            }
        }
    }

    fn of_central(plan: &Plan, central: &CentralPrivacy, layout: &Layout) -> Result<Self, String> {
        let (spec, dimension) = (&plan.spec, layout.shared_len());
        let lattice = spec
            .lattice_within(spec.update.norm_max, &layout.shared_lengths())
            .map_err(|error| error.to_string())?;
        let scale =
            central.noise_scale(dimension, lattice.sensitivity()).map_err(|error| error.to_string())?;
        let noise = central.noise_multiplier.value();
        let noise = match central.clipping {
            Clipping::Adaptive { count_noise, .. } => {
                update_noise_multiplier(noise, count_noise).map_err(|error| error.to_string())?
            }
            Clipping::Fixed | Clipping::PerLayer => noise,
        };
        let clients = central.denominator.value();
        let round = noise * scale * (dimension as f64).sqrt() / clients;
        let run = round * draws_left(&central.noise, plan.rounds).sqrt() / f64::from(plan.rounds);
        Ok(Self { round, run, noised: Noised::Updates, clients, dimension })
    }

    /// Each of the smallest cohort adds noise of its own.
    fn of_local(plan: &Plan, local: &LocalPrivacy, dimension: usize) -> Self {
        let clients = plan.cohort.size_of(plan.cohort.clients_min) as f64;
        let round = local.noise_multiplier.value() * (dimension as f64).sqrt() / clients.sqrt();
        // As much as central noise would do with the root of the clients.
        let run = round / f64::from(plan.rounds).sqrt();
        Self { round, run, noised: Noised::Updates, clients, dimension }
    }

    /// Each site adds noise of its own in every step. A plan does not know how many steps a pass has at a site: with one, the noise over
    /// the run is longest. Where all records of a site are one batch (`batch_size = 0`), a plan does not know how many that are, either.
    fn of_examples(plan: &Plan, examples: &ExamplePrivacy, dimension: usize) -> Heard {
        let training = &plan.spec.training;
        let batch = training.batch_size as f64 * f64::from(training.accumulate);
        let clients = plan.cohort.size_of(plan.cohort.clients_min).max(1) as f64;
        let of_one = examples.noise_multiplier.value() * (dimension as f64).sqrt() / clients.sqrt();
        let steps = f64::from(plan.rounds) * f64::from(training.epochs);
        if batch == 0.0 {
            return Heard::ByRecords(ByRecords { step: of_one, run: of_one / steps.sqrt() });
        }
        let round = of_one / batch;
        Heard::Is(Self { round, run: round / steps.sqrt(), noised: Noised::Gradients, clients, dimension })
    }

    /// In one word.
    pub(super) fn verdict(&self) -> &'static str {
        if self.run <= USABLE {
            "usable"
        } else if self.run <= HOPELESS {
            "doubtful"
        } else {
            "hopeless"
        }
    }

    /// What it means, and what would help.
    pub(super) fn advice(&self) -> String {
        let run = self.run;
        if run <= USABLE {
            return format!(
                "over the run, the noise is {run:.2} times as long as the largest possible signal"
            );
        }
        format!(
            "the noise is {run:.1} times longer than the largest possible signal; {} (now {} clients), shrink the \
             model (to about {} parameters, as things are), or allow more epsilon",
            self.noised.levers(),
            self.clients,
            ((self.dimension as f64 / (run * run)) as u64).max(1)
        )
    }
}

/// How many rounds' noise, by variance, is in the sum of all `rounds` releases.
fn draws_left(noise: &NoiseCorrelation, rounds: u32) -> f64 {
    match noise {
        NoiseCorrelation::Independent => f64::from(rounds),
        // The nodes of the tree that make up the rounds.
        NoiseCorrelation::Tree => f64::from(rounds.count_ones()),
        NoiseCorrelation::Banded { weights } => {
            // What is left of the noise of a round that lies `age` rounds back.
            let mut left = 1.0;
            let mut weights = weights.iter();
            let mut variance = 0.0;
            for _ in 0..rounds {
                variance += left * left;
                left -=
                    weights.next().map_or(0.0, |weight| f64::from(*weight) / f64::from(protocol::BAND_UNIT));
            }
            variance
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_noise_of_all_releases_is_what_the_weights_leave_of_it() {
        let bands = |weights: &[u32]| NoiseCorrelation::Banded { weights: weights.to_vec() };
        assert_eq!(draws_left(&NoiseCorrelation::Independent, 100), 100.0);
        assert_eq!(draws_left(&NoiseCorrelation::Tree, 64), 1.0);
        assert_eq!(draws_left(&NoiseCorrelation::Tree, 7), 3.0);
        // All of it is taken back in the next round: only the last is left.
        assert_eq!(draws_left(&bands(&[1 << 20]), 9), 1.0);
        assert_eq!(draws_left(&bands(&[1 << 19]), 3), 1.0 + 0.25 + 0.25);
    }

    #[test]
    fn where_all_records_are_one_batch_their_number_decides() {
        let by = ByRecords { step: 400.0, run: 90.0 };
        assert_eq!((by.usable(), by.hopeless()), (90, 30));
        let word = |records: f64| {
            let (round, run) = (by.step / records, by.run / records);
            Signal { round, run, noised: Noised::Gradients, clients: 4.0, dimension: 28 }.verdict()
        };
        assert_eq!([90.0, 89.0, 30.0, 29.0].map(word), ["usable", "doubtful", "doubtful", "hopeless"]);
    }

    #[test]
    fn the_verdict_changes_at_one_and_at_three() {
        let word = |run| {
            Signal { round: 1.0, run, noised: Noised::Updates, clients: 10.0, dimension: 900 }.verdict()
        };
        assert_eq!(
            [0.2, 1.0, 1.1, 3.0, 3.1].map(word),
            ["usable", "usable", "doubtful", "doubtful", "hopeless"]
        );
        let advice =
            Signal { round: 30.0, run: 3.0, noised: Noised::Updates, clients: 10.0, dimension: 900 }.advice();
        assert!(advice.contains("3.0 times longer") && advice.contains("about 100 parameters"), "{advice}");
    }
}
