//! What colluding clients make of the updates that honest ones send.
//!
//! ALIE: Baruch, Baruch, Goldberg 2019, algorithm 1. Inner-product manipulation: Xie, Koyejo, Gupta 2020, section 4. Min-max and min-sum:
//! Shejwalkar, Houmansadr 2021, section IV, with the factor found by bisection. Mimic: Karimireddy, He, Jaggi 2022, section 3, without the
//! search for whom to mimic. All of it is in f64, client by client in the order of their names.

use protocol::ClientId;

use super::config::{Attack, Direction};

/// What an honest client sends, in units of the parameters.
pub(crate) struct Seen<'a> {
    pub(crate) client: &'a ClientId,
    pub(crate) values: Vec<f64>,
}

/// Halvings of the interval in which the largest factor lies.
const HALVINGS: u32 = 60;
/// Doublings in search of a factor that is too large.
const DOUBLINGS: u32 = 60;

/// What turns a single update around where an attack has no spread to hide in: the epsilon of inner-product manipulation by default.
const TURNED: f64 = 0.5;

/// The vector that `colluders` clients send beside the updates `seen`, of which there is at least one, in the order of names; `None` where
/// the attack is none of this kind. Of one update alone there is no spread, and those that hide in one would send that very update: they
/// turn it around.
pub(crate) fn agreed_on(attack: &Attack, seen: &[Seen<'_>], colluders: usize) -> Option<Vec<f64>> {
    if let ([alone], true) = (seen, attack.hides_in_spread()) {
        return Some(alone.values.iter().map(|value| -TURNED * value).collect());
    }
    match attack {
        Attack::Alie { z } => {
            let z = z.map_or_else(|| z_max(seen.len() + colluders, colluders), |z| z.value());
            Some(moved(&mean(seen), &deviations(seen), -z))
        }
        Attack::InnerProduct { epsilon } => {
            Some(mean(seen).into_iter().map(|value| -epsilon.value() * value).collect())
        }
        Attack::MinMax { direction } => {
            let farthest = largest(pairs(seen).map(|(_, _, square)| square));
            Some(farthest_from(seen, *direction, |squares| largest(squares) <= farthest))
        }
        Attack::MinSum { direction } => {
            let mut sums = vec![0.0; seen.len()];
            for (one, other, square) in pairs(seen) {
                sums[one] += square;
                sums[other] += square;
            }
            let farthest = largest(sums.into_iter());
            Some(farthest_from(seen, *direction, |squares| squares.sum::<f64>() <= farthest))
        }
        Attack::Mimic { client } => {
            let named = client.as_ref().and_then(|client| seen.iter().find(|seen| seen.client == client));
            named.or_else(|| seen.first()).map(|seen| seen.values.clone())
        }
        Attack::SignFlip { .. }
        | Attack::Gaussian { .. }
        | Attack::Zero {}
        | Attack::LabelFlip {}
        | Attack::RandomLabels {}
        | Attack::Backdoor { .. }
        | Attack::Norm { .. } => None,
    }
}

/// The mean, moved as far as `is_allowed` says of the squared distances to the honest updates.
fn farthest_from(
    seen: &[Seen<'_>],
    direction: Direction,
    is_allowed: impl Fn(&mut dyn Iterator<Item = f64>) -> bool,
) -> Vec<f64> {
    let mean = mean(seen);
    let along = match direction {
        Direction::Deviation => deviations(seen).into_iter().map(|value| -value).collect(),
        Direction::Unit => {
            let norm = mean.iter().map(|value| value * value).sum::<f64>().sqrt();
            mean.iter().map(|value| if norm > 0.0 { -value / norm } else { 0.0 }).collect::<Vec<_>>()
        }
        Direction::Sign => {
            mean.iter().map(|value| if *value == 0.0 { 0.0 } else { -value.signum() }).collect()
        }
    };
    if along.iter().all(|value| *value == 0.0) {
        return mean;
    }
    let allows = |factor: f64| {
        let vector = moved(&mean, &along, factor);
        is_allowed(&mut seen.iter().map(|seen| square(&vector, &seen.values)))
    };
    let (mut near, mut far) = (0.0, 1.0);
    for _ in 0..DOUBLINGS {
        if !allows(far) {
            break;
        }
        (near, far) = (far, 2.0 * far);
    }
    for _ in 0..HALVINGS {
        let middle = 0.5 * (near + far);
        if allows(middle) { near = middle } else { far = middle }
    }
    moved(&mean, &along, near)
}

/// The largest z at which `n - f` honest clients have enough beyond the corrupted ones: `Phi^-1((n - f - s) / (n - f))` with
/// `s = floor(n / 2) + 1 - f`. Corrupted clients that are a majority need nobody; they act as if they needed one.
fn z_max(n: usize, f: usize) -> f64 {
    let honest = n - f;
    let needed = (n / 2 + 1).saturating_sub(f).max(1);
    quantile(honest.saturating_sub(needed) as f64 / honest as f64)
}

/// The standard normal quantile of a chance, at least 0: a colluder that stays at the mean does no harm, and none moves the other way.
fn quantile(chance: f64) -> f64 {
    let below = |x: f64| 0.5 * libm::erfc(-x / std::f64::consts::SQRT_2) < chance;
    let (mut low, mut high) = (0.0, 10.0);
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        if below(middle) { low = middle } else { high = middle }
    }
    low
}

fn mean(seen: &[Seen<'_>]) -> Vec<f64> {
    let mut mean = vec![0.0; seen.first().map_or(0, |seen| seen.values.len())];
    for one in seen {
        mean.iter_mut().zip(&one.values).for_each(|(sum, value)| *sum += value);
    }
    mean.iter_mut().for_each(|sum| *sum /= seen.len() as f64);
    mean
}

/// Of each coordinate, over those who are seen.
fn deviations(seen: &[Seen<'_>]) -> Vec<f64> {
    let mean = mean(seen);
    let mut squares = vec![0.0; mean.len()];
    for one in seen {
        for ((square, value), mean) in squares.iter_mut().zip(&one.values).zip(&mean) {
            *square += (value - mean) * (value - mean);
        }
    }
    squares.into_iter().map(|square| (square / seen.len() as f64).sqrt()).collect()
}

fn moved(from: &[f64], along: &[f64], factor: f64) -> Vec<f64> {
    from.iter().zip(along).map(|(from, along)| from + factor * along).collect()
}

fn square(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(one, other)| (one - other) * (one - other)).sum()
}

/// Squared distances of all pairs.
fn pairs<'a>(seen: &'a [Seen<'_>]) -> impl Iterator<Item = (usize, usize, f64)> + 'a {
    let others = move |one: usize| {
        (one + 1..seen.len()).map(move |other| (one, other, square(&seen[one].values, &seen[other].values)))
    };
    (0..seen.len()).flat_map(others)
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(attack: &str, values: &[&[f64]], colluders: usize) -> Vec<f64> {
        let names: Vec<ClientId> =
            (0..values.len()).map(|i| ClientId::new(&format!("c{i}")).unwrap()).collect();
        let seen: Vec<Seen<'_>> = names
            .iter()
            .zip(values)
            .map(|(client, values)| Seen { client, values: values.to_vec() })
            .collect();
        let config: super::super::AdversariesConfig =
            toml::from_str(&format!("count = 1\nattack = {attack}\n")).unwrap();
        agreed_on(&config.attack, &seen, colluders).unwrap()
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
    }

    #[test]
    fn a_little_is_enough_moves_by_the_quantile_that_the_numbers_give() {
        // n = 10, f = 2: s = 4, and 4 of 8 honest clients are left: the median, z = 0. n = 10, f = 4: s = 2, 4 of 6.
        near(z_max(10, 2), 0.0);
        near(z_max(10, 4), 0.430_727_299_295_457_6);
        near(z_max(50, 24), 1.426_076_872_272_85);
        assert!(z_max(3, 2) >= 0.0);
        // Mean 2, deviation 1.
        assert_eq!(told("{ alie = { z = 1.5 } }", &[&[1.0], &[3.0]], 1), [0.5]);
    }

    #[test]
    fn inner_products_are_turned_and_the_named_client_is_mimicked() {
        assert_eq!(
            told("{ inner_product = { epsilon = 10 } }", &[&[1.0, 0.0], &[3.0, 2.0]], 1),
            [-20.0, -10.0]
        );
        assert_eq!(told("\"mimic\"", &[&[1.0], &[3.0]], 1), [1.0]);
        assert_eq!(told("{ mimic = { client = \"c1\" } }", &[&[1.0], &[3.0]], 1), [3.0]);
        // One that takes no part in the round.
        assert_eq!(told("{ mimic = { client = \"c9\" } }", &[&[1.0], &[3.0]], 1), [1.0]);
    }

    #[test]
    fn min_max_goes_as_far_as_the_two_that_differ_most() {
        // The farthest pair is 4 apart, and the mean is 2: 4 away from the farther one, 4, is 0.
        for direction in ["deviation", "unit", "sign"] {
            let sent = told(
                &format!("{{ min_max = {{ direction = \"{direction}\" }} }}"),
                &[&[0.0], &[4.0], &[2.0]],
                1,
            );
            near(sent[0], 0.0);
        }
        // From 0 and 4: sums of squares are 16 + 4 = 20 for the outer ones; (x - 0)^2 + (x - 4)^2 + (x - 2)^2 = 20 at 2 - 2.
        near(told("\"min_sum\"", &[&[0.0], &[4.0], &[2.0]], 1)[0], 0.0);
    }

    #[test]
    fn beside_one_honest_update_nobody_sends_the_same_but_who_mimics() {
        for attack in
            ["\"min_max\"", "{ min_sum = { direction = \"unit\" } }", "\"alie\"", "{ alie = { z = 2 } }"]
        {
            assert_eq!(told(attack, &[&[2.0, -4.0]], 1), [-1.0, 2.0], "{attack}");
        }
        assert_eq!(told("\"mimic\"", &[&[2.0, -4.0]], 1), [2.0, -4.0]);
    }

    #[test]
    fn honest_updates_that_are_all_alike_leave_nowhere_to_hide() {
        for attack in ["\"min_max\"", "\"min_sum\"", "\"alie\""] {
            assert_eq!(told(attack, &[&[1.0, 2.0], &[1.0, 2.0]], 1), [1.0, 2.0]);
        }
    }
}
