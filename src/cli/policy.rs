//! `consortia site policy`: writes one to begin with, and says what a policy and its budget make of a plan, before any server asks. It trains
//! nothing.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::client::{Denied, PayError, Policy, SiteAccount, SiteFacts};
use clap::Args;
use learning::Models;
use privacy::chain::Digest;
use protocol::{
    ExampleReleases, Layout, MethodWork, Parameters, RecordCount, Round, RunId, StepId, Task, TaskId, Work,
};
use serde_json::{Value, json};
use server::{Evaluators, MethodPlan, Plan};

use super::clock::now;
use super::columns::read_plan_text;
use super::failure::{Failure, Kind, OrFail};
use super::global::Global;
use super::kinds::{FileKind, or_what_it_is};
use super::modes::write_new;
use super::output::text_table;
use super::plans::plan_of;
use super::presets::{Preset, policy_text};
use super::shell::quoted;
use super::start::started;
use super::text::read_text;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The policy.
    policy: PathBuf,
    /// A federation's plan.
    plan: PathBuf,
    /// The number of training records that the site's file declares as public (`public_records`); hidden by default.
    #[arg(long, value_name = "NUMBER")]
    public_records: Option<NonZeroU64>,
}

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// The file to create.
    #[arg(default_value = "policy.toml")]
    file: PathBuf,
    /// The initial policy. Without it the site takes part in nothing until somebody edits the file.
    #[arg(long, value_name = "PRESET")]
    policy: Option<Preset>,
}

pub(super) fn init(args: &InitArgs, global: &Global) -> Result<(), Failure> {
    let shown = args.file.display();
    if args.file.is_dir() {
        let file = args.file.join("policy.toml");
        let message = format!(
            "{shown} is a folder: name the file to write, `consortia site policy init {}`; nothing was changed",
            quoted(file)
        );
        return Err(Failure::new(Kind::Configuration, message));
    }
    if args.file.symlink_metadata().is_ok() {
        let message = format!("{shown} exists and stays in force; nothing was changed");
        return Err(Failure::new(Kind::Configuration, message));
    }
    write_new(&args.file, policy_text(args.policy).as_bytes())?;
    let meaning =
        args.policy.map_or("denies everything: choose there what this site takes part in", Preset::meaning);
    global.format.say(
        || format!("{shown} {meaning}\n\nnext:\n  consortia site policy check {} PLAN", quoted(&args.file)),
        || json!({ "policy": args.file }),
    );
    Ok(())
}

/// Reads a policy; with the SHA-256 of its text.
pub(super) fn read(path: &Path) -> Result<(Policy, Digest), Failure> {
    if !path.exists() {
        let message = format!(
            "{path}: there is no policy, and without one this site takes part in nothing; `consortia site policy init {typed} --policy plain` (or \
             records, or private) writes one, and docs/privacy-choice.md helps to choose",
            path = path.display(),
            typed = quoted(path)
        );
        return Err(Failure::new(Kind::Configuration, message));
    }
    let text = read_text(path)?;
    let what = |failure| or_what_it_is(path, &[FileKind::Policy], "a site's policy", failure);
    let policy = Policy::parse(&text).or_fail(Kind::Configuration, path.display()).map_err(what)?;
    Ok((policy, Digest::of(text.as_bytes())))
}

pub(super) fn check(args: &CheckArgs, global: &Global) -> Result<(), Failure> {
    let (policy, _) = read(&args.policy)?;
    let path = args.plan.display();
    let text = read_plan_text(&args.plan, None)?;
    let plan = started(plan_of(&text).or_fail(Kind::Configuration, &path)?, &args.plan)?.plan;
    let layout = Models::new().layout_of(&plan.spec).or_fail(Kind::Configuration, &path)?;
    let records =
        args.public_records.map_or(RecordCount::Hidden, |records| RecordCount::Public(records.get()));
    let judged = judge(&policy, &plan, &layout, records, &Ledger::default());
    global.format.say(|| format!("{}\n{NO_LEDGER}", lines(&judged)), || object(&judged));
    match judged.iter().find_map(|(kind, verdict)| Some((kind, verdict.as_ref().err()?))) {
        Some((kind, denied)) => {
            Err(Failure::new(Kind::Refused, format!("the task `{}` would be declined: {denied}", kind)))
        }
        None => Ok(()),
    }
}

/// What is said of a judgement that knows no books.
const NO_LEDGER: &str = "judged as if nothing had been spent yet; `consortia site check --plan` knows what a site's ledger can still pay";

/// What a site has spent, and for whose servers it would pay.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) account: SiteAccount,
    /// The fingerprint of the federation's authority, as the ledger names it.
    pub(super) federation: Digest,
}

/// What a site with this `policy` and `ledger` makes of each task of the first round of `plan`, whose model has this layout, where so much
/// is known of the number of its records.
pub(super) fn judge(
    policy: &Policy,
    plan: &Plan,
    layout: &Layout,
    records: RecordCount,
    ledger: &Ledger,
) -> Vec<(String, Result<(), Denied>)> {
    let facts = SiteFacts { parameters: layout.len() as u64, records };
    let (Ledger { account, federation }, budget) = (ledger, policy.budget());
    let history = account.history();
    let releases = plan.spec.privacy.examples.and_then(|_| ExampleReleases::of(&plan.spec.training, records));
    let unpaid = |error: PayError| Denied { rule: error.rule(), message: error.to_string() };
    let pays = |task: &Task| account.would_pay(task, releases, *federation, budget).map_err(unpaid);
    let judged = |task: &Task| policy.judge(task, &facts, now(), history).and_then(|()| pays(task));
    tasks(plan, layout.shared_len()).iter().map(|task| (Policy::task_name(task), judged(task))).collect()
}

/// The tasks that a server sends to a site under `plan`, in their order.
fn tasks(plan: &Plan, parameters: usize) -> Vec<Task> {
    let model = Arc::new(Parameters::new(vec![0.0; parameters]));
    let task = |round, kind, work| Task {
        id: TaskId::new(RunId(0), Round(round), kind),
        spec: Arc::clone(&plan.spec),
        seed: None,
        standardiser: None,
        work,
    };
    let names = plan.spec.statistics();
    let mut tasks = Vec::new();
    if !names.is_empty() {
        tasks.push(task(0, StepId::STATISTICS, Work::Statistics { names }));
    }
    if let Some(MethodPlan { name, version, .. }) = &plan.method {
        let (numbers, blocks) = (Vec::new(), Vec::new());
        let work = MethodWork { method: name.clone(), version: *version, numbers, blocks };
        tasks.push(task(1, StepId::method(0), Work::Method(Arc::new(work))));
        return tasks;
    }
    let train = Work::Train { model: Arc::clone(&model), learning_rate_scale: 1.0, norm_max: None };
    tasks.push(task(1, StepId::TRAIN, train));
    if plan.evaluation.sites == Evaluators::All {
        tasks.push(task(1, StepId::EVALUATE, Work::Evaluate { model }));
    }
    tasks
}

fn lines(judged: &[(String, Result<(), Denied>)]) -> String {
    let row = |(kind, verdict): &(String, Result<(), Denied>)| {
        let told = match verdict {
            Ok(()) => "allowed".to_owned(),
            Err(denied) => format!("denied by {denied}"),
        };
        vec![kind.clone(), told]
    };
    text_table(&judged.iter().map(row).collect::<Vec<_>>())
}

fn object(judged: &[(String, Result<(), Denied>)]) -> Value {
    let one = |(kind, verdict): &(String, Result<(), Denied>)| {
        let denied = verdict.as_ref().err();
        json!({
            "task": kind,
            "allowed": verdict.is_ok(),
            "rule": denied.map(|denied| denied.rule),
            "message": denied.map(|denied| denied.message.as_str()),
        })
    };
    let allowed = judged.iter().all(|(_, verdict)| verdict.is_ok());
    json!({ "allowed": allowed, "ledger": "empty", "tasks": judged.iter().map(one).collect::<Vec<_>>() })
}
