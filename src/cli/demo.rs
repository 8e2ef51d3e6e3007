//! `consortia demo`: four hospitals, one server, five processes on this machine, real records, real QUIC.
//!
//! The parent makes a federation in a temporary folder with the same functions as the commands a user would type, gives
//! each hospital its own rows, starts one process a site and one for the server, and hands in the plan as the operator.
//! The server never reads a record.

mod price;
mod processes;
mod yardstick;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use command::results::{ClientMetrics, Clock, Ending, ReportTable, Results, write_model};
use privacy::chain::segments::files_of;
use protocol::wire::{ModelChoice, RunState, RunSummary};
use protocol::{ClientId, Metrics, RunId};
use serde_json::{Value, json};
use server::{Checkpoint, FederationConfig, Plan, read_toml};
use simulations::{Population, Scenario};

use super::examples::{HEART, HEART_PRIVATE, HOSPITALS, RECORDS, hospitals};
use super::failure::{Failure, Kind, OrFail};
use super::folder::{ServerFolder, open_results};
use super::global::Global;
use super::hints::Given;
use super::output::{Format, share, table, tell};
use super::progress::Progress;
use super::run::{Handing, connect_to, hand_in, verdict};
use super::simulate::last_test;
use super::watch::runtime;
use price::{Price, describe, object, prices};
use privacy::counted;
use processes::Processes;
use yardstick::{Yardstick, measure, together};

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// The seed from which everything random follows: `simulate examples/heart.toml` (`consortia examples`) with it gives the same model.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Protect every patient's record with DP-SGD at each hospital (examples/heart_private.toml). The run is not seeded.
    #[arg(long, conflicts_with = "seed")]
    private: bool,
    /// The folder in which the results folder is made.
    #[arg(long, default_value = "runs")]
    out: PathBuf,
    /// Keep the federation's folder (certificates, state, records) in this folder instead of a temporary one.
    #[arg(long)]
    keep: Option<PathBuf>,
}

impl DemoArgs {
    /// The plan that is handed in, its file, and the seed of a seeded run.
    fn plan(&self) -> (&'static str, &'static str, Option<u64>) {
        if self.private {
            (HEART_PRIVATE, "examples/heart_private.toml", None)
        } else {
            (HEART, "examples/heart.toml", Some(self.seed))
        }
    }
}

/// The longest the demo waits for its own processes.
const PATIENCE: Duration = Duration::from_secs(300);

pub(super) fn demo(args: &DemoArgs, global: &Global) -> Result<(), Failure> {
    let started = Instant::now();
    let temporary = tempfile::Builder::new()
        .prefix("consortia-demo-")
        .tempdir()
        .or_fail(Kind::Run, "temporary folder")?;
    let folder = ServerFolder(args.keep.clone().unwrap_or_else(|| temporary.path().to_path_buf()));
    std::fs::create_dir_all(&folder.0).or_fail(Kind::Configuration, folder.0.display())?;
    let hospitals = hospitals();
    let note = |text: String| {
        if global.quiet == 0 {
            tell(text);
        }
    };
    note(format!("making a federation of {} hospitals in {}", hospitals.len(), folder.0.display()));
    make_federation(&folder, &hospitals, global)?;
    let mut results = open_results(&args.out, "demo")?;
    let (summary, yardstick) =
        runtime()?.block_on(federate(&folder, &hospitals, args, global, &mut results))?;
    let model = results.folder().join("model.safetensors");
    std::fs::copy(folder.0.join("model.safetensors"), &model).or_fail(Kind::Run, model.display())?;
    let (plan, file, _) = args.plan();
    let typed: FederationConfig = read_toml(plan).or_fail(Kind::Defect, file)?;
    let resolved = toml::to_string_pretty(&typed).or_fail(Kind::Defect, "resolved.toml")?;
    results.resolved(&resolved).or_fail(Kind::Run, "resolved.toml")?;
    let title = "four hospitals, heart disease";
    let prices = prices(&folder, &hospitals)?;
    let seconds = started.elapsed().as_secs_f64();
    let ended = Ended { summary: &summary, yardstick: &yardstick, prices: &prices, seconds };
    results.show_table(ended.hospital_table());
    results.show_clients(summary.clients.clone(), ClientMetrics::default());
    let ending = Ending {
        title,
        state: summary.state,
        lead: &summary.message,
        remarks: &[],
        model_sha256: &summary.model_sha256,
        clock: Clock::Real,
        real_seconds: Some(seconds),
        now: time::OffsetDateTime::now_utc(),
    };
    let results = results.finish(&ending, &summary.history).or_fail(Kind::Run, "results")?;
    ended.tell(args, &results, global);
    match summary.state {
        RunState::Finished => Ok(()),
        RunState::Stopped => Err(Failure::new(Kind::Run, &summary.message)),
        _ => verdict(&summary),
    }
}

/// How many of a hospital's rows are for training.
fn training_rows(rows: &str) -> usize {
    rows.lines().filter(|line| line.split(',').nth(1) == Some("train")).count()
}

/// What `server init`, `server issue` and an IT department would do.
fn make_federation(
    folder: &ServerFolder,
    hospitals: &[(String, String)],
    global: &Global,
) -> Result<(), Failure> {
    let silent = Global { format: Format::Silent, quiet: global.quiet, verbose: global.verbose };
    let listen = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    super::serve::init(
        &super::serve::InitArgs {
            folder: folder.0.clone(),
            names: Vec::new(),
            listen,
            seal: super::root::SealArgs::default(),
        },
        &silent,
    )?;
    for (name, rows) in hospitals {
        let site = ClientId::new(name).or_fail(Kind::Defect, "examples/data")?;
        let root = super::root::RootArgs::default();
        super::serve::issue(&super::serve::IssueArgs { site, folder: folder.0.clone(), root }, &silent)?;
        let path = folder.site(name).join("records.csv");
        std::fs::write(&path, rows).or_fail(Kind::Run, path.display())?;
    }
    Ok(())
}

/// Starts everything, follows the run to its end, and stops everything. The yardstick is measured meanwhile.
async fn federate(
    folder: &ServerFolder,
    hospitals: &[(String, String)],
    args: &DemoArgs,
    global: &Global,
    results: &mut Results,
) -> Result<(RunSummary, Yardstick), Failure> {
    let mut processes = Processes::default();
    let address = processes.start_server(folder).await?;
    for (name, rows) in hospitals {
        processes.start_site(&folder.site(name), &address, training_rows(rows))?;
    }
    if global.quiet == 0 {
        let sites: Vec<&str> = hospitals.iter().map(|(name, _)| name.as_str()).collect();
        tell(format!("server on {address}, one process each for {}", sites.join(", ")));
    }
    let scenario =
        Scenario::parse(HEART, &folder.0, &|_| None).or_fail(Kind::Defect, "examples/heart.toml")?;
    let population = bundled_population(&scenario, folder)?;
    let seed = args.seed;
    let measuring =
        tokio::task::spawn_blocking(move || Ok((measure(&scenario, &population, seed)?, population)));

    let operator = connect_to(std::slice::from_ref(&address), folder).await?;
    let (plan, _, seed) = args.plan();
    let given = Given::Operator { folder: &folder.0, server: Some(&address) };
    let handing = Handing { plan_toml: plan.to_owned(), seed, start: None };
    let run = hand_in(&operator, handing, given, global).await?;
    let (mut shown, mut progress) = (Vec::new(), None);
    let watching = operator.watch(Some(run), |summary| {
        let progress = progress.get_or_insert_with(|| Progress::new(global, summary.rounds));
        progress.within(summary.message.clone());
        for round in summary.history.iter().filter(|round| round.round > 0 && round.sites.is_some()) {
            if !shown.contains(&round.round) {
                shown.push(round.round);
                progress.round(round);
            }
        }
    });
    let late = |_| Failure::new(Kind::Timeout, "the demo's own processes did not finish in five minutes");
    let watched = tokio::time::timeout(PATIENCE, watching).await.map_err(late)?;
    let summary = watched.or_fail(Kind::Connection, "")?;
    if let Some(progress) = &progress {
        progress.end();
    }
    if args.private {
        let fetched = operator.model(Some(run), ModelChoice::Last).await.or_fail(Kind::Run, "")?;
        let path = results.folder().join("privacy_statement.json");
        std::fs::write(&path, fetched.statement).or_fail(Kind::Run, path.display())?;
    }
    operator.close().await;
    processes.stop(results).await?;
    if args.private {
        keep_books(folder, hospitals, results.folder())?;
    }
    let checkpoint = take_model(folder, run).await?;
    let measured: Result<(Yardstick, Population), Failure> =
        measuring.await.or_fail(Kind::Defect, "yardstick")?;
    let (mut yardstick, population) = measured?;
    if args.private {
        let (model, standardiser) = (Arc::clone(&checkpoint.model), checkpoint.standardiser.clone());
        yardstick.together = together(&private_plan(folder)?, &population, model, standardiser);
    }
    Ok((summary, yardstick))
}

/// Writes the model of a run whose server has ended into its folder, and returns where the run stands.
async fn take_model(folder: &ServerFolder, run: RunId) -> Result<Checkpoint, Failure> {
    let store = server::net::Store::open(&folder.state()).await.or_fail(Kind::Run, "")?;
    let stored = store.load(run).await.or_fail(Kind::Run, "")?;
    store.close().await;
    let (model, checkpoint) = (folder.0.join("model.safetensors"), stored.checkpoint);
    write_model(&model, &stored.layout, &checkpoint.model, checkpoint.standardiser.as_deref())
        .or_fail(Kind::Run, model.display())?;
    Ok(checkpoint)
}

/// Copies what each hospital's promise is accounted for in, as `audit verify` reads it.
fn keep_books(folder: &ServerFolder, hospitals: &[(String, String)], results: &Path) -> Result<(), Failure> {
    for (name, _) in hospitals {
        let to = results.join(name);
        std::fs::create_dir_all(&to).or_fail(Kind::Run, to.display())?;
        let own = ["ledger.jsonl", "heads.json"].map(|book| folder.site(name).join(book));
        let log = folder.site(name).join("audit.jsonl");
        for from in files_of(&log).or_fail(Kind::Run, log.display())?.iter().chain(&own) {
            let book = from.file_name().unwrap_or_default();
            std::fs::copy(from, to.join(book)).or_fail(Kind::Run, from.display())?;
        }
    }
    Ok(())
}

/// The plan of the private demo.
fn private_plan(folder: &ServerFolder) -> Result<Plan, Failure> {
    let scenario = Scenario::parse(HEART_PRIVATE, &folder.0, &|_| None);
    Ok(scenario.or_fail(Kind::Defect, "examples/heart_private.toml")?.plan)
}

/// All hospitals' records in one place: only the yardstick sees them so.
fn bundled_population(scenario: &Scenario, folder: &ServerFolder) -> Result<Population, Failure> {
    let records = folder.0.join("data").join("heart_disease.csv");
    std::fs::create_dir_all(folder.0.join("data")).or_fail(Kind::Run, records.display())?;
    std::fs::write(&records, RECORDS).or_fail(Kind::Run, records.display())?;
    let device = learning::device::Device::Cpu;
    Population::build(&scenario.simulation, &scenario.plan.spec, device)
        .or_fail(Kind::Defect, "examples/heart.toml")
}

/// What there is to tell at the end.
struct Ended<'a> {
    summary: &'a RunSummary,
    yardstick: &'a Yardstick,
    prices: &'a [Price],
    seconds: f64,
}

impl Ended<'_> {
    fn tell(&self, args: &DemoArgs, results: &Path, global: &Global) {
        global.format.say(|| self.text(args, results), || self.object(results));
    }

    /// What the model gives on all test rows: as the sites told the server, or as it was measured here.
    fn test(&self) -> Option<Metrics> {
        let measured = self.yardstick.together.iter().map(|(_, metrics)| metrics);
        last_test(&self.summary.history).or_else(|| Metrics::pooled(measured, u64::MAX))
    }

    fn accuracy(&self) -> Option<f64> {
        self.test().and_then(|metrics| metrics.accuracy)
    }

    fn rounds(&self) -> usize {
        self.summary.history.iter().filter(|round| round.round > 0).count()
    }

    /// Together, alone and pooled, and the number of test rows, for each hospital.
    fn hospitals(&self) -> impl Iterator<Item = (&ClientId, u64, [Option<f64>; 3])> {
        self.summary.clients.iter().map(|client| {
            let measured = self.yardstick.sites.iter().find(|site| site.name == client.client);
            let (alone, pooled) = measured.map_or((None, None), |site| (site.alone, site.pooled));
            let found = self.yardstick.together.iter().find(|(name, _)| *name == client.client);
            let test = client.test.or_else(|| found.map(|(_, metrics)| *metrics));
            let together = test.and_then(|metrics| metrics.accuracy);
            (&client.client, test.map_or(0, |metrics| metrics.examples), [together, alone, pooled])
        })
    }

    /// What each hospital has of the federation, heads first.
    fn hospital_rows(&self) -> Vec<Vec<String>> {
        let mut rows =
            vec![["hospital", "test rows", "together", "alone", "pooled"].map(str::to_owned).to_vec()];
        let row = |name: String, count: u64, shares: [Option<f64>; 3]| {
            [vec![name, count.to_string()], shares.map(share).to_vec()].concat()
        };
        rows.extend(self.hospitals().map(|(name, count, shares)| row(name.to_string(), count, shares)));
        let count = self.test().map_or(0, |metrics| metrics.examples);
        let shares = [self.accuracy(), self.yardstick.alone, self.yardstick.pooled];
        rows.push(row("all four".into(), count, shares));
        rows
    }

    /// The same for the report.
    fn hospital_table(&self) -> ReportTable {
        let mut rows = self.hospital_rows();
        let heads = ["Hospital", "Test rows", "Together", "Alone", "Pooled"].map(str::to_owned).to_vec();
        rows.remove(0);
        let note = "Test accuracy. Together: one model, trained without any record leaving its hospital. Alone: each hospital's own model, on its own \
                    test rows, without noise. Pooled: one model on all records in one place, which is what nobody may do, without noise.";
        ReportTable { title: "What each hospital has of it".to_owned(), note: note.to_owned(), heads, rows }
    }

    fn text(&self, args: &DemoArgs, results: &Path) -> String {
        let rows = self.hospital_rows();
        let kept = if args.private {
            let results = results.display();
            format!(
                "statement     {results}/privacy_statement.json\nledgers       {results}/HOSPITAL/ledger.jsonl\n"
            )
        } else {
            String::new()
        };
        format!(
            "\ntest accuracy after {} over QUIC, {:.1} s\n\n{}\n\n\
             together  one model, trained without any record leaving its hospital\n\
             alone     each hospital's own model, on its own test rows; no noise\n\
             pooled    one model on all records in one place, which is what nobody may do; no noise\n\n\
             epsilon       {}\nparameters    sha256 {}\nresults       {}\n{kept}\n{}",
            counted(self.rounds(), "round"),
            self.seconds,
            table(&rows),
            describe(self.prices),
            self.summary.model_sha256,
            results.display(),
            next_steps(args),
        )
    }

    fn object(&self, results: &Path) -> Value {
        let test = self.test();
        let site = |(name, rows, [together, alone, pooled]): (&ClientId, u64, [Option<f64>; 3])| json!({ "site": name.as_str(), "test_rows": rows, "together": together, "alone": alone, "pooled": pooled });
        json!({
            "model_sha256": self.summary.model_sha256,
            "rounds": self.rounds(),
            "accuracy": self.accuracy(),
            "loss": test.map(|metrics| metrics.loss),
            "seconds": self.seconds,
            "results": results,
            "alone": self.yardstick.alone,
            "pooled": self.yardstick.pooled,
            "sites": self.hospitals().map(site).collect::<Vec<_>>(),
            "rehearsal": self.summary.is_seeded,
            "epsilon_of_records": object(self.prices),
        })
    }
}

/// What to type next: the same in one process, and with a server and sites of one's own. Every line works where nothing but this
/// program is.
fn next_steps(args: &DemoArgs) -> String {
    let (_, file, seed) = args.plan();
    let again = match seed {
        Some(seed) => format!(
            "the same bits without a network:\n  consortia examples\n  consortia simulate {file} --seed {seed}"
        ),
        None => format!(
            "the same without a network, with other noise:\n  consortia examples\n  consortia simulate {file}"
        ),
    };
    let hospitals = hospitals();
    let names: Vec<&str> = hospitals.iter().map(|(name, _)| name.as_str()).collect();
    // The private plan takes its steps and weights from the number of records, which a site tells only where its file says so.
    let (policy, declared) = if args.private {
        let counts: Vec<String> = hospitals.iter().map(|(_, rows)| training_rows(rows).to_string()).collect();
        (
            "records",
            format!("\n  and, at the top: public_records = NUMBER   ({}, in this order)", counts.join(", ")),
        )
    } else {
        ("plain", String::new())
    };
    format!(
        "{again}\n\nthe same with a server and sites of your own, here; `run` goes on, in a terminal of its own:\n  \
         consortia server init fed --name localhost        (elsewhere: the name by which sites reach it)\n  \
         consortia server run fed\n  consortia invite create {} --dir fed\nfor each SITE of these, with the LINE that was printed for it:\n  \
         consortia site join LINE --dir SITE --data examples/{HOSPITALS}/SITE.csv --policy {policy}\n  \
         in SITE/site.toml, under [data.csv]: split_column = \"split\"{declared}\n  \
         consortia site run SITE/site.toml\nand then:\n  consortia run submit {file} --dir fed --watch",
        names.join(" "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hospital_s_training_rows_are_counted() {
        let training: Vec<usize> = hospitals().iter().map(|(_, rows)| training_rows(rows)).collect();
        assert_eq!(training, [199, 172, 30, 85]);
    }
}
