//! `consortia privacy`: what noise buys, before anyone starts a run. Computes; adds no noise.

use std::sync::{Mutex, PoisonError};

use ::privacy::accounting::calibration::calibrate;
use ::privacy::accounting::{
    AccountingError, Event, EventError, Mechanism, Relation, pld, promised_delta, rdp,
};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::Global;
use super::failure::{Failure, Kind, OrFail};
use super::progress::telling;

/// Releases that are all made in the same way.
#[derive(Debug, Args)]
struct Releases {
    /// Each client's independent chance to take part in a round; 1 claims no amplification by sampling.
    #[arg(long, default_value_t = 1.0)]
    sampling_rate: f64,
    /// Rounds: noised sums released.
    #[arg(long)]
    rounds: u64,
    /// The probability with which the promise may fail: at most 0.01, and below one over the number of clients.
    #[arg(long, value_parser = typed_delta)]
    delta: f64,
    /// Which two federations must be hard to tell apart.
    #[arg(long, value_enum, default_value_t = RelationArg::AddOrRemoveOne)]
    relation: RelationArg,
    /// Which accountant answers.
    #[arg(long, value_enum, default_value_t = Accountant::Both)]
    accountant: Accountant,
}

/// A delta as it is typed, wherever it is.
pub(super) fn typed_delta(text: &str) -> Result<f64, String> {
    let delta: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    promised_delta(delta).map_err(|error| error.to_string())
}

#[derive(Debug, Args)]
pub(super) struct EpsilonArgs {
    /// Standard deviation of the noise over the clipping norm.
    #[arg(long)]
    noise_multiplier: f64,
    #[command(flatten)]
    releases: Releases,
}

#[derive(Debug, Args)]
pub(super) struct NoiseArgs {
    /// What may be given away in all.
    #[arg(long)]
    epsilon: f64,
    #[command(flatten)]
    releases: Releases,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Accountant {
    /// Renyi differential privacy: rigorous for the integer noise, somewhat loose.
    Rdp,
    /// Privacy loss distribution: tighter.
    Pld,
    /// Both.
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RelationArg {
    /// One client more or less.
    AddOrRemoveOne,
    /// One client exchanged for another.
    ReplaceOne,
    /// One client's updates replaced by zeros.
    ZeroOut,
}

impl From<RelationArg> for Relation {
    fn from(relation: RelationArg) -> Self {
        match relation {
            RelationArg::AddOrRemoveOne => Self::AddOrRemoveOne,
            RelationArg::ReplaceOne => Self::ReplaceOne,
            RelationArg::ZeroOut => Self::ZeroOut,
        }
    }
}

impl Releases {
    fn event(&self, noise_multiplier: f64) -> Result<Event, EventError> {
        let sampling_rate = self.sampling_rate;
        let mechanism = if sampling_rate == 1.0 {
            Mechanism::Gaussian { noise_multiplier }
        } else {
            Mechanism::PoissonGaussian { noise_multiplier, sampling_rate }
        };
        Event::new(mechanism, self.rounds)
    }

    fn epsilon(&self, accountant: Accountant, event: Event) -> Result<f64, AccountingError> {
        match accountant {
            Accountant::Rdp => rdp::epsilon(&[event], self.relation.into(), self.delta),
            Accountant::Pld | Accountant::Both => pld::epsilon(&[event], self.relation.into(), self.delta),
        }
    }

    fn json(&self, noise_multiplier: f64, rdp: Option<f64>, pld: Option<f64>) -> Value {
        json!({
            "noise_multiplier": noise_multiplier,
            "sampling_rate": self.sampling_rate,
            "rounds": self.rounds,
            "delta": self.delta,
            "relation": Relation::from(self.relation).to_string(),
            "rdp": rdp.map(finite),
            "pld": pld.map(finite),
        })
    }

    fn describe(&self) -> String {
        let sampling = if self.sampling_rate == 1.0 {
            "every client may be in every round (no amplification claimed)".to_owned()
        } else {
            let rate = self.sampling_rate;
            format!("each client in each round with probability {rate}, by a coin that nobody sees")
        };
        let relation = Relation::from(self.relation);
        format!("{} rounds; {sampling}; to {relation}; delta {}", self.rounds, self.delta)
    }
}

/// JSON has no infinity; without noise the promise is none.
pub(super) fn finite(epsilon: f64) -> Value {
    if epsilon.is_finite() { json!(epsilon) } else { json!("infinity") }
}

pub(super) fn epsilon(args: &EpsilonArgs, global: &Global) -> Result<(), Failure> {
    let releases = &args.releases;
    let event = releases.event(args.noise_multiplier).or_fail(Kind::Configuration, "")?;
    let ask = |accountant| {
        let wanted = releases.accountant == accountant || releases.accountant == Accountant::Both;
        wanted.then(|| releases.epsilon(accountant, event)).transpose().or_fail(Kind::Configuration, "")
    };
    let both = || Ok((ask(Accountant::Rdp)?, ask(Accountant::Pld)?));
    let (rdp, pld) = telling(global, || "computing epsilon".to_owned(), both)?;
    let text = || {
        let line = |name: &str, epsilon: Option<f64>| {
            epsilon.map_or_else(String::new, |epsilon| format!("\nepsilon by {name}  {epsilon:.6}"))
        };
        let noise = args.noise_multiplier;
        let described = releases.describe();
        format!("noise multiplier {noise}; {described}{}{}", line("rdp", rdp), line("pld", pld))
    };
    global.format.say(text, || releases.json(args.noise_multiplier, rdp, pld));
    Ok(())
}

/// How far the search for a noise multiplier has come.
fn stand(tried: &Mutex<Vec<(f64, f64)>>) -> String {
    let tried = tried.lock().unwrap_or_else(PoisonError::into_inner);
    match tried.last() {
        Some((noise, epsilon)) => {
            format!(
                "searching: {} noise multipliers tried, of about 25; {noise:.4} gives epsilon {epsilon:.4}",
                tried.len()
            )
        }
        None => "searching: computing epsilon of the first noise multiplier".to_owned(),
    }
}

pub(super) fn noise(args: &NoiseArgs, global: &Global) -> Result<(), Failure> {
    let releases = &args.releases;
    let epsilon_of = |noise_multiplier: f64| {
        let event = releases.event(noise_multiplier).map_err(|error| error.to_string())?;
        releases.epsilon(releases.accountant, event).map_err(|error| error.to_string())
    };
    let tried = Mutex::new(Vec::new());
    let told = |noise_multiplier: f64| {
        let epsilon = epsilon_of(noise_multiplier)?;
        tried.lock().unwrap_or_else(PoisonError::into_inner).push((noise_multiplier, epsilon));
        Ok::<f64, String>(epsilon)
    };
    let search = || calibrate(args.epsilon, told);
    let noise = telling(global, || stand(&tried), search).or_fail(Kind::Configuration, "")?;
    let event = releases.event(noise).or_fail(Kind::Configuration, "")?;
    let rdp = releases.epsilon(Accountant::Rdp, event).or_fail(Kind::Configuration, "")?;
    let pld = releases.epsilon(Accountant::Pld, event).or_fail(Kind::Configuration, "")?;
    let text = || {
        let described = releases.describe();
        format!(
            "noise multiplier {noise:.6} keeps epsilon at {}; {described}\nepsilon by rdp  {rdp:.6}\nepsilon by pld  {pld:.6}",
            args.epsilon
        )
    };
    global.format.say(text, || releases.json(noise, Some(rdp), Some(pld)));
    Ok(())
}
