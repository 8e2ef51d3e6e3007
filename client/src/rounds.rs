//! Which rounds of a run were trained, and how often each: asked at every task, so that neither an answer nor the memory may grow with a
//! run that is long. Rounds in a row take the room of one, and every question takes logarithmic time.

use std::collections::BTreeMap;

use protocol::Round;

/// Rounds, each as often as it was added and not removed again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rounds {
    /// The last round of each sequence without a gap, by its first.
    spans: BTreeMap<u32, u32>,
    /// How many times more than once, of those that are here more than once.
    repeated: BTreeMap<u32, u64>,
    distinct: u64,
}

impl Rounds {
    /// How many different rounds there are.
    pub(crate) fn distinct(&self) -> u64 {
        self.distinct
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.distinct == 0
    }

    pub(crate) fn contains(&self, round: Round) -> bool {
        self.span_of(round.0).is_some()
    }

    /// The highest.
    pub(crate) fn latest(&self) -> Option<Round> {
        self.spans.last_key_value().map(|(_, last)| Round(*last))
    }

    /// The lowest of those from `round` on.
    pub(crate) fn first_from(&self, round: Round) -> Option<Round> {
        if self.contains(round) {
            return Some(round);
        }
        self.spans.range(round.0..).next().map(|(first, _)| Round(*first))
    }

    pub(crate) fn add(&mut self, round: Round) {
        let Round(round) = round;
        if self.span_of(round).is_some() {
            *self.repeated.entry(round).or_default() += 1;
            return;
        }
        self.distinct += 1;
        let before = round.checked_sub(1).and_then(|before| self.span_of(before));
        let after = round.checked_add(1).and_then(|after| self.spans.remove(&after));
        let first = before.map_or(round, |(first, _)| first);
        self.spans.insert(first, after.unwrap_or(round));
    }

    /// Takes one `round` away; nothing happens where there is none.
    pub(crate) fn remove(&mut self, round: Round) {
        let Round(round) = round;
        let Some((first, last)) = self.span_of(round) else { return };
        if let Some(more) = self.repeated.get_mut(&round) {
            *more -= 1;
            if *more == 0 {
                self.repeated.remove(&round);
            }
            return;
        }
        self.distinct -= 1;
        self.spans.remove(&first);
        if first < round {
            self.spans.insert(first, round - 1);
        }
        if round < last {
            self.spans.insert(round + 1, last);
        }
    }

    /// The sequence that holds `round`.
    fn span_of(&self, round: u32) -> Option<(u32, u32)> {
        let (first, last) = self.spans.range(..=round).next_back()?;
        (round <= *last).then_some((*first, *last))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn rounds_in_a_row_are_the_same_set_as_rounds_one_by_one(
            steps in prop::collection::vec((any::<bool>(), 0_u32..12, any::<bool>()), 0..60),
        ) {
            let (mut rounds, mut plain) = (Rounds::default(), BTreeMap::<u32, u64>::new());
            for (adds, near, is_high) in steps {
                let round = if is_high { u32::MAX - near } else { near };
                if adds {
                    rounds.add(Round(round));
                    *plain.entry(round).or_default() += 1;
                } else {
                    rounds.remove(Round(round));
                    if let Some(times) = plain.get_mut(&round) {
                        *times -= 1;
                    }
                    plain.retain(|_, times| *times > 0);
                }
                prop_assert_eq!(rounds.distinct(), plain.len() as u64);
                prop_assert_eq!(rounds.is_empty(), plain.is_empty());
                prop_assert_eq!(rounds.latest(), plain.keys().next_back().map(|last| Round(*last)));
                for asked in (0..14).chain(u32::MAX - 14..=u32::MAX) {
                    prop_assert_eq!(rounds.contains(Round(asked)), plain.contains_key(&asked));
                    let from = plain.range(asked..).next().map(|(round, _)| Round(*round));
                    prop_assert_eq!(rounds.first_from(Round(asked)), from);
                }
            }
        }
    }

    #[test]
    fn a_long_run_takes_the_room_of_one_sequence() {
        let mut rounds = Rounds::default();
        (1..=100_000).for_each(|round| rounds.add(Round(round)));
        assert_eq!((rounds.spans.len(), rounds.distinct()), (1, 100_000));
    }
}
