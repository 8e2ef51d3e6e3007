//! Updates that are kept come back as they came, from memory and from the disk, in the order of their clients' names.

use std::io;

use privacy::{Lattice, NormBound, Released, Sum};
use protocol::{Metrics, Outcome};

use super::*;

/// Writes down what it sees; a part more for each change of the first coordinate.
#[derive(Debug)]
struct Listing {
    least: usize,
}

impl AggregationRule for Listing {
    fn describe(&self) -> String {
        "a listing".into()
    }
    fn updates_min(&self) -> usize {
        self.least
    }
    fn aggregate(&self, updates: &KeptUpdates) -> io::Result<Vec<f64>> {
        let mut seen = vec![Vec::new(); updates.len()];
        updates.visit(&mut |_, part| {
            part.iter().zip(&mut seen).for_each(|(values, seen)| seen.extend_from_slice(values));
        })?;
        seen.push(updates.previous().unwrap_or_default());
        Ok(seen.concat())
    }
}

struct Nothing;

impl Release for Nothing {
    fn release(&mut self, _: Sum) -> Result<Released, Option<String>> {
        Err(None)
    }
}

fn lattice() -> Lattice {
    Lattice::plan(NormBound::new(8.0).unwrap(), 16, 1, 3).unwrap()
}

/// Keeps the updates (i, i + 1, i + 2) of clients in this order.
fn kept(order: &[usize], memory_max: usize, least: usize) -> Close {
    let (rule, previous) = (Arc::new(Listing { least }), Some(Arc::new(vec![1.0; 3])));
    let chance = Seed::from_number(1);
    let mut keep = Box::new(Keep::new(&lattice(), UpdateCodec::Exact, rule, memory_max, previous, chance));
    let verifier = keep.verifier();
    for number in order {
        let first = *number as i32;
        let outcome = Outcome::trained(vec![first, first + 1, first + 2], 1, 0, Metrics::default());
        let verified = verifier.verify(outcome.into_contribution().unwrap()).unwrap();
        keep.fold(&ClientId::new(&format!("c{number}")).unwrap(), verified).unwrap();
    }
    assert!(!keep.takes_permit() && keep.expects() == PayloadSpec::update(3, UpdateCodec::Exact));
    keep.close(&mut Nothing)
}

fn vector(close: Close) -> Vec<f64> {
    match close {
        Close::Aggregate(Aggregate::Vector(vector)) => {
            vector.iter().map(|value| value / lattice().step()).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn neither_the_order_of_arrival_nor_the_disk_changes_what_a_rule_sees() {
    let expected: Vec<f64> = (0..5).flat_map(|i| [i, i + 1, i + 2]).map(f64::from).collect();
    // All in memory, two of them, none.
    for memory_max in [1 << 20, 24, 0] {
        for order in [[0, 1, 2, 3, 4], [3, 0, 4, 2, 1]] {
            let seen = vector(kept(&order, memory_max, 1));
            assert_eq!(seen[..15], expected, "{memory_max} {order:?}");
            let before = 1.0 / lattice().step();
            assert!(seen[15..].iter().all(|value| *value == before), "{seen:?}");
        }
    }
}

#[test]
fn too_few_updates_for_the_rule_give_nothing_and_say_how_many_are_needed() {
    let Close::Failed(Some(why)) = kept(&[0, 1], 1 << 20, 3) else { panic!("two were enough for three") };
    assert!(why.contains("2 updates came") && why.contains("a listing, needs 3"), "{why}");
    assert!(matches!(kept(&[], 1 << 20, 1), Close::Failed(None)));
}

#[test]
fn updates_that_are_mixed_twice_are_mixed_by_both() {
    let kept = KeptUpdates::of(vec![vec![1], vec![10], vec![100]], 1, 1.0, None, Seed::from_number(1));
    let mixed = kept.mixed(vec![vec![0.5, 0.5, 0.0], vec![0.0, 0.0, 1.0]]).mixed(vec![vec![2.0, 1.0]]);
    assert_eq!((mixed.len(), mixed.weighted_sum(&[1.0]).unwrap()), (1, vec![111.0]));
}
