//! The 2x2 max-pool of stride 2. candle's own (0.11.1) hands a unique maximum a quarter of its gradient, so this is not an
//! optimisation: without it convolutions train with the wrong gradients.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::storage::{floats, with_floats};

/// The maximum of each 2x2 window of `[batch, channels, height, width]`: `[batch, channels, height / 2, width / 2]`. Of an
/// odd side the last line is left out. The whole gradient goes to the maximum; of equals, to the first in row order.
///
/// # Errors
/// When a side is below 2, values are not f32, or candle fails.
pub fn max_pool2d(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.contiguous()?.apply_op1(Pooling { winners: OnceLock::new() })
    } else {
        max_pool2d_composed(x)
    }
}

/// [`max_pool2d`] composed of candle's comparisons and selections, whose gradients are right: for devices other than the
/// CPU.
///
/// # Errors
/// As [`max_pool2d`].
pub fn max_pool2d_composed(x: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = halved(x.shape())?;
    let even = x.narrow(2, 0, height * 2)?.narrow(3, 0, width * 2)?.contiguous()?;
    let windows = even.reshape((batch, channels, height, 2, width, 2))?;
    let corner = |row: usize, column: usize| windows.narrow(3, row, 1)?.narrow(5, column, 1)?.contiguous();
    let first_of = |a: Tensor, b: Tensor| a.ge(&b)?.where_cond(&a, &b);
    let upper = first_of(corner(0, 0)?, corner(0, 1)?)?;
    let lower = first_of(corner(1, 0)?, corner(1, 1)?)?;
    first_of(upper, lower)?.reshape((batch, channels, height, width))
}

/// The maximum of windows of `size x size`, `stride` apart.
///
/// # Errors
/// When the image is smaller than a window, or candle fails.
pub fn max_pool(x: &Tensor, size: usize, stride: usize) -> Result<Tensor> {
    if (size, stride) == (2, 2) {
        return max_pool2d(x);
    }
    candle_core::bail!(
        "only windows of 2 x 2 are pooled by automatic differentiation, not {size} by {stride}"
    )
}

/// The pooled shape.
fn halved(shape: &Shape) -> Result<(usize, usize, usize, usize)> {
    let (batch, channels, height, width) = shape.dims4()?;
    if height < 2 || width < 2 {
        candle_core::bail!("{height} x {width} is too small for a 2x2 pool");
    }
    Ok((batch, channels, height / 2, width / 2))
}

/// Keeps from the forward pass which corner of each window won, 0 to 3 in row order.
struct Pooling {
    winners: OnceLock<Vec<u8>>,
}

impl CustomOp1 for Pooling {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = halved(layout.shape())?;
        let (_, _, full_height, full_width) = layout.shape().dims4()?;
        let x = floats(x, layout)?;
        let mut y = vec![0.0; batch * channels * height * width];
        let mut winners = vec![0; y.len()];
        pool(x, (full_height, full_width), &mut y, &mut winners);
        if self.winners.set(winners).is_err() {
            candle_core::bail!("a pooling operation runs forward once");
        }
        Ok((CpuStorage::F32(y), (batch, channels, height, width).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, y_gradient: &Tensor) -> Result<Option<Tensor>> {
        let Some(winners) = self.winners.get() else {
            candle_core::bail!("a pooling operation runs forward before it runs backward");
        };
        let (_, _, height, width) = x.dims4()?;
        let mut gradient = vec![0.0; x.elem_count()];
        with_floats(&y_gradient.contiguous()?, |y_gradient| {
            spread(y_gradient, winners, (height, width), &mut gradient);
            Ok(())
        })?;
        Ok(Some(Tensor::from_vec(gradient, x.shape(), x.device())?))
    }
}

/// Pools channels of `height x width` that lie one after another, and notes which corner of each window won, 0 to 3 in row
/// order.
pub(super) fn pool(x: &[f32], (height, width): (usize, usize), y: &mut [f32], winners: &mut [u8]) {
    let mut results = y.iter_mut().zip(winners);
    for channel in x.chunks_exact(height * width) {
        for pair in channel.chunks_exact(2 * width) {
            let (upper, lower) = pair.split_at(width);
            let windows = upper.chunks_exact(2).zip(lower.chunks_exact(2));
            for ((upper, lower), (y, winner)) in windows.zip(results.by_ref()) {
                (*winner, *y) = maximum([upper[0], upper[1], lower[0], lower[1]]);
            }
        }
    }
}

/// The transpose of [`pool`]: writes each window's gradient to its winner, in a `gradient` of zeros.
pub(super) fn spread(
    y_gradient: &[f32],
    winners: &[u8],
    (height, width): (usize, usize),
    gradient: &mut [f32],
) {
    let (rows, columns) = (height / 2, width / 2);
    for (window, (winner, value)) in winners.iter().zip(y_gradient).enumerate() {
        let (channel, row, column) = (window / (rows * columns), window / columns % rows, window % columns);
        let row = 2 * row + usize::from(winner / 2);
        gradient[(channel * height + row) * width + 2 * column + usize::from(winner % 2)] = *value;
    }
}

/// The first maximum and its place. A NaN wins when it comes first or is met, so that it is seen.
fn maximum(window: [f32; 4]) -> (u8, f32) {
    let mut best = (0, window[0]);
    for (place, value) in (1u8..).zip(&window[1..]) {
        if *value > best.1 || value.is_nan() {
            best = (place, *value);
        }
    }
    best
}
