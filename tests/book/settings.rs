//! Every key that a file takes is on docs/federation.md, in the section of that file. The keys are asked of the program: it is
//! given one that it cannot know, in every table there is, and says which ones it would have taken.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::read;

/// A key that no table has.
const UNKNOWN: &str = "zzz";
/// A plan that is in order, for files whose other tables are read first.
const PLAN: &str = "name = \"a\"\nrounds = 1\nmodel = \"linear\"\n[data.tensor]\nshape = [1]\ntarget = \"real\"\n\
    [training]\nbatch_size = 1\noptimizer = { sgd = { learning_rate = 0.1 } }\n";

/// A kind of file: how it begins, the table to look into, the command that reads it, the sections of the page.
struct File {
    begins: &'static str,
    table: &'static str,
    command: &'static [&'static str],
    sections: &'static [&'static str],
}

const FILES: [File; 5] = [
    File { begins: "", table: "", command: &["check", "FILE"], sections: &["federation.toml"] },
    File {
        begins: PLAN,
        table: "simulation",
        command: &["check", "FILE"],
        sections: &["`[simulation]`", "Sources"],
    },
    File {
        begins: "server = \"a:1\"\n",
        table: "",
        command: &["check", "FILE"],
        sections: &["site.toml", "Sources"],
    },
    File {
        begins: "listen = \"[::]:1\"\n",
        table: "",
        command: &["check", "FILE"],
        sections: &["server.toml", "Sources"],
    },
    File {
        begins: "",
        table: "",
        command: &["site", "policy", "check", "FILE", "PLAN"],
        sections: &["policy.toml"],
    },
];

/// The words of the code in these sections of the page.
fn words(page: &str, sections: &[&str]) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    for section in sections {
        let after =
            page.split(&format!("\n## {section}\n")).nth(1).unwrap_or_else(|| panic!("no section {section}"));
        let text = after.split("\n## ").next().unwrap_or_default();
        let code = text.split('`').skip(1).step_by(2);
        let letters = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
        words.extend(code.flat_map(|span| span.split(letters)).map(str::to_owned));
    }
    words
}

/// What the program says to the file's text.
fn says(folder: &Path, file: &File, text: &str) -> String {
    let path = folder.join("file.toml");
    fs::write(&path, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_consortia"));
    for word in file.command {
        match *word {
            "FILE" => command.arg(&path),
            "PLAN" => command.arg(folder.join("plan.toml")),
            word => command.arg(word),
        };
    }
    let output = command.output().unwrap();
    assert!(!output.status.success(), "an unknown key was taken:\n{text}");
    String::from_utf8(output.stderr).unwrap()
}

/// The keys that a table takes, from the complaint about one that it does not; none of what is no table.
fn taken(complaint: &str) -> Vec<String> {
    let first = complaint.lines().next().unwrap_or_default();
    if let Some((_, list)) =
        first.split_once(&format!("unexpected keys in table: {UNKNOWN}, available keys: "))
    {
        return list.split(", ").map(str::to_owned).collect();
    }
    match first.split_once(&format!("`{UNKNOWN}`, expected ")) {
        Some((_, list)) => list.split('`').skip(1).step_by(2).map(str::to_owned).collect(),
        None => Vec::new(),
    }
}

/// Looks into the table below these headers, and into every table in it; `path` is its name.
fn look(
    folder: &Path,
    file: &File,
    headers: &str,
    path: &str,
    above: &[Vec<String>],
    found: &mut BTreeSet<String>,
) {
    let complaint = says(folder, file, &format!("{}{headers}{UNKNOWN} = 1\n", file.begins));
    let keys = taken(&complaint);
    // Layers hold layers.
    if keys.is_empty() || above.contains(&keys) {
        return;
    }
    let above: Vec<Vec<String>> = above.iter().cloned().chain([keys.clone()]).collect();
    for key in keys {
        let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        for header in [format!("[{below}]\n"), format!("[[{below}]]\n")] {
            look(folder, file, &format!("{headers}{header}"), &below, &above, found);
        }
        found.insert(below);
    }
}

#[test]
fn every_key_of_every_file_is_on_the_page_of_settings() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("plan.toml"), PLAN).unwrap();
    let (page, mut faults, mut count) = (read("docs/federation.md"), Vec::new(), 0);
    for file in &FILES {
        let mut found = BTreeSet::new();
        let headers = if file.table.is_empty() { String::new() } else { format!("[{}]\n", file.table) };
        look(dir.path(), file, &headers, file.table, &[], &mut found);
        let words = words(&page, file.sections);
        let missing =
            found.iter().filter(|path| !words.contains(path.rsplit('.').next().unwrap_or_default()));
        faults.extend(missing.map(|path| format!("`{path}` is not in {:?}", file.sections)));
        count += found.len();
    }
    assert!(count > 200, "only {count} keys were found; does the program still list them?");
    assert!(faults.is_empty(), "docs/federation.md lacks settings:\n{}", faults.join("\n"));
}
