//! What was released, in the words an accountant understands: one [`Event`] for each phase of equal releases.
//!
//! A ledger keeps events and not epsilons, so a better accountant may be run over an old ledger. There is one
//! convention for noise throughout: a noise multiplier is the standard deviation of the noise divided by the clipping
//! norm C, whatever the relation; an accountant that thinks in multiples of 2C converts for itself.
//!
//! The type is flat on purpose: a recursive one could be nested by a stranger until the stack ends. A list of events
//! is their composition. An event that exists is in range, also one that was read from a file. It refuses versions it
//! does not know, and it computes no epsilon.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Figure;

/// The version of the serialised form written by this code.
pub const EVENT_VERSION: u32 = 1;

/// Which two data sets must be hard to tell apart. The unit is one client, or one example where a site accounts for
/// its own records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// One unit more or less; a sum of clipped updates moves by at most C.
    AddOrRemoveOne,
    /// One unit exchanged for another; a sum of clipped updates moves by at most 2C.
    ReplaceOne,
    /// The contributions of one unit replaced by zeros; a sum of clipped updates moves by at most C.
    ZeroOut,
}

impl Relation {
    /// How far a sum of clipped updates may move, in multiples of the clipping norm.
    pub fn sensitivity(self) -> f64 {
        match self {
            Self::AddOrRemoveOne | Self::ZeroOut => 1.0,
            Self::ReplaceOne => 2.0,
        }
    }

    /// What is left to claim against an adversary who sees who took part: that a unit is there at all is no secret to it.
    #[must_use]
    pub fn with_known_cohort(self) -> Self {
        match self {
            Self::AddOrRemoveOne | Self::ZeroOut => Self::ZeroOut,
            Self::ReplaceOne => Self::ReplaceOne,
        }
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AddOrRemoveOne => "add or remove one",
            Self::ReplaceOne => "replace one",
            Self::ZeroOut => "zero out one",
        })
    }
}

/// How one release was made. Every `noise_multiplier` is the standard deviation of the noise divided by C.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Mechanism {
    /// A noised sum in which every unit may take part.
    Gaussian {
        /// Noise over clipping norm; at least 0.
        noise_multiplier: f64,
    },
    /// A noised sum over a cohort in which each unit takes part by an independent secret coin.
    PoissonGaussian {
        /// Noise over clipping norm; at least 0.
        noise_multiplier: f64,
        /// The chance of each unit to take part, 0 to 1.
        sampling_rate: f64,
    },
    /// A noised sum over a cohort of fixed size, drawn uniformly.
    WithoutReplacementGaussian {
        /// Noise over clipping norm; at least 0. (Over C, not over the 2C by which a replaced unit moves the sum.)
        noise_multiplier: f64,
        /// How many units there are; at least 1.
        population: u64,
        /// How many are drawn; 1 to `population`.
        sample: u64,
    },
    /// As `PoissonGaussian`, but a cohort larger than `sample_max` is cut down to it uniformly.
    TruncatedPoissonGaussian {
        /// Noise over clipping norm; at least 0.
        noise_multiplier: f64,
        /// The chance of each unit's coin, 0 to 1.
        sampling_rate: f64,
        /// How many units there are; at least 1.
        population: u64,
        /// The largest cohort; 1 to `population`.
        sample_max: u64,
    },
    /// All node sums of one binary tree over `steps` rounds, without restart.
    Tree {
        /// Noise of one node over clipping norm; at least 0.
        noise_multiplier: f64,
        /// Rounds, that is leaves; 1 to 2^32.
        steps: u64,
        /// In how many of these rounds one unit takes part at most; at least 1.
        participations_max: u64,
        /// The least difference between the numbers of two rounds a unit takes part in; at least 1 (each round).
        separation_min: u64,
    },
}

impl Mechanism {
    /// The noise over the clipping norm.
    pub fn noise_multiplier(&self) -> f64 {
        match *self {
            Self::Gaussian { noise_multiplier }
            | Self::PoissonGaussian { noise_multiplier, .. }
            | Self::WithoutReplacementGaussian { noise_multiplier, .. }
            | Self::TruncatedPoissonGaussian { noise_multiplier, .. }
            | Self::Tree { noise_multiplier, .. } => noise_multiplier,
        }
    }

    /// The same release for an adversary who knows which units were drawn: chance hides nothing from it, and what is left is
    /// the noise. It bounds the release for every adversary as long as the draw does not depend on the data.
    ///
    /// A cohort that is cut down may take another unit in for the one that leaves, so that the sum moves twice as far.
    #[must_use]
    pub fn with_known_cohort(self) -> Self {
        match self {
            Self::PoissonGaussian { noise_multiplier, .. }
            | Self::WithoutReplacementGaussian { noise_multiplier, .. } => {
                Self::Gaussian { noise_multiplier }
            }
            Self::TruncatedPoissonGaussian { noise_multiplier, .. } => {
                Self::Gaussian { noise_multiplier: noise_multiplier / 2.0 }
            }
            Self::Gaussian { .. } | Self::Tree { .. } => self,
        }
    }

    /// A name for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gaussian { .. } => "gaussian",
            Self::PoissonGaussian { .. } => "poisson-sampled gaussian",
            Self::WithoutReplacementGaussian { .. } => "gaussian over a fixed-size sample",
            Self::TruncatedPoissonGaussian { .. } => "gaussian over a truncated poisson sample",
            Self::Tree { .. } => "tree aggregation",
        }
    }

    fn check(&self) -> Result<(), EventError> {
        let noise_multiplier = self.noise_multiplier();
        if !(noise_multiplier >= 0.0 && noise_multiplier.is_finite()) {
            return Err(EventError::NoiseMultiplier(noise_multiplier));
        }
        match *self {
            Self::Gaussian { .. } => Ok(()),
            Self::PoissonGaussian { sampling_rate, .. } => check_rate(sampling_rate),
            Self::WithoutReplacementGaussian { population, sample, .. } => check_sample(population, sample),
            Self::TruncatedPoissonGaussian { sampling_rate, population, sample_max, .. } => {
                check_rate(sampling_rate)?;
                check_sample(population, sample_max)
            }
            Self::Tree { steps, participations_max, separation_min, .. } => {
                let in_range =
                    (1..=STEPS_MAX).contains(&steps) && participations_max >= 1 && separation_min >= 1;
                if in_range {
                    Ok(())
                } else {
                    Err(EventError::Tree { steps, participations_max, separation_min })
                }
            }
        }
    }
}

const STEPS_MAX: u64 = 1 << 32;

fn check_rate(sampling_rate: f64) -> Result<(), EventError> {
    if (0.0..=1.0).contains(&sampling_rate) { Ok(()) } else { Err(EventError::SamplingRate(sampling_rate)) }
}

fn check_sample(population: u64, sample: u64) -> Result<(), EventError> {
    if (1..=population).contains(&sample) { Ok(()) } else { Err(EventError::Sample { population, sample }) }
}

/// `count` releases made in the same way, one after another: one phase of a run. Always in range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Record", into = "Record")]
pub struct Event {
    mechanism: Mechanism,
    count: u64,
}

/// An event that cannot have happened.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// A noise multiplier that is negative, infinite or NaN.
    #[error(
        "a noise multiplier must be finite and at least 0, not {}; give the noise over the clipping norm",
        Figure(*.0)
    )]
    NoiseMultiplier(f64),
    /// A sampling rate outside 0 to 1.
    #[error("a sampling rate must lie between 0 and 1, not {}; give each client's chance to be asked", Figure(*.0))]
    SamplingRate(f64),
    /// A sample that is empty or larger than its population.
    #[error("a sample of {sample} from {population} is impossible; give a size between 1 and the population")]
    Sample {
        /// Units there are.
        population: u64,
        /// Units drawn.
        sample: u64,
    },
    /// A tree without rounds, participations or separation, or one that is too large.
    #[error(
        "a tree over {steps} rounds with at most {participations_max} participations, {separation_min} rounds apart, is \
         out of range; give 1 to 2^32 rounds, and at least 1 of the others"
    )]
    Tree {
        /// Rounds.
        steps: u64,
        /// Participations of one unit.
        participations_max: u64,
        /// Difference between two of its rounds.
        separation_min: u64,
    },
    /// No release at all.
    #[error("an event must count at least one release, not 0; leave out a phase that released nothing")]
    Count,
    /// Written by code that is newer, or no event.
    #[error(
        "event version {0} is unknown, this code reads version {EVENT_VERSION}; use the release that wrote it"
    )]
    Version(u32),
}

impl Event {
    /// `count` releases by `mechanism`.
    ///
    /// # Errors
    /// [`EventError`] when a parameter is out of range or `count` is 0.
    pub fn new(mechanism: Mechanism, count: u64) -> Result<Self, EventError> {
        mechanism.check()?;
        if count == 0 {
            return Err(EventError::Count);
        }
        Ok(Self { mechanism, count })
    }

    /// How each of the releases was made.
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// How many releases there were; at least 1.
    pub fn count(&self) -> u64 {
        self.count
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    mechanism: Mechanism,
    count: u64,
}

impl From<Event> for Record {
    fn from(event: Event) -> Self {
        Self { version: EVENT_VERSION, mechanism: event.mechanism, count: event.count }
    }
}

impl TryFrom<Record> for Event {
    type Error = EventError;

    fn try_from(record: Record) -> Result<Self, EventError> {
        if record.version != EVENT_VERSION {
            return Err(EventError::Version(record.version));
        }
        Self::new(record.mechanism, record.count)
    }
}

/// A question about a ledger that an accountant will not answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AccountingError {
    /// Delta outside the open interval from 0 to 1, or below what the accountant can resolve.
    #[error(
        "delta must be above {least:e} and below 1 for this accountant, not {}; give less than one over the population", Figure(*delta)
    )]
    Delta {
        /// What was asked for.
        delta: f64,
        /// What the accountant can resolve.
        least: f64,
    },
    /// The accountant has no valid bound for this mechanism under this relation.
    #[error(
        "{accountant} has no bound for the {mechanism} mechanism under {relation}; ask another accountant"
    )]
    Unsupported {
        /// Which accountant refuses.
        accountant: &'static str,
        /// The mechanism's name.
        mechanism: &'static str,
        /// The relation asked for.
        relation: Relation,
    },
    /// A parameter that is not an event's, out of its range.
    #[error("{name} is {value}, outside {range}; correct it")]
    Parameter {
        /// What it is.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_out_of_range_is_refused() {
        for noise_multiplier in [f64::NAN, f64::INFINITY, -1.0, -f64::MIN_POSITIVE] {
            let refused = Event::new(Mechanism::Gaussian { noise_multiplier }, 1);
            assert!(matches!(refused, Err(EventError::NoiseMultiplier(_))), "{noise_multiplier}");
        }
        for sampling_rate in [f64::NAN, f64::INFINITY, -0.1, 1.0 + f64::EPSILON] {
            let refused = Event::new(Mechanism::PoissonGaussian { noise_multiplier: 1.0, sampling_rate }, 1);
            assert!(matches!(refused, Err(EventError::SamplingRate(_))), "{sampling_rate}");
        }
        for (population, sample) in [(0, 0), (10, 0), (10, 11)] {
            let mechanism =
                Mechanism::WithoutReplacementGaussian { noise_multiplier: 1.0, population, sample };
            assert_eq!(Event::new(mechanism, 1), Err(EventError::Sample { population, sample }));
        }
        assert_eq!(Event::new(Mechanism::Gaussian { noise_multiplier: 1.0 }, 0), Err(EventError::Count));
    }

    #[test]
    fn an_event_survives_being_written_and_read() {
        let mechanism = Mechanism::TruncatedPoissonGaussian {
            noise_multiplier: 0.1 + 0.2,
            sampling_rate: 0.01,
            population: 10_000,
            sample_max: 150,
        };
        let event = Event::new(mechanism, 1_000).unwrap();
        let written = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&written).unwrap(), event);
    }

    #[test]
    fn an_event_of_another_version_or_out_of_range_is_not_read() {
        let good = r#"{"version":1,"mechanism":{"gaussian":{"noise_multiplier":2.0}},"count":3}"#;
        assert!(serde_json::from_str::<Event>(good).is_ok());
        for (from, to) in
            [("1,", "2,"), ("2.0", "-2.0"), ("3}", "0}"), ("3}", "3,\"q\":1}"), ("gaussian", "laplace")]
        {
            assert!(serde_json::from_str::<Event>(&good.replacen(from, to, 1)).is_err(), "{from} -> {to}");
        }
    }
}
