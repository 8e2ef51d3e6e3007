//! What an operator does with a run that is there: let it pause, go on or stop, read its log, fetch its models.

use std::path::PathBuf;
use std::str::FromStr;

use ::client::net::{FetchedModel, OperatorClient, OperatorError};
use clap::Args;
use command::results::{Report, write_report};
use privacy::accounting::Figure;
use privacy::counted;
use protocol::RunId;
use protocol::wire::{AdminReply, AdminRequest, Control, ModelChoice, ModelLine, RunState, RunSummary};
use serde_json::{Value, json};
use server::PrivacyStatement;

use super::failure::{Blame, Failure, Kind, OrBlame, OrFail};
use super::global::Global;
use super::hints::Given;
use super::output::{fields, listed, share, table, tell, without_empty};
use super::part::write_released;
use super::plans::plan_of;
use super::request::put;
use super::run::{OperatorArgs, connect, has_released_nothing, stop_hint, summary_json};
use super::watch::runtime;

#[derive(Debug, Args)]
pub(super) struct ControlArgs {
    /// The run, as `run ls` names it.
    run: RunId,
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Debug, Args)]
pub(super) struct StopArgs {
    #[command(flatten)]
    what: ControlArgs,
    /// Stop at once, and discard what the open round has collected.
    #[arg(long)]
    now: bool,
}

#[derive(Debug, Args)]
pub(super) struct NamedArgs {
    /// The run; the newest if absent.
    run: Option<RunId>,
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Debug, Args)]
pub(super) struct ModelsArgs {
    #[command(flatten)]
    named: NamedArgs,
    /// Show the newest 1,000 models of the rounds before this one.
    #[arg(long, value_name = "ROUND", conflicts_with = "all")]
    before: Option<u32>,
    /// Show every model.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(super) struct PullArgs {
    #[command(flatten)]
    named: NamedArgs,
    /// Which model: `last`, `best`, or the number of the round that made it.
    #[arg(long, default_value = "last")]
    model: Choice,
    /// The folder for `model.safetensors` and `privacy_statement.json`.
    #[arg(long, default_value = ".")]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    #[command(flatten)]
    named: NamedArgs,
    /// The file to write; an existing one is replaced.
    #[arg(long, default_value = "report.html")]
    out: PathBuf,
}

/// A model as it is typed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice(pub(super) ModelChoice);

impl FromStr for Choice {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(match text {
            "last" => ModelChoice::Last,
            "best" => ModelChoice::Best,
            number => {
                let wrong = |_| format!("`{number}` is not last, best or the number of a round");
                ModelChoice::Round(number.parse().map_err(wrong)?)
            }
        }))
    }
}

pub(super) fn pause(args: &ControlArgs, global: &Global) -> Result<(), Failure> {
    control(args, Control::Pause, global)
}

pub(super) fn resume(args: &ControlArgs, global: &Global) -> Result<(), Failure> {
    control(args, Control::Resume, global)
}

pub(super) fn stop(args: &StopArgs, global: &Global) -> Result<(), Failure> {
    control(&args.what, if args.now { Control::StopNow } else { Control::Stop }, global)
}

fn control(args: &ControlArgs, control: Control, global: &Global) -> Result<(), Failure> {
    let request = AdminRequest::Control { run: args.run, control };
    let AdminReply::Run(run) = ask(&args.operator, &request, global)? else {
        return Err(OperatorError::WrongReply.blamed());
    };
    let given = args.operator.given();
    let hint = stop_hint(&run).map_or_else(String::new, |hint| format!("\n{}", given.complete(&hint)));
    global.format.say(
        || format!("run {} ({}) {}: {}{hint}", run.run, run.name, run.state.name(), run.message),
        || summary_json(&run),
    );
    Ok(())
}

pub(super) fn log(args: &NamedArgs, global: &Global) -> Result<(), Failure> {
    let AdminReply::Log(lines) = ask(&args.operator, &AdminRequest::Log { run: args.run }, global)? else {
        return Err(OperatorError::WrongReply.blamed());
    };
    let read = |line: &String| serde_json::from_str(line).or_fail(Kind::Run, "the server's audit log");
    let entries: Vec<Value> = lines.iter().map(read).collect::<Result<_, _>>()?;
    // A run's first line says that it was submitted.
    if global.quiet == 0 && entries.first().is_some_and(|first| first["record"]["event"] != "submitted") {
        let shown = entries.len();
        tell(format_args!(
            "the last {} of the run; those before them are in state/audit*.jsonl in the server's folder",
            counted(shown, "line")
        ));
    }
    for mut entry in entries {
        let record = entry["record"].take();
        global.format.say(|| told(&record), || record.clone());
    }
    Ok(())
}

/// A record of the audit log for a person: when, what, and the rest.
fn told(record: &Value) -> String {
    let seconds = record["time"].as_u64().unwrap_or_default() / 1_000_000;
    let mut rest = record.clone();
    if let Value::Object(object) = &mut rest {
        object.retain(|_, value| *value != "");
    }
    let rest = fields(&rest, &["time", "run", "event", "database"]);
    let event = record["event"].as_str().unwrap_or_default();
    format!("{}  {event:<10} {rest}", super::members::moment(seconds))
}

pub(super) fn models(args: &ModelsArgs, global: &Global) -> Result<(), Failure> {
    let ModelsArgs { named: NamedArgs { run, operator }, before, all } = args;
    let (models, earlier) = runtime()?.block_on(async {
        let given = operator.given();
        let operator = connect(operator).await?;
        let mut models = page(&operator, *run, *before, given, global).await?;
        while let Some(before) = earliest(&models).filter(|_| *all) {
            let mut longer = page(&operator, *run, Some(before), given, global).await?;
            if longer.is_empty() {
                break;
            }
            // The best one stood alone before those that are shown, until its place is reached.
            models.retain(|model| model.round >= before);
            longer.append(&mut models);
            models = longer;
        }
        operator.close().await;
        let earlier = earliest(&models);
        Ok::<_, Failure>((models, earlier))
    })?;
    if let Some(before) = earlier.filter(|_| !all && global.quiet == 0) {
        let run = run.map_or_else(String::new, |run| format!(" {run}"));
        let hint = format!(
            "models of rounds before {before} are not shown: `consortia run models{run} --before {before}` shows the next 1,000, `--all` all of them"
        );
        tell(operator.given().complete(&hint));
    }
    let mut rows =
        vec![["round", "sha256 of parameters", "sites", "server", "epsilon", ""].map(str::to_owned).to_vec()];
    rows.extend(models.iter().map(row));
    let none = match before {
        Some(before) => format!("there is no model of a round before {before}"),
        None => "there is no model of this run".to_owned(),
    };
    let lines = || listed(&without_empty(rows), &none, table);
    global.format.say(lines, || json!(models));
    Ok(())
}

/// The newest models of a run, of rounds before `before`; with all of them the best one, which may be older.
async fn page(
    operator: &OperatorClient,
    run: Option<RunId>,
    before: Option<u32>,
    given: Given<'_>,
    global: &Global,
) -> Result<Vec<ModelLine>, Failure> {
    let request = match before {
        Some(before) => AdminRequest::ModelsBefore { run, before },
        None => AdminRequest::Models { run },
    };
    match put(operator, &request, given, global).await? {
        AdminReply::Models(models) => Ok(models),
        _ => Err(OperatorError::WrongReply.blamed()),
    }
}

/// The earliest round from which on no model is missing; `None` where it is the first of all.
fn earliest(models: &[ModelLine]) -> Option<u32> {
    // One that is best may stand alone in front, and what is between it and the next one is not known.
    let rest = if models.first().is_some_and(|first| first.best && first.round > 0) { 1 } else { 0 };
    models.get(rest).map(|model| model.round).filter(|round| *round > 0)
}

fn row(model: &ModelLine) -> Vec<String> {
    let accuracy = |metrics: Option<protocol::Metrics>| share(metrics.and_then(|metrics| metrics.accuracy));
    let remarks = [(model.best, "best"), (!model.kept, "file given up")];
    let remarks: Vec<&str> =
        remarks.into_iter().filter_map(|(holds, remark)| holds.then_some(remark)).collect();
    vec![
        model.round.to_string(),
        model.sha256.get(..16).unwrap_or(&model.sha256).to_owned(),
        accuracy(model.sites),
        accuracy(model.central),
        model.epsilon.map_or_else(|| "-".to_owned(), |epsilon| format!("{:.3}", Figure(epsilon))),
        remarks.join(", "),
    ]
}

pub(super) fn pull(args: &PullArgs, global: &Global) -> Result<(), Failure> {
    let fetched = runtime()?.block_on(async {
        let operator = connect(&args.named.operator).await?;
        let fetched = operator.model(args.named.run, args.model.0).await.or_blame();
        operator.close().await;
        fetched
    });
    let FetchedModel { run, line, statement, layout, model, standardiser } = fetched?;
    let (to, beside) = write_released(&args.out, &statement, &layout, &model, standardiser.as_ref())?;
    let (round, sha256) = (line.round, &line.sha256);
    if round == 0 && global.quiet == 0 {
        tell("this is the model that the run began with: no training has changed it");
    }
    global.format.say(
        || {
            format!(
                "run {run}, model of round {round}, sha256 of its parameters {sha256}\n  {}\n  {}",
                to.display(),
                beside.display()
            )
        },
        || json!({ "run": run.to_string(), "model": to, "statement": beside, "line": line }),
    );
    Ok(())
}

pub(super) fn report(args: &ReportArgs, global: &Global) -> Result<(), Failure> {
    let operator = &args.named.operator;
    let AdminReply::Run(run) = ask(operator, &AdminRequest::Watch { run: args.named.run }, global)? else {
        return Err(OperatorError::WrongReply.blamed());
    };
    // A server of an earlier release does not send it.
    let plan = match ask(operator, &AdminRequest::Plan { run: Some(run.run) }, global) {
        Ok(AdminReply::Plan(plan)) => Some(plan),
        _ => None,
    };
    let statement =
        if has_released_nothing(&run) { None } else { statement(operator, run.run, plan.as_deref(), global) };
    let remarks = remarks(&run);
    let lead = format!("run {}, {}: {}", run.run, run.state.name(), run.message);
    let report = Report {
        title: &run.name,
        state: Some(run.state),
        lead: &lead,
        remarks: &remarks,
        plan: plan.as_deref(),
        rounds: &run.history,
        clients: &run.clients,
        model_sha256: Some(&run.model_sha256),
        statement: statement.as_ref(),
        written: Some(time::OffsetDateTime::now_utc()),
        ..Report::default()
    };
    write_report(&args.out, &report).or_fail(Kind::Run, args.out.display())?;
    let first = run.history.first().map_or(0, |round| round.round);
    let left_out = if first > 1 {
        format!(" (rounds {first} to {} are shown; those before them are left out)", run.rounds_done)
    } else {
        String::new()
    };
    global.format.say(
        || format!("{lead}{left_out}\n  {}", args.out.display()),
        || json!({ "run": run.run.to_string(), "report": args.out }),
    );
    Ok(())
}

/// What may be said of the privacy of a run's last model, where its plan promises any.
fn statement(
    operator: &OperatorArgs,
    run: RunId,
    plan: Option<&str>,
    global: &Global,
) -> Option<PrivacyStatement> {
    if plan_of(plan?).is_ok_and(|plan| plan.spec.privacy.is_none()) {
        return None;
    }
    // A model that must not leave has none, either.
    let asked = AdminRequest::Model { run: Some(run), choice: ModelChoice::Last };
    match ask(operator, &asked, global) {
        Ok(AdminReply::Model { statement, .. }) => PrivacyStatement::read(&statement).ok(),
        _ => None,
    }
}

/// Why a run has not done what its plan says, site by site; nothing of a run that has.
fn remarks(run: &RunSummary) -> Vec<String> {
    if run.state == RunState::Finished {
        return Vec::new();
    }
    let mut remarks = Vec::new();
    if run.state.is_over() && has_released_nothing(run) {
        remarks.push(
            "No round released anything: there is no model but the one that the run began with.".to_owned(),
        );
    }
    for client in &run.clients {
        for (verb, counts) in [(" declined", &client.declined), ("'s answer was rejected", &client.refused)] {
            remarks.extend(counts.iter().map(|(reason, count)| {
                let times = if *count == 1 { "once".to_owned() } else { format!("{count} times") };
                format!("{}{verb} {times}: {}", client.client, reason.replace('_', " "))
            }));
        }
    }
    remarks
}

fn ask(args: &OperatorArgs, request: &AdminRequest, global: &Global) -> Result<AdminReply, Failure> {
    runtime()?.block_on(async {
        let operator = connect(args).await?;
        let reply = put(&operator, request, args.given(), global).await;
        operator.close().await;
        reply
    })
}
