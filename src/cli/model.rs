//! `consortia model`: a trained model as a file for other programs, and what a model's file holds.
//!
//! An export is of the plan's model and no other: names, shapes and fingerprint are checked before anything is written, and what
//! is written appears whole. What the file needs and does not have is said, not guessed.

mod evaluate;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use command::results::{Existing, Held, ModelFile, Notes, write_tensors, write_whole};
use learning::onnx::{Export, Inputs, OPSET, columns, export as onnx};
use learning::{Models, layout_of};
use privacy::counted;
use protocol::{DataSpec, Layout, Placement, RunId, Spec, Standardise, Standardiser, Target, Tensor};
use serde_json::json;
use server::PrivacyStatement;

use super::failure::{Failure, Kind, OrFail};
use super::folder::SiteFile;
use super::global::Global;
use super::kinds::{FileKind, or_what_it_is};
use super::output::table;
use super::settings::read_plan;
use super::site::read_personal;
use super::statement::read_statement;

pub(super) use evaluate::{EvaluateArgs, evaluate};

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// A `model.safetensors`, as written by `simulate`, `demo`, `run pull` and `server export`.
    model: PathBuf,
    /// The plan it was trained by: a federation or simulation file.
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// The file format; by default given by the file's extension.
    #[arg(long = "as", value_enum, value_name = "FORM")]
    form: Option<Form>,
    /// What an ONNX file takes.
    #[arg(long, value_enum, default_value_t = Input::Raw)]
    input: Input,
    /// A `site.toml`: add the personal layers of this site, if the plan has any.
    #[arg(long, value_name = "FILE")]
    site: Option<PathBuf>,
    /// The run whose personal layers are added; needed only if the site keeps those of several runs.
    #[arg(long, requires = "site")]
    run: Option<RunId>,
    /// Overwrite an existing file.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// A `model.safetensors`.
    file: PathBuf,
    /// A `privacy_statement.json` that should be about this model.
    #[arg(long, value_name = "FILE")]
    statement: Option<PathBuf>,
    /// The plan it was trained by, where it should be this plan's model.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
}

/// The forms in which a model leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A graph with its parameters, which ONNX Runtime and others run.
    Onnx,
    /// The tensors by name.
    Safetensors,
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Self::Onnx => "onnx",
            Self::Safetensors => "safetensors",
        }
    }
}

/// What an ONNX file takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Input {
    /// Records as they are: the file divides, fills and standardises as the plan says.
    Raw,
    /// Records that were prepared as the plan says.
    Prepared,
}

/// Reads a model.
fn read_model(path: &Path) -> Result<ModelFile, Failure> {
    let what =
        |failure| or_what_it_is(path, &[FileKind::Model], "a model in the form of safetensors", failure);
    ModelFile::read(path).or_fail(Kind::Configuration, "").map_err(what)
}

pub(super) fn export(args: &ExportArgs, global: &Global) -> Result<(), Failure> {
    let form = args.form()?;
    let plan = read_plan(&args.plan, None)?.plan;
    let layout = Models::new().layout_of(&plan.spec).or_fail(Kind::Configuration, args.plan.display())?;
    let file = read_model(&args.model)?;
    let held = file.fitted(&layout).or_fail(Kind::Configuration, "")?;
    let sha256 = file.sha256(Some(&layout)).or_fail(Kind::Configuration, "")?;
    agree(&args.model, &file, &sha256, true)?;
    let held = match &args.site {
        Some(site) => joined(held, &layout, &personal_of(site, args.run)?, site)?,
        None => held,
    };
    let model = Leaving { name: &plan.name, spec: &plan.spec, layout: &layout, file: &file, held: &held };
    let existing = if args.force { Existing::Replaced } else { Existing::Kept };
    if existing == Existing::Kept && args.to.exists() {
        let message = format!("{}: the file exists; give --force to replace it", args.to.display());
        return Err(Failure::new(Kind::Configuration, message));
    }
    let written = match form {
        Form::Onnx => {
            let bytes = model.onnx(args.input).or_fail(Kind::Configuration, args.model.display())?;
            write_whole(&args.to, existing, |partial| std::fs::write(partial, bytes))
        }
        Form::Safetensors => model.safetensors(&args.to, existing),
    };
    written.or_fail(Kind::Run, args.to.display())?;
    let missing = model.lacks_standardiser();
    if global.quiet == 0 {
        model.missing().iter().for_each(|note| super::output::tell(format_args!("note: {note}")));
    }
    let (parameters, to) = (held.values().len(), args.to.display());
    global.format.say(
        || {
            let form = match form {
                Form::Onnx => format!("onnx, opset {OPSET}"),
                Form::Safetensors => "safetensors".to_owned(),
            };
            format!("{to}: {form}, {} of sha256 {sha256}", counted(parameters, "parameter"))
        },
        || {
            json!({ "model": args.to, "as": form.name(), "parameters": parameters, "model_sha256": sha256,
                    "standardiser_missing": missing })
        },
    );
    Ok(())
}

/// What a site keeps for itself of a run.
fn personal_of(site: &Path, run: Option<RunId>) -> Result<Vec<f32>, Failure> {
    let kept = SiteFile::read(site)?.state.join("personal.json");
    let refuse =
        |message: String| Err(Failure::new(Kind::Configuration, format!("{}: {message}", kept.display())));
    let Some(personal) = read_personal(&kept)? else {
        return refuse("this site keeps no personal layers; leave out --site".to_owned());
    };
    let runs: Vec<RunId> = personal.runs().collect();
    let run = match (run, &runs[..]) {
        (Some(run), _) => run,
        (None, [only]) => *only,
        (None, several) => {
            let names: Vec<String> = several.iter().map(RunId::to_string).collect();
            return refuse(format!(
                "it has {} runs; choose one with --run: {}",
                several.len(),
                names.join(", ")
            ));
        }
    };
    match personal.values(run) {
        Some(values) => Ok(values.to_vec()),
        None => {
            refuse(format!("it has no run {run}; leave out --run, or name one that this site has trained in"))
        }
    }
}

/// The shared part of a model and a site's own.
fn joined(held: Held, layout: &Layout, personal: &[f32], site: &Path) -> Result<Held, Failure> {
    let refuse =
        |message: &str| Err(Failure::new(Kind::Configuration, format!("{}: {message}", site.display())));
    let Held::Shared(shared) = held else {
        return refuse("the model has no personal layers; leave out --site");
    };
    let needed = layout.len() - layout.shared_len();
    if personal.len() != needed {
        let found = personal.len();
        return refuse(&format!(
            "the site keeps {} where the plan has {needed}; give the plan and the run that they are of",
            counted(found, "personal parameter")
        ));
    }
    let (mut full, mut rest) = (vec![0.0; layout.len()], personal);
    layout.scatter_shared(&shared, &mut full);
    for tensor in layout.tensors().iter().filter(|tensor| tensor.placement == Placement::Site) {
        let (values, after) = rest.split_at(tensor.len());
        full[tensor.range()].copy_from_slice(values);
        rest = after;
    }
    Ok(Held::Whole(full))
}

impl ExportArgs {
    /// The form that was asked for, or that the name of the file says.
    fn form(&self) -> Result<Form, Failure> {
        let ending = self.to.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        let of_name = match ending.as_deref() {
            Some("onnx") => Some(Form::Onnx),
            Some("safetensors") => Some(Form::Safetensors),
            Some(_) | None => None,
        };
        self.form.or(of_name).ok_or_else(|| {
            let message = format!(
                "{}: the name ends in neither .onnx nor .safetensors; say the form with --as onnx or --as safetensors",
                self.to.display()
            );
            Failure::new(Kind::Configuration, message)
        })
    }
}

/// A plan's model on its way out.
struct Leaving<'a> {
    name: &'a str,
    spec: &'a Spec,
    layout: &'a Layout,
    file: &'a ModelFile,
    held: &'a Held,
}

impl Leaving<'_> {
    fn onnx(&self, input: Input) -> Result<Vec<u8>, learning::onnx::OnnxError> {
        let inputs = match input {
            Input::Raw => Inputs::Raw { standardiser: self.file.standardiser() },
            Input::Prepared => Inputs::Prepared,
        };
        onnx(Export { name: self.name, spec: self.spec, parameters: self.held.values(), inputs })
    }

    fn safetensors(&self, to: &Path, existing: Existing) -> std::io::Result<()> {
        let tensors: Vec<&Tensor> = match self.held {
            Held::Whole(_) => self.layout.tensors().iter().collect(),
            Held::Shared(_) => self.layout.shared().collect(),
        };
        let given = given(self.spec);
        let standardiser = self.file.standardiser().or(given.as_ref());
        write_tensors(to, &tensors, self.held.values(), standardiser, &self.notes(), existing)
    }

    /// What the plan knows of the model, under the keys of an ONNX file.
    fn notes(&self) -> Notes {
        let mut notes = Notes::from([("plan".to_owned(), self.name.to_owned())]);
        match &self.spec.data {
            DataSpec::Table(table) => {
                notes.insert("columns".to_owned(), json!(columns(table)).to_string());
                notes.insert("label".to_owned(), table.label.clone());
            }
            DataSpec::Tensor(tensor) => {
                notes.insert("divide_by".to_owned(), tensor.divide_by.value().to_string());
            }
            DataSpec::Own => {}
        }
        if let Target::Classes(_) = self.spec.target() {
            notes.insert("classes".to_owned(), json!(self.spec.class_names()).to_string());
        }
        notes
    }

    /// Whether whoever uses the file must know means and deviations that are not in it.
    fn lacks_standardiser(&self) -> bool {
        match &self.spec.data {
            DataSpec::Table(table) => match table.standardise {
                Standardise::None | Standardise::Given { .. } => false,
                Standardise::Site => true,
                Standardise::Federated => self.file.standardiser().is_none(),
            },
            DataSpec::Tensor(_) | DataSpec::Own => false,
        }
    }

    /// What whoever uses the file should know.
    fn missing(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.lacks_standardiser() {
            notes.push(
                "the plan standardises its columns, and the file has no means and deviations: whoever uses the model must know \
                 them"
                    .to_owned(),
            );
        }
        if self.held.values().iter().any(|value| !value.is_finite()) {
            notes.push("some values are not finite: this model predicts nothing".to_owned());
        }
        if let Held::Shared(_) = self.held {
            notes.push("the plan keeps some layers at the sites: this is the shared part alone".to_owned());
        }
        notes
    }
}

/// The standardiser that a plan spells out.
fn given(spec: &Spec) -> Option<Standardiser> {
    match &spec.data {
        DataSpec::Table(table) => match &table.standardise {
            Standardise::Given { mean, std } => {
                Some(Standardiser { mean: mean.clone(), std: std.iter().map(|std| std.value()).collect() })
            }
            Standardise::None | Standardise::Site | Standardise::Federated => None,
        },
        DataSpec::Tensor(_) | DataSpec::Own => None,
    }
}

/// The first tensor with a value that is not finite.
fn unfinished(file: &ModelFile) -> Option<&str> {
    let broken = |tensor: &&Tensor| !file.values(tensor).iter().all(|value| value.is_finite());
    file.tensors().iter().find(broken).map(|tensor| tensor.name.as_str())
}

/// Whether the values have the fingerprint that their file names. Without a plan and without the order of its tensors, nobody can
/// tell.
fn agree(path: &Path, file: &ModelFile, sha256: &str, ordered: bool) -> Result<(), Failure> {
    let Some(said) = file.said_sha256().filter(|said| *said != sha256) else { return Ok(()) };
    let path = path.display();
    let message = if ordered {
        format!("{path}: its values have the sha256 {sha256} where it says {said}; it was changed or damaged")
    } else {
        format!(
            "{path}: in the order of the file its values have the sha256 {sha256}, and it says {said}; give --plan, since an \
             older file does not tell the order of its tensors"
        )
    };
    Err(Failure::new(Kind::Run, message))
}

pub(super) fn verify(args: &VerifyArgs, global: &Global) -> Result<(), Failure> {
    let file = read_model(&args.file)?;
    let layout = match &args.plan {
        Some(path) => {
            let plan = read_plan(path, None)?.plan;
            Some(layout_of(&plan.spec).or_fail(Kind::Configuration, path.display())?)
        }
        None => None,
    };
    let statement = args.statement.as_deref().map(read_statement).transpose()?;
    let sha256 = file.sha256(layout.as_ref()).or_fail(Kind::Run, "")?;
    agree(&args.file, &file, &sha256, layout.is_some() || file.tells_order())?;
    let path = args.file.display();
    if let Some(name) = unfinished(&file) {
        let message = format!("{path}: `{name}` has values that are not finite; this model predicts nothing");
        return Err(Failure::new(Kind::Run, message));
    }
    if let (Some(statement), Some(about)) = (&statement, &args.statement)
        && statement.model_sha256 != sha256
    {
        let (about, other) = (about.display(), &statement.model_sha256);
        let message = format!(
            "{path}: its sha256 is {sha256}, and {about} is about {other}; this statement says nothing of this model"
        );
        return Err(Failure::new(Kind::Run, message));
    }
    tell(&args.file, &file, &sha256, statement.as_ref(), global);
    Ok(())
}

fn tell(path: &Path, file: &ModelFile, sha256: &str, statement: Option<&PrivacyStatement>, global: &Global) {
    let parameters: usize = file.tensors().iter().map(Tensor::len).sum();
    let scales = file.standardiser().map(|one| one.mean.len());
    let text = || {
        let mut rows = vec![["tensor", "shape", "parameters"].map(str::to_owned).to_vec()];
        rows.extend(file.tensors().iter().map(|tensor| {
            vec![tensor.name.clone(), format!("{:?}", tensor.shape), tensor.len().to_string()]
        }));
        let said = if file.said_sha256().is_some() { ", as the file says" } else { "" };
        let scaled = scales.map_or_else(|| "nothing".to_owned(), |columns| counted(columns, "column"));
        let about = statement.map_or_else(String::new, |statement| {
            let (round, run) = (statement.round, &statement.run);
            let void = statement.void.as_ref().map_or_else(String::new, |void| format!(", void: {void}"));
            format!("\nstatement     is about this model, round {round} of run {run}{void}")
        });
        format!(
            "{}\n{}\n\nparameters    {parameters}, all finite\nof sha256     {sha256}{said}\nstandardises  {scaled}{about}",
            path.display(),
            table(&rows)
        )
    };
    let object = || {
        let tensors: Vec<_> = file
            .tensors()
            .iter()
            .map(|tensor| json!({ "name": tensor.name, "shape": tensor.shape }))
            .collect();
        json!({
            "model": path,
            "tensors": tensors,
            "parameters": parameters,
            "model_sha256": sha256,
            "finite": true,
            "standardised_columns": scales,
            "statement": statement.map(|statement| json!({
                "run": statement.run,
                "round": statement.round,
                "void": statement.void,
                "claims": statement.claims.len(),
            })),
        })
    };
    global.format.say(text, object);
}
