//! `consortia simulate`: a federation of virtual clients in this process.

mod audit;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use consortia::first_model;
use consortia::results::{Results, event_json, write_model};
use learning::device::select;
use protocol::wire::RoundSummary;
use protocol::{Metrics, Seed, Spec, TaskKind};
use serde_json::json;
use server::{Evaluators, FederationConfig, Note, RunEnd, read_toml};
use simulations::audit::AuditReport;
use simulations::{Observation, Outcome, Population, Scenario, Workforce, World};

use audit::{Audit, with_canaries};

use super::columns::{completed, read_plan_text};
use super::failure::{Failure, Kind, OrFail};
use super::folder::open_results;
use super::output::share;
use super::progress::Progress;
use super::{Global, Setting};

#[derive(Debug, Args)]
pub(super) struct SimulateArgs {
    /// The simulation file: a federation file with a `[simulation]` table.
    file: PathBuf,
    /// Change a setting of the file, such as `training.epochs=2`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<Setting>,
    /// The seed from which everything random follows, instead of the file's.
    #[arg(long)]
    seed: Option<u64>,
    /// Worker threads; all cores by default. The result does not depend on it.
    #[arg(long)]
    threads: Option<usize>,
    /// The folder in which the results folder is made.
    #[arg(long, default_value = "runs")]
    out: PathBuf,
    /// Where to train: auto, cpu, cuda, cuda:N or metal.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Attack the plan's client-level privacy, too, and say how much was given away at least.
    #[arg(long, value_enum)]
    audit: Option<Audit>,
}

pub(super) fn simulate(args: &SimulateArgs, global: &Global) -> Result<(), Failure> {
    let started = Instant::now();
    let (mut scenario, resolved) = read_scenario(args)?;
    let device = select(&args.device).or_fail(Kind::Configuration, "--device")?;
    let spec = std::sync::Arc::clone(&scenario.plan.spec);
    let population =
        Population::build(&scenario.simulation, &spec, device).or_fail(Kind::Configuration, file(args))?;
    let copies = scenario.simulation.copies.get();
    let people = People { clients: population.sites().count(), copies };
    if !population.has_tests() {
        // Nobody could answer: asking would only cost time.
        scenario.plan.evaluation.sites = Evaluators::None;
    }
    let seed = scenario.simulation.seed;
    let first = first_model(population.models(), &spec, Seed::from_number(seed))
        .or_fail(Kind::Configuration, file(args))?;

    let (name, rounds) = (scenario.plan.name.clone(), scenario.plan.rounds);
    let mut results = open_results(&args.out, &name)?;
    results.resolved(&resolved).or_fail(Kind::Run, "resolved.toml")?;
    let began = first.shared.clone();
    let plan = scenario.plan.clone();
    let canaries = args.audit.map(|audit| audit.canaries(began.len(), seed)).transpose()?.flatten();
    let canaried = canaries
        .as_ref()
        .map(|canaries| with_canaries(&population, canaries, &spec, &first.layout))
        .transpose()?;
    let workforce: &dyn Workforce = canaried.as_ref().map_or(&population, |canaried| canaried);
    let world = World::new(scenario.plan, first.shared, seed, scenario.simulation.weather)
        .or_fail(Kind::Configuration, file(args))?
        .with_tensors(first.layout.shared_lengths());
    #[cfg(feature = "insecure-test-noise")]
    let world = world.with_chance(super::insecure::chance(seed));
    let world = if let Some(threads) = args.threads { world.with_threads(threads) } else { world };
    let mut observer = Observer {
        progress: Progress::new(global, rounds),
        results: &mut results,
        asked: 0,
        answered: 0,
        trouble: None,
    };
    let ran = world.run(workforce, &mut |seen| observer.observe(&seen));
    observer.progress.end();
    let trouble = observer.trouble.take();
    let outcome = ran.or_fail(Kind::Run, file(args))?;
    trouble.map_or(Ok(()), Err).or_fail(Kind::Run, "events.jsonl")?;

    let standardiser = outcome.standardiser.as_deref();
    write_model(&results.folder().join("model.safetensors"), &first.layout, &outcome.model, standardiser)
        .or_fail(Kind::Run, "model.safetensors")?;
    if let Some(statement) = &outcome.statement {
        results.privacy(statement, &outcome.ledger).or_fail(Kind::Run, "privacy_statement.json")?;
    }
    let report = match args.audit {
        Some(audit) => {
            let claimed = epsilon(&spec, &outcome.rounds).unwrap_or(f64::INFINITY);
            let ran = canaries.as_ref().map(|canaries| (canaries, &*outcome.model, claimed));
            Some(audit.judge(&plan, &first.layout, &began, seed, ran)?)
        }
        None => None,
    };
    let folder = results
        .finish(&name, outcome.end.message(), &outcome.model.sha256(), &outcome.rounds)
        .or_fail(Kind::Run, "results")?;
    conclude(&people, &spec, &outcome, report.as_ref(), &folder, started.elapsed().as_secs_f64(), global)
}

fn file(args: &SimulateArgs) -> String {
    args.file.display().to_string()
}

/// The scenario, and its file with every default spelt out.
fn read_scenario(args: &SimulateArgs) -> Result<(Scenario, String), Failure> {
    let path = file(args);
    let mut text = read_plan_text(&args.file, None)?;
    let base = args.file.parent().map(Path::to_path_buf).unwrap_or_default();
    let lookup = |name: &str| std::env::var(name).ok();
    if !args.set.is_empty() {
        // Errors of the file itself are shown with the file's own lines, before anything is changed.
        Scenario::parse(&text, &base, &lookup).or_fail(Kind::Configuration, &path)?;
        text = completed(&with_settings(&text, &args.set)?, &args.file, None)?;
    }
    let mut scenario = Scenario::parse(&text, &base, &lookup).or_fail(Kind::Configuration, &path)?;
    scenario.simulation.seed = args.seed.unwrap_or(scenario.simulation.seed);
    let mut typed: FederationConfig = read_toml(&text).or_fail(Kind::Configuration, &path)?;
    typed.simulation =
        Some(toml::Table::try_from(&scenario.simulation).or_fail(Kind::Defect, "resolved.toml")?);
    let resolved = toml::to_string_pretty(&typed).or_fail(Kind::Defect, "resolved.toml")?;
    Ok((scenario, resolved))
}

/// The text with `--set` applied.
fn with_settings(text: &str, settings: &[Setting]) -> Result<String, Failure> {
    let mut root: toml::Table = toml::from_str(text).or_fail(Kind::Configuration, "")?;
    for Setting { key, value } in settings {
        let typed = format!("value = {value}");
        let parsed = toml::from_str::<toml::Table>(&typed).ok().and_then(|mut table| table.remove("value"));
        let value = parsed.unwrap_or_else(|| toml::Value::String(value.clone()));
        let (parents, last) =
            key.rsplit_once('.').map_or((None, key.as_str()), |(parents, last)| (Some(parents), last));
        let mut table = &mut root;
        for part in parents.into_iter().flat_map(|parents| parents.split('.')) {
            let entry = table.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            let message =
                || Failure::new(Kind::Configuration, format!("--set {key}: `{part}` is not a table"));
            table = entry.as_table_mut().ok_or_else(message)?;
        }
        table.insert(last.to_owned(), value);
    }
    toml::to_string(&root).or_fail(Kind::Configuration, "--set")
}

struct Observer<'a> {
    progress: Progress,
    results: &'a mut Results,
    asked: usize,
    answered: usize,
    trouble: Option<std::io::Error>,
}

impl Observer<'_> {
    fn observe(&mut self, seen: &Observation<'_>) {
        match seen.note {
            Note::Opened { cohort, .. } => (self.asked, self.answered) = (*cohort, 0),
            Note::Accepted { task, .. } => {
                self.answered += 1;
                let what = if task.kind == TaskKind::Train { "trained" } else { task.kind.name() };
                self.progress.within(format!("{} of {} {what}", self.answered, self.asked));
                // One line an answer would drown a large simulation; the round's line has the counts.
                return;
            }
            Note::Waiting { .. } => return,
            Note::Round(summary) => self.progress.round(summary),
            _ => {}
        }
        if let Err(error) = self.results.event(&event_json(seen.now.as_seconds(), seen.note)) {
            self.trouble.get_or_insert(error);
        }
    }
}

/// The last test metrics: at the sites where they test, else the server's.
pub(super) fn last_test(rounds: &[RoundSummary]) -> Option<Metrics> {
    let sites = rounds.iter().rev().find_map(|round| round.sites);
    sites.or_else(|| rounds.iter().rev().find_map(|round| round.central))
}

/// Epsilon of all releases of the run, where its plan promises client-level privacy at the server: 0 when nothing was released.
fn epsilon(spec: &Spec, rounds: &[RoundSummary]) -> Option<f64> {
    spec.privacy.central.as_ref()?;
    Some(rounds.iter().rev().find_map(|round| round.epsilon).unwrap_or(0.0))
}

/// Who was simulated.
struct People {
    clients: usize,
    /// Virtual clients that share the records of one client of the partition.
    copies: usize,
}

impl People {
    fn describe(&self) -> String {
        match self.copies {
            1 => self.clients.to_string(),
            copies => {
                let originals = self.clients / copies;
                format!("{}: the records of {originals} clients, each used by {copies} of them", self.clients)
            }
        }
    }
}

/// What the run would have cost, had it been no simulation.
fn describe_price(spec: &Spec, epsilon: Option<f64>) -> String {
    let bounded = |what: &str, epsilon_max: f64, delta: f64| {
        format!("at most {epsilon_max} at delta {delta:e} for {what}, where each site stops")
    };
    match (epsilon, &spec.privacy.examples, &spec.privacy.local) {
        (Some(0.0), ..) => "0: nothing was released".to_owned(),
        (Some(epsilon), ..) => {
            format!("{epsilon:.4}, if this were no simulation; see privacy_statement.json")
        }
        (None, Some(examples), _) => bounded("each record", examples.epsilon_max.value(), examples.delta),
        (None, None, Some(local)) => bounded("each client", local.epsilon_max.value(), local.delta),
        (None, None, None) => "infinite: the plan has no [privacy]".to_owned(),
    }
}

fn conclude(
    people: &People,
    spec: &Spec,
    outcome: &Outcome,
    audit: Option<&AuditReport>,
    folder: &Path,
    seconds: f64,
    global: &Global,
) -> Result<(), Failure> {
    let test = last_test(&outcome.rounds);
    let loss = test
        .or_else(|| outcome.rounds.iter().rev().find_map(|round| round.train))
        .map(|metrics| metrics.loss);
    let rounds = outcome.rounds.iter().filter(|round| round.round > 0).count();
    let sha256 = outcome.model.sha256();
    let accuracy = test.and_then(|metrics| metrics.accuracy);
    let speed = outcome.updates as f64 / seconds;
    let epsilon = epsilon(spec, &outcome.rounds);
    let price = describe_price(spec, epsilon);
    let text = || {
        format!(
            "clients        {}\nrounds         {rounds}\nclient updates {} ({speed:.1} a second)\ntest accuracy  {}\nloss           {}\n\
             epsilon        {}\nvirtual time   {:.0} s\nmodel sha256   {sha256}\nresults        {}{}",
            people.describe(),
            outcome.updates,
            share(accuracy),
            loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}")),
            price,
            outcome.elapsed.as_secs_f64(),
            folder.display(),
            audit.map_or_else(String::new, |report| format!("\n\n{report}"))
        )
    };
    let object = || {
        json!({
            "model_sha256": sha256,
            "rounds": rounds,
            "clients": people.clients,
            "copies": people.copies,
            "accuracy": accuracy,
            "loss": loss,
            "seconds": seconds,
            "updates": outcome.updates,
            "updates_per_second": speed,
            "epsilon": epsilon,
            "audit": audit,
            "virtual_seconds": outcome.elapsed.as_secs_f64(),
            "results": folder,
        })
    };
    global.format.say(text, object);
    if audit.is_some_and(AuditReport::refutes) {
        return Err(Failure::new(Kind::Run, "the audit refutes what the plan claims"));
    }
    match &outcome.end {
        RunEnd::Finished | RunEnd::Stopped => Ok(()),
        RunEnd::Failed(why) => Err(Failure::new(Kind::Run, why)),
        RunEnd::BudgetExhausted(why) => Err(Failure::new(Kind::Refused, why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(privacy: &str) -> Spec {
        let json = format!(
            r#"{{"model": "logistic", "data": {{"tensor": {{"shape": [2], "target": {{"classes": 2}}}}}},
            "training": {{"batch_size": 0, "optimizer": {{"sgd": {{"learning_rate": 0.1}}}}}}, "cohort_max": 1048576,
            "update": {{"weights": "uniform"}}, "privacy": {{{privacy}}}}}"#
        );
        Spec::from_json(&json).unwrap()
    }

    #[test]
    fn a_private_run_that_released_nothing_has_cost_nothing_and_one_without_privacy_everything() {
        let central = |sampling: &str| {
            spec(&format!(
                r#""central": {{"population": "p", "relation": "zero_out", "delta": 1e-5, "epsilon_max": 2.0, "noise_multiplier": 1.0,
                "rounds": 1, "denominator": 1.0, "sampling": {sampling}, "noise": "independent", "clipping": "fixed",
                "metrics": "off", "clients_min": 0}}"#
            ))
        };
        let private = central(r#"{"poisson": {"rate": 0.5}}"#);
        assert_eq!(epsilon(&private, &[]), Some(0.0));
        assert_eq!(describe_price(&private, epsilon(&private, &[])), "0: nothing was released");
        let plain = spec("");
        assert!(describe_price(&plain, epsilon(&plain, &[])).contains("infinite"));
        let records = spec(
            r#""examples": {"noise_multiplier": 1.0, "norm_max": 1.0, "delta": 1e-5, "epsilon_max": 3.0}"#,
        );
        assert!(
            describe_price(&records, epsilon(&records, &[]))
                .starts_with("at most 3 at delta 1e-5 for each record")
        );
    }

    #[test]
    fn settings_are_typed_and_make_the_tables_they_need() {
        let settings = ["rounds=3", "name=x", "training.optimizer.sgd.learning_rate=0.5"];
        let settings: Vec<Setting> = settings.iter().map(|one| one.parse().unwrap()).collect();
        let text = with_settings("rounds = 1\nname = \"a\"\n", &settings).unwrap();
        let table: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(table["rounds"].as_integer(), Some(3));
        assert_eq!(table["name"].as_str(), Some("x"));
        assert_eq!(table["training"]["optimizer"]["sgd"]["learning_rate"].as_float(), Some(0.5));
        assert!(with_settings("rounds = 1\n", &["rounds.x=1".parse().unwrap()]).is_err());
    }
}
