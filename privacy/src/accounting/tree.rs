//! How far one unit can move all the node sums of a binary tree over rounds.
//!
//! Kairouz, McMahan, Song, Thakkar, Thakurta, Xu, "Practical and Private (Deep) Learning without Sampling or Shuffling"
//! (2021), section 4 and appendix D. Rounds are leaves; every complete node holds the sum of its leaves and noise of
//! its own. A unit in rounds i, j, ... adds its count to each node over them, so the squared sensitivity is the sum
//! over the complete nodes of the squared number of its rounds below. This file finds the worst admissible schedule.
//!
//! It covers trees that are never restarted. It refuses schedules whose search would take unreasonably long rather
//! than guess.

use std::collections::BTreeMap;

use super::AccountingError;

/// Above this many elementary steps the search is refused.
const WORK_MAX: u64 = 10_000_000;

/// The number of complete nodes over a leaf, at most: the smallest integer not below log2(`steps` + 1).
pub fn depth(steps: u64) -> u32 {
    u64::BITS - steps.leading_zeros()
}

/// The largest possible sum over all complete nodes of the squared number of one unit's rounds below the node, when it
/// takes part in at most `participations_max` of `steps` rounds whose numbers differ by at least `separation_min`.
///
/// # Errors
/// [`AccountingError::Parameter`] when the schedules are too many to search.
pub fn sensitivity_squared(
    steps: u64,
    participations_max: u64,
    separation_min: u64,
) -> Result<f64, AccountingError> {
    let separation = separation_min.max(1);
    if steps == 0 || participations_max == 0 {
        return Ok(0.0);
    }
    let most = participations_max.min((steps - 1) / separation + 1);
    if most == 1 {
        return Ok(f64::from(depth(steps)));
    }
    if separation == 1 && most == steps {
        return Ok(every_round(steps));
    }
    let work = most
        .saturating_mul(most)
        .saturating_mul(u64::from(depth(steps)))
        .saturating_mul(separation.min(steps));
    if work > WORK_MAX {
        let (name, range) = (
            "the work to find a tree's worst schedule",
            "1e7 steps; use fewer participations, or a smaller separation of them",
        );
        return Err(AccountingError::Parameter { name, value: work as f64, range });
    }
    let mut search = Search { steps, separation, known: BTreeMap::new() };
    let best =
        (1..=most).flat_map(|count| search.node(depth(steps), 0, 0, count)).map(|(value, _)| value).max();
    Ok(best.unwrap_or(0) as f64)
}

/// A unit in every round: a node of size s holds s of them.
fn every_round(steps: u64) -> f64 {
    (0..depth(steps)).map(|level| (steps >> level) as f64 * 4.0_f64.powi(level as i32)).sum()
}

/// Schedules inside one node that are worth keeping: a larger sum, or an earlier last round. (sum, last round.)
type Front = Vec<(u64, u64)>;

struct Search {
    steps: u64,
    separation: u64,
    /// Fronts by level, room (only the last node of a level can be incomplete), first allowed round within the node,
    /// and count.
    known: BTreeMap<(u32, u64, u64, u64), Front>,
}

impl Search {
    /// The front of the node of size 2^`level` that begins at round `start`, with exactly `count` rounds in it, the first
    /// of them not before `first` (counted from the node's start).
    fn node(&mut self, level: u32, start: u64, first: u64, count: u64) -> Front {
        let size = 1_u64 << level;
        let room = size.min(self.steps.saturating_sub(start));
        if count == 0 {
            return vec![(0, 0)];
        }
        if first.saturating_add((count - 1).saturating_mul(self.separation)) >= room {
            return Vec::new();
        }
        if count == 1 && room == size {
            return vec![(u64::from(level) + 1, first)];
        }
        let key = (level, room, first, count);
        if let Some(front) = self.known.get(&key) {
            return front.clone();
        }
        let own = if room == size { count * count } else { 0 };
        let front = self.split(level, start, first, count, own);
        self.known.insert(key, front.clone());
        front
    }

    /// Every way to share `count` rounds among the two halves; `own` is what the node itself adds.
    fn split(&mut self, level: u32, start: u64, first: u64, count: u64, own: u64) -> Front {
        let half = 1_u64 << (level - 1);
        let mut found = Front::new();
        for right in 0..=count {
            for (sum, last) in self.node(level - 1, start, first, count - right) {
                let next = if right == count { first } else { last + self.separation };
                for (more, end) in self.node(level - 1, start + half, next.saturating_sub(half), right) {
                    found.push((own + sum + more, if right == 0 { last } else { half + end }));
                }
            }
        }
        keep_best(found)
    }
}

fn keep_best(mut found: Front) -> Front {
    found.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut kept = Front::new();
    for (sum, last) in found {
        if kept.last().is_none_or(|best| last < best.1) {
            kept.push((sum, last));
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All schedules, one by one.
    fn brute(steps: u64, participations_max: u64, separation_min: u64) -> u64 {
        fn extend(rounds: &mut Vec<u64>, next: u64, limits: (u64, u64, u64)) -> u64 {
            let (steps, most, separation) = limits;
            let mut best = nodes(rounds, steps);
            if (rounds.len() as u64) < most {
                for round in next..steps {
                    rounds.push(round);
                    best = best.max(extend(rounds, round + separation, limits));
                    rounds.pop();
                }
            }
            best
        }
        fn nodes(rounds: &[u64], steps: u64) -> u64 {
            let mut sum = 0;
            for level in 0..depth(steps) {
                for node in 0..steps >> level {
                    let below = rounds.iter().filter(|round| **round >> level == node).count() as u64;
                    sum += below * below;
                }
            }
            sum
        }
        extend(&mut Vec::new(), 0, (steps, participations_max, separation_min))
    }

    #[test]
    fn the_search_finds_what_trying_everything_finds() {
        for steps in 1..=21 {
            for participations_max in 1..=5 {
                for separation_min in 1..=8 {
                    let found = sensitivity_squared(steps, participations_max, separation_min).unwrap();
                    let wanted = brute(steps, participations_max, separation_min);
                    assert_eq!(found, wanted as f64, "{steps} {participations_max} {separation_min}");
                }
            }
        }
    }

    #[test]
    fn a_unit_in_every_round_fills_every_node() {
        for steps in [1, 2, 3, 7, 16] {
            assert_eq!(sensitivity_squared(steps, u64::MAX, 1).unwrap(), brute(steps, steps, 1) as f64);
        }
    }

    #[test]
    fn a_search_without_end_is_refused() {
        assert!(sensitivity_squared(1 << 32, 1 << 20, 2).is_err());
        assert_eq!(sensitivity_squared(1 << 32, 1, 1).unwrap(), 33.0);
    }
}
