//! What a plan says of records, looked at as a whole: columns that do not fit each other, values that could not travel.

use std::collections::BTreeSet;

use super::{ClassName, Missing, SpecError, Standardise, TableSpec, TensorSpec};

impl TensorSpec {
    pub(super) fn check(&self) -> Result<(), SpecError> {
        let key = "data.tensor.target";
        let is_number = |class: &&ClassName| matches!(class, ClassName::Number(_));
        if let Some(word) = self.target.classes().iter().find(|class| !is_number(class)) {
            let message =
                format!("`{word}` is not a whole number, and labels of arrays are numbers; list those");
            return Err(SpecError::new(key, message));
        }
        self.target.check(key)
    }
}

impl TableSpec {
    pub(super) fn check(&self) -> Result<(), SpecError> {
        self.target.check("data.table.target")?;
        if self.features.is_empty() && self.categorical.is_empty() {
            return Err(SpecError::new("data.table.features", "name at least one feature column"));
        }
        let named = self.features.iter().chain(self.categorical.iter().map(|one| &one.column));
        let mut before = BTreeSet::new();
        for name in named {
            if *name == self.label {
                return Err(SpecError::new("data.table.label", format!("`{name}` is also a feature")));
            }
            if !before.insert(name) {
                return Err(SpecError::new("data.table.features", format!("column `{name}` is named twice")));
            }
        }
        if let Some(empty) = self.categorical.iter().find(|one| one.values.is_empty()) {
            let message = format!("column `{}` lists no values; all sites must agree on them", empty.column);
            return Err(SpecError::new("data.table.categorical", message));
        }
        if let Missing::Constant(value) = self.missing
            && !value.is_finite()
        {
            let message = format!("{value} is not a finite number; it could not travel to the sites");
            return Err(SpecError::new("data.table.missing", message));
        }
        match &self.standardise {
            Standardise::Given { mean, .. } if mean.iter().any(|mean| !mean.is_finite()) => {
                let message = "a mean is not a finite number; it could not travel to the sites";
                Err(SpecError::new("data.table.standardise", message))
            }
            Standardise::Given { mean, std }
                if mean.len() != self.features.len() || std.len() != self.features.len() =>
            {
                let message = format!(
                    "{} means and {} deviations for {} features; give one of each a feature",
                    mean.len(),
                    std.len(),
                    self.features.len()
                );
                Err(SpecError::new("data.table.standardise", message))
            }
            _ => Ok(()),
        }
    }
}
