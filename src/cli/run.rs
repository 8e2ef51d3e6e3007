//! `consortia run`: an operator hands in plans and follows runs.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::path::PathBuf;
use std::time::Duration;

use ::client::net::{DialError, Identity, OperatorClient, OperatorError, SERVER_NAME, settle_renewal};
use clap::Args;
use learning::{CsvSource, Models};
use privacy::counted;
use protocol::wire::{AdminReply, AdminRequest, RoundSummary, RunState, RunSummary};
use protocol::{ClientId, RunId};
use serde_json::{Value, json};
use server::Worsened;
use server::net::InitialModel;

use super::columns::read_plan_text;
use super::failure::{Blame, Failure, Kind, OrBlame, OrFail};
use super::folder::ServerFolder;
use super::global::Global;
use super::hints::Given;
use super::output::{listed, share, table, text_table, without_empty};
use super::plans::plan_of;
use super::progress::Progress;
use super::request::{patiently, put};
use super::start::{Started, started};
use super::watch::{interrupted, runtime};

#[derive(Debug, Args)]
pub(super) struct OperatorArgs {
    /// The server's folder, which holds the operator's identity.
    #[arg(long = "dir", value_name = "DIR", default_value = ".")]
    pub(super) folder: PathBuf,
    /// The server's address, `host:port`; by default this machine at the port of `server.toml`.
    #[arg(long, value_parser = super::address::host_and_port)]
    server: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct SubmitArgs {
    /// The federation file.
    file: PathBuf,
    #[command(flatten)]
    operator: OperatorArgs,
    /// Make it a seeded run: everything random follows from this seed, so that the run can be repeated bit for bit. It may not
    /// claim privacy.
    #[arg(long)]
    seed: Option<u64>,
    /// A table whose header line names the columns that all sites share, for a plan that does not list its features.
    #[arg(long, value_name = "FILE")]
    columns: Option<PathBuf>,
    /// Follow the run until it ends.
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// The run; the newest if absent.
    run: Option<RunId>,
    #[command(flatten)]
    operator: OperatorArgs,
}

pub(super) fn submit(args: &SubmitArgs, global: &Global) -> Result<(), Failure> {
    let path = args.file.display().to_string();
    let table = args.columns.as_ref().map(CsvSource::new);
    let plan_toml = read_plan_text(&args.file, table.as_ref())?;
    let plan = plan_of(&plan_toml).or_fail(Kind::Configuration, &path)?;
    let Started { plan, start } = started(plan, &args.file)?;
    if let Ok(layout) = Models::new().layout_of(&plan.spec)
        && let Some(warning) = plan.coarse_step(&layout.shared_lengths())
    {
        tracing::warn!("{path}: {warning}");
    }
    runtime()?.block_on(async {
        let operator = connect(&args.operator).await?;
        let given = args.operator.given();
        let handing = Handing { plan_toml, seed: args.seed, start };
        let run = match hand_in(&operator, handing, given, global).await {
            Ok(run) => run,
            // What is given up is taken back as soon as the server knows that nobody waits for it.
            Err(failure) => {
                operator.close().await;
                return Err(failure);
            }
        };
        let (text, object) = (format!("run {run} is submitted"), json!({ "run": run.to_string() }));
        if args.watch {
            super::output::tell(text);
            return follow(operator, &args.operator, Some(run), global).await;
        }
        global.format.say(|| text, || object);
        operator.close().await;
        Ok(())
    })
}

/// What is handed to the server.
pub(super) struct Handing {
    pub(super) plan_toml: String,
    pub(super) seed: Option<u64>,
    /// What the run of an external model begins with.
    pub(super) start: Option<InitialModel>,
}

/// Hands a plan to the server.
pub(super) async fn hand_in(
    operator: &OperatorClient,
    handing: Handing,
    given: Given<'_>,
    global: &Global,
) -> Result<RunId, Failure> {
    let Handing { plan_toml, seed, start } = handing;
    let asking = async {
        match start {
            Some(InitialModel { layout, shared }) => {
                operator.submit_start(plan_toml, seed, &layout, shared).await
            }
            None => match operator.ask(&AdminRequest::Submit { plan_toml, seed }).await? {
                AdminReply::Submitted { run } => Ok(run),
                _ => Err(OperatorError::WrongReply),
            },
        }
    };
    patiently(asking, Some("run ls"), given, global).await
}

pub(super) fn watch(args: &WatchArgs, global: &Global) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let operator = connect(&args.operator).await?;
        follow(operator, &args.operator, args.run, global).await
    })
}

/// Shows a run until it ends; its failure is the command's. A server that is started again goes on with the run, and this command with it.
async fn follow(
    mut operator: OperatorClient,
    args: &OperatorArgs,
    run: Option<RunId>,
    global: &Global,
) -> Result<(), Failure> {
    let given = args.given();
    let (shown, watched) = (RefCell::new(Shown::new(given)), Cell::new(run));
    let following = async {
        loop {
            let update = |summary: &RunSummary| {
                watched.set(Some(summary.run));
                shown.borrow_mut().update(summary, global);
            };
            match operator.watch(watched.get(), update).await {
                Err(OperatorError::Lost(why)) => {
                    operator = connect_again(args, &why, watched.get(), global).await?;
                }
                ended => return ended.or_blame(),
            }
        }
    };
    // Most runs leave the queue at once: that is no news.
    let queued = async {
        tokio::time::sleep(QUEUE_SILENCE).await;
        shown.borrow_mut().tell_queue(global);
        pending::<Infallible>().await
    };
    let last = tokio::select! {
        last = following => Some(last),
        () = interrupted() => None,
        never = queued => match never {},
    };
    if let Some(progress) = &shown.borrow().progress {
        progress.end();
    }
    let Some(last) = last else {
        return Err(Failure::new(Kind::Run, given.complete(&given_up(watched.get()))));
    };
    let summary = last?;
    global.format.say(|| describe(&summary), || summary_json(&summary));
    verdict(&summary)
}

/// For how long a command that follows a run looks for a server that it has lost, and how often.
const LOOKING: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Connects anew after the connection was lost: a server that is started again is there within seconds.
async fn connect_again(
    args: &OperatorArgs,
    why: &str,
    run: Option<RunId>,
    global: &Global,
) -> Result<OperatorClient, Failure> {
    if global.quiet == 0 {
        super::output::tell(format_args!("{why}; looking for the server for {} s", LOOKING.as_secs()));
    }
    let until = tokio::time::Instant::now() + LOOKING;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let dialled = dial(&servers_of(args)?, &ServerFolder(args.folder.clone())).await;
        let Unreached { failure, is_lasting } = match dialled {
            Ok(operator) => return Ok(operator),
            Err(unreached) => unreached,
        };
        if is_lasting || tokio::time::Instant::now() >= until {
            let run = run.map_or_else(String::new, |run| format!(" {run}"));
            let message = format!(
                "{why}, and then: {}; the run continues when its server does: `consortia run watch{run}` follows it then",
                failure.message()
            );
            return Err(Failure::new(Kind::Connection, args.given().complete(&message)));
        }
    }
}

/// What the end of a run is for the command that waited for it: a run without a model is no success, however it ended.
pub(super) fn verdict(run: &RunSummary) -> Result<(), Failure> {
    match run.state {
        RunState::Failed => Err(Failure::new(Kind::Run, &run.message)),
        RunState::BudgetExhausted => Err(Failure::new(Kind::Refused, &run.message)),
        RunState::Stopped if has_released_nothing(run) => {
            Err(Failure::new(Kind::Run, "the run was stopped before any round released anything"))
        }
        _ => Ok(()),
    }
}

/// Whether none of its rounds released anything. Of a run that is longer than the rounds shown, those are not known.
pub(super) fn has_released_nothing(run: &RunSummary) -> bool {
    let trained = run.history.iter().filter(|round| round.round > 0).count();
    trained >= run.rounds_done as usize && !run.history.iter().any(|round| round.round > 0 && round.released)
}

/// Whoever ends this command ends no run.
fn given_up(run: Option<RunId>) -> String {
    let run = run.map_or_else(String::new, |run| format!(" {run}"));
    format!(
        "stopped watching; the run continues: `consortia run watch{run}` follows it, `consortia run stop{run}` stops it"
    )
}

/// How long nothing is said of a run that is in the queue.
const QUEUE_SILENCE: Duration = Duration::from_secs(2);

struct Shown<'a> {
    /// Completes the commands that are named.
    given: Given<'a>,
    /// What a run in the queue waits for, until it is told.
    queued: Option<String>,
    /// Whether it is time to say of a run that it is in the queue.
    tells_queue: bool,
    has_begun: bool,
    progress: Option<Progress>,
    rounds: u32,
    /// What was told last of what the run waits for.
    waiting: String,
    /// Whether it was told what helps a run that is to stop.
    told_stop: bool,
    /// The answers that did not count, of every client.
    uncounted: BTreeMap<(ClientId, String), u32>,
}

impl<'a> Shown<'a> {
    fn new(given: Given<'a>) -> Self {
        Self {
            given,
            queued: None,
            tells_queue: false,
            has_begun: false,
            progress: None,
            rounds: 0,
            waiting: String::new(),
            told_stop: false,
            uncounted: BTreeMap::new(),
        }
    }

    fn update(&mut self, summary: &RunSummary, global: &Global) {
        self.tell_reasons(summary, global);
        self.begin(summary, global);
        let progress = self.progress.get_or_insert_with(|| Progress::new(global, summary.rounds));
        progress.within(summary.message.clone());
        let ended = summary.state.is_over();
        for round in &summary.history {
            // A round's line is shown once its evaluation is in, which is at the latest when the next one is over.
            let complete = round.sites.is_some() || round.round < summary.rounds_done || ended;
            if round.round > self.rounds && complete {
                progress.round(round);
                self.rounds = round.round;
            }
        }
        if global.format == super::output::Format::Json && !summary.state.is_over() {
            global.format.say(String::new, || summary_json(summary));
        }
    }
}

/// Rounds that are shown of what was before somebody began to watch.
const ROUNDS_BEFORE: usize = 5;

impl Shown<'_> {
    /// From now on a run that is in the queue is said to be.
    fn tell_queue(&mut self, global: &Global) {
        self.tells_queue = true;
        if let (Some(why), 0) = (self.queued.take(), global.quiet) {
            self.tell_waiting(&why);
        }
    }

    fn tell_waiting(&mut self, message: &str) {
        if let Some(progress) = &self.progress {
            progress.line(waiting(message));
        }
        self.waiting = message.to_owned();
    }

    /// Says of a run that has begun long ago how far it is, so that what happens now does not stand behind all that has happened.
    fn begin(&mut self, summary: &RunSummary, global: &Global) {
        let before: Vec<&RoundSummary> = summary.history.iter().filter(|round| round.round > 0).collect();
        let Some(left_out) = before.len().checked_sub(ROUNDS_BEFORE + 1).filter(|_| !self.has_begun) else {
            self.has_begun = true;
            return;
        };
        let (last, run) = (before[left_out].round, summary.run);
        (self.has_begun, self.rounds) = (true, last);
        if global.quiet == 0 {
            let progress = self.progress.get_or_insert_with(|| Progress::new(global, summary.rounds));
            let line = format!(
                "run {run} ({}) {}: {} of {} rounds are done; those up to {last} are not shown (`consortia run report {run}` has them)",
                summary.name,
                summary.state.name(),
                summary.rounds_done,
                summary.rounds
            );
            progress.line(self.given.complete(&line));
        }
    }

    /// A line for every client that has declined or was refused since the last time, and one for what the run waits for while no round
    /// is open.
    fn tell_reasons(&mut self, summary: &RunSummary, global: &Global) {
        if global.quiet > 0 {
            return;
        }
        let progress = self.progress.get_or_insert_with(|| Progress::new(global, summary.rounds));
        for client in &summary.clients {
            let kinds = [(" declines", &client.declined), ("'s answer is rejected", &client.refused)];
            for (verb, (reason, count)) in
                kinds.into_iter().flat_map(|(verb, counts)| counts.iter().map(move |one| (verb, one)))
            {
                let known =
                    self.uncounted.entry((client.client.clone(), format!("{verb} {reason}"))).or_default();
                if *count > *known {
                    *known = *count;
                    let times = counted(*count, "time");
                    progress.line(format!("{}{verb}: {reason} ({times} so far)", client.client));
                }
            }
        }
        // While a round is open its answers come in by and by; its line says what came of it.
        let is_open = summary.message.starts_with("round ") || summary.message.starts_with("storing ");
        self.queued = None;
        if summary.state == RunState::Queued && !self.tells_queue {
            self.queued = Some(summary.message.clone());
        } else if !summary.state.is_over() && !is_open && summary.message != self.waiting {
            self.tell_waiting(&summary.message);
        }
        if let (false, Some(hint), Some(progress)) = (self.told_stop, stop_hint(summary), &self.progress) {
            progress.line(self.given.complete(&hint));
            self.told_stop = true;
        }
    }
}

/// What a run waits for, in one line. Some messages say themselves that it waits, or why it does not.
fn waiting(message: &str) -> String {
    if message.starts_with("waits ") || message.starts_with("paused ") {
        message.to_owned()
    } else {
        format!("waits: {message}")
    }
}

/// What helps where a run that is to stop waits for an open round, which may take as long as the plan's deadline.
pub(super) fn stop_hint(run: &RunSummary) -> Option<String> {
    let is_stopping = run.state == RunState::Stopping;
    is_stopping.then(|| {
        format!(
            "it stops when its open round is over: when its clients have answered, or at its deadline where they are gone; `consortia run stop {} --now` \
             drops that round",
            run.run
        )
    })
}

const NO_RUNS: &str = "there is no run yet: `consortia run submit PLAN` submits one";

pub(super) fn ls(args: &OperatorArgs, global: &Global) -> Result<(), Failure> {
    let reply = runtime()?.block_on(async {
        let operator = connect(args).await?;
        put(&operator, &AdminRequest::List, args.given(), global).await
    })?;
    let AdminReply::Runs(runs) = reply else { return Err(OperatorError::WrongReply.blamed()) };
    let mut rows = vec![["run", "name", "state", "rounds", "message"].map(str::to_owned).to_vec()];
    rows.extend(runs.iter().map(|run| {
        let rounds = format!("{}/{}", run.rounds_done, run.rounds);
        vec![run.run.to_string(), run.name.clone(), run.state.name().into(), rounds, run.message.clone()]
    }));
    global.format.say(
        || listed(&rows, &args.given().complete(NO_RUNS), text_table),
        || Value::from(runs.iter().map(summary_json).collect::<Vec<_>>()),
    );
    Ok(())
}

impl OperatorArgs {
    /// What completes the commands that messages name.
    pub(super) fn given(&self) -> Given<'_> {
        Given::Operator { folder: &self.folder, server: self.server.as_deref() }
    }

    /// Where sites reach the server, as `server.toml` says.
    pub(super) fn addresses(&self) -> Result<Vec<String>, Failure> {
        Ok(ServerFolder(self.folder.clone()).read_to_work()?.addresses)
    }
}

pub(super) async fn connect(args: &OperatorArgs) -> Result<OperatorClient, Failure> {
    connect_to(&servers_of(args)?, &ServerFolder(args.folder.clone())).await
}

/// The addresses of the server that an operator means.
fn servers_of(args: &OperatorArgs) -> Result<Vec<String>, Failure> {
    let folder = ServerFolder(args.folder.clone());
    folder.refuse_backup()?;
    match &args.server {
        // Away from the server the folder may hold nothing but the operator's identity.
        Some(_) if !folder.operator().exists() => Err(folder.is_none("the operator's identity, operator/,")),
        Some(server) => Ok(vec![server.clone()]),
        None => folder.read()?.servers(&folder),
    }
}

/// Connects as the operator of `folder` to the first of these servers that answers.
pub(super) async fn connect_to(servers: &[String], folder: &ServerFolder) -> Result<OperatorClient, Failure> {
    dial(servers, folder).await.map_err(|unreached| unreached.failure)
}

/// Why there is no connection.
struct Unreached {
    failure: Failure,
    /// Whether it will be so until somebody changes something.
    is_lasting: bool,
}

/// Of a file here.
impl From<Failure> for Unreached {
    fn from(failure: Failure) -> Self {
        Self { failure, is_lasting: true }
    }
}

/// One attempt.
async fn dial(servers: &[String], folder: &ServerFolder) -> Result<OperatorClient, Unreached> {
    settle_renewal(&folder.operator()).or_fail(Kind::Configuration, "")?;
    let identity = Identity::load(&folder.operator()).or_fail(Kind::Connection, "")?;
    let connecting = OperatorClient::connect_any(servers, SERVER_NAME, &identity);
    match tokio::time::timeout(Duration::from_secs(15), connecting).await {
        Ok(connected) => connected.map_err(|error: DialError| {
            let is_lasting = error.is_lasting();
            Unreached { failure: Failure::new(Kind::Connection, error), is_lasting }
        }),
        Err(_) => {
            let message = format!("{} does not answer; is `consortia server run` up?", servers.join(", "));
            let message = Given::Server(&folder.0).complete(&message);
            Err(Unreached { failure: Failure::new(Kind::Timeout, message), is_lasting: false })
        }
    }
}

/// What there is to warn of in a run that is over. A method's sites measure what may grow for its own reasons, and evaluate nothing.
fn warning(run: &RunSummary) -> Option<String> {
    let is_measured = run.history.iter().any(|round| round.sites.or(round.central).is_some());
    let worsened = Worsened::of(&run.history).filter(|_| run.state.is_over() && is_measured);
    worsened.map(|worsened| worsened.to_string())
}

/// A run for a person.
fn describe(run: &RunSummary) -> String {
    let mut text = format!(
        "run {} ({}) {}: {}\nrounds {}/{}{}\nsha256 of the parameters {}",
        run.run,
        run.name,
        run.state.name(),
        run.message,
        run.rounds_done,
        run.rounds,
        if run.is_seeded { "  (a seeded run, which may not claim privacy)" } else { "" },
        if run.model_sha256.is_empty() { "none yet" } else { &run.model_sha256 },
    );
    if let Some(warning) = warning(run) {
        text.push_str(&format!("\nwarning: {warning}"));
    }
    let mut rows = vec![
        ["client", "connected", "accepted", "refused", "declined", "test accuracy"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let counts = |counts: &[(String, u32)]| {
        let shown: Vec<String> = counts.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        if shown.is_empty() { "-".to_owned() } else { shown.join(", ") }
    };
    // Whose cohorts are drawn in secret tells nobody who took part.
    let hidden = run.history.iter().any(RoundSummary::hides_participation);
    rows.extend(run.clients.iter().map(|client| {
        vec![
            client.client.to_string(),
            if client.connected { "yes" } else { "no" }.to_owned(),
            if hidden { "-".to_owned() } else { client.accepted.to_string() },
            counts(&client.refused),
            counts(&client.declined),
            share(client.test.and_then(|metrics| metrics.accuracy)),
        ]
    }));
    if rows.len() > 1 {
        text.push_str("\n\n");
        text.push_str(&table(&without_empty(rows)));
    }
    text
}

/// A run as JSON.
pub(super) fn summary_json(run: &RunSummary) -> Value {
    let mut object = serde_json::to_value(run).unwrap_or_default();
    object["run"] = run.run.to_string().into();
    if let Some(warning) = warning(run) {
        object["warning"] = warning.into();
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_to_wait_twice() {
        assert_eq!(waiting("waits for a place"), "waits for a place");
        assert_eq!(waiting("paused by the operator"), "paused by the operator");
        assert_eq!(waiting("1 of 3 clients are connected"), "waits: 1 of 3 clients are connected");
    }

    #[test]
    fn a_run_that_is_to_stop_is_told_with_what_does_not_wait() {
        let run = |state| RunSummary {
            run: RunId(7),
            name: "a run".into(),
            state,
            message: "round 3, train: 0 of 3 clients have answered; waits for 3".into(),
            rounds_done: 2,
            rounds: 9,
            is_seeded: false,
            model_sha256: String::new(),
            history: Vec::new(),
            clients: Vec::new(),
        };
        let hint = stop_hint(&run(RunState::Stopping)).unwrap();
        assert!(hint.contains(&format!("`consortia run stop {} --now`", RunId(7))), "{hint}");
        assert_eq!([RunState::Running, RunState::Stopped].map(|state| stop_hint(&run(state))), [None, None]);
    }
}
