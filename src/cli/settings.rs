//! What a file of settings is for, and the plan in it.

use std::path::Path;

use learning::CsvSource;
use server::Plan;

use super::columns::read_plan_text;
use super::failure::{Failure, Kind, OrFail};
use super::plans::plan_of;
use super::start::started;

/// What a file is for, by the settings only it has.
pub(super) enum FileKind {
    Federation,
    Simulation,
    Site,
    Policy,
    Server,
}

/// Rules of a policy, by names that no other file has.
const RULES: [&str; 5] = ["tasks", "models", "parameters_max", "rounds_per_day", "separation_min_seconds"];

impl FileKind {
    pub(super) fn of(table: &toml::Table, path: &Path) -> Self {
        // A fresh policy holds nothing but comments.
        let is_fresh_policy = table.is_empty() && path.file_name().is_some_and(|name| name == "policy.toml");
        if table.contains_key("simulation") {
            Self::Simulation
        } else if table.contains_key("identity") || table.contains_key("server") {
            Self::Site
        } else if table.contains_key("listen") {
            Self::Server
        } else if is_fresh_policy || RULES.iter().any(|rule| table.contains_key(*rule)) {
            Self::Policy
        } else {
            Self::Federation
        }
    }
}

/// A plan and what kind of file it stood in.
pub(super) struct PlanFile {
    pub(super) plan: Plan,
    pub(super) is_simulation: bool,
}

/// Reads a federation or simulation file.
///
/// `table` is the records beside which it is read: columns that the plan does not list are theirs.
pub(super) fn read_plan(file: &Path, table: Option<&CsvSource>) -> Result<PlanFile, Failure> {
    let path = file.display().to_string();
    let text = read_plan_text(file, table)?;
    let table: toml::Table = server::read_toml(&text).or_fail(Kind::Configuration, &path)?;
    let is_simulation = match FileKind::of(&table, file) {
        FileKind::Federation => false,
        FileKind::Simulation => true,
        FileKind::Site | FileKind::Policy | FileKind::Server => {
            let message = format!("{path}: this file has no plan; give a federation or simulation file");
            return Err(Failure::new(Kind::Configuration, message));
        }
    };
    let plan = plan_of(&text).or_fail(Kind::Configuration, &path)?;
    Ok(PlanFile { plan: started(plan, file)?.plan, is_simulation })
}
