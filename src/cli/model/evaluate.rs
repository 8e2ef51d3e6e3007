//! `consortia model evaluate`: how good a model is on records that are here. Nothing leaves the machine, and no server is asked.
//!
//! A plan that chooses its best model by validation records leaves the test records for this: for once, at the end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use command::results::Held;
use learning::device::select;
use learning::{FileSource, Models, SourceSpec, Trainer};
use privacy::accounting::Figure;
use protocol::{EvaluateOrder, EvaluationRecords, LearnError, Learner, Metrics, RunId, Spec, Stop};
use serde_json::json;
use simulations::DatasetConfig;

use super::super::columns::read_plan_text;
use super::super::failure::{Failure, Kind, OrFail};
use super::super::folder::SiteFile;
use super::super::global::Global;
use super::super::learner::SiteLearner;
use super::super::plans::scenario_of;
use super::super::settings::read_plan;
use super::{agree, joined, personal_of};

#[derive(Debug, Args)]
pub(in crate::cli) struct EvaluateArgs {
    /// A `model.safetensors`.
    model: PathBuf,
    /// The plan it was trained by: a federation or simulation file.
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,
    /// A `site.toml`: its records, and the personal layers that it keeps. Without it, the records of the plan's `[simulation]`.
    #[arg(long, value_name = "FILE")]
    site: Option<PathBuf>,
    /// The run whose personal layers are added; needed only if the site keeps those of several runs.
    #[arg(long, requires = "site")]
    run: Option<RunId>,
    /// On which of the records.
    #[arg(long, value_enum, default_value_t = On::Test)]
    on: On,
}

/// Records that are not trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum On {
    /// Those for testing.
    Test,
    /// Those for validation.
    Validation,
}

impl On {
    fn records(self) -> EvaluationRecords {
        match self {
            Self::Test => EvaluationRecords::Test,
            Self::Validation => EvaluationRecords::Validation,
        }
    }
}

pub(in crate::cli) fn evaluate(args: &EvaluateArgs, global: &Global) -> Result<(), Failure> {
    let site = args.site.as_deref().map(SiteFile::read).transpose()?;
    let table = site.as_ref().and_then(|site| site.data.as_ref()?.table());
    let plan = read_plan(&args.plan, table)?.plan;
    let mut own = site.as_ref().map(|site| SiteLearner::of(site, "site")).transpose()?;
    let layout = match (&mut own, plan.spec.external()) {
        // Which of its tensors stay at the site, a script alone says.
        (Some(own), Some(_)) => {
            own.look(&plan.spec).map_err(|error| Failure::new(Kind::Configuration, error.message))?;
            own.layout().clone()
        }
        _ => Models::new().layout_of(&plan.spec).or_fail(Kind::Configuration, args.plan.display())?,
    };
    let file = super::read_model(&args.model)?;
    let sha256 = file.sha256(Some(&layout)).or_fail(Kind::Configuration, "")?;
    agree(&args.model, &file, &sha256, true)?;
    let held = match (file.fitted(&layout).or_fail(Kind::Configuration, "")?, &args.site) {
        (held @ Held::Shared(_), Some(site)) => joined(held, &layout, &personal_of(site, args.run)?, site)?,
        (Held::Shared(_), None) => {
            let message = "the plan keeps some layers at the sites: --site names one that has them";
            return Err(Failure::new(Kind::Configuration, format!("{}: {message}", args.model.display())));
        }
        (held @ Held::Whole(_), _) => held,
    };
    let mut learner: Box<dyn Learner> = match own {
        Some(own) => Box::new(own),
        None => {
            let device = select("auto").or_fail(Kind::Configuration, "device")?;
            Box::new(Trainer::new(Box::new(FileSource::new(simulated(&args.plan)?)), device))
        }
    };
    let spec = Spec { evaluation_records: args.on.records(), ..(*plan.spec).clone() };
    let standardiser = file.standardiser().cloned().map(Arc::new);
    let metrics = measure(&mut *learner, spec, held.values(), EvaluateOrder { standardiser })
        .map_err(|error| Failure::new(Kind::Configuration, error.message))?;
    let (what, Metrics { loss, accuracy, examples, .. }) = (args.on.records().name(), metrics);
    if examples == 0 {
        let message = format!("there are no {what} records to evaluate on");
        return Err(Failure::new(Kind::Configuration, message));
    }
    let shown = accuracy.map_or_else(String::new, |share| format!(", accuracy {:.1} %", 100.0 * share));
    global.format.say(
        || format!("on {examples} {what} records: loss {:.4}{shown}", Figure(loss)),
        || {
            json!({ "records": what, "examples": examples, "loss": loss, "accuracy": accuracy,
                    "model_sha256": sha256 })
        },
    );
    Ok(())
}

fn measure(
    learner: &mut dyn Learner,
    spec: Spec,
    model: &[f32],
    order: EvaluateOrder,
) -> Result<Metrics, LearnError> {
    learner.prepare(&Arc::new(spec))?;
    learner.evaluate(model, &order, &Stop::default())
}

/// The records of a plan's simulation, all clients' together.
fn simulated(plan: &Path) -> Result<SourceSpec, Failure> {
    let shown = plan.display();
    let text = read_plan_text(plan, None)?;
    let no_files = || {
        let message = format!("{shown}: it names no files of records; give a site's with --site site.toml");
        Failure::new(Kind::Configuration, message)
    };
    if !toml::from_str::<toml::Table>(&text).is_ok_and(|plan| plan.contains_key("simulation")) {
        return Err(no_files());
    }
    let base = plan.parent().map(Path::to_path_buf).unwrap_or_default();
    let scenario = scenario_of(&text, &base, &|name: &str| std::env::var(name).ok());
    match scenario.or_fail(Kind::Configuration, &shown)?.simulation.dataset {
        Some(DatasetConfig::Files(source)) => Ok(source),
        Some(DatasetConfig::Synthetic(_)) | None => Err(no_files()),
    }
}
