//! Which modules of a folder stand on which: an order that is given, and no circle.
//!
//! What a file imports is read from the paths in its code that begin with `crate` or `super`, those of `use` and all others; in groups, in
//! modules within the file, and in tests alike.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::Source;

/// A folder of modules beside the file that lists them.
pub(crate) struct Folder {
    /// From the repository's root, without a slash behind it: the file that lists its modules is `<path>.rs`.
    pub(crate) path: &'static str,
}

/// A module of a folder names another one.
pub(crate) struct Arrow {
    pub(crate) from: String,
    /// What is named; `None` when that is no module of the folder, but something of the file that lists them.
    pub(crate) to: Option<String>,
    pub(crate) line: usize,
    /// Index into the sources.
    pub(crate) file: usize,
}

impl Folder {
    /// The module of this folder that a file belongs to, which may be one of its parts.
    pub(crate) fn module_of(&self, source: &Source) -> Option<String> {
        let within = source.path.strip_prefix(self.path)?.strip_prefix('/')?;
        let name = within.split('/').next()?;
        Some(name.strip_suffix(".rs").unwrap_or(name).to_owned())
    }

    /// The names of all modules.
    pub(crate) fn modules(&self, sources: &[Source]) -> BTreeSet<String> {
        sources.iter().filter_map(|source| self.module_of(source)).collect()
    }

    /// Everything that a module of the folder names in it, other than itself.
    pub(crate) fn arrows(&self, sources: &[Source]) -> Vec<Arrow> {
        let (_, own) = self.path.split_once("src/").unwrap_or(("", self.path));
        let own: Vec<&str> = own.split('/').collect();
        let modules = self.modules(sources);
        let mut found = Vec::new();
        for (file, source) in sources.iter().enumerate() {
            let Some(from) = self.module_of(source) else { continue };
            for (line, path) in paths_in(source) {
                let Some(within) = path.strip_prefix_of(&own) else { continue };
                let to = within.first().filter(|name| modules.contains(*name)).cloned();
                if to.as_ref() != Some(&from) {
                    found.push(Arrow { from: from.clone(), to, line, file });
                }
            }
        }
        found
    }

    /// What is wrong where each of `floors`, from the ground up, may name those before it alone.
    pub(crate) fn faults(&self, sources: &[Source], floors: &[&str]) -> Vec<String> {
        let floor = |name: &str| floors.iter().position(|floor| *floor == name);
        let missing = floors.iter().filter(|name| !self.modules(sources).contains(**name));
        let mut faults: Vec<String> = missing
            .map(|name| {
                format!("{}/{name}.rs: there is no such file; take it out of the list of floors", self.path)
            })
            .collect();
        for Arrow { from, to, line, file } in self.arrows(sources) {
            let Some(here) = floor(&from) else { continue };
            let what = match to {
                None => format!(
                    "`{from}` names what {}.rs holds, which is above it; name the file that has it",
                    self.path
                ),
                Some(to) if floor(&to).is_none_or(|there| there > here) => format!(
                    "`{to}` stands above `{from}`; move what is needed down, or let `{from}` say it in a message of its own"
                ),
                Some(_) => continue,
            };
            faults.push(sources[file].fault(line, &what));
        }
        faults
    }

    /// The arrows that are part of a circle.
    pub(crate) fn circles(&self, sources: &[Source]) -> Vec<Arrow> {
        let arrows = self.arrows(sources);
        let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for Arrow { from, to, .. } in &arrows {
            next.entry(from).or_default().extend(to.as_deref());
        }
        let reaches = |from: &str, to: &str| {
            let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
            while let Some(at) = open.pop() {
                if at == to {
                    return true;
                }
                if seen.insert(at) {
                    open.extend(next.get(at).into_iter().flatten());
                }
            }
            false
        };
        let in_circle: BTreeSet<usize> = (0..arrows.len())
            .filter(|at| arrows[*at].to.as_deref().is_some_and(|to| reaches(to, &arrows[*at].from)))
            .collect();
        let kept = arrows.into_iter().enumerate().filter(|(at, _)| in_circle.contains(at));
        kept.map(|(_, arrow)| arrow).collect()
    }
}

/// A path from the root of its crate.
#[derive(Debug, PartialEq, Eq)]
struct Path(Vec<String>);

impl Path {
    /// What is behind `own`, if the path begins with it.
    fn strip_prefix_of(&self, own: &[&str]) -> Option<&[String]> {
        let begins = self.0.len() >= own.len() && self.0.iter().zip(own).all(|(a, b)| a == b);
        begins.then(|| &self.0[own.len()..])
    }
}

/// Every path that begins with `crate` or `super`, with its line; those of a group apart.
fn paths_in(source: &Source) -> Vec<(usize, Path)> {
    let (_, file) = source.path.split_once("src/").unwrap_or(("", &source.path));
    let file = file.strip_suffix(".rs").unwrap_or(file);
    let mut module: Vec<String> = file.split('/').map(str::to_owned).collect();
    if ["lib", "main"].contains(&file) {
        module.clear();
    }
    let tokens = tokens(source);
    let (mut found, mut inner, mut depth) = (Vec::new(), Vec::new(), 0usize);
    let mut at = 0;
    while let Some((line, token)) = tokens.get(at) {
        let word = |ahead: usize| tokens.get(at + ahead).map(|(_, token)| token.as_str());
        match token.as_str() {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                if inner.last() == Some(&depth) {
                    inner.pop();
                    module.pop();
                }
            }
            "mod" if word(2) == Some("{") => {
                inner.push(depth);
                module.push(word(1).unwrap_or_default().to_owned());
            }
            // `pub(in path)` says who may see, and imports nothing.
            "in" if at > 0 && tokens[at - 1].1 == "(" => at += 1,
            "crate" | "super" if word(1) == Some("::") && (at == 0 || tokens[at - 1].1 != "::") => {
                let mut from = if token == "crate" { Vec::new() } else { module.clone() };
                if token == "super" {
                    from.pop();
                }
                let end = path_from(&tokens, at + 2, from, &mut |path| found.push((*line, Path(path))));
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Reads the rest of a path that goes on at `at`, which is a group or a name; the index behind it.
fn path_from(
    tokens: &[(usize, String)],
    mut at: usize,
    mut path: Vec<String>,
    found: &mut impl FnMut(Vec<String>),
) -> usize {
    let word = |at: usize| tokens.get(at).map_or("", |(_, token)| token.as_str());
    loop {
        match word(at) {
            "{" => {
                at += 1;
                while !["}", ""].contains(&word(at)) {
                    at = if word(at) == "," {
                        at + 1
                    } else {
                        path_from(tokens, at, path.clone(), found).max(at + 1)
                    };
                }
                return at + 1;
            }
            "super" => drop(path.pop()),
            "self" | "" => {}
            name => path.push(name.to_owned()),
        }
        at += 1;
        if word(at) != "::" || word(at + 1) == "<" {
            break;
        }
        at += 1;
    }
    found(path);
    // `as` another name: which one matters to nobody.
    if word(at) == "as" { at + 2 } else { at }
}

/// Names, `::` and single signs of the code, with their lines.
fn tokens(source: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(source.code()) {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let is_name = |c: char| c.is_alphanumeric() || c == '_';
            let len = match first {
                _ if rest.starts_with("::") => 2,
                _ if is_name(first) => rest.find(|c| !is_name(c)).unwrap_or(rest.len()),
                _ => first.len_utf8(),
            };
            found.push((number, rest[..len].to_owned()));
            rest = rest[len..].trim_start();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "use crate::net::{a::X, b::{self, Y as Z}, *};\nuse super::super::c::{D,};\nfn f() {\n    super::e::f::<u8>();\n    \
                        self::g();\n}\n// super::no\nmod tests {\n    use super::*;\n    use super::super::h;\n}\nuse super::i;\n\
                        pub(in crate::net::j) fn k() {}\n";

    #[test]
    fn every_path_is_found_with_its_line_from_the_root_of_the_crate() {
        let found = paths_in(&Source::new("server/src/net/store/x.rs", FILE));
        let found: Vec<(usize, String)> =
            found.into_iter().map(|(line, Path(path))| (line, path.join("::"))).collect();
        let expected = [
            (1, "net::a::X"),
            (1, "net::b"),
            (1, "net::b::Y"),
            (1, "net::*"),
            (2, "net::c::D"),
            (4, "net::store::e::f"),
            (9, "net::store::x::*"),
            (10, "net::store::h"),
            (12, "net::store::i"),
        ];
        assert_eq!(found, expected.map(|(line, path)| (line, path.to_owned())));
    }

    #[test]
    fn a_circle_is_found_however_long_and_a_chain_is_none() {
        let file = |name: &str, text: &str| Source::new(&format!("src/cli/{name}.rs"), text);
        let folder = Folder { path: "src/cli" };
        let mut sources = vec![
            file("a", "use super::b::X;\n"),
            file("b", "use super::c;\n"),
            file("c", "\n"),
            file("d", "use super::a;\n"),
        ];
        assert!(folder.circles(&sources).is_empty());
        sources.push(file("c/part", "use crate::cli::a::Y;\n"));
        let circle = folder.circles(&sources);
        let named: Vec<(&str, Option<&str>)> =
            circle.iter().map(|arrow| (arrow.from.as_str(), arrow.to.as_deref())).collect();
        assert_eq!(named, [("a", Some("b")), ("b", Some("c")), ("c", Some("a"))]);
    }
}
