//! How a model lies in memory: every tensor by name, shape and offset, and whether it is shared or stays at the site.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Whether a tensor travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Part of the federated model: sent, updated, averaged.
    Shared,
    /// LocalState: kept by each site from round to round and never sent.
    Site,
}

/// One tensor of f32.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name, unique in the layout, such as `dense1.weight`.
    pub name: String,
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its first coordinate in the full vector.
    pub offset: usize,
    /// Whether it travels.
    pub placement: Placement,
}

impl Tensor {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its coordinates in the full vector.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// The tensors of a model in order. The *full* vector holds all of them; the *shared* vector, which travels, holds the
/// shared ones in the same order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    tensors: Vec<Tensor>,
    len: usize,
}

/// Why tensors do not make a layout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// Two tensors of one name.
    #[error("two tensors are named `{0}`; every tensor needs a name of its own")]
    Twice(String),
    /// More parameters than an address can count.
    #[error("tensor `{0}` makes the model larger than this machine can address")]
    TooLarge(String),
    /// A personal layer that the model does not have.
    #[error("no tensor's name begins with `{0}`; the model has {1}")]
    NoSuchLayer(String, String),
}

impl Layout {
    /// Lays out tensors one after another, all shared.
    ///
    /// # Errors
    /// [`LayoutError`] on a repeated name or an impossible size.
    pub fn new(tensors: impl IntoIterator<Item = (String, Vec<usize>)>) -> Result<Self, LayoutError> {
        let (mut layout, mut names) = (Self::default(), BTreeSet::new());
        for (name, shape) in tensors {
            if !names.insert(name.clone()) {
                return Err(LayoutError::Twice(name));
            }
            let count = shape.iter().try_fold(1usize, |product, side| product.checked_mul(*side));
            let Some(end) = count.and_then(|count| layout.len.checked_add(count)) else {
                return Err(LayoutError::TooLarge(name));
            };
            layout.tensors.push(Tensor { name, shape, offset: layout.len, placement: Placement::Shared });
            layout.len = end;
        }
        Ok(layout)
    }

    /// The same layout with every tensor whose name begins with one of `prefixes` kept at the sites.
    ///
    /// # Errors
    /// [`LayoutError::NoSuchLayer`] for a prefix that matches nothing.
    pub fn with_personal(mut self, prefixes: &[String]) -> Result<Self, LayoutError> {
        for prefix in prefixes {
            let mut found = false;
            for tensor in self.tensors.iter_mut().filter(|tensor| tensor.name.starts_with(prefix.as_str())) {
                tensor.placement = Placement::Site;
                found = true;
            }
            if !found {
                let names: Vec<&str> = self.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
                return Err(LayoutError::NoSuchLayer(prefix.clone(), names.join(", ")));
            }
        }
        Ok(self)
    }

    /// The same layout with these tensors kept at the sites.
    #[must_use]
    pub fn with_kept(mut self, names: &[String]) -> Self {
        for tensor in self.tensors.iter_mut().filter(|tensor| names.contains(&tensor.name)) {
            tensor.placement = Placement::Site;
        }
        self
    }

    /// The tensors in order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Length of the full vector.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Length of the shared vector.
    pub fn shared_len(&self) -> usize {
        self.shared().map(Tensor::len).sum()
    }

    /// The tensors that travel, in order.
    pub fn shared(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.iter().filter(|tensor| tensor.placement == Placement::Shared)
    }

    /// How many values each tensor that travels has, in order: the layers of an update.
    pub fn shared_lengths(&self) -> Vec<usize> {
        self.shared().map(Tensor::len).collect()
    }

    /// The names of those tensors, in the same order.
    pub fn shared_names(&self) -> Vec<String> {
        self.shared().map(|tensor| tensor.name.clone()).collect()
    }

    /// The shared part of a full vector.
    pub fn gather_shared(&self, full: &[f32]) -> Vec<f32> {
        self.shared().flat_map(|tensor| &full[tensor.range()]).copied().collect()
    }

    /// Writes a shared vector into a full one; what stays at the site is left as it is.
    ///
    /// # Panics
    /// When a vector is shorter than the layout says; callers check lengths where vectors come in.
    pub fn scatter_shared(&self, shared: &[f32], full: &mut [f32]) {
        let mut from = 0;
        for tensor in self.shared() {
            full[tensor.range()].copy_from_slice(&shared[from..from + tensor.len()]);
            from += tensor.len();
        }
    }

    /// Whether some tensor stays at the site.
    pub fn has_personal(&self) -> bool {
        self.tensors.iter().any(|tensor| tensor.placement == Placement::Site)
    }
}

/// Values in layout order. Which layout, full or shared, is the context's to say.
#[derive(Clone, PartialEq)]
pub struct Parameters(Vec<f32>);

impl Parameters {
    /// Wraps values in layout order.
    pub fn new(values: Vec<f32>) -> Self {
        Self(values)
    }

    /// The values.
    pub fn values(&self) -> &[f32] {
        &self.0
    }

    /// Gives the values away.
    pub fn into_values(self) -> Vec<f32> {
        self.0
    }

    /// The values, to be changed.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// SHA-256, in hexadecimal, of the values as little-endian f32: the model's fingerprint in every report.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        let mut block = [0u8; 4096];
        for values in self.0.chunks(block.len() / 4) {
            for (bytes, value) in block.chunks_exact_mut(4).zip(values) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
            hash.update(&block[..values.len() * 4]);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl std::fmt::Debug for Parameters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parameters({} values)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let tensors = [("body.weight", vec![2, 2]), ("head.weight", vec![2]), ("body.bias", vec![2])];
        Layout::new(tensors.map(|(name, shape)| (name.to_owned(), shape))).unwrap()
    }

    #[test]
    fn what_stays_at_the_site_is_neither_gathered_nor_overwritten() {
        let layout = layout().with_personal(&["head".into()]).unwrap();
        let mut full: Vec<f32> = (0u8..8).map(f32::from).collect();
        assert_eq!(layout.gather_shared(&full), [0., 1., 2., 3., 6., 7.]);
        assert_eq!(layout.shared_lengths(), [4, 2]);
        layout.scatter_shared(&[9.; 6], &mut full);
        assert_eq!(full, [9., 9., 9., 9., 4., 5., 9., 9.]);
    }

    #[test]
    fn names_are_unique_sizes_are_checked_and_personal_layers_exist() {
        let twice = Layout::new([("a".into(), vec![1]), ("a".into(), vec![1])]);
        assert_eq!(twice, Err(LayoutError::Twice("a".into())));
        let large = Layout::new([("a".into(), vec![usize::MAX, 2])]);
        assert_eq!(large, Err(LayoutError::TooLarge("a".into())));
        assert!(matches!(layout().with_personal(&["tail".into()]), Err(LayoutError::NoSuchLayer(..))));
    }

    #[test]
    fn the_fingerprint_is_the_hash_of_the_little_endian_bytes() {
        // printf '\x00\x00\x80\x3f' | sha256sum
        let one = "e00e5eb9444182f352323374ef4e08ebcb784725fdd4fd612d7730540b3e0c8c";
        assert_eq!(Parameters::new(vec![1.0]).sha256(), one);
        let many = Parameters::new(vec![0.5; 3000]);
        assert_ne!(many.sha256(), Parameters::new(vec![0.5; 3001]).sha256());
    }
}
