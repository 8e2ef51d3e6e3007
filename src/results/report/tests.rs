//! What a page says of a run, and that it says nothing else.

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
        further: Default::default(),
    };
    vec![round(1), round(2)]
}

#[test]
fn a_page_says_what_came_of_the_run_and_asks_nobody_for_anything() {
    let subject = Subject { model_sha256: "ab".repeat(32), run: "r".into(), round: 2, is_seeded: true };
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
    assert_eq!(titles, ["RMSE", "Loss", "Sites asked and answered", "Time of a round"]);
    let page = render(&report).unwrap();
    assert!(page.contains("RMSE on the sites&#x27; 8 test records") && page.contains("2.5000"), "{page}");
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
    assert!(!real.contains("irtual") && real.contains("Time of a round"));
}

#[test]
fn a_run_that_failed_says_why_before_anything_else() {
    let remarks = ["va declined 2 times: policy".to_owned()];
    for state in [RunState::Failed, RunState::Stopped, RunState::BudgetExhausted] {
        let (state, lead) = (Some(state), "the quorum was missed in 2 rounds");
        let page =
            render(&Report { title: "beds", state, lead, remarks: &remarks, ..Report::default() }).unwrap();
        let body = page.split("<header>").nth(1).unwrap();
        let why = body.split("<dl").next().unwrap();
        assert!(why.contains("The quorum was missed") && why.contains("va declined 2 times"), "{page}");
        assert!(!page.contains("<h2>Curves</h2>") && !page.contains("<h2>Rounds</h2>"), "{page}");
    }
}

/// A plan of nine rounds; `more` is put behind it.
fn classes(more: &str) -> String {
    format!(
        "name = \"beds\"\nrounds = 9\nmodel = \"logistic\"\ntraining = {{ batch_size = 4, optimizer = {{ sgd = {{ learning_rate = 0.1 }} }} }}\n\
         update = {{ norm_max = 1 }}\n[data.table]\nfeatures = [\"a\"]\nlabel = \"y\"\ntarget = {{ classes = 2 }}\n{more}"
    )
}

/// The figures at the top of a page, as it writes them.
fn figures(page: &str) -> Vec<(&str, &str)> {
    page.split("<div><dt>")
        .skip(1)
        .filter_map(|figure| figure.split_once("</dd>")?.0.split_once("</dt><dd>"))
        .collect()
}

#[test]
fn figures_are_about_the_whole_run_or_say_of_which_rounds_they_are() {
    let plan = classes("").replace("rounds = 9", "rounds = 1634");
    let rounds: Vec<RoundSummary> = (635..=1634)
        .map(|round| RoundSummary { round, released: round != 700, ..rounds()[0].clone() })
        .collect();
    let page = render(&Report { rounds: &rounds, plan: Some(&plan), ..Report::default() }).unwrap();
    let figures = figures(&page);
    for figure in [
        ("Rounds", "1634"),
        ("Rounds 635 to 1634 that released a model", "999"),
        ("Time in rounds 635 to 1634", "25 min"),
        ("Accuracy on the sites&#x27; 8 test records", "81.2 %"),
    ] {
        assert!(figures.contains(&figure), "{figure:?}: {figures:?}");
    }
    assert_eq!(
        page.matches("Rounds 635 to 1634 are shown; the 634 rounds before them are left out.").count(),
        2
    );
    let whole = render(&Report { rounds: &rounds[..1], ..Report::default() }).unwrap();
    assert!(whole.contains("Rounds 635 to 635 are shown"));
}

#[test]
fn a_run_that_ended_early_says_of_how_many_rounds_and_of_which_round_its_numbers_are() {
    let plan = classes("[evaluation]\nrecords = \"validation\"\n");
    let mut rounds = rounds();
    rounds[1].sites = None;
    let report =
        Report { rounds: &rounds, plan: Some(&plan), model_sha256: Some("abcd"), ..Report::default() };
    let page = render(&report).unwrap();
    let figures = figures(&page);
    for figure in [
        ("Rounds", "2 of 9"),
        ("Accuracy on the sites&#x27; 8 validation records, round 1", "81.2 %"),
        ("Model", "abcd"),
    ] {
        assert!(figures.contains(&figure), "{figure:?}: {figures:?}");
    }
    assert!(page.contains("Sites&#x27; validation records") && !page.contains("test records"), "{page}");
}

#[test]
fn a_private_run_has_its_budget_delta_and_noise_at_the_top() {
    let plan = classes(
        "[privacy.central]\npopulation = \"wards\"\ndelta = 1e-5\nepsilon_max = 4\nnoise_multiplier = 12.5\n\
         denominator = 3\nsampling = { availability = { participations_max = 100 } }\n",
    );
    let rounds = rounds();
    let report = Report { rounds: &rounds, plan: Some(&plan), ..Report::default() };
    let page = render(&report).unwrap();
    for figure in [("Epsilon at delta 1e-5", "0.500 of 4"), ("Noise multiplier", "12.5")] {
        assert!(figures(&page).contains(&figure), "{figure:?}: {page}");
    }
    let subject = Subject { model_sha256: "ab".repeat(32), run: "r".into(), round: 2, is_seeded: true };
    let mut statement = PrivacyStatement::of(subject, &protocol::PrivacySpec::default(), None).unwrap();
    statement.void = Some("a seeded run".to_owned());
    let page = render(&Report { statement: Some(&statement), ..report }).unwrap();
    assert!(figures(&page).contains(&("Epsilon (not claimed) at delta 1e-5", "0.500 of 4")), "{page}");
    let plan = classes(
        "[privacy.examples]\nnoise_multiplier = 16.7\nnorm_max = 1\ndelta = 1e-5\nepsilon_max = 20\n",
    );
    let page = render(&Report { plan: Some(&plan), ..Report::default() }).unwrap();
    for figure in
        [("Epsilon of each record at delta 1e-5", "at most 20"), ("Noise multiplier for each record", "16.7")]
    {
        assert!(figures(&page).contains(&figure), "{figure:?}: {page}");
    }
}

#[test]
fn statistics_that_nobody_was_asked_for_are_no_round_and_a_model_that_nobody_trained_is_called_so() {
    let nothing = RoundSummary { round: 0, released: false, cohort: 0, answered: 0, ..rounds()[0].clone() };
    let mut report =
        Report { rounds: std::slice::from_ref(&nothing), model_sha256: Some("abcd"), ..Report::default() };
    let page = render(&report).unwrap();
    assert!(!page.contains("<h2>Rounds</h2>") && !page.contains("statistics</th>"), "{page}");
    assert!(figures(&page).contains(&("Model that the run began with", "abcd")), "{page}");
    let asked = RoundSummary { cohort: 3, ..nothing.clone() };
    report.rounds = std::slice::from_ref(&asked);
    assert!(render(&report).unwrap().contains("statistics</th>"));
}

#[test]
fn what_stands_between_backticks_is_code_and_nothing_else_is_markup() {
    assert_eq!(prose("the budget of `a<b` is spent"), "the budget of <code>a&lt;b</code> is spent");
    assert_eq!(prose("one ` alone"), "one ` alone");
}
