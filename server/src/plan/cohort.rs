//! The table `[cohort]`: who takes part in a round, how long it waits, and when it is enough.

use std::time::Duration;

use privacy::counted;
use protocol::{COHORT_MAX, Positive, SpecError};
use serde::{Deserialize, Serialize};

use super::positive;
use crate::workflow::ClosePolicy;

/// Who takes part, as typed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CohortConfig {
    /// Clients that must be connected before a round opens.
    pub clients_min: usize,
    /// Clients a round, as a share of those connected; this or `count`.
    pub fraction: Option<f64>,
    /// Clients a round; this or `fraction`.
    pub count: Option<usize>,
    /// Updates without which a round does not count; by default `clients_min`, at most the cohort.
    pub quorum: Option<usize>,
    /// Seconds until a round closes without those that are missing.
    pub deadline_seconds: Positive,
    /// Seconds for which a round waits for a client whose connection is gone; until its deadline where it is left out.
    pub grace_seconds: Option<Positive>,
    /// How many times as many clients are asked as a round needs, from 1 to 10; it closes when as many as it needs have answered.
    pub oversample: Option<f64>,
    /// Rounds in a row without quorum after which the run fails.
    pub failures_max: u32,
}

impl Default for CohortConfig {
    fn default() -> Self {
        Self {
            clients_min: 1,
            fraction: None,
            count: None,
            quorum: None,
            deadline_seconds: positive(600.0),
            grace_seconds: None,
            oversample: None,
            failures_max: 10,
        }
    }
}

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CohortPlan {
    /// Clients that must be connected before a round opens.
    pub clients_min: usize,
    /// Clients a round.
    pub size: CohortSize,
    /// Updates without which the model does not move.
    pub quorum: usize,
    /// Time from the opening of a task until it closes.
    pub deadline: Duration,
    /// How long a task waits for a client whose connection is gone; until the deadline where there is none.
    pub grace: Option<Duration>,
    /// How many times as many clients are asked as a round needs, above 1; `None` asks those and waits for all of them.
    pub oversample: Option<f64>,
    /// Rounds in a row without quorum after which the run fails.
    pub failures_max: u32,
}

/// Clients a round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CohortSize {
    /// This share of those connected, rounded to the nearest, at least one.
    Fraction(f64),
    /// This many, or all when fewer are connected.
    Count(usize),
}

impl Default for CohortPlan {
    fn default() -> Self {
        CohortConfig::default().parse().expect("the defaults are consistent")
    }
}

impl CohortPlan {
    /// Clients that are asked in a round when `connected` are there.
    pub(crate) fn asked_of(&self, connected: usize) -> usize {
        let size = self.size_of(connected);
        let asked = self.oversample.map_or(size, |times| (size as f64 * times).ceil() as usize);
        asked.min(connected.max(size))
    }

    /// Clients that a round needs when `connected` are there.
    pub fn size_of(&self, connected: usize) -> usize {
        match self.size {
            CohortSize::Count(count) => count.min(connected),
            CohortSize::Fraction(share) => {
                let size = (share * connected as f64).round() as usize;
                size.clamp(1, connected.clamp(1, COHORT_MAX as usize))
            }
        }
    }

    /// When a step that was put to a round's cohort ends: with the last answer, or with the last that the round needs where more are asked.
    pub fn close(&self, connected: usize) -> ClosePolicy {
        self.oversample.map_or(ClosePolicy::All, |_| ClosePolicy::Target(self.size_of(connected)))
    }

    /// The most updates a round can hold.
    pub(super) fn cohort_max(&self) -> u64 {
        match self.size {
            CohortSize::Count(count) => count as u64,
            CohortSize::Fraction(_) => COHORT_MAX,
        }
    }
}

impl CohortConfig {
    /// Refuses what would keep a client that was drawn by secret chance out of a round, or decide by the cohort whether a
    /// round is released. How long a round waits (`deadline_seconds`) stays: who is late counts as a zero.
    pub(super) fn check_secret_sampling(&self) -> Result<(), SpecError> {
        let capped = "with poisson or fixed sampling a cohort is what chance draws, and capping it is not accounted for; \
                      leave this out and set the size by privacy.central.sampling";
        let quorum = "with poisson or fixed sampling every round is released, whoever answered: a quorum would choose the \
                      rounds by their cohorts, and the amplification by sampling is lost; leave this out, or take \
                      sampling = { availability = ... }";
        let surplus = "with poisson or fixed sampling everybody who is drawn counts, and leaving out the slowest is not accounted for; leave \
                       this out";
        let grace = "with poisson or fixed sampling a round that ends early would show that somebody who was drawn had gone; leave this out";
        let refused = [
            ("count", self.count.is_some(), capped),
            ("fraction", self.fraction.is_some(), capped),
            ("quorum", self.quorum.is_some(), quorum),
            ("oversample", self.oversample.is_some(), surplus),
            ("grace_seconds", self.grace_seconds.is_some(), grace),
        ];
        match refused.into_iter().find(|(_, is_typed, _)| *is_typed) {
            Some((key, _, message)) => Err(SpecError::new(format!("cohort.{key}"), message)),
            None => Ok(()),
        }
    }

    pub(super) fn parse(&self) -> Result<CohortPlan, SpecError> {
        let size = match (self.fraction, self.count) {
            (Some(_), Some(_)) => {
                return Err(SpecError::new("cohort.count", "give `count` or `fraction`, not both"));
            }
            (Some(share), None) if !(share > 0.0 && share <= 1.0) => {
                return Err(SpecError::new(
                    "cohort.fraction",
                    format!("{share} is not above 0 and at most 1"),
                ));
            }
            (_, Some(count)) if count == 0 || count as u64 > COHORT_MAX => {
                return Err(SpecError::new("cohort.count", format!("{count} is not from 1 to {COHORT_MAX}")));
            }
            (_, Some(count)) => CohortSize::Count(count),
            (share, None) => CohortSize::Fraction(share.unwrap_or(1.0)),
        };
        if self.clients_min == 0 {
            return Err(SpecError::new(
                "cohort.clients_min",
                "no round can open with 0 clients; give at least 1",
            ));
        }
        if self.failures_max == 0 {
            return Err(SpecError::new("cohort.failures_max", "0 allows no round at all; give at least 1"));
        }
        let waiting = |key: &str, seconds: Positive| {
            let message = || format!("{} seconds are longer than anything can wait", seconds.value());
            Duration::try_from_secs_f64(seconds.value()).map_err(|_| SpecError::new(key, message()))
        };
        let deadline = waiting("cohort.deadline_seconds", self.deadline_seconds)?;
        let grace = self.grace_seconds.map(|seconds| waiting("cohort.grace_seconds", seconds)).transpose()?;
        if let Some(times) = self.oversample
            && !(1.0..=10.0).contains(&times)
        {
            let message = format!("{times} is not from 1 to 10");
            return Err(SpecError::new("cohort.oversample", message));
        }
        if self.oversample.is_some() && size == CohortSize::Fraction(1.0) {
            let message = "a round takes everybody who is connected, so there is nobody more to ask; give `count`, or a `fraction` below 1";
            return Err(SpecError::new("cohort.oversample", message));
        }
        let mut plan = CohortPlan {
            clients_min: self.clients_min,
            size,
            quorum: 0,
            deadline,
            grace,
            oversample: self.oversample.filter(|times| *times > 1.0),
            failures_max: self.failures_max,
        };
        let smallest = plan.size_of(self.clients_min);
        plan.quorum = self.quorum.unwrap_or(smallest);
        if plan.quorum == 0 || plan.quorum > smallest {
            let message = format!(
                "a quorum of {} cannot be met by the smallest cohort, {smallest} of {}; give 1 to {smallest}",
                plan.quorum,
                counted(self.clients_min, "client")
            );
            return Err(SpecError::new("cohort.quorum", message));
        }
        Ok(plan)
    }
}
