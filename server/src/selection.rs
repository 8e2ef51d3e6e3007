//! Which clients take part in a round.

use protocol::{ClientId, Purpose, Round, Seed};
use rand::seq::SliceRandom;

use crate::plan::CohortPlan;

/// Draws the cohort of `round` from the connected clients, which come in order of their names: uniform without
/// replacement, the same for the same seed whatever the order in which clients connected.
pub(crate) fn select(
    mut connected: Vec<ClientId>,
    plan: &CohortPlan,
    entropy: &Seed,
    round: Round,
) -> Vec<ClientId> {
    let size = plan.size_of(connected.len());
    let mut generator = entropy.derive(Purpose::Cohort, round, None).generator();
    let (chosen, _) = connected.partial_shuffle(&mut generator, size);
    let mut cohort = chosen.to_vec();
    cohort.sort_unstable();
    cohort
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::CohortSize;
    use std::collections::BTreeSet;

    #[test]
    fn cohorts_have_the_planned_size_differ_between_rounds_and_reach_everyone() {
        let clients: Vec<ClientId> = (0..20).map(|i| ClientId::new(&format!("c{i}")).unwrap()).collect();
        let plan = CohortPlan { size: CohortSize::Count(5), ..CohortPlan::default() };
        let seed = Seed::from_number(1);
        let draw = |round| select(clients.clone(), &plan, &seed, Round(round));
        assert_eq!(draw(1), draw(1));
        let seen: BTreeSet<ClientId> = (1..40).flat_map(draw).collect();
        assert!(draw(1).len() == 5 && draw(1) != draw(2) && seen.len() == 20);
    }
}
