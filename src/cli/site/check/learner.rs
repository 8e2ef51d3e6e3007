//! Whether the site's own program can be started, and whether its model is the plan's.

use privacy::counted;
use server::Plan;

use super::super::super::folder::SiteFile;
use super::super::super::learner::SiteLearner;
use super::Findings;

/// Starts the program where a plan with an external model is given, and compares tensors; it sees no task.
pub(super) fn look_at_learner(file: &SiteFile, plan: Option<&Plan>, findings: &mut Findings) {
    let external = plan.and_then(|plan| Some((plan, plan.spec.external()?)));
    let Some(settings) = &file.learner else {
        if external.is_some() {
            findings.fail(
                "learner",
                "the plan's model is external, and the site's file names no program for it: name one under [learner]",
            );
        }
        return;
    };
    let told = settings.told();
    let Some((plan, model)) = external else {
        return findings.ok("learner", format!("{told}; --plan with an external model starts it"));
    };
    if settings.attach {
        return findings.ok("learner", format!("{told}: not waited for here"));
    }
    let mut learner = match SiteLearner::of(file, "site") {
        Ok(learner) => learner,
        Err(failure) => return findings.fail("learner", failure.message()),
    };
    match learner.look(&plan.spec) {
        Ok(()) => {
            let tensors = counted(model.tensors.len(), "tensor");
            findings.ok(
                "learner for the plan",
                format!("{told} was started, and its model is the plan's: {tensors}"),
            );
        }
        Err(error) => findings.fail("learner for the plan", error.message),
    }
}
