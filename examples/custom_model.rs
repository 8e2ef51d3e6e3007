//! A model of your own, in ten lines of candle: it multiplies features with each other, which no built-in family does.
//!
//! A model says which tensors it has, in order, and what it computes. Register a builder under a name and write the name
//! into the plan; first values from the seed, training, averaging and evaluation are then as for the built-in models. A
//! deployment registers it at the server (`Room::with_models`) and at every site (`Trainer::with_models`).
//!
//! The task is one that logistic regression cannot learn: whether two features have the same sign.
//!
//! ```text
//! $ cargo run --example custom_model
//! logistic regression  0.489
//! products of features 0.992
//! ```

use std::sync::Arc;

use anyhow::{Error, Result};
use candle_core::{DType, Device, Tensor, Var};
use consortia::learning::ops::{Activation, linear};
use consortia::learning::{Dataset, Labels, Mode, Model, Models, Partition, SiteData, View, partition};
use consortia::protocol::{ClientId, Seed, Spec};
use consortia::simulations::{AvailabilityConfig, Population, Simulator};
use consortia::{first_model, server::Plan};

const PLAN: &str = r#"
name = "custom-model"
rounds = 15
model = "logistic"
data = { tensor = { shape = [4], target = { classes = 2 } } }
training = { epochs = 2, batch_size = 20, optimizer = { adam = { learning_rate = 0.02 } } }
"#;

/// `out((left x) * (right x))` with `WIDTH` products.
struct Products([(Var, Var); 3]);
const WIDTH: usize = 8;

impl Products {
    fn build(spec: &Spec, device: &Device) -> candle_core::Result<Box<dyn Model>> {
        let zeros = |shape: &[usize]| Var::zeros(shape, DType::F32, device);
        let layer = |from, to| Ok::<_, candle_core::Error>((zeros(&[to, from])?, zeros(&[to])?));
        let (inputs, outputs) = (spec.input_shape()[0], spec.outputs());
        Ok(Box::new(Self([layer(inputs, WIDTH)?, layer(inputs, WIDTH)?, layer(WIDTH, outputs)?])))
    }
}

impl Model for Products {
    fn tensors(&self) -> Vec<(String, Var)> {
        let named = |(name, (weight, bias)): (&str, &(Var, Var))| {
            [(format!("{name}.weight"), weight.clone()), (format!("{name}.bias"), bias.clone())]
        };
        ["left", "right", "out"].into_iter().zip(&self.0).flat_map(named).collect()
    }

    fn forward(&self, x: &Tensor, _: Mode) -> candle_core::Result<Tensor> {
        let [left, right, out] = &self.0;
        let dense = |x: &Tensor, layer: &(Var, Var)| linear(x, &layer.0, &layer.1, Activation::Identity);
        dense(&dense(x, left)?.mul(&dense(x, right)?)?, out)
    }
}

/// Four features evenly spread between -1 and 1; the class is whether the first two have the same sign.
fn signs(rows: std::ops::Range<usize>) -> Arc<Dataset> {
    let spread =
        |row: usize| [2f64, 3.0, 5.0, 7.0].map(|prime| (row as f64 * prime.sqrt()).fract() * 2.0 - 1.0);
    let features: Vec<f32> = rows.flat_map(spread).map(|value| value as f32).collect();
    let classes = features.chunks(4).map(|x| u32::from(x[0] * x[1] > 0.0)).collect();
    Arc::new(Dataset { shape: vec![4], features: features.into(), labels: Labels::Classes(classes) })
}

fn train(plan: &str) -> Result<f64> {
    let (plan, seed) = (Plan::parse(plan)?, Seed::from_number(5));
    let (train, test) = (signs(0..2000), View::whole(signs(2000..3000)));
    let parts = partition(&train.labels, &Partition::Iid, 10, seed)?.into_iter().zip(1..);
    let site = |(rows, number): (Vec<u32>, u32)| {
        let train = View { dataset: Arc::clone(&train), rows: rows.into() };
        Ok((ClientId::new(&format!("site-{number:02}"))?, SiteData { train, test: None }))
    };
    let central = SiteData { train: View { rows: Arc::new([]), ..test.clone() }, test: Some(test) };
    let models = Models::new().with("products", Products::build);
    let sites = parts.map(site).collect::<Result<_>>()?;
    let population = Population::of(sites, Some(central), Device::Cpu).with_models(models);

    let first = first_model(population.models(), &plan.spec, seed).map_err(Error::msg)?;
    let outcome = Simulator::new(plan, first.shared, 5, AvailabilityConfig::default())?
        .run(&population, &mut |_| {})?;
    let test = outcome.rounds.last().and_then(|round| round.central);
    Ok(test.and_then(|test| test.accuracy).unwrap_or_default())
}

fn main() -> Result<()> {
    println!("logistic regression  {:.3}", train(PLAN)?);
    let custom = PLAN.replace("\"logistic\"", "{ custom = { name = \"products\" } }");
    println!("products of features {:.3}", train(&custom)?);
    Ok(())
}
