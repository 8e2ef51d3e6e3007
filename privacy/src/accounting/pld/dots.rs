//! From a continuous privacy loss to one on a grid that is nowhere too kind: connect the dots.
//!
//! Doroshenko, Ghazi, Kamath, Kumar, Manurangsi, "Connect the Dots: Tighter Discrete Approximations of Privacy
//! Loss Distributions", 2022: the hockey-stick curve is replaced by the chords between its values at the grid,
//! which lie above it. The paper takes second differences of the curve; at a narrow grid they cancel to noise.
//! The same masses are found here without a difference: the mass within one cell goes to the cell's two ends so
//! that both the upper and the lower distribution keep their mass, and these shares are integrals of positive
//! functions. What lies beyond ten standard deviations goes up a cell, or to infinity.

use super::masses::Masses;
use super::step::Step;

/// Beyond this many standard deviations lies a mass below 1e-23.
const REACH: f64 = 10.0;

/// On a grid wider than this all mass goes up: the losses are then so great that the difference is nothing.
const COARSE: f64 = 0.5;

/// The losses between which a step's distribution is put on a grid.
pub(super) fn range(step: &Step) -> (f64, f64) {
    let (least, most) = ends(step);
    (step.loss(least), step.loss(most))
}

fn ends(step: &Step) -> (f64, f64) {
    (-REACH * step.sigma, REACH * step.sigma + step.upper_mean())
}

/// The distribution of the loss of `step` on the multiples of `interval`, pessimistic.
///
/// The caller has chosen `interval` so that [`range`] holds a sane number of cells.
pub(super) fn connect(step: &Step, interval: f64) -> Masses {
    let (least, most) = ends(step);
    let lowest = (step.loss(least) / interval).floor();
    let highest = (step.loss(most) / interval).ceil().max(lowest + 1.0);
    let cells = (highest - lowest) as usize;
    let mut finite = vec![0.0; cells + 1];
    let mut from = least;
    for cell in 0..cells {
        let floor = (lowest + cell as f64) * interval;
        let to = if cell + 1 == cells { most } else { step.position(floor + interval).clamp(from, most) };
        let (all, up) = shares(step, floor, interval, from, to);
        finite[cell] += all - up;
        finite[cell + 1] += up;
        from = to;
    }
    // What lies below the first cell has a loss of no more than the first cell's upper end.
    finite[1] += libm::erfc(REACH / std::f64::consts::SQRT_2) / 2.0;
    Masses { interval, lowest: lowest as i64, finite, infinite: step.mass_above(most) }
}

/// The upper distribution's mass between `from` and `to`, where the loss lies between `floor` and `floor +
/// interval`, and the part of it that belongs to the upper end.
fn shares(step: &Step, floor: f64, interval: f64, from: f64, to: f64) -> (f64, f64) {
    let width = to - from;
    let scale = if interval > COARSE { step.sigma } else { step.sigma.min(step.sigma * step.sigma) };
    if width <= 0.0 {
        return (0.0, 0.0);
    }
    if width <= 0.05 * scale {
        return panel(step, floor, interval, from, to, &THREE);
    }
    let panels = (width / (0.5 * scale)).ceil().clamp(1.0, 1e5);
    let mut total = (0.0, 0.0);
    for i in 0..panels as u32 {
        let left = from + width * f64::from(i) / panels;
        let right = from + width * f64::from(i + 1) / panels;
        let part = panel(step, floor, interval, left, right, &EIGHT);
        total = (total.0 + part.0, total.1 + part.1);
    }
    total
}

fn panel(step: &Step, floor: f64, interval: f64, from: f64, to: f64, rule: &[(f64, f64)]) -> (f64, f64) {
    let (middle, half) = ((from + to) / 2.0, (to - from) / 2.0);
    let whole = -(-interval).exp_m1();
    let (mut all, mut up) = (0.0, 0.0);
    for &(node, weight) in rule {
        for x in [middle - half * node, middle + half * node] {
            let mass = weight * half * step.density(x);
            let share = if interval > COARSE { 1.0 } else { -(floor - step.loss(x)).exp_m1() / whole };
            all += mass;
            up += mass * share.clamp(0.0, 1.0);
        }
    }
    (all, up)
}

/// Gauss-Legendre nodes on (0, 1) with their weights; each stands for its mirror image too.
const THREE: [(f64, f64); 2] = [(0.0, 4.0 / 9.0), (0.774_596_669_241_483_4, 5.0 / 9.0)];
const EIGHT: [(f64, f64); 4] = [
    (0.183_434_642_495_649_8, 0.362_683_783_378_362),
    (0.525_532_409_916_329, 0.313_706_645_877_887_27),
    (0.796_666_477_413_626_7, 0.222_381_034_453_374_48),
    (0.960_289_856_497_536_3, 0.101_228_536_290_376_26),
];

#[cfg(test)]
mod tests {
    use super::super::step::Direction;
    use super::*;

    #[test]
    fn the_dots_lie_on_the_curve_and_the_chords_above_it() {
        for direction in [Direction::Remove, Direction::Add, Direction::Replace] {
            for (sigma, rate) in [(0.5, 1.0), (1.0, 0.01), (0.7, 0.1), (8.0, 0.2), (0.8, 1e-4), (0.02, 0.5)] {
                let step = Step { sigma, rate, direction };
                let (least, most) = range(&step);
                let interval = ((most - least) / 1e5).max(1e-4);
                let masses = connect(&step, interval);
                let total = masses.finite.iter().sum::<f64>() + masses.infinite;
                assert!((total - 1.0).abs() < 1e-12, "{step:?} has mass {total}");
                for i in 0..40 {
                    let dot = ((least + (most - least) * f64::from(i) / 40.0) / interval).round() * interval;
                    let (exact, found) = (step.delta(dot), masses.delta(dot));
                    assert!((found - exact).abs() < 1e-11, "{step:?} at {dot}: {found} against {exact}");
                    let between = dot + interval / 2.0;
                    let (exact, found) = (step.delta(between), masses.delta(between));
                    assert!(
                        found >= exact * (1.0 - 1e-9) - 1e-15,
                        "{step:?} at {between}: {found} < {exact}"
                    );
                }
            }
        }
    }
}
