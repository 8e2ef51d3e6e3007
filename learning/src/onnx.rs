//! A trained model as an ONNX file, which other programs run: a graph of operations of opset 17 with its parameters inside.
//!
//! The file takes any number of records (`input`) and gives what the model gives: `logits` and `probabilities` for classes, a
//! `prediction` for a real target. It computes what evaluation computes; dropout rests. What the plan does to the numbers of a
//! record (dividing, standardising, filling what is missing) is the graph's beginning, so that records go in as they are
//! ([`Inputs::Raw`]). Refused are models whose layers nobody has named in ONNX, models a part of which stays at the sites, and
//! raw inputs where nobody knows how to standardise them. Format: <https://onnx.ai/onnx/repo-docs/IR.html>, IR version 8.

mod graph;
mod layers;
mod proto;

use prost::Message;
use protocol::{
    DataSpec, Layout, Loss, Missing, ModelSpec, Parameters, Placement, Spec, Standardise, Standardiser,
    TableSpec, Target, TensorSpec,
};

use self::graph::value;
use self::layers::{Value, Writer};
use self::proto::{
    AttributeProto, ModelProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, ValueInfoProto,
};
use crate::model::{ModelError, Models, steps};

/// The version of ONNX's operators that files are written for.
pub const OPSET: i64 = 17;
/// The version of the format that came with it.
const IR_VERSION: i64 = 8;
/// Bytes of parameters in one file: what reads protocol buffers stops at 2 GiB, and the graph needs some of it.
const BYTES_MAX: usize = (2 << 30) - (16 << 20);

/// What becomes a file.
#[derive(Clone, Copy, Debug)]
pub struct Export<'a> {
    /// The plan's name.
    pub name: &'a str,
    /// What was trained.
    pub spec: &'a Spec,
    /// The model: all tensors, in the order of [`crate::layout_of`].
    pub parameters: &'a [f32],
    /// What goes in.
    pub inputs: Inputs<'a>,
}

/// What the file takes.
#[derive(Clone, Copy, Debug)]
pub enum Inputs<'a> {
    /// Records as they are: the graph divides, fills and standardises.
    Raw {
        /// That of the federation's statistics round, where the plan has one; other plans need none.
        standardiser: Option<&'a Standardiser>,
    },
    /// What the model itself sees: whoever runs the file prepares the records as the plan says.
    Prepared,
}

/// Why a model does not become a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// The spec makes no model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A model of the embedding program's own, whose forward pass is code.
    #[error("the model `{0}` is code of its own, which cannot be written as ONNX; export it as safetensors")]
    Custom(String),
    /// A layer that has no form in ONNX on what it works on.
    #[error("`{layer}` on {given} cannot be said in ONNX; export the model as safetensors")]
    Layer {
        /// Its name in the plan.
        layer: String,
        /// What it works on.
        given: String,
    },
    /// Only what travels of a model that has personal layers.
    #[error(
        "the plan keeps {layers} at the sites, and these {found} parameters are the shared part alone, which predicts \
         nothing: add a site's own tensors (all {needed} parameters), or export safetensors"
    )]
    SharedOnly {
        /// The personal layers.
        layers: String,
        /// Parameters given.
        found: usize,
        /// Parameters of the whole model.
        needed: usize,
    },
    /// Parameters of another model.
    #[error("{found} parameters where the plan's model has {needed}; give the model of this plan")]
    Length {
        /// Parameters given.
        found: usize,
        /// Parameters of the plan's model.
        needed: usize,
    },
    /// The plan standardises, and nobody said by what.
    #[error(
        "the plan standardises {columns} columns with the federation's means and deviations, and the model came without \
         them: give the model file that the run left, or let the file take prepared inputs"
    )]
    NoStandardiser {
        /// How many columns.
        columns: usize,
    },
    /// Each site has its own standardiser.
    #[error(
        "the plan has each site standardise with its own means and deviations, so no one file can do it for all; let the \
         file take prepared inputs"
    )]
    SiteStandardiser,
    /// A standardiser of other columns.
    #[error(
        "{means} means and {deviations} deviations for {columns} numeric columns; each needs a finite mean and a \
         deviation above 0"
    )]
    Standardiser {
        /// Means given.
        means: usize,
        /// Deviations given.
        deviations: usize,
        /// Numeric columns of the plan.
        columns: usize,
    },
    /// More than one file may hold.
    #[error("{0} bytes of parameters; an ONNX file holds less than 2 GiB: export the model as safetensors")]
    TooLarge(usize),
}

/// Writes a model and gives the bytes of its file.
///
/// ```
/// use learning::onnx::{Export, Inputs, export};
/// use protocol::{Seed, Spec};
///
/// let spec = Spec::from_json(
///     r#"{ "model": "logistic", "cohort_max": 1, "training": { "batch_size": 8, "optimizer": { "sgd": { "learning_rate": 0.1 } } },
///          "data": { "tensor": { "shape": [4], "target": { "classes": 3 } } } }"#,
/// )?;
/// let parameters = learning::initial_parameters(&spec, Seed::from_number(7))?;
/// let inputs = Inputs::Raw { standardiser: None };
/// let file = export(Export { name: "irises", spec: &spec, parameters: &parameters, inputs })?;
/// assert!(!file.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`OnnxError`] when the model cannot be said in ONNX, is not whole, or does not fit the spec.
pub fn export(model: Export<'_>) -> Result<Vec<u8>, OnnxError> {
    Ok(write(model)?.encode_to_vec())
}

fn write(Export { name, spec, parameters, inputs }: Export<'_>) -> Result<ModelProto, OnnxError> {
    if let ModelSpec::Custom { name } = &spec.model {
        return Err(OnnxError::Custom(name.clone()));
    }
    if let ModelSpec::Values { .. } = &spec.model {
        return Err(ModelError::Values.into());
    }
    if spec.external().is_some() {
        return Err(ModelError::External.into());
    }
    let layout = Models::new().layout_of(spec)?;
    check_parameters(&layout, parameters.len())?;
    let mut writer = Writer::new(&layout, parameters);
    let shape = spec.input_shape();
    let x = Value { name: "input".to_owned(), rank: shape.len() + 1 };
    let (x, numbers) = match inputs {
        Inputs::Raw { standardiser } => writer.prepare(spec, standardiser, x)?,
        Inputs::Prepared => (x, TensorProto::FLOAT),
    };
    // A custom model has no steps, and was refused above.
    let y = writer.chain(&steps(spec)?.unwrap_or_default(), x)?;
    let output = writer.outputs(spec, &y);
    let Writer { graph, .. } = writer;
    Ok(ModelProto {
        ir_version: IR_VERSION,
        producer_name: "consortia".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        doc_string: format!("the model of the plan `{name}`, trained by a federation"),
        graph: Some(graph.finish(name, value("input", &shape, numbers, described(spec, inputs)), output)),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: OPSET }],
        metadata_props: metadata(name, spec, &layout, parameters, inputs),
    })
}

/// Whether so many parameters are the whole model, and fit a file.
fn check_parameters(layout: &Layout, found: usize) -> Result<(), OnnxError> {
    let needed = layout.len();
    let bytes = needed.saturating_mul(size_of::<f32>());
    if bytes > BYTES_MAX {
        return Err(OnnxError::TooLarge(bytes));
    }
    if found == needed {
        return Ok(());
    }
    if found == layout.shared_len() {
        let personal = layout.tensors().iter().filter(|tensor| tensor.placement == Placement::Site);
        let names: Vec<String> = personal.map(|tensor| format!("`{}`", tensor.name)).collect();
        return Err(OnnxError::SharedOnly { layers: names.join(", "), found, needed });
    }
    Err(OnnxError::Length { found, needed })
}

impl Writer<'_> {
    /// From records as they are to what the model sees, and the type of the numbers that go in.
    fn prepare(
        &mut self,
        spec: &Spec,
        standardiser: Option<&Standardiser>,
        x: Value,
    ) -> Result<(Value, i32), OnnxError> {
        match &spec.data {
            DataSpec::Tensor(tensor) => Ok((self.divide(tensor, x), TensorProto::FLOAT)),
            DataSpec::Table(table) => self.standardise(table, spec.input_shape()[0], standardiser, x),
            DataSpec::Own => Err(ModelError::External.into()),
        }
    }

    fn divide(&mut self, tensor: &TensorSpec, x: Value) -> Value {
        let by = tensor.divide_by.value();
        if by == 1.0 {
            return x;
        }
        let by = self.graph.floats("divide_by", &[], [by as f32]);
        Value { name: self.graph.node("Div", &[&x.name, by], Vec::new()), ..x }
    }

    /// Fills and standardises in f64, as the sites do, so that the model sees the same numbers to the bit: f64 go in, since f32 may
    /// not have the digits that an offset leaves. One-hot columns pass as they are.
    fn standardise(
        &mut self,
        table: &TableSpec,
        width: usize,
        federated: Option<&Standardiser>,
        x: Value,
    ) -> Result<(Value, i32), OnnxError> {
        let scale = scale_of(table, federated)?;
        let fill = match (table.missing, &scale) {
            (Missing::Constant(value), _) => Some(vec![value; table.features.len()]),
            (Missing::Mean, Some(scale)) => Some(scale.mean.clone()),
            (Missing::Mean | Missing::Refuse | Missing::Drop, _) => None,
        };
        if scale.is_none() && fill.is_none() {
            return Ok((x, TensorProto::FLOAT));
        }
        let padded = |values: &[f64], rest: f64| {
            let mut values = values.to_vec();
            values.resize(width, rest);
            values
        };
        let cast = |to: i32| AttributeProto::int("to", to.into());
        let mut name = x.name.clone();
        if let Some(fill) = fill {
            let fill = self.graph.doubles("standardise.missing", &padded(&fill, f64::NAN));
            let missing = self.graph.node("IsNaN", &[&name], Vec::new());
            name = self.graph.node("Where", &[&missing, fill, &name], Vec::new());
        }
        if let Some(scale) = scale {
            let mean = self.graph.doubles("standardise.mean", &padded(&scale.mean, 0.0));
            name = self.graph.node("Sub", &[&name, mean], Vec::new());
            let std = self.graph.doubles("standardise.std", &padded(&scale.std, 1.0));
            name = self.graph.node("Div", &[&name, std], Vec::new());
        }
        let narrow = self.one("Cast", &name, cast(TensorProto::FLOAT));
        Ok((Value { name: narrow, ..x }, TensorProto::DOUBLE))
    }

    /// Names what comes out, and adds the probabilities of classes.
    fn outputs(&mut self, spec: &Spec, y: &Value) -> Vec<ValueInfoProto> {
        let result = |name, doc: &str| value(name, &[spec.outputs()], TensorProto::FLOAT, doc.to_owned());
        let (name, probabilities) = match spec.loss() {
            Loss::CrossEntropy => ("logits", Some(("Softmax", vec![AttributeProto::int("axis", 1)]))),
            Loss::BinaryCrossEntropy => ("logits", Some(("Sigmoid", Vec::new()))),
            Loss::MeanSquared | Loss::Auto => ("prediction", None),
        };
        self.graph.named("Identity", &[&y.name], Vec::new(), name);
        let Some((operation, attributes)) = probabilities else {
            return vec![result(name, "the number that is predicted")];
        };
        self.graph.named(operation, &[name], attributes, "probabilities");
        let doc = match operation {
            "Sigmoid" => "the probability of class 1",
            _ => "the probability of each class",
        };
        vec![result(name, "what the model gives"), result("probabilities", doc)]
    }
}

/// By what the graph of a raw input standardises.
fn scale_of(table: &TableSpec, federated: Option<&Standardiser>) -> Result<Option<Standardiser>, OnnxError> {
    let columns = table.features.len();
    let scale = match &table.standardise {
        Standardise::None => return Ok(None),
        Standardise::Site => return Err(OnnxError::SiteStandardiser),
        Standardise::Given { mean, std } => {
            let std = std.iter().map(|std| std.value()).collect();
            Standardiser { mean: mean.clone(), std }
        }
        Standardise::Federated => federated.cloned().ok_or(OnnxError::NoStandardiser { columns })?,
    };
    if scale.fits(columns) {
        return Ok(Some(scale));
    }
    let (means, deviations) = (scale.mean.len(), scale.std.len());
    Err(OnnxError::Standardiser { means, deviations, columns })
}

/// The columns of a table as the model counts them: the numeric ones, then each value of the categorical ones.
pub fn columns(table: &TableSpec) -> Vec<String> {
    let of = |one: &protocol::Categorical| -> Vec<String> {
        one.values.iter().map(|value| format!("{}={value}", one.column)).collect()
    };
    table.features.iter().cloned().chain(table.categorical.iter().flat_map(of)).collect()
}

/// What is known about the model, by keys that `docs/federation.md` lists.
fn metadata(
    name: &str,
    spec: &Spec,
    layout: &Layout,
    parameters: &[f32],
    inputs: Inputs<'_>,
) -> Vec<StringStringEntryProto> {
    let json = |texts: Vec<String>| serde_json::Value::from(texts).to_string();
    let sha256 = Parameters::new(layout.gather_shared(parameters)).sha256();
    let mut lines = vec![
        ("plan", name.to_owned()),
        ("model_sha256", sha256),
        (
            "input",
            match inputs {
                Inputs::Raw { .. } => "raw".to_owned(),
                Inputs::Prepared => "prepared".to_owned(),
            },
        ),
    ];
    match &spec.data {
        DataSpec::Table(table) => {
            lines.push(("columns", json(columns(table))));
            lines.push(("label", table.label.clone()));
        }
        DataSpec::Tensor(tensor) => lines.push(("divide_by", tensor.divide_by.value().to_string())),
        DataSpec::Own => {}
    }
    lines.push((
        "target",
        match spec.target() {
            Target::Classes(_) => "classes".to_owned(),
            Target::Real => "real".to_owned(),
        },
    ));
    if let Target::Classes(_) = spec.target() {
        lines.push(("classes", json(spec.class_names())));
    }
    let line = |(key, value): (&str, String)| StringStringEntryProto { key: key.to_owned(), value };
    lines.into_iter().map(line).collect()
}

/// The input in words, for whoever opens the file.
fn described(spec: &Spec, inputs: Inputs<'_>) -> String {
    match (&spec.data, inputs) {
        (DataSpec::Table(_), Inputs::Raw { .. }) => {
            "a row of numbers in the order of the metadata's `columns`, as the records have them; `name=value` is 1 where the \
             column `name` has that value, else 0"
                .to_owned()
        }
        (DataSpec::Table(_), Inputs::Prepared) => {
            "a row of numbers in the order of the metadata's `columns`, filled and standardised as the plan says".to_owned()
        }
        (DataSpec::Tensor(_), Inputs::Raw { .. }) => "values as the records have them".to_owned(),
        (DataSpec::Tensor(tensor), Inputs::Prepared) => {
            format!("values of the records, divided by {}", tensor.divide_by.value())
        }
        (DataSpec::Own, _) => "what the site's own program reads".to_owned(),
    }
}

#[cfg(test)]
mod tests;
