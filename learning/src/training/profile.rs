//! How long each layer of a model takes in a step of training in closed form. The clock is the caller's; nothing else is
//! different from a training.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Device;
use protocol::{GradientPath, LearnError, Seed, Spec};

use super::closed::ClosedForm;
use super::engine::{Engine, gradient_path};
use crate::layers::{Layer, Weights, build};
use crate::model::{Mode, steps};
use crate::{View, initial_parameters};

/// One layer's part of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerTime {
    /// What it is, and how many values of a sample go in and come out.
    pub name: String,
    /// Seconds a step on the way forward.
    pub forward: f64,
    /// Seconds a step on the way back, plain SGD included.
    pub backward: f64,
}

/// The parts of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTime {
    /// The layers, the first one first; with a residual connection all that is inside of it.
    pub layers: Vec<LayerTime>,
    /// Seconds of the whole step: the layers, copying records, the loss, and reading the clock.
    pub whole: f64,
}

/// Trains a fresh model on `data` batch by batch, twice, and measures the second time by `clock`, which counts seconds. None
/// where the spec's gradients come by automatic differentiation.
///
/// # Errors
/// When spec and data do not fit, or there are fewer records than a batch.
pub fn step_time(spec: &Spec, data: &View, clock: fn() -> f64) -> Result<Option<StepTime>, LearnError> {
    if gradient_path(spec, &Device::Cpu)? != GradientPath::ClosedForm {
        return Ok(None);
    }
    let size = spec.training.batch_size.clamp(1, data.len().max(1));
    let Some(chain) = steps(spec)?.and_then(|steps| build(&steps, size)) else { return Ok(None) };
    let mut spent = Vec::new();
    let chain = chain.wrapped(|layer, inputs, outputs| {
        let seconds = Arc::new(Mutex::new([0.0; 2]));
        spent.push((format!("{} {inputs} to {outputs}", layer.name()), Arc::clone(&seconds)));
        Box::new(Timed { layer, seconds, clock })
    });
    let parameters = initial_parameters(spec, Seed::from_number(0))?;
    let mut engine = ClosedForm::new(chain, spec, parameters.len());
    engine.load(&parameters)?;
    engine.begin(spec, 1.0)?;
    let rows: Vec<u32> = (0..).take(data.len()).collect();
    let (mut began, mut count) = (0.0, 0.0);
    for turn in 0..2 {
        if turn == 1 {
            spent.iter().for_each(|(_, seconds)| *locked(seconds) = [0.0; 2]);
            began = clock();
        }
        for rows in rows.chunks_exact(size) {
            engine.learn(data, rows, size, Mode::Train(Seed::from_number(1)))?;
            engine.step()?;
            count += f64::from(turn);
        }
    }
    let whole = (clock() - began) / count;
    let layer = |(name, seconds): (String, Arc<Mutex<[f64; 2]>>)| {
        let [forward, backward] = *locked(&seconds);
        LayerTime { name, forward: forward / count, backward: backward / count }
    };
    Ok(Some(StepTime { layers: spent.into_iter().map(layer).collect(), whole }))
}

fn locked(seconds: &Mutex<[f64; 2]>) -> std::sync::MutexGuard<'_, [f64; 2]> {
    seconds.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A layer and a clock.
struct Timed {
    layer: Box<dyn Layer>,
    /// Forward, backward.
    seconds: Arc<Mutex<[f64; 2]>>,
    clock: fn() -> f64,
}

impl Layer for Timed {
    fn forward(&mut self, batch: usize, mode: Mode, parameters: &[f32], x: &[f32], y: &mut [f32]) {
        let began = (self.clock)();
        self.layer.forward(batch, mode, parameters, x, y);
        locked(&self.seconds)[0] += (self.clock)() - began;
    }

    fn backward(
        &mut self,
        batch: usize,
        weights: Weights<'_>,
        x: &[f32],
        y: &[f32],
        y_gradient: &mut [f32],
        x_gradient: Option<&mut [f32]>,
    ) {
        let began = (self.clock)();
        self.layer.backward(batch, weights, x, y, y_gradient, x_gradient);
        locked(&self.seconds)[1] += (self.clock)() - began;
    }

    fn import(&self, natural: &[f32], own: &mut [f32]) {
        self.layer.import(natural, own);
    }

    fn export(&self, own: &[f32], natural: &mut [f32]) {
        self.layer.export(own, natural);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::{Dataset, Labels};

    /// A clock that goes on by one each time it is read.
    fn tick() -> f64 {
        static NOW: AtomicU32 = AtomicU32::new(0);
        f64::from(NOW.fetch_add(1, Ordering::Relaxed))
    }

    #[test]
    fn every_layer_is_timed_on_both_ways_of_every_step() {
        let spec = |model: &str| {
            let json = format!(
                r#"{{"model": {model}, "data": {{"tensor": {{"shape": [3], "target": {{"classes": 2}}}}}},
                "training": {{"batch_size": 2, "optimizer": {{"sgd": {{"learning_rate": 0.1}}}}}}, "cohort_max": 2}}"#
            );
            Spec::from_json(&json).unwrap()
        };
        let features: Vec<f32> = (0u8..12).map(f32::from).collect();
        let labels = Labels::Classes(vec![0, 1, 0, 1]);
        let data = View::whole(Arc::new(Dataset { shape: vec![3], features: features.into(), labels }));
        let time = step_time(&spec(r#"{"mlp": {"hidden": [4]}}"#), &data, tick).unwrap().unwrap();
        let names: Vec<&str> = time.layers.iter().map(|layer| layer.name.as_str()).collect();
        assert_eq!(names, ["Dense 3 to 4", "Dense 4 to 2"]);
        assert!(time.layers.iter().all(|layer| (layer.forward, layer.backward) == (1.0, 1.0)));
        // Two readings of the clock a layer and way, and half of the last one's a step.
        assert_eq!(time.whole, (2.0 * 2.0 * 2.0 * 2.0 + 1.0) / 2.0);
    }
}
