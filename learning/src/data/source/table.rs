//! A table as its people typed where it is, how its cells are written and which of its rows are for what.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::SourceError;

/// CSV files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CsvSource {
    /// The file of the training rows, or of all rows when `split_column` divides them.
    pub train: PathBuf,
    /// The file of the test rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<PathBuf>,
    /// Only rows that hold this value in this column are used, in either file.
    #[serde(default, rename = "where", skip_serializing_if = "BTreeMap::is_empty")]
    pub filter: BTreeMap<String, String>,
    /// A column that says `train`, `validation` or `test` for each row; another value is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split_column: Option<String>,
    /// The file of the validation rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<PathBuf>,
    /// The share of rows that is drawn for testing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_fraction: Option<Fraction>,
    /// The share of rows that is drawn for validation; of the training rows where a column or a file says what is for testing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_fraction: Option<Fraction>,
    /// Rows with the same value in this column are drawn together, such as the visits of one patient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_column: Option<String>,
    /// Another number draws other rows; 0 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split_seed: Option<u64>,
    /// What stands between cells; found in the header line by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<Separator>,
    /// What stands before the decimals of a number.
    #[serde(default, skip_serializing_if = "Decimal::is_point")]
    pub decimal: Decimal,
}

/// A share of rows: above 0 and below 1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Fraction(f64);

/// It is never NaN.
impl Eq for Fraction {}

impl Fraction {
    /// The number.
    pub fn value(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Fraction {
    type Error = SourceError;

    fn try_from(value: f64) -> Result<Self, SourceError> {
        if value > 0.0 && value < 1.0 {
            Ok(Self(value))
        } else {
            Err(SourceError::Fraction(value.to_string()))
        }
    }
}

impl From<Fraction> for f64 {
    fn from(fraction: Fraction) -> Self {
        fraction.0
    }
}

/// What stands between the cells of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Separator {
    /// `,`
    Comma,
    /// `;`
    Semicolon,
    /// A tab.
    Tab,
    /// `|`
    Pipe,
}

impl Separator {
    /// Every separator; the first are preferred where a header has as many of several.
    pub(in super::super) const ALL: [Self; 4] = [Self::Comma, Self::Semicolon, Self::Tab, Self::Pipe];

    /// The byte.
    pub fn byte(self) -> u8 {
        match self {
            Self::Comma => b',',
            Self::Semicolon => b';',
            Self::Tab => b'\t',
            Self::Pipe => b'|',
        }
    }

    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Comma => ",",
            Self::Semicolon => ";",
            Self::Tab => "tab",
            Self::Pipe => "|",
        }
    }
}

impl TryFrom<String> for Separator {
    type Error = SourceError;

    fn try_from(typed: String) -> Result<Self, SourceError> {
        let typed = if typed == "\t" { "tab".to_owned() } else { typed };
        let found = Self::ALL.into_iter().find(|one| one.name() == typed);
        found.ok_or(SourceError::Separator(typed))
    }
}

impl From<Separator> for String {
    fn from(separator: Separator) -> Self {
        separator.name().to_owned()
    }
}

/// What stands before the decimals of a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Decimal {
    /// `1.5`
    #[default]
    Point,
    /// `1,5`
    Comma,
}

impl Decimal {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_point(&self) -> bool {
        *self == Self::Point
    }
}

impl TryFrom<String> for Decimal {
    type Error = SourceError;

    fn try_from(typed: String) -> Result<Self, SourceError> {
        match typed.as_str() {
            "." => Ok(Self::Point),
            "," => Ok(Self::Comma),
            _ => Err(SourceError::Decimal(typed)),
        }
    }
}

impl From<Decimal> for String {
    fn from(decimal: Decimal) -> Self {
        match decimal {
            Decimal::Point => ".".to_owned(),
            Decimal::Comma => ",".to_owned(),
        }
    }
}

impl CsvSource {
    /// All rows of a file, to train on.
    pub fn new(train: impl Into<PathBuf>) -> Self {
        Self {
            train: train.into(),
            test: None,
            filter: BTreeMap::new(),
            split_column: None,
            validation: None,
            test_fraction: None,
            validation_fraction: None,
            group_column: None,
            split_seed: None,
            separator: None,
            decimal: Decimal::Point,
        }
    }

    /// Its files: of training rows, of validation rows and of test rows.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [Some(&self.train), self.validation.as_ref(), self.test.as_ref()].into_iter().flatten()
    }

    /// Whether the settings agree with each other.
    pub(super) fn check(&self) -> Result<(), SourceError> {
        let file = |path: &Option<PathBuf>| path.as_ref().map(|path| format!("\"{}\"", path.display()));
        let number = |fraction: Option<Fraction>| fraction.map(|fraction| fraction.value().to_string());
        let column = self.split_column.as_ref().map(|column| format!("\"{column}\""));
        let setting = |key: &'static str, value: Option<String>| Some(format!("{key} = {}", value?));
        let split = setting("split_column", column);
        let (test, tested) =
            (setting("test", file(&self.test)), setting("test_fraction", number(self.test_fraction)));
        let (valid, validated) = (
            setting("validation", file(&self.validation)),
            setting("validation_fraction", number(self.validation_fraction)),
        );
        let pairs = [
            (&split, &test, "testing"),
            (&split, &tested, "testing"),
            (&test, &tested, "testing"),
            (&split, &valid, "validation"),
            (&valid, &validated, "validation"),
        ];
        if let Some((one, other, purpose)) = pairs.iter().find_map(|(one, other, purpose)| {
            Some((one.as_ref()?.clone(), other.as_ref()?.clone(), *purpose))
        }) {
            return Err(SourceError::TwoWays { one, other, purpose });
        }
        let drawn = self.test_fraction.is_some() || self.validation_fraction.is_some();
        let idle = [("group_column", self.group_column.is_some()), ("split_seed", self.split_seed.is_some())];
        if let Some((key, _)) = idle.into_iter().find(|(_, given)| *given && !drawn) {
            return Err(SourceError::NothingDrawn(key));
        }
        match (self.test_fraction, self.validation_fraction) {
            (Some(test), Some(validation)) if test.value() + validation.value() >= 1.0 => {
                let (test, validation) = (test.value().to_string(), validation.value().to_string());
                Err(SourceError::NothingLeft { test, validation })
            }
            (_, _) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::SourceSpec;

    #[test]
    fn rows_are_drawn_by_shares_that_leave_some_to_train_on() {
        let refusal = |settings: &str| {
            let source = toml::from_str::<SourceSpec>(&format!("[csv]\ntrain = 'a.csv'\n{settings}"));
            source
                .map_err(|error| error.to_string())
                .and_then(|read| read.check().map_err(|error| error.to_string()))
        };
        for fine in ["test_fraction = 0.2", "validation_fraction = 0.5\ntest = 'b.csv'\ngroup_column = 'who'"]
        {
            refusal(fine).unwrap();
        }
        refusal(
            "test_fraction = 0.2\nvalidation_fraction = 0.1\nsplit_seed = 3\nseparator = ';'\ndecimal = ','",
        )
        .unwrap();
        for (settings, said) in [
            ("test_fraction = 0.5\nvalidation_fraction = 0.5", "together they must be below 1"),
            ("test_fraction = 1.0", "1 is no share of rows"),
            ("test_fraction = 0.0", "0 is no share of rows"),
            ("validation_fraction = nan", "NaN is no share of rows"),
            ("test_fraction = -0.2", "-0.2 is no share of rows"),
            ("test_fraction = 0.2\ntest = 'b.csv'", "`test = \"b.csv\"` and `test_fraction = 0.2` both say"),
            ("test_fraction = 0.2\nsplit_column = 's'", "both say which rows are for testing; remove one"),
            (
                "validation_fraction = 0.2\nvalidation = 'v.csv'",
                "both say which rows are for validation; remove one",
            ),
            ("group_column = 'who'", "`group_column` says how rows are drawn, and none are"),
            ("split_seed = 1\ntest = 'b.csv'", "`split_seed` says how rows are drawn, and none are"),
            ("separator = ':'", "`:` separates no cells"),
            ("decimal = ';'", "`;` stands before no decimals"),
        ] {
            let found = refusal(settings).unwrap_err();
            assert!(found.contains(said), "{settings}: {found}");
        }
    }
}
