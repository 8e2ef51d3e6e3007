//! The values of CPU tensors as slices: to be read by operations, and to be changed in place by optimizers.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor};

/// The values of a contiguous f32 storage.
///
/// # Errors
/// When the values are not f32 or not contiguous.
pub(super) fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (start, end) = contiguous(layout)?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// The values of a contiguous u32 storage.
///
/// # Errors
/// When the values are not u32 or not contiguous.
pub(super) fn integers<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [u32]> {
    let (start, end) = contiguous(layout)?;
    Ok(&storage.as_slice::<u32>()?[start..end])
}

fn contiguous(layout: &Layout) -> Result<(usize, usize)> {
    let Some(range) = layout.contiguous_offsets() else {
        candle_core::bail!("a tensor of shape {:?} is not contiguous", layout.shape());
    };
    Ok(range)
}

/// Calls `read` with the values of a contiguous f32 tensor on the CPU.
///
/// # Errors
/// When the tensor is elsewhere, of another type or not contiguous, or `read` fails.
pub(crate) fn with_floats<R>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => read(floats(storage, layout)?),
        Storage::Cuda(_) | Storage::Metal(_) => candle_core::bail!("the tensor is not on the cpu"),
    }
}

/// Calls `edit` with the values of a contiguous f32 tensor on the CPU, to be changed in place. For variables, whose
/// storage nothing else shares.
///
/// # Errors
/// When the tensor is elsewhere, of another type or not contiguous.
pub(crate) fn edit_floats(tensor: &Tensor, edit: impl FnMut(&mut [f32])) -> Result<()> {
    tensor.inplace_op1(&Edit(RefCell::new(edit)))
}

struct Edit<F>(RefCell<F>);

impl<F: FnMut(&mut [f32])> InplaceOp1 for Edit<F> {
    fn name(&self) -> &'static str {
        "edit"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (start, end) = contiguous(layout)?;
        let CpuStorage::F32(values) = storage else { candle_core::bail!("the tensor is not of f32") };
        (self.0.borrow_mut())(&mut values[start..end]);
        Ok(())
    }
}
