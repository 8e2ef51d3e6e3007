//! Progress on stderr: a bar on a terminal, a line a round elsewhere, nothing with `-q`.

use std::io::IsTerminal;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use privacy::accounting::Figure;
use protocol::wire::RoundSummary;

use super::global::Global;

/// Shows a run's rounds.
pub(super) struct Progress {
    bar: ProgressBar,
    lines: bool,
    rounds: u32,
}

impl Progress {
    /// For a run of `rounds` rounds.
    pub(super) fn new(global: &Global, rounds: u32) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if global.quiet == 0 && terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(u64::from(rounds)), target);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} round {pos}/{len}  {elapsed}  {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, lines: global.quiet == 0 && !terminal, rounds }
    }

    /// What is going on within a round.
    pub(super) fn within(&self, message: String) {
        self.bar.set_message(message);
    }

    /// A round is over.
    pub(super) fn round(&self, summary: &RoundSummary) {
        let line = describe(summary);
        self.bar.set_position(u64::from(summary.round));
        self.bar.set_message(line.clone());
        if self.lines {
            super::output::tell(format_args!("{}  {line}", self.name(summary.round)));
        }
    }

    /// What a round is called: the one before the first collects statistics.
    fn name(&self, round: u32) -> String {
        if round == 0 { "statistics".to_owned() } else { format!("round {round}/{}", self.rounds) }
    }

    /// A line of its own, above the bar.
    pub(super) fn line(&self, line: impl std::fmt::Display) {
        self.bar.suspend(|| super::output::tell(line));
    }

    /// The run is over.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// How often whoever waits for a computation hears of it.
const HEARD_EVERY: Duration = Duration::from_secs(2);

/// Does `work`, and tells what it is at on stderr while it goes on.
pub(super) fn telling<T>(global: &Global, at: impl Fn() -> String + Send, work: impl FnOnce() -> T) -> T {
    if global.quiet > 0 {
        return work();
    }
    let (working, ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while ended.recv_timeout(HEARD_EVERY) == Err(RecvTimeoutError::Timeout) {
                super::output::tell(at());
            }
        });
        let done = work();
        drop(working);
        done
    })
}

/// A round in one line, without its number.
pub(super) fn describe(summary: &RoundSummary) -> String {
    let mut parts = vec![match summary.participation() {
        Some((asked, answered)) => format!("{answered} of {asked} answered"),
        None if summary.released => "who took part is not shown".to_owned(),
        None => "no answers to show".to_owned(),
    }];
    if !summary.released {
        parts.push("nothing released, the model was not updated".to_owned());
    }
    if let Some(train) = summary.train {
        parts.push(format!("training loss {:.4}", Figure(train.loss)));
    }
    for (name, metrics) in [("test", summary.sites), ("central test", summary.central)] {
        if let Some(metrics) = metrics {
            let accuracy =
                metrics.accuracy.map_or_else(String::new, |value| format!(", accuracy {value:.4}"));
            parts.push(format!("{name} loss {:.4}{accuracy}", Figure(metrics.loss)));
        }
    }
    if let Some(epsilon) = summary.epsilon {
        parts.push(format!("epsilon {:.3}", Figure(epsilon)));
    }
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use super::super::output::Format;
    use super::*;

    #[test]
    fn the_round_before_the_first_is_called_by_what_it_does() {
        let progress = Progress::new(&Global { format: Format::Text, quiet: 1, verbose: 0 }, 20);
        assert_eq!([0, 1, 20].map(|round| progress.name(round)), ["statistics", "round 1/20", "round 20/20"]);
    }

    #[test]
    fn whoever_waits_hears_how_far_it_is_and_with_q_nothing() {
        let (asked, heard) = mpsc::channel();
        let global = |quiet| Global { format: Format::Text, quiet, verbose: 0 };
        let at = move || {
            // The work may be done already.
            let _ = asked.send(());
            "computing".to_owned()
        };
        let patience = Duration::from_secs(60);
        assert_eq!(telling(&global(0), at, || heard.recv_timeout(patience)), Ok(()));
        assert_eq!(telling(&global(1), || unreachable!("nothing is told"), || 5), 5);
    }
}
