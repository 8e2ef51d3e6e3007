//! Curves as SVG, with the dashboard's look: a few lines of grid, the axes' names, and nothing over the data. What the curves are called
//! stands above them, in a legend with their last values.
//!
//! A drawing reads no style sheet: its colours are attributes, those of the light theme. Where it stands in a page with `look.css` its
//! classes take the page's theme.

use std::fmt::Write as _;

/// Colours of curves; `--series-N` of `server/web/look.css`, in the light theme.
const SERIES: [&str; 6] = ["#1b58b3", "#b35900", "#1a7a4a", "#8a3ab0", "#b0235f", "#55606e"];
/// Of text, of grids and behind a drawing: `--muted`, `--ink`, `--border` and `--surface` there.
const MUTED: &str = "#55606e";
const INK: &str = "#1a2028";
const GRID: &str = "#d8dde4";
const GROUND: &str = "#ffffff";
/// Pixels of a letter of 12 pixels, about.
const LETTER: f64 = 7.2;
/// Pixels for the legend's line of a drawing that stands alone, and for its title.
const LINE: f64 = 24.0;
/// Seconds of a day, and distances of two lines of a grid between 20 seconds and a day.
const DAY: f64 = 86400.0;
const STEPS: [f64; 12] =
    [30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0, 10800.0, 21600.0, 43200.0];
/// Where an axis of logarithms begins at the lowest.
const LEAST: f64 = 1e-12;

/// One chart.
#[derive(Debug)]
pub(super) struct Chart {
    /// What is shown.
    pub(super) title: String,
    /// What there is to know beside it; may be empty.
    pub(super) note: &'static str,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
}

/// One axis.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    /// Its name; may be empty.
    pub(super) name: &'static str,
    pub(super) scale: Scale,
    /// A value for people; `step` is the distance of two lines of the grid, or 0 for the value of a legend.
    pub(super) text: fn(value: f64, step: f64) -> String,
}

/// How values lie on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// Whole numbers, from the least to the largest.
    Whole,
    /// From a little below the least to a little above the largest.
    Within,
    /// From 0.
    FromZero,
    /// The same for seconds: lines of the grid lie at whole minutes, hours and days.
    Seconds,
    /// Logarithms, from a power of ten to a power of ten.
    Logarithmic,
}

/// One curve.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) name: String,
    /// A place in the list of colours.
    pub(super) color: usize,
    pub(super) is_dashed: bool,
    /// From left to right; what is not finite is left out.
    pub(super) points: Vec<(f64, f64)>,
}

impl Series {
    /// The last value.
    pub(super) fn last(&self) -> Option<f64> {
        self.points.last().map(|(_, y)| *y)
    }
}

/// Where the values of an axis lie between 0 and 1.
#[derive(Clone, Copy, Debug)]
struct Span {
    low: f64,
    high: f64,
    is_logarithmic: bool,
}

impl Span {
    fn of(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = values
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let is_logarithmic = scale == Scale::Logarithmic;
        let width = high - low;
        // A line that is flat lies in the middle.
        let pad = if width > 0.0 { width * 0.08 } else { (high.abs() * 0.1).max(1e-9) };
        match scale {
            Scale::Whole if width > 0.0 => {}
            Scale::Whole => (low, high) = (low - 1.0, high + 1.0),
            Scale::Within => (low, high) = (low - pad, high + pad),
            Scale::FromZero | Scale::Seconds => {
                (low, high) = (0.0, if high > 0.0 { high * 1.08 } else { 1.0 });
            }
            Scale::Logarithmic => {
                low = low.max(LEAST).log10().floor();
                high = high.max(LEAST).log10().ceil().max(low + 1.0);
            }
        }
        Self { low, high, is_logarithmic }
    }

    /// From 0 at the low end to 1 at the high one.
    fn place(self, value: f64) -> f64 {
        let value = if self.is_logarithmic { value.max(LEAST).log10() } else { value };
        (value - self.low) / (self.high - self.low)
    }

    /// Values for lines of a grid, at most about `most`, and their distance.
    fn ticks(self, most: f64, scale: Scale) -> (Vec<f64>, f64) {
        if self.is_logarithmic {
            let powers = (self.low as i32..=self.high as i32).map(|power| 10f64.powi(power));
            return (powers.collect(), 1.0);
        }
        let step = distance((self.high - self.low) / most.max(1.0), scale);
        let first = (self.low / step).ceil();
        let count = ((self.high / step).floor() - first).max(0.0) as u32;
        ((0..=count).map(|place| (first + f64::from(place)) * step).collect(), step)
    }
}

/// The distance of two lines of a grid that people count in, at least `rough`.
fn distance(rough: f64, scale: Scale) -> f64 {
    let decimal = |rough: f64| {
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|unit| unit * power).find(|step| *step >= rough);
        step.unwrap_or(rough)
    };
    match scale {
        Scale::Whole => decimal(rough).max(1.0),
        Scale::Seconds if rough > DAY => DAY * decimal(rough / DAY),
        Scale::Seconds if rough > 20.0 => STEPS.into_iter().find(|step| *step >= rough).unwrap_or(DAY),
        Scale::Seconds | Scale::Within | Scale::FromZero | Scale::Logarithmic => decimal(rough),
    }
}

/// Where the lines of a grid and the curves lie, in pixels.
struct Frame {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    x: Span,
    y: Span,
}

impl Frame {
    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let (x, y) = (self.x.place(x), self.y.place(y).clamp(0.0, 1.0));
        (self.left + x * self.width, self.top + (1.0 - y) * self.height)
    }
}

impl Chart {
    /// Whether there is anything to draw.
    pub(super) fn has_points(&self) -> bool {
        self.series.iter().any(|series| !series.points.is_empty())
    }

    /// What is read out: the title, and the last value of each curve.
    pub(super) fn described(&self) -> String {
        let said = self
            .series
            .iter()
            .filter_map(|series| Some(format!("{} {}", series.name, (self.y.text)(series.last()?, 0.0))));
        format!("{}: {}", self.title, said.collect::<Vec<_>>().join(", "))
    }

    /// The axes and curves alone, as an SVG that is as wide as its place; `width` and `height` are in pixels of its letters.
    pub(super) fn plot(&self, width: f64, height: f64) -> String {
        let mut svg =
            format!("<svg viewBox=\"0 0 {width} {height}\" xmlns=\"http://www.w3.org/2000/svg\" {FONT}>\n");
        self.draw(&mut svg, 0.0, 0.0, width, height);
        svg.push_str("</svg>");
        svg
    }

    /// Title, legend, axes and curves, with their corner at `left`, `top`.
    fn panel(&self, svg: &mut String, left: f64, top: f64, width: f64, height: f64) {
        let title = escaped(&self.title);
        let _ = writeln!(
            svg,
            "<text x=\"{left}\" y=\"{}\" font-size=\"14\" font-weight=\"600\" fill=\"{INK}\">{title}</text>",
            top + 16.0
        );
        let (mut x, mut y) = (left, top + 16.0 + LINE);
        for series in self.series.iter().filter(|series| !series.points.is_empty()) {
            let value = series.last().map_or_else(String::new, |last| (self.y.text)(last, 0.0));
            let room = 36.0 + (series.name.chars().count() + value.chars().count()) as f64 * LETTER;
            if x > left && x + room > left + width {
                (x, y) = (left, y + LINE);
            }
            let (middle, text) = (y - 4.0, x + 28.0);
            let _ = writeln!(
                svg,
                "<path d=\"M{x} {middle}h22\" {}/><text x=\"{text}\" y=\"{y}\" fill=\"{INK}\">{} <tspan font-weight=\"600\">{}</tspan></text>",
                stroke(series),
                escaped(&series.name),
                escaped(&value)
            );
            x += room + 18.0;
        }
        let used = y + 8.0 - top;
        self.draw(svg, left, top + used, width, height - used);
    }

    fn draw(&self, svg: &mut String, left: f64, top: f64, width: f64, height: f64) {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Span::of(self.x.scale, points().map(|(x, _)| *x));
        let y = Span::of(self.y.scale, points().map(|(_, y)| *y));
        let (rows, row) = y.ticks(height / 38.0, self.y.scale);
        let labels: Vec<String> = rows.iter().map(|value| (self.y.text)(*value, row)).collect();
        let letters = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
        let margin = 12.0 + letters as f64 * LETTER;
        let name = if self.x.name.is_empty() { 0.0 } else { 16.0 };
        let frame = Frame {
            left: left + margin,
            top: top + 8.0,
            width: width - margin - 14.0,
            height: height - 32.0 - name,
            x,
            y,
        };
        let (right, bottom) = (frame.left + frame.width, frame.top + frame.height);
        for (value, label) in rows.iter().zip(labels) {
            let (_, y) = frame.at(0.0, *value);
            line(svg, (frame.left, y), (right, y));
            text(svg, (frame.left - 8.0, y + 4.0), "end", &label);
        }
        let (columns, column) = x.ticks(frame.width / 64.0, self.x.scale);
        for value in columns {
            let (x, _) = frame.at(value, 0.0);
            line(svg, (x, frame.top), (x, bottom));
            text(svg, (x, bottom + 18.0), "middle", &(self.x.text)(value, column));
        }
        text(svg, (frame.left + frame.width / 2.0, bottom + 34.0), "middle", self.x.name);
        for series in &self.series {
            curve(svg, &frame, series);
        }
    }
}

/// What all text of a drawing has.
const FONT: &str = "font-family=\"system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif\" font-size=\"12\"";

/// `charts` side by side, two in a row, as one SVG below `title`.
pub(super) fn sheet(title: &str, charts: &[Chart]) -> String {
    const WIDTH: f64 = 560.0;
    const HEIGHT: f64 = 292.0;
    const GAP: f64 = 24.0;
    let head = if title.is_empty() { 0.0 } else { 32.0 };
    let columns = charts.len().clamp(1, 2);
    let width = columns as f64 * (WIDTH + GAP) + GAP;
    let height = head + charts.len().div_ceil(columns) as f64 * (HEIGHT + GAP) + GAP;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" {FONT}>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"{GROUND}\"/>\n"
    );
    if !title.is_empty() {
        let _ = writeln!(
            svg,
            "<text x=\"{GAP}\" y=\"34\" font-size=\"18\" font-weight=\"600\" fill=\"{INK}\">{}</text>",
            escaped(title)
        );
    }
    for (place, chart) in charts.iter().enumerate() {
        let left = GAP + (place % columns) as f64 * (WIDTH + GAP);
        let top = GAP + head + (place / columns) as f64 * (HEIGHT + GAP);
        chart.panel(&mut svg, left, top, WIDTH, HEIGHT);
    }
    svg.push_str("</svg>\n");
    svg
}

fn stroke(series: &Series) -> String {
    let color = series.color % SERIES.len();
    let dash = if series.is_dashed { " stroke-dasharray=\"6 4\"" } else { "" };
    format!(
        "class=\"s{color}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\" stroke-linejoin=\"round\"{dash}",
        SERIES[color]
    )
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64)) {
    let ((x, y), (right, bottom)) = (from, to);
    let _ =
        writeln!(svg, "<path class=\"grid\" d=\"M{x:.1} {y:.1}L{right:.1} {bottom:.1}\" stroke=\"{GRID}\"/>");
}

fn text(svg: &mut String, at: (f64, f64), anchor: &str, text: &str) {
    let (x, y) = at;
    if !text.is_empty() {
        let _ = writeln!(
            svg,
            "<text class=\"tick\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{MUTED}\">{}</text>",
            escaped(text)
        );
    }
}

fn curve(svg: &mut String, frame: &Frame, series: &Series) {
    let finite = |(x, y): &&(f64, f64)| x.is_finite() && y.is_finite();
    let points: Vec<(f64, f64)> =
        series.points.iter().filter(finite).map(|(x, y)| frame.at(*x, *y)).collect();
    if let [(x, y)] = points[..] {
        let (color, fill) = (series.color % SERIES.len(), SERIES[series.color % SERIES.len()]);
        let _ =
            writeln!(svg, "<circle class=\"d{color}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{fill}\"/>");
        return;
    }
    let mut path = String::new();
    for (x, y) in thinned(&points, frame.width) {
        let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { "M" } else { "L" });
    }
    if !path.is_empty() {
        let _ = writeln!(svg, "<path d=\"{path}\" {}/>", stroke(series));
    }
}

/// No more points than can be seen: of those that share a pixel's column, the lowest and the highest, in their order.
fn thinned(points: &[(f64, f64)], width: f64) -> Vec<(f64, f64)> {
    if points.len() as f64 <= 2.0 * width {
        return points.to_vec();
    }
    let of_a_column = |column: &[(f64, f64)]| {
        let by_height = |a: &usize, b: &usize| column[*a].1.total_cmp(&column[*b].1);
        let (low, high) = ((0..column.len()).min_by(by_height), (0..column.len()).max_by(by_height));
        let (low, high) = (low.unwrap_or(0), high.unwrap_or(0));
        let kept = if low == high { vec![low] } else { vec![low.min(high), low.max(high)] };
        kept.into_iter().map(|place| column[place]).collect::<Vec<_>>()
    };
    points.chunk_by(|(a, _), (b, _)| a.floor() == b.floor()).flat_map(of_a_column).collect()
}

/// Text between tags.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// As many digits as tell two lines of a grid apart.
pub(super) fn plain(value: f64, step: f64) -> String {
    if step == 0.0 {
        return figure(value);
    }
    if value.abs().max(step) >= 1e6 || step < 1e-5 {
        return format!("{value:.1e}");
    }
    let digits = (-step.log10().floor()).max(0.0) as usize;
    format!("{:.digits$}", value + 0.0)
}

/// A number beside others: four digits behind the point, or powers of ten where that says nothing.
pub fn figure(value: f64) -> String {
    let size = value.abs();
    if size >= 1e6 || (size > 0.0 && size < 1e-3) { format!("{value:.3e}") } else { format!("{value:.4}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let axis = |scale| Axis { name: "round", scale, text: plain };
        let series = Series { name: "a < b".into(), color: 0, is_dashed: false, points };
        let (x, y) = (axis(Scale::Whole), axis(Scale::Within));
        Chart { title: "Loss".into(), note: "", x, y, series: vec![series] }
    }

    #[test]
    fn the_colours_of_drawings_are_those_of_the_light_theme() {
        let look = include_str!("../../server/web/look.css");
        for (place, color) in SERIES.iter().enumerate() {
            assert!(look.contains(&format!("--series-{place}: light-dark({color},")), "{color}");
        }
        for (name, color) in [("muted", MUTED), ("ink", INK), ("border", GRID), ("surface", GROUND)] {
            assert!(look.contains(&format!("--{name}: light-dark({color},")), "{name}");
        }
    }

    #[test]
    fn lines_of_the_grid_lie_at_round_numbers_and_rounds_at_whole_ones() {
        let within = Span::of(Scale::Within, [0.42, 0.58].into_iter());
        let (ticks, step) = within.ticks(5.0, Scale::Within);
        let told: Vec<String> = ticks.iter().map(|value| plain(*value, step)).collect();
        assert_eq!(told, ["0.45", "0.50", "0.55"]);
        let (ticks, _) = Span::of(Scale::Whole, [1.0, 3.0].into_iter()).ticks(8.0, Scale::Whole);
        assert_eq!(ticks, [1.0, 2.0, 3.0]);
        let (ticks, _) = Span::of(Scale::Logarithmic, [2e-3, 0.5].into_iter()).ticks(8.0, Scale::Logarithmic);
        assert_eq!(ticks, [0.001, 0.01, 0.1, 1.0]);
        assert_eq!(plain(3e9, 1e9), "3.0e9");
    }

    #[test]
    fn every_list_of_points_can_be_drawn() {
        let far: Vec<(f64, f64)> = (0..5000).map(|x| (f64::from(x), f64::from(x % 7))).collect();
        for points in [
            vec![],
            vec![(1.0, 0.5)],
            vec![(1.0, 0.0), (2.0, 0.0)],
            vec![(1.0, f64::NAN), (2.0, f64::INFINITY), (3.0, 1.0)],
            vec![(1.0, 1e30), (2.0, -1e30)],
            vec![(1.0, 1e-300), (2.0, 2e-300)],
            far,
        ] {
            let svg = chart(points).plot(560.0, 220.0);
            assert!(!svg.contains("NaN") && !svg.contains("inf") && svg.len() < 40_000, "{svg}");
        }
        let sheet = sheet("t & u", &[chart(vec![(1.0, 0.5), (2.0, 0.25)])]);
        assert!(
            sheet.contains("a &lt; b") && sheet.contains("t &amp; u") && sheet.contains("0.2500"),
            "{sheet}"
        );
    }
}
