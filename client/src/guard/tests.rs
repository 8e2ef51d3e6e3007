//! A participant with a guard: what the server hears, what the books say, and that nothing is done that was denied.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use privacy::chain::{Chain, ChainWriter, Digest, read_lines};
use privacy::ledger::Unit;
use protocol::{
    ClientId, Contribution, DataSpec, ExternalModel, ExternalTensor, ModelSpec, NoiseCorrelation, Parameters,
    Positive, PrivacySpec, Seed, Standardiser, Stop, Weighting,
};

use super::*;
use crate::Participant;
use crate::audit::AuditRecord;
use crate::ledger::SiteAccount;
use crate::ledger::tests::{Paper, central, examples, local, private};
use crate::participant::tests::{Mood, Toy, entropy, spec, task, train};
use crate::policy::PLAIN_POLICY;

/// A site and its books.
struct Site {
    participant: Participant,
    ledger: Paper,
    audit: Paper,
    prepared: Arc<std::sync::atomic::AtomicU32>,
}

fn site(policy: &str, mood: Mood) -> Site {
    with_papers(policy, mood, Paper::default(), Paper::default())
}

fn with_papers(policy: &str, mood: Mood, ledger: Paper, audit: Paper) -> Site {
    with_learner(policy, Toy::new(&[], mood), ledger, audit)
}

fn with_learner(policy: &str, toy: Toy, ledger: Paper, audit: Paper) -> Site {
    let books =
        SiteLedger::open(&[], Box::new(ledger.clone()) as Box<dyn Write + Send>, Digest::of(b"")).unwrap();
    let writer = ChainWriter::new(Chain::new(), Box::new(audit.clone()) as Box<dyn Write + Send>);
    let clock = || Time::ZERO;
    let guard = Guard::new(Policy::parse(policy).unwrap(), books, Audit::new(writer, clock), clock);
    let prepared = Arc::clone(&toy.prepared);
    let participant = Participant::new(ClientId::new("north").unwrap(), Box::new(toy)).with_guard(guard);
    Site { participant, ledger, audit, prepared }
}

impl Site {
    fn answer(&mut self, task: &Task) -> Outcome {
        self.participant.perform(task, entropy(), &Stop::default()).outcome
    }

    fn declined(&mut self, task: &Task) -> (Decline, String) {
        match self.answer(task) {
            Outcome::Declined { reason, detail } => (reason, detail),
            other => panic!("{other:?}"),
        }
    }

    /// The names of the audit log's events.
    fn events(&self) -> Vec<String> {
        let links = read_lines(&self.audit.text()).unwrap().links;
        let event =
            |record: AuditRecord| serde_json::to_value(record).unwrap()["event"].as_str().unwrap().to_owned();
        links.iter().map(|link| event(link.read().unwrap())).collect()
    }

    fn account(&self) -> SiteAccount {
        SiteAccount::read(&self.ledger.text()).unwrap()
    }
}

#[test]
fn what_is_denied_is_not_begun_and_the_server_hears_one_fixed_sentence() {
    let silent = PLAIN_POLICY.replace("parameters_max = \"any\"", "parameters_max = 2");
    for policy in [silent.as_str(), ""] {
        let mut site = site(policy, Mood::Well);
        let told = site.declined(&train(1, 3));
        assert_eq!(told, (Decline::Policy, "the site's policy does not allow this".to_owned()));
        assert_eq!(site.prepared.load(Ordering::Relaxed), 0, "the learner was not even prepared");
        assert!(site.ledger.text().is_empty());
        assert_eq!(site.events(), ["received", "denied"]);
    }
    let error = site("", Mood::Well).participant.attempt(&train(1, 3), entropy(), &Stop::default());
    assert!(error.unwrap_err().message.contains("rule `tasks`"), "the site's own log has the rule");
}

#[test]
fn a_training_is_reserved_before_it_begins_and_stays_reserved_whatever_comes_of_it() {
    for (mood, events) in [
        (Mood::Well, ["received", "allowed", "done"]),
        (Mood::NotFinite, ["received", "allowed", "failed"]),
        (Mood::Private, ["received", "allowed", "failed"]),
        (Mood::Panics, ["received", "allowed", "failed"]),
    ] {
        let mut site = site(PLAIN_POLICY, mood);
        let outcome = site.answer(&train(1, 3));
        assert_eq!(outcome.points().is_some(), mood == Mood::Well, "{outcome:?}");
        let account = site.account();
        assert_eq!((account.history().attempts(), account.trained().count()), (1, 1));
        assert_eq!(site.events(), events.map(String::from));
    }
}

/// Asks what is told and reserved of a training under `privacy`, in every mood of the learner.
fn told_in_every_mood(privacy: &PrivacySpec) -> Vec<(String, usize, Vec<String>)> {
    let moods = [Mood::Well, Mood::NotFinite, Mood::BadLoss, Mood::Private, Mood::Panics, Mood::Empty];
    let told = |mood| {
        let mut site = site(PLAIN_POLICY, mood);
        let shape = match site.answer(&private(1, privacy.clone())) {
            Outcome::Done(done) => {
                format!(
                    "{} {} {} {:?}",
                    done.points().unwrap().len(),
                    done.weight,
                    done.vote,
                    done.metrics.unwrap()
                )
            }
            other => format!("{other:?}"),
        };
        let complains = site.participant.take_complaint().is_some();
        assert_eq!(complains, mood != Mood::Well && mood != Mood::BadLoss && mood != Mood::Empty, "{shape}");
        (shape, site.ledger.text().len(), site.events())
    };
    moods.map(told).to_vec()
}

#[test]
fn under_noise_at_the_site_every_fault_of_records_is_an_ordinary_answer() {
    let told = told_in_every_mood(&local(1e6));
    assert!(told[0].0.starts_with("3 1 0 Metrics"), "{told:?}");
    assert!(told.iter().all(|one| *one == told[0]), "{told:?}");
}

#[test]
fn under_a_promise_for_records_a_learner_that_fails_gives_one_reason_and_is_charged() {
    let mut failing = BTreeSet::new();
    for mood in [Mood::NotFinite, Mood::Private, Mood::Panics] {
        let mut site = site(PLAIN_POLICY, mood);
        let mut task = private(1, examples(1e6));
        let spec = Arc::make_mut(&mut task.spec);
        (spec.training.batch_size, spec.update.weights) = (4, Weighting::Uniform);
        failing.insert(site.declined(&task));
        assert!(site.participant.take_complaint().is_some());
        assert!(site.account().total(Unit::Example, None, 1e-5).unwrap().epsilon.best() > 0.0);
    }
    assert_eq!(failing.len(), 1, "{failing:?}");
}

#[test]
fn a_training_that_is_charged_once_more_is_known_as_such() {
    let again = |site: &mut Site, task: &Task| {
        site.answer(task);
        site.participant.was_charged_again()
    };
    let mut protected = site(PLAIN_POLICY, Mood::Well);
    let first = private(1, local(1e6));
    assert!(!again(&mut protected, &first));
    assert!(again(&mut protected, &first), "its answer was not kept, so it has cost twice");
    assert!(!again(&mut protected, &private(2, local(1e6))), "of the last task alone");
    // What costs nothing is charged no second time.
    let mut plain = site(PLAIN_POLICY, Mood::Well);
    assert!(!again(&mut plain, &train(1, 3)) && !again(&mut plain, &train(1, 3)));
}

#[test]
fn a_task_that_was_stopped_before_a_record_was_read_costs_nothing_and_counts_as_an_attempt() {
    // The ledger's disk is slow, and meanwhile the task is stopped.
    let stop = Stop::default();
    let mut site = with_papers(PLAIN_POLICY, Mood::Well, Paper::stopping(&stop), Paper::default());
    let error = site.participant.attempt(&private(1, local(1e6)), entropy(), &stop).unwrap_err();
    assert_eq!(error.reason, Decline::Stopped);
    let account = site.account();
    assert_eq!((account.history().attempts(), account.trained().count()), (1, 0));
    assert_eq!(site.account().total(Unit::Client, None, 1e-5).unwrap().epsilon.best(), 0.0);
    assert_eq!(site.events(), ["received", "allowed", "failed"]);
}

#[test]
fn numbers_of_a_task_are_refused_before_the_policy_and_the_records() {
    let changes: [fn(&mut Task); 8] = [
        |task| task.work = train_from(f32::NAN),
        |task| task.work = train_from(1e10),
        |task| Arc::make_mut(&mut task.spec).proximal_mu = 1e7,
        |task| Arc::make_mut(&mut task.spec).update.norm_max = Positive::new(1e30).unwrap(),
        |task| task.standardiser = Some(Arc::new(Standardiser { mean: vec![f64::NAN], std: vec![1.0] })),
        |task| task.standardiser = Some(Arc::new(Standardiser { mean: vec![0.0], std: vec![1e-300] })),
        |task| {
            if let Work::Train { learning_rate_scale, .. } = &mut task.work {
                *learning_rate_scale = 1e300;
            }
        },
        |task| task.work = Work::Statistics { names: Vec::new() },
    ];
    for (place, change) in changes.into_iter().enumerate() {
        let mut site = site(PLAIN_POLICY, Mood::Well);
        let mut task = private(1, local(1e6));
        change(&mut task);
        let (reason, _) = site.declined(&task);
        assert!([Decline::Unsupported, Decline::NotFinite].contains(&reason), "{place}: {reason:?}");
        assert_eq!(site.prepared.load(Ordering::Relaxed), 0, "{place}: the learner was not even prepared");
        assert!(site.ledger.text().is_empty(), "{place}");
        assert!(String::from_utf8(site.audit.text()).unwrap().contains(r#""rule":"numbers""#), "{place}");
    }
}

fn train_from(value: f32) -> Work {
    let model = Arc::new(Parameters::new(vec![0.5, value, 0.5]));
    Work::Train { model, learning_rate_scale: 1.0, norm_max: None }
}

#[test]
fn a_model_is_judged_with_what_stays_at_the_site() {
    // Two of three parameters are shared, and only the whole is too large.
    let policy = PLAIN_POLICY.replace("parameters_max = \"any\"", "parameters_max = 2");
    let toy = Toy::new(&["head"], Mood::Well);
    let mut site = with_learner(&policy, toy, Paper::default(), Paper::default());
    assert_eq!(site.declined(&train(1, 2)).0, Decline::Policy);
    assert!(site.ledger.text().is_empty());
}

#[test]
fn an_evaluation_that_tells_nothing_touches_no_record() {
    for privacy in [local(8.0), examples(8.0), central(NoiseCorrelation::Independent)] {
        let mut site = site(PLAIN_POLICY, Mood::Panics);
        let model = Arc::new(Parameters::new(vec![0.5; 3]));
        let task = Task { work: Work::Evaluate { model }, ..private(1, privacy) };
        let task = Task { id: protocol::TaskId { step: protocol::StepId::EVALUATE, ..task.id }, ..task };
        assert_eq!(site.answer(&task), Outcome::evaluated(Metrics::default()));
        assert_eq!(site.prepared.load(Ordering::Relaxed), 0, "the learner was not even prepared");
        assert_eq!((site.ledger.text().len(), site.events().last().unwrap().as_str()), (0, "done"));
    }
}

#[test]
fn a_spent_budget_declines_with_its_own_reason() {
    let mut site = site(PLAIN_POLICY, Mood::Well);
    let refused = (1..50).find(|round| {
        let outcome = site.answer(&private(*round, local(4.0)));
        matches!(outcome, Outcome::Declined { reason: Decline::Budget, .. })
    });
    let epsilon = site.account().total(Unit::Client, None, 1e-5).unwrap().epsilon.best();
    assert!(refused.is_some_and(|round| round > 1) && epsilon <= 4.0, "{refused:?}, {epsilon}");
    assert_eq!(site.events().last().map(String::as_str), Some("denied"));
}

#[test]
fn a_site_whose_books_cannot_be_kept_does_nothing() {
    for (ledger, audit) in [(Paper::full(), Paper::default()), (Paper::default(), Paper::full())] {
        let mut site = with_papers(PLAIN_POLICY, Mood::Well, ledger, audit);
        let (reason, detail) = site.declined(&train(1, 3));
        assert!(reason == Decline::Failed && !detail.contains("books"), "{detail}");
    }
}

#[test]
fn what_a_script_keeps_at_the_site_is_no_reason_to_refuse_a_plan_of_the_allowed_size() {
    let policy = PLAIN_POLICY.replace("parameters_max = \"any\"", "parameters_max = 2");
    // Two parameters travel, and one more stays.
    let site = || with_learner(&policy, Toy::new(&["head"], Mood::Well), Paper::default(), Paper::default());
    let mut outside = private(1, local(8.0));
    let model = Arc::new(Parameters::new(vec![0.5; 2]));
    outside.work = Work::Train { model, learning_rate_scale: 1.0, norm_max: None };
    let tensors = vec![ExternalTensor { name: "body".into(), shape: vec![2] }];
    let spec = Arc::make_mut(&mut outside.spec);
    spec.data = DataSpec::Own;
    spec.model = ModelSpec::External(ExternalModel { start: "start.safetensors".into(), tensors });
    assert!(matches!(site().answer(&outside), Outcome::Done(_)));
    Arc::make_mut(&mut outside.spec).model = ModelSpec::Linear;
    assert_eq!(
        site().declined(&outside).0,
        Decline::Policy,
        "of its own models the site knows the size before any record"
    );
}

/// The plain policy with other metrics.
fn with_metrics(metrics: &str) -> String {
    let all = "[\"loss\", \"accuracy\", \"examples\", \"seconds\", \"further\"]";
    assert!(PLAIN_POLICY.contains(all));
    PLAIN_POLICY.replace(all, metrics)
}

#[test]
fn further_metrics_leave_only_where_plan_and_policy_say_so() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let mut named = train(1, 3);
    Arc::make_mut(&mut named.spec).learner.metrics = names(&["auc", "f1", "recall"]);
    let further = |policy: &str, task: &Task| match site(policy, Mood::Well).answer(task) {
        Outcome::Done(Contribution { further, .. }) => {
            further.iter().map(|value| value.is_finite().then_some(*value)).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(
        further(PLAIN_POLICY, &named),
        [Some(0.25), None, None],
        "what is not finite was not measured"
    );
    assert_eq!(further(&with_metrics("[\"examples\", \"loss\"]"), &named), [None; 3]);
    assert!(further(PLAIN_POLICY, &train(1, 3)).is_empty(), "the plan names none");
    let model = Arc::new(Parameters::new(vec![0.5; 3]));
    let evaluation = Task { spec: Arc::clone(&named.spec), ..task(1, Work::Evaluate { model }) };
    assert_eq!(further(PLAIN_POLICY, &evaluation)[0], Some(0.25));
    assert_eq!(
        further(&with_metrics("[]"), &evaluation),
        [None; 3],
        "nothing was computed, and all have a place"
    );
    let mut private = private(1, local(8.0));
    Arc::make_mut(&mut private.spec).learner.metrics = names(&["auc"]);
    assert!(further(PLAIN_POLICY, &private).is_empty(), "the plan keeps metrics at the sites");
}

#[test]
fn metrics_leave_as_the_policy_says_and_weights_do_not_betray_them() {
    let mut uniform = train(1, 3);
    Arc::make_mut(&mut uniform.spec).update.weights = Weighting::Uniform;
    let policy = |metrics: &str| with_metrics(metrics);
    let told = |metrics: &str| match site(&policy(metrics), Mood::Well).answer(&uniform) {
        Outcome::Done(Contribution { metrics: Some(metrics), weight: 1, .. }) => {
            (metrics.loss, metrics.examples)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!((told("[\"loss\"]"), told("[\"examples\"]"), told("[]")), ((0.5, 0), (0.0, 5), (0.0, 0)));
    assert_eq!(site(&policy("[]"), Mood::Well).declined(&train(1, 3)).0, Decline::Policy);
    let model = Arc::new(Parameters::new(vec![0.5; 3]));
    let mut silent = site(&policy("[]"), Mood::Well);
    let outcome = silent.answer(&task(1, Work::Evaluate { model }));
    assert_eq!(outcome, Outcome::evaluated(Metrics::default()));
    assert!(silent.ledger.text().is_empty(), "what tells nothing costs nothing");
}

#[test]
fn an_update_that_is_noised_at_the_site_is_another_each_time_whatever_the_seed() {
    let (mut one, mut other) = (site(PLAIN_POLICY, Mood::Well), site(PLAIN_POLICY, Mood::Well));
    let task = Task { seed: Some(Seed::from_number(3)), ..private(1, local(1e6)) };
    let (first, second) = (one.answer(&task), other.answer(&task));
    let points = |outcome: &Outcome| match outcome {
        Outcome::Done(done) if done.weight == 1 => (done.points().unwrap().to_vec(), done.metrics.unwrap()),
        other => panic!("{other:?}"),
    };
    // The noise has 2^27 likely values a coordinate: that three agree by chance has probability below 10^-20.
    assert_ne!(points(&first).0, points(&second).0);
    let lattice = task.spec.lattice(3).unwrap();
    assert!(lattice.is_noised() && privacy::Encoded::admit(points(&first).0, 1, &lattice).is_ok());
    let mut bare = Participant::new(ClientId::new("north").unwrap(), Box::new(Toy::new(&[], Mood::Well)));
    let unguarded = bare.perform(&task, entropy(), &Stop::default()).outcome;
    assert_eq!(
        points(&unguarded).1,
        Metrics::default(),
        "no policy says that metrics may leave beside noise"
    );
    let mut plain = spec();
    plain.update.norm_max = Positive::new(1.0).unwrap();
    assert!(!plain.lattice(3).unwrap().is_noised());
}

#[test]
fn a_pause_comes_before_the_policy_and_is_written_down() {
    let mut site = site(PLAIN_POLICY, Mood::Well);
    site.participant = site.participant.with_pause(crate::Pause::new(|| true));
    let told = site.declined(&train(1, 3));
    assert_eq!(told, (Decline::Paused, "the site has paused".to_owned()));
    assert_eq!(site.events(), ["received", "denied"]);
    assert!(String::from_utf8(site.audit.text()).unwrap().contains(r#""rule":"pause""#));
    assert_eq!(site.prepared.load(Ordering::Relaxed), 0, "the learner was not even prepared");
    assert_eq!(site.account().history().attempts(), 0, "nothing was reserved");
}
