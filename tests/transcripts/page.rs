//! A page of Markdown as something to type: its fenced blocks, and whether what came out is what stands there.
//!
//! It reads what the pages need and no more: fences of three backticks, `[..]` for what differs within a line, `...` for lines, numbers
//! with a point that are nearly right.

/// What a fenced block is for, by the words behind its backticks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind<'a> {
    /// `console`: typed, one command after the other.
    Typed,
    /// `console terminal`: each command goes on in a terminal of its own.
    Terminal,
    /// `console not-run="why"`.
    NotRun(&'a str),
    /// `toml file=NAME`: written down by the reader.
    File(&'a str),
    /// Anything else.
    Shown,
}

/// A fenced block: the line it begins at, what it is, its lines.
#[derive(Debug)]
pub(crate) struct Block<'a> {
    pub(crate) line: usize,
    pub(crate) kind: Kind<'a>,
    pub(crate) lines: Vec<&'a str>,
}

/// A command and what it prints.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Step<'a> {
    pub(crate) line: usize,
    pub(crate) command: String,
    pub(crate) output: Vec<&'a str>,
}

fn kind(words: &str) -> Kind<'_> {
    let (first, rest) = words.split_once(' ').unwrap_or((words, ""));
    match (first, rest.strip_prefix("not-run=\""), rest.strip_prefix("file=")) {
        ("console", Some(why), _) => Kind::NotRun(why.trim_end_matches('"')),
        ("console", None, _) if rest == "terminal" => Kind::Terminal,
        ("console", None, _) => Kind::Typed,
        (_, _, Some(name)) => Kind::File(name),
        (_, _, None) => Kind::Shown,
    }
}

pub(crate) fn blocks(page: &str) -> Vec<Block<'_>> {
    let mut found: Vec<Block<'_>> = Vec::new();
    let mut open = false;
    for (line, text) in (1..).zip(page.lines()) {
        match text.strip_prefix("```") {
            Some(words) if !open => {
                found.push(Block { line, kind: kind(words), lines: Vec::new() });
                open = true;
            }
            Some(_) => open = false,
            None if open => found.last_mut().expect("a fence was opened").lines.push(text),
            None => {}
        }
    }
    assert!(!open, "the last fence is not closed");
    found
}

impl<'a> Block<'a> {
    /// Its commands: lines that begin with `$ `, and lines with `> ` that go on after a backslash.
    pub(crate) fn steps(&self) -> Vec<Step<'a>> {
        let mut steps: Vec<Step<'a>> = Vec::new();
        for (line, text) in (self.line + 1..).zip(&self.lines) {
            if let Some(command) = text.strip_prefix("$ ") {
                steps.push(Step { line, command: command.to_owned(), output: Vec::new() });
                continue;
            }
            let step = steps.last_mut().unwrap_or_else(|| panic!("line {line}: `{text}` before any command"));
            match text.strip_prefix("> ") {
                Some(more) if step.output.is_empty() && step.command.ends_with('\\') => {
                    step.command = format!("{}\n{more}", step.command);
                }
                Some(_) | None => step.output.push(text),
            }
        }
        steps
    }
}

/// By how much a number with a point may differ: training rounds differently from one kind of processor to another.
const TOLERANCE: f64 = 0.03;

/// The number with a point that `text` begins with, and what follows it.
fn fraction(text: &str) -> Option<(f64, &str)> {
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (whole, rest) = text.split_at(digits(text));
    let rest = rest.strip_prefix('.')?;
    let (part, rest) = rest.split_at(digits(rest));
    let number = format!("{whole}.{part}").parse().ok();
    number
        .filter(|_| !whole.is_empty() && !part.is_empty() && !rest.starts_with("[..]"))
        .map(|number| (number, rest))
}

/// Whether `text` is `pattern`, in which `[..]` stands for anything.
fn is_line(pattern: &str, text: &str) -> bool {
    if let Some(later) = pattern.strip_prefix("[..]") {
        let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
        return ends.into_iter().any(|at| is_line(later, &text[at..]));
    }
    if let (Some((shown, later)), Some((said, rest))) = (fraction(pattern), fraction(text)) {
        return (shown - said).abs() <= TOLERANCE && is_line(later, rest);
    }
    let (mut shown, mut said) = (pattern.chars(), text.chars());
    match (shown.next(), said.next()) {
        (None, None) => true,
        (Some(one), Some(other)) => one == other && is_line(shown.as_str(), said.as_str()),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Whether `text` is what the page shows, line by line; a line `...` stands for any number of lines.
pub(crate) fn is_output(patterns: &[impl AsRef<str>], text: &[&str]) -> bool {
    let Some((pattern, later)) = patterns.split_first() else { return text.is_empty() };
    if pattern.as_ref() == "..." {
        return (0..=text.len()).any(|skipped| is_output(later, &text[skipped..]));
    }
    text.split_first().is_some_and(|(line, rest)| {
        is_line(pattern.as_ref().trim_end(), line.trim_end()) && is_output(later, rest)
    })
}

#[test]
fn blocks_and_commands_are_found_by_their_fences() {
    let page = "a\n```console\n$ one \\\n> two\nout\n$ three\n```\n```toml file=a/b.toml\nx = 1\n```\n\
        ```console not-run=\"takes an hour\"\n$ four\n```\n```console terminal\n$ five\n```\n```\nfree\n```\n";
    let blocks = blocks(page);
    let kinds: Vec<&Kind<'_>> = blocks.iter().map(|block| &block.kind).collect();
    let expected = [
        &Kind::Typed,
        &Kind::File("a/b.toml"),
        &Kind::NotRun("takes an hour"),
        &Kind::Terminal,
        &Kind::Shown,
    ];
    assert_eq!(kinds, expected);
    let steps = blocks[0].steps();
    assert_eq!((steps[0].command.as_str(), &steps[0].output), ("one \\\ntwo", &vec!["out"]));
    assert_eq!((steps[1].command.as_str(), steps[1].line), ("three", 6));
    assert_eq!(blocks[1].lines, ["x = 1"]);
}

#[test]
fn output_is_compared_line_by_line_but_for_what_differs() {
    assert!(is_output(&["a [..] c", "...", "end"], &["a b c", "x", "y", "end"]));
    assert!(is_output(&["0.8[..], [..] s"], &["0.812, 3 s"]));
    assert!(is_output(&["...", "end"], &["end"]));
    assert!(is_output(&["accuracy 0.799 of 254", "127.0.0.1:9"], &["accuracy 0.803 of 254", "127.0.0.1:9"]));
    assert!(!is_output(&["accuracy 0.799"], &["accuracy 0.759"]), "beyond rounding");
    for (pattern, text) in [("a [..] c", "a b d"), ("a", "a b"), ("a[..]b[..]c", "a c b"), ("", "a")] {
        assert!(!is_output(&[pattern], &[text]), "`{pattern}` is not `{text}`");
    }
    assert!(!is_output(&["a"], &["a", "b"]), "a line too many");
    assert!(!is_output(&["a", "b"], &["a"]), "a line too few");
}
