//! Every product of a convolution against the plain sum in f64, beside what the plain sum in f32 would err.

use proptest::prelude::*;

use super::*;

fn numbers(count: usize, salt: u64) -> Vec<f32> {
    let mut state = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u32 << 23) as f32) - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// The three products by their definition in f64.
struct Plain {
    y: Vec<f64>,
    weight: Vec<f64>,
    x: Vec<f64>,
}

fn plainly(tiling: Tiling, batch: usize, x: &[f32], weight: &[f32], y_gradient: &[f32]) -> Plain {
    let Window { channels, height, width, side, padding, .. } = tiling.window;
    let ((rows, columns), outputs) = (tiling.window.positions(), tiling.outputs);
    let mut plain = Plain {
        y: vec![0.0; batch * rows * columns * outputs],
        weight: vec![0.0; weight.len()],
        x: vec![0.0; x.len()],
    };
    for position in 0..batch * rows * columns {
        let (sample, row, column) =
            (position / (rows * columns), position / columns % rows, position % columns);
        for tap in 0..side * side {
            let (from_row, from_column) = (row + tap / side, column + tap % side);
            if !(padding..height + padding).contains(&from_row)
                || !(padding..width + padding).contains(&from_column)
            {
                continue;
            }
            let pixel = (sample * height + from_row - padding) * width + from_column - padding;
            for input in 0..channels {
                for output in 0..outputs {
                    let (x_at, w_at) =
                        (pixel * channels + input, (tap * channels + input) * outputs + output);
                    let y_at = position * outputs + output;
                    plain.y[y_at] += f64::from(x[x_at]) * f64::from(weight[w_at]);
                    plain.weight[w_at] += f64::from(x[x_at]) * f64::from(y_gradient[y_at]);
                    plain.x[x_at] += f64::from(weight[w_at]) * f64::from(y_gradient[y_at]);
                }
            }
        }
    }
    plain
}

/// Length of the difference, relative to the length of the result.
fn error(found: &[f32], plain: &[f64]) -> f64 {
    let length =
        |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = length(&mut found.iter().zip(plain).map(|(a, b)| f64::from(*a) - b));
    difference / length(&mut plain.iter().copied()).max(1e-30)
}

/// Errors of the way forward and of both gradients.
fn errors(window: Window, outputs: usize, batch: usize, salt: u64) -> [f64; 3] {
    let tiling = Tiling::of(window, outputs).unwrap();
    let (rows, columns) = window.positions();
    let x = numbers(batch * window.image(), salt);
    let weight = numbers(window.patch() * outputs, salt + 1);
    let y_gradient = numbers(batch * rows * columns * outputs, salt + 2);
    let plain = plainly(tiling, batch, &x, &weight, &y_gradient);
    let mut convolution = Winograd::new(tiling);
    let mut y = vec![f32::NAN; y_gradient.len()];
    convolution.forward(batch, &x, &weight, &mut y);
    let (mut weight_gradient, mut x_gradient) = (vec![f32::NAN; weight.len()], vec![f32::NAN; x.len()]);
    convolution.turn(&weight);
    convolution.backward(batch, &y_gradient, Some(&mut x_gradient), (&mut weight_gradient, 1.0, 0.0));
    [error(&y, &plain.y), error(&weight_gradient, &plain.weight), error(&x_gradient, &plain.x)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn minimal_filtering_is_the_convolution_for_every_shape(
        (height, width) in (1usize..15, 1usize..15),
        (channels, outputs) in (1usize..40, 1usize..40),
        (five, padding, batch) in (any::<bool>(), 0usize..3, 1usize..4),
        salt in 0u64..1000,
    ) {
        let window = Window { channels, height, width, side: if five { 5 } else { 3 }, stride: 1, padding };
        prop_assume!(window.positions().0 > 0 && window.positions().1 > 0);
        for found in errors(window, outputs, batch, salt) {
            prop_assert!(found < 1e-5, "{found}");
        }
    }
}

#[test]
fn at_the_sizes_of_real_networks_the_error_is_what_the_page_says() {
    for (side, height, channels, outputs, allowed) in [(3, 16, 64, 64, 3e-6), (5, 14, 32, 64, 6e-6)] {
        let window = Window { channels, height, width: height, side, stride: 1, padding: side / 2 };
        let found = errors(window, outputs, 4, 7);
        assert!(found.iter().all(|error| *error < allowed), "{side}x{side}: {found:?}");
    }
}

#[test]
fn a_gradient_can_be_taken_straight_from_the_weights() {
    let window = Window { channels: 2, height: 6, width: 5, side: 3, stride: 1, padding: 1 };
    let tiling = Tiling::of(window, 3).unwrap();
    let (x, start, y_gradient) = (numbers(60, 1), numbers(54, 2), numbers(90, 3));
    let mut convolution = Winograd::new(tiling);
    let mut y = vec![0.0; 90];
    convolution.forward(1, &x, &start, &mut y);
    let mut gradient = vec![0.0; 54];
    convolution.backward(1, &y_gradient, None, (&mut gradient, 1.0, 0.0));
    convolution.forward(1, &x, &start, &mut y);
    let mut moved = start.clone();
    convolution.backward(1, &y_gradient, None, (&mut moved, -0.5, 1.0));
    for ((moved, start), gradient) in moved.iter().zip(&start).zip(&gradient) {
        assert!((moved - (start - 0.5 * gradient)).abs() < 1e-6);
    }
}

#[test]
fn only_odd_kernels_of_three_and_five_with_stride_one_have_a_tiling() {
    let window = Window { channels: 1, height: 8, width: 8, side: 3, stride: 1, padding: 1 };
    assert!(Tiling::of(window, 4).is_some());
    assert!(Tiling::of(Window { stride: 2, ..window }, 4).is_none());
    assert!(Tiling::of(Window { side: 7, ..window }, 4).is_none());
    assert!(Tiling::of(Window { side: 5, height: 1, padding: 1, ..window }, 4).is_none());
}
