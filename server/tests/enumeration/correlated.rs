//! Runs whose noise is correlated: all releases of a run together, through the very code that correlates it.
//!
//! For the noise of all rounds but the last, value by value, the releases of one population follow; the noise with which the
//! other population gives the same releases follows back. In the last round the two differ by a known shift.

use std::collections::BTreeMap;

use privacy::accounting;
use privacy::correlation::{CorrelatedNoise, Correlation};
use privacy::noise::Provenance;

use crate::exact::{Axis, Tails};
use crate::grid::Options;
use crate::release::{Book, schedules};

/// Points of the small lattice that one participation moves the sum by.
fn size() -> i64 {
    if crate::grid::is_thorough() { 12 } else { 8 }
}

/// Deltas of what was enumerated before, by how: caps, weights and tensors change nothing on the small lattice.
#[derive(Default)]
pub(crate) struct Known(BTreeMap<String, f64>);

struct Run {
    correlation: Correlation,
    axis: Axis,
    masses: Vec<f64>,
    tails: BTreeMap<i64, Tails>,
}

impl Run {
    fn new(correlation: Correlation, axis: Axis) -> Self {
        let reach = (8.0 * axis.sigma).ceil() as i64;
        let weight = |z: i64| (-0.5 * (z as f64 / axis.sigma).powi(2)).exp();
        let total: f64 = (-reach..=reach).map(weight).sum();
        let masses = (-reach..=reach).map(|z| weight(z) / total).collect();
        Self { correlation, axis, masses, tails: BTreeMap::new() }
    }

    fn reach(&self) -> i64 {
        self.masses.len() as i64 / 2
    }

    fn mass(&self, z: i64) -> f64 {
        usize::try_from(z + self.reach()).ok().and_then(|at| self.masses.get(at)).copied().unwrap_or(0.0)
    }

    fn again(&self, noise: &CorrelatedNoise) -> CorrelatedNoise {
        let memory = noise.memory().to_vec();
        CorrelatedNoise::restore(self.correlation.clone(), 1, noise.round(), memory).unwrap()
    }

    /// The least delta at `epsilon` between sums `one` and `other`, a number a round.
    fn delta(&mut self, one: &[i64], other: &[i64], epsilon: f64) -> f64 {
        let start = || CorrelatedNoise::new(self.correlation.clone(), 1);
        let (first, second) = (start(), start());
        self.beyond(one, other, (&first, &second), (1.0, 1.0), epsilon)
    }

    fn beyond(
        &mut self,
        one: &[i64],
        other: &[i64],
        before: (&CorrelatedNoise, &CorrelatedNoise),
        chances: (f64, f64),
        epsilon: f64,
    ) -> f64 {
        // What comes out without noise of this round's own.
        let bare =
            [release(&mut self.again(before.0), one[0], 0), release(&mut self.again(before.1), other[0], 0)];
        let shift = bare[0] - bare[1];
        if one.len() == 1 {
            let axis = self.axis;
            let tails = self.tails.entry(shift).or_insert_with(|| Tails::of_shift(axis, shift));
            return tails.beyond(chances.0, chances.1, epsilon);
        }
        let mut sum = 0.0;
        for z in -self.reach()..=self.reach() {
            let chances = (chances.0 * self.mass(z), chances.1 * self.mass(z + shift));
            if chances.0 < 1e-18 {
                continue;
            }
            let (mut first, mut second) = (self.again(before.0), self.again(before.1));
            let released = release(&mut first, one[0], z);
            assert_eq!(released, release(&mut second, other[0], z + shift));
            sum += self.beyond(&one[1..], &other[1..], (&first, &second), chances, epsilon);
        }
        sum
    }
}

fn release(noise: &mut CorrelatedNoise, total: i64, fresh: i64) -> i64 {
    let mut draw = |values: &mut [i64]| {
        values[0] += fresh;
        Ok(Provenance::Entropy)
    };
    noise.release(vec![total], &mut draw).unwrap().0[0]
}

/// Everything that is wrong with a plan of correlated noise.
pub(crate) fn faults(book: &Book<'_>, options: &Options, known: &mut Known) -> Vec<String> {
    let case = book.case;
    let central = &case.central;
    let noised = book.noised();
    let multiplier = central.noise_multiplier.value();
    // The run's own noise is at least what the plan says for its own lattice.
    let dimension = case.tensors;
    let planned = multiplier * central.noise_scale(dimension, noised.sensitivity).unwrap();
    assert!(noised.sigma.value() >= planned * noised.sensitivity as f64 * (1.0 - 1e-12), "{noised:?}");
    // On the small lattice rounding weighs more, and the scale of the noise knows it.
    let scale = central.noise_scale(1, size() as u64).unwrap();
    let axis = Axis { sigma: multiplier * scale * size() as f64, stands_for_a_finer_one: true };
    let mut run = Run::new(central.noise.correlation(), axis);
    let mut faults = Vec::new();
    for (schedule, played) in schedules(book, options.rounds as usize) {
        if !worth_a_look(&schedule) || schedule.len() < options.rounds as usize {
            continue;
        }
        let events = book.events(&played);
        let reserved = accounting::epsilon(&events, case.relation, case.delta).unwrap().best();
        let allowed = case.delta * (1.0 + axis.allowance() * schedule.len() as f64) + 1e-12;
        for alternating in [false, true] {
            let sums = moved(&schedule, alternating);
            let nothing = vec![0; sums.len()];
            for (one, other) in [(&sums, &nothing), (&nothing, &sums)] {
                let noise = (&central.noise, multiplier, one, other, reserved);
                let enumerated = known.0.entry(format!("{noise:?}"));
                let delta = *enumerated.or_insert_with(|| run.delta(one, other, reserved));
                if delta > allowed {
                    faults.push(format!(
                        "{options:?} {schedule:?}: delta {delta:e} at the reserved {reserved:.4}"
                    ));
                }
                if !crate::grid::is_thorough() {
                    break;
                }
            }
        }
    }
    faults
}

/// Taking part less often tells less: of a round more or less, more is looked at. The empty schedule tells nothing.
fn worth_a_look(schedule: &[bool]) -> bool {
    schedule.iter().any(|takes_part| *takes_part)
        && (crate::grid::is_thorough() || schedule.first().is_some_and(|first| *first))
}

fn moved(schedule: &[bool], alternating: bool) -> Vec<i64> {
    let mut sign = 1;
    let of = |takes_part: &bool| {
        if !takes_part {
            return 0;
        }
        let moved = sign * size();
        sign = if alternating { -sign } else { sign };
        moved
    };
    schedule.iter().map(of).collect()
}
