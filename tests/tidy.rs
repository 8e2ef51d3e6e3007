//! Tidiness that the compiler does not see: who may import whom, how files open and how long they get, and that the
//! pages name commands that are there (their links are `tests/book.rs`'s). Every fault is one line, `file:line: what is wrong; what to do`.
//!
//! It reads files and runs nothing. A file is Rust by its name; strings and comments are blanked before lines are judged.

#![expect(clippy::unwrap_used, reason = "a repository that cannot be read is a failure")]

#[path = "tidy/floors.rs"]
mod floors;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/words.rs"]
mod words;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use floors::Folder;
use source::Source;

/// Every crate of ours, and the ones of ours it may use. The command sees everything.
const IMPORTS: [(&str, &[&str]); 11] = [
    (
        "facade",
        &["client", "external", "learning", "methods", "privacy", "protocol", "server", "simulations"],
    ),
    ("privacy", &[]),
    ("protocol", &["privacy"]),
    ("tunnel", &[]),
    ("server", &["privacy", "protocol", "tunnel"]),
    ("client", &["privacy", "protocol", "tunnel"]),
    ("external", &["protocol"]),
    ("learning", &["privacy", "protocol"]),
    ("measure", &["client", "external", "privacy", "protocol", "server"]),
    ("methods", &["client", "privacy", "protocol", "server"]),
    ("simulations", &["client", "external", "learning", "privacy", "protocol", "server"]),
];
/// What only a shell may link: in `server` and `client` behind the feature `net`, elsewhere not at all.
const SHELL: [&str; 15] = [
    "aws-lc-rs",
    "axum",
    "hyper",
    "hyper-util",
    "quinn",
    "quinn-proto",
    "rcgen",
    "rustls",
    "socket2",
    "sqlx",
    "tokio",
    "tokio-rustls",
    "tokio-util",
    "tunnel",
    "x509-parser",
];
/// Crates that decide: they take their order from their keys and not from chance.
const PURE: [&str; 7] = ["client", "learning", "methods", "privacy", "protocol", "server", "simulations"];
/// The rooms of the server, from the ground up: each imports those before it alone (ARCHITECTURE.md).
const ROOMS: [&str; 8] =
    ["transport", "store", "membership", "engine", "sessions", "operators", "admin", "server"];
/// What commands are made of, from the ground up: it imports no command.
const BASE: [&str; 26] = [
    "shell",
    "hints",
    "clock",
    "plans",
    "output",
    "failure",
    "global",
    "text",
    "address",
    "kinds",
    "part",
    "modes",
    "watch",
    "notify",
    "insecure",
    "telemetry",
    "progress",
    "request",
    "presets",
    "state",
    "folder",
    "identity",
    "root",
    "cores",
    "start",
    "learner",
];
const LINES_MAX: usize = 600;
const FUNCTION_MAX: usize = 70;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn manifest(folder: &str) -> toml::Table {
    read(format!("{folder}/Cargo.toml")).parse().unwrap()
}

/// Every Rust file of the workspace, by its path from the root.
fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = folder.join(&name);
            let skipped = name.starts_with('.') || ["target", "fuzz", "runs"].contains(&name.as_str());
            if entry.file_type().unwrap().is_dir() && !skipped {
                folders.push(path);
            } else if name.ends_with(".rs") {
                found.push(Source::new(path.to_str().unwrap(), &read(&path)));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 50, "only {} Rust files were found; is this the repository's root?", found.len());
    found
}

/// Fails with every fault at once.
fn judge(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// A line of a manifest that names this dependency, for the message.
fn line_of(folder: &str, word: &str) -> usize {
    let text = read(format!("{folder}/Cargo.toml"));
    1 + text.lines().position(|line| line.trim_start().starts_with(word)).unwrap_or(0)
}

fn names(table: &toml::Table, key: &str) -> Vec<String> {
    let table = table.get(key).and_then(toml::Value::as_table);
    table.map(|table| table.keys().cloned().collect()).unwrap_or_default()
}

#[test]
fn crates_import_only_what_the_table_allows() {
    let mut faults = Vec::new();
    for (krate, allowed) in IMPORTS {
        let table = manifest(krate);
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for name in names(&table, section) {
                let ours = name == "consortia" || IMPORTS.iter().any(|(other, _)| *other == name);
                if ours && !allowed.contains(&name.as_str()) {
                    let line = line_of(krate, &name);
                    faults.push(format!(
                        "{krate}/Cargo.toml:{line}: `{krate}` may not use `{name}`; move what it needs into protocol/, or \
                         pass it in from above"
                    ));
                }
            }
        }
    }
    judge(faults);
}

/// README's first command is `cargo run`, and packages of the workspace have programs of their tests.
#[test]
fn cargo_run_runs_the_command() {
    assert_eq!(manifest(".")["package"]["default-run"].as_str(), Some("consortia"));
}

#[test]
fn sources_name_no_forbidden_sibling() {
    let mut faults = Vec::new();
    for source in sources() {
        let Some((krate, allowed)) = IMPORTS.iter().find(|(krate, _)| source.is_in(krate)) else { continue };
        let forbidden = IMPORTS.iter().map(|(other, _)| *other);
        let forbidden = forbidden.filter(|other| other != krate && !allowed.contains(other));
        for other in forbidden.chain(["consortia"]) {
            for line in source.lines_with(&format!("use {other}::")) {
                faults.push(
                    source.fault(line, &format!("`{krate}` may not use `{other}`; see ARCHITECTURE.md")),
                );
            }
        }
    }
    judge(faults);
}

#[test]
fn the_network_stays_behind_its_feature() {
    let mut faults = Vec::new();
    for (krate, _) in
        IMPORTS.into_iter().filter(|(krate, _)| !["facade", "measure", "tunnel"].contains(krate))
    {
        let table = manifest(krate);
        let net: Vec<String> = feature(&table, "net");
        for name in names(&table, "dependencies").iter().filter(|name| SHELL.contains(&name.as_str())) {
            let line = line_of(krate, name);
            let optional =
                table["dependencies"][name.as_str()].get("optional").and_then(toml::Value::as_bool);
            if !["server", "client"].contains(&krate) {
                faults.push(format!(
                    "{krate}/Cargo.toml:{line}: `{name}` waits, and `{krate}` may not; remove it"
                ));
            } else if optional != Some(true) || !net.contains(&format!("dep:{name}")) {
                faults.push(format!(
                    "{krate}/Cargo.toml:{line}: `{name}` must be optional and listed as `dep:{name}` in the feature `net`"
                ));
            }
        }
    }
    for source in sources().iter().filter(|source| PURE.iter().any(|krate| source.is_in(krate))) {
        if source.path.contains("/src/net") || !source.path.contains("/src/") {
            continue;
        }
        for name in SHELL.map(|name| name.replace('-', "_")) {
            for line in source.lines_with(&format!("{name}::")) {
                faults.push(source.fault(line, &format!("`{name}` waits; only src/net may use it")));
            }
        }
    }
    judge(faults);
}

fn feature(table: &toml::Table, name: &str) -> Vec<String> {
    let list = table.get("features").and_then(|features| features.get(name)).and_then(toml::Value::as_array);
    let texts = list.into_iter().flatten().filter_map(toml::Value::as_str);
    texts.map(str::to_owned).collect()
}

/// Overrides of single packages are inherited with their profile: each that makes the first build faster is undone in the other.
#[test]
fn the_distributed_file_is_optimised_in_full() {
    let profiles = manifest(".")["profile"].clone();
    let levels = |profile: &str| profiles[profile]["package"].as_table().unwrap().clone();
    let full = |level: &toml::Value| level["opt-level"].as_integer() == Some(3);
    let dist = levels("dist");
    let below = |name: &String, level: &toml::Value| !dist.get(name).map_or_else(|| full(level), full);
    let release = levels("release");
    let faults = release.iter().filter(|(name, level)| below(name, level)).map(|(name, _)| {
        format!("Cargo.toml: `{name}` is below level 3 in profile.release.package, and so in dist; give it 3 in profile.dist.package")
    });
    judge(faults.collect());
}

/// What a program that embeds the library has to build is what it uses: nothing of the command.
#[test]
fn the_library_links_the_other_crates_alone() {
    let (table, (_, allowed)) = (manifest("facade"), IMPORTS[0]);
    let foreign = names(&table, "dependencies").into_iter().filter(|name| !allowed.contains(&name.as_str()));
    let fault = |name: String| {
        let line = line_of("facade", &name);
        format!(
            "facade/Cargo.toml:{line}: the library links `{name}`; it belongs to the command, or into one of our crates"
        )
    };
    judge(foreign.map(fault).collect());
}

#[test]
fn a_room_of_the_server_imports_only_rooms_below_it() {
    let (net, sources) = (Folder { path: "server/src/net" }, sources());
    let mut faults = net.faults(&sources, &ROOMS);
    for room in net.modules(&sources).iter().filter(|room| !ROOMS.contains(&room.as_str())) {
        faults.push(format!(
            "server/src/net/{room}: it is in no room; move it into one, or put it into ROOMS here"
        ));
    }
    judge(faults);
}

#[test]
fn what_every_command_needs_imports_no_command_and_commands_import_in_no_circle() {
    let (cli, sources) = (Folder { path: "src/cli" }, sources());
    let mut faults = cli.faults(&sources, &BASE);
    for arrow in cli.arrows(&sources).into_iter().filter(|arrow| arrow.to.is_none()) {
        let what = "src/cli.rs lists the commands; what they need stands in a file below them";
        faults.push(sources[arrow.file].fault(arrow.line, what));
    }
    for floors::Arrow { from, to, line, file } in cli.circles(&sources) {
        let what = format!(
            "`{from}` and `{}` import each other; move what both need into a file below",
            to.unwrap_or_default()
        );
        faults.push(sources[file].fault(line, &what));
    }
    judge(faults);
}

#[test]
fn one_import_of_a_floor_above_is_a_fault_however_it_is_written() {
    let (net, cli) = (Folder { path: "server/src/net" }, Folder { path: "src/cli" });
    let mut all = sources();
    let mut with = |path: &str, text: &str, folder: &Folder, floors: &[&str]| {
        all.push(Source::new(path, text));
        let found = (folder.faults(&all, floors), folder.circles(&all).len());
        all.pop();
        found
    };
    for text in [
        "use crate::net::{transport::frames, engine::{Command}};",
        "use super::super::engine::Command;",
        "fn f() { crate::net::sessions::session::stand_by(); }",
        "mod tests { use super::super::super::operators; }",
        "use crate::net::AuditError;",
        "use super::super::*;",
    ] {
        let (faults, _) = with("server/src/net/store/new.rs", text, &net, &ROOMS);
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
        assert!(faults[0].starts_with("server/src/net/store/new.rs:1: "), "{faults:?}");
    }
    let below = "use super::rows;\nuse crate::net::transport::peer;";
    assert!(with("server/src/net/store/new.rs", below, &net, &ROOMS).0.is_empty());
    for text in ["use super::simulate::SimulateArgs;", "use super::Command;", "use crate::cli::Command;"] {
        let (faults, _) = with("src/cli/text.rs", text, &cli, &BASE);
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
    }
    assert!(with("src/cli/serve.rs", "use super::demo::demo;", &cli, &BASE).1 > 0);
}

/// Methods are registered in one place. What drives them knows none: adding one touches nothing else.
#[test]
fn methods_are_named_where_they_are_registered_alone() {
    let mut faults = Vec::new();
    let registered = sources().into_iter().find(|source| source.path == "methods/src/lib.rs").unwrap();
    let types: Vec<String> = read("methods/src/lib.rs")
        .lines()
        .filter_map(|line| {
            let line = line.trim();
            let name =
                [".with(", ".with_rule(", ".with_step("].iter().find_map(|call| line.strip_prefix(call))?;
            name.strip_suffix(')').map(str::to_owned)
        })
        .collect();
    assert!(
        types.len() > 1 && registered.is_in("methods"),
        "no line of methods/src/lib.rs registers a method"
    );
    for name in types {
        let module = name.to_lowercase();
        for source in sources() {
            let free = ["methods", "tests"].iter().any(|folder| source.is_in(folder));
            for word in [&name, &module] {
                for line in source.lines_with(word).into_iter().filter(|_| !free) {
                    faults.push(
                        source
                            .fault(line, &format!("`{name}` is a method; only methods/ and tests name one")),
                    );
                }
            }
        }
    }
    judge(faults);
}

#[test]
fn candle_is_learning_s_alone() {
    let mut faults = Vec::new();
    for folder in [".", "client", "methods", "privacy", "protocol", "server", "simulations"] {
        let table = manifest(folder);
        for name in names(&table, "dependencies").iter().filter(|name| name.starts_with("candle")) {
            let line = line_of(folder, name);
            faults.push(format!(
                "{folder}/Cargo.toml:{line}: only `learning` links `{name}`; use its types instead"
            ));
        }
    }
    for source in sources() {
        let free = ["learning", "examples", "tests", "benches"].iter().any(|folder| source.is_in(folder));
        for line in source.lines_with("candle_").into_iter().filter(|_| !free) {
            faults.push(source.fault(line, "only `learning` (and examples, tests) name candle"));
        }
    }
    judge(faults);
}

#[test]
fn only_the_codec_names_bincode() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|source| source.path != "protocol/src/wire/codec.rs") {
        for line in source.lines_with("bincode") {
            faults.push(
                source
                    .fault(line, "only protocol/src/wire/codec.rs names bincode; use `encode` and `decode`"),
            );
        }
    }
    judge(faults);
}

#[test]
fn every_file_says_what_it_is_for_and_stays_short() {
    let mut faults = Vec::new();
    for source in sources() {
        if !source.text.starts_with("//!") {
            faults.push(
                source.fault(1, "the file must open with `//!`: what it is for, what it refuses to do"),
            );
        }
        let lines = source.text.lines().count();
        if lines > LINES_MAX {
            faults.push(
                source.fault(LINES_MAX + 1, &format!("{lines} lines; split it, {LINES_MAX} are the most")),
            );
        }
        for (line, name, length) in source.functions() {
            if length > FUNCTION_MAX {
                let what = format!("`{name}` has {length} lines; split it, {FUNCTION_MAX} are the most");
                faults.push(source.fault(line, &what));
            }
        }
    }
    judge(faults);
}

#[test]
fn nothing_is_left_for_later_and_nothing_is_unwrapped() {
    // Put together here, so that this file does not find itself.
    let later = ["todo!", "unimplemented!", "dbg!"];
    let comments = [["FIX", "ME"].concat(), ["TO", "DO"].concat(), ["XX", "X"].concat()];
    let mut faults = Vec::new();
    for source in sources() {
        for word in later {
            for line in source.lines_with(word) {
                faults.push(
                    source.fault(line, &format!("`{word}` is not code; write it, or take the way to it out")),
                );
            }
        }
        for (number, line) in (1..).zip(source.text.lines()) {
            if let Some(word) = comments.iter().find(|word| source::has_word(line, word)) {
                faults.push(source.fault(number, &format!("`{word}`: do it now, or open an issue")));
            }
        }
        if source.is_test {
            continue;
        }
        for line in source.lines_with(".unwrap()").into_iter().filter(|line| !source.is_tested(*line)) {
            faults
                .push(source.fault(line, "return an error, or `expect` with the reason why it cannot fail"));
        }
    }
    judge(faults);
}

#[test]
fn no_order_comes_from_chance() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|source| PURE.iter().any(|krate| source.is_in(krate))) {
        for word in ["HashMap", "HashSet"] {
            for line in source.lines_with(word) {
                faults.push(source.fault(line, "its order is random; use BTreeMap or BTreeSet"));
            }
        }
    }
    judge(faults);
}

#[test]
fn the_architecture_page_lists_every_folder() {
    let page = read("ARCHITECTURE.md");
    let mut faults = Vec::new();
    for entry in fs::read_dir(root()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let ours = entry.file_type().unwrap().is_dir() && !name.starts_with('.');
        if ours && !["target", "runs"].contains(&name.as_str()) && !page.contains(&format!("`{name}/`")) {
            faults.push(format!("ARCHITECTURE.md:1: the map does not list `{name}/`; say what it holds"));
        }
    }
    for (number, line) in (1..).zip(page.lines()) {
        let folder =
            line.strip_prefix("| `").and_then(|rest| rest.split_once("/`")).map(|(folder, _)| folder);
        if let Some(folder) = folder.filter(|folder| !root().join(folder).is_dir()) {
            faults.push(format!("ARCHITECTURE.md:{number}: there is no folder `{folder}/`; correct the map"));
        }
    }
    judge(faults);
}

/// Lines of fenced blocks that run our command, by line number, without `$ ` and the path of the binary.
fn commands(page: &str) -> Vec<(usize, Vec<String>)> {
    let mut fenced = false;
    let mut found = Vec::new();
    for (number, line) in (1..).zip(page.lines()) {
        if line.starts_with("```") {
            fenced = !fenced;
        }
        let line = line.trim_start_matches("$ ");
        let line = line.replace("cargo run --release -- ", "consortia ");
        let words: Vec<String> =
            line.split('#').next().unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        if fenced && words.first().is_some_and(|word| word == "consortia") {
            found.push((number, words));
        }
    }
    found
}

#[test]
fn the_readme_s_first_commands_are_the_demo_and_the_tests() {
    let page = read("README.md");
    let first: Vec<&str> = page.lines().filter(|line| line.starts_with("cargo ")).take(2).collect();
    assert_eq!(
        first,
        ["cargo run --release -- demo", "cargo test"],
        "README.md: these are the first two commands"
    );
    let run = read(".ci/run");
    assert!(
        run.lines().any(|line| line.ends_with(" cargo test")),
        ".ci/run: the tests run as README.md says"
    );
}

#[test]
fn every_command_of_the_pages_exists() {
    let command_line: String =
        sources().iter().filter(|source| source.is_in("src")).map(|source| source.text.as_str()).collect();
    let mut faults = Vec::new();
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let docs = docs.map(|name| format!("docs/{}", name.into_string().unwrap()));
    let pages = ["README.md", "SECURITY.md", "CONTRIBUTING.md"].map(str::to_owned).into_iter();
    for page in pages.chain(docs.filter(|page| page.ends_with(".md"))) {
        for (number, words) in commands(&read(&page)) {
            let plain = |word: &&String| word.chars().all(|c| c.is_ascii_lowercase());
            let sub = |word: &str| format!("{}{}", word[..1].to_uppercase(), &word[1..]);
            // Behind `new` a folder's name follows.
            let depth = if words.get(1).is_some_and(|verb| verb == "new") { 1 } else { 2 };
            let verbs = words[1..].iter().take(depth).take_while(plain).map(|word| sub(word));
            let flags =
                words.iter().filter_map(|word| word.strip_prefix("--")).map(|flag| flag.replace('-', "_"));
            for name in verbs.chain(flags) {
                if !source::has_word(&command_line, &name) {
                    faults
                        .push(format!("{page}:{number}: the command line has no `{name}`; correct the page"));
                }
            }
        }
    }
    judge(faults);
}

#[test]
fn every_crate_keeps_to_one_set_of_lints() {
    let mut faults = Vec::new();
    let workspace: toml::Table = read("Cargo.toml").parse().unwrap();
    let shared = &workspace["workspace"]["lints"];
    for (krate, _) in IMPORTS {
        let table = manifest(krate);
        let lints = &table["lints"];
        if lints.get("workspace").and_then(toml::Value::as_bool) == Some(true) {
            continue;
        }
        // `learning` alone may write `deny` for `forbid`, so that one module can opt out.
        let mut own: BTreeMap<String, toml::Value> = lints["rust"].clone().try_into().unwrap();
        let softened = own.insert("unsafe_code".into(), "forbid".into()) == Some("deny".into());
        let rust: BTreeMap<String, toml::Value> = shared["rust"].clone().try_into().unwrap();
        if krate != "learning" || !softened || own != rust || lints["clippy"] != shared["clippy"] {
            let line = line_of(krate, "[lints");
            faults.push(format!(
                "{krate}/Cargo.toml:{line}: the lints differ from the workspace's; make them equal"
            ));
        }
    }
    judge(faults);
}

/// A profile takes over the packages of the one that it inherits from: what is left out here would be slow in what others install.
#[test]
fn the_file_that_others_install_is_optimised_in_full() {
    let workspace: toml::Table = read("Cargo.toml").parse().unwrap();
    let profile = |name: &str| workspace["profile"][name].clone();
    let level = |table: &toml::Value| table.get("opt-level").and_then(toml::Value::as_integer);
    assert_eq!(level(&profile("dist")), Some(3));
    assert!(level(&profile("release")).is_some_and(|level| level < 3), "`dist` is for nothing then");
    let empty = toml::Table::new();
    let (release, dist) = (profile("release"), profile("dist"));
    let named =
        |of: &toml::Value| of.get("package").and_then(toml::Value::as_table).unwrap_or(&empty).clone();
    let (release, dist) = (named(&release), named(&dist));
    let slow = release.iter().filter(|(_, table)| level(table) != Some(3));
    let faults = slow.filter(|(package, _)| dist.get(*package).and_then(level) != Some(3));
    let fault = |(package, _)| {
        format!(
            "Cargo.toml: [profile.release.package.{package}] is below 3; say `opt-level = 3` for it in [profile.dist]"
        )
    };
    judge(faults.map(fault).collect());
}
