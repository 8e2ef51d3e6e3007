//! What a run really tells, by exact enumeration, is at most what its ledger books.
//!
//! For every combination of options that a plan's check accepts, a coordinator is played with a handful of clients, for every
//! cohort that can be drawn. It says who counts, whether the round is released, how it was noised and what was reserved. From
//! that the exact distribution of what is released is computed for two neighbouring populations, value by value, and the least
//! delta at the charged epsilon in both directions: it must not be above the plan's.
//!
//! Options are taken from the parsed plan field by field (`case.rs`): one that is added does not compile before it has a case.
//! `CONSORTIA_THOROUGH=1` goes through the large grid.
//!
//! Updates are enumerated on a lattice that is coarser than a plan's, which no computer could go through; contributions and
//! noise keep the proportions that the plan's own lattice gives them, and the difference in delta is bounded
//! (`Axis::allowance`). Votes are enumerated on their own lattice where it is that coarse.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod case;
mod correlated;
mod exact;
mod grid;
mod release;
mod stage;

use std::sync::Arc;

use privacy::accounting::{self, Event, Mechanism, Relation};
use privacy::ledger::Ledger;
use privacy::noise::NoiseSource;
use privacy::{Encoded, Lattice, Noising, NormBound, Released, Sum, clip};
use protocol::Sampling;
use server::Plan;

use case::Case;
use exact::{Axis, Cells, Outcome};
use grid::{Options, every_combination, is_thorough};
use release::{Book, Release, known_cohort, releases_of};

/// What the accountants say of `events`, under the plan's terms.
fn epsilon_of(case: &Case, events: &[Event]) -> f64 {
    accounting::epsilon(events, case.relation, case.delta).unwrap().best()
}

/// Checks `cells` against what is charged, and says what is wrong.
fn judge(what: &str, cells: &[&Cells], case: &Case, events: &[Event], allowance: f64) -> Option<String> {
    judge_at(what, cells, case, epsilon_of(case, events), allowance)
}

fn judge_at(what: &str, cells: &[&Cells], case: &Case, reserved: f64, allowance: f64) -> Option<String> {
    if reserved.is_infinite() {
        return None;
    }
    let delta = Cells::delta(cells, reserved);
    (delta > case.delta * (1.0 + allowance) + 1e-12).then(|| {
        let exact = Cells::epsilon(cells, case.delta);
        format!("{what}: reserved {reserved:.4}, exactly {exact:.4} (delta {delta:e} for {:e})", case.delta)
    })
}

/// One combination: `None` when the plan is refused, else everything that is wrong with it.
fn faults_of(
    options: &Options,
    known: &mut correlated::Known,
    last: &mut Option<(Options, Vec<Release>)>,
) -> Option<Vec<String>> {
    let plan = Arc::new(Plan::parse(&options.text()).ok()?);
    let case = Case::of(&plan);
    let book = Book::of(&plan, &case);
    let mut faults = Vec::new();
    if !case.independent {
        faults.extend(correlated::faults(&book, options, known));
    } else if case.is_drawn() {
        let counts = 1..=options.rounds as usize;
        let reserved: Vec<(usize, f64)> =
            counts.map(|count| (count, epsilon_of(&case, &book.events(&book.reserved(count))))).collect();
        let judge = |release: &Release| {
            reserved.iter().find_map(|(count, reserved)| {
                let cells = vec![&release.cells; *count];
                let what = format!("{options:?} {} {count} releases", release.what);
                judge_at(&what, &cells, &case, *reserved, release.allowance * *count as f64)
            })
        };
        // What is released does not depend on the delta at which it is judged.
        let but_for_delta = Options { delta: 0.0, ..options.clone() };
        if last.as_ref().is_none_or(|(of, _)| *of != but_for_delta) {
            *last = Some((but_for_delta, releases_of(&book)));
        }
        let releases = last.iter().flat_map(|(_, releases)| releases);
        // One fault of a combination says enough.
        faults.extend(releases.into_iter().find_map(judge));
    } else {
        faults.extend(release::availability_faults(&book, options));
    }
    Some(faults)
}

#[test]
fn no_combination_of_options_tells_more_than_is_reserved() {
    let (mut accepted, mut refused, mut faults) = (0, 0, Vec::new());
    let (mut known, mut last) = (correlated::Known::default(), None);
    for (at, options) in every_combination().enumerate() {
        if is_thorough() && at % 1000 == 0 {
            eprintln!("combination {at}: {accepted} plans accepted, {} faults", faults.len());
        }
        match faults_of(&options, &mut known, &mut last) {
            Some(found) => {
                accepted += 1;
                faults.extend(found);
            }
            None => refused += 1,
        }
    }
    assert!(accepted >= 20 && refused >= 40, "{accepted} plans were accepted and {refused} refused");
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults[..faults.len().min(30)].join("\n"));
}

/// Cells of one round in which a client is known to take part.
fn known(book: &Book<'_>) -> (Cells, f64) {
    let axes = book.axes();
    let shift = book.shift();
    let zero = vec![0; shift.len()];
    let outcome = |sums: Vec<i64>| [Outcome { chance: 1.0, sums: Some(sums) }];
    let allowance = axes.iter().map(|axis| axis.allowance()).sum();
    (Cells::of_release(&outcome(shift), &outcome(zero), &axes), allowance)
}

/// A client is in a seeded run, whose cohorts every site can compute, and then in a real one of the same population.
#[test]
fn a_seeded_run_and_a_real_one_of_a_population_tell_no_more_than_its_book_says() {
    for adaptive in [false, true] {
        let mut options = Options::plain("{ poisson = { rate = 0.3 } }");
        options.noise_multiplier = 1.0;
        if adaptive {
            options.clipping = "{ adaptive = { count_noise = 0.8 } }";
        }
        let plan = Arc::new(Plan::parse(&options.text()).unwrap());
        let case = Case::of(&plan);
        let book = Book::of(&plan, &case);
        let (seeded, allowance) = known(&book);
        let real = releases_of(&book);
        let after_seeded = book.play_reserved(1, true, &[]);
        let links = after_seeded.links.values().next().unwrap();
        let events = book.events(&after_seeded);
        assert_eq!(judge("a seeded run", &[&seeded], &case, &events, allowance), None);
        let both = book.play_reserved(1, false, links);
        let events = book.events(&both);
        for release in real {
            let allowance = allowance + release.allowance;
            let fault = judge("both runs", &[&seeded, &release.cells], &case, &events, allowance);
            assert_eq!(fault, None);
        }
    }
}

#[test]
fn two_runs_of_a_population_tell_no_more_than_its_book_says() {
    let plan_of = |sampling: &str| {
        let mut options = Options::plain("");
        options.sampling = sampling.to_owned();
        Arc::new(Plan::parse(&options.text()).unwrap())
    };
    let poisson = plan_of("{ poisson = { rate = 0.3 } }");
    let once = plan_of("{ availability = { participations_max = 1 } }");
    let (poisson_case, once_case) = (Case::of(&poisson), Case::of(&once));
    let first = Book::of(&poisson, &poisson_case);
    let second = Book::of(&once, &once_case);
    let (in_second, allowance) = known(&second);
    for release in releases_of(&first) {
        let played = first.play_reserved(1, false, &[]);
        let both = second.play_reserved(1, false, played.links.values().next().unwrap());
        let events = second.events(&both);
        let cells = [&release.cells, &in_second];
        let fault = judge(&release.what, &cells, &once_case, &events, allowance + release.allowance);
        assert_eq!(fault, None);
        // A run that a client takes part in once costs as much again in another run.
        let again = second.play_reserved(1, false, both.links.values().next().unwrap());
        let cells = [&release.cells, &in_second, &in_second];
        let events = second.events(&again);
        let fault = judge(&release.what, &cells, &once_case, &events, 2.0 * allowance + release.allowance);
        assert_eq!(fault, None);
    }
}

/// Whoever sees the cohort is told what the noise alone hides.
#[test]
fn one_who_sees_the_cohort_learns_no_more_than_the_unsampled_release_says() {
    for sampling in ["{ poisson = { rate = 0.3 } }", "{ fixed = { population = 3, sample = 2 } }"] {
        for clipping in ["\"fixed\"", "\"per_layer\"", "{ adaptive = { count_noise = 0.8 } }"] {
            let mut options = Options::plain("");
            options.sampling = sampling.to_owned();
            options.clipping = clipping;
            options.relation = if sampling.contains("fixed") { "replace_one" } else { "add_or_remove_one" };
            let plan = Arc::new(Plan::parse(&options.text()).unwrap());
            let case = Case::of(&plan);
            let book = Book::of(&plan, &case);
            let (one, allowance) = known(&book);
            let charged = book.events(&book.reserved(2));
            let events: Vec<Event> = charged.iter().map(known_cohort).collect();
            let fault = judge(sampling, &[&one, &one], &case, &events, 2.0 * allowance);
            assert_eq!(fault, None, "{clipping}");
        }
    }
}

/// A client that noises its own update hides which of two updates it has; each of its answers is a release.
#[test]
fn noise_of_clients_hides_an_exchange_of_updates() {
    for noise_multiplier in [0.8, 3.0] {
        let bound = NormBound::new(1.0).unwrap();
        let lattice = Lattice::plan_noised(bound, 8, noise_multiplier, 1).unwrap();
        let update = |value: f32| {
            let clipped = clip(vec![value], lattice.bound()).unwrap();
            Encoded::encode(&clipped, lattice.weigh(1), &lattice).unwrap().points()[0]
        };
        let moved = f64::from(update(9.0) - update(-9.0)) / f64::from(lattice.range());
        let axis = Axis { sigma: noise_multiplier * 60.0, stands_for_a_finer_one: true };
        let outcome = |sum: i64| [Outcome { chance: 1.0, sums: Some(vec![sum]) }];
        let one = Cells::of_release(&outcome((moved * 60.0).round() as i64), &outcome(0), &[axis]);
        for count in [1_u64, 2] {
            let event = Event::new(Mechanism::Gaussian { noise_multiplier }, count).unwrap();
            let reserved = accounting::epsilon(&[event], Relation::ReplaceOne, 1e-5).unwrap().best();
            let cells = vec![&one; count as usize];
            let delta = Cells::delta(&cells, reserved);
            assert!(delta <= 1e-5 * (1.0 + 2.0 * axis.allowance()), "{noise_multiplier} {count}: {delta:e}");
        }
    }
}

/// A record enters each step by its own coin; others do, too, and are known.
#[test]
fn noise_of_gradient_steps_hides_a_record() {
    for (rate, noise_multiplier) in [(0.25, 0.9), (0.5, 2.0), (1.0, 1.5)] {
        let axis = Axis { sigma: noise_multiplier * 60.0, stands_for_a_finer_one: true };
        for others in [[0, 0], [60, -60], [60, 60]] {
            let population = |first: i64| -> Vec<Outcome> {
                let values = [first, others[0], others[1]];
                let outcome = |subset: u32| {
                    let drawn = |place: &usize| subset >> place & 1 == 1;
                    let size = subset.count_ones() as i32;
                    let chance = f64::powi(rate, size) * f64::powi(1.0 - rate, 3 - size);
                    let sum = (0..3).filter(drawn).map(|place| values[place]).sum();
                    Outcome { chance, sums: Some(vec![sum]) }
                };
                (0..8).map(outcome).collect()
            };
            let step = Cells::of_release(&population(60), &population(0), &[axis]);
            for count in [1_u64, 2] {
                let training = protocol::ExampleReleases { steps: count, sampling_rate: rate, batch_size: 1 };
                let event = Event::new(training.mechanism(noise_multiplier), count).unwrap();
                let reserved = accounting::epsilon(&[event], Relation::ZeroOut, 1e-5).unwrap().best();
                let delta = Cells::delta(&vec![&step; count as usize], reserved);
                assert!(delta <= 1e-5 * (1.0 + 2.0 * axis.allowance()), "{rate} {noise_multiplier} {count}");
            }
        }
    }
}

/// What the sum is divided by changes no integer of it.
#[test]
fn denominators_are_post_processing() {
    let plan = Arc::new(Plan::parse(&Options::plain("{ poisson = { rate = 0.5 } }").text()).unwrap());
    let central = plan.spec.privacy.central.as_ref().unwrap();
    let lattice = plan.spec.lattice_within(plan.spec.update.norm_max, &[1]).unwrap();
    let totals = |denominator: f64| {
        let (mut ledger, _) = Ledger::found(central.terms()).unwrap();
        let (mut permit, _) = ledger.reserve("r", 1, &central.charge(), 1).unwrap();
        let noising = Noising::new(denominator);
        let mut source = || Ok(NoiseSource::insecure([7; 32]));
        let released = Released::noised(Sum::new(&lattice), &mut permit, &noising, &mut source).unwrap();
        released.mean().next().unwrap() * denominator * f64::from(lattice.weight_max()) / lattice.step()
    };
    let one = totals(1.0);
    for denominator in [1.5, 3.0, 1000.0] {
        assert!((totals(denominator) / one - 1.0).abs() < 1e-12);
    }
    assert!(Noising::new(0.5) != Noising::new(1.0));
}

/// In plans of every promise: a delta, a denominator or noise with which nothing is promised.
#[test]
fn numbers_that_make_no_promise_are_refused() {
    let plain = || Options::plain("{ availability = { participations_max = 2 } }");
    let key_of = |options: Options| Plan::parse(&options.text()).err().map(|error| error.to_string());
    assert_eq!(key_of(plain()), None);
    for delta in [0.0, -1e-5, 0.011, 0.1, 0.5, 0.9, 1.0] {
        let refused = key_of(Options { delta, ..plain() });
        assert!(refused.is_some_and(|error| error.contains("privacy.central.delta")), "{delta}");
    }
    for denominator in [0.99, 0.5, 1e-9, 1e13] {
        let refused = key_of(Options { denominator, ..plain() });
        assert!(refused.is_some_and(|error| error.contains("denominator")), "{denominator}");
    }
    for noise_multiplier in [1e-9, 9e-4, 2e6, 1e300] {
        let refused = key_of(Options { noise_multiplier, ..plain() });
        assert!(refused.is_some_and(|error| error.contains("noise_multiplier")), "{noise_multiplier}");
    }
    for count_noise in ["0.0", "0.3", "0.4", "1e9", "inf", "nan"] {
        let mut options = plain();
        let clipping = format!("{{ adaptive = {{ count_noise = {count_noise} }} }}");
        options.clipping = clipping.leak();
        assert!(key_of(options).is_some_and(|error| error.contains("clipping")), "{count_noise}");
    }
    let text = plain().text();
    let plan = &text[..text.find("[privacy.central]").unwrap()];
    for delta in ["0.9", "0.02", "0.0"] {
        for promise in ["[privacy.local]\n", "[privacy.examples]\nnorm_max = 1.0\n"] {
            let text = format!("{plan}{promise}noise_multiplier = 1.0\nepsilon_max = 9.0\ndelta = {delta}\n");
            let refused = Plan::parse(&text).unwrap_err().to_string();
            assert!(refused.contains("delta"), "{refused}");
        }
    }
    for promise in ["[privacy.local]\n", "[privacy.examples]\nnorm_max = 1.0\n"] {
        let text = format!("{plan}{promise}noise_multiplier = 1e-6\nepsilon_max = 9.0\ndelta = 1e-5\n");
        assert!(Plan::parse(&text).unwrap_err().to_string().contains("noise_multiplier"));
    }
}

#[test]
fn the_grid_holds_every_kind_of_sampling() {
    let plans = every_combination().filter_map(|options| Plan::parse(&options.text()).ok());
    let (mut poisson, mut fixed, mut availability) = (0, 0, 0);
    for plan in plans {
        match Case::of(&plan).sampling {
            Sampling::Poisson { .. } => poisson += 1,
            Sampling::Fixed { .. } => fixed += 1,
            Sampling::Availability { .. } => availability += 1,
        }
    }
    assert!(poisson >= 10 && fixed >= 5 && availability >= 10, "{poisson} {fixed} {availability}");
    assert!(is_thorough() || poisson + fixed + availability < 2000);
}
