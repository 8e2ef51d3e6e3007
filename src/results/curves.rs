//! The charts of a run: how good its model was round by round, what that has cost in privacy, who answered, and how long it took.

use std::io;
use std::path::Path;

use protocol::wire::RoundSummary;
use protocol::{EvaluationRecords, Metrics};
use server::Plan;

use super::chart::{Axis, Chart, Scale, Series, figure, plain, sheet};
use super::report::Report;

/// What the seconds of a run are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// The wall clock.
    #[default]
    Real,
    /// A simulation's, which waits for nothing.
    Virtual,
}

/// How a plan says how good a model is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measures {
    /// Whether the loss is a mean squared error.
    is_squared: bool,
    /// What all releases of the plan's population may amount to, where the server accounts for them.
    budget: Option<f64>,
    /// On which records models are evaluated.
    pub(super) records: EvaluationRecords,
}

impl Measures {
    /// By this plan, as far as it is known.
    pub(super) fn of(plan: Option<&Plan>) -> Self {
        Self {
            is_squared: plan.is_some_and(|plan| plan.spec.is_squared()),
            budget: plan.and_then(|plan| Some(plan.spec.privacy.central.as_ref()?.epsilon_max.value())),
            records: plan.map_or_else(EvaluationRecords::default, |plan| plan.spec.evaluation_records),
        }
    }

    /// What says how good a model is, as a title.
    pub(super) fn name(self) -> &'static str {
        if self.is_squared { "RMSE" } else { "Accuracy" }
    }

    /// The same behind another word.
    pub(super) fn noun(self) -> &'static str {
        if self.is_squared { "RMSE" } else { "accuracy" }
    }

    /// Its value.
    pub(super) fn best(self, metrics: &Metrics) -> Option<String> {
        if self.is_squared {
            rmse(metrics).map(figure)
        } else {
            metrics.accuracy.map(|share| percent(share, 0.0))
        }
    }

    /// The curves, as the dashboard has them.
    fn lines(self) -> [Line; 3] {
        let sites = match self.records {
            EvaluationRecords::Test => "Sites' test records",
            EvaluationRecords::Validation => "Sites' validation records",
        };
        [
            (sites, 0, false, |round| round.sites),
            ("Server's records", 1, false, |round| round.central),
            ("Training records", 2, true, |round| round.train),
        ]
    }
}

/// One line of a chart: its name, its colour, whether it is dashed and where its numbers come from.
type Line = (&'static str, usize, bool, fn(&RoundSummary) -> Option<Metrics>);

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
fn rmse(metrics: &Metrics) -> Option<f64> {
    (metrics.loss >= 0.0).then(|| metrics.loss.sqrt())
}

/// Which charts `rounds` have something for.
pub(super) fn charts(rounds: &[RoundSummary], clock: Clock, measures: Measures) -> Vec<Chart> {
    let trained: Vec<&RoundSummary> = rounds.iter().filter(|round| round.round > 0).collect();
    let (lines, budget) = (measures.lines(), measures.budget);
    let measures = if measures.is_squared { [RMSE, LOSS] } else { [ACCURACY, LOSS] };
    let mut charts: Vec<Chart> = measures.iter().map(|measure| by_round(measure, lines, &trained)).collect();
    let best = measures.into_iter().find(|measure| !by_round(measure, lines, &trained).series.is_empty());
    charts.extend(best.map(|measure| against_epsilon(&measure, lines, &trained)));
    let paid: Vec<_> =
        trained.iter().filter_map(|round| Some((f64::from(round.round), round.epsilon?))).collect();
    let budget = paid.iter().filter_map(|(round, _)| Some((*round, budget?))).collect();
    charts.push(Chart {
        title: "Epsilon".to_owned(),
        note: "of everything released so far",
        x: ROUNDS,
        y: Axis { name: "", scale: Scale::FromZero, text: plain },
        series: drawn([("Epsilon", 4, false, paid), ("Budget", 5, true, budget)]),
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

fn by_round(measure: &Measure, lines: [Line; 3], rounds: &[&RoundSummary]) -> Chart {
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
        series: drawn(lines.map(curve)),
    }
}

/// How good a model was against what it cost: epsilon of everything released up to it.
fn against_epsilon(measure: &Measure, lines: [Line; 3], rounds: &[&RoundSummary]) -> Chart {
    let curve = |(name, color, is_dashed, metrics): Line| {
        let point = |round: &&RoundSummary| Some((round.epsilon?, (measure.value)(&metrics(round)?)?));
        (name, color, is_dashed, rounds.iter().filter_map(point).collect())
    };
    Chart {
        title: measure.against_epsilon.to_owned(),
        note: "",
        x: Axis { name: "Epsilon", scale: Scale::FromZero, text: plain },
        y: Axis { name: "", scale: Scale::Within, text: measure.text },
        series: drawn(lines.map(curve)),
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
        Clock::Real => ("Time of a round", ""),
        Clock::Virtual => ("Virtual time of a round", "by the simulation's clock"),
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
            y: Axis { name: "", scale: Scale::Seconds, text: duration },
            series: drawn([("Time", 3, false, took)]),
        },
    ]
}

fn percent(share: f64, step: f64) -> String {
    let share = share * 100.0;
    if step > 0.0 { format!("{} %", plain(share, step * 100.0)) } else { format!("{share:.1} %") }
}

fn count(sites: f64, step: f64) -> String {
    // Nobody is half a site.
    if step > 0.0 && sites.fract() != 0.0 { String::new() } else { format!("{sites:.0}") }
}

/// A time as the dashboard shows it: alone, or with the unit and the digits that all values of an axis have.
pub(super) fn duration(seconds: f64, step: f64) -> String {
    match step {
        0.0 => {}
        _ if step < 1e-3 => return format!("{} ms", plain(seconds * 1e3, step * 1e3)),
        _ if step < 0.1 => return format!("{:.0} ms", seconds * 1e3),
        _ if step < 60.0 => return format!("{} s", plain(seconds, step)),
        _ if step < 3600.0 => return format!("{:.0} min", seconds / 60.0),
        _ if step < 86400.0 => return format!("{:.0} h", seconds / 3600.0),
        _ => return format!("{:.0} days", seconds / 86400.0),
    }
    match seconds {
        0.0 => "0 s".to_owned(),
        _ if seconds < 0.01 => format!("{:.1} ms", seconds * 1e3),
        _ if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        _ if seconds < 10.0 => format!("{seconds:.1} s"),
        _ if seconds < 120.0 => format!("{seconds:.0} s"),
        _ if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        _ if seconds < 48.0 * 3600.0 => format!("{:.1} h", seconds / 3600.0),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_of_time_has_one_unit_and_whole_steps_of_it() {
        let labels = |top: f64| {
            let axis = |scale, text| Axis { name: "", scale, text };
            let series = Series {
                name: "Time".into(),
                color: 0,
                is_dashed: false,
                points: vec![(1.0, top), (2.0, 0.0)],
            };
            let (x, y) = (axis(Scale::Whole, plain), axis(Scale::Seconds, duration));
            let svg = Chart { title: String::new(), note: "", x, y, series: vec![series] }.plot(560.0, 216.0);
            let left = svg.lines().filter(|line| line.contains("text-anchor=\"end\""));
            let label = |line: &str| Some(line.split_once("\">")?.1.split_once('<')?.0.to_owned());
            left.filter_map(label).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(labels(600.0), "0 min, 2 min, 4 min, 6 min, 8 min, 10 min");
        assert_eq!(labels(1.0), "0.0 s, 0.2 s, 0.4 s, 0.6 s, 0.8 s, 1.0 s");
        assert_eq!(labels(0.07), "0 ms, 20 ms, 40 ms, 60 ms");
        assert_eq!(labels(0.002), "0.0 ms, 0.5 ms, 1.0 ms, 1.5 ms, 2.0 ms");
        assert_eq!(labels(90.0), "0 s, 20 s, 40 s, 60 s, 80 s");
        assert_eq!(labels(5.0 * 3600.0), "0 h, 1 h, 2 h, 3 h, 4 h, 5 h");
        assert_eq!(labels(10.0 * 86400.0), "0 days, 2 days, 4 days, 6 days, 8 days, 10 days");
        assert_eq!(duration(13973.0, 0.0), "3.9 h");
    }
}
