//! Every layer, loss and built-in model against central finite differences. Points are chosen away from kinks: inputs of a
//! ReLU or of a pool are farther from their kinks than the step of the difference moves them.
#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use candle_core::{Device, Result, Tensor, Var};
use learning::ops::{self, Activation, composed, convolution, linear, loss, max_pool};
use learning::{Mode, Models, initial_parameters};
use protocol::{Loss, Seed, Spec};

/// What rounding a scalar to f32 does to a difference.
const NOISE: f64 = 1e-4;

/// Numbers without a pattern in (-1, 1), the same every time.
fn numbers(count: usize, salt: u64) -> Vec<f32> {
    let mut state = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u32 << 23) as f32) - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn var(shape: &[usize], salt: u64) -> Var {
    Var::from_vec(numbers(shape.iter().product(), salt), shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A scalar of a layer's output in which every value counts differently.
fn weighed(output: &Tensor) -> Result<Tensor> {
    let weights = Tensor::from_vec(numbers(output.elem_count(), 99), output.shape(), output.device())?;
    output.mul(&weights)?.sum_all()
}

/// The sum in f64, so that the difference does not drown in rounding.
fn total(function: &dyn Fn() -> Result<Tensor>) -> f64 {
    let output = function().unwrap();
    if output.rank() == 0 {
        return f64::from(output.to_scalar::<f32>().unwrap());
    }
    let weights = numbers(output.elem_count(), 99);
    values(&output).iter().zip(weights).map(|(value, weight)| f64::from(*value) * f64::from(weight)).sum()
}

/// Compares, relative to the largest value, the gradient of `function` (a scalar, or a layer's output to be weighed) with differences at up to 60 places of
/// every variable.
fn check(what: &str, vars: &[&Var], step: f32, tolerance: f64, function: &dyn Fn() -> Result<Tensor>) {
    let output = function().unwrap();
    let scalar = if output.rank() == 0 { output } else { weighed(&output).unwrap() };
    let gradients = scalar.backward().unwrap();
    for (index, var) in vars.iter().enumerate() {
        let gradient =
            values(gradients.get(var).unwrap_or_else(|| panic!("{what}: variable {index} has no gradient")));
        let start = values(var);
        let largest = gradient.iter().fold(0f64, |largest, value| largest.max(f64::from(value.abs())));
        assert!(largest > 20.0 * NOISE, "{what}: the gradient of variable {index} drowns in rounding");
        for place in (0..start.len()).step_by(start.len().div_ceil(60)) {
            let at = |offset: f32| {
                let mut moved = start.clone();
                moved[place] += offset;
                var.set(&Tensor::from_slice(&moved, var.shape(), &Device::Cpu).unwrap()).unwrap();
                (total(function), f64::from(moved[place]))
            };
            let ((up, above), (down, below)) = (at(step), at(-step));
            let difference = (up - down) / (above - below);
            let error = (difference - f64::from(gradient[place])).abs();
            let allowed = tolerance * (largest + difference.abs()) + NOISE;
            assert!(
                error <= allowed,
                "{what}: variable {index}, place {place}: gradient {} but difference {difference}",
                gradient[place]
            );
        }
        var.set(&Tensor::from_slice(&start, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
}

/// Pushes values away from zero, where ReLU has its kink.
fn away_from_zero(var: &Var, distance: f32) {
    let pushed: Vec<f32> = values(var).iter().map(|value| value + distance.copysign(*value)).collect();
    var.set(&Tensor::from_vec(pushed, var.shape(), &Device::Cpu).unwrap()).unwrap();
}

/// All different by at least 0.05, in an order without a pattern.
fn distinct(shape: &[usize], salt: u64) -> Var {
    let count: usize = shape.iter().product();
    let keys = numbers(count, salt);
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|a, b| keys[*a].total_cmp(&keys[*b]));
    let mut values = vec![0.0; count];
    for (rank, place) in order.into_iter().enumerate() {
        values[place] = rank as f32 * 0.05 - 1.0;
    }
    Var::from_vec(values, shape, &Device::Cpu).unwrap()
}

#[test]
fn the_dense_layers_gradient_is_the_difference() {
    for (batch, inputs, outputs) in [(1, 1, 1), (3, 5, 4), (7, 33, 10), (2, 4, 1)] {
        let (x, weight, bias) = (var(&[batch, inputs], 1), var(&[outputs, inputs], 2), var(&[outputs], 3));
        let layer = || linear(&x, &weight, &bias, Activation::Identity);
        check("dense", &[&x, &weight, &bias], 1e-2, 2e-3, &layer);
    }
}

#[test]
fn the_fused_relus_gradient_is_the_difference_and_half_of_it_is_zero() {
    // With the identity as weight and no bias, the sums are the inputs, which stay away from zero.
    let (x, bias) = (var(&[4, 6], 4), Var::zeros(6, candle_core::DType::F32, &Device::Cpu).unwrap());
    away_from_zero(&x, 0.2);
    let weight = Var::from_tensor(&Tensor::eye(6, candle_core::DType::F32, &Device::Cpu).unwrap()).unwrap();
    let layer = || linear(&x, &weight, &bias, Activation::Relu);
    check("dense with relu", &[&x, &weight, &bias], 1e-2, 2e-3, &layer);
    let gradients = weighed(&layer().unwrap()).unwrap().backward().unwrap();
    for (x, gradient) in values(&x).iter().zip(values(gradients.get(&x).unwrap())) {
        assert_eq!(*x > 0.0, gradient != 0.0);
    }
}

#[test]
fn the_convolutions_gradient_is_the_difference_on_images_that_are_not_square() {
    for (batch, inputs, height, width, outputs, kernel) in
        [(2, 3, 5, 7, 4, 3), (1, 1, 6, 4, 2, 5), (3, 2, 3, 2, 3, 1), (2, 2, 2, 3, 2, 7), (1, 2, 1, 9, 2, 3)]
    {
        let x = var(&[batch, inputs, height, width], 5);
        let (weight, bias) = (var(&[outputs, inputs, kernel, kernel], 6), var(&[outputs], 7));
        let layer = || convolution(&x, &weight, &bias, (1, kernel / 2), Activation::Identity);
        check("convolution", &[&x, &weight, &bias], 1e-2, 5e-3, &layer);
    }
}

#[test]
fn the_convolutions_fused_relu_masks_the_gradient_of_negative_sums() {
    let x = var(&[2, 1, 4, 5], 8);
    away_from_zero(&x, 0.2);
    let weight =
        Var::from_vec(vec![0f32, 0., 0., 0., 1., 0., 0., 0., 0.], (1, 1, 3, 3), &Device::Cpu).unwrap();
    let bias = Var::zeros(1, candle_core::DType::F32, &Device::Cpu).unwrap();
    check("convolution with relu", &[&x, &weight, &bias], 1e-2, 5e-3, &|| {
        convolution(&x, &weight, &bias, (1, 1), Activation::Relu)
    });
}

#[test]
fn dense_layer_and_convolution_agree_with_candles_own() {
    let (x, weight, bias) = (var(&[3, 2, 6, 5], 9), var(&[4, 2, 3, 3], 10), var(&[4], 11));
    let ours = convolution(&x, &weight, &bias, (1, 1), Activation::Relu).unwrap();
    let theirs = x.conv2d(&weight, 1, 1, 1, 1).unwrap();
    let theirs = theirs.broadcast_add(&bias.reshape((1, 4, 1, 1)).unwrap()).unwrap().relu().unwrap();
    let (flat, matrix) = (x.flatten_from(1).unwrap(), var(&[7, 60], 12));
    let dense = linear(&flat, &matrix, &var(&[7], 13), Activation::Relu).unwrap();
    let theirs_dense = flat.matmul(&matrix.t().unwrap()).unwrap();
    let theirs_dense = theirs_dense.broadcast_add(&var(&[7], 13)).unwrap().relu().unwrap();
    for (ours, theirs) in [(ours, theirs), (dense, theirs_dense)] {
        for (ours, theirs) in values(&ours).iter().zip(values(&theirs)) {
            assert!((ours - theirs).abs() < 1e-4, "{ours} is not {theirs}");
        }
    }
}

#[test]
fn the_convolutions_gradient_is_the_difference_with_strides_and_any_padding() {
    let layers: [Convolution; 2] = [convolution, composed::convolution];
    for layer in layers {
        for (shape, outputs, side, place) in [
            ([2, 3, 7, 5], 4, 3, (2, 1)),
            ([1, 2, 6, 9], 3, 2, (2, 0)),
            ([2, 1, 8, 5], 2, 4, (3, 3)),
            ([3, 4, 5, 6], 5, 1, (2, 0)),
            ([2, 9, 8, 7], 10, 3, (1, 1)),
        ] {
            let x = var(&shape, 30);
            let (weight, bias) = (var(&[outputs, shape[1], side, side], 31), var(&[outputs], 32));
            check("convolution with stride", &[&x, &weight, &bias], 1e-2, 5e-3, &|| {
                layer(&x, &weight, &bias, place, Activation::Identity)
            });
        }
    }
}

type Convolution = fn(&Tensor, &Tensor, &Tensor, (usize, usize), Activation) -> Result<Tensor>;
type Pool = fn(&Tensor, usize, usize) -> Result<Tensor>;

#[test]
fn the_pools_gradient_is_the_difference_on_odd_and_unequal_sides() {
    for pool in [max_pool as Pool, composed::max_pool as Pool] {
        for shape in [[1, 1, 2, 2], [2, 3, 4, 6], [2, 2, 5, 7], [1, 2, 3, 8]] {
            let x = distinct(&shape, 14);
            check("pool", &[&x], 1e-2, 2e-3, &|| pool(&x, 2, 2));
            assert_eq!(pool(&x, 2, 2).unwrap().dims(), [shape[0], shape[1], shape[2] / 2, shape[3] / 2]);
            check("pool that overlaps", &[&x], 1e-2, 2e-3, &|| pool(&x, 2, 1));
        }
        let x = distinct(&[2, 3, 8, 7], 33);
        check("larger pool", &[&x], 1e-2, 2e-3, &|| pool(&x, 3, 2));
        assert!(pool(&var(&[1, 1, 1, 4], 1), 2, 2).is_err());
    }
}

#[test]
fn a_unique_maximum_gets_the_whole_gradient_and_of_equals_the_first_one() {
    for pool in [max_pool as Pool, composed::max_pool as Pool] {
        let x = Var::from_vec(vec![0f32, 1., 2., 2., 4., 3., 2., 2.], (1, 1, 2, 4), &Device::Cpu).unwrap();
        let y = pool(&x, 2, 2).unwrap();
        assert_eq!(values(&y), [4.0, 2.0]);
        let gradients = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(values(gradients.get(&x).unwrap()), [0., 0., 1., 0., 1., 0., 0., 0.]);
    }
}

#[test]
fn activations_have_their_functions_slopes() {
    let x = var(&[5, 9], 34);
    away_from_zero(&x, 0.2);
    for (name, function) in [
        ("relu", ops::relu as fn(&Tensor) -> Result<Tensor>),
        ("gelu", ops::gelu),
        ("tanh", ops::tanh),
        ("sigmoid", ops::sigmoid),
    ] {
        check(name, &[&x], 1e-2, 2e-3, &|| function(&x));
    }
}

#[test]
fn normalisations_gradients_are_the_differences() {
    let (x, weight, bias) = (var(&[3, 6, 4, 5], 35), var(&[6], 36), var(&[6], 37));
    check("group norm", &[&x, &weight, &bias], 1e-2, 5e-3, &|| ops::group_norm(&x, &weight, &bias, 2));
    let (x, weight, bias) = (var(&[2, 4, 19], 38), var(&[19], 39), var(&[19], 40));
    check("layer norm", &[&x, &weight, &bias], 1e-2, 5e-3, &|| ops::layer_norm(&x, &weight, &bias));
}

#[test]
fn the_gradients_over_sequences_are_the_differences() {
    let x = Tensor::new(&[[0u32, 2, 2, 1], [3, 0, 2, 2]], &Device::Cpu).unwrap();
    let table = var(&[4, 5], 41);
    check("embedding", &[&table], 1e-2, 2e-3, &|| ops::embedding(&x, &table));
    assert!(ops::embedding(&x, &var(&[3, 5], 41)).is_err(), "symbol 3 has no row");
    let x = var(&[3, 6, 4], 42);
    let weights = |gates: usize| [var(&[gates * 7, 4], 43), var(&[gates * 7, 7], 44)];
    let ([input, memory], bias) = (weights(4), var(&[28], 45));
    check("lstm", &[&x, &input, &memory, &bias], 1e-2, 5e-3, &|| ops::lstm(&x, &input, &memory, &bias));
    let ([input, memory], [bias, second]) = (weights(3), [var(&[21], 46), var(&[21], 47)]);
    check("gru", &[&x, &input, &memory, &bias, &second], 1e-2, 5e-3, &|| {
        ops::gru(&x, [&input, &memory], [&bias, &second])
    });
}

#[test]
fn a_gradient_may_be_asked_for_twice() {
    let (x, weight, bias) = (var(&[2, 9, 8, 8], 48), var(&[10, 9, 3, 3], 49), var(&[10], 50));
    let first = convolution(&x, &weight, &bias, (1, 1), Activation::Relu).unwrap();
    let (input, memory) = (var(&[12, 8], 51), var(&[12, 3], 52));
    let rows = first.flatten(1, 2).unwrap();
    let y = ops::lstm(&rows, &input, &memory, &var(&[12], 53)).unwrap();
    let total = weighed(&y).unwrap();
    let gradients = [total.backward().unwrap(), total.backward().unwrap()];
    for var in [&x, &weight, &bias, &input, &memory] {
        let [first, second] = gradients.each_ref().map(|gradients| values(gradients.get(var).unwrap()));
        assert!(first.iter().any(|value| *value != 0.0));
        assert_eq!(first, second);
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused_and_not_read() {
    let x = var(&[2, 3, 5, 5], 54);
    let convolved = |weight: &[usize], bias: usize, place| {
        convolution(&x, &var(weight, 1), &var(&[bias], 2), place, Activation::Identity).is_ok()
    };
    assert!(convolved(&[4, 3, 2, 2], 4, (1, 0)));
    assert!(!convolved(&[4, 2, 2, 2], 4, (1, 0)), "another number of channels");
    assert!(!convolved(&[4, 3, 2, 3], 4, (1, 0)), "a kernel that is not square");
    assert!(!convolved(&[4, 3, 2, 2], 3, (1, 0)), "a bias for other channels");
    assert!(!convolved(&[4, 3, 6, 6], 4, (1, 0)), "a kernel larger than the image");
    assert!(!convolved(&[4, 3, 2, 2], 4, (0, 0)), "no stride");
    assert!(linear(&var(&[2, 3], 1), &var(&[4, 2], 2), &var(&[4], 3), Activation::Identity).is_err());
    assert!(ops::group_norm(&x, &var(&[3], 1), &var(&[3], 2), 2).is_err());
    assert!(ops::layer_norm(&x, &var(&[4], 1), &var(&[5], 2)).is_err());
    assert!(ops::lstm(&var(&[1, 2, 3], 1), &var(&[8, 3], 2), &var(&[8, 3], 3), &var(&[8], 4)).is_err());
}

#[test]
fn what_is_not_f32_is_composed_of_candles_operations() {
    let (x, weight, bias) = (var(&[2, 3, 5, 6], 55), var(&[4, 3, 3, 3], 56), var(&[4], 57));
    let ours = convolution(&x, &weight, &bias, (2, 1), Activation::Relu).unwrap();
    let wide = |tensor: &Var| tensor.to_dtype(candle_core::DType::F64).unwrap();
    let theirs = convolution(&wide(&x), &wide(&weight), &wide(&bias), (2, 1), Activation::Relu).unwrap();
    let theirs = theirs.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    for (ours, theirs) in values(&ours).into_iter().zip(theirs) {
        assert!((f64::from(ours) - theirs).abs() < 1e-5, "{ours} is not {theirs}");
    }
}

#[test]
fn the_losses_gradients_are_the_differences() {
    let classes = Tensor::from_vec(vec![0u32, 3, 1, 3, 2], 5, &Device::Cpu).unwrap();
    let logits = var(&[5, 4], 15);
    check("cross-entropy", &[&logits], 1e-2, 1e-3, &|| loss(Loss::CrossEntropy, &logits, &classes));
    let (output, targets) = (var(&[6, 1], 16), var(&[6], 17));
    check("mean squared error", &[&output], 1e-2, 1e-3, &|| loss(Loss::MeanSquared, &output, &targets));
    let halves = Tensor::from_vec(vec![0f32, 1., 1., 0., 1., 0.], 6, &Device::Cpu).unwrap();
    check("binary cross-entropy", &[&output], 1e-2, 1e-3, &|| {
        loss(Loss::BinaryCrossEntropy, &output, &halves)
    });
}

#[test]
fn losses_have_the_values_of_their_definitions_and_survive_large_logits() {
    let device = &Device::Cpu;
    let scalar = |kind, outputs: Tensor, targets: Tensor| {
        loss(kind, &outputs, &targets).unwrap().to_scalar::<f32>().unwrap()
    };
    let matrix =
        |values: &[f32], width| Tensor::from_slice(values, (values.len() / width, width), device).unwrap();
    let classes = Tensor::new(&[1u32, 0], device).unwrap();
    let entropy = scalar(Loss::Auto, matrix(&[0., 0., 1000., -1000.], 2), classes);
    assert!((entropy - 0.5 * 2f32.ln()).abs() < 1e-6, "{entropy}");
    let targets = Tensor::new(&[1f32, 0., 0.], device).unwrap();
    let binary = scalar(Loss::BinaryCrossEntropy, matrix(&[1000., -1000., 0.], 1), targets.clone());
    assert!((binary - 2f32.ln() / 3.0).abs() < 1e-6, "{binary}");
    let squared = scalar(Loss::MeanSquared, matrix(&[3., 1., 0.], 1), targets.clone());
    assert!((squared - 5.0 / 3.0).abs() < 1e-6, "{squared}");
    assert!(
        loss(Loss::CrossEntropy, &matrix(&[0.; 4], 2), &Tensor::new(&[0u32, 2], device).unwrap()).is_err()
    );
    assert!(loss(Loss::MeanSquared, &matrix(&[0.; 4], 2), &targets).is_err());
}

fn model_check(model: &str, shape: &[usize], step: f32) {
    let spec = Spec::from_json(&format!(
        r#"{{"model": {model}, "data": {{"tensor": {{"shape": {shape:?}, "target": {{"classes": 3}}}}}},
        "training": {{"batch_size": 4, "optimizer": {{"sgd": {{"learning_rate": 0.1}}}}}}, "cohort_max": 1}}"#
    ))
    .unwrap();
    let model_built = Models::new().build(&spec, &Device::Cpu).unwrap();
    let start = initial_parameters(&spec, Seed::from_number(21)).unwrap();
    let vars: Vec<Var> = model_built.tensors().into_iter().map(|(_, var)| var).collect();
    let mut offset = 0;
    for var in &vars {
        let count = var.elem_count();
        // Where a linear model starts at zero, move on: all gradients should be general.
        let values: Vec<f32> =
            start[offset..offset + count].iter().zip(numbers(count, 22)).map(|(v, n)| v + 0.1 * n).collect();
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
        offset += count;
    }
    let batch: Vec<usize> = [4].iter().chain(shape).copied().collect();
    let x = var(&batch, 23);
    let classes = Tensor::new(&[0u32, 2, 1, 2], &Device::Cpu).unwrap();
    let vars: Vec<&Var> = vars.iter().collect();
    check(model, &vars, step, 1e-2, &|| {
        loss(Loss::CrossEntropy, &model_built.forward(&x, Mode::Evaluate)?, &classes)
    });
}

#[test]
fn whole_models_gradients_are_the_differences() {
    model_check(r#""logistic""#, &[2, 3], 1e-2);
    model_check(r#"{"mlp": {"hidden": [9, 5]}}"#, &[6], 2e-3);
    model_check(r#"{"cnn": {"channels": [3, 4], "kernel": 3, "hidden": 7}}"#, &[2, 9, 6], 2e-3);
    let residual = r#"{"layers": [{"convolution": {"channels": 4, "kernel": 3}}, {"group_norm": {"groups": 2}}, "gelu",
        {"residual": {"layers": [{"convolution": {"channels": 6, "kernel": 3, "stride": 2}}, "tanh"],
        "shortcut": [{"convolution": {"channels": 6, "kernel": 1, "stride": 2}}]}}, "average_pool"]}"#;
    model_check(residual, &[2, 7, 6], 2e-3);
    model_check(
        r#"{"layers": [{"lstm": {"hidden": 6}}, {"gru": {"hidden": 5}}, "last", "layer_norm"]}"#,
        &[5, 3],
        2e-3,
    );
}
