//! `consortia simulate`: a federation of virtual clients in this process.

mod attacked;
mod audit;
mod crowd;
mod figures;
mod findings;
mod observer;
mod saved;
mod settings;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use command::results::{ClientMetrics, Clock, Ending, Results, figure, write_model};
use consortia::first_model;
use learning::Models;
use learning::device::select;
use protocol::wire::{ClientSummary, RoundSummary};
use protocol::{Layout, Metrics, ModelSpec, Seed, Spec, Stop};
use serde_json::json;
use server::best::Score;
use server::net::InitialModel;
use server::{ClientRecord, Evaluators, FederationConfig, Plan, RunEnd, RunProgress, Worsened, read_toml};
use simulations::audit::AuditReport;
use simulations::{Outcome, Population, Scenario, Simulator, Workforce};

use attacked::Attacked;
use audit::{Audit, with_canaries};
use crowd::Crowd;
use figures::{Losses, describe_price, describe_test, epsilon};
use findings::{Findings, Remark};
use observer::{Observer, tell_of_crowd};
use privacy::counted;
use saved::Saved;

use super::columns::read_plan_text;
use super::failure::{Failure, Kind, OrFail};
use super::folder::open_results;
use super::global::Global;
use super::output::tell;
use super::plans::{plan_of, scenario_of};
use super::progress::Progress;
use super::shell::quoted;
use super::start::{Started, started};
use super::watch::stop_at_signal;

/// Clients in the report.
const REPORTED_MAX: usize = 64;

#[derive(Debug, Args)]
pub(super) struct SimulateArgs {
    /// The simulation file: a federation file with a `[simulation]` table.
    #[arg(required_unless_present = "resume")]
    file: Option<PathBuf>,
    /// Resume an interrupted simulation from the folder of its results. The model is the same as without the interruption, except
    /// in a private plan, whose noise comes from the operating system.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["file", "set", "seed", "out", "audit"])]
    resume: Option<PathBuf>,
    /// Change a setting of the file, such as `training.epochs=2`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<settings::Setting>,
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
    /// Also attack the plan's client-level privacy, and report a lower bound on the privacy loss.
    #[arg(long, value_enum)]
    audit: Option<Audit>,
}

pub(super) fn simulate(args: &SimulateArgs, global: &Global) -> Result<(), Failure> {
    let started = Instant::now();
    let stop = Stop::default();
    stop_at_signal(&stop);
    let Begun { saved, mut scenario, start, text } = Begun::of(args)?;
    args.audit.map_or(Ok(()), |audit| audit::refuse(audit, &scenario.plan, &file(args)))?;
    let device = select(&args.device).or_fail(Kind::Configuration, "--device")?;
    let spec = std::sync::Arc::clone(&scenario.plan.spec);
    let typed = (args.threads, file(args));
    let (crowd, threads) = Crowd::begin(&scenario.simulation, &spec, device, typed, &stop)?;
    let people = People::of(&crowd, scenario.simulation.copies.get());
    let mut findings = Findings::new(&spec, global.verbose > 0);
    if let Some(population) = crowd.population() {
        findings.look_at(population, &spec);
    }
    if !crowd.may_test() {
        // Nobody could answer: asking would only cost time.
        scenario.plan.evaluation.sites = Evaluators::None;
    }
    let (seed, attack) = (scenario.simulation.seed, attacked::of(&scenario.simulation));
    let first = match start {
        Some(start) => start,
        None => first_model(&Models::new(), &spec, Seed::from_number(seed))
            .or_fail(Kind::Configuration, file(args))?,
    };
    let plan = scenario.plan.clone();
    let mut results = open(args, &plan.name, &text, saved.as_ref())?;
    reserve(&results, first.shared.len())?;
    let began = first.shared.clone();
    let canaries = args.audit.map(|audit| audit.canaries(began.len(), seed)).transpose()?.flatten();
    let canaried = canaries
        .as_ref()
        .map(|canaries| with_canaries(crowd.workforce(), canaries, &spec, &first.layout))
        .transpose()?;
    let workforce = canaried.as_ref().map(|canaried| canaried as &dyn Workforce);
    let workforce = workforce.unwrap_or_else(|| crowd.workforce());
    let simulator = simulator(args, scenario, &first, &stop)?.with_threads(threads);
    let (simulator, metrics, events) = match saved {
        Some(saved) => (simulator.with_snapshot(saved.simulation), saved.metrics, saved.events),
        None => (simulator, ClientMetrics::of(workforce.clients().iter().cloned()), 0),
    };
    let progress = Progress::new(global, plan.rounds);
    let mut observer = Observer::new(progress, &mut results, &text, findings, metrics, stop);
    (observer.is_talkative, observer.shows_clients) = (global.quiet == 0, global.verbose > 0);
    observer.events = events;
    if observer.shows_clients {
        tell_of_crowd(people.clients);
    }
    let ran = simulator.run_watched(plan.strategy.optimizer(), workforce, &mut observer);
    observer.progress.end();
    let mut outcome = ran.or_fail(Kind::Run, file(args))?;
    if let Some(snapshot) = outcome.snapshot.take().filter(|_| observer.error.is_none()) {
        observer.save(snapshot);
    }
    let Observer { findings, metrics, error, .. } = observer;
    save(&results, &first.layout, &outcome, error)?;
    results.show_clients(reported(&outcome), metrics);
    let judge = |audit: Audit| {
        let claimed = epsilon(&spec, &outcome.rounds).unwrap_or(f64::INFINITY);
        let ran = canaries.as_ref().map(|canaries| (canaries, &*outcome.model, claimed));
        audit.judge(&plan, &first.layout, &began, seed, ran)
    };
    let audit = args.audit.filter(|_| outcome.end != RunEnd::Stopped).map(judge).transpose()?;
    let attack = attack.map(|attack| Attacked::of(&attack, crowd.population(), &outcome, &spec));
    let (audit, attack) = (audit.as_ref(), attack.as_ref());
    let (people, rounds) = (&people, plan.rounds);
    let ended = Ended { people, rounds, spec: &spec, outcome: &outcome, audit, findings: &findings, attack };
    ended.conclude(results, &plan, started, global)
}

/// A simulation that begins, or goes on.
struct Begun {
    saved: Option<Saved>,
    scenario: Scenario,
    /// What an external model begins with.
    start: Option<InitialModel>,
    /// The scenario with every default spelt out.
    text: String,
}

impl Begun {
    fn of(args: &SimulateArgs) -> Result<Self, Failure> {
        match &args.resume {
            Some(folder) => {
                let (saved, mut scenario, text) = Saved::read(folder)?;
                let Started { plan, start } = started(scenario.plan, folder)?;
                scenario.plan = plan;
                Ok(Self { saved: Some(saved), scenario, start, text })
            }
            None => {
                let (scenario, start, text) = read_scenario(args)?;
                Ok(Self { saved: None, scenario, start, text })
            }
        }
    }
}

fn simulator(
    args: &SimulateArgs,
    scenario: Scenario,
    first: &InitialModel,
    stop: &Stop,
) -> Result<Simulator, Failure> {
    let Scenario { plan, simulation } = scenario;
    let simulator = Simulator::new(plan, first.shared.clone(), simulation.seed, simulation.availability)
        .or_fail(Kind::Configuration, file(args))?
        .with_layout(&first.layout)
        .with_adversaries(simulation.adversaries)
        .with_stop(stop.clone());
    #[cfg(feature = "insecure-test-noise")]
    let simulator = simulator.with_chance(super::insecure::chance(simulation.seed));
    Ok(simulator)
}

/// Writes the models, in the room that was kept for them, and what may be said of their privacy.
fn save(
    results: &Results,
    layout: &Layout,
    outcome: &Outcome,
    error: Option<(&'static str, std::io::Error)>,
) -> Result<(), Failure> {
    results.give_back().or_fail(Kind::Run, "the room that was kept for the model")?;
    write_models(results, layout, outcome)?;
    if let Some((file, error)) = error {
        return Err(cut_short(results, file, &error, outcome));
    }
    match &outcome.statement {
        Some(statement) => {
            results.privacy(statement, &outcome.ledger).or_fail(Kind::Run, "privacy_statement.json")
        }
        None => Ok(()),
    }
}

/// What the command was given: its file, or the folder whose simulation goes on.
fn file(args: &SimulateArgs) -> String {
    args.file.as_ref().or(args.resume.as_ref()).map_or_else(String::new, |path| path.display().to_string())
}

/// The folder of results: a new one with the plan in it, or that of the simulation that goes on.
fn open(args: &SimulateArgs, name: &str, plan: &str, saved: Option<&Saved>) -> Result<Results, Failure> {
    if let (Some(folder), Some(saved)) = (&args.resume, saved) {
        return Results::go_on(folder, saved.events).or_fail(Kind::Run, folder.display());
    }
    let results = open_results(&args.out, name)?;
    results.resolved(plan).or_fail(Kind::Run, "resolved.toml")?;
    Ok(results)
}

/// Keeps room for the last and the best model.
fn reserve(results: &Results, parameters: usize) -> Result<(), Failure> {
    let bytes = 8 * parameters as u64;
    let doing = format!("{}: no room for the results; nothing was trained", results.folder().display());
    results.reserve(bytes).or_fail(Kind::Run, doing)
}

/// Writes the last model, and the best one beside it.
fn write_models(results: &Results, layout: &Layout, outcome: &Outcome) -> Result<(), Failure> {
    let standardiser = outcome.standardiser.as_deref();
    let write = |name: &str, model| {
        write_model(&results.folder().join(name), layout, model, standardiser).or_fail(Kind::Run, name)
    };
    write("model.safetensors", &outcome.model)?;
    match &outcome.best {
        Some(best) => write("best.safetensors", &best.model),
        None => Ok(()),
    }
}

/// The disk has refused.
fn cut_short(results: &Results, file: &str, error: &std::io::Error, outcome: &Outcome) -> Failure {
    let folder = results.folder().display();
    let round = outcome.rounds.last().map_or(0, |round| round.round);
    let message = format!(
        "{folder}/{file}: {error}; the simulation was stopped there, and the model of round {round} is in \
         {folder}/model.safetensors. Make room and begin anew"
    );
    Failure::new(Kind::Run, message)
}

/// How many of its rounds released a model.
fn releases(outcome: &Outcome) -> u32 {
    let released = outcome.rounds.iter().filter(|round| round.round > 0 && round.released).count();
    u32::try_from(released).unwrap_or(u32::MAX)
}

/// The user has ended it.
fn interrupted(folder: &Path, outcome: &Outcome, rounds: u32) -> Failure {
    let done = outcome.rounds.last().map_or(0, |round| round.round);
    let message = if folder.join(saved::FILE).exists() {
        format!(
            "interrupted after round {done} of {rounds}; `consortia simulate --resume {}` goes on from there",
            quoted(folder)
        )
    } else {
        format!("interrupted before the end of round 1 of {rounds}; nothing was released")
    };
    Failure::new(Kind::Run, message)
}

/// The clients for the report; of very many those that have the most to explain.
fn reported(outcome: &Outcome) -> Vec<ClientSummary> {
    let mut clients: Vec<_> = outcome.clients.iter().collect();
    if clients.len() > REPORTED_MAX {
        let setbacks =
            |record: &ClientRecord| record.declined.values().chain(record.refused.values()).sum::<u32>();
        let score = |record: &ClientRecord| {
            let score = record.test.as_ref().and_then(Score::of);
            score.map_or(f64::INFINITY, |score| score.accuracy.unwrap_or(-score.loss))
        };
        clients.sort_by(|(_, a), (_, b)| setbacks(b).cmp(&setbacks(a)).then(score(a).total_cmp(&score(b))));
        clients.truncate(REPORTED_MAX);
    }
    clients.into_iter().map(|(client, record)| record.summary(client)).collect()
}

/// The scenario, and its file with every default spelt out.
fn read_scenario(args: &SimulateArgs) -> Result<(Scenario, Option<InitialModel>, String), Failure> {
    let path = file(args);
    let given = args.file.as_deref().unwrap_or_else(|| Path::new(""));
    let mut text = read_plan_text(given, None)?;
    let base = given.parent().map(Path::to_path_buf).unwrap_or_default();
    let lookup = |name: &str| std::env::var(name).ok();
    if !has_simulation(&text) && plan_of(&text).is_ok() {
        let message = format!(
            "{path}: the plan has no [simulation] table, which says whose records are trained on: add one, such as\n\n  [simulation]\n  \
             clients = 10\n  dataset = {{ synthetic = {{ rows = 1000 }} }}\n\n(docs/federation.md has all of it), or hand the plan to a server: \
             `consortia run submit {} --dir DIR`",
            quoted(&path)
        );
        return Err(Failure::new(Kind::Configuration, message));
    }
    if !args.set.is_empty() {
        // Errors of the file itself are shown with the file's own lines, before anything is changed.
        scenario_of(&text, &base, &lookup).or_fail(Kind::Configuration, &path)?;
        text = settings::apply(&text, &args.set, given, &base)?;
    }
    let mut scenario = scenario_of(&text, &base, &lookup).or_fail(Kind::Configuration, &path)?;
    scenario.simulation.seed = args.seed.unwrap_or(scenario.simulation.seed);
    let Started { plan, start } = started(scenario.plan, given)?;
    scenario.plan = plan;
    let mut typed: FederationConfig = read_toml(&text).or_fail(Kind::Configuration, &path)?;
    if let Some(ModelSpec::External(model)) = &mut typed.model {
        // The resolved plan stands in another folder.
        let whole = std::path::absolute(base.join(&model.start)).or_fail(Kind::Configuration, &path)?;
        model.start = whole.to_string_lossy().into_owned();
    }
    typed.simulation =
        Some(toml::Table::try_from(&scenario.simulation).or_fail(Kind::Defect, "resolved.toml")?);
    let resolved = typed.to_toml().or_fail(Kind::Defect, "resolved.toml")?;
    Ok((scenario, start, resolved))
}

/// Whether a plan has the table that only simulations read.
fn has_simulation(text: &str) -> bool {
    toml::from_str::<toml::Table>(text).is_ok_and(|table| table.contains_key("simulation"))
}

/// The last test metrics: at the sites where they test, else the server's.
pub(super) fn last_test(rounds: &[RoundSummary]) -> Option<Metrics> {
    let sites = rounds.iter().rev().find_map(|round| round.sites);
    sites.or_else(|| rounds.iter().rev().find_map(|round| round.central))
}

/// The last further metrics of external learners, likewise.
fn last_further(rounds: &[RoundSummary]) -> BTreeMap<String, f64> {
    let last = |of: fn(&RoundSummary) -> &BTreeMap<String, f64>| {
        rounds.iter().rev().map(of).find(|all| !all.is_empty()).cloned()
    };
    last(|round| round.further.sites()).or_else(|| last(|round| round.further.train())).unwrap_or_default()
}

/// Who was simulated.
struct People {
    clients: usize,
    /// Virtual clients that share the records of one client of the partition.
    copies: usize,
    /// Whether there are test records, with any of them or with the server.
    have_tests: bool,
}

impl People {
    fn of(crowd: &Crowd, copies: usize) -> Self {
        let have_tests = crowd.population().is_none_or(Population::is_tested);
        Self { clients: crowd.workforce().clients().len(), copies, have_tests }
    }

    fn describe(&self) -> String {
        match self.copies {
            1 => self.clients.to_string(),
            copies => {
                let originals = self.clients / copies;
                let originals = counted(originals, "client");
                format!("{}: the records of {originals}, each used by {copies} of them", self.clients)
            }
        }
    }
}

/// A simulation that is over.
struct Ended<'a> {
    people: &'a People,
    /// Of the plan.
    rounds: u32,
    spec: &'a Spec,
    outcome: &'a Outcome,
    audit: Option<&'a AuditReport>,
    findings: &'a Findings,
    attack: Option<&'a Attacked>,
}

impl Ended<'_> {
    fn progress(&self) -> RunProgress {
        let rounds_done = self.outcome.rounds.last().map_or(0, |round| round.round);
        RunProgress { rounds_done, rounds: self.rounds, releases: releases(self.outcome) }
    }

    /// Writes the rest of the results, says what came of it, and whether it was a success.
    fn conclude(
        &self,
        results: Results,
        plan: &Plan,
        started: Instant,
        global: &Global,
    ) -> Result<(), Failure> {
        let outcome = self.outcome;
        let lead = match &outcome.end {
            RunEnd::Stopped if releases(outcome) == 0 => {
                "interrupted before anything was released".to_owned()
            }
            RunEnd::Stopped => "interrupted; the model of the last release stands".to_owned(),
            end => end.message(self.progress()),
        };
        let seconds = started.elapsed().as_secs_f64();
        let ending = Ending {
            title: &plan.name,
            state: outcome.end.state(),
            lead: &lead,
            remarks: &self.remarks().into_iter().map(|remark| remark.whole).collect::<Vec<_>>(),
            model_sha256: &outcome.model.sha256(),
            clock: Clock::Virtual,
            real_seconds: Some(seconds),
            now: time::OffsetDateTime::now_utc(),
        };
        let folder = results.finish(&ending, &outcome.rounds).or_fail(Kind::Run, "results")?;
        self.tell(&folder, seconds, global);
        if outcome.end == RunEnd::Stopped {
            return Err(interrupted(&folder, outcome, plan.rounds));
        }
        // Nothing is left to go on from.
        let _ = std::fs::remove_file(folder.join(saved::FILE));
        self.verdict()
    }

    /// What there is to warn of, but for the reasons that the end of the run gives already.
    fn remarks(&self) -> Vec<Remark> {
        let end = self.outcome.end.message(self.progress());
        let is_told = |remark: &Remark| {
            remark.reason.as_ref().is_some_and(|reason| !reason.is_empty() && end.contains(reason.as_str()))
        };
        let attacked = self.attack.map(|attack| Remark::new(attack.sentence(self.people.clients)));
        let trains = !matches!(self.spec.model, ModelSpec::Values { .. });
        let worsened = Worsened::of(&self.outcome.rounds).filter(|_| trains && !self.findings.has_run_away());
        attacked
            .into_iter()
            .chain(worsened.map(|worsened| Remark::new(worsened.to_string())))
            .chain(self.findings.remarks().into_iter().filter(|remark| !is_told(remark)))
            .collect()
    }

    /// Behind the number of rounds, where a method ended before the last one.
    fn converged(&self) -> String {
        let RunProgress { rounds_done, rounds, .. } = self.progress();
        match self.outcome.end == RunEnd::Finished && rounds_done < rounds {
            true => format!(" of {rounds}: converged"),
            false => String::new(),
        }
    }

    /// Says what came of it.
    fn tell(&self, folder: &Path, seconds: f64, global: &Global) {
        let Self { people, spec, outcome, audit, findings, attack, .. } = self;
        let test = last_test(&outcome.rounds);
        let Losses { test: loss, trained, shown } = Losses::of(spec, &outcome.rounds, test);
        let rounds = outcome.rounds.iter().filter(|round| round.round > 0).count();
        let sha256 = outcome.model.sha256();
        let accuracy = test.and_then(|metrics| metrics.accuracy);
        let measured = describe_test(spec, test, people.have_tests);
        let speed = outcome.updates as f64 / seconds;
        let epsilon = epsilon(spec, &outcome.rounds);
        let price = describe_price(spec, epsilon);
        let best = outcome.best.as_ref().map(|best| best.round);
        let further = last_further(&outcome.rounds);
        let text = || {
            let converged = self.converged();
            let declined = match findings.declined() {
                0 => String::new(),
                declined => format!("declined       {}\n", counted(declined, "task")),
            };
            let more: String =
                further.iter().map(|(name, value)| format!("{name:<14} {}\n", figure(*value))).collect();
            let best = best.map_or_else(String::new, |round| format!("best model     of round {round}\n"));
            format!(
                "clients        {}\n{}rounds         {rounds}{converged}\nclient updates {} ({speed:.1} a second)\n{declined}{measured}\
                 {shown}\n{more}{best}epsilon        {}\nvirtual time   {:.0} s\nreal time      {seconds:.1} s\nparameters     sha256 {sha256}\nresults        {}{}",
                people.describe(),
                attack.map_or_else(String::new, |attack| format!("{attack}\n")),
                outcome.updates,
                price,
                outcome.elapsed.as_secs_f64(),
                folder.display(),
                audit.map_or_else(String::new, |report| format!("\n\n{report}"))
            )
        };
        let told = findings.object();
        let object = || {
            json!({
                "model_sha256": sha256,
                "state": self.outcome.end.state(),
                "message": self.outcome.end.message(self.progress()),
                "rounds": rounds,
                "best_round": best,
                "clients": people.clients,
                "copies": people.copies, "adversaries": attack.map(Attacked::object),
                "accuracy": accuracy,
                "loss": loss,
                "further": further,
                "training_loss": trained,
                "seconds": seconds,
                "updates": outcome.updates,
                "updates_per_second": speed,
                "epsilon": epsilon,
                "audit": audit,
                "virtual_seconds": outcome.elapsed.as_secs_f64(),
                "declined": told["declined"],
                "warnings": told["warnings"],
                "results": folder,
            })
        };
        global.format.say(text, object);
        if global.quiet < 2 {
            for Remark { whole, count, .. } in self.remarks() {
                // Without `-q` each reason was told when it was met first.
                let said = count.filter(|_| global.quiet == 0).unwrap_or(whole);
                tell(format_args!("warning: {said}"));
            }
        }
    }

    /// Whether it was a success.
    fn verdict(&self) -> Result<(), Failure> {
        if self.audit.is_some_and(AuditReport::refutes) {
            return Err(Failure::new(Kind::Run, "the audit refutes what the plan claims"));
        }
        match &self.outcome.end {
            RunEnd::Finished => Ok(()),
            end @ (RunEnd::Failed(_) | RunEnd::Stopped) => {
                Err(Failure::new(Kind::Run, end.message(self.progress())))
            }
            RunEnd::BudgetExhausted(why) => Err(Failure::new(Kind::Refused, why)),
        }
    }
}
