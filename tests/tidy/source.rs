//! One Rust file as lines to be judged: text, and the same text with comments and strings blanked.
//!
//! It is no parser. It knows comments, strings, characters and braces, which is all that the rules ask about.

/// A file and what is known of it.
pub(crate) struct Source {
    /// From the repository's root.
    pub(crate) path: String,
    /// As it is.
    pub(crate) text: String,
    /// Whether all of it is for tests, examples or benches.
    pub(crate) is_test: bool,
    /// The lines, with comments and the insides of strings blanked.
    code: Vec<String>,
    /// The first line of the module of tests at the end, if there is one.
    tests_from: usize,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let code: Vec<String> = blank(text).lines().map(str::to_owned).collect();
        let inline =
            |at: &usize| code.get(at + 1).is_some_and(|next| next.contains("mod ") && next.ends_with('{'));
        let attributes = (0..code.len()).filter(|at| code[*at].trim() == "#[cfg(test)]");
        let tests_from = attributes.filter(inline).map(|at| at + 1).next().unwrap_or(usize::MAX);
        let parts: Vec<&str> = path.split('/').collect();
        let is_test = parts.iter().any(|part| ["tests", "tests.rs", "examples", "benches"].contains(part));
        Self { path: path.to_owned(), text: text.to_owned(), is_test, code, tests_from }
    }

    /// Whether it lies in this folder.
    pub(crate) fn is_in(&self, folder: &str) -> bool {
        self.path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
    }

    /// Whether this line belongs to the module of tests at the file's end.
    pub(crate) fn is_tested(&self, line: usize) -> bool {
        line >= self.tests_from
    }

    /// The lines, with comments and the insides of strings blanked.
    pub(crate) fn code(&self) -> &[String] {
        &self.code
    }

    /// Numbers of the lines whose code holds `word`, not as the end of a longer name.
    pub(crate) fn lines_with(&self, word: &str) -> Vec<usize> {
        let holds = |line: &String| {
            line.match_indices(word).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                !word.starts_with(is_letter) || !before.is_some_and(is_letter)
            })
        };
        (1..).zip(&self.code).filter(|(_, line)| holds(line)).map(|(number, _)| number).collect()
    }

    /// Every function with a body: its first line, its name, its lines.
    pub(crate) fn functions(&self) -> Vec<(usize, String, usize)> {
        let mut found = Vec::new();
        for (start, line) in self.code.iter().enumerate() {
            let Some((before, after)) = line.split_once("fn ") else { continue };
            let name: String = after.chars().take_while(|c| is_letter(*c)).collect();
            if name.is_empty() || before.chars().next_back().is_some_and(is_letter) {
                continue;
            }
            if let Some(end) = self.end_of_body(start) {
                found.push((start + 1, name, end - start + 1));
            }
        }
        found
    }

    /// The line on which the function that begins on line `start` (from 0) ends; none for a signature alone.
    fn end_of_body(&self, start: usize) -> Option<usize> {
        let (mut depth, mut brackets) = (0usize, 0usize);
        for (number, line) in self.code.iter().enumerate().skip(start) {
            let from = if number == start { line.find("fn ").unwrap_or(0) } else { 0 };
            for c in line[from..].chars() {
                match c {
                    '(' | '[' => brackets += 1,
                    ')' | ']' => brackets = brackets.saturating_sub(1),
                    ';' if depth == 0 && brackets == 0 => return None,
                    '{' => depth += 1,
                    '}' if depth <= 1 => return Some(number),
                    '}' => depth -= 1,
                    _ => {}
                }
            }
        }
        None
    }

    /// `file:line: what`.
    pub(crate) fn fault(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

/// Whether `text` holds `word` and not as a part of a longer one.
pub(crate) fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_letter) && !after.is_some_and(is_letter)
    })
}

fn is_letter(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The same text, lines kept, with spaces for comments and for what stands in quotes.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let end = skipped(rest, out.chars().next_back());
        if let Some(end) = end {
            out.extend(rest[..end].chars().map(|c| if c == '\n' { c } else { ' ' }));
            rest = &rest[end..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

/// Bytes of the comment, string or character that `rest` begins with, if it begins with one.
fn skipped(rest: &str, before: Option<char>) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(rest.find("*/").map_or(rest.len(), |at| at + 2));
    }
    let in_word = before.is_some_and(is_letter) && before != Some('b');
    if !in_word && (rest.starts_with("r\"") || rest.starts_with("r#")) {
        let hashes = rest[1..].chars().take_while(|c| *c == '#').count();
        if !rest[1 + hashes..].starts_with('"') {
            return None;
        }
        let close = format!("\"{}", "#".repeat(hashes));
        let body = &rest[2 + hashes..];
        return Some(body.find(&close).map_or(rest.len(), |at| 2 + hashes + at + close.len()));
    }
    if rest.starts_with('"') {
        return Some(quoted(rest, '"'));
    }
    let mut chars = rest.chars();
    if chars.next() == Some('\'') {
        // A character, not a lifetime: escaped, or closed right behind one character.
        let (inside, behind) = (chars.next(), chars.next());
        if inside == Some('\\') || behind == Some('\'') {
            return Some(quoted(rest, '\''));
        }
    }
    None
}

/// Bytes up to and with the closing quote.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "//! A file.\nfn one(a: [u8; 2]) -> char {\n    let x = \"}\"; // }\n    '}'\n}\n\
        trait T { fn two(&self); }\nfn three<'a>(x: &'a str) {\n    x.unwrap();\n}\n\
        #[cfg(test)]\nmod tests {\n    fn four() { r#\" \" { \"#; y.unwrap() }\n}\n";

    #[test]
    fn functions_are_found_with_their_lengths_whatever_strings_hold() {
        let found = Source::new("a/src/b.rs", FILE).functions();
        let expected = [(2, "one", 4), (7, "three", 3), (12, "four", 1)];
        assert_eq!(found, expected.map(|(line, name, length)| (line, name.to_owned(), length)));
    }

    #[test]
    fn words_are_found_in_code_and_tests_are_told_apart() {
        let source = Source::new("a/src/b.rs", FILE);
        assert_eq!(source.lines_with(".unwrap()"), [8, 12]);
        assert!(!source.is_tested(8) && source.is_tested(12) && !source.is_test);
        assert!(source.lines_with("file").is_empty() && source.lines_with("hree").is_empty());
        assert!(Source::new("a/tests/b.rs", FILE).is_test && source.is_in("a") && !source.is_in("a/s"));
        assert!(has_word("enum Run {", "Run") && !has_word("Runs", "Run"));
    }
}
