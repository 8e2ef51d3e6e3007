//! What was typed, and where it goes. Data is written to stdout; talk and progress to stderr.

mod address;
mod attack;
mod audit;
mod backup;
mod bench;
mod budget;
mod check;
mod clock;
mod columns;
mod control;
mod cores;
mod crl;
mod dashboard;
mod demo;
mod examples;
mod explain;
mod export;
mod failure;
mod folder;
mod global;
mod hints;
mod identity;
#[cfg(feature = "insecure-test-noise")]
mod insecure;
mod join;
mod kinds;
mod learner;
mod manuals;
mod members;
mod migrate;
mod model;
mod modes;
mod new;
mod notify;
mod output;
mod part;
mod plans;
mod policy;
mod presets;
mod privacy;
mod progress;
mod reference;
mod renew;
mod renewal;
mod request;
mod root;
mod run;
mod serve;
mod settings;
mod shell;
mod simulate;
mod site;
mod start;
mod state;
mod statement;
mod telemetry;
mod text;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;
use global::{Global, listen_to_logs};
use output::Format;

/// Institutions that may not pool their records train one model together.
#[derive(Debug, Parser)]
#[command(name = "consortia", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train on four hospitals' records over QUIC on this machine, and compare.
    Demo(demo::DemoArgs),
    /// Write the bundled examples into a folder: plans and the records of four hospitals.
    Examples(examples::ExamplesArgs),
    /// Create a project folder: a plan, synthetic records and a README with the next steps.
    New(new::NewArgs),
    /// Run a federation of virtual clients in this process.
    Simulate(simulate::SimulateArgs),
    /// Check a federation, simulation, site, policy or server file, and say what a plan costs.
    Check(check::CheckArgs),
    /// Set up and run a federation's server.
    #[command(subcommand)]
    Server(ServerCommand),
    /// Invite sites, as the operator.
    #[command(subcommand)]
    Invite(InviteCommand),
    /// Set up and run a site; list and revoke sites, as the operator.
    #[command(subcommand)]
    Site(SiteCommand),
    /// Submit and follow runs, as the operator.
    #[command(subcommand)]
    Run(RunCommand),
    /// Export, evaluate and verify models.
    #[command(subcommand)]
    Model(ModelCommand),
    /// Privacy accounting: epsilon of a noise, noise for an epsilon, what a plan promises, whether a statement holds.
    #[command(subcommand)]
    Privacy(PrivacyCommand),
    /// Attack synthetic clients, with and without privacy, and draw the results.
    #[command(subcommand)]
    Attack(attack::AttackCommand),
    /// Benchmark this machine: whole workloads, aggregation and training steps, each compared with the machine's limit.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Verify audit logs and ledgers.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Show privacy budgets: what is spent and what is left.
    #[command(subcommand)]
    Budget(BudgetCommand),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write man pages into a folder.
    Man {
        /// The folder.
        folder: PathBuf,
    },
    /// Print the page of all commands.
    #[command(hide = true)]
    Reference,
}

#[derive(Debug, Subcommand)]
enum ServerCommand {
    /// Create a federation: its certificate authority, the certificates of server and operator, and `server.toml`.
    Init(serve::InitArgs),
    /// Issue the certificate bundle of one site.
    Issue(serve::IssueArgs),
    /// Run the server until interrupted.
    Run(serve::RunArgs),
    /// Print the address of the dashboard, with the token that opens it.
    Dashboard(dashboard::DashboardArgs),
    /// Renew the certificates that the root signs: the server's, the operator's and the issuing one. Needs the root's key.
    Renew(renew::ServerRenewArgs),
    /// Write the signed list of revoked certificates (a CRL), for proxies and auditors.
    Crl(crl::CrlArgs),
    /// Copy a released model and its privacy statement out of the server's folder.
    Export(export::ExportArgs),
    /// Back up the server's state, while it runs.
    Backup(backup::BackupArgs),
    /// Restore a server's folder from a backup.
    Restore(backup::RestoreArgs),
    /// Copy the state of a stopped server from SQLite into an empty PostgreSQL database.
    Migrate(migrate::MigrateArgs),
}

#[derive(Debug, Subcommand)]
enum InviteCommand {
    /// Create a one-time invite for each site.
    Create(members::InviteArgs),
}

#[derive(Debug, Subcommand)]
enum SiteCommand {
    /// Join a federation with an operator's invite: makes the key, fetches the certificate, writes `site.toml`.
    Join(join::JoinArgs),
    /// Write a `site.toml` beside a certificate bundle.
    Init(site::InitArgs),
    /// Run the site until interrupted.
    Run(site::RunArgs),
    /// Pause the site: stop the running task and decline new ones until `site resume`.
    Pause(site::pause::PauseArgs),
    /// Resume a paused site.
    Resume(site::pause::PauseArgs),
    /// Leave the federation: removes the key and the certificates, keeps ledger, audit log and policy.
    Leave(site::leave::LeaveArgs),
    /// Recover a site's ledger and audit log that are lost, damaged or outdated: restore what is known and charge the rest.
    Recover(site::recover::RecoverArgs),
    /// Verify the chain of the site's audit log, and print the log.
    Audit(site::log::AuditArgs),
    /// Check a site: its files, certificate, device, data, policy and connection to the server.
    Check(site::check::CheckArgs),
    /// Fetch the last released model of a run that the site took part in, with its privacy statement.
    Model(site::model::ModelArgs),
    /// Renew the site's certificate now, with a new key; `site run` renews it automatically.
    Renew(renewal::RenewArgs),
    /// Write and check policies.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// As the operator: list the sites that were invited, have joined or are revoked.
    Ls(run::OperatorArgs),
    /// As the operator: revoke a site's certificates and invites, and close its connection.
    Revoke(members::RevokeArgs),
    /// As the operator: approve a pending site after comparing phrases by telephone.
    Approve(members::DecideArgs),
    /// As the operator: reject a pending site, and revoke its invite.
    Refuse(members::DecideArgs),
    /// As the operator: quarantine a site. It stays a member, but gets no task and none of its updates counts until it is released.
    Quarantine(members::QuarantineArgs),
    /// As the operator: end a site's quarantine.
    Release(members::ReleaseArgs),
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Write an initial policy.
    Init(policy::InitArgs),
    /// Check which tasks of a plan a policy allows, with an unspent budget; exit code 6 if one would be declined.
    Check(policy::CheckArgs),
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Verify that no record of an audit log or ledger was changed, removed or reordered; exit code 7 if parts of a log are missing.
    Verify(audit::VerifyArgs),
}

#[derive(Debug, Subcommand)]
enum BudgetCommand {
    /// Show the epsilon spent so far, computed anew from the ledgers.
    Show(budget::ShowArgs),
}

#[derive(Debug, Subcommand)]
enum ModelCommand {
    /// Write a run's model as a file that other programs use.
    Export(model::ExportArgs),
    /// Evaluate a model on local records: a site's, or a simulation's.
    Evaluate(model::EvaluateArgs),
    /// Inspect a model file, and verify whether it is the model of a privacy statement.
    Verify(model::VerifyArgs),
}

#[derive(Debug, Subcommand)]
enum PrivacyCommand {
    /// Compute the epsilon of releases with a given noise.
    Epsilon(privacy::EpsilonArgs),
    /// Compute the least noise for a given epsilon.
    Noise(privacy::NoiseArgs),
    /// Explain what a plan promises, to whom, what it does not promise, and whether a model can still be learned under its noise.
    Explain(explain::ExplainArgs),
    /// Compute the epsilons of a privacy statement again: exit code 1 when one does not follow from its events, 2 when there is
    /// none, as of a run
    /// without privacy.
    Verify(statement::VerifyArgs),
}

#[derive(Debug, Subcommand)]
enum RunCommand {
    /// Submit a plan to a running server.
    Submit(run::SubmitArgs),
    /// Watch a run until it ends.
    Watch(run::WatchArgs),
    /// List the runs.
    Ls(run::OperatorArgs),
    /// Pause a run after its open round.
    Pause(control::ControlArgs),
    /// Resume a paused run.
    Resume(control::ControlArgs),
    /// Stop a run after its open round; its models are kept.
    Stop(control::StopArgs),
    /// Show a run's records in the server's audit log.
    Log(control::NamedArgs),
    /// List the models of a run with their metrics.
    Models(control::ModelsArgs),
    /// Fetch a model of a run and its privacy statement.
    Pull(control::PullArgs),
    /// Write a report of a run as one HTML page: its outcome, curves, sites and rounds.
    Report(control::ReportArgs),
}

/// Parses the command line, does it, and turns failures into exit codes.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(mut error) => {
            advise(&mut error);
            let written = error.print();
            if error.use_stderr() {
                // Nothing can be done about a closed stderr.
                return ExitCode::from(2);
            }
            output::note_unwritten(written);
            return failure::written()
                .map_or_else(|failure| failure.report(Format::Text), |()| ExitCode::SUCCESS);
        }
    };
    let is_site = matches!(cli.command, Command::Site(SiteCommand::Run(_)));
    listen_to_logs(&cli.global, shows_events(&cli), is_site);
    if keeps_secrets(&cli.command) {
        modes::keep_private();
    }
    match perform(&cli).and_then(|()| failure::written()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(cli.global.format),
    }
}

/// Whether the command makes or keeps keys, books, models or personal layers.
fn keeps_secrets(command: &Command) -> bool {
    match command {
        Command::Server(_) | Command::Site(_) | Command::Demo(_) => true,
        Command::Examples(_)
        | Command::New(_)
        | Command::Simulate(_)
        | Command::Check(_)
        | Command::Invite(_)
        | Command::Audit(_)
        | Command::Budget(_)
        | Command::Run(_)
        | Command::Model(_)
        | Command::Privacy(_)
        | Command::Attack(_)
        | Command::Bench(_)
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::Reference => false,
    }
}

/// Adds where to get what is missing, for arguments that nobody can guess.
fn advise(error: &mut clap::Error) {
    use clap::error::{ContextKind, ContextValue};
    let Some(ContextValue::Strings(missing)) = error.get(ContextKind::InvalidArg) else { return };
    let tip = match missing.iter().map(String::as_str).find(|name| ["<INVITE>"].contains(name)) {
        Some("<INVITE>") => {
            "the operator has the invite: `consortia invite create SITE --dir DIR` prints a line, which is typed here first, or `-` to read it from stdin"
        }
        _ => return,
    };
    if error.kind() == clap::error::ErrorKind::MissingRequiredArgument {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
}

fn perform(cli: &Cli) -> Result<(), Failure> {
    let global = &cli.global;
    match &cli.command {
        Command::Demo(args) => demo::demo(args, global),
        Command::Examples(args) => examples::examples(args, global),
        Command::New(args) => new::new(args, global),
        Command::Simulate(args) => simulate::simulate(args, global),
        Command::Check(args) => check::check(args, global),
        Command::Server(ServerCommand::Init(args)) => serve::init(args, global),
        Command::Server(ServerCommand::Issue(args)) => serve::issue(args, global),
        Command::Server(ServerCommand::Run(args)) => serve::run(args, global),
        Command::Server(ServerCommand::Dashboard(args)) => dashboard::dashboard(args, global),
        Command::Server(ServerCommand::Renew(args)) => renew::renew(args, global),
        Command::Server(ServerCommand::Crl(args)) => crl::crl(args, global),
        Command::Server(ServerCommand::Export(args)) => export::export(args, global),
        Command::Server(ServerCommand::Backup(args)) => backup::backup(args, global),
        Command::Server(ServerCommand::Restore(args)) => backup::restore(args, global),
        Command::Server(ServerCommand::Migrate(args)) => migrate::migrate(args, global),
        Command::Invite(InviteCommand::Create(args)) => members::invite(args, global),
        Command::Site(SiteCommand::Join(args)) => join::join(args, global),
        Command::Site(SiteCommand::Renew(args)) => renewal::renew_now(args, global),
        Command::Site(SiteCommand::Ls(args)) => members::ls(args, global),
        Command::Site(SiteCommand::Revoke(args)) => members::revoke(args, global),
        Command::Site(SiteCommand::Approve(args)) => members::approve(args, global),
        Command::Site(SiteCommand::Refuse(args)) => members::refuse(args, global),
        Command::Site(SiteCommand::Quarantine(args)) => members::quarantine(args, global),
        Command::Site(SiteCommand::Release(args)) => members::release(args, global),
        Command::Site(SiteCommand::Init(args)) => site::init(args, global),
        Command::Site(SiteCommand::Run(args)) => site::run(args, global),
        Command::Site(SiteCommand::Pause(args)) => site::pause::pause(args, global),
        Command::Site(SiteCommand::Resume(args)) => site::pause::resume(args, global),
        Command::Site(SiteCommand::Leave(args)) => site::leave::leave(args, global),
        Command::Site(SiteCommand::Recover(args)) => site::recover::recover(args, global),
        Command::Site(SiteCommand::Audit(args)) => site::log::audit(args, global),
        Command::Site(SiteCommand::Check(args)) => site::check::check(args, global),
        Command::Site(SiteCommand::Model(args)) => site::model::model(args, global),
        Command::Site(SiteCommand::Policy(PolicyCommand::Init(args))) => policy::init(args, global),
        Command::Site(SiteCommand::Policy(PolicyCommand::Check(args))) => policy::check(args, global),
        Command::Audit(AuditCommand::Verify(args)) => audit::verify(args, global),
        Command::Budget(BudgetCommand::Show(args)) => budget::show(args, global),
        Command::Run(RunCommand::Submit(args)) => run::submit(args, global),
        Command::Run(RunCommand::Watch(args)) => run::watch(args, global),
        Command::Run(RunCommand::Ls(args)) => run::ls(args, global),
        Command::Run(RunCommand::Pause(args)) => control::pause(args, global),
        Command::Run(RunCommand::Resume(args)) => control::resume(args, global),
        Command::Run(RunCommand::Stop(args)) => control::stop(args, global),
        Command::Run(RunCommand::Log(args)) => control::log(args, global),
        Command::Run(RunCommand::Models(args)) => control::models(args, global),
        Command::Run(RunCommand::Pull(args)) => control::pull(args, global),
        Command::Run(RunCommand::Report(args)) => control::report(args, global),
        Command::Model(ModelCommand::Export(args)) => model::export(args, global),
        Command::Model(ModelCommand::Evaluate(args)) => model::evaluate(args, global),
        Command::Model(ModelCommand::Verify(args)) => model::verify(args, global),
        Command::Privacy(PrivacyCommand::Epsilon(args)) => privacy::epsilon(args, global),
        Command::Privacy(PrivacyCommand::Noise(args)) => privacy::noise(args, global),
        Command::Privacy(PrivacyCommand::Explain(args)) => explain::explain(args, global),
        Command::Privacy(PrivacyCommand::Verify(args)) => statement::verify(args, global),
        Command::Attack(command) => attack::attack(command, global),
        Command::Bench(command) => bench::bench(command, global),
        Command::Completions { shell } => {
            manuals::completions(*shell, command());
            Ok(())
        }
        Command::Man { folder } => manuals::man(folder, command()),
        Command::Reference => {
            reference::reference(command());
            Ok(())
        }
    }
}

/// Whether the command shows on stdout what happens in runs, so that its log need not.
fn shows_events(cli: &Cli) -> bool {
    match &cli.command {
        Command::Server(ServerCommand::Run(_)) => true,
        Command::Site(SiteCommand::Run(_)) => site::is_heard(&cli.global),
        _ => false,
    }
}

/// The command tree, for completions and man pages.
fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_visible_command_has_its_heading_and_hidden_arguments_stay_out() {
        let page = reference::page(command());
        for heading in ["## consortia demo", "### consortia site join", "#### consortia site policy check"] {
            assert!(page.lines().any(|line| line == heading), "{heading}");
        }
        assert!(page.contains("| `--policy <PRESET>` |") && page.contains("`records` ("), "{page}");
        assert!(!page.contains("while-stdin-open") && !page.contains("## consortia reference"));
    }
}
