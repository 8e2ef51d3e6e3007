//! From the vector that a corrupted client wants to send to the answer that it sends: clipped and rounded like an honest one, since a
//! server refuses what is not; but for the attack that does not care.

use privacy::{Encoded, Lattice};
use protocol::{Answer, Block, ClientId, Outcome, Purpose, Round, Seed, Task, UPDATE, Values, Work};
use rand_distr::{Distribution, StandardNormal};

use super::collusion::{Seen, agreed_on};
use super::{Adversaries, Attack};

/// What a corrupted client's own arithmetic holds; beyond it squares would overflow.
const VALUE_MAX: f64 = 1e100;

/// The lattice of a training's updates.
pub(crate) fn lattice_of(task: &Task, tensors: &[usize]) -> Option<Lattice> {
    let Work::Train { norm_max, .. } = task.work else { return None };
    // The plan had a lattice for this model, or the coordinator would not have opened the round.
    task.spec.lattice_within(norm_max.unwrap_or(task.spec.update.norm_max), tensors).ok()
}

/// Points in units of the parameters.
pub(crate) fn in_units(points: &[i32], lattice: &Lattice) -> Vec<f64> {
    points.iter().map(|point| f64::from(*point) * lattice.step()).collect()
}

impl Adversaries {
    /// What a corrupted client makes of its own answer alone.
    pub(crate) fn forge_alone(
        &self,
        client: &ClientId,
        task: &Task,
        tensors: &[usize],
        answer: Answer,
    ) -> Answer {
        let times =
            |factor: f64, own: Vec<f64>| own.into_iter().map(|value| factor * value).collect::<Vec<_>>();
        self.replace(client, task, tensors, answer, |own, lattice| match &self.attack {
            Attack::SignFlip { scale } => Sent::Clipped(times(-scale.value(), own)),
            Attack::Backdoor { scale, .. } => Sent::Clipped(times(scale.value(), own)),
            Attack::Zero {} => Sent::Clipped(vec![0.0; own.len()]),
            Attack::Gaussian { deviation } => {
                let mut chance = self.chance(task.id.round, client).generator();
                let mut normal = || -> f64 { StandardNormal.sample(&mut chance) };
                Sent::Clipped(own.iter().map(|_| deviation.value() * normal()).collect())
            }
            Attack::Norm { norm } => Sent::Raw(unclipped(own, norm.value(), lattice)),
            // What these do, they have done to their records; the others look at the round first.
            Attack::LabelFlip {}
            | Attack::RandomLabels {}
            | Attack::Alie { .. }
            | Attack::InnerProduct { .. }
            | Attack::MinMax { .. }
            | Attack::MinSum { .. }
            | Attack::Mimic { .. } => Sent::AsItIs,
        })
    }

    /// What one of `colluders` clients sends that know what honest clients of the round send; where there are none of these, they know
    /// their own updates alone.
    pub(crate) fn forge_together(
        &self,
        client: &ClientId,
        task: &Task,
        tensors: &[usize],
        answer: Answer,
        agreed: Option<&[f64]>,
    ) -> Answer {
        self.replace(client, task, tensors, answer, |own, _| match agreed {
            Some(agreed) => Sent::Clipped(agreed.to_vec()),
            None => {
                let alone = [Seen { client, values: own }];
                agreed_on(&self.attack, &alone, 1).map_or(Sent::AsItIs, Sent::Clipped)
            }
        })
    }

    /// The vector on which `colluders` clients agree that have seen these updates.
    pub(crate) fn agree(&self, seen: &[Seen<'_>], colluders: usize) -> Option<Vec<f64>> {
        if seen.is_empty() { None } else { agreed_on(&self.attack, seen, colluders) }
    }

    fn chance(&self, round: Round, client: &ClientId) -> Seed {
        self.seed.derive(Purpose::Adversary, round, Some(client))
    }

    /// The answer with other points; weight, vote and metrics stay.
    fn replace(
        &self,
        client: &ClientId,
        task: &Task,
        tensors: &[usize],
        mut answer: Answer,
        other: impl FnOnce(Vec<f64>, &Lattice) -> Sent,
    ) -> Answer {
        let Some(lattice) = lattice_of(task, tensors) else { return answer };
        let Outcome::Done(contribution) = &mut answer.outcome else { return answer };
        let Some(own) = contribution.points().map(|points| in_units(points, &lattice)) else { return answer };
        let points = match other(own, &lattice) {
            Sent::AsItIs => return answer,
            Sent::Raw(points) => Some(points),
            Sent::Clipped(values) => {
                let seed = self.chance(task.id.round, client);
                let weight = lattice.weigh(contribution.weight.into());
                encoded(values, &lattice).and_then(|values| {
                    let encoded = Encoded::encode(&values, weight, &lattice).ok()?;
                    Some(task.spec.update.codec.compress(encoded, &seed).into_points())
                })
            }
        };
        if let Some(points) = points {
            contribution.blocks = vec![Block::new(UPDATE, Values::I32(points))];
        }
        answer
    }
}

/// What is sent instead of an update.
enum Sent {
    /// The update.
    AsItIs,
    /// This, clipped and rounded as the plan says.
    Clipped(Vec<f64>),
    /// These points, whatever their norm.
    Raw(Vec<i32>),
}

/// Clips in two steps: to the bound in f64, since an attacker's numbers may not fit f32, and then as an honest client does.
fn encoded(values: Vec<f64>, lattice: &Lattice) -> Option<privacy::Clipped> {
    let bounded = values.into_iter().map(|value| value.clamp(-VALUE_MAX, VALUE_MAX));
    let mut values: Vec<f64> = bounded.collect();
    let norm = values.iter().map(|value| value * value).sum::<f64>().sqrt();
    let bound = lattice.bound().value();
    if norm > bound {
        values.iter_mut().for_each(|value| *value *= bound / norm);
    }
    lattice.clip(values.into_iter().map(|value| value as f32).collect()).ok()
}

/// An update at this norm, in points of the lattice as far as a point can be said; of an update that is zero, every coordinate.
fn unclipped(own: Vec<f64>, norm: f64, lattice: &Lattice) -> Vec<i32> {
    let length = own.iter().map(|value| value * value).sum::<f64>().sqrt();
    let reach = lattice.range();
    let at_norm = |value: f64| if length > 0.0 { value / length * norm } else { norm };
    // A conversion to an integer stops at its range.
    let point = |value: f64| ((at_norm(value) / lattice.step()).round() as i32).clamp(-reach, reach);
    own.into_iter().map(point).collect()
}
