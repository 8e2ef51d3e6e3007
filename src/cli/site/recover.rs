//! `consortia site recover`: puts a site's books in order when one of them is lost, damaged or older than the others.
//!
//! It restores what copies are left of, and charges the rest. It never makes a budget fresh, and takes a server's word only when told to.

use std::path::{Path, PathBuf};

use ::client::net::{BooksError, Recovery, RecoveryOrder, recover_books};
use clap::Args;
use privacy::{counted, verb};
use serde_json::json;

use super::super::failure::{Blame, Failure, Kind, OrFail};
use super::super::folder::SiteFile;
use super::super::global::Global;
use super::super::hints::Given;
use super::super::policy;
use super::begun;
use super::now;
use super::owner;
use super::pause::who;

#[derive(Debug, Args)]
pub(in crate::cli) struct RecoverArgs {
    /// The site's file.
    #[arg(default_value = "site.toml")]
    file: PathBuf,
    /// Also charge what the server remembers and this ledger lacks. Use it after the server has refused this folder as a copy or
    /// an older backup, and only if that is what it is.
    #[arg(long)]
    believe_server: bool,
    /// The number of records missing at the end of the ledger, if no file is left that tells it. Without it an unbounded loss is
    /// charged. If a file tells the number, that one is used.
    #[arg(long, value_name = "NUMBER")]
    lost_records: Option<u64>,
    /// Continue although closed segments of the audit log with copies of lost records are gone for good: those records are
    /// charged at the highest possible cost.
    #[arg(long)]
    without_segments: bool,
}

/// The delta at which guesses are compared where the policy names none.
const DELTA: f64 = 1e-6;

pub(in crate::cli) fn recover(args: &RecoverArgs, global: &Global) -> Result<(), Failure> {
    let file = SiteFile::read(&args.file)?;
    if let Some(fault) = owner::fault(&file) {
        return Err(Failure::new(Kind::Configuration, fault));
    }
    let budget = policy::read(&file.policy).ok().and_then(|(policy, _)| policy.budget());
    let delta = budget.map_or(DELTA, |(_, delta)| delta);
    let is_all_lost = begun::are_books_lost(&file.state);
    if is_all_lost {
        // First: killed after this, the folder is still known as one that lost its books.
        begun::note(&file.state);
        std::fs::create_dir_all(&file.state).or_fail(Kind::Configuration, file.state.display())?;
    }
    let order = RecoveryOrder {
        by: who(),
        believes_server: args.believe_server,
        delta,
        is_all_lost,
        lost: args.lost_records,
        without_segments: args.without_segments,
    };
    let recovery = recover_books(&file.state, &order, now).map_err(|error| match error {
        BooksError::Held(_) => Failure::new(
            error.kind(),
            "`site run` is at work on this site; end it first, nothing was changed",
        ),
        _ => Failure::new(error.kind(), begun::with_path(&error.to_string(), &file)),
    })?;
    let Some(recovery) = recovery else {
        global.format.say(
            || "the books are in order, and nothing was changed".to_owned(),
            || json!({ "recovered": false }),
        );
        return Ok(());
    };
    // A folder of a release that wrote no such file; one without books has none to lose.
    begun::note(&file.state);
    owner::note(&file)?;
    let Recovery { restored, lost, is_uncounted, unbounded, kept } = &recovery;
    let units: Vec<String> = unbounded.iter().map(ToString::to_string).collect();
    global.format.say(
        || describe(&recovery, is_all_lost, &file.path),
        || json!({ "recovered": true, "restored": restored, "lost": lost, "uncounted": is_uncounted, "unbounded": units, "kept": kept }),
    );
    Ok(())
}

fn describe(recovery: &Recovery, is_all_lost: bool, site: &Path) -> String {
    let Recovery { restored, lost, is_uncounted, unbounded, kept } = recovery;
    let mut lines = vec![format!(
        "the books are in order again; {} of the ledger {} restored",
        counted(*restored, "record"),
        verb(*restored, "was", "were")
    )];
    if is_all_lost {
        lines.push("all books were gone, and nothing here tells how much was spent".to_owned());
    } else if *is_uncounted && !unbounded.is_empty() {
        lines.push(
            "no file is left that tells the length of the ledger: an unknown number of records at its end may be lost".to_owned(),
        );
    } else if *lost > 0 {
        lines.push(format!(
            "{} lost; each is charged by the guess that costs most",
            format_args!("{} {}", counted(*lost, "record"), verb(*lost, "is", "are"))
        ));
    }
    for unit in unbounded {
        lines.push(format!(
            "nothing bounds what the lost records cost {unit}: epsilon for {unit} is infinite now, and the site declines every task that needs a limited \
             budget for {unit} (docs/operations.md, Its books). If you have a copy of the state folder, put it back instead"
        ));
    }
    lines.extend(kept.iter().map(|path| format!("the file that was replaced is kept as {}", path.display())));
    lines.push(
        "next: start the site. If the server refuses it because it remembers more of the ledger, run `consortia site recover --believe-server`, \
         which charges that, too"
            .to_owned(),
    );
    lines.push("`consortia budget show` says what is left".to_owned());
    let given = Given::Site(site);
    let lines: Vec<String> = lines.iter().map(|line| given.complete(line)).collect();
    lines.join("\n")
}
