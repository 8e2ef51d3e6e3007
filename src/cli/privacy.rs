//! `consortia privacy`: what noise buys, before anyone starts a run. Computes; adds no noise.

use std::sync::{Mutex, PoisonError};

use ::privacy::accounting::calibration::calibrate;
use ::privacy::accounting::{
    AccountingError, Event, EventError, Figure, Mechanism, Relation, pld, promised_delta, rdp,
};
use clap::{Args, ValueEnum};
use privacy::counted;
use serde_json::{Value, json};

use super::failure::{Failure, Kind, OrFail};
use super::global::Global;
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
    /// The delta of (epsilon, delta)-differential privacy: at most 0.01, and below one over the number of clients.
    #[arg(long, value_parser = typed_delta)]
    delta: f64,
    /// Which two federations must be hard to distinguish.
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
    /// The total epsilon that may be spent.
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

    /// Whether the accountant of the privacy loss distribution can resolve so small a delta. Every command takes every delta that a plan
    /// takes; below this one Renyi differential privacy answers alone, as in a run's ledger.
    fn is_resolved(&self) -> bool {
        self.delta >= pld::DELTA_MIN
    }

    /// Which accountant decides where both are asked.
    fn decides(&self) -> Accountant {
        match self.accountant {
            Accountant::Both if self.is_resolved() => Accountant::Pld,
            Accountant::Both => Accountant::Rdp,
            one => one,
        }
    }

    /// Epsilon by this accountant, where it is asked and can tell.
    fn asked(&self, accountant: Accountant, event: Event) -> Result<Option<f64>, Failure> {
        let is_asked = match self.accountant {
            Accountant::Both => accountant == Accountant::Rdp || self.is_resolved(),
            one => one == accountant,
        };
        is_asked.then(|| self.epsilon(accountant, event)).transpose().or_fail(Kind::Configuration, "")
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
            let rate = Figure(self.sampling_rate);
            format!("each client in each round with probability {rate}, drawn in secret")
        };
        let relation = Relation::from(self.relation);
        let rounds = counted(self.rounds, "round");
        format!("{rounds}; {sampling}; to {relation}; delta {}", Figure(self.delta))
    }
}

/// JSON has no infinity; without noise the promise is none.
pub(super) fn finite(epsilon: f64) -> Value {
    if epsilon.is_finite() { json!(epsilon) } else { json!("infinity") }
}

pub(super) fn epsilon(args: &EpsilonArgs, global: &Global) -> Result<(), Failure> {
    let releases = &args.releases;
    let event = releases.event(args.noise_multiplier).or_fail(Kind::Configuration, "")?;
    let both = || Ok((releases.asked(Accountant::Rdp, event)?, releases.asked(Accountant::Pld, event)?));
    let (rdp, pld) = telling(global, || "computing epsilon".to_owned(), both)?;
    let text = || {
        let noise = Figure(args.noise_multiplier);
        let described = releases.describe();
        format!("noise multiplier {noise}; {described}{}", lines(rdp, pld))
    };
    global.format.say(text, || releases.json(args.noise_multiplier, rdp, pld));
    Ok(())
}

/// The epsilons of those accountants that have one.
fn lines(rdp: Option<f64>, pld: Option<f64>) -> String {
    let line = |name: &str, epsilon: Option<f64>| {
        epsilon.map_or_else(String::new, |epsilon| format!("\nepsilon by {name}  {:.6}", Figure(epsilon)))
    };
    format!("{}{}", line("rdp", rdp), line("pld", pld))
}

/// How far the search for a noise multiplier has come.
fn stand(tried: &Mutex<Vec<(f64, f64)>>) -> String {
    let tried = tried.lock().unwrap_or_else(PoisonError::into_inner);
    match tried.last() {
        Some((noise, epsilon)) => {
            format!(
                "searching: {} noise multipliers tried, of about 25; {:.4} gives epsilon {:.4}",
                tried.len(),
                Figure(*noise),
                Figure(*epsilon)
            )
        }
        None => "searching: computing epsilon of the first noise multiplier".to_owned(),
    }
}

pub(super) fn noise(args: &NoiseArgs, global: &Global) -> Result<(), Failure> {
    let releases = &args.releases;
    let epsilon_of = |noise_multiplier: f64| {
        let event = releases.event(noise_multiplier).map_err(|error| error.to_string())?;
        releases.epsilon(releases.decides(), event).map_err(|error| error.to_string())
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
    let pld = releases.is_resolved().then(|| releases.epsilon(Accountant::Pld, event));
    let pld = pld.transpose().or_fail(Kind::Configuration, "")?;
    let text = || {
        let described = releases.describe();
        format!(
            "noise multiplier {:.6} keeps epsilon at {}; {described}{}",
            Figure(noise),
            Figure(args.epsilon),
            lines(Some(rdp), pld)
        )
    };
    global.format.say(text, || releases.json(noise, Some(rdp), pld));
    Ok(())
}
