//! From what records call a class to its number in the plan's order.

use std::collections::BTreeMap;

use protocol::{ClassName, Target, TargetSpec};

/// How many classes a message lists.
const LISTED: usize = 12;

/// The classes of a plan, to be looked up.
#[derive(Clone, Debug)]
pub(super) struct Classes {
    count: usize,
    /// Empty where the classes are the numbers from 0.
    by_name: BTreeMap<ClassName, u32>,
}

impl Classes {
    /// The classes of `spec`; none for a real target.
    pub(super) fn of(spec: &TargetSpec) -> Self {
        let count = match spec.target() {
            Target::Classes(count) => count,
            Target::Real => 0,
        };
        Self { count, by_name: spec.classes().iter().map(ClassName::meaning).zip(0..).collect() }
    }

    /// The class that a cell names. Where the classes are 0 and 1, false and true name them, too.
    pub(super) fn of_cell(&self, cell: &str) -> Option<u32> {
        let named = ClassName::of_cell(cell);
        if !self.by_name.is_empty() {
            return self.by_name.get(&named).copied();
        }
        match named {
            ClassName::Number(number) => {
                u32::try_from(number).ok().filter(|class| (*class as usize) < self.count)
            }
            ClassName::Flag(flag) => (self.count == 2).then_some(u32::from(flag)),
            ClassName::Word(_) => None,
        }
    }

    /// The class that a number names, if it is a whole one.
    pub(super) fn of_number(&self, value: f64) -> Option<u32> {
        // Beyond 2^53 neighbouring whole numbers are one f64.
        let whole = (value.fract() == 0.0 && value.abs() < 9e15).then_some(value as i64)?;
        if self.by_name.is_empty() {
            return u32::try_from(whole).ok().filter(|class| (*class as usize) < self.count);
        }
        self.by_name.get(&ClassName::Number(whole)).copied()
    }

    /// Whether the plan lists this cell as a class, so that it is no missing one.
    pub(super) fn lists(&self, cell: &str) -> bool {
        !self.by_name.is_empty() && self.by_name.contains_key(&ClassName::of_cell(cell))
    }

    /// The classes, for messages: `0 to 1`, or the first of those that the plan lists.
    pub(super) fn listed(&self) -> String {
        if self.by_name.is_empty() {
            return format!("0 to {}", self.count.saturating_sub(1));
        }
        let mut names: Vec<(&u32, &ClassName)> =
            self.by_name.iter().map(|(name, class)| (class, name)).collect();
        names.sort_unstable_by_key(|(class, _)| **class);
        let more = if names.len() > LISTED { ", ..." } else { "" };
        let listed: Vec<String> = names.iter().take(LISTED).map(|(_, name)| format!("`{name}`")).collect();
        format!("{}{more}", listed.join(", "))
    }

    /// What a label may be, for messages.
    pub(super) fn wanted(&self) -> String {
        let what = if self.by_name.is_empty() { "a class from" } else { "one of the classes" };
        format!("{what} {}", self.listed())
    }

    /// Whether the classes are the numbers from 0.
    pub(super) fn are_counted(&self) -> bool {
        self.by_name.is_empty()
    }
}
