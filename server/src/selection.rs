//! Which clients take part in a round.

use protocol::{ClientId, Purpose, Round, Seed};
use rand::Rng;
use rand::seq::SliceRandom;

use crate::plan::{CohortPlan, CohortSize};

/// Numbers from 0 on, to be drawn without replacement: a draw takes the time of what is drawn, not of what is there.
#[derive(Default)]
pub(crate) struct Sampler(Vec<u32>);

impl Sampler {
    /// Draws `size` of the numbers below `count`, uniformly; gives them in order.
    fn draw(&mut self, count: usize, size: usize, generator: &mut impl Rng) -> Vec<u32> {
        if self.0.len() != count {
            self.0 = (0u32..).take(count).collect();
        }
        let (chosen, _) = self.0.partial_shuffle(generator, size);
        let mut drawn = chosen.to_vec();
        // A shuffle only swaps with the end, and what it brought there from before is what was drawn. So everything is in
        // its place again once these are.
        let end = (0u32..).take(count).skip(count - drawn.len());
        for (place, number) in end.zip(&drawn) {
            self.0[*number as usize] = *number;
            self.0[place as usize] = place;
        }
        drawn.sort_unstable();
        drawn
    }
}

/// Draws the cohort of `round` from the connected clients, which come in order of their names: uniform without
/// replacement, the same for the same seed whatever the order in which clients connected.
pub(crate) fn select(
    connected: &[ClientId],
    plan: &CohortPlan,
    entropy: &Seed,
    round: Round,
    sampler: &mut Sampler,
) -> Vec<ClientId> {
    let size = plan.asked_of(connected.len());
    let mut generator = entropy.derive(Purpose::Cohort, round, None).generator();
    let drawn = sampler.draw(connected.len(), size, &mut generator);
    drawn.into_iter().map(|place| connected[place as usize].clone()).collect()
}

/// Flips a coin for every enrolled client: each takes part with probability `rate`, independently of all others and of
/// who is connected.
pub(crate) fn poisson_sample<'a>(
    enrolled: impl Iterator<Item = &'a ClientId>,
    rate: f64,
    entropy: &Seed,
    round: Round,
) -> Vec<ClientId> {
    let mut generator = entropy.derive(Purpose::Cohort, round, None).generator();
    // One coin a client, in order, so that whether others are enrolled is all that another cohort can come from.
    enrolled.filter(|_| generator.random_bool(rate)).cloned().collect()
}

/// Draws `sample` of the enrolled clients uniformly without replacement, whether or not they are connected.
pub(crate) fn draw(
    enrolled: &[ClientId],
    sample: u64,
    entropy: &Seed,
    round: Round,
    sampler: &mut Sampler,
) -> Vec<ClientId> {
    let plan = CohortPlan { size: CohortSize::Count(sample as usize), ..CohortPlan::default() };
    select(enrolled, &plan, entropy, round, sampler)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn cohorts_have_the_planned_size_differ_between_rounds_and_reach_everyone() {
        let clients: Vec<ClientId> = (0..20).map(|i| ClientId::new(&format!("c{i}")).unwrap()).collect();
        let plan = CohortPlan { size: CohortSize::Count(5), ..CohortPlan::default() };
        let seed = Seed::from_number(1);
        let draw = |round| select(&clients, &plan, &seed, Round(round), &mut Sampler::default());
        assert_eq!(draw(1), draw(1));
        let seen: BTreeSet<ClientId> = (1..40).flat_map(draw).collect();
        assert!(draw(1).len() == 5 && draw(1) != draw(2) && seen.len() == 20);
    }

    #[test]
    fn an_urn_that_was_drawn_from_is_as_good_as_a_new_one() {
        let (seed, mut sampler) = (Seed::from_number(3), Sampler::default());
        for round in 1..200 {
            let (count, size) = (1 + round as usize * 7 % 50, round as usize * 3 % 60);
            let mut generator = seed.derive(Purpose::Cohort, Round(round), None).generator();
            let again = sampler.draw(count, size, &mut generator.clone());
            assert_eq!(again, sampler.draw(count, size, &mut generator.clone()));
            let mut names: Vec<u32> = (0..count as u32).collect();
            let mut expected = names.partial_shuffle(&mut generator, size).0.to_vec();
            expected.sort_unstable();
            assert_eq!(again, expected);
            assert!(sampler.0.iter().copied().eq(0..count as u32), "{count} numbers, {size} drawn");
        }
    }

    #[test]
    fn a_coin_a_client_is_as_fair_as_its_rate_and_ignores_the_others() {
        let clients: Vec<ClientId> = (0..50).map(|i| ClientId::new(&format!("c{i:02}")).unwrap()).collect();
        let seed = Seed::from_number(2);
        let cohorts: Vec<Vec<ClientId>> =
            (1..=400).map(|round| poisson_sample(clients.iter(), 0.3, &seed, Round(round))).collect();
        // 20,000 coins of 0.3: six standard deviations are 389 (false alarm below 1e-8; the seed is fixed anyway).
        let heads: usize = cohorts.iter().map(Vec::len).sum();
        assert!(heads.abs_diff(6_000) < 389, "{heads}");
        // Sizes differ from round to round as a binomial's: variance 50 * 0.3 * 0.7 = 10.5, not 0.
        let spread = cohorts.iter().map(|cohort| (cohort.len() as f64 - 15.0).powi(2)).sum::<f64>() / 400.0;
        assert!((7.5..14.0).contains(&spread), "{spread}");
        let fewer = poisson_sample(clients[..20].iter(), 0.3, &seed, Round(1));
        let same: Vec<ClientId> =
            cohorts[0].iter().filter(|client| clients[..20].contains(client)).cloned().collect();
        assert_eq!(fewer, same);
    }
}
