//! The model as a file that every framework reads.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use protocol::{Layout, Parameters, Standardiser};
use safetensors::tensor::{Dtype, TensorView};

/// Writes the shared tensors by name, as f32, with the standardisation the model expects (`standardise.mean`,
/// `standardise.std`, as f64) and the fingerprint as metadata.
///
/// # Errors
/// When the disk refuses.
pub fn write_model(
    path: &Path,
    layout: &Layout,
    model: &Parameters,
    standardiser: Option<&Standardiser>,
) -> io::Result<()> {
    let bytes: Vec<u8> = model.values().iter().flat_map(|value| value.to_le_bytes()).collect();
    let wide = |values: &[f64]| -> Vec<u8> { values.iter().flat_map(|value| value.to_le_bytes()).collect() };
    let scales = standardiser.map(|one| [("mean", wide(&one.mean)), ("std", wide(&one.std))]);
    let mut views = BTreeMap::new();
    let mut from = 0;
    for tensor in layout.shared() {
        let until = from + 4 * tensor.len();
        let view = TensorView::new(Dtype::F32, tensor.shape.clone(), &bytes[from..until]);
        views.insert(tensor.name.clone(), view.map_err(io::Error::other)?);
        from = until;
    }
    for (name, values) in scales.iter().flatten() {
        let view = TensorView::new(Dtype::F64, vec![values.len() / 8], values).map_err(io::Error::other)?;
        views.insert(format!("standardise.{name}"), view);
    }
    let metadata = [("model_sha256".to_owned(), model.sha256())].into_iter().collect();
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(io::Error::other)
}
