//! `consortia new`: a folder to begin with, which can be checked, simulated and deployed as it stands.
//!
//! The records in it are made up from a seed, here; nothing is fetched.

mod made_up;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;
use server::Plan;

use super::failure::{Failure, Kind, OrFail};
use super::global::Global;
use super::part::{Access, Part};
use super::shell::quoted;
use made_up::{File, MadeUp};

#[derive(Debug, Args)]
pub(super) struct NewArgs {
    /// The folder to create; its name becomes the plan's name.
    folder: PathBuf,
    /// The kind of records.
    #[arg(long, value_enum, default_value_t = Template::Csv)]
    template: Template,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Template {
    /// Rows of named columns.
    Csv,
    /// Pictures, and a small convolutional network.
    Images,
    /// Symbols, and a small recurrent network.
    Text,
    /// Rows of named columns, each protected by DP-SGD at its site.
    Private,
}

/// From which the made-up records follow.
const SEED: u64 = 7;

impl Template {
    fn plan(self) -> &'static str {
        match self {
            Self::Csv => include_str!("new/csv.toml"),
            Self::Images => include_str!("new/images.toml"),
            Self::Text => include_str!("new/text.toml"),
            Self::Private => include_str!("new/private.toml"),
        }
    }

    fn records(self) -> Vec<File> {
        let mut chance = MadeUp(SEED);
        match self {
            Self::Csv => made_up::table(&mut chance, 120),
            Self::Private => made_up::table(&mut chance, 600),
            Self::Images => made_up::images(&mut chance),
            Self::Text => made_up::text(&mut chance),
        }
    }

    /// How a site of this folder names its records in `site.toml`.
    fn source(self) -> &'static str {
        match self {
            Self::Csv | Self::Private => {
                "[data.csv]\ntrain = \"records.csv\"\nsplit_column = \"split\"\nwhere = { site = \"north\" }\n"
            }
            Self::Images => {
                "[data.idx]\ntrain_images = \"train-images.idx\"\ntrain_labels = \"train-labels.idx\"\n\
                 test_images = \"test-images.idx\"\ntest_labels = \"test-labels.idx\"\n"
            }
            Self::Text => {
                "[data.idx]\ntrain_images = \"train-text.idx\"\ntrain_labels = \"train-labels.idx\"\n\
                 test_images = \"test-text.idx\"\ntest_labels = \"test-labels.idx\"\n"
            }
        }
    }

    /// The policy under which a site takes part in the plan.
    fn policy(self) -> &'static str {
        match self {
            Self::Csv | Self::Images | Self::Text => "plain",
            Self::Private => "records",
        }
    }

    /// What else a site must say for the plan.
    fn declared(self) -> &'static str {
        match self {
            Self::Csv | Self::Images | Self::Text => "",
            Self::Private => {
                "\nAt the top of it stands `public_records = N`, the number of its training records: the plan weighs sites by it, and a site tells it \
                 only where its file says so.\n"
            }
        }
    }

    fn readme(self, name: &str) -> String {
        format!(
            "# {name}\n\nThe plan is `federation.toml`. The records beside it are made up, so that it can be tried before there are \
             any.\n\n```sh\nconsortia check federation.toml          # what it means and costs\nconsortia simulate federation.toml       \
             # all sites in this process\nconsortia run submit federation.toml --dir fed --watch   # for real\n```\n\n\
             For real there is a server and a site beside each party's records:\n\n```sh\nconsortia server init fed --name \
             fed.example.org\nconsortia server run fed\nconsortia invite create north east south --dir fed      # a line for each \
             site\nconsortia site join consortia-invite-... --dir north --policy {}    # at each site, with its line\nconsortia site check \
             north/site.toml --plan federation.toml\nconsortia site run north/site.toml\n```\n\nA site's `site.toml` names its own \
             records; beside these it would say:\n\n```toml\n{}```\n{}",
            self.policy(),
            self.source(),
            self.declared()
        )
    }
}

pub(super) fn new(args: &NewArgs, global: &Global) -> Result<(), Failure> {
    let shown = args.folder.display();
    let name = args.folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_letter = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    if name.is_empty() || !name.chars().all(is_letter) {
        let message = format!(
            "`{shown}`: the folder's name becomes the plan's; take letters, digits, `-`, `_` and `.`"
        );
        return Err(Failure::new(Kind::Configuration, message));
    }
    if std::fs::read_dir(&args.folder).is_ok_and(|mut entries| entries.next().is_some())
        || args.folder.is_file()
    {
        let message = format!("{shown} exists and is not empty; nothing was changed");
        return Err(Failure::new(Kind::Configuration, message));
    }
    let plan = args.template.plan().replace("NAME", name);
    Plan::parse(&plan).or_fail(Kind::Configuration, &shown)?;
    let mut files = args.template.records();
    files.extend([
        ("federation.toml", plan.into_bytes()),
        ("README.md", args.template.readme(name).into_bytes()),
    ]);
    // An empty one gives way to the one that is made.
    let _ = std::fs::remove_dir(&args.folder);
    let part = Part::begin_for(&args.folder, "new", Access::Umask)?;
    for (name, bytes) in &files {
        write(&part.path().join(name), bytes)?;
    }
    part.finish()?;
    let plan = args.folder.join("federation.toml");
    global.format.say(
        || {
            let plan = quoted(&plan);
            format!("{shown} made, with made-up records\n\nnext:\n  consortia check {plan}\n  consortia simulate {plan}")
        },
        || json!({ "folder": args.folder, "plan": plan, "files": files.iter().map(|(name, _)| name).collect::<Vec<_>>() }),
    );
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    std::fs::write(path, bytes).or_fail(Kind::Configuration, path.display())
}
