//! `consortia privacy explain`: what a plan promises, to whom and against whom, what it leaves outside, and whether the model
//! can be learned through the noise. Reads a plan; starts nothing and asks nobody.

mod promise;
mod signal;

use std::path::PathBuf;

use ::privacy::accounting::Figure;
use clap::Args;
use learning::Models;
use privacy::counted;
use serde_json::{Value, json};
use server::Plan;

use self::promise::Reached;
pub(super) use self::promise::{Promise, promises};
use self::signal::{Heard, Signal};
use super::failure::{Failure, Kind, OrFail};
use super::global::Global;
use super::output::table;
use super::privacy::finite;
use super::settings::{PlanFile, read_plan};

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// A federation or simulation file.
    file: PathBuf,
}

/// All that is said about a plan.
struct Explanation {
    plan: Plan,
    parameters: usize,
    promises: Vec<Promise>,
    assumes: Vec<String>,
    outside: Vec<String>,
    signal: Option<Heard>,
}

pub(super) fn explain(args: &ExplainArgs, global: &Global) -> Result<(), Failure> {
    let path = args.file.display();
    let PlanFile { plan, is_simulation } = read_plan(&args.file, None)?;
    let explanation = Explanation::of(plan, is_simulation).or_fail(Kind::Configuration, path)?;
    global.format.say(|| explanation.lines(), || explanation.object());
    Ok(())
}

impl Explanation {
    fn of(plan: Plan, is_simulation: bool) -> Result<Self, String> {
        let layout = Models::new().layout_of(&plan.spec).map_err(|error| error.to_string())?;
        let promises = promises(&plan)?;
        let privacy = &plan.spec.privacy;
        let mut outside = server::outside(privacy);
        if is_simulation && !privacy.is_none() {
            outside.push(
                "a simulation itself: its seed is known, so it claims nothing; this is what the plan promises \
                 once it is deployed"
                    .to_owned(),
            );
        }
        let assumes = privacy.central.as_ref().map(server::assumptions).unwrap_or_default();
        let signal = Signal::of(&plan, &layout)?;
        Ok(Self { parameters: layout.shared_len(), promises, assumes, outside, signal, plan })
    }

    fn lines(&self) -> String {
        let (name, rounds, parameters) = (&self.plan.name, self.plan.rounds, self.parameters);
        let mut parts = vec![format!(
            "{name}: {}, {}",
            counted(rounds, "round"),
            counted(parameters, "shared parameter")
        )];
        if self.promises.is_empty() {
            let seen = match self.plan.method {
                Some(_) => "answer",
                None => "update",
            };
            parts.push(format!(
                "It promises no privacy; epsilon is infinite. Every {seen} is seen by the server."
            ));
        }
        parts.extend(self.promises.iter().map(promise_lines));
        let list = |title: &str, items: &[String]| {
            let items: Vec<String> = items.iter().map(|item| format!("  - {item}")).collect();
            format!("{title}\n{}", items.join("\n"))
        };
        if !self.assumes.is_empty() {
            parts.push(list("Assumed", &self.assumes));
        }
        parts.push(list("Outside", &self.outside));
        parts.extend(self.signal.as_ref().map(signal_lines));
        parts.join("\n\n")
    }

    fn object(&self) -> Value {
        json!({
            "name": self.plan.name,
            "rounds": self.plan.rounds,
            "parameters": self.parameters,
            "promises": self.promises.iter().map(promise_object).collect::<Vec<_>>(),
            "assumes": self.assumes,
            "outside": self.outside,
            "signal_to_noise": self.signal.as_ref().map(signal_object),
        })
    }
}

fn signal_lines(heard: &Heard) -> String {
    match heard {
        Heard::Is(signal) => format!(
            "Signal and noise (in clipping norms, for the mean of {})\n  \
             noise of one {}    {:.3}\n  noise over the run    {:.3} for each unit of the largest possible signal\n  \
             {}: {}",
            signal.noised.of(),
            signal.noised.time(),
            signal.round,
            signal.run,
            signal.verdict(),
            signal.advice()
        ),
        Heard::ByRecords(by) => format!(
            "Signal and noise (in clipping norms, for the mean of one step's gradients at the smallest cohort)\n  \
             noise of one step     {:.3} over the number of a site's training records, which are one batch (batch_size = 0)\n  \
             noise over the run    {:.3} over that number, for each unit of the largest possible signal\n  \
             usable where sites have {} training records or more each, hopeless below {}",
            by.step,
            by.run,
            by.usable(),
            by.hopeless()
        ),
    }
}

fn signal_object(heard: &Heard) -> Value {
    match heard {
        Heard::Is(signal) => json!({
            "of": signal.noised.of(),
            "noise_per_round": signal.round,
            "noise_over_run": signal.run,
            "verdict": signal.verdict(),
            "advice": signal.advice(),
        }),
        Heard::ByRecords(by) => json!({
            "of": "one step's gradients at the smallest cohort, for a site with one training record",
            "noise_per_round": by.step,
            "noise_over_run": by.run,
            "records_usable": by.usable(),
            "records_hopeless_below": by.hopeless(),
        }),
    }
}

fn promise_lines(promise: &Promise) -> String {
    let mut lines = vec![
        format!("For {}, against {}", promise.unit, promise.against),
        format!("  relation   {}", promise.relation),
        format!("  mechanism  {}", promise.mechanism),
    ];
    if promise.reached.is_empty() {
        let (most, delta) = (Figure(promise.epsilon_max), Figure(promise.delta));
        lines.push(format!(
            "  epsilon    at most {most} at delta {delta}: each site accounts for it, since it depends on how many \
             records the site has"
        ));
        return lines.join("\n");
    }
    let number = |epsilon: Option<f64>| {
        epsilon.map_or_else(|| "-".to_owned(), |epsilon| format!("{:.4}", Figure(epsilon)))
    };
    let head = ["  rounds", "epsilon by rdp", "by pld"].map(str::to_owned).to_vec();
    let row = |reached: &Reached| {
        vec![format!("  {}", reached.rounds), number(reached.epsilon.rdp), number(reached.epsilon.pld)]
    };
    let rows: Vec<_> = std::iter::once(head).chain(promise.reached.iter().map(row)).collect();
    lines.push(table(&rows));
    let (most, delta) = (Figure(promise.epsilon_max), Figure(promise.delta));
    lines.push(match promise.refused_round {
        Some(round) => format!("  budget     {most} at delta {delta}: round {round} would be refused"),
        None => match promise.participations_max {
            Some(times) => format!(
                "  budget     {most} at delta {delta}: enough for every round, in which each client may take part {times} times at most"
            ),
            None => format!("  budget     {most} at delta {delta}: enough for every round"),
        },
    });
    lines.extend(promise.seen.as_ref().map(|(relation, epsilon)| {
        let best = epsilon.best();
        format!(
            "  seen       {:.4} ({relation}) against whoever sees who takes part; no budget is kept for that",
            Figure(best)
        )
    }));
    lines.join("\n")
}

fn promise_object(promise: &Promise) -> Value {
    let epsilon = |reached: &Reached| {
        json!({
            "rounds": reached.rounds,
            "rdp": reached.epsilon.rdp.map(finite),
            "pld": reached.epsilon.pld.map(finite),
        })
    };
    json!({
        "unit": promise.unit,
        "population": promise.population,
        "relation": promise.relation,
        "against": promise.against,
        "mechanism": promise.mechanism,
        "delta": promise.delta,
        "epsilon": promise.reached.iter().map(epsilon).collect::<Vec<_>>(),
        "epsilon_max": promise.epsilon_max,
        "refused_round": promise.refused_round,
        "epsilon_where_participants_are_seen": promise.seen.as_ref().map(|(relation, epsilon)| json!({
            "relation": relation,
            "rdp": epsilon.rdp.map(finite),
            "pld": epsilon.pld.map(finite),
        })),
    })
}
