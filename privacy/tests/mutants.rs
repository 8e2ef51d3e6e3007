//! The table of mistakes in the documentation names tests that exist.
//!
//! It cannot say that a test still fails for its mistake: those tests build the mistake themselves and say so.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What the specification of privacy demands, as the first column says it.
const DEMANDED: [&str; 8] = [
    "noise times 1/√2",
    "noise times 1.02",
    "a seed that serves two releases",
    "noise cut off at four sigma",
    "noise drawn in floats",
    "a wrong sign at zero",
    "a server that does not check the norm",
    "the actual number of clients or examples as denominator",
];

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_test_that_is_named_against_a_mistake_exists() {
    let mut mistakes = BTreeSet::new();
    let text = read("docs/privacy-tests.md");
    for row in text.lines().filter(|line| line.starts_with('|') && line.contains('`')) {
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let [_, mistake, test, file, _] = cells[..] else { panic!("a row has three cells: {row}") };
        mistakes.insert(mistake);
        let source = read(file);
        let is_test =
            source.match_indices(&format!("fn {test}()")).any(|(place, _)| is_marked(&source[..place]));
        assert!(is_test, "{file} has no test {test}");
    }
    for mistake in DEMANDED {
        assert!(mistakes.contains(mistake), "no test is named against: {mistake}");
    }
}

/// Whether the function that begins after `source` is a test.
fn is_marked(source: &str) -> bool {
    let before = source.trim_end();
    let before = before.strip_suffix("async").unwrap_or(before).trim_end();
    before.ends_with("#[test]") || before.ends_with("#[tokio::test]")
}
