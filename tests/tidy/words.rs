//! Names that earlier code and pages had, and that do not come back.

use std::fs;

use super::{judge, read, root, sources};

/// Names that were given up, each with the one in its place. `key` stands in files, on the wire or in JSON that earlier releases have written.
const GIVEN_UP: [(&str, &str); 9] = [
    ("booked", "reserved"),
    ("booking", "reservation"),
    ("rehearsal", "seeded run"),
    ("trouble", "error"),
    ("lull", "idle tick"),
    ("labour", "worker_loop"),
    ("purse", "DpContext"),
    ("workshop", "TaskRunner"),
    ("porch", "TcpAcceptor"),
];

/// Whether an old name stands in a line within quotes, where it is a key of a format or the name of a setting.
fn is_key(line: &str, name: &str) -> bool {
    let quoted = |quote: char| {
        [name.to_owned(), format!("{name}s")].iter().any(|key| line.contains(&format!("{quote}{key}{quote}")))
    };
    quoted('"')
        || quoted('`')
        || line.contains(&format!("\\\"{name}"))
        || line.contains(&format!("{name}s = "))
        || line.contains(&format!("run.{name}"))
}

#[test]
fn names_that_were_given_up_do_not_come_back() {
    let mut faults = Vec::new();
    let mut texts: Vec<(String, String)> =
        sources().into_iter().map(|source| (source.path, source.text)).collect();
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let docs = docs.map(|name| format!("docs/{}", name.into_string().unwrap()));
    let pages = ["README.md", "SECURITY.md", "CONTRIBUTING.md", "ARCHITECTURE.md"].map(str::to_owned);
    let scripts = ["promise.js", "run.js", "runs.js"].map(|name| format!("server/web/views/{name}"));
    texts.extend(
        pages
            .into_iter()
            .chain(docs.filter(|page| page.ends_with(".md")))
            .chain(scripts)
            .map(|page| (page.clone(), read(&page))),
    );
    for (path, text) in texts.iter().filter(|(path, _)| path != "tests/tidy/words.rs") {
        for (number, line) in (1..).zip(text.lines()) {
            let lower = line.to_lowercase();
            for (old, new) in GIVEN_UP {
                let parts = lower.split(|letter: char| !letter.is_ascii_alphabetic());
                let found = parts.into_iter().any(|part| part == old || part.strip_suffix('s') == Some(old));
                if found && !is_key(line, old) {
                    faults.push(format!("{path}:{number}: `{old}` was given up; say `{new}`"));
                }
            }
        }
    }
    judge(faults);
}
