//! The model as a file that every framework reads.

mod file;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use protocol::{Layout, Parameters, Placement, Standardiser, Tensor};
use serde_json::{Value, json};

pub use file::{Held, ModelFile, ModelFileError};

/// What is known about a model, by key: the metadata of its file.
pub type Notes = BTreeMap<String, String>;

/// The fingerprint of the shared tensors ([`Parameters::sha256`]).
const SHA256: &str = "model_sha256";
/// The names of the tensors in layout order, as a JSON list: a file orders them otherwise.
const LAYOUT: &str = "layout";
/// Those of them that stay at the sites, and count for no fingerprint.
const PERSONAL: &str = "personal";
/// Means and deviations of the numeric columns, as f64.
const SCALES: [&str; 2] = ["standardise.mean", "standardise.std"];

/// Writes the shared tensors by name, as f32, with the standardisation the model expects (`standardise.mean`,
/// `standardise.std`, as f64), the order of the tensors and the fingerprint as metadata. A file of that name is replaced, whole.
///
/// # Errors
/// When the disk refuses.
pub fn write_model(
    path: &Path,
    layout: &Layout,
    model: &Parameters,
    standardiser: Option<&Standardiser>,
) -> io::Result<()> {
    let shared: Vec<&Tensor> = layout.shared().collect();
    write_tensors(path, &shared, model.values(), standardiser, &Notes::new(), Existing::Replaced)
}

/// The same for these tensors with their values one after another, which may be those of a whole model with personal layers,
/// and with more metadata.
///
/// # Errors
/// When the disk refuses, or the file exists and may not be replaced.
pub fn write_tensors(
    path: &Path,
    tensors: &[&Tensor],
    values: &[f32],
    standardiser: Option<&Standardiser>,
    notes: &Notes,
    existing: Existing,
) -> io::Result<()> {
    let names =
        |tensors: &[&Tensor]| Value::from_iter(tensors.iter().map(|tensor| tensor.name.as_str())).to_string();
    let (mut shared, mut from) = (Vec::new(), 0);
    for tensor in tensors {
        if tensor.placement == Placement::Shared {
            shared.extend_from_slice(&values[from..from + tensor.len()]);
        }
        from += tensor.len();
    }
    let mut notes = notes.clone();
    notes.insert(SHA256.to_owned(), Parameters::new(shared).sha256());
    notes.insert(LAYOUT.to_owned(), names(tensors));
    let personal: Vec<&Tensor> =
        tensors.iter().copied().filter(|tensor| tensor.placement == Placement::Site).collect();
    if !personal.is_empty() {
        notes.insert(PERSONAL.to_owned(), names(&personal));
    }
    // Eight bytes each: where they come first, everything lies on a multiple of its size.
    let scales = standardiser.map_or_else(Vec::new, |one| vec![&one.mean, &one.std]);
    let header = header(&notes, tensors, &scales);
    write_whole(path, existing, |partial| {
        let mut file = BufWriter::new(File::create(partial)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        scales.into_iter().flatten().try_for_each(|value| file.write_all(&value.to_le_bytes()))?;
        values.iter().try_for_each(|value| file.write_all(&value.to_le_bytes()))?;
        file.flush()
    })
}

/// What a safetensors file begins with, the same to the byte for the same model: the format's own writer orders metadata by
/// chance.
fn header(notes: &Notes, tensors: &[&Tensor], scales: &[&Vec<f64>]) -> String {
    let mut header = BTreeMap::from([("__metadata__", json!(notes))]);
    let mut end = 0;
    let mut place = |dtype: &str, shape: &[usize], size: usize| {
        let begin = end;
        end += shape.iter().product::<usize>() * size;
        json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] })
    };
    for (name, values) in SCALES.iter().zip(scales) {
        header.insert(name, place("F64", &[values.len()], size_of::<f64>()));
    }
    for tensor in tensors {
        header.insert(&tensor.name, place("F32", &tensor.shape, size_of::<f32>()));
    }
    let mut header = json!(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    header
}

/// What becomes of a file that is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It is replaced.
    Replaced,
    /// It stays, and nothing is written.
    Kept,
}

/// Lets `write` make a file beside `path`, syncs it and renames it, so that a crash leaves the old file, the new one or none, and
/// never a part of one.
///
/// # Errors
/// When the disk or `write` refuses, or the file exists and is to be kept.
pub fn write_whole(
    path: &Path,
    existing: Existing,
    write: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    // A link that leads nowhere is there, too.
    let is_in_the_way = || existing == Existing::Kept && path.symlink_metadata().is_ok();
    let exists = || io::Error::new(io::ErrorKind::AlreadyExists, "the file exists; nothing was changed");
    if is_in_the_way() {
        return Err(exists());
    }
    let partial = beside(path)?;
    let written = (|| {
        write(&partial)?;
        File::open(&partial)?.sync_all()?;
        if is_in_the_way() {
            return Err(exists());
        }
        fs::rename(&partial, path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if cfg!(unix) { File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all() } else { Ok(()) }
    })();
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&partial);
    }
    written
}

/// The name under which a file is written until it is whole.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let nameless = || io::Error::new(io::ErrorKind::InvalidInput, "this names no file");
    let name = path.file_name().ok_or_else(nameless)?.to_string_lossy();
    Ok(path.with_file_name(format!(".{name}.partial-{}", std::process::id())))
}

#[cfg(test)]
mod tests;
