//! Links and headings of a page of Markdown, without code.

use std::collections::{BTreeMap, BTreeSet};

/// The lines of a page that are no code, with spans of code blanked, by their numbers.
fn prose(page: &str) -> Vec<(usize, String)> {
    let mut fenced = false;
    let mut found = Vec::new();
    for (number, line) in (1..).zip(page.lines()) {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            // Every second part is between backticks. A link's text may be code; its target is not.
            let parts = line.split('`').enumerate();
            let kept =
                parts.map(|(at, part)| if at % 2 == 0 { part.to_owned() } else { " ".repeat(part.len()) });
            found.push((number, kept.collect()));
        }
    }
    found
}

/// What the page links to, with the line.
pub(crate) fn links(page: &str) -> Vec<(usize, String)> {
    let targets = |(number, line): (usize, String)| {
        let inline = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        inline.map(|target| (number, target.to_owned())).collect::<Vec<_>>()
    };
    prose(page).into_iter().flat_map(targets).collect()
}

/// The names by which links reach the page's headings: as GitHub and mdBook make them of their text.
pub(crate) fn places(page: &str) -> BTreeSet<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut fenced = false;
    let mut found = BTreeSet::new();
    for line in page.lines() {
        fenced ^= line.trim_start().starts_with("```");
        let Some(heading) = line.strip_prefix('#').filter(|_| !fenced) else { continue };
        let text = heading.trim_start_matches('#').trim();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        let place: String = kept.collect::<String>().to_lowercase().replace(' ', "-");
        let before = counts.entry(place.clone()).or_default();
        found.insert(if *before == 0 { place } else { format!("{place}-{before}") });
        *before += 1;
    }
    found
}

#[test]
fn links_are_found_outside_of_code_and_headings_have_their_names() {
    let page = "# A page: `x.toml`\n[a](b.md#c) `[no](no.md)` and [`d`](e.rs)\n```\n[no](no.md)\n# no\n```\n## Twice\n## Twice\n";
    assert_eq!(links(page), [(2, "b.md#c".to_owned()), (2, "e.rs".to_owned())]);
    let expected = ["a-page-xtoml", "twice", "twice-1"].map(str::to_owned);
    assert_eq!(places(page), BTreeSet::from(expected));
}
