//! The figures at the top of a report. They are about the whole run; one that is known of the shown rounds alone says so.

use privacy::accounting::Figure;
use protocol::Metrics;
use protocol::wire::RoundSummary;
use serde_json::{Value, json};
use server::Plan;

use super::{Report, sentence};
use crate::results::chart::figure;
use crate::results::curves::{Clock, Measures, duration};

type Fact = (String, String);

pub(super) fn facts(report: &Report<'_>, plan: Option<&Plan>, measures: Measures) -> Vec<Value> {
    let facts = rounds(report, plan)
        .into_iter()
        .chain(measured(report, measures))
        .chain(privacy(report, plan))
        .chain(times(report))
        .chain(model(report));
    facts.map(|(name, value)| json!({ "name": name, "value": value })).collect()
}

/// The rounds that a figure is about, where it can only count those that are shown.
fn scope(report: &Report<'_>) -> String {
    report.shown().map_or_else(|| "rounds".to_owned(), |(first, last)| format!("rounds {first} to {last}"))
}

fn rounds(report: &Report<'_>, plan: Option<&Plan>) -> Vec<Fact> {
    let rounds = || report.rounds.iter().filter(|round| round.round > 0);
    let done = rounds().next_back().map_or(0, |round| round.round);
    let told = match plan {
        Some(plan) if plan.rounds != done => format!("{done} of {}", plan.rounds),
        _ => done.to_string(),
    };
    let mut facts = vec![("Rounds".to_owned(), told)];
    let released = rounds().filter(|round| round.released).count();
    if released < rounds().count() {
        facts.push((format!("{} that released a model", sentence(&scope(report))), released.to_string()));
    }
    facts
}

fn measured(report: &Report<'_>, measures: Measures) -> Vec<Fact> {
    let last = |of: fn(&RoundSummary) -> Option<Metrics>| {
        report.rounds.iter().rev().find_map(|round| Some((round.round, of(round)?)))
    };
    let done = report.rounds.last().map_or(0, |round| round.round);
    let kind = measures.records.name();
    let mut facts = Vec::new();
    for (whose, found) in
        [("the sites'", last(|round| round.sites)), ("the server's", last(|round| round.central))]
    {
        let Some((round, metrics)) = found else { continue };
        // Where sites keep the number to themselves it is 0.
        let count = if metrics.examples > 0 { format!("{} ", metrics.examples) } else { String::new() };
        let records = if metrics.examples == 1 { "record" } else { "records" };
        let when = if round == done { String::new() } else { format!(", round {round}") };
        if let Some(value) = measures.best(&metrics) {
            facts.push((format!("{} on {whose} {count}{kind} {records}{when}", measures.name()), value));
        }
        facts.push((format!("Loss on {whose} {kind} records{when}"), figure(metrics.loss)));
    }
    let further = report.rounds.iter().rev().map(|round| round.further.sites()).find(|all| !all.is_empty());
    let further = further.into_iter().flatten();
    facts.extend(
        further.map(|(name, value)| (format!("{name} on the sites' {kind} records"), figure(*value))),
    );
    facts
}

/// What the plan promises, and what has been spent of it.
fn privacy(report: &Report<'_>, plan: Option<&Plan>) -> Vec<Fact> {
    let spent = report.rounds.iter().rev().find_map(|round| round.epsilon);
    let Some(plan) = plan else {
        return spent.map(|epsilon| ("Epsilon".to_owned(), format!("{epsilon:.3}"))).into_iter().collect();
    };
    let mut facts = Vec::new();
    let privacy = &plan.spec.privacy;
    if let Some(central) = &privacy.central {
        let is_void = report.statement.is_some_and(|statement| statement.void.is_some());
        let claimed = if is_void { " (not claimed)" } else { "" };
        let (budget, delta) = (short(central.epsilon_max.value()), central.delta);
        let spent = spent.map_or_else(|| "0".to_owned(), |epsilon| format!("{epsilon:.3}"));
        facts.push((format!("Epsilon{claimed} at delta {delta:e}"), format!("{spent} of {budget}")));
        facts.push(("Noise multiplier".to_owned(), short(central.noise_multiplier.value())));
    }
    let local = privacy.local.map(|local| ("client", local.epsilon_max, local.delta, local.noise_multiplier));
    let examples = privacy
        .examples
        .map(|examples| ("record", examples.epsilon_max, examples.delta, examples.noise_multiplier));
    for (unit, epsilon_max, delta, noise) in local.into_iter().chain(examples) {
        let most = short(epsilon_max.value());
        facts.push((format!("Epsilon of each {unit} at delta {delta:e}"), format!("at most {most}")));
        facts.push((format!("Noise multiplier for each {unit}"), short(noise.value())));
    }
    facts
}

fn times(report: &Report<'_>) -> Vec<Fact> {
    let (clock, real) = match report.clock {
        Clock::Real => ("Time", "Time in all"),
        Clock::Virtual => ("Virtual time", "Real time of the simulation"),
    };
    let told = report.rounds.iter().filter(|round| round.participation().is_some());
    let seconds = told.map(|round| round.seconds).reduce(|sum, seconds| sum + seconds);
    let in_rounds = seconds.map(|seconds| (format!("{clock} in {}", scope(report)), duration(seconds, 0.0)));
    let in_all = report.real_seconds.map(|seconds| (real.to_owned(), duration(seconds, 0.0)));
    in_rounds.into_iter().chain(in_all).collect()
}

fn model(report: &Report<'_>) -> Option<Fact> {
    let hash = report.model_sha256.filter(|hash| !hash.is_empty())?;
    let is_trained =
        report.shown().is_some() || report.rounds.iter().any(|round| round.round > 0 && round.released);
    let name = if is_trained { "Model" } else { "Model that the run began with" };
    Some((name.to_owned(), hash.get(..16).unwrap_or(hash).to_owned()))
}

/// A setting without zeros at its end.
pub(super) fn short(value: f64) -> String {
    let text = format!("{:.4}", Figure(value));
    if text.contains('e') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
