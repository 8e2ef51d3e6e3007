//! What a site has trained before, as far as a policy asks: it is asked before every task, so that nothing is walked through then.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::{Round, RunId, Time};

use crate::rounds::Rounds;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A training that the site did or began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Participation {
    /// When it began.
    pub at: Time,
    /// The run.
    pub run: RunId,
    /// The round.
    pub round: Round,
}

/// What a site has trained before, over all servers. A question takes time logarithmic in the number of trainings; one of them takes
/// eight bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// When trainings began that were reserved, whatever came of them; ascending.
    attempts: Vec<Time>,
    /// Those for which records may have been read, by run.
    trained: BTreeMap<RunId, Rounds>,
}

impl History {
    /// Counts a training that begins, and for which records may be read.
    pub fn begin(&mut self, training: Participation) {
        self.attempt(training.at, 1);
        self.trained.entry(training.run).or_default().add(training.round);
    }

    /// Counts trainings that began at `at` and of which nothing else is known.
    pub fn attempt(&mut self, at: Time, count: usize) {
        // At the end, unless the clock has gone back.
        let place = self.attempts.partition_point(|before| *before <= at);
        self.attempts.splice(place..place, std::iter::repeat_n(at, count));
    }

    /// No record was read for a training of this round: it stays an attempt.
    pub(crate) fn end_unread(&mut self, run: RunId, round: Round) {
        let Some(rounds) = self.trained.get_mut(&run) else { return };
        rounds.remove(round);
        if rounds.is_empty() {
            self.trained.remove(&run);
        }
    }

    /// Whether records may have been read for a training of this round before.
    pub(crate) fn has_trained(&self, run: RunId, round: Round) -> bool {
        self.trained.get(&run).is_some_and(|rounds| rounds.contains(round))
    }

    /// Trainings that were begun.
    pub fn attempts(&self) -> usize {
        self.attempts.len()
    }

    /// Trainings that began less than a day before `now`. Those that a clock put into the future count.
    pub(crate) fn of_the_day(&self, now: Time) -> usize {
        self.attempts.len() - self.attempts.partition_point(|at| now - *at >= DAY)
    }

    /// How long before `now` the last training began; zero where a clock put it into the future, `None` without one.
    pub(crate) fn since_the_last(&self, now: Time) -> Option<Duration> {
        self.attempts.last().map(|at| now - *at)
    }

    /// How many rounds of `run` were trained, each once and without `round` itself: a round that is repeated is one round.
    pub(super) fn other_rounds(&self, run: RunId, round: Round) -> u64 {
        let count = |rounds: &Rounds| rounds.distinct() - u64::from(rounds.contains(round));
        self.trained.get(&run).map_or(0, count)
    }

    /// The first round of `run` that was trained fewer than `apart` rounds before or after `round`, which does not count itself.
    pub(super) fn round_near(&self, run: RunId, round: Round, apart: u32) -> Option<Round> {
        let rounds = self.trained.get(&run)?;
        let lowest = Round(round.0.saturating_sub(apart.checked_sub(1)?));
        let beyond = || rounds.first_from(Round(round.0.checked_add(1)?));
        let first = rounds.first_from(lowest).filter(|first| *first != round).or_else(beyond)?;
        (first.0.abs_diff(round.0) < apart).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_history_answers_as_a_walk_through_all_trainings_does(
            trainings in prop::collection::vec((0_u64..300_000, 0_u64..2, 0_u32..30, any::<bool>()), 0..40),
            now in 0_u64..300_000, run in 0_u64..2, round in 0_u32..30, apart in 0_u32..9,
        ) {
            let (now, run, round) = (Time::from_micros(now * 1_000_000), RunId(run), Round(round));
            let mut history = History::default();
            for (at, run, round, is_unread) in &trainings {
                let at = Time::from_micros(at * 1_000_000);
                history.begin(Participation { at, run: RunId(*run), round: Round(*round) });
                if *is_unread {
                    history.end_unread(RunId(*run), Round(*round));
                }
            }
            let ago: Vec<Duration> = trainings.iter().map(|one| now - Time::from_micros(one.0 * 1_000_000)).collect();
            prop_assert_eq!(history.attempts(), ago.len());
            prop_assert_eq!(history.of_the_day(now), ago.iter().filter(|ago| **ago < DAY).count());
            prop_assert_eq!(history.since_the_last(now), ago.iter().min().copied());
            let kept = trainings.iter().filter(|one| !one.3 && RunId(one.1) == run && Round(one.2) != round);
            let mut others: Vec<u32> = kept.map(|one| one.2).collect();
            others.sort_unstable();
            others.dedup();
            prop_assert_eq!(history.other_rounds(run, round), others.len() as u64);
            let near = others.iter().find(|other| other.abs_diff(round.0) < apart);
            prop_assert_eq!(history.round_near(run, round, apart), near.map(|near| Round(*near)));
        }
    }
}
