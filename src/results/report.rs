//! A run as one page that needs nothing else: what came of it, its curves, what may be said of privacy, every round.

use std::io;
use std::path::Path;

use minijinja::{AutoEscape, Environment};
use protocol::Metrics;
use protocol::wire::{ClientSummary, RoundSummary};
use serde_json::{Value, json};
use server::PrivacyStatement;

use super::curves::curves_svg;
use super::model::{Existing, write_whole};

const PAGE: &str = include_str!("report.html");

/// What is known of a run when its page is written. What is absent is left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report<'a> {
    /// Its name.
    pub title: &'a str,
    /// One sentence: how it ended.
    pub lead: &'a str,
    /// Its rounds.
    pub rounds: &'a [RoundSummary],
    /// Its sites.
    pub clients: &'a [ClientSummary],
    /// The fingerprint of its model.
    pub model_sha256: Option<&'a str>,
    /// What may be said of its privacy.
    pub statement: Option<&'a PrivacyStatement>,
    /// Every setting.
    pub plan: Option<&'a str>,
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
    // Whose cohorts are drawn in secret tells nobody who took part.
    let hidden = report.rounds.iter().any(RoundSummary::hides_participation);
    let row = |of: &ClientSummary| {
        let mut row = client(of);
        if hidden {
            row["accepted"] = "-".into();
        }
        row
    };
    let page = json!({
        "title": report.title,
        "lead": report.lead,
        "facts": facts(report),
        "curves": curves_svg("", report.rounds).map_err(io::Error::other)?,
        "statement": report.statement.map(statement),
        "clients": report.clients.iter().map(row).collect::<Vec<_>>(),
        "rounds": report.rounds.iter().map(round).collect::<Vec<_>>(),
        "plan": report.plan,
        "software": concat!("consortia ", env!("CARGO_PKG_VERSION")),
    });
    let page = minijinja::value::Serde(page);
    environment.render_named_str("report.html", PAGE, page).map_err(io::Error::other)
}

/// The figures at the top.
fn facts(report: &Report<'_>) -> Vec<Value> {
    let last = |of: fn(&RoundSummary) -> Option<Metrics>| report.rounds.iter().rev().find_map(of);
    let accuracy = |metrics: Option<Metrics>| metrics.and_then(|metrics| metrics.accuracy).map(percent);
    let epsilon = report.rounds.iter().rev().find_map(|round| round.epsilon);
    let shown = report.rounds.iter().filter(|round| round.participation().is_some());
    let seconds = shown.map(|round| round.seconds).reduce(|sum, seconds| sum + seconds);
    let facts = [
        ("Rounds", Some(report.rounds.iter().filter(|round| round.round > 0).count().to_string())),
        ("Accuracy on the server's records", accuracy(last(|round| round.central))),
        ("Accuracy on the sites' records", accuracy(last(|round| round.sites))),
        ("Epsilon", epsilon.map(|epsilon| format!("{epsilon:.3}"))),
        ("Seconds in rounds", seconds.map(|seconds| format!("{seconds:.1}"))),
        ("Model", report.model_sha256.map(|hash| hash.get(..16).unwrap_or(hash).to_owned())),
    ];
    facts.into_iter().filter_map(|(name, value)| Some(json!({ "name": name, "value": value? }))).collect()
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

fn client(client: &ClientSummary) -> Value {
    let counts = |counts: &[(String, u32)]| {
        let each: Vec<String> = counts.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        if each.is_empty() { "-".to_owned() } else { each.join(", ") }
    };
    let accuracy = client.test.and_then(|metrics| metrics.accuracy).map_or_else(|| "-".to_owned(), percent);
    json!({
        "name": client.client.as_str(),
        "accepted": client.accepted,
        "refused": counts(&client.refused),
        "declined": counts(&client.declined),
        "accuracy": accuracy,
    })
}

fn round(round: &RoundSummary) -> Value {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let loss = |metrics: Option<Metrics>| or_none(metrics.map(|metrics| format!("{:.4}", metrics.loss)));
    let accuracy =
        |metrics: Option<Metrics>| or_none(metrics.and_then(|metrics| metrics.accuracy).map(percent));
    let values = [
        loss(round.train),
        loss(round.sites),
        accuracy(round.sites),
        loss(round.central),
        accuracy(round.central),
        or_none(round.epsilon.map(|epsilon| format!("{epsilon:.3}"))),
        or_none(round.participation().map(|_| format!("{:.2}", round.seconds))),
    ];
    json!({
        "number": round.round,
        "answered": or_none(round.participation().map(|(asked, answered)| format!("{answered} of {asked}"))),
        "model": if round.released { "moved" } else { "stood still" },
        "values": values,
    })
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
        };
        let page = render(&report).unwrap();
        for said in [
            "81.2 %",
            "0.500",
            "stood still",
            "north",
            "stale 1",
            "<svg",
            "all rounds are done",
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
}
