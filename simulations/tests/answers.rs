//! What a site answers says nothing of its records but what noise lets through and the ledger has paid for.
//!
//! Two sites that differ in one record are put the same hostile tasks, one after another, by a server that knows the wire and
//! sends whatever the grammar of a task allows. Everything that it can see, and everything that the sites' books hold, must be
//! the same at both: the kind of each answer, reason, detail, sizes, metrics, weight, what was charged, and what counts for the
//! limits of a day. Values of updates are not compared: they are noise around something, and the accountants say how far.
//!
//! The mutants put each of the ways back by which answers used to speak; each must be found. `CONSORTIA_THOROUGH=1` asks a
//! hundred times as many tasks.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

#[path = "answers/grammar.rs"]
mod grammar;
#[path = "answers/mutants.rs"]
mod mutants;
#[path = "answers/site.rs"]
mod site;

use grammar::{Dice, Question};
use mutants::Mutant;
use site::{NEIGHBOURS, Site, policies};

/// Tasks that are put to one pair of sites before the next pair takes over.
const TASKS_A_PAIR: usize = 16;

/// How many tasks are asked.
fn tasks() -> usize {
    let thorough = std::env::var("CONSORTIA_THOROUGH").is_ok_and(|value| value == "1");
    if thorough { 1_000_000 } else { 10_000 }
}

/// What was seen of so many tasks.
#[derive(Debug, Default)]
struct Seen {
    tasks: usize,
    /// Answers by kind and reason, to see that the tasks reach everything.
    kinds: std::collections::BTreeMap<String, usize>,
}

/// Puts the tasks of pair number `pair` to two sites that differ in one record. Gives the first difference.
fn compare(pair: u64, mutant: Option<Mutant>, seen: &mut Seen) -> Result<(), String> {
    let mut dice = Dice::new(pair);
    let neighbour = NEIGHBOURS[dice.below(NEIGHBOURS.len())];
    let (policy, records) =
        (dice.pick(&policies()).clone(), dice.pick(&[None, None, None, None, Some(12)]).to_owned());
    let mut sites =
        [false, true].map(|other| Site::new(&policy, records, other.then_some(neighbour), mutant));
    for number in 0..TASKS_A_PAIR {
        let question = Question::draw(&mut dice, number as u32);
        let [one, other] = sites.each_mut().map(|site| site.ask(&question));
        seen.tasks += 1;
        *seen.kinds.entry(one.kind.clone()).or_default() += 1;
        if one != other {
            return Err(format!(
                "{neighbour:?}, pair {pair}, task {number}: {question:?}\n{one:?}\n{other:?}"
            ));
        }
    }
    Ok(())
}

#[test]
fn two_sites_that_differ_in_one_record_answer_every_hostile_task_alike() {
    let (mut seen, mut pair) = (Seen::default(), 0);
    while seen.tasks < tasks() {
        compare(pair, None, &mut seen).unwrap_or_else(|difference| panic!("{difference}"));
        pair += 1;
    }
    eprintln!("{seen:?}");
    // The tasks are no use if they all fail at the door.
    let least = [
        ("trained", 5),
        ("evaluated", 50),
        ("declined unsupported", 20),
        ("declined policy", 20),
        ("declined budget", 2000),
    ];
    for (kind, times) in least {
        let count = seen.kinds.get(kind).copied().unwrap_or_default();
        assert!(
            count * times > seen.tasks,
            "only {count} of {} tasks ended as `{kind}`: {seen:?}",
            seen.tasks
        );
    }
}

#[test]
fn every_way_in_which_answers_used_to_speak_is_found() {
    let missed: Vec<Mutant> = Mutant::ALL
        .into_iter()
        .filter(|mutant| {
            let mut seen = Seen::default();
            let found = (0..400).find_map(|pair| compare(pair, Some(*mutant), &mut seen).err());
            eprintln!("{mutant:?}: {} after {} tasks", found.is_some(), seen.tasks);
            found.is_none()
        })
        .collect();
    assert!(missed.is_empty(), "these mutants were not found: {missed:?}");
}
