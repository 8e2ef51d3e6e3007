//! The page of all commands, docs/reference.md, from the command tree itself: what `--help` says, on one page.

use clap::builder::PossibleValue;
use clap::{Arg, ArgAction, Command};

use super::output::print;

const HEAD: &str = "\
# Commands

Every command, as `consortia COMMAND --help` says it. Made by `consortia reference`; `consortia man FOLDER` writes the same as man pages, and
`consortia completions SHELL` a script that completes them.

Results go to stdout, talk and progress to stderr. The exit code is 0 when it is done, 1 when the run failed, released nothing (at all, or in its last rounds) or was interrupted, or something in the way will pass (a lock, a full disk, a port that is taken), 2 when the command line or a file is wrong, 3 without
a connection or with an identity that is not accepted, 4 without an answer in time, 5 for a defect of this program, 6 when a policy or a privacy budget refuses, 7 when `audit verify` found no fault and parts of a log are missing.
";

/// Prints the page.
pub(super) fn reference(tree: Command) {
    print(&page(tree));
}

/// The page of a command and all below it, as Markdown.
pub(super) fn page(mut tree: Command) -> String {
    tree.build();
    let mut page = format!("{HEAD}\n## For every command\n\n{}", arguments(&tree, Arg::is_global_set));
    for group in commands(&tree) {
        page += &section(group, "##");
        for leaf in commands(group) {
            page += &section(leaf, "###");
            for deeper in commands(leaf) {
                page += &section(deeper, "####");
            }
        }
    }
    page
}

/// The commands below this one that people use.
fn commands(parent: &Command) -> impl Iterator<Item = &Command> {
    parent.get_subcommands().filter(|one| !one.is_hide_set() && one.get_name() != "help")
}

fn section(one: &Command, heading: &str) -> String {
    let about = one.get_about().map(ToString::to_string).unwrap_or_default();
    let path = one.get_bin_name().unwrap_or_else(|| one.get_name());
    let mut section = format!("\n{heading} {path}\n\n{}.\n", about.trim_end_matches('.'));
    if one.has_subcommands() {
        return section;
    }
    let usage = one.clone().render_usage().to_string();
    section += &format!("\n```text\n{}\n```\n", usage.trim_start_matches("Usage: "));
    let arguments = arguments(one, |arg| !arg.is_global_set());
    if !arguments.is_empty() {
        section += &format!("\n{arguments}");
    }
    section
}

/// A table of the arguments of a command that `wanted` lets through.
fn arguments(one: &Command, wanted: impl Fn(&Arg) -> bool) -> String {
    let shown = |arg: &&Arg| {
        wanted(arg) && !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str())
    };
    let rows: Vec<String> = one.get_arguments().filter(shown).map(row).collect();
    match rows.is_empty() {
        true => String::new(),
        false => format!("| argument | meaning |\n|---|---|\n{}\n", rows.join("\n")),
    }
}

fn row(arg: &Arg) -> String {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let mut meaning = cell(help.trim_end_matches('.'));
    let takes = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let values: Vec<String> = match takes {
        true => arg.get_possible_values().iter().filter(|value| !value.is_hide_set()).map(choice).collect(),
        false => Vec::new(),
    };
    if !values.is_empty() && !arg.is_hide_possible_values_set() {
        meaning += &format!(". One of {}", values.join(", "));
    }
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if takes && defaults.iter().any(|default| !default.is_empty()) {
        meaning += &format!(". By default `{}`", defaults.join(" "));
    }
    if let Some(variable) = arg.get_env() {
        meaning += &format!(". Also `{}` in the environment", variable.to_string_lossy());
    }
    format!("| `{}` | {meaning} |", spelled(arg, takes))
}

/// As it is typed: `-q, --quiet`, `--dir <DIR>`, `<INVITE>`, `[FOLDER]`.
fn spelled(arg: &Arg, takes: bool) -> String {
    let name = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
    let name = name.unwrap_or_else(|| arg.get_id().as_str().to_uppercase());
    let more = if matches!(arg.get_action(), ArgAction::Append) { "..." } else { "" };
    if arg.is_positional() {
        return if arg.is_required_set() { format!("<{name}>{more}") } else { format!("[{name}]{more}") };
    }
    let short = arg.get_short().map(|short| format!("-{short}"));
    let long = arg.get_long().map(|long| format!("--{long}"));
    let flags = [short, long].into_iter().flatten().collect::<Vec<_>>().join(", ");
    if takes { format!("{flags} <{name}>{more}") } else { flags }
}

fn choice(value: &PossibleValue) -> String {
    let help = value.get_help().map(|help| format!(" ({})", cell(help.to_string().trim_end_matches('.'))));
    format!("`{}`{}", value.get_name(), help.unwrap_or_default())
}

/// Text that stays in its cell.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
