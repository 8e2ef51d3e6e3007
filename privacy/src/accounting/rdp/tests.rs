//! The promises of the Rényi accountant that no reference value can make: order, bounds and refusals.

use proptest::prelude::*;

use super::*;

fn poisson(noise_multiplier: f64, sampling_rate: f64, count: u64) -> Event {
    Event::new(Mechanism::PoissonGaussian { noise_multiplier, sampling_rate }, count).unwrap()
}

fn fixed(noise_multiplier: f64, population: u64, sample: u64) -> Event {
    Event::new(Mechanism::WithoutReplacementGaussian { noise_multiplier, population, sample }, 10).unwrap()
}

fn add_or_remove(event: Event, delta: f64) -> f64 {
    epsilon(&[event], Relation::AddOrRemoveOne, delta).unwrap()
}

#[test]
fn fractional_orders_are_never_below_the_convex_curve() {
    for (noise, rate) in [(0.3, 0.01), (1.0, 1e-4), (1.0, 0.5), (2.0, 0.99), (8.0, 0.2), (50.0, 0.5)] {
        let moment = |order: f64| (order - 1.0) * sampled::divergence(noise, rate, order);
        for whole in [1.0, 2.0, 5.0, 9.0] {
            let (high, next) = (moment(whole + 1.0), moment(whole + 2.0));
            for tenth in (1..10).map(|tenth| f64::from(tenth) / 10.0) {
                let now = moment(whole + tenth);
                let beyond = high - (1.0 - tenth) * (next - high);
                assert!(now > 0.0 && now >= beyond, "{noise} {rate} {whole} + {tenth}: {now} below {beyond}");
            }
        }
    }
}

#[test]
fn a_rare_sample_is_never_free() {
    for rate in [1e-4, 1e-8, 1e-12, 1e-100] {
        for order in [1.1, 2.0, 5.5, 64.0] {
            let found = sampled::divergence(1.0, rate, order);
            // To first order, for small moments: order/2 rate^2 (e - 1).
            assert!(found > 0.5 * order * rate * rate, "{rate} {order}: {found}");
        }
    }
}

#[test]
fn no_noise_has_no_bound() {
    for noise in [0.0, 1e-200, 1e-160] {
        assert_eq!(add_or_remove(poisson(noise, 0.1, 1), 1e-5), f64::INFINITY);
        assert_eq!(
            add_or_remove(poisson(noise, 0.0, 1), 1e-5),
            if noise == 0.0 { f64::INFINITY } else { 0.0 }
        );
        let replaced = epsilon(&[fixed(noise, 100, 10)], Relation::ReplaceOne, 1e-5);
        assert_eq!(replaced.unwrap(), f64::INFINITY);
    }
}

#[test]
fn everyone_sampled_is_no_sampling() {
    let plain = Event::new(Mechanism::Gaussian { noise_multiplier: 4.0 }, 10).unwrap();
    for relation in [Relation::AddOrRemoveOne, Relation::ReplaceOne, Relation::ZeroOut] {
        let wanted = epsilon(&[plain], relation, 1e-6).unwrap();
        assert_eq!(epsilon(&[poisson(4.0, 1.0, 10)], relation, 1e-6).unwrap(), wanted);
    }
    let fixed = epsilon(&[fixed(4.0, 50, 50)], Relation::ReplaceOne, 1e-6).unwrap();
    assert_eq!(fixed, epsilon(&[plain], Relation::ReplaceOne, 1e-6).unwrap());
}

#[test]
fn what_has_no_formula_is_refused() {
    let cut = Mechanism::TruncatedPoissonGaussian {
        noise_multiplier: 1.0,
        sampling_rate: 0.1,
        population: 100,
        sample_max: 20,
    };
    let tree = Mechanism::Tree { noise_multiplier: 1.0, steps: 8, participations_max: 1, separation_min: 1 };
    for (event, relation) in [
        (poisson(1.0, 0.5, 1), Relation::ReplaceOne),
        (fixed(1.0, 10, 1), Relation::AddOrRemoveOne),
        (fixed(1.0, 10, 1), Relation::ZeroOut),
        (Event::new(cut, 1).unwrap(), Relation::AddOrRemoveOne),
        (Event::new(tree, 1).unwrap(), Relation::AddOrRemoveOne),
        (Event::new(tree, 1).unwrap(), Relation::ReplaceOne),
    ] {
        let refused = epsilon(&[event], relation, 1e-5);
        assert!(matches!(refused, Err(AccountingError::Unsupported { .. })), "{event:?} {relation}");
    }
}

#[test]
fn orders_and_deltas_out_of_range_are_refused() {
    for order in [1.0, 0.5, f64::NAN, f64::INFINITY] {
        assert!(Curve::new(&[2.0, order]).is_err(), "{order}");
    }
    assert!(epsilon(&[], Relation::ZeroOut, f64::NAN).is_err());
    assert_eq!(epsilon(&[], Relation::ZeroOut, 1e-5).unwrap(), 0.0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn more_noise_never_costs_more_and_a_higher_rate_never_less(
        noise in 0.2_f64..20.0, rate in 1e-4_f64..0.9, count in 1_u64..10_000,
    ) {
        // At the integer orders, whose sums are exact; between them the bound is an upper one and may be uneven.
        let of = |event| {
            let found = epsilon_at_orders(&[event], Relation::AddOrRemoveOne, 1e-6, &integer_orders());
            found.unwrap().epsilon
        };
        let base = of(poisson(noise, rate, count));
        prop_assert!(of(poisson(noise * 1.1, rate, count)) <= base * (1.0 + 1e-9));
        prop_assert!(of(poisson(noise, rate * 1.1, count)) >= base * (1.0 - 1e-9));
        prop_assert!(add_or_remove(poisson(noise, rate, count), 1e-6) <= base);
    }

    #[test]
    fn more_delta_never_costs_more_and_more_rounds_never_less(
        noise in 0.2_f64..20.0, rate in 1e-4_f64..1.0, count in 1_u64..10_000, log_delta in -12.0_f64..-2.0,
    ) {
        let delta = 10_f64.powf(log_delta);
        let base = add_or_remove(poisson(noise, rate, count), delta);
        prop_assert!(add_or_remove(poisson(noise, rate, count), delta * 3.0) <= base);
        prop_assert!(add_or_remove(poisson(noise, rate, count + 1), delta) >= base);
    }

    #[test]
    fn phases_may_be_told_in_any_order_and_split(
        first in 0.5_f64..10.0, second in 0.5_f64..10.0, count in 1_u64..1_000,
    ) {
        let (a, b) = (poisson(first, 0.01, count), poisson(second, 0.3, count));
        let of = |events: &[Event]| epsilon(events, Relation::AddOrRemoveOne, 1e-6).unwrap();
        let together = of(&[a, b]);
        prop_assert_eq!(together, of(&[b, a]));
        let split = of(&[poisson(first, 0.01, count), b, poisson(first, 0.01, count)]);
        let joined = of(&[poisson(first, 0.01, 2 * count), b]);
        prop_assert!((split - joined).abs() <= 1e-12 * joined);
        prop_assert!(together >= of(&[a]).max(of(&[b])));
    }

    #[test]
    fn a_fixed_sample_never_costs_more_than_everyone(
        noise in 0.5_f64..20.0, population in 2_u64..1_000, part in 0.0_f64..1.0,
    ) {
        let sample = 1 + (part * (population - 1) as f64) as u64;
        let of = |event| epsilon(&[event], Relation::ReplaceOne, 1e-6).unwrap();
        let more = of(fixed(noise, population, (sample + 1).min(population)));
        prop_assert!(of(fixed(noise, population, sample)) <= more * (1.0 + 1e-9) || sample + 1 >= population);
        prop_assert!(of(fixed(noise * 1.1, population, sample)) <= of(fixed(noise, population, sample)) * (1.0 + 1e-9));
    }
}
