//! What a deserialiser says, in the words of somebody who edits a file: serde speaks of Rust's types, which nobody has typed.
//!
//! It changes messages of a form that serde documents ([`serde::de::Error`]) and leaves all others as they are.

/// A message of serde or toml, without Rust's names.
pub fn in_plain_words(message: &str) -> String {
    let message = message.trim().replace('\n', " ");
    // Of JSON the place stands behind.
    if let Some((said, place)) = message.rsplit_once(" at line ") {
        return format!("{} at line {place}", in_plain_words(said));
    }
    if let Some(rest) = message.strip_prefix("unknown variant ") {
        return format!("unknown value {rest}");
    }
    let keys = message
        .strip_prefix("unexpected keys in table: ")
        .and_then(|rest| rest.split_once(", available keys: "));
    if let Some((found, known)) = keys {
        return format!("unknown field `{found}`, expected `{}`", known.replace(", ", "`, `"));
    }
    if message == "wanted string or table" {
        return "a word in quotation marks or a table { ... } is expected here".to_owned();
    }
    let typed = ["invalid type: ", "invalid value: "].into_iter().find_map(|lead| message.strip_prefix(lead));
    if let Some((found, expected)) = typed.and_then(|rest| rest.rsplit_once(", expected ")) {
        return format!("{} is given where {} is expected", found_as(found), expected_as(expected));
    }
    let counted = message.strip_prefix("invalid length ").and_then(|rest| rest.split_once(", expected "));
    if let Some((found, expected)) = counted {
        return format!("{found} values are given where {} is expected", expected_as(expected));
    }
    message
}

/// Digits in a row beyond which a number has a power of ten instead: whole numbers of 64 bits have 20.
const DIGITS_MAX: usize = 21;

/// A message whose numbers can be read: `1e300`, and not a one with 300 zeros. Names in quotation marks stay as they are.
pub(crate) fn with_short_numbers(message: &str) -> String {
    let mut shown = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, number) = rest.split_at(start);
        let end = number.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number.len());
        let digits = number[..end].trim_end_matches('.');
        let is_name = before.ends_with(|c: char| c.is_alphanumeric() || "`\"'_".contains(c));
        shown.push_str(before);
        match digits.parse::<f64>() {
            Ok(value) if digits.len() > DIGITS_MAX && !is_name => shown.push_str(&format!("{value:e}")),
            _ => shown.push_str(digits),
        }
        rest = &number[digits.len()..];
    }
    shown.push_str(rest);
    shown
}

/// What stands in the file.
fn found_as(found: &str) -> String {
    let literal =
        ["integer ", "floating point ", "boolean "].into_iter().find_map(|kind| found.strip_prefix(kind));
    match (literal, found) {
        (Some(literal), _) => literal.to_owned(),
        (None, "map" | "struct variant" | "Map") => "a table".to_owned(),
        (None, "sequence" | "tuple variant") => "a list".to_owned(),
        (None, "unit variant" | "newtype variant" | "enum") => "a word alone".to_owned(),
        (None, "null" | "unit value" | "Option value") => "nothing".to_owned(),
        (None, other) => match other.strip_prefix("string ") {
            Some(text) => format!("the text {text}"),
            None => other.to_owned(),
        },
    }
}

/// What may stand there.
fn expected_as(expected: &str) -> String {
    let named =
        |kind: &str| expected.strip_prefix(kind).is_some_and(|rest| rest.starts_with(char::is_uppercase));
    match expected {
        "u8" => return "a whole number from 0 to 255".to_owned(),
        "u16" => return "a whole number from 0 to 65535".to_owned(),
        "u32" => return "a whole number from 0 to 4294967295".to_owned(),
        "u64" | "u128" | "usize" => return "a whole number of at least 0".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => return "a whole number".to_owned(),
        "f32" | "f64" => return "a number".to_owned(),
        "a boolean" | "bool" => return "true or false".to_owned(),
        "a string" | "str" | "a character" => return "text in quotation marks".to_owned(),
        "a sequence" => return "a list [ ... ]".to_owned(),
        "a map" | "map" | "struct variant" => return "a table { ... }".to_owned(),
        "unit" | "unit variant" => return "the word alone, without settings".to_owned(),
        _ => {}
    }
    // `a nonzero usize` and the like.
    if let Some(number) = expected.strip_prefix("a nonzero ") {
        return match number.starts_with('i') {
            true => "a whole number other than 0".to_owned(),
            false => "a whole number of at least 1".to_owned(),
        };
    }
    let size =
        expected.strip_prefix("a tuple of size ").or_else(|| expected.strip_prefix("an array of length "));
    if let Some(size) = size {
        return format!("a list of {size} values");
    }
    if ["struct ", "struct variant ", "internally tagged enum "].into_iter().any(named) {
        return "a table { ... } with its settings".to_owned();
    }
    if named("unit variant ") || named("unit struct ") {
        return "the word alone, without settings".to_owned();
    }
    if named("enum ") || named("adjacently tagged enum ") {
        return "a word in quotation marks or a table { ... }".to_owned();
    }
    if ["tuple struct ", "tuple variant ", "newtype struct ", "newtype variant "].into_iter().any(named) {
        return match expected.rsplit_once(" with ") {
            Some((_, elements)) => format!("a list of {}", elements.replace("element", "value")),
            None => "another value".to_owned(),
        };
    }
    expected.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_no_type_of_rust() {
        for (said, plain) in [
            (
                "invalid type: string \"x\", expected u32",
                "the text \"x\" is given where a whole number from 0 to 4294967295 is expected",
            ),
            (
                "invalid value: integer `-2`, expected usize",
                "`-2` is given where a whole number of at least 0 is expected",
            ),
            (
                "invalid type: map, expected a string",
                "a table is given where text in quotation marks is expected",
            ),
            ("invalid type: sequence, expected a boolean", "a list is given where true or false is expected"),
            (
                "invalid type: floating point `8.5`, expected usize",
                "`8.5` is given where a whole number of at least 0 is expected",
            ),
            (
                "invalid type: integer `1`, expected struct variant OptimizerSpec::Sgd",
                "`1` is given where a table { ... } with its settings is expected",
            ),
            (
                "invalid type: integer `3`, expected struct CentralConfig",
                "`3` is given where a table { ... } with its settings is expected",
            ),
            (
                "invalid type: unit variant, expected struct variant",
                "a word alone is given where a table { ... } is expected",
            ),
            (
                "invalid value: integer `0`, expected a nonzero u32",
                "`0` is given where a whole number of at least 1 is expected",
            ),
            (
                "invalid length 3, expected a tuple of size 2",
                "3 values are given where a list of 2 values is expected",
            ),
            ("unknown variant `a`, expected `b` or `c`", "unknown value `a`, expected `b` or `c`"),
            (
                "unexpected keys in table: share, available keys: fraction, least",
                "unknown field `share`, expected `fraction`, `least`",
            ),
            ("wanted string or table", "a word in quotation marks or a table { ... } is expected here"),
            (
                "invalid type: map, expected u32 at line 2 column 4",
                "a table is given where a whole number from 0 to 4294967295 is expected at line 2 column 4",
            ),
            // A text may hold what looks like the message's own parts.
            (
                "invalid type: string \"a, expected b\", expected f64",
                "the text \"a, expected b\" is given where a number is expected",
            ),
            // A type's own words are kept.
            (
                "invalid type: integer `3`, expected a word such as \"krum\"",
                "`3` is given where a word such as \"krum\" is expected",
            ),
            ("-1 is not a positive number", "-1 is not a positive number"),
        ] {
            assert_eq!(in_plain_words(said), plain);
        }
    }

    #[test]
    fn no_number_of_a_message_has_hundreds_of_digits() {
        let (large, small) = (format!("{}", 1e300), format!("{}", -2.5e-300));
        for (said, short) in [
            (format!("{large} is not above 0 and at most 1"), "1e300 is not above 0 and at most 1"),
            (format!("from 1 to 10.5, not {small}."), "from 1 to 10.5, not -2.5e-300."),
            (format!("{large} and {large}"), "1e300 and 1e300"),
            // Whole numbers, names and versions are as they were typed.
            (u64::MAX.to_string(), "18446744073709551615"),
            (
                "`1234567890123456789012345` is no column".to_owned(),
                "`1234567890123456789012345` is no column",
            ),
            ("client-1 of 3.4.5: 0.25, 1e9".to_owned(), "client-1 of 3.4.5: 0.25, 1e9"),
        ] {
            assert_eq!(with_short_numbers(&said), short);
        }
    }

    /// Every type that settings have, as serde itself complains of it.
    #[test]
    fn what_serde_says_of_every_plain_type_is_translated() {
        fn said<T: serde::de::DeserializeOwned>(text: &str) -> String {
            let error = toml::from_str::<std::collections::BTreeMap<String, T>>(text).err();
            in_plain_words(error.expect("the value is of another type").message())
        }
        let all = [
            said::<u8>("a = \"x\""),
            said::<u16>("a = -1"),
            said::<u32>("a = 1.5"),
            said::<u64>("a = []"),
            said::<usize>("a = {}"),
            said::<i32>("a = true"),
            said::<i64>("a = \"x\""),
            said::<f32>("a = {}"),
            said::<f64>("a = []"),
            said::<bool>("a = 1"),
            said::<String>("a = 1"),
            said::<Vec<u8>>("a = 1"),
            said::<[u8; 2]>("a = [1]"),
            said::<(u8, u8)>("a = 1"),
            said::<std::num::NonZeroU32>("a = 0"),
            said::<std::collections::BTreeMap<String, u8>>("a = 1"),
        ];
        let of_rust = [
            "usize",
            "u8",
            "u16",
            "u32",
            "u64",
            "i32",
            "i64",
            "f32",
            "f64",
            "invalid type",
            "map",
            "sequence",
            "boolean",
            "tuple",
            "struct",
        ];
        for said in all {
            let words: Vec<&str> = said.split(|c: char| !c.is_alphanumeric()).collect();
            assert!(!of_rust.iter().any(|name| words.contains(name)), "{said}");
            assert!(said.contains("expected"), "{said}");
        }
    }
}
