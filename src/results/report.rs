//! A run as one page that needs nothing else: what came of it, its curves, what may be said of privacy, every round.

use std::io;
use std::path::Path;

use minijinja::{AutoEscape, Environment};
use protocol::wire::{ClientSummary, RoundSummary, RunState};
use protocol::{Loss, Metrics};
use serde_json::{Value, json};
use server::{Plan, PrivacyStatement};

use super::chart::{Chart, figure};
use super::curves::{Clock, charts, duration, rmse};
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
    /// Its rounds.
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
    /// Seconds that it took by the world's clock, where that is another.
    pub real_seconds: Option<f64>,
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
        charts(self.rounds, self.clock, self.is_squared())
    }

    /// Whether the loss is a mean squared error.
    fn is_squared(&self) -> bool {
        let plan = self.plan.and_then(|text| Plan::parse(text).ok());
        plan.is_some_and(|plan| plan.spec.loss() == Loss::MeanSquared)
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
    let mut tables: Vec<Value> = report.tables.iter().map(ReportTable::told).collect();
    let measures = Measures { is_squared: report.is_squared() };
    tables.extend((!report.clients.is_empty()).then(|| measures.clients(report).told()));
    tables.extend((!report.rounds.is_empty()).then(|| measures.rounds(report).told()));
    let page = json!({
        "title": report.title,
        "look": LOOK,
        "state": report.state,
        "state_name": report.state.map(|state| sentence(state.name())),
        "lead": sentence(report.lead),
        "remarks": report.remarks,
        "facts": facts(report, &measures),
        "charts": report.charts().iter().map(chart).collect::<Vec<_>>(),
        "statement": report.statement.map(statement),
        "tables": tables,
        "plan": report.plan,
        "software": concat!("consortia ", env!("CARGO_PKG_VERSION")),
    });
    let page = minijinja::value::Serde(page);
    environment.render_named_str("report.html", PAGE, page).map_err(io::Error::other)
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

/// The figures at the top.
fn facts(report: &Report<'_>, measures: &Measures) -> Vec<Value> {
    let last = |of: fn(&RoundSummary) -> Option<Metrics>| report.rounds.iter().rev().find_map(of);
    let records = [
        ("the server's records", last(|round| round.central)),
        ("the sites' records", last(|round| round.sites)),
    ];
    let rounds: Vec<&RoundSummary> = report.rounds.iter().filter(|round| round.round > 0).collect();
    let released = rounds.iter().filter(|round| round.released).count();
    let seconds =
        report.rounds.iter().filter(|round| round.participation().is_some()).map(|round| round.seconds);
    let seconds = seconds.reduce(|sum, seconds| sum + seconds).map(|seconds| duration(seconds, 0.0));
    let (clock, real) = match report.clock {
        Clock::Real => ("Time in rounds", "Time in all"),
        Clock::Virtual => ("Virtual time in rounds", "Real time of the simulation"),
    };
    let mut facts = vec![("Rounds".to_owned(), Some(rounds.len().to_string()))];
    if released < rounds.len() {
        facts.push(("Rounds that released a model".to_owned(), Some(released.to_string())));
    }
    for (whose, metrics) in records {
        facts.push((
            format!("{} on {whose}", measures.name()),
            metrics.and_then(|metrics| measures.best(&metrics)),
        ));
        facts.push((format!("Loss on {whose}"), metrics.map(|metrics| figure(metrics.loss))));
    }
    let epsilon = report.rounds.iter().rev().find_map(|round| round.epsilon);
    facts.push(("Epsilon".to_owned(), epsilon.map(|epsilon| format!("{epsilon:.3}"))));
    facts.push((clock.to_owned(), seconds));
    facts.push((real.to_owned(), report.real_seconds.map(|seconds| duration(seconds, 0.0))));
    let sha256 = report.model_sha256.filter(|hash| !hash.is_empty());
    facts.push(("Model".to_owned(), sha256.map(|hash| hash.get(..16).unwrap_or(hash).to_owned())));
    facts.into_iter().filter_map(|(name, value)| Some(json!({ "name": name, "value": value? }))).collect()
}

/// How good a model is, in the words of its task.
struct Measures {
    is_squared: bool,
}

impl Measures {
    fn name(&self) -> &'static str {
        if self.is_squared { "RMSE" } else { "Accuracy" }
    }

    fn best(&self, metrics: &Metrics) -> Option<String> {
        if self.is_squared { rmse(metrics).map(figure) } else { metrics.accuracy.map(percent) }
    }

    fn of(&self, metrics: Option<Metrics>) -> String {
        metrics.and_then(|metrics| self.best(&metrics)).unwrap_or_else(|| NONE.to_owned())
    }

    fn clients(&self, report: &Report<'_>) -> ReportTable {
        // Whose cohorts are drawn in secret tells nobody who took part.
        let hidden = report.rounds.iter().any(RoundSummary::hides_participation);
        let counts = |counts: &[(String, u32)]| {
            let each: Vec<String> = counts
                .iter()
                .map(|(reason, count)| format!("{} {count}", reason.replace('_', " ")))
                .collect();
            if each.is_empty() { NONE.to_owned() } else { each.join(", ") }
        };
        let row = |client: &ClientSummary| {
            let test = client.test.filter(|metrics| metrics.examples > 0);
            vec![
                client.client.to_string(),
                if hidden { NONE.to_owned() } else { client.accepted.to_string() },
                counts(&client.refused),
                counts(&client.declined),
                test.map_or_else(|| NONE.to_owned(), |metrics| metrics.examples.to_string()),
                self.of(test),
                loss(test),
            ]
        };
        let measure = format!("Test {}", if self.is_squared { "RMSE" } else { "accuracy" });
        let heads =
            ["Site", "Answers that count", "Refused", "Declined", "Test records", &measure, "Test loss"];
        ReportTable {
            title: "Sites".to_owned(),
            note: String::new(),
            heads: heads.map(str::to_owned).to_vec(),
            rows: report.clients.iter().map(row).collect(),
        }
    }

    fn rounds(&self, report: &Report<'_>) -> ReportTable {
        let seconds = match report.clock {
            Clock::Real => "Seconds",
            Clock::Virtual => "Virtual seconds",
        };
        let measure = |whose: &str| format!("{whose} {}", if self.is_squared { "RMSE" } else { "accuracy" });
        let (sites, central) = (measure("Sites'"), measure("Server's"));
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
        let row = |round: &RoundSummary| {
            let shown = round.participation();
            let or_none = |text: Option<String>| text.unwrap_or_else(|| NONE.to_owned());
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
                self.of(round.sites),
                loss(round.central),
                self.of(round.central),
                or_none(round.epsilon.map(|epsilon| format!("{epsilon:.3}"))),
                or_none(shown.map(|_| format!("{:.2}", round.seconds))),
            ]
        };
        ReportTable {
            title: "Rounds".to_owned(),
            note: String::new(),
            heads: heads.map(str::to_owned).to_vec(),
            rows: report.rounds.iter().map(row).collect(),
        }
    }
}

fn loss(metrics: Option<Metrics>) -> String {
    metrics.map_or_else(|| NONE.to_owned(), |metrics| figure(metrics.loss))
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// The statement with its numbers as a person reads them.
fn statement(statement: &PrivacyStatement) -> Value {
    let mut shown = json!(statement);
    for (shown, claim) in shown["claims"].as_array_mut().into_iter().flatten().zip(&statement.claims) {
        shown["unit"] = claim.unit.to_string().into();
        let least = [claim.epsilon.rdp, claim.epsilon.pld].into_iter().flatten().reduce(f64::min);
        shown["epsilon"] = least.map_or_else(|| "unbounded".to_owned(), |least| format!("{least:.3}")).into();
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::ClientId;
    use server::Subject;

    fn rounds() -> Vec<RoundSummary> {
        let metrics = Metrics { loss: 0.5, accuracy: Some(0.8125), examples: 8, seconds: 0.0 };
        let round = |round| RoundSummary {
            round,
            released: round != 2,
            cohort: 3,
            answered: 2,
            train: Some(metrics),
            sites: Some(metrics),
            central: None,
            seconds: 1.5,
            epsilon: Some(0.25 * f64::from(round)),
        };
        vec![round(1), round(2)]
    }

    #[test]
    fn a_page_says_what_came_of_the_run_and_asks_nobody_for_anything() {
        let subject = Subject { model_sha256: "ab".repeat(32), run: "r".into(), round: 2, rehearsal: true };
        let statement = PrivacyStatement::of(subject, &protocol::PrivacySpec::default(), None).unwrap();
        let client = ClientSummary {
            client: ClientId::new("north").unwrap(),
            connected: true,
            accepted: 2,
            refused: vec![("stale".into(), 1)],
            declined: vec![],
            test: None,
        };
        let (rounds, hash) = (rounds(), "ab".repeat(32));
        let report = Report {
            title: "hearts <script>alert(1)</script>",
            lead: "all rounds are done",
            rounds: &rounds,
            clients: &[client],
            model_sha256: Some(&hash),
            statement: Some(&statement),
            plan: Some("name = \"hearts\" # <b>"),
            ..Report::default()
        };
        let page = render(&report).unwrap();
        for said in [
            "81.2 %",
            "0.500",
            "not updated",
            "north",
            "stale 1",
            "<svg",
            "All rounds are done",
            "abababababababab",
        ] {
            assert!(page.contains(said), "{said} is missing");
        }
        assert!(!page.contains("<script") && !page.contains("# <b>"), "what was typed is shown, not obeyed");
        let outside = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!outside.contains("http:") && !outside.contains("https:") && !outside.contains("src="));
        for line in &statement.outside {
            assert!(page.contains(&minijinja::HtmlEscape(line).to_string()), "{line}");
        }
    }

    #[test]
    fn a_run_of_which_little_is_known_has_a_page_too() {
        let page = render(&Report { title: "new", lead: "waits", ..Report::default() }).unwrap();
        assert!(page.contains("<h1>new</h1>") && !page.contains("What may be said"));
    }

    const REAL: &str = r#"
        name = "beds"
        rounds = 2
        model = "linear"
        data = { table = { features = ["a"], label = "y", target = "real" } }
        training = { batch_size = 4, optimizer = { sgd = { learning_rate = 0.1 } } }
        update = { norm_max = 1 }
    "#;

    #[test]
    fn a_run_that_predicts_numbers_has_a_curve_of_rmse_and_none_of_accuracy() {
        let metrics = Metrics { loss: 6.25, accuracy: None, examples: 8, seconds: 0.0 };
        let rounds: Vec<RoundSummary> = rounds()
            .into_iter()
            .map(|round| RoundSummary { train: Some(metrics), sites: Some(metrics), epsilon: None, ..round })
            .collect();
        let report = Report { title: "beds", rounds: &rounds, plan: Some(REAL), ..Report::default() };
        let titles: Vec<String> = report.charts().into_iter().map(|chart| chart.title).collect();
        assert_eq!(titles, ["RMSE", "Loss", "Sites asked and answered", "Seconds of a round"]);
        let page = render(&report).unwrap();
        assert!(page.contains("RMSE on the sites&#x27; records") && page.contains("2.5000"), "{page}");
        assert!(!page.contains("ccuracy"), "nothing is said of what there is not");
    }

    #[test]
    fn columns_that_say_nothing_are_left_out_and_seconds_are_named_after_their_clock() {
        let rounds = rounds();
        let report =
            Report { clock: Clock::Virtual, real_seconds: Some(0.25), rounds: &rounds, ..Report::default() };
        let page = render(&report).unwrap();
        for said in [
            "Virtual seconds",
            "Virtual time in rounds",
            "Real time of the simulation",
            "250 ms",
            "Sites&#x27; accuracy",
        ] {
            assert!(page.contains(said), "{said}: {page}");
        }
        assert!(!page.contains("Server&#x27;s accuracy"), "the server has measured nothing");
        let real = render(&Report { rounds: &rounds, ..Report::default() }).unwrap();
        assert!(!real.contains("irtual") && real.contains("Seconds of a round"));
    }

    #[test]
    fn a_run_that_failed_says_why_before_anything_else() {
        let remarks = ["va declined 2 times: policy".to_owned()];
        for state in [RunState::Failed, RunState::Stopped, RunState::BudgetExhausted] {
            let (state, lead) = (Some(state), "the quorum was missed in 2 rounds");
            let page = render(&Report { title: "beds", state, lead, remarks: &remarks, ..Report::default() })
                .unwrap();
            let body = page.split("<header>").nth(1).unwrap();
            let why = body.split("<dl").next().unwrap();
            assert!(why.contains("The quorum was missed") && why.contains("va declined 2 times"), "{page}");
            assert!(!page.contains("<h2>Curves</h2>") && !page.contains("<h2>Rounds</h2>"), "{page}");
        }
    }
}
