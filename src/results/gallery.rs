//! What attackers see, as SVG files: pictures beside what was made of them, and the curve of a membership attack.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use simulations::attack::{MembershipFindings, Picture, Rates};

use super::chart::{Axis, Chart, Scale, Series, escaped, sheet};

/// Pixels of the drawing for one picture's side, between pictures, and for a line of text.
const PANEL: usize = 128;
const GAP: usize = 16;
const LINE: usize = 22;
/// Shades of grey that are told apart.
const SHADES: usize = 16;
/// Points of a drawn curve.
const POINTS: usize = 200;

/// Pictures in columns; under each a caption.
#[derive(Clone, Debug)]
pub struct Gallery<'a> {
    /// Above everything.
    pub title: &'a str,
    /// Above each column.
    pub columns: &'a [&'a str],
    /// One victim a row: for each column a picture and its caption.
    pub rows: Vec<Vec<(&'a Picture, String)>>,
}

impl Gallery<'_> {
    /// The drawing as SVG.
    pub fn svg(&self) -> String {
        let (step, row_height) = (PANEL + GAP, PANEL + LINE + GAP);
        let width = (self.columns.len() * step + GAP).max(560);
        let height = 2 * LINE + 2 * GAP + self.rows.len() * row_height;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
             font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"{GAP}\" y=\"{LINE}\" font-size=\"16\">{}</text>\n",
            escaped(self.title)
        );
        let text = |svg: &mut String, x: usize, y: usize, text: &str| {
            let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\">{}</text>", escaped(text));
        };
        for (column, name) in self.columns.iter().enumerate() {
            text(&mut svg, GAP + column * step, 2 * LINE + GAP / 2, name);
        }
        for (row, panels) in self.rows.iter().enumerate() {
            let top = 2 * LINE + GAP + row * row_height;
            for (column, (picture, caption)) in panels.iter().enumerate() {
                let left = GAP + column * step;
                draw_picture(&mut svg, picture, left, top);
                text(&mut svg, left, top + PANEL + LINE - GAP / 2, caption);
            }
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// Writes the drawing to `path`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, self.svg())
    }
}

/// One path a shade: runs of equal pixels, so that a picture takes a few kilobytes.
fn draw_picture(svg: &mut String, picture: &Picture, left: usize, top: usize) {
    let side = picture.side();
    let shade = |pixel: f32| (f64::from(pixel) * (SHADES - 1) as f64).round() as usize;
    let mut paths = vec![String::new(); SHADES];
    for (y, row) in picture.pixels().chunks(side.max(1)).enumerate() {
        let mut x = 0;
        while x < side {
            let run = row[x..].iter().take_while(|pixel| shade(**pixel) == shade(row[x])).count();
            let _ = write!(paths[shade(row[x])], "M{x} {y}h{run}v1h-{run}z");
            x += run;
        }
    }
    let scale = PANEL as f64 / side.max(1) as f64;
    let _ = writeln!(
        svg,
        "<g transform=\"translate({left} {top}) scale({scale})\" shape-rendering=\"crispEdges\">"
    );
    for (shade, path) in paths.iter().enumerate().filter(|(_, path)| !path.is_empty()) {
        let grey = shade * 255 / (SHADES - 1);
        let _ = writeln!(svg, "<path fill=\"#{grey:02x}{grey:02x}{grey:02x}\" d=\"{path}\"/>");
    }
    svg.push_str("</g>\n");
}

/// Draws true against false positives of a membership attack without and with privacy, and the most that the promise
/// allows, to `path`.
///
/// # Errors
/// When the file cannot be written.
pub fn draw_membership(path: &Path, findings: &MembershipFindings) -> io::Result<()> {
    let least = 1e-4;
    let allowed = |x: f64| (findings.epsilon.exp() * x + findings.delta).min(1.0);
    let series = |name: String, color, is_dashed, points| Series { name, color, is_dashed, points };
    let plain = format!("No privacy, area {:.2}", findings.plain.area);
    let private = format!("Private, area {:.2}", findings.defended.area);
    let bound = format!("Most that epsilon {:.2} allows", findings.epsilon);
    let axis = |name| Axis { name, scale: Scale::Logarithmic, text: power };
    let chart = Chart {
        title: "Who was in? The attack's true positives against its false positives".to_owned(),
        note: "",
        x: axis("False positives"),
        y: axis("True positives"),
        series: vec![
            series(plain, 1, false, points(&findings.plain.curve, least)),
            series(private, 0, false, points(&findings.defended.curve, least)),
            series(bound, 3, true, spread(least).map(|x| (x, allowed(x))).collect()),
            series("Guessing".to_owned(), 5, true, vec![(least, least), (1.0, 1.0)]),
        ],
    };
    std::fs::write(path, sheet("", &[chart]))
}

/// A share on an axis of logarithms; of the last of a curve nothing is told, since all end at 1.
fn power(share: f64, step: f64) -> String {
    if step > 0.0 { format!("{share}") } else { String::new() }
}

/// Evenly spaced on a logarithmic axis from `least` to 1.
fn spread(least: f64) -> impl Iterator<Item = f64> {
    (0..=POINTS).map(move |place| least.powf(1.0 - place as f64 / POINTS as f64))
}

/// The curve at those places.
fn points(curve: &[Rates], least: f64) -> Vec<(f64, f64)> {
    let at = |x: f64| {
        let within = curve.partition_point(|point| point.false_positives <= x);
        curve[..within].last().map_or(0.0, |point| point.true_positives)
    };
    spread(least).map(|x| (x, at(x).max(least))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gallery_is_small_and_has_every_shade_in_its_place() {
        let picture = Picture::new(2, [0.0, 0.0, 1.0, 0.5]);
        let rows = vec![vec![(&picture, "a < b".to_owned())]];
        let svg = Gallery { title: "t", columns: &["original"], rows }.svg();
        assert!(svg.contains("<path fill=\"#000000\" d=\"M0 0h2v1h-2z\"/>"), "{svg}");
        assert!(svg.contains("<path fill=\"#ffffff\" d=\"M0 1h1v1h-1z\"/>") && svg.contains("a &lt; b"));
    }

    #[test]
    fn a_curve_is_read_off_from_the_left() {
        let at = |false_positives, true_positives| Rates { false_positives, true_positives };
        let curve = [at(0.0, 0.0), at(0.0, 0.2), at(0.01, 0.2), at(0.01, 0.6), at(1.0, 1.0)];
        let points = points(&curve, 1e-4);
        assert_eq!((points[0], points.last()), ((1e-4, 0.2), Some(&(1.0, 1.0))));
        assert!(points.iter().any(|(x, y)| *x > 0.01 && *y == 0.6));
    }
}
