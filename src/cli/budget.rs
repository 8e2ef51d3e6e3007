//! `consortia budget show`: what has been given away, computed anew from the events in the books.

mod server;

use std::path::{Path, PathBuf};

use ::client::net::check_books;
use ::client::{Policy, SiteAccount, Total};
use clap::Args;
use privacy::accounting::{AccountingError, Figure};
use privacy::ledger::Unit;
use privacy::{counted, verb};
use protocol::RunId;
use serde_json::{Value, json};

use super::failure::{Failure, Kind, OrFail};
use super::folder::{ServerFolder, SiteFile};
use super::global::Global;
use super::kinds::{FileKind, or_what_it_is};
use super::output::table;
use super::site::begun::with_path;
use super::site::owner::refuse_books;

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The folder of a site or of a server.
    #[arg(default_value = ".")]
    path: PathBuf,
    /// At a site: the delta of the totals, at most 0.01; by default the policy's, or 1e-6.
    #[arg(long, value_parser = super::privacy::typed_delta)]
    delta: Option<f64>,
}

/// Whose folder it is.
enum Books {
    Site(Box<SiteFile>),
    Server(ServerFolder),
}

impl Books {
    fn of(path: &Path) -> Result<Self, Failure> {
        let site = if path.is_dir() { path.join("site.toml") } else { path.to_path_buf() };
        if site.exists() {
            let what = |failure| {
                or_what_it_is(&site, &[FileKind::Site], "the folder of a site or a server", failure)
            };
            return SiteFile::read(&site).map(|file| Self::Site(Box::new(file))).map_err(what);
        }
        let server = ServerFolder(path.to_path_buf());
        if server.config().exists() {
            return Ok(Self::Server(server));
        }
        let message =
            format!("{}: there is no site.toml and no server.toml, so there are no books", path.display());
        Err(Failure::new(Kind::Configuration, message))
    }
}

pub(super) fn show(args: &ShowArgs, global: &Global) -> Result<(), Failure> {
    match Books::of(&args.path)? {
        Books::Site(file) => show_site(&file, args.delta, global),
        Books::Server(folder) => server::show(&folder, global),
    }
}

fn show_site(file: &SiteFile, delta: Option<f64>, global: &Global) -> Result<(), Failure> {
    refuse_books(file, Kind::Run)?;
    check_books(&file.state).map_err(|error| Failure::new(Kind::Run, with_path(&error.to_string(), file)))?;
    let path = file.state.join("ledger.jsonl");
    let text = if path.exists() {
        std::fs::read(&path).or_fail(Kind::Configuration, path.display())?
    } else {
        Vec::new()
    };
    let account = SiteAccount::read(&text).or_fail(Kind::Run, path.display())?;
    let budget = policy_of(file)?.and_then(|policy| policy.budget());
    let delta = delta.or_else(|| budget.map(|(_, delta)| delta)).unwrap_or(1e-6);
    let spending = Spending::of(&account, budget, delta).or_fail(Kind::Configuration, path.display())?;
    global.format.say(|| spending.lines(), || spending.object());
    Ok(())
}

/// The site's policy, where it has one that can be read.
fn policy_of(file: &SiteFile) -> Result<Option<Policy>, Failure> {
    if file.policy.exists() {
        super::policy::read(&file.policy).map(|(policy, _)| Some(policy))
    } else {
        Ok(None)
    }
}

/// One line of what is shown.
struct Line {
    /// The run and the federation's fingerprint; `None` for all of them together.
    run: Option<(RunId, String)>,
    delta: f64,
    tasks: Option<(usize, usize)>,
    /// Answers that neither noise covers.
    without: usize,
    client: Total,
    record: Total,
}

/// All that is shown of a site.
struct Spending {
    budget: Option<(f64, f64)>,
    runs: Vec<Line>,
    whole: Line,
    /// Records that were lost, and charged by a guess.
    lost: u64,
}

impl Spending {
    fn of(account: &SiteAccount, budget: Option<(f64, f64)>, delta: f64) -> Result<Self, AccountingError> {
        let line = |run: Option<(RunId, String)>, delta, tasks| {
            let of = run.as_ref().map(|(run, _)| *run);
            let (client, record) =
                (account.total(Unit::Client, of, delta)?, account.total(Unit::Example, of, delta)?);
            // One run has one plan: what one kind of noise covers is covered in all of its trainings.
            let without = client.unprotected.min(record.unprotected);
            Ok(Line { run, delta, tasks, without, client, record })
        };
        let runs = account.runs().into_iter().map(|run| {
            let tasks = Some((run.tasks, run.seeded));
            line(Some((run.run, run.federation.to_string())), run.delta.unwrap_or(delta), tasks)
        });
        let runs: Vec<Line> = runs.collect::<Result<_, _>>()?;
        let without = runs.iter().map(|run| run.without).sum();
        let lost = account.lost();
        Ok(Self { budget, whole: Line { without, ..line(None, delta, None)? }, runs, lost })
    }

    fn lines(&self) -> String {
        let mut rows = vec![
            ["run", "delta", "client rdp", "client pld", "record rdp", "record pld", "without", "seeded"]
                .map(str::to_owned)
                .to_vec(),
        ];
        rows.extend(self.runs.iter().chain([&self.whole]).map(Line::row));
        let allowed = match self.budget {
            Some((epsilon, delta)) => {
                let (epsilon, delta) = (Figure(epsilon), Figure(delta));
                format!("epsilon {epsilon} at delta {delta}, for the client and for its records each")
            }
            None => "whatever the plans ask".to_owned(),
        };
        let lost = match self.lost {
            0 => String::new(),
            lost => format!(
                "\n{} of the ledger {} lost; each is charged, in every run, by the guess that costs most",
                counted(lost, "record"),
                verb(lost, "was", "were")
            ),
        };
        format!(
            "{}\n\nepsilon of this site as a client and of its single records, over all servers, at sampling rate 1\n\
             without: answers that neither noise covers; they have no epsilon\n\
             seeded: the server knew the seed, and what it released claims nothing\n\
             the policy allows {allowed}{lost}",
            table(&rows)
        )
    }

    fn object(&self) -> Value {
        json!({
            "kind": "site",
            "epsilon_max": self.budget.map(|(epsilon, _)| epsilon),
            "delta": self.whole.delta,
            "without": self.whole.without,
            "lost": self.lost,
            "client": unit(&self.whole.client),
            "record": unit(&self.whole.record),
            "runs": self.runs.iter().map(Line::object).collect::<Vec<_>>(),
        })
    }
}

impl Line {
    fn row(&self) -> Vec<String> {
        let name = self.run.as_ref().map_or_else(|| "all".to_owned(), |(run, _)| run.to_string());
        let epsilon = |total: &Total, bound: Option<f64>| match bound {
            Some(_) if total.protected == 0 => "-".to_owned(),
            Some(bound) => format!("{bound:.4}"),
            None => "-".to_owned(),
        };
        let (client, record) = (&self.client, &self.record);
        vec![
            name,
            format!("{:e}", self.delta),
            epsilon(client, client.epsilon.rdp),
            epsilon(client, client.epsilon.pld),
            epsilon(record, record.epsilon.rdp),
            epsilon(record, record.epsilon.pld),
            self.without.to_string(),
            self.tasks.map_or_else(String::new, |(_, seeded)| seeded.to_string()),
        ]
    }

    fn object(&self) -> Value {
        json!({
            "run": self.run.as_ref().map(|(run, _)| run.to_string()),
            "federation": self.run.as_ref().map(|(_, federation)| federation),
            "delta": self.delta,
            "without": self.without,
            "tasks": self.tasks.map(|(tasks, _)| tasks),
            "rehearsals": self.tasks.map(|(_, seeded)| seeded),
            "client": unit(&self.client),
            "record": unit(&self.record),
        })
    }
}

/// Epsilon of one kind of unit; `null` where nothing protects it or an accountant has no bound.
fn unit(total: &Total) -> Value {
    let finite = |bound: Option<f64>| {
        bound
            .filter(|_| total.protected > 0)
            .map(|bound| if bound.is_finite() { json!(bound) } else { json!("infinity") })
    };
    json!({
        "rdp": finite(total.epsilon.rdp),
        "pld": finite(total.epsilon.pld),
        "protected": total.protected,
        "unprotected": total.unprotected,
    })
}
