//! A run as one page that needs nothing else: what came of it, its curves, what may be said of privacy, every round.

mod facts;

use std::io;
use std::path::Path;

use methods::Registry;
use minijinja::{AutoEscape, Environment};
use protocol::Metrics;
use protocol::wire::{ClientSummary, RoundSummary, RunState};
use serde_json::{Value, json};
use server::{Plan, PrivacyStatement};
use time::OffsetDateTime;
use time::macros::format_description;

use super::chart::{Chart, escaped, figure};
use super::curves::{Clock, Measures, charts};
use super::model::{Existing, write_whole};

const PAGE: &str = include_str!("report.html");
/// The dashboard's colours, tables and legends.
const LOOK: &str = include_str!("../../server/web/look.css");
/// What stands where a number is not known.
const NONE: &str = "–";

/// What is known of a run when its page is written. What is absent is left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report<'a> {
    /// Its name.
    pub title: &'a str,
    /// Where it stands.
    pub state: Option<RunState>,
    /// One sentence: how it ended.
    pub lead: &'a str,
    /// What else there is to know of how it went, a sentence each.
    pub remarks: &'a [String],
    /// Its rounds, or the last ones of a long run.
    pub rounds: &'a [RoundSummary],
    /// Its sites.
    pub clients: &'a [ClientSummary],
    /// What else is shown, each below a heading of its own.
    pub tables: &'a [ReportTable],
    /// The fingerprint of its model.
    pub model_sha256: Option<&'a str>,
    /// What may be said of its privacy.
    pub statement: Option<&'a PrivacyStatement>,
    /// Every setting.
    pub plan: Option<&'a str>,
    /// What the seconds of its rounds are of.
    pub clock: Clock,
    /// Seconds that it took by the wall clock, where that is another.
    pub real_seconds: Option<f64>,
    /// When the page is written.
    pub written: Option<OffsetDateTime>,
}

/// A table of a report.
#[derive(Clone, Debug, Default)]
pub struct ReportTable {
    /// Its heading.
    pub title: String,
    /// What it says; may be empty.
    pub note: String,
    /// What its columns are called.
    pub heads: Vec<String>,
    /// As many cells a row as there are heads; columns in which no row has anything but a dash are left out.
    pub rows: Vec<Vec<String>>,
}

impl ReportTable {
    /// The same without columns that say nothing.
    fn told(&self) -> Value {
        let says = |column: usize| {
            let mut cells = self.rows.iter().filter_map(|row| row.get(column));
            column == 0 || cells.any(|cell| !["", "-", NONE].contains(&cell.as_str()))
        };
        let kept: Vec<usize> = (0..self.heads.len()).filter(|column| says(*column)).collect();
        let pick = |row: &Vec<String>| -> Vec<String> {
            kept.iter().map(|column| row.get(*column).cloned().unwrap_or_default()).collect()
        };
        let rows: Vec<Vec<String>> = self.rows.iter().map(pick).collect();
        json!({ "title": self.title, "note": self.note, "heads": pick(&self.heads), "rows": rows })
    }
}

impl Report<'_> {
    /// Its curves.
    pub(super) fn charts(&self) -> Vec<Chart> {
        charts(self.rounds, self.clock, Measures::of(self.parsed().as_ref()))
    }

    fn parsed(&self) -> Option<Plan> {
        self.plan.and_then(|text| Registry::standard().server().parse(text).ok())
    }

    /// The first and the last of the rounds, where earlier ones are left out.
    fn shown(&self) -> Option<(u32, u32)> {
        let (first, last) = (self.rounds.first()?.round, self.rounds.last()?.round);
        (first > 1).then_some((first, last))
    }

    /// What is to be known of the rounds that are shown; empty where all are.
    fn left_out(&self) -> String {
        let told = |(first, last)| match first {
            2 => format!("Rounds 2 to {last} are shown; the round before them is left out."),
            _ => format!(
                "Rounds {first} to {last} are shown; the {} rounds before them are left out.",
                first - 1
            ),
        };
        self.shown().map_or_else(String::new, told)
    }
}

/// Writes the page. A file of that name is replaced, whole.
///
/// # Errors
/// When the disk refuses.
pub fn write_report(path: &Path, report: &Report<'_>) -> io::Result<()> {
    let page = render(report)?;
    write_whole(path, Existing::Replaced, |partial| std::fs::write(partial, page))
}

fn render(report: &Report<'_>) -> io::Result<String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_filter("prose", |text: String| minijinja::Value::from_safe_string(prose(&text)));
    let plan = report.parsed();
    let measures = Measures::of(plan.as_ref());
    let mut tables: Vec<Value> = report.tables.iter().map(ReportTable::told).collect();
    tables.extend((!report.clients.is_empty()).then(|| clients(report, measures).told()));
    let rounds = rounds(report, measures);
    tables.extend((!rounds.rows.is_empty()).then(|| rounds.told()));
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    let written = report.written.map(|time| time.to_offset(time::UtcOffset::UTC).format(format));
    let page = json!({
        "title": report.title,
        "look": LOOK,
        "state": report.state,
        "state_name": report.state.map(|state| sentence(state.name())),
        "lead": sentence(report.lead),
        "remarks": report.remarks,
        "facts": facts::facts(report, plan.as_ref(), measures),
        "charts": report.charts().iter().map(chart).collect::<Vec<_>>(),
        "left_out": report.left_out(),
        "statement": report.statement.map(statement),
        "tables": tables,
        "plan": report.plan,
        "software": concat!("consortia ", env!("CARGO_PKG_VERSION")),
        "written": written.transpose().map_err(io::Error::other)?,
    });
    let page = minijinja::value::Serde(page);
    environment.render_named_str("report.html", PAGE, page).map_err(io::Error::other)
}

/// A sentence as HTML: what stands between backticks is code.
fn prose(text: &str) -> String {
    let parts: Vec<String> = text.split('`').map(escaped).collect();
    if parts.len().is_multiple_of(2) {
        return escaped(text);
    }
    let parts = parts.iter().enumerate();
    parts
        .map(|(place, part)| if place % 2 == 0 { part.clone() } else { format!("<code>{part}</code>") })
        .collect()
}

/// A chart for the page, drawn twice: for wide places and for telephones.
fn chart(chart: &Chart) -> Value {
    let legend = chart.series.iter().map(|series| {
        let last = series.last().map(|last| (chart.y.text)(last, 0.0));
        json!({ "name": series.name, "color": series.color, "dashed": series.is_dashed, "value": last })
    });
    json!({
        "title": chart.title,
        "note": chart.note,
        "described": chart.described(),
        "legend": legend.collect::<Vec<_>>(),
        "wide": chart.plot(560.0, 216.0),
        "narrow": chart.plot(330.0, 216.0),
    })
}

/// With a capital at its beginning.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn or_none(text: Option<String>) -> String {
    text.unwrap_or_else(|| NONE.to_owned())
}

fn best(metrics: Option<Metrics>, measures: Measures) -> String {
    or_none(metrics.and_then(|metrics| measures.best(&metrics)))
}

fn clients(report: &Report<'_>, measures: Measures) -> ReportTable {
    // Whose cohorts are drawn in secret tells nobody who took part.
    let hidden = report.rounds.iter().any(RoundSummary::hides_participation);
    let counts = |counts: &[(String, u32)]| {
        let each: Vec<String> =
            counts.iter().map(|(reason, count)| format!("{} {count}", reason.replace('_', " "))).collect();
        if each.is_empty() { NONE.to_owned() } else { each.join(", ") }
    };
    let row = |client: &ClientSummary| {
        let test = client.test.filter(|metrics| metrics.examples > 0);
        vec![
            client.client.to_string(),
            if hidden { NONE.to_owned() } else { client.accepted.to_string() },
            counts(&client.refused),
            counts(&client.declined),
            or_none(test.map(|metrics| metrics.examples.to_string())),
            best(test, measures),
            loss(test),
        ]
    };
    let kind = sentence(measures.records.name());
    let (records, measure, loss) =
        (format!("{kind} records"), format!("{kind} {}", measures.noun()), format!("{kind} loss"));
    let heads = ["Site", "Answers that count", "Refused", "Declined", &records, &measure, &loss];
    ReportTable {
        title: "Sites".to_owned(),
        note: String::new(),
        heads: heads.map(str::to_owned).to_vec(),
        rows: report.clients.iter().map(row).collect(),
    }
}

fn rounds(report: &Report<'_>, measures: Measures) -> ReportTable {
    let seconds = match report.clock {
        Clock::Real => "Seconds",
        Clock::Virtual => "Virtual seconds",
    };
    let (sites, central) = (format!("Sites' {}", measures.noun()), format!("Server's {}", measures.noun()));
    let heads = [
        "Round",
        "Answered",
        "Model",
        "Training loss",
        "Sites' loss",
        &sites,
        "Server's loss",
        &central,
        "Epsilon",
        seconds,
    ];
    // As many digits in the whole column, and enough of them where rounds are short.
    let digits = if report.rounds.iter().all(|round| round.seconds < 10.0) { 3 } else { 1 };
    let row = |round: &RoundSummary| {
        let shown = round.participation();
        vec![
            if round.round == 0 { "statistics".to_owned() } else { round.round.to_string() },
            or_none(shown.map(|(asked, answered)| format!("{answered} of {asked}"))),
            match (round.round, round.released) {
                (0, _) => NONE,
                (_, true) => "updated",
                (_, false) => "not updated",
            }
            .to_owned(),
            loss(round.train),
            loss(round.sites),
            best(round.sites, measures),
            loss(round.central),
            best(round.central, measures),
            or_none(round.epsilon.map(|epsilon| format!("{epsilon:.3}"))),
            or_none(shown.map(|_| format!("{:.digits$}", round.seconds))),
        ]
    };
    // The statistics of a run that was stopped before anybody was asked for them.
    let began = |round: &&RoundSummary| round.round > 0 || round.released || round.participation().is_some();
    ReportTable {
        title: "Rounds".to_owned(),
        note: report.left_out(),
        heads: heads.map(str::to_owned).to_vec(),
        rows: report.rounds.iter().filter(began).map(row).collect(),
    }
}

fn loss(metrics: Option<Metrics>) -> String {
    metrics.map_or_else(|| NONE.to_owned(), |metrics| figure(metrics.loss))
}

/// The statement with its numbers as a person reads them.
fn statement(statement: &PrivacyStatement) -> Value {
    let mut shown = json!(statement);
    for (shown, claim) in shown["claims"].as_array_mut().into_iter().flatten().zip(&statement.claims) {
        shown["unit"] = claim.unit.to_string().into();
        shown["delta"] = format!("{:e}", claim.delta).into();
        shown["epsilon_max"] = claim.epsilon_max.map(facts::short).into();
        shown["mechanism"] = sentence(&claim.mechanism).into();
        let least = [claim.epsilon.rdp, claim.epsilon.pld].into_iter().flatten().reduce(f64::min);
        shown["epsilon"] = least.map_or_else(|| "unbounded".to_owned(), |least| format!("{least:.3}")).into();
    }
    shown
}

#[cfg(test)]
mod tests;
