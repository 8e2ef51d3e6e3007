//! The guarantees of a plan as an accountant sees them: epsilon on the way, and where the budget ends.
//!
//! A budget is taken as untouched; what other runs have spent is in the books, and not in a plan.

use ::privacy::accounting::{self, Epsilon, Event, Mechanism, Relation};
use ::privacy::ledger::Unit;
use protocol::{CentralPrivacy, ExamplePrivacy, LocalPrivacy, Sampling};
use server::Plan;

/// One guarantee.
pub(in crate::cli) struct Promise {
    pub(in crate::cli) unit: Unit,
    /// The people behind the data, where runs share a budget.
    pub(super) population: Option<String>,
    pub(super) relation: Relation,
    pub(super) against: String,
    pub(in crate::cli) mechanism: String,
    pub(in crate::cli) delta: f64,
    /// Epsilon after the first, half of the rounds and all of them; empty where a plan alone does not say.
    pub(super) reached: Vec<Reached>,
    pub(in crate::cli) epsilon_max: f64,
    /// The first round for which the budget cannot pay.
    pub(super) refused_round: Option<u32>,
    /// Where it counts on secret sampling: what all rounds amount to against whoever sees who took part, and under which
    /// relation. The budget is not kept for that.
    pub(super) seen: Option<(Relation, Epsilon)>,
    /// In how many rounds a client may take part, where that is fewer than there are.
    pub(super) participations_max: Option<u32>,
}

/// Epsilon after some rounds.
pub(super) struct Reached {
    pub(super) rounds: u32,
    pub(super) epsilon: Epsilon,
}

impl Promise {
    /// Epsilon after all rounds, where a plan alone says.
    pub(in crate::cli) fn epsilon(&self) -> Option<Epsilon> {
        self.reached.last().map(|reached| reached.epsilon)
    }
}

/// What a plan promises; nothing where it has no `[privacy]`.
pub(in crate::cli) fn promises(plan: &Plan) -> Result<Vec<Promise>, String> {
    let (privacy, rounds) = (&plan.spec.privacy, plan.rounds);
    let mut promises = Vec::new();
    if let Some(central) = &privacy.central {
        promises.push(of_central(central, rounds)?);
    }
    if let Some(local) = &privacy.local {
        promises.push(of_local(local, rounds)?);
    }
    promises.extend(privacy.examples.as_ref().map(of_examples));
    Ok(promises)
}

fn of_central(central: &CentralPrivacy, rounds: u32) -> Result<Promise, String> {
    let events = |rounds: u32| central.events(rounds.into()).map_err(|error| error.to_string());
    let outlook = Outlook::over(rounds, central.epsilon_max.value(), &|rounds| {
        accounting::epsilon(&events(rounds)?, central.relation, central.delta)
            .map_err(|error| error.to_string())
    })?;
    let seen = if central.sampling.is_secret() {
        let known = |event: Event| Event::new(event.mechanism().with_known_cohort(), event.count());
        let events: Result<Vec<Event>, _> = events(rounds)?.into_iter().map(known).collect();
        let (events, relation) =
            (events.map_err(|error| error.to_string())?, central.relation.with_known_cohort());
        let epsilon = accounting::epsilon(&events, relation, central.delta);
        Some((relation, epsilon.map_err(|error| error.to_string())?))
    } else {
        None
    };
    let participations_max = match central.sampling {
        Sampling::Availability { participations_max, .. } if participations_max < rounds => {
            Some(participations_max)
        }
        Sampling::Availability { .. } | Sampling::Poisson { .. } | Sampling::Fixed { .. } => None,
    };
    Ok(Promise {
        unit: Unit::Client,
        participations_max,
        population: Some(central.population.clone()),
        relation: central.relation,
        against: server::against(central.sampling).to_owned(),
        mechanism: server::describe(central),
        delta: central.delta,
        reached: outlook.reached,
        epsilon_max: central.epsilon_max.value(),
        refused_round: outlook.refused_round,
        seen,
    })
}

/// A client that is asked in every round.
fn of_local(local: &LocalPrivacy, rounds: u32) -> Result<Promise, String> {
    let noise_multiplier = local.noise_multiplier.value();
    let outlook = Outlook::over(rounds, local.epsilon_max.value(), &|rounds| {
        let event = Event::new(Mechanism::Gaussian { noise_multiplier }, rounds.into())
            .map_err(|error| error.to_string())?;
        accounting::epsilon(&[event], Relation::ReplaceOne, local.delta).map_err(|error| error.to_string())
    })?;
    Ok(Promise {
        unit: Unit::Client,
        population: None,
        relation: Relation::ReplaceOne,
        against: "everybody, the server included, who sees what the client sends".to_owned(),
        mechanism: format!(
            "discrete Gaussian noise that each client adds to its own update; noise multiplier {noise_multiplier:.6}; \
             counted as if the client took part in every round"
        ),
        delta: local.delta,
        reached: outlook.reached,
        epsilon_max: local.epsilon_max.value(),
        refused_round: outlook.refused_round,
        participations_max: None,
        seen: None,
    })
}

/// What a site books. The number of its records is public or hidden, and the same in both cases of the comparison: a record is not added
/// or removed, but its gradients are there or zero.
fn of_examples(examples: &ExamplePrivacy) -> Promise {
    Promise {
        unit: Unit::Example,
        population: None,
        relation: Relation::ZeroOut,
        against: "everybody outside the site, the server included".to_owned(),
        mechanism: format!(
            "Gaussian noise in each gradient step of a site; noise multiplier {}; each record's gradient clipped to norm {}; \
             a site's number of records is hidden, unless its site.toml declares it (public_records)",
            examples.noise_multiplier.value(),
            examples.norm_max.value()
        ),
        delta: examples.delta,
        reached: Vec::new(),
        epsilon_max: examples.epsilon_max.value(),
        refused_round: None,
        participations_max: None,
        seen: None,
    }
}

struct Outlook {
    reached: Vec<Reached>,
    refused_round: Option<u32>,
}

impl Outlook {
    /// Looks ahead over `rounds`; `epsilon` says what a number of rounds amounts to, and never falls.
    fn over(
        rounds: u32,
        epsilon_max: f64,
        epsilon: &dyn Fn(u32) -> Result<Epsilon, String>,
    ) -> Result<Self, String> {
        let mut stops = vec![1, rounds.div_ceil(2), rounds];
        stops.dedup();
        let reach = |rounds: u32| Ok::<_, String>(Reached { rounds, epsilon: epsilon(rounds)? });
        let reached = stops.into_iter().map(reach).collect::<Result<Vec<_>, _>>()?;
        let is_refused = |rounds: u32| epsilon(rounds).map(|epsilon| epsilon.best() > epsilon_max);
        let mut refused_round = None;
        if reached.last().is_some_and(|last| last.epsilon.best() > epsilon_max) {
            // The budget pays for `paid` rounds and not for `refused`.
            let (mut paid, mut refused) = (0, rounds);
            while refused - paid > 1 {
                let middle = paid + (refused - paid) / 2;
                if is_refused(middle)? { refused = middle } else { paid = middle }
            }
            refused_round = Some(refused);
        }
        Ok(Self { reached, refused_round })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refused_round_is_the_first_whose_epsilon_is_above_the_budget() {
        let linear = |rounds: u32| Ok(Epsilon { rdp: Some(f64::from(rounds) * 0.1), pld: None });
        let refused = |rounds, most| Outlook::over(rounds, most, &linear).unwrap().refused_round;
        assert_eq!((refused(50, 0.05), refused(50, 1.05), refused(50, 4.95)), (Some(1), Some(11), Some(50)));
        assert_eq!((refused(50, 5.05), refused(1, 0.2), refused(1, 0.01)), (None, None, Some(1)));
        let stops = |rounds| {
            let reached = Outlook::over(rounds, 1.0, &linear).unwrap().reached;
            reached.iter().map(|reached| reached.rounds).collect::<Vec<_>>()
        };
        assert_eq!((stops(1), stops(2), stops(9)), (vec![1], vec![1, 2], vec![1, 5, 9]));
    }
}
