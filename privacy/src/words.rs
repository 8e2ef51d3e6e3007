//! Counts in sentences: one round, two rounds. Every message that counts something takes its words from here.

/// A number and what it counts, in the singular or plural: `1 round`, `3 rounds`, `2 entries`. What is counted is the last word of `one`.
pub fn counted(number: impl TryInto<u64>, one: &str) -> String {
    let number = whole(number);
    format!("{number} {}", plural(number, one))
}

/// The word for so many of it: `round` of 1, else `rounds`.
pub fn plural(number: impl TryInto<u64>, one: &str) -> String {
    if whole(number) == 1 {
        return one.to_owned();
    }
    let sibilant = ["s", "x", "z", "ch", "sh"].iter().any(|end| one.ends_with(end));
    match one.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{stem}ies"),
        _ if sibilant => format!("{one}es"),
        _ => format!("{one}s"),
    }
}

/// The verb for so many: `is` or `are`, `has` or `have`.
pub fn verb<'a>(number: impl TryInto<u64>, one: &'a str, many: &'a str) -> &'a str {
    if whole(number) == 1 { one } else { many }
}

/// Counts are `usize`, `u32` and `u64`, none of which is more.
fn whole(number: impl TryInto<u64>) -> u64 {
    number.try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular_and_every_other_number_plural() {
        let said = [0, 1, 2].map(|number| counted(number, "shared parameter"));
        assert_eq!(said, ["0 shared parameters", "1 shared parameter", "2 shared parameters"]);
        let words = ["entry", "day", "class", "box", "batch", "query"].map(|one| plural(2, one));
        assert_eq!(words, ["entries", "days", "classes", "boxes", "batches", "queries"]);
        assert_eq!((verb(1, "is", "are"), verb(0, "is", "are")), ("is", "are"));
    }
}
