//! When a run of k-means ends, whom a round waits for, and what no records can have sent.

use std::collections::BTreeMap;

use protocol::{Answer, Outcome, Round, RunId, Seed, Task, TaskId, Time, Trains};
use server::{Action, Checkpoint, Coordinator, Event, RunEnd, Setup};

use super::*;
use crate::Registry;

const PLAN: &str = "name = \"groups\"\nrounds = 9\n[method.kmeans]\nclusters = 2\n\
    [data.table]\nlabel = \"y\"\ntarget = \"real\"\nfeatures = [\"a\"]\n";

fn plan_of(extra: &str) -> Plan {
    Registry::standard().server().parse(&format!("{PLAN}{extra}")).unwrap()
}

/// A run whose shell obeys, and clients that each have records at -1 and at 1.
struct Stage {
    coordinator: Coordinator,
    now: Time,
    open: BTreeMap<ClientId, Task>,
    cancelled: usize,
    rounds: u32,
    end: Option<RunEnd>,
}

impl Stage {
    fn new(extra: &str, clients: &[&str]) -> Self {
        Self::resume(plan_of(extra), Checkpoint::begin(Parameters::new(vec![-0.5, 0.5])), clients)
    }

    fn resume(plan: Plan, checkpoint: Checkpoint, clients: &[&str]) -> Self {
        let setup = Setup {
            run: RunId(1),
            plan: Arc::new(plan),
            entropy: Seed::from_number(3),
            is_seeded: true,
            central: false,
            checkpoint,
            clients: BTreeMap::new(),
            tensors: Vec::new(),
            dp_context: None,
        };
        let coordinator = Coordinator::new(setup).unwrap();
        let (now, open, end) = (Time::ZERO, BTreeMap::new(), None);
        let mut stage = Self { coordinator, now, open, cancelled: 0, rounds: 0, end };
        let clients = clients.iter().map(|client| ClientId::new(client).unwrap()).collect();
        let capabilities = Arc::new(Registry::standard().site().capabilities(Trains::BuiltIn));
        stage.handle(Event::JoinedTogether { clients, capabilities });
        stage
    }

    fn handle(&mut self, event: Event) {
        self.coordinator.handle(self.now, event);
        while let Some(action) = self.coordinator.poll() {
            match action {
                Action::Send { client, task } => drop(self.open.insert(client, task)),
                Action::Cancel { client, .. } => {
                    self.cancelled += usize::from(self.open.remove(&client).is_some());
                }
                Action::Commit(_) => {
                    self.rounds += 1;
                    self.coordinator.handle(self.now, Event::Committed);
                }
                Action::Ended(end) => self.end = Some(end),
                _ => {}
            }
        }
    }

    /// The answers of so many of those who are asked, in the order of their names.
    fn answer(&mut self, many: usize) {
        let asked: Vec<(ClientId, Task)> =
            self.open.iter().take(many).map(|(client, task)| (client.clone(), task.clone())).collect();
        for (client, task) in asked {
            if self.open.remove(&client).is_some() {
                let outcome = Outcome::Done(records());
                self.handle(Event::Answered { client, answer: Answer { task: task.id, outcome } });
            }
        }
    }

    fn wait_for_deadline(&mut self) {
        self.now = self.coordinator.deadline().unwrap();
        self.open.clear();
        self.handle(Event::Tick);
    }
}

/// Two records at -1 and three at 1, of centres on either side of 0.
fn records() -> Contribution {
    contribution(&[2.0, 0.0, -2.0, 3.0, 0.0, 3.0])
}

fn contribution(sums: &[f64]) -> Contribution {
    let sums: Vec<WideSum> = sums.iter().map(|sum| WideSum::of(*sum).unwrap()).collect();
    let words = Statistics::encode(&sums).into_words();
    let metrics = Metrics { loss: 0.5, examples: 5, ..Metrics::default() };
    let blocks = vec![Block::new(SUMS, Values::I64(words))];
    Contribution { metrics: Some(metrics), ..Contribution::of(blocks) }
}

#[test]
fn a_run_ends_when_all_sites_have_moved_no_centre_and_not_when_a_part_of_them_has() {
    let mut stage = Stage::new("[cohort]\nclients_min = 3\nquorum = 1\n", &["a", "b", "c"]);
    // Centres of one site's records, from which the same records move none.
    for _ in 0..4 {
        stage.answer(1);
        stage.wait_for_deadline();
    }
    assert_eq!((stage.rounds, &stage.end), (4, &None), "rounds of a part say nothing about the others");
    // The first round of all is compared with rounds of one.
    stage.answer(3);
    assert_eq!((stage.rounds, &stage.end), (5, &None));
    stage.answer(3);
    assert_eq!((stage.rounds, &stage.end), (6, &Some(RunEnd::Finished)));
}

#[test]
fn a_run_goes_on_after_a_crash_as_if_there_had_been_none() {
    let extra = "[cohort]\nclients_min = 2\n";
    let mut stage = Stage::new(extra, &["a", "b"]);
    stage.answer(2);
    let checkpoint = stage.coordinator.checkpoint().clone();
    assert!(!checkpoint.workflow.is_empty(), "it remembers whose records the centres are of");
    let mut again = Stage::resume(plan_of(extra), checkpoint.clone(), &["a", "b"]);
    again.answer(2);
    assert_eq!(again.end, Some(RunEnd::Finished));
    let mut others = Stage::resume(plan_of(extra), checkpoint, &["a", "c"]);
    others.answer(2);
    assert_eq!(others.end, None, "these are other sites");
}

#[test]
fn what_is_remembered_is_read_in_the_form_of_the_release_before_and_nothing_else_is() {
    let plan = Arc::new(plan_of(""));
    let workflow = || plan.method.as_ref().unwrap().planned.workflow(&plan).unwrap();
    let digest = Digest::of(b"sites").to_string();
    for known in [&b""[..], &[1], format!("0{digest}").as_bytes(), format!("1{digest}").as_bytes()] {
        let mut workflow = workflow();
        workflow.recall(known).unwrap();
        let expected = if known == [1] { b"" } else { known };
        assert_eq!(workflow.memory(), expected);
    }
    for unknown in [&[0][..], b"2", b"1", digest.as_bytes(), &[0xff; 65]] {
        assert!(workflow().recall(unknown).is_err(), "{unknown:?}");
    }
}

#[test]
fn a_round_that_asks_more_sites_than_it_needs_ends_with_as_many_as_it_needs() {
    let mut stage =
        Stage::new("[cohort]\nclients_min = 4\ncount = 2\noversample = 2.0\n", &["a", "b", "c", "d"]);
    for round in 1..9 {
        assert_eq!(stage.open.len(), 4);
        stage.answer(2);
        assert_eq!((stage.rounds, stage.cancelled), (round, 2 * round as usize));
        assert_eq!(stage.end, None, "rounds of a part never end a run early");
    }
    stage.answer(2);
    assert_eq!(stage.end, Some(RunEnd::Finished));
}

#[test]
fn answers_that_no_site_could_send_are_refused_with_the_plan() {
    let features: Vec<String> = (0..60_000).map(|column| format!("\"c{column}\"")).collect();
    let plan = |clusters: usize| {
        let text = PLAN.replace("clusters = 2", &format!("clusters = {clusters}"));
        Registry::standard().server().parse(&text.replace("\"a\"", &features.join(",")))
    };
    let fine = plan(500).unwrap();
    let steps = fine.method.as_ref().unwrap().planned.steps();
    assert_eq!(steps[0].answer.bytes_max(), Some(32 * 500 * 60_002));
    let label = fine.method.as_ref().unwrap().label_of(ASSIGN);
    let task = TaskId::new(RunId(1), Round(2), ASSIGN).labelled(label);
    assert_eq!(task.step_title(), "kmeans: assign");
    let at_a_site = Registry::standard().site().label_of(&NAME, VERSION, ASSIGN);
    assert_eq!(task.labelled(at_a_site).step_title(), "kmeans: assign", "both halves call it so");
    let error = plan(600).unwrap_err();
    for told in ["`assign`", "1152038400", "1073741824", "method.kmeans"] {
        assert!(error.to_string().contains(told), "{told}: {error}");
    }
}

#[test]
fn sums_that_no_records_have_are_refused() {
    let judge = |sums: &[f64]| {
        let sums: Vec<WideSum> = sums.iter().map(|sum| WideSum::of(*sum).unwrap()).collect();
        plausible(&sums, 1)
    };
    assert_eq!(judge(&[2.0, 0.0, -2.0, 0.0, 0.0, 0.0]), Ok(()));
    let largest = f64::from(f32::MAX);
    assert_eq!(judge(&[1.0, 0.0, largest]), Ok(()));
    for (sums, why) in [
        ([1.0, 0.0, 2.0 * largest], "as large"),
        ([1.0, 0.0, -1e300], "as large"),
        ([-1.0, 0.0, 0.0], "count"),
        ([0.0, 1.0, 0.0], "without a record"),
    ] {
        assert!(judge(&sums).unwrap_err().contains(why), "{sums:?}");
    }
    // What they can have moves no centre beyond the numbers of a model.
    let totals: Vec<WideSum> =
        [1.0, 1e300, largest, 0.0, 0.0, 0.0].iter().map(|sum| WideSum::of(*sum).unwrap()).collect();
    assert!(moved(&[0.0, 0.0], &totals, 1).iter().all(|centre| centre.is_finite()));
}
