//! The file that the run of an external model begins with: `model = { external = { start = "start.safetensors" } }`.

use std::path::Path;

use command::results::ModelFile;
use protocol::ModelSpec;
use server::Plan;
use server::net::InitialModel;

use super::failure::{Failure, Kind, OrFail};

/// A plan, and where its run begins when a file says that.
pub(super) struct Started {
    pub(super) plan: Plan,
    pub(super) start: Option<InitialModel>,
}

/// Reads the start file of a plan that stands in `file`: its path begins at that file's folder. Other plans stay as they are.
///
/// # Errors
/// [`Failure`] names the start file, and what is wrong with it.
pub(super) fn started(plan: Plan, file: &Path) -> Result<Started, Failure> {
    let ModelSpec::External(model) = &plan.spec.model else { return Ok(Started { plan, start: None }) };
    let path = file.parent().unwrap_or_else(|| Path::new("")).join(&model.start);
    let (about, shown) = (file.display(), path.display());
    if !path.exists() {
        let message = format!(
            "{about}: model.external.start: {shown}: there is no such file; it comes with the plan, and the script that trains writes it by \
             `consortia.save_initial(model, \"{shown}\")`"
        );
        return Err(Failure::new(Kind::Configuration, message));
    }
    let doing = || format!("{about}: model.external.start");
    let held = ModelFile::read(&path).or_fail(Kind::Configuration, doing())?;
    if let Some((name, value)) = held.not_finite() {
        let message = format!(
            "{}: {shown}: tensor `{name}` has the value {value}; a run begins with finite values",
            doing()
        );
        return Err(Failure::new(Kind::Configuration, message));
    }
    let (layout, shared) = held.into_shared().or_fail(Kind::Configuration, doing())?;
    let plan = plan.starting_with(&layout).or_fail(Kind::Configuration, format!("{about}: {shown}"))?;
    Ok(Started { plan, start: Some(InitialModel { layout, shared }) })
}
