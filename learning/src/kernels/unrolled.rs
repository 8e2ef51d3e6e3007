//! Convolutions of any size, stride and padding as a product over unrolled patches (Chellapilla et al. 2006, section 2.2), for
//! images whose channels come last: a patch is then a few long copies instead of many short ones.

/// The geometry of windows that slide over an image of `height x width`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Channels of the image.
    pub(crate) channels: usize,
    /// Rows of the image.
    pub(crate) height: usize,
    /// Columns of the image.
    pub(crate) width: usize,
    /// Side of the square window, at least 1.
    pub(crate) side: usize,
    /// Steps between windows, at least 1.
    pub(crate) stride: usize,
    /// Zeros around the image.
    pub(crate) padding: usize,
}

impl Window {
    /// Rows and columns of window positions; 0 where the window is larger than the padded image.
    pub(crate) fn positions(&self) -> (usize, usize) {
        let along = |side: usize| match (side + 2 * self.padding).checked_sub(self.side) {
            Some(room) => room / self.stride + 1,
            None => 0,
        };
        (along(self.height), along(self.width))
    }

    /// Values of one patch.
    pub(crate) fn patch(&self) -> usize {
        self.side * self.side * self.channels
    }

    /// Values of one image.
    pub(crate) fn image(&self) -> usize {
        self.height * self.width * self.channels
    }
}

/// Calls `each` for every run of image values that lies inside a patch: where it begins in the patch, where in the image, and
/// its length; patches in rows of positions.
#[inline(always)]
fn runs(window: Window, mut each: impl FnMut(usize, usize, usize)) {
    let Window { channels, height, width, side, stride, padding } = window;
    let (rows, columns) = window.positions();
    for position in 0..rows * columns {
        let (top, left) = (position / columns * stride, position % columns * stride);
        // In columns of the image: the run begins at `from` of the window and has `length` pixels.
        let from = padding.saturating_sub(left).min(side);
        let until = (width + padding).saturating_sub(left).min(side);
        let length = until.saturating_sub(from);
        if length == 0 {
            continue;
        }
        for ky in padding.saturating_sub(top)..(height + padding).saturating_sub(top).min(side) {
            let patch = position * window.patch() + (ky * side + from) * channels;
            let image = ((top + ky - padding) * width + left + from - padding) * channels;
            each(patch, image, length * channels);
        }
    }
}

/// Writes the patch of every position of one image, `[rows * columns, side, side, channels]`, zeros where it reaches beyond.
///
/// # Panics
/// When a slice has another length.
pub(crate) fn unroll(window: Window, image: &[f32], patches: &mut [f32]) {
    if window.padding > 0 {
        patches.fill(0.0);
    }
    runs(window, |patch, from, length| {
        patches[patch..patch + length].copy_from_slice(&image[from..from + length]);
    });
}

/// The transpose of [`unroll`]: adds every patch to the pixels it came from.
///
/// # Panics
/// When a slice has another length.
pub(crate) fn roll(window: Window, patches: &[f32], image: &mut [f32]) {
    super::vectorised(
        #[inline(always)]
        || {
            runs(window, |patch, to, length| {
                let (source, target) = (&patches[patch..patch + length], &mut image[to..to + length]);
                target.iter_mut().zip(source).for_each(|(target, value)| *target += value);
            });
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_hold_what_the_window_covers_and_zeros_beyond_the_image() {
        let window = Window { channels: 1, height: 2, width: 3, side: 3, stride: 2, padding: 1 };
        assert_eq!(window.positions(), (1, 2));
        let mut patches = [9.0; 18];
        unroll(window, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &mut patches);
        assert_eq!(patches[..9], [0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 4.0, 5.0]);
        assert_eq!(patches[9..], [0.0, 0.0, 0.0, 2.0, 3.0, 0.0, 5.0, 6.0, 0.0]);
        let mut image = [0.0; 6];
        roll(window, &patches, &mut image);
        assert_eq!(image, [1.0, 4.0, 3.0, 4.0, 10.0, 6.0]);
    }

    #[test]
    fn a_window_larger_than_the_image_has_no_position() {
        let window = Window { channels: 1, height: 2, width: 2, side: 3, stride: 1, padding: 0 };
        assert_eq!(window.positions(), (0, 0));
    }
}
