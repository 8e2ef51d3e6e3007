//! AUD-1 and AUD-2: an honest plan is not accused, whatever its options, and every way to run it wrong is found.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::sync::Arc;

use privacy::noise::{EntropyError, NoiseSource};
use protocol::{Clipping, Positive, Sampling, Seed};
use server::Plan;
use simulations::audit::{AuditReport, GdpAudit};

/// Noise that repeats with the seed, another one each time it is asked for.
fn noise(seed: u64) -> impl FnMut() -> Result<NoiseSource, EntropyError> {
    let mut turn = 0u64;
    move || {
        turn += 1;
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&turn.to_le_bytes());
        Ok(NoiseSource::insecure(bytes))
    }
}

const ONCE: &str = "sampling = { availability = { participations_max = 1 } }\n";
const OFTEN: &str = "sampling = { availability = { participations_max = 2, separation_min = 2 } }\n";
const COINS: &str = "sampling = { poisson = { rate = 0.2 } }\n";
const SAMPLE: &str = "sampling = { fixed = { population = 20, sample = 2 } }\nrelation = \"replace_one\"\n";
const VOTES: &str = "clipping = { adaptive = { count_noise = 0.6 } }\n";
const VOTES_OF_FOUR: &str = "clipping = { adaptive = { count_noise = 2.4 } }\n";
const WEIGHTS: &str = "weights = \"examples\"\nweight_max = 20\n";

fn plan(noise_multiplier: f64, central: &str, update: &str) -> Plan {
    let text = format!(
        "name = \"a\"\nrounds = 4\nmodel = \"linear\"\n\
         [data.table]\nlabel = \"y\"\ntarget = \"real\"\nfeatures = [\"a\"]\n\
         [training]\nbatch_size = 8\noptimizer = {{ sgd = {{ learning_rate = 0.1 }} }}\n\
         [update]\nnorm_max = 0.5\n{update}\n\
         [privacy.central]\ndelta = 1e-5\nepsilon_max = 1e6\nnoise_multiplier = {noise_multiplier}\n\
         denominator = 2\n{central}"
    );
    Plan::parse(&text).unwrap()
}

/// Every option that changes what a release is, by name.
fn plans() -> Vec<(&'static str, Plan)> {
    vec![
        ("flat", plan(1.0, ONCE, "")),
        ("weighted", plan(1.0, ONCE, WEIGHTS)),
        ("votes", plan(1.0, &format!("{ONCE}{VOTES}"), "")),
        ("per layer", plan(1.0, &format!("{ONCE}clipping = \"per_layer\"\n"), "")),
        ("tree", plan(1.0, &format!("{OFTEN}noise = \"tree\"\n"), "")),
        ("bands", plan(1.0, &format!("{OFTEN}noise = {{ square_root = {{ bands = 2 }} }}\n"), "")),
        ("drawn by coins", plan(1.0, COINS, "")),
        ("drawn by coins with votes", plan(1.0, &format!("{COINS}{VOTES}"), "")),
        ("drawn and exchanged", plan(4.0, SAMPLE, "")),
        (
            "drawn and exchanged with votes and weights",
            plan(4.0, &format!("{SAMPLE}{VOTES_OF_FOUR}"), WEIGHTS),
        ),
    ]
}

fn named(name: &str) -> Plan {
    plans().into_iter().find(|(known, _)| *known == name).unwrap().1
}

/// The plan with another central promise than it claims.
fn changed(plan: &Plan, change: impl Fn(&mut protocol::CentralPrivacy)) -> Plan {
    let mut plan = plan.clone();
    let mut spec = (*plan.spec).clone();
    change(spec.privacy.central.as_mut().unwrap());
    plan.spec = Arc::new(spec);
    plan
}

/// As much noise as `factor` times what is claimed.
fn noised(plan: &Plan, factor: f64) -> Plan {
    changed(plan, |central| {
        central.noise_multiplier = Positive::new(central.noise_multiplier.value() * factor).unwrap();
        if let Clipping::Adaptive { count_noise, .. } = &mut central.clipping {
            *count_noise *= factor;
        }
    })
}

fn report(claimed: &Plan, run: &Plan, seed: u64) -> AuditReport {
    let audit = GdpAudit::of(claimed, 8).unwrap();
    audit.run_as(run, Seed::from_number(seed), &mut noise(seed)).unwrap()
}

/// AUD-1. Each bound is wrong with a chance of at most 0.05, and in truth much less, since three parts of it share that
/// chance and the intervals are conservative.
#[test]
fn an_honest_plan_is_not_accused_whatever_its_options() {
    for (name, plan) in plans() {
        let reports: Vec<_> = (0..3).map(|seed| report(&plan, &plan, seed)).collect();
        let refuted = reports.iter().filter(|report| report.refutes()).count();
        assert!(refuted == 0, "{name}: {}", reports[0]);
        let weakest = reports.iter().map(|report| report.epsilon_found / report.epsilon_claimed);
        let weakest = weakest.fold(f64::INFINITY, f64::min);
        // Of a draw its share is bounded as well, and an exchange is reserved by a looser bound.
        let least = if name.contains("drawn") { 0.05 } else { 0.35 };
        assert!(weakest > least, "{name}: the audit has lost its power, {}", reports[0]);
    }
}

/// AUD-2. Too little noise is found whatever the options.
#[test]
fn too_little_noise_is_found_whatever_the_options() {
    for (name, plan) in plans() {
        let wrong = noised(&plan, if name.contains("drawn") { 0.25 } else { 0.5 });
        assert!(report(&plan, &wrong, 1).refutes(), "{name}: {}", report(&plan, &wrong, 1));
    }
}

#[test]
fn votes_with_half_of_their_noise_are_found() {
    for name in ["votes", "drawn by coins with votes"] {
        let plan = named(name);
        // The update keeps its noise, so that the whole is worth what both parts are.
        let wrong = changed(&plan, |central| {
            let Clipping::Adaptive { count_noise, .. } = &mut central.clipping else { panic!() };
            let update = 1.0 - (2.0 * *count_noise).powi(-2);
            *count_noise /= 2.0;
            let whole = update + (2.0 * *count_noise).powi(-2);
            central.noise_multiplier = Positive::new(whole.powf(-0.5) * (1.0 - 1e-9)).unwrap();
        });
        assert!(report(&plan, &wrong, 2).refutes(), "{name}: {}", report(&plan, &wrong, 2));
    }
}

/// Defects that have the effect of a known part of the noise: what one client moves is larger than is noised for.
#[test]
fn what_forgets_a_sensitivity_is_found() {
    let bands = named("bands");
    let central = bands.spec.privacy.central.as_ref().unwrap();
    let scale = central.noise_scale(250, 1 << 40).unwrap();
    for (name, factor) in [
        // Every tensor has the whole norm, of eight.
        ("per layer", 8f64.powf(-0.5)),
        // A weight of 20 with the noise of a weight of 1.
        ("weighted", 0.05),
        // An exchange moves a sum twice as far, and one was forgotten on either side.
        ("drawn and exchanged", 0.25),
        // Noise that is taken back, as if it were not.
        ("bands", 1.0 / scale),
        // A node's noise as if it were all of the noise.
        ("tree", 3f64.powf(-0.5)),
    ] {
        let plan = named(name);
        let wrong = noised(&plan, factor);
        assert!(report(&plan, &wrong, 3).refutes(), "{name}: {}", report(&plan, &wrong, 3));
    }
}

#[test]
fn a_draw_that_asks_more_often_than_is_claimed_is_found() {
    let coins = named("drawn by coins");
    let often = changed(&coins, |central| central.sampling = Sampling::Poisson { rate: 0.6 });
    assert!(report(&coins, &often, 4).refutes(), "{}", report(&coins, &often, 4));
}

#[test]
fn noise_that_is_used_twice_is_found() {
    for name in ["flat", "votes", "per layer", "weighted"] {
        let plan = named(name);
        let audit = GdpAudit::of(&plan, 8).unwrap();
        let report = audit.run(Seed::from_number(5), &mut || Ok(NoiseSource::insecure([7; 32]))).unwrap();
        assert!(report.refutes(), "{name}: {report}");
    }
}

#[test]
fn an_audit_says_what_it_found_and_against_whom() {
    let flat = named("flat");
    let report = report(&flat, &flat, 1);
    let text = report.to_string();
    assert!(text.contains("claimed 4.377") && text.contains("not refuted") && text.contains("knows every"));
    let found = AuditReport { epsilon_found: 9.0, ..report };
    assert!(found.to_string().contains("THE CLAIM IS REFUTED"));
    let estimate = AuditReport { significance: None, ..found };
    assert!(!estimate.refutes() && estimate.to_string().contains("estimated at 9.000"));
}
