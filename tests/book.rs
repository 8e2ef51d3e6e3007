//! The pages lead somewhere: the book's summary, every link with its place on the page, the reference of all commands, every
//! setting that a file takes, every test that the threat model names. mdBook itself is not needed.
#![expect(clippy::unwrap_used, reason = "a page that cannot be read is a failure")]

#[path = "book/links.rs"]
mod links;
#[path = "book/settings.rs"]
mod settings;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The pages of docs/ and those beside README, by their paths from the root.
fn pages() -> Vec<String> {
    let below = |folder: &str| {
        let entries = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().file_name());
        let names = entries.map(|name| format!("{folder}{}", name.into_string().unwrap()));
        names.filter(|name| name.ends_with(".md")).collect::<Vec<_>>()
    };
    let mut pages = below("");
    pages.extend(below("docs/"));
    pages.extend(below("examples/data/"));
    pages.sort();
    assert!(pages.len() > 15, "{pages:?}");
    pages
}

#[test]
fn the_summary_names_every_page_of_the_book_once() {
    let mut named: Vec<String> =
        links::links(&read("docs/SUMMARY.md")).into_iter().map(|(_, to)| to).collect();
    named.sort();
    let there = pages().into_iter().filter_map(|page| Some(page.strip_prefix("docs/")?.to_owned()));
    let there: Vec<String> = there.filter(|page| page != "SUMMARY.md").collect();
    assert_eq!(named, there, "left: docs/SUMMARY.md; right: the pages of docs/");
}

#[test]
fn every_link_leads_to_a_file_and_to_a_place_in_it() {
    let mut faults = Vec::new();
    for page in pages() {
        let folder = Path::new(&page).parent().unwrap();
        for (line, to) in links::links(&read(&page)) {
            if to.starts_with("http://") || to.starts_with("https://") {
                continue;
            }
            let (file, place) =
                to.split_once('#').map_or((to.as_str(), None), |(file, place)| (file, Some(place)));
            let target = if file.is_empty() { page.clone() } else { folder.join(file).display().to_string() };
            if !root().join(&target).exists() {
                faults.push(format!("{page}:{line}: there is no `{target}`; correct the link"));
                continue;
            }
            let places = || links::places(&read(&target));
            if let Some(place) = place.filter(|place| !target.ends_with(".md") || !places().contains(*place))
            {
                faults.push(format!("{page}:{line}: `{target}` has no heading `#{place}`; correct the link"));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn the_reference_is_what_the_command_says_of_itself() {
    let output = Command::new(env!("CARGO_BIN_EXE_consortia")).arg("reference").output().unwrap();
    assert!(output.status.success());
    let (said, page) = (String::from_utf8(output.stdout).unwrap(), read("docs/reference.md"));
    let differs = page.lines().zip(said.lines()).position(|(is, should)| is != should);
    let line = 1 + differs.unwrap_or_else(|| page.lines().count().min(said.lines().count()));
    assert!(page == said, "docs/reference.md:{line} is stale; `cargo run -- reference > docs/reference.md`");
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let (page, mut named) = (read("docs/threats.md"), BTreeSet::new());
    for (number, line) in (1..).zip(page.lines()).filter(|(_, line)| line.starts_with('|')) {
        let Some((test, file)) =
            line.trim_end_matches(" |").rsplit_once("| `").and_then(|(_, last)| last.split_once("` in `"))
        else {
            assert!(!line.contains(".rs"), "docs/threats.md:{number}: `test` in `file` is missing: {line}");
            continue;
        };
        let file = file.trim_end_matches('`');
        let is_there = read(file).contains(&format!("fn {test}("));
        assert!(is_there, "docs/threats.md:{number}: {file} has no test `{test}`; correct the page");
        named.insert(test.to_owned());
    }
    assert!(named.len() > 30, "{named:?}");
}

#[test]
fn every_simulation_of_the_privacy_page_is_accepted_as_it_is_typed_there() {
    let page = read("docs/privacy.md");
    let block = page.split("```").find(|block| block.contains("F=examples/writers_private.toml")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("examples")).unwrap();
    let plan = "examples/writers_private.toml";
    fs::write(folder.path().join(plan), read(plan)).unwrap();
    let command = Path::new(env!("CARGO_BIN_EXE_consortia")).parent().unwrap().display().to_string();
    let path = format!("{command}:{}", std::env::var("PATH").unwrap());
    let typed = block.replace("\\\n", " ");
    let mut simulated = 0;
    for line in typed.lines().filter(|line| line.starts_with("consortia ") || line.starts_with("sed ")) {
        let output = Command::new("sh")
            .args(["-c", &format!("F={plan}\n{line}")])
            .current_dir(folder.path())
            .env("PATH", &path)
            .env("CONSORTIA_DATA", "/no-such-data")
            .output()
            .unwrap();
        let talk = String::from_utf8_lossy(&output.stderr);
        if line.starts_with("sed ") {
            assert!(output.status.success(), "{line}: {talk}");
            continue;
        }
        // The plan is taken; what is missing are the records.
        assert!(talk.contains("/no-such-data"), "docs/privacy.md: `{line}` is refused: {talk}");
        simulated += 1;
    }
    assert!(simulated >= 6, "{simulated} simulations are typed on the page");
}
