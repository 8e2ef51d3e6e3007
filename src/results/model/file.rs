//! Reading a model's file back: what is in it, and whether it is the model of a plan.
//!
//! Nothing is guessed. Values in another type than f32, a tensor too many or too few, another shape, or values that do not have
//! the fingerprint that the file names are errors that say which.

use std::io;
use std::path::{Path, PathBuf};

use protocol::{Layout, LayoutError, Parameters, Placement, Standardiser, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::{LAYOUT, Notes, PERSONAL, SCALES, SHA256};

/// The tensors of a file, in layout order where the file names it and in the order of their values where it does not.
#[derive(Clone, Debug)]
pub struct ModelFile {
    path: PathBuf,
    tensors: Vec<Tensor>,
    values: Vec<f32>,
    standardiser: Option<Standardiser>,
    notes: Notes,
}

/// Which of a plan's tensors a file holds, with their values in layout order.
#[derive(Clone, Debug, PartialEq)]
pub enum Held {
    /// All.
    Whole(Vec<f32>),
    /// Those that travel, where others stay at the sites.
    Shared(Vec<f32>),
}

/// Why a file is not a model, or not this one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelFileError {
    /// The system refuses.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The bytes are no model.
    #[error("{}: {message}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        message: String,
    },
    /// The tensors are not the plan's.
    #[error("{}: {message}; give the plan that this model was trained by", path.display())]
    Misfit {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        message: String,
    },
}

impl Held {
    /// The values.
    pub fn values(&self) -> &[f32] {
        match self {
            Self::Whole(values) | Self::Shared(values) => values,
        }
    }
}

impl ModelFile {
    /// Reads a safetensors file, as a run's results or `server export` have it.
    ///
    /// # Errors
    /// [`ModelFileError`] when it cannot be read or is not understood.
    pub fn read(path: &Path) -> Result<Self, ModelFileError> {
        let file = |source| ModelFileError::File { path: path.to_owned(), source };
        let content = |message: String| ModelFileError::Content { path: path.to_owned(), message };
        let bytes = std::fs::read(path).map_err(file)?;
        let unread = |error| content(format!("no model in the form of safetensors ({error})"));
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(unread)?;
        let views = SafeTensors::deserialize(&bytes).map_err(unread)?;
        let notes: Notes = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        let known = |name: &str| views.tensor(name).map_err(|error| content(error.to_string()));
        let names = header.offset_keys().into_iter().filter(|name| !SCALES.contains(&name.as_str()));
        let names = ordered(names.collect(), &notes).map_err(content)?;
        let personal = listed(&notes, PERSONAL).map_err(content)?.unwrap_or_default();
        let (mut tensors, mut values) = (Vec::new(), Vec::new());
        for name in names {
            let view = known(&name)?;
            if view.dtype() != Dtype::F32 {
                let found = view.dtype();
                return Err(content(format!("tensor `{name}` is {found:?}; the values of a model are F32")));
            }
            let placement = if personal.contains(&name) { Placement::Site } else { Placement::Shared };
            let (shape, offset) = (view.shape().to_vec(), values.len());
            values.extend(view.data().chunks_exact(4).map(|bytes| match *bytes {
                [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                _ => unreachable!("chunks of four"),
            }));
            tensors.push(Tensor { name, shape, offset, placement });
        }
        let scale = |name: &str| known(name).and_then(|view| doubles(name, &view).map_err(content));
        let standardiser = match SCALES.map(|name| header.info(name).is_some()) {
            [false, false] => None,
            [true, true] => Some(Standardiser { mean: scale(SCALES[0])?, std: scale(SCALES[1])? }),
            [true, false] | [false, true] => {
                let message = format!("`{}` and `{}` come together or not at all", SCALES[0], SCALES[1]);
                return Err(content(message));
            }
        };
        Ok(Self { path: path.to_owned(), tensors, values, standardiser, notes })
    }

    /// The tensors.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The values of one of [`ModelFile::tensors`].
    pub fn values(&self, tensor: &Tensor) -> &[f32] {
        &self.values[tensor.range()]
    }

    /// The standardisation that the model expects, where the file has it.
    pub fn standardiser(&self) -> Option<&Standardiser> {
        self.standardiser.as_ref()
    }

    /// The first value that is not finite, and its tensor.
    pub fn not_finite(&self) -> Option<(&str, f32)> {
        let place = privacy::first_not_finite(&self.values)?;
        let tensor = self.tensors.iter().find(|tensor| tensor.range().contains(&place))?;
        Some((&tensor.name, self.values[place]))
    }

    /// The tensors that travel with their values, in the file's order.
    ///
    /// # Errors
    /// [`LayoutError`] when they make no layout.
    pub fn into_shared(self) -> Result<(Layout, Parameters), LayoutError> {
        let shared = || self.tensors.iter().filter(|tensor| tensor.placement == Placement::Shared);
        let layout = Layout::new(shared().map(|tensor| (tensor.name.clone(), tensor.shape.clone())))?;
        if layout.len() == self.values.len() {
            return Ok((layout, Parameters::new(self.values)));
        }
        let values = shared().flat_map(|tensor| self.values(tensor)).copied().collect();
        Ok((layout, Parameters::new(values)))
    }

    /// Whether the file tells the order of its tensors, without which there is no fingerprint.
    pub fn tells_order(&self) -> bool {
        self.notes.contains_key(LAYOUT)
    }

    /// The fingerprint that the file says its shared tensors have.
    pub fn said_sha256(&self) -> Option<&str> {
        self.notes.get(SHA256).map(String::as_str)
    }

    /// The fingerprint that the shared tensors have, in the file's order, or in a plan's where one is given.
    ///
    /// # Errors
    /// [`ModelFileError::Misfit`] when the tensors are not the plan's.
    pub fn sha256(&self, layout: Option<&Layout>) -> Result<String, ModelFileError> {
        let shared = match layout.map(|layout| (layout, self.fitted(layout))) {
            Some((layout, held)) => match held? {
                Held::Whole(values) => layout.gather_shared(&values),
                Held::Shared(values) => values,
            },
            None => {
                let shared = self.tensors.iter().filter(|tensor| tensor.placement == Placement::Shared);
                shared.flat_map(|tensor| self.values(tensor)).copied().collect()
            }
        };
        Ok(Parameters::new(shared).sha256())
    }

    /// The values for a plan's layout, if the file's tensors are the plan's.
    ///
    /// # Errors
    /// [`ModelFileError::Misfit`] with the first tensor that is missing, not known, or of another shape.
    pub fn fitted(&self, layout: &Layout) -> Result<Held, ModelFileError> {
        let misfit = |message| ModelFileError::Misfit { path: self.path.clone(), message };
        let of = |name: &str| self.tensors.iter().find(|tensor| tensor.name == name);
        let is_planned = |found: &&Tensor| layout.tensors().iter().any(|tensor| tensor.name == found.name);
        if let Some(extra) = self.tensors.iter().find(|found| !is_planned(found)) {
            return Err(misfit(format!("the plan's model has no tensor `{}`", extra.name)));
        }
        let has_personal = layout
            .tensors()
            .iter()
            .any(|tensor| tensor.placement == Placement::Site && of(&tensor.name).is_some());
        let is_whole = has_personal || !layout.has_personal();
        let mut values = Vec::with_capacity(self.values.len());
        for tensor in layout.tensors() {
            match of(&tensor.name) {
                Some(found) if found.shape != tensor.shape => {
                    let (name, found, needed) = (&tensor.name, &found.shape, &tensor.shape);
                    let message =
                        format!("tensor `{name}` has the shape {found:?} where the plan's has {needed:?}");
                    return Err(misfit(message));
                }
                Some(found) => values.extend_from_slice(self.values(found)),
                None if is_whole || tensor.placement == Placement::Shared => {
                    return Err(misfit(format!("the plan's tensor `{}` is not in it", tensor.name)));
                }
                None => {}
            }
        }
        Ok(if is_whole { Held::Whole(values) } else { Held::Shared(values) })
    }
}

/// The names in the order that the metadata tells, where it does; it must tell of these very tensors.
fn ordered(found: Vec<String>, notes: &Notes) -> Result<Vec<String>, String> {
    let Some(told) = listed(notes, LAYOUT)? else { return Ok(found) };
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort();
        names
    };
    if sorted(&told) == sorted(&found) {
        return Ok(told);
    }
    Err(format!("its metadata lists other tensors than it has: {} and {}", told.join(", "), found.join(", ")))
}

/// A list of names in the metadata.
fn listed(notes: &Notes, key: &str) -> Result<Option<Vec<String>>, String> {
    let parse = |text: &String| {
        serde_json::from_str(text)
            .map_err(|error| format!("its metadata `{key}` is no list of names: {error}"))
    };
    notes.get(key).map(parse).transpose()
}

fn doubles(name: &str, view: &TensorView<'_>) -> Result<Vec<f64>, String> {
    if view.dtype() != Dtype::F64 || view.shape().len() != 1 {
        return Err(format!("`{name}` is {:?} {:?}; it must be a row of F64", view.dtype(), view.shape()));
    }
    let value = |bytes: &[u8]| bytes.try_into().map(f64::from_le_bytes).unwrap_or(f64::NAN);
    Ok(view.data().chunks_exact(8).map(value).collect())
}
