//! Loss and accuracy over rounds, and accuracy against epsilon where there is one, as one SVG file.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use protocol::Metrics;
use protocol::wire::RoundSummary;

/// One line of a chart: its name, its colour and where its numbers come from.
type Line = (&'static str, RGBColor, fn(&RoundSummary) -> Option<Metrics>);

const LINES: [Line; 3] = [
    ("training", RGBColor(150, 150, 150), |round| round.train),
    ("sites' tests", RGBColor(0, 90, 181), |round| round.sites),
    ("central test", RGBColor(220, 50, 32), |round| round.central),
];

/// Draws the curves of `rounds` to `path`.
///
/// # Errors
/// When the file cannot be written.
pub fn draw_curves(
    path: &Path,
    title: &str,
    rounds: &[RoundSummary],
) -> Result<(), Box<dyn Error + Send + Sync>> {
    Ok(std::fs::write(path, curves_svg(title, rounds)?)?)
}

/// The curves of `rounds` as SVG.
pub(super) fn curves_svg(
    title: &str,
    rounds: &[RoundSummary],
) -> Result<String, Box<dyn Error + Send + Sync>> {
    let mut text = String::new();
    let charts = if rounds.iter().any(|round| round.epsilon.is_some()) { 3 } else { 2 };
    let root = SVGBackend::with_string(&mut text, (480 * charts, 400)).into_drawing_area();
    draw(&root, title, rounds).map_err(|error| error.to_string())?;
    root.present().map_err(|error| error.to_string())?;
    drop(root);
    Ok(text)
}

fn draw<DB: DrawingBackend>(
    root: &DrawingArea<DB, Shift>,
    title: &str,
    rounds: &[RoundSummary],
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    root.fill(&WHITE)?;
    let root = root.titled(title, ("sans-serif", 20))?;
    let width = 480;
    let (left, rest) = root.split_horizontally(width);
    chart(&left, "loss", rounds, |metrics| Some(metrics.loss))?;
    if rounds.iter().all(|round| round.epsilon.is_none()) {
        return chart(&rest, "accuracy", rounds, |metrics| metrics.accuracy);
    }
    let (middle, right) = rest.split_horizontally(width);
    chart(&middle, "accuracy", rounds, |metrics| metrics.accuracy)?;
    price(&right, rounds)
}

/// Accuracy against what it cost: epsilon of everything released so far.
fn price<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    rounds: &[RoundSummary],
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    let most = rounds.iter().filter_map(|round| round.epsilon).fold(0.0, f64::max).max(1e-3);
    let mut chart = ChartBuilder::on(area)
        .caption("accuracy against epsilon", ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(30)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..most * 1.05, 0.0..1.0)?;
    chart.configure_mesh().x_desc("epsilon").light_line_style(RGBColor(240, 240, 240)).draw()?;
    for (_, colour, metrics) in LINES {
        let point = |round: &RoundSummary| Some((round.epsilon?, metrics(round)?.accuracy?));
        let points: Vec<(f64, f64)> = rounds.iter().filter_map(point).collect();
        chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
    }
    Ok(())
}

fn chart<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    what: &str,
    rounds: &[RoundSummary],
    value: fn(&Metrics) -> Option<f64>,
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    let points = |metrics: fn(&RoundSummary) -> Option<Metrics>| -> Vec<(u32, f64)> {
        let point = |round: &RoundSummary| Some((round.round, value(&metrics(round)?)?));
        rounds.iter().filter_map(point).collect()
    };
    let all: Vec<f64> =
        LINES.iter().flat_map(|(_, _, metrics)| points(*metrics)).map(|(_, value)| value).collect();
    let low = all.iter().copied().fold(f64::INFINITY, f64::min).min(1.0);
    let high = all.iter().copied().fold(f64::NEG_INFINITY, f64::max).max(low + 1e-3);
    let margin = (high - low) * 0.05;
    let last = rounds.last().map_or(1, |round| round.round).max(1);
    let mut chart = ChartBuilder::on(area)
        .caption(what, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(30)
        .y_label_area_size(50)
        .build_cartesian_2d(0..last, low - margin..high + margin)?;
    chart.configure_mesh().x_desc("round").light_line_style(RGBColor(240, 240, 240)).draw()?;
    for (name, colour, metrics) in LINES {
        let points = points(metrics);
        if points.is_empty() {
            continue;
        }
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).draw()
}
