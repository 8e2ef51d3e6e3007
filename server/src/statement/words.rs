//! A statement's sentences.

use privacy::accounting::{Figure, Mechanism};
use privacy::counted;
use privacy::ledger::{Composition, RunCharge};
use protocol::{CentralPrivacy, Clipping, NoiseCorrelation, PrivacySpec, Sampling};

use super::Adversary;

/// What sites told without noise.
pub(super) const TOLD: &str = "losses, accuracies and numbers of examples that sites told the server";
/// What the ledger of an earlier version does not say.
pub(super) const UNRECORDED: &str =
    "what sites told the server besides updates, of which an earlier version kept no record,";
const PROGRAM: &str =
    "the server runs this program unchanged, and its operating system's randomness is unpredictable";
const CERTIFICATE: &str =
    "one certificate is one client: who holds several is protected by several times as much epsilon";
const INDEPENDENT: &str = "whether a drawn client answered in time did not depend on who else was drawn: the server and its \
                           lines could take every cohort";
/// What is outside where a run promises nothing.
pub(super) const NOTHING: &str = "everything: this run promises no privacy, and its epsilon is infinite";
/// Runs that a sentence names; of more it gives the number.
const NAMED_MAX: usize = 20;

/// Some runs by name.
pub(super) fn named(runs: &[String]) -> String {
    let (some, rest) = runs.split_at(runs.len().min(NAMED_MAX));
    let list = some.join(", ");
    match (runs.len(), rest.len()) {
        (1, _) => format!("run {list}"),
        (_, 0) => format!("runs {list}"),
        (_, more) => format!("runs {list} and {more} more"),
    }
}

/// Against whom a claim holds.
pub(super) fn against_adversary(adversary: Adversary) -> &'static str {
    match adversary {
        Adversary::DoesNotSeeParticipants => SECRET,
        Adversary::SeesParticipants => {
            "whoever sees every released model, and knows who took part in which round; not the server, which sees every update"
        }
    }
}

const SECRET: &str = "whoever sees every released model but neither who nor how many took part in a round of a run with secret \
                      sampling, a site that knows its own part included; not the server or its operators, who see both, nor \
                      whoever watches the server's lines";

/// What must be true of all these runs for a claim against `adversary` to hold.
pub(super) fn assumptions_of(charges: &[RunCharge], adversary: Adversary) -> Vec<String> {
    let mut assumes = vec![PROGRAM.to_owned(), CERTIFICATE.to_owned()];
    let mut of_runs: Vec<(String, Vec<String>)> = Vec::new();
    for charged in charges {
        let sentence = participation(charged, adversary);
        match of_runs.iter_mut().find(|(known, _)| *known == sentence) {
            Some((_, runs)) if runs.contains(&charged.run) => {}
            Some((_, runs)) => runs.push(charged.run.clone()),
            None => of_runs.push((sentence, vec![charged.run.clone()])),
        }
    }
    let counts_on_chance = |charged: &RunCharge| is_sampled(charged.event.mechanism());
    if adversary == Adversary::DoesNotSeeParticipants && charges.iter().any(counts_on_chance) {
        assumes.push(INDEPENDENT.to_owned());
    }
    assumes.extend(of_runs.iter().map(|(sentence, runs)| format!("in {}: {sentence}", named(runs))));
    assumes
}

fn is_sampled(mechanism: Mechanism) -> bool {
    mechanism.with_known_cohort() != mechanism
}

/// How clients took part in a run, as far as the claim counts on it.
fn participation(charged: &RunCharge, adversary: Adversary) -> String {
    let enforced = "the server enforces it by certificate";
    let unaware = adversary == Adversary::DoesNotSeeParticipants && is_sampled(charged.event.mechanism());
    match (charged.charge.mechanism, charged.charge.composition) {
        (Mechanism::PoissonGaussian { sampling_rate, .. }, _) if unaware => coin(sampling_rate),
        (Mechanism::WithoutReplacementGaussian { population, sample, .. }, _) if unaware => {
            uniform(sample, population)
        }
        (Mechanism::Tree { participations_max, separation_min, .. }, _) => format!(
            "no client took part in more than {}, at least {} apart; {enforced}",
            counted(participations_max, "release"),
            counted(separation_min, "round")
        ),
        (_, Composition::Each { at_most: Some(most) }) => {
            format!("no client took part in more than {}; {enforced}", counted(most, "release"))
        }
        (_, Composition::Whole) => {
            format!(
                "no client took part more often, or in rounds nearer to each other, than the plan says; {enforced}"
            )
        }
        (_, Composition::Each { at_most: None }) => {
            "who took part did not depend on anybody's records; each client may have been in every release"
                .to_owned()
        }
    }
}

fn coin(rate: f64) -> String {
    format!("each enrolled client took part by an independent coin of {rate} that nobody else saw")
}

fn uniform(sample: u64, population: u64) -> String {
    format!(
        "each cohort was drawn uniformly, {sample} of at least {population} enrolled clients, and nobody else saw it"
    )
}

/// The adversary of central noise.
pub fn against(sampling: Sampling) -> &'static str {
    match sampling {
        Sampling::Availability { .. } => against_adversary(Adversary::SeesParticipants),
        Sampling::Poisson { .. } | Sampling::Fixed { .. } => SECRET,
    }
}

/// What must be true for central noise to protect as claimed.
pub fn assumptions(central: &CentralPrivacy) -> Vec<String> {
    let mut assumes = vec![PROGRAM.to_owned(), CERTIFICATE.to_owned()];
    if central.sampling.is_secret() {
        assumes.push(INDEPENDENT.to_owned());
    }
    match central.sampling {
        Sampling::Poisson { rate } => assumes.push(coin(rate)),
        Sampling::Fixed { population, sample } => assumes.push(uniform(sample, population)),
        Sampling::Availability { participations_max, separation_min } => assumes.push(format!(
            "no client took part in more than {participations_max} releases, at least {separation_min} rounds apart; \
             the server enforces it by certificate"
        )),
    }
    assumes
}

/// The mechanism in words.
pub fn describe(central: &CentralPrivacy) -> String {
    let noise = match &central.noise {
        NoiseCorrelation::Independent => "independent discrete Gaussian noise on each".to_owned(),
        NoiseCorrelation::Tree => {
            format!("a tree of discrete Gaussian noise over {} rounds on the", central.rounds)
        }
        NoiseCorrelation::Banded { weights } => {
            format!(
                "discrete Gaussian noise that takes back part of that of the last {} rounds on each",
                weights.len()
            )
        }
    };
    let clipping = match central.clipping {
        Clipping::Fixed => "clipped to a fixed norm".to_owned(),
        Clipping::PerLayer => "clipped to a fixed norm tensor by tensor".to_owned(),
        Clipping::Adaptive { quantile, .. } => {
            format!("clipped to a norm that privately follows the {quantile} quantile of the updates' norms")
        }
    };
    format!(
        "{noise} integer sum of updates {clipping}; noise multiplier {:.6}; divided by {}, whatever the number that came",
        central.noise_multiplier.value(),
        central.denominator.value()
    )
}

/// What no claim covers.
pub fn outside(privacy: &PrivacySpec) -> Vec<String> {
    let mut outside = vec!["which clients are enrolled and connected, and when".to_owned()];
    if privacy.is_none() {
        outside = vec![NOTHING.to_owned()];
        return outside;
    }
    outside.push("how long a site works on a task, and when its answer comes".to_owned());
    outside.push("the choice of the plan's settings, where it was made by looking at the data".to_owned());
    if privacy.samples_secretly() {
        outside.push(
            "how long rounds took and when models were released: it may show how many took part".to_owned(),
        );
    }
    if let Some(central) = &privacy.central {
        outside.push(format!(
            "runs of other populations than `{}`: each has a budget of its own, and whoever is in two is protected by the sum of both epsilons",
            central.population
        ));
    }
    if privacy.tells_metrics_outside() {
        outside.push(TOLD.to_owned());
    }
    if let Some(local) = &privacy.local {
        outside.push(format!(
            "each client's own guarantee (noise multiplier {} on every update) is accounted for at the client",
            local.noise_multiplier.value()
        ));
    }
    if let Some(examples) = &privacy.examples {
        outside.push(format!(
            "each site's guarantee for its own records (noise multiplier {} and clipping norm {} in every gradient step, \
             epsilon at most {} at delta {}) is accounted for at the site",
            examples.noise_multiplier.value(),
            examples.norm_max.value(),
            Figure(examples.epsilon_max.value()),
            Figure(examples.delta)
        ));
    }
    outside
}
