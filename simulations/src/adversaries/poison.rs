//! Records that corrupted clients train on instead of their own, and records that show whether a backdoor opens.

use std::sync::Arc;

use learning::{Dataset, Labels, View};
use rand::Rng;
use rand::seq::SliceRandom;

use super::Attack;

/// The training records of a corrupted client. Those of an attack that leaves records alone, and real targets, stay as they are.
pub(crate) fn poison(train: &View, attack: &Attack, classes: usize, chance: &mut impl Rng) -> View {
    let own = || train.copied();
    let with = |change: &mut dyn FnMut(&mut u32)| {
        let mut records = own();
        if let Labels::Classes(labels) = &mut records.labels {
            labels.iter_mut().for_each(change);
        }
        records
    };
    let last = u32::try_from(classes.saturating_sub(1)).unwrap_or(u32::MAX);
    let records = match attack {
        Attack::LabelFlip {} => with(&mut |class| *class = last.saturating_sub(*class)),
        Attack::RandomLabels {} => with(&mut |class| *class = chance.random_range(0..=last)),
        Attack::Backdoor { target, share, side, value, .. } => {
            let rows = train.len();
            let count = ((share * rows as f64).ceil() as usize).min(rows);
            let mut order: Vec<usize> = (0..rows).collect();
            let (changed, _) = order.partial_shuffle(chance, count);
            with_pattern(own(), changed, *side, *value as f32, *target)
        }
        Attack::SignFlip { .. }
        | Attack::Gaussian { .. }
        | Attack::Zero {}
        | Attack::Alie { .. }
        | Attack::InnerProduct { .. }
        | Attack::MinMax { .. }
        | Attack::MinSum { .. }
        | Attack::Mimic { .. }
        | Attack::Norm { .. } => return train.clone(),
    };
    View::whole(Arc::new(records))
}

/// Whether records carry the square of a backdoor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    Drawn,
    Absent,
}

/// The test records of other classes than a backdoor's target, with or without its square, and the target as their class: a model's accuracy
/// on them is the share that it takes for the target. `None` where the attack is another, or there are no such records.
pub(crate) fn relabelled(test: &View, attack: &Attack, pattern: Pattern) -> Option<Dataset> {
    let Attack::Backdoor { target, side, value, .. } = attack else { return None };
    let side = if pattern == Pattern::Drawn { *side } else { 0 };
    let Labels::Classes(classes) = &test.dataset.labels else { return None };
    let others = test.rows.iter().copied().filter(|row| classes[*row as usize] != *target);
    let others: Vec<u32> = others.collect();
    let all: Vec<usize> = (0..others.len()).collect();
    let records = test.dataset.select(&others);
    (!others.is_empty()).then(|| with_pattern(records, &all, side, *value as f32, *target))
}

/// The records, `rows` of them with a square in the last corner of every channel, and of class `target`.
fn with_pattern(records: Dataset, rows: &[usize], side: usize, value: f32, target: u32) -> Dataset {
    let Dataset { shape, features, mut labels } = records;
    let width = shape.last().copied().unwrap_or(1);
    let height = shape.len().checked_sub(2).map_or(1, |place| shape[place]);
    let (sample, plane) = (shape.iter().product::<usize>(), width * height);
    let mut values = features.to_vec();
    for row in rows {
        for channel in values[row * sample..(row + 1) * sample].chunks_mut(plane.max(1)) {
            for line in channel.chunks_mut(width.max(1)).rev().take(side) {
                let first = line.len().saturating_sub(side);
                line[first..].fill(value);
            }
        }
        if let Labels::Classes(classes) = &mut labels {
            classes[*row] = target;
        }
    }
    Dataset { shape, features: values.into(), labels }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Seed;

    fn attack(text: &str) -> Attack {
        let config: super::super::AdversariesConfig =
            toml::from_str(&format!("count = 1\nattack = {text}\n")).unwrap();
        config.attack
    }

    /// Four records of two by three pixels, of classes 0 to 3.
    fn records() -> View {
        let features: Vec<f32> = (0u8..24).map(f32::from).collect();
        let labels = Labels::Classes(vec![0, 1, 2, 3]);
        View::whole(Arc::new(Dataset { shape: vec![1, 2, 3], features: features.into(), labels }))
    }

    fn classes(view: &View) -> Vec<u32> {
        match &view.dataset.labels {
            Labels::Classes(classes) => classes.clone(),
            Labels::Real(_) => Vec::new(),
        }
    }

    #[test]
    fn labels_are_flipped_end_to_end_and_pixels_stay() {
        let chance = &mut Seed::from_number(1).generator();
        let poisoned = poison(&records(), &attack("\"label_flip\""), 4, chance);
        assert_eq!(classes(&poisoned), [3, 2, 1, 0]);
        assert_eq!(poisoned.dataset.features, records().dataset.features);
        let drawn = classes(&poison(&records(), &attack("\"random_labels\""), 4, chance));
        assert!(drawn.len() == 4 && drawn.iter().all(|class| *class < 4) && drawn != [0, 1, 2, 3]);
    }

    #[test]
    fn a_backdoor_is_a_square_in_the_corner_of_a_share_of_the_records() {
        let chance = &mut Seed::from_number(1).generator();
        let backdoor = attack("{ backdoor = { target = 2, side = 2, share = 0.5, value = 99 } }");
        let poisoned = poison(&records(), &backdoor, 4, chance);
        let changed: Vec<usize> = (0..4).filter(|row| poisoned.dataset.sample(*row)[1] == 99.0).collect();
        assert_eq!(changed.len(), 2);
        for row in 0..4 {
            let first = 6.0 * row as f32;
            let expected = if changed.contains(&row) {
                assert_eq!(classes(&poisoned)[row], 2);
                vec![first, 99.0, 99.0, first + 3.0, 99.0, 99.0]
            } else {
                assert_eq!(classes(&poisoned)[row], row as u32);
                (0u8..6).map(|pixel| first + f32::from(pixel)).collect()
            };
            assert_eq!(poisoned.dataset.sample(row), expected);
        }
    }

    #[test]
    fn whether_it_opens_is_measured_on_records_of_other_classes() {
        let backdoor = attack("{ backdoor = { target = 2, side = 1, value = 9 } }");
        let test = relabelled(&records(), &backdoor, Pattern::Drawn).unwrap();
        assert_eq!(test.labels, Labels::Classes(vec![2, 2, 2]));
        assert_eq!(test.sample(2), [18.0, 19.0, 20.0, 21.0, 22.0, 9.0]);
        let plain = relabelled(&records(), &backdoor, Pattern::Absent).unwrap();
        assert_eq!((plain.labels.clone(), plain.sample(2)[5]), (test.labels, 23.0));
        assert!(relabelled(&records(), &attack("\"zero\""), Pattern::Drawn).is_none());
    }
}
