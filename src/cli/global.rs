//! What every command is given: how much it says, and in which form.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use super::output::Format;

/// Settings of every command.
#[derive(Debug, Args)]
pub(super) struct Global {
    /// The format of stdout.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, env = "CONSORTIA_FORMAT")]
    pub(super) format: Format,
    /// Less output; twice for errors alone.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(super) quiet: u8,
    /// More output; twice for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub(super) verbose: u8,
}

impl ValueEnum for Format {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Text, Self::Json]
    }
    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        use clap::builder::PossibleValue;
        match self {
            Self::Text => Some(PossibleValue::new("text").help("for people")),
            Self::Json => {
                Some(PossibleValue::new("json").help("one object, or one a line while something runs"))
            }
            Self::Silent => None,
        }
    }
}

/// The target under which servers and sites log what happens in runs.
const EVENTS: &str = "events";

/// The target under which what a site's own learner prints is logged.
const LEARNER: &str = "learner";

/// Logs go to stderr: warnings by default, more with `-v`, as `RUST_LOG` says if it is set; as JSON with `--format json`. A site's log also has
/// what its own learner prints, unless less was asked for.
pub(super) fn listen_to_logs(global: &Global, shows_events: bool, is_site: bool) {
    let level = match (global.quiet, global.verbose) {
        (0, 0) if is_site => &format!("warn,{LEARNER}=info"),
        (0, 0) => "warn",
        (0, 1) => "info",
        (0, _) => "debug",
        (_, _) => "error",
    };
    let mut filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    // What happens is on stdout already, unless somebody asks for it by name.
    let is_asked = std::env::var("RUST_LOG").is_ok_and(|wanted| wanted.contains(EVENTS));
    if shows_events && !is_asked {
        filter = filter.add_directive(format!("{EVENTS}=off").parse().expect("a target and a level"));
    }
    // A file or a journal gets no colour codes, nor does whoever asks for none (no-color.org).
    let colours =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let logs =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    match global.format {
        Format::Json => logs.json().init(),
        Format::Text | Format::Silent => logs.with_target(false).init(),
    }
}
