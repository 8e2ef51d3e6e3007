//! The book: what is paid, refused, given back, and found out.

use super::*;
use crate::accounting::{Mechanism, Relation, gaussian};
use crate::noise::NoiseSource;
use crate::{Encoded, Lattice, Noising, NormBound, Released, Sum, clip};

fn terms(epsilon_max: f64) -> Terms {
    Terms {
        population: "wards".into(),
        unit: Unit::Client,
        relation: Relation::ZeroOut,
        delta: 1e-5,
        epsilon_max,
    }
}

fn gaussian_charge(noise_multiplier: f64, at_most: Option<u64>) -> Charge {
    Charge { mechanism: Mechanism::Gaussian { noise_multiplier }, composition: Composition::Each { at_most } }
}

fn release() -> Release {
    Release { sha256: "ab".into(), software: "test".into(), norm_next: None }
}

/// Reserves and spends one round after the other until the budget refuses; the links, and the round that was refused.
fn exhaust(epsilon_max: f64, charge: &Charge) -> (Vec<Link>, u32) {
    let (mut ledger, first) = Ledger::found(terms(epsilon_max)).unwrap();
    let mut links = vec![first];
    for round in 1.. {
        match ledger.reserve("r", round, charge, 1) {
            Ok((permit, link)) => {
                links.push(link);
                links.push(ledger.spend(permit, release()).unwrap().1);
            }
            Err(ReserveError::Exhausted { link, .. }) => {
                links.push(*link);
                return (links, round);
            }
            Err(other) => panic!("{other}"),
        }
    }
    unreachable!("every budget is exhausted at last")
}

#[test]
fn counts_beyond_the_largest_number_neither_wrap_nor_panic() {
    let (mut ledger, opened) = Ledger::found(terms(8.0)).unwrap();
    let mut links = vec![opened];
    for noise_multiplier in [1.0, 1.0, 2.0] {
        links.extend(ledger.book_made("run", &gaussian_charge(noise_multiplier, None), u64::MAX).unwrap());
    }
    for book in [ledger, Ledger::replay(&links).unwrap()] {
        assert_eq!(book.releases(), u64::MAX);
        assert!(book.run_charges().iter().all(|charged| charged.releases == u64::MAX));
        assert!(!book.epsilon().is_ok_and(|epsilon| epsilon.best() <= 8.0));
    }
}

#[test]
fn the_budget_refuses_exactly_the_round_that_the_exact_formula_says() {
    let noise = 5.0;
    for epsilon_max in [0.9, 2.0, 4.4] {
        let (_, refused) = exhaust(epsilon_max, &gaussian_charge(noise, None));
        // Balle, Wang 2018: T Gaussian releases are one with noise / sqrt(T).
        let of = |rounds: u32| gaussian::epsilon(noise / f64::from(rounds).sqrt(), 1e-5).unwrap();
        assert!(of(refused - 1) <= epsilon_max && of(refused) > epsilon_max, "{refused} at {epsilon_max}");
    }
}

#[test]
fn opening_the_book_again_changes_nothing() {
    let (links, refused) = exhaust(2.0, &gaussian_charge(5.0, None));
    let mut again = Ledger::replay(&links).unwrap();
    assert_eq!(again.releases(), u64::from(refused) - 1);
    let charge = gaussian_charge(5.0, None);
    let refusal = again.reserve("r", refused, &charge, 1).unwrap_err();
    assert!(matches!(refusal, ReserveError::Exhausted { .. }), "{refusal}");
    assert!(again.reserve("another run", 1, &charge, 1).is_err(), "a new run does not fill the budget");
}

#[test]
fn limited_participation_costs_no_more_than_the_limit() {
    let (mut ledger, _) = Ledger::found(terms(2.0)).unwrap();
    let charge = gaussian_charge(5.0, Some(3));
    let mut last = 0.0;
    for round in 1..=50 {
        let (permit, _) = ledger.reserve("r", round, &charge, 1).unwrap();
        last = ledger.spend(permit, release()).unwrap().0.best();
    }
    let three = gaussian::epsilon(5.0 / 3f64.sqrt(), 1e-5).unwrap();
    assert!((last - three).abs() < 2e-3 && last >= three, "{last} {three}");
}

#[test]
fn a_correlated_mechanism_is_paid_once_and_before_the_first_release() {
    let (mut ledger, _) = Ledger::found(terms(2.0)).unwrap();
    let tree =
        Mechanism::Tree { noise_multiplier: 20.0, steps: 64, participations_max: 1, separation_min: 1 };
    let charge = Charge { mechanism: tree, composition: Composition::Whole };
    let mut reached = Vec::new();
    for round in 1..=64 {
        let (permit, _) = ledger.reserve("r", round, &charge, 1).unwrap();
        reached.push(ledger.spend(permit, release()).unwrap().0.best());
    }
    assert!(reached.iter().all(|epsilon| *epsilon == reached[0] && *epsilon > 0.4), "{reached:?}");
}

#[test]
fn a_reservation_counts_until_it_is_cancelled() {
    let (mut ledger, first) = Ledger::found(terms(4.4)).unwrap();
    let charge = gaussian_charge(1.0, None);
    let (permit, reserved) = ledger.reserve("r", 1, &charge, 1).unwrap();
    assert!(ledger.reserve("other", 1, &charge, 1).is_err());
    let cancelled = ledger.cancel(permit).unwrap();
    assert_eq!(ledger.events(), []);
    assert!(ledger.reserve("other", 1, &charge, 1).is_ok());
    // The refusal in between is a record of its own.
    let links = [first.clone(), reserved.clone(), cancelled];
    assert!(Ledger::replay(&links).is_err());
    let mut crashed = Ledger::replay([&first, &reserved]).unwrap();
    assert_eq!((crashed.open_reservations().len(), crashed.events().len()), (1, 1));
    assert_eq!(crashed.settle().len(), 1);
    assert_eq!((crashed.open_reservations().len(), crashed.events().len()), (0, 0));
}

#[test]
fn any_changed_removed_or_exchanged_record_is_found() {
    let (links, _) = exhaust(0.9, &gaussian_charge(5.0, None));
    let text: Vec<String> = links.iter().map(|link| serde_json::to_string(link).unwrap()).collect();
    for (at, line) in text.iter().enumerate() {
        for place in 0..line.len() {
            let mut bytes = line.clone().into_bytes();
            bytes[place] ^= 1;
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            let Ok(changed) = serde_json::from_str::<Link>(&changed) else { continue };
            let mut links = links.clone();
            links[at] = changed;
            assert!(Ledger::replay(&links).is_err(), "record {at}, byte {place}");
        }
    }
    assert!(Ledger::replay(&links[1..]).is_err());
    assert!(Ledger::replay([]).is_err());
}

#[test]
fn a_spending_that_was_never_reserved_is_a_contradiction() {
    let (mut one, first) = Ledger::found(terms(9.0)).unwrap();
    let (mut other, _) = Ledger::found(terms(9.0)).unwrap();
    let (permit, _) = other.reserve("r", 1, &gaussian_charge(5.0, None), 1).unwrap();
    assert!(matches!(one.spend(permit, release()), Err(LedgerError::Contradiction { .. })));
    assert_eq!(one, Ledger::replay([&first]).unwrap(), "what failed has left no trace");
}

#[test]
fn a_budget_is_not_changed_afterwards() {
    let (ledger, _) = Ledger::found(terms(2.0)).unwrap();
    assert!(ledger.agree(&terms(2.0)).is_ok());
    let error = ledger.agree(&terms(3.0)).unwrap_err().to_string();
    assert!(
        error.contains("`wards`") && error.contains("epsilon 2") && error.contains("epsilon 3"),
        "{error}"
    );
    for bad in [0.0, f64::NAN, f64::INFINITY, -1.0] {
        assert!(Ledger::found(terms(bad)).is_err(), "{bad}");
    }
}

#[test]
fn charges_that_buy_nothing_are_refused() {
    let (mut ledger, _) = Ledger::found(terms(2.0)).unwrap();
    assert!(matches!(
        ledger.reserve("r", 1, &gaussian_charge(0.0, None), 1),
        Err(ReserveError::Charge { .. })
    ));
    assert!(matches!(
        ledger.reserve("r", 1, &gaussian_charge(1.0, None), 0),
        Err(ReserveError::Charge { .. })
    ));
}

fn a_sum(lattice: &Lattice) -> Sum {
    let mut sum = Sum::new(lattice);
    for value in [0.5, -0.25] {
        let clipped = clip(vec![value; lattice.dimension()], lattice.bound()).unwrap();
        sum.add(&Encoded::encode(&clipped, lattice.weigh(1), lattice).unwrap()).unwrap();
    }
    sum
}

#[test]
fn a_permit_pays_for_as_many_releases_as_were_reserved() {
    let lattice = Lattice::plan(NormBound::new(1.0).unwrap(), 10, 1, 3).unwrap();
    let (mut ledger, _) = Ledger::found(terms(9.0)).unwrap();
    let (mut permit, _) = ledger.reserve("r", 1, &gaussian_charge(5.0, None), 2).unwrap();
    let mut entropy = || Ok(NoiseSource::insecure([3; 32]));
    let noising = Noising::new(2.0);
    for _ in 0..2 {
        assert!(Released::noised(a_sum(&lattice), &mut permit, &noising, &mut entropy).is_ok());
    }
    let spent = Released::noised(a_sum(&lattice), &mut permit, &noising, &mut entropy);
    assert!(spent.is_err_and(|error| error.to_string().contains("for 2 releases")));
    // What was noised can no longer be cancelled, and its record says that the noise was a test's.
    let permit = ledger.cancel(permit).unwrap_err();
    let (_, link) = ledger.spend(*permit, release()).unwrap();
    assert!(link.record.get().contains("insecure"), "{}", link.record);
}

#[test]
fn without_entropy_nothing_is_released() {
    let lattice = Lattice::plan(NormBound::new(1.0).unwrap(), 10, 1, 3).unwrap();
    let (mut ledger, _) = Ledger::found(terms(9.0)).unwrap();
    let (mut permit, _) = ledger.reserve("r", 1, &gaussian_charge(5.0, None), 1).unwrap();
    let refused = Released::noised(
        a_sum(&lattice),
        &mut permit,
        &Noising::new(2.0),
        &mut NoiseSource::from_failing_entropy,
    );
    assert!(matches!(refused, Err(crate::ReleaseError::Entropy(_))));
}

#[test]
fn the_mean_is_divided_by_the_planned_number_and_not_by_the_one_that_came() {
    let lattice = Lattice::plan(NormBound::new(1.0).unwrap(), 10, 1, 1).unwrap();
    let (mut ledger, _) = Ledger::found(terms(9.0)).unwrap();
    let (mut permit, _) = ledger.reserve("r", 1, &gaussian_charge(5.0, None), 2).unwrap();
    // The same seed gives the same noise to a full and to an empty sum: their difference is what came, over 8.
    let mut mean = |sum: Sum| {
        let mut entropy = || Ok(NoiseSource::insecure([3; 32]));
        let released = Released::noised(sum, &mut permit, &Noising::new(8.0), &mut entropy).unwrap();
        released.mean().next().unwrap()
    };
    let difference = mean(a_sum(&lattice)) - mean(Sum::new(&lattice));
    assert!((difference - 0.25 / 8.0).abs() < 1e-8, "{difference}");
}

#[test]
fn updates_whose_norms_nobody_could_check_are_never_noised_centrally() {
    let bound = NormBound::new(1.0).unwrap();
    let lattice = Lattice::plan_noised(bound, 10, 1.0, 3).unwrap();
    let (mut ledger, _) = Ledger::found(terms(9.0)).unwrap();
    let (mut permit, _) = ledger.reserve("r", 1, &gaussian_charge(5.0, None), 1).unwrap();
    let mut entropy = || Ok(NoiseSource::insecure([3; 32]));
    let refused = Released::noised(Sum::new(&lattice), &mut permit, &Noising::new(2.0), &mut entropy);
    assert_eq!(refused.err(), Some(crate::ReleaseError::LocallyNoised));
    assert_eq!(permit.left(), 1);
}

#[test]
fn a_record_names_the_number_of_layers_and_one_from_before_layers_is_still_read() {
    let mut entropy = || Ok(NoiseSource::insecure([3; 32]));
    let (mut ledger, _) = Ledger::found(terms(9.0)).unwrap();
    let mut spend = |lattice: &Lattice, round| {
        let (mut permit, _) = ledger.reserve("r", round, &gaussian_charge(5.0, None), 1).unwrap();
        Released::noised(Sum::new(lattice), &mut permit, &Noising::new(2.0), &mut entropy).unwrap();
        ledger.spend(permit, release()).unwrap().1
    };
    let bound = NormBound::new(1.0).unwrap();
    let layered = spend(&Lattice::layered(bound, 10, 1, &[2, 1]).unwrap(), 1);
    let flat = spend(&Lattice::plan(bound, 10, 1, 3).unwrap(), 2);
    assert!(!flat.record.get().contains("layers"), "{}", flat.record);
    let noised = |link: &Link| match link.read().unwrap() {
        Record::Spent { noised: Some(noised), .. } => noised,
        other => panic!("{other:?}"),
    };
    assert_eq!((noised(&layered).layers, noised(&flat).layers), (Some(2), None));
    for link in [&layered, &flat] {
        let noised = noised(link);
        assert!(noised.sigma.value() >= 5.0 * noised.sensitivity as f64);
    }
}

const SECRET: Conduct = Conduct { cohorts: Cohorts::Secret, metrics: SiteMetrics::Hidden };
const SEEDED: Conduct = Conduct { cohorts: Cohorts::Known, metrics: SiteMetrics::Hidden };

fn poisson(noise_multiplier: f64, sampling_rate: f64) -> Charge {
    let mechanism = Mechanism::PoissonGaussian { noise_multiplier, sampling_rate };
    Charge { mechanism, composition: Composition::Each { at_most: None } }
}

/// Spends `rounds` releases of `run`.
fn spend(ledger: &mut Ledger, links: &mut Vec<Link>, run: &str, charge: &Charge, rounds: u32) {
    for round in 1..=rounds {
        let (permit, reserved) = ledger.reserve(run, round, charge, 1).unwrap();
        links.extend([reserved, ledger.spend(permit, release()).unwrap().1]);
    }
}

fn gaussian_event(noise_multiplier: f64, count: u64) -> Event {
    Event::new(Mechanism::Gaussian { noise_multiplier }, count).unwrap()
}

#[test]
fn sampling_is_counted_only_where_the_cohorts_are_declared_secret() {
    let charge = poisson(2.0, 0.1);
    for (declared, sampled) in [(None, false), (Some(SEEDED), false), (Some(SECRET), true)] {
        let (mut ledger, first) = Ledger::found(terms(99.0)).unwrap();
        let mut links = vec![first];
        links.extend(declared.and_then(|conduct| ledger.declare("r", conduct)));
        spend(&mut ledger, &mut links, "r", &charge, 5);
        let counted = if sampled { charge.event(5).unwrap() } else { gaussian_event(2.0, 5) };
        assert_eq!(ledger.events(), [counted], "{declared:?}");
        assert_eq!(ledger.events_with_known_cohorts(), [gaussian_event(2.0, 5)]);
        assert_eq!(Ledger::replay(&links).unwrap().events(), ledger.events(), "a restart changes nothing");
    }
}

#[test]
fn what_was_known_once_is_not_declared_secret_again() {
    let (mut ledger, first) = Ledger::found(terms(99.0)).unwrap();
    let mut links = vec![first];
    links.extend(ledger.declare("r", SECRET));
    spend(&mut ledger, &mut links, "r", &poisson(2.0, 0.1), 3);
    let sampled = ledger.epsilon().unwrap().best();
    assert!(ledger.declare("r", SECRET).is_none(), "nothing new");
    links.extend(ledger.declare("r", SEEDED));
    assert!(ledger.declare("r", SECRET).is_none());
    let known = ledger.epsilon().unwrap().best();
    // Three releases of noise 2 are one of 2 / sqrt(3).
    let exact = gaussian::epsilon(2.0 / 3f64.sqrt(), 1e-5).unwrap();
    assert!(known >= exact && known <= exact * 1.01 && sampled < exact / 2.0, "{sampled} {known} {exact}");
    let told = Conduct { metrics: SiteMetrics::Told, ..SECRET };
    links.extend(ledger.declare("r", told));
    assert_eq!(ledger.conduct("r"), Some(Conduct { metrics: SiteMetrics::Told, ..SEEDED }));
    assert_eq!(Ledger::replay(&links).unwrap().conduct("r"), ledger.conduct("r"));
}

#[test]
fn a_seeded_run_takes_from_the_budget_of_the_real_ones_what_it_really_costs() {
    // At rate 1 the budget pays for one release of noise 2 and not for two; sampled it would pay for dozens.
    let budget = gaussian::epsilon(2.0 / 1.2, 1e-5).unwrap();
    let (mut ledger, _) = Ledger::found(terms(budget)).unwrap();
    let _ = ledger.declare("seeded", SEEDED);
    let _ = ledger.declare("real", SECRET);
    spend(&mut ledger, &mut Vec::new(), "seeded", &poisson(2.0, 0.01), 1);
    assert!(matches!(
        ledger.reserve("seeded", 2, &poisson(2.0, 0.01), 1),
        Err(ReserveError::Exhausted { .. })
    ));
    assert!(ledger.reserve("real", 1, &poisson(2.0, 0.01), 1).is_ok());
}

#[test]
fn who_sees_the_cohorts_pays_no_attention_to_chance_under_any_relation() {
    let fixed = Mechanism::WithoutReplacementGaussian { noise_multiplier: 3.0, population: 100, sample: 5 };
    let fixed = Charge { mechanism: fixed, composition: Composition::Each { at_most: None } };
    for (relation, left, charge) in [
        (Relation::ZeroOut, Relation::ZeroOut, poisson(3.0, 0.05)),
        (Relation::AddOrRemoveOne, Relation::ZeroOut, poisson(3.0, 0.05)),
        (Relation::ReplaceOne, Relation::ReplaceOne, fixed),
    ] {
        let (mut ledger, _) = Ledger::found(Terms { relation, ..terms(999.0) }).unwrap();
        let _ = ledger.declare("r", SECRET);
        spend(&mut ledger, &mut Vec::new(), "r", &charge, 4);
        let (found, epsilon) = ledger.epsilon_with_known_cohorts().unwrap();
        // An exchange moves the sum by twice the norm.
        let exact = gaussian::epsilon(3.0 / relation.sensitivity() / 2.0, 1e-5).unwrap();
        assert_eq!(found, left);
        assert!(epsilon.best() >= exact && epsilon.best() <= exact * 1.01, "{relation}: {epsilon:?} {exact}");
        assert!(ledger.epsilon().unwrap().best() < exact, "{relation}");
    }
}

#[test]
fn a_site_s_draws_among_its_own_records_need_no_declaration() {
    let (mut ledger, _) = Ledger::found(Terms { unit: Unit::Example, ..terms(9.0) }).unwrap();
    spend(&mut ledger, &mut Vec::new(), "r", &poisson(2.0, 0.1), 2);
    assert_eq!(ledger.events(), [poisson(2.0, 0.1).event(2).unwrap()]);
}

#[test]
fn votes_are_noised_on_a_lattice_of_their_own() {
    let lattice = Lattice::plan(NormBound::new(1.0).unwrap(), 10, 1, 1).unwrap();
    let (mut ledger, _) = Ledger::found(terms(99.0)).unwrap();
    for count_noise in [0.55, 0.7, 5.0] {
        let (mut permit, _) = ledger.reserve("r", 1, &gaussian_charge(1.0, None), 1).unwrap();
        let mut seed = 0;
        let mut entropy = || {
            seed += 1;
            Ok(NoiseSource::insecure([seed; 32]))
        };
        let noising = Noising::new(2.0).with_votes(count_noise);
        let released = Released::noised(a_sum(&lattice), &mut permit, &noising, &mut entropy).unwrap();
        // Whole votes would tell with what noise they cannot have come about.
        assert!(released.votes().unwrap().fract() != 0.0);
        let (_, link) = ledger.spend(permit, release()).unwrap();
        let Record::Spent { noised: Some(noised), .. } = link.read().unwrap() else { panic!() };
        let sigma = noised.vote_sigma.unwrap();
        assert_eq!(sigma.parts().1, 1 << 20);
        assert!(sigma.value() >= 2.0 * count_noise && sigma.value() < 2.0 * count_noise + 1e-5);
    }
}

#[test]
fn no_book_is_opened_on_a_delta_that_promises_nothing_and_one_that_was_is_read() {
    for delta in [0.011, 0.1, 0.9] {
        let terms = Terms { delta, ..terms(2.0) };
        assert!(Ledger::found(terms.clone()).is_err(), "{delta}");
        let mut chain = Chain::new();
        let link = chain.append(&Record::Opened { version: LEDGER_VERSION, terms });
        assert!(Ledger::replay([&link]).is_ok(), "{delta}");
    }
}
