//! What is predicted, as a plan says it: a number of classes, the classes one by one, or a real number.
//!
//! The order of the classes is the plan's, never that of a site's records: every site gives a class the same number.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::SpecError;

/// What is predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Target {
    /// A class from 0 to `classes - 1`.
    Classes(usize),
    /// A real number.
    Real,
}

/// What is predicted and how records spell it: `{ classes = 2 }`, `{ classes = ["no", "yes"] }` or `"real"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "TypedTarget", into = "TypedTarget")]
pub struct TargetSpec {
    target: Target,
    classes: Vec<ClassName>,
}

/// A class as records spell it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged, expecting = "a class: a whole number, true, false or a word")]
pub enum ClassName {
    /// A whole number; a cell `2.0` is the class 2.
    Number(i64),
    /// True or false, whatever the case of its letters.
    Flag(bool),
    /// A word, to the letter.
    Word(String),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum TypedTarget {
    Classes(TypedClasses),
    Real,
}

#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "the number of classes, such as 2, or a list of the labels, such as [\"no\", \"yes\"] or [1, 2]"
)]
enum TypedClasses {
    Count(usize),
    Listed(Vec<ClassName>),
}

impl From<TypedTarget> for TargetSpec {
    fn from(typed: TypedTarget) -> Self {
        match typed {
            TypedTarget::Classes(TypedClasses::Count(count)) => Target::Classes(count).into(),
            TypedTarget::Classes(TypedClasses::Listed(classes)) => Self::listed(classes),
            TypedTarget::Real => Target::Real.into(),
        }
    }
}

impl From<TargetSpec> for TypedTarget {
    fn from(spec: TargetSpec) -> Self {
        match spec.target {
            Target::Classes(count) if spec.classes.is_empty() => Self::Classes(TypedClasses::Count(count)),
            Target::Classes(_) => Self::Classes(TypedClasses::Listed(spec.classes)),
            Target::Real => Self::Real,
        }
    }
}

/// Labels that are numbers: classes from 0, or real.
impl From<Target> for TargetSpec {
    fn from(target: Target) -> Self {
        Self { target, classes: Vec::new() }
    }
}

impl TargetSpec {
    /// Classes that records spell like this; the first is class 0.
    pub fn listed(classes: Vec<ClassName>) -> Self {
        Self { target: Target::Classes(classes.len()), classes }
    }

    /// What is predicted.
    pub fn target(&self) -> Target {
        self.target
    }

    /// The classes as records spell them, in order; empty where they are the numbers from 0, and for a real target.
    pub fn classes(&self) -> &[ClassName] {
        &self.classes
    }

    /// What each class is called, in order: as listed, or by its number. Empty for a real target.
    pub fn names(&self) -> Vec<String> {
        match self.target {
            Target::Classes(count) if self.classes.is_empty() => {
                (0..count).map(|class| class.to_string()).collect()
            }
            Target::Classes(_) => self.classes.iter().map(ToString::to_string).collect(),
            Target::Real => Vec::new(),
        }
    }

    /// Refuses classes that records could not tell apart.
    pub(super) fn check(&self, key: &str) -> Result<(), SpecError> {
        let mut before = BTreeSet::new();
        for class in &self.classes {
            if let ClassName::Word(word) = class
                && (word.is_empty() || word.trim() != word)
            {
                let message = format!(
                    "the class `{word}` is empty or has blanks at an end, which are cut off records' cells"
                );
                return Err(SpecError::new(key, message));
            }
            if !before.insert(class.meaning()) {
                let message =
                    format!("the class `{class}` is listed twice; records could not say which is meant");
                return Err(SpecError::new(key, message));
            }
        }
        Ok(())
    }
}

impl ClassName {
    /// The class that a cell with this text names, whatever its class is: `True` is `true`, `2.0` is 2, other text is itself.
    pub fn of_cell(cell: &str) -> Self {
        if let Some(flag) = flag_of(cell) {
            return Self::Flag(flag);
        }
        let whole = |value: &f64| value.fract() == 0.0 && value.abs() < 9e15;
        let number = cell.parse().ok().or_else(|| Some(cell.parse().ok().filter(whole)? as i64));
        number.map_or_else(|| Self::Word(cell.to_owned()), Self::Number)
    }

    /// The same class as a cell names it: a word that reads as a number or as true or false means that.
    pub fn meaning(&self) -> Self {
        match self {
            Self::Word(word) => Self::of_cell(word),
            Self::Number(_) | Self::Flag(_) => self.clone(),
        }
    }
}

/// `true` and `false`, whatever the case of their letters.
pub fn flag_of(cell: &str) -> Option<bool> {
    match cell {
        _ if cell.eq_ignore_ascii_case("true") => Some(true),
        _ if cell.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

impl fmt::Display for ClassName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Word(word) => f.write_str(word),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<TargetSpec, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_target_reads_as_it_was_written_and_a_count_stays_a_count() {
        for json in [
            r#"{"classes":2}"#,
            r#""real""#,
            r#"{"classes":["no","yes"]}"#,
            r#"{"classes":[-1,1]}"#,
            r#"{"classes":[false,true]}"#,
        ] {
            assert_eq!(serde_json::to_string(&read(json).unwrap()).unwrap(), json);
        }
        assert_eq!(read(r#"{"classes":["no","yes","unsure"]}"#).unwrap().target(), Target::Classes(3));
        assert_eq!(read(r#"{"classes":3}"#).unwrap().names(), ["0", "1", "2"]);
        assert_eq!(read(r#"{"classes":[1,"x"]}"#).unwrap().names(), ["1", "x"]);
        assert!(
            read(r#"{"classes":-2}"#).unwrap_err().contains("the number of classes, such as 2, or a list")
        );
    }

    #[test]
    fn a_cell_means_the_same_class_however_it_is_spelt() {
        for (cell, class) in [
            ("2", ClassName::Number(2)),
            ("2.0", ClassName::Number(2)),
            ("-1", ClassName::Number(-1)),
            ("-0", ClassName::Number(0)),
            ("TRUE", ClassName::Flag(true)),
            ("2.5", ClassName::Word("2.5".into())),
            ("Yes", ClassName::Word("Yes".into())),
        ] {
            assert_eq!(ClassName::of_cell(cell), class, "{cell}");
        }
    }

    #[test]
    fn classes_that_records_cannot_tell_apart_are_refused() {
        let word = |word: &str| ClassName::Word(word.to_owned());
        for twice in [
            vec![word("no"), word("no")],
            vec![word("1"), ClassName::Number(1)],
            vec![word("1.0"), word("1")],
            vec![word("True"), ClassName::Flag(true)],
        ] {
            let error = TargetSpec::listed(twice).check("target").unwrap_err();
            assert!(error.message.contains("listed twice"), "{error}");
        }
        for blank in ["", " no", "no "] {
            let error = TargetSpec::listed(vec![word(blank), word("yes")]).check("target").unwrap_err();
            assert!(error.message.contains("blanks"), "{error}");
        }
        TargetSpec::listed(vec![word("no"), word("No"), word("NO")]).check("target").unwrap();
    }
}
