//! The charts of a run: how good its model was round by round, what that has cost in privacy, who answered, and how long it took.

use std::io;
use std::path::Path;

use protocol::Metrics;
use protocol::wire::RoundSummary;

use super::chart::{Axis, Chart, Scale, Series, plain, sheet};
use super::report::Report;

/// What the seconds of a run are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// The world's.
    #[default]
    Real,
    /// A simulation's, which waits for nothing.
    Virtual,
}

/// One line of a chart: its name, its colour, whether it is dashed and where its numbers come from.
type Line = (&'static str, usize, bool, fn(&RoundSummary) -> Option<Metrics>);

/// As the dashboard has them.
const LINES: [Line; 3] = [
    ("Sites' test records", 0, false, |round| round.sites),
    ("Server's records", 1, false, |round| round.central),
    ("Training records", 2, true, |round| round.train),
];

/// A number that says how good a model is.
#[derive(Clone, Copy)]
struct Measure {
    title: &'static str,
    /// The title where it is drawn against epsilon.
    against_epsilon: &'static str,
    note: &'static str,
    value: fn(&Metrics) -> Option<f64>,
    text: fn(f64, f64) -> String,
}

const ACCURACY: Measure = Measure {
    title: "Accuracy",
    against_epsilon: "Accuracy against epsilon",
    note: "",
    value: |metrics| metrics.accuracy,
    text: percent,
};
const RMSE: Measure = Measure {
    title: "RMSE",
    against_epsilon: "RMSE against epsilon",
    note: "root of the mean squared error, in the target's unit",
    value: rmse,
    text: plain,
};
const LOSS: Measure = Measure {
    title: "Loss",
    against_epsilon: "Loss against epsilon",
    note: "",
    value: |metrics| Some(metrics.loss),
    text: plain,
};

/// The root of a loss that is a mean squared error.
pub(super) fn rmse(metrics: &Metrics) -> Option<f64> {
    (metrics.loss >= 0.0).then(|| metrics.loss.sqrt())
}

/// Which charts `rounds` have something for. `is_squared` says that the loss is a mean squared error.
pub(super) fn charts(rounds: &[RoundSummary], clock: Clock, is_squared: bool) -> Vec<Chart> {
    let trained: Vec<&RoundSummary> = rounds.iter().filter(|round| round.round > 0).collect();
    let measures = if is_squared { [RMSE, LOSS] } else { [ACCURACY, LOSS] };
    let mut charts: Vec<Chart> = measures.iter().map(|measure| by_round(measure, &trained)).collect();
    let best = measures.into_iter().find(|measure| !by_round(measure, &trained).series.is_empty());
    charts.extend(best.map(|measure| against_epsilon(&measure, &trained)));
    let paid = trained.iter().filter_map(|round| Some((f64::from(round.round), round.epsilon?)));
    charts.push(Chart {
        title: "Epsilon".to_owned(),
        note: "of everything released so far",
        x: ROUNDS,
        y: Axis { name: "", scale: Scale::FromZero, text: plain },
        series: drawn([("Epsilon", 4, false, paid.collect())]),
    });
    charts.extend(participation(&trained, clock));
    charts.retain(Chart::has_points);
    charts
}

const ROUNDS: Axis = Axis { name: "Round", scale: Scale::Whole, text: |round, _| format!("{round:.0}") };

/// Those of these curves that have points.
fn drawn(curves: impl IntoIterator<Item = (&'static str, usize, bool, Vec<(f64, f64)>)>) -> Vec<Series> {
    let finite = |(x, y): &(f64, f64)| x.is_finite() && y.is_finite();
    let series = curves.into_iter().map(|(name, color, is_dashed, mut points)| {
        points.retain(finite);
        Series { name: name.to_owned(), color, is_dashed, points }
    });
    series.filter(|series| !series.points.is_empty()).collect()
}

fn by_round(measure: &Measure, rounds: &[&RoundSummary]) -> Chart {
    let curve = |(name, color, is_dashed, metrics): Line| {
        let point =
            |round: &&RoundSummary| Some((f64::from(round.round), (measure.value)(&metrics(round)?)?));
        (name, color, is_dashed, rounds.iter().filter_map(point).collect())
    };
    Chart {
        title: measure.title.to_owned(),
        note: measure.note,
        x: ROUNDS,
        y: Axis { name: "", scale: Scale::Within, text: measure.text },
        series: drawn(LINES.map(curve)),
    }
}

/// How good a model was against what it cost: epsilon of everything released up to it.
fn against_epsilon(measure: &Measure, rounds: &[&RoundSummary]) -> Chart {
    let curve = |(name, color, is_dashed, metrics): Line| {
        let point = |round: &&RoundSummary| Some((round.epsilon?, (measure.value)(&metrics(round)?)?));
        (name, color, is_dashed, rounds.iter().filter_map(point).collect())
    };
    Chart {
        title: measure.against_epsilon.to_owned(),
        note: "",
        x: Axis { name: "Epsilon", scale: Scale::FromZero, text: plain },
        y: Axis { name: "", scale: Scale::Within, text: measure.text },
        series: drawn(LINES.map(curve)),
    }
}

/// Who took part and how long it took, where that is shown.
fn participation(rounds: &[&RoundSummary], clock: Clock) -> [Chart; 2] {
    let shown =
        || rounds.iter().filter_map(|round| Some((f64::from(round.round), round.participation()?, round)));
    let asked = shown().map(|(x, (asked, _), _)| (x, f64::from(asked))).collect();
    let answered = shown().map(|(x, (_, answered), _)| (x, f64::from(answered))).collect();
    let took = shown().map(|(x, _, round)| (x, round.seconds)).collect();
    let (title, note) = match clock {
        Clock::Real => ("Seconds of a round", ""),
        Clock::Virtual => ("Virtual seconds of a round", "by the simulation's clock"),
    };
    let from_zero = |text| Axis { name: "", scale: Scale::FromZero, text };
    [
        Chart {
            title: "Sites asked and answered".to_owned(),
            note: "",
            x: ROUNDS,
            y: from_zero(count),
            series: drawn([("Answered", 0, false, answered), ("Asked", 1, true, asked)]),
        },
        Chart {
            title: title.to_owned(),
            note,
            x: ROUNDS,
            y: from_zero(duration),
            series: drawn([("Seconds", 3, false, took)]),
        },
    ]
}

fn percent(share: f64, _: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn count(sites: f64, step: f64) -> String {
    // Nobody is half a site.
    if step > 0.0 && sites.fract() != 0.0 { String::new() } else { format!("{sites:.0}") }
}

/// A time as the dashboard shows it.
pub(super) fn duration(seconds: f64, _: f64) -> String {
    match seconds {
        0.0 => "0 s".to_owned(),
        _ if seconds < 0.01 => format!("{:.1} ms", seconds * 1e3),
        _ if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        _ if seconds < 10.0 => format!("{seconds:.1} s"),
        _ if seconds < 120.0 => format!("{seconds:.0} s"),
        _ if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        _ if seconds < 48.0 * 3600.0 => format!("{:.0} h", seconds / 3600.0),
        _ => format!("{:.1} days", seconds / 86400.0),
    }
}

/// Draws the curves of a run to `path`: accuracy where classes are predicted, RMSE where numbers are, loss, what they cost in epsilon, who
/// answered and how long rounds took.
///
/// # Errors
/// When the file cannot be written.
pub fn draw_curves(path: &Path, report: &Report<'_>) -> io::Result<()> {
    std::fs::write(path, sheet(report.title, &report.charts()))
}
