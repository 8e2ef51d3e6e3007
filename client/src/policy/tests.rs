//! Every rule denies alone, and what is not written denies.

use std::sync::Arc;

use privacy::accounting::Relation;
use protocol::{MetricsRule, NoiseCorrelation, Parameters, PrivacySpec, Round, RunId, Sampling, Seed};

use super::*;
use crate::ledger::tests::{central, examples, local, private};
use crate::participant::tests::task;

/// 23:30 on some day.
const NOW: Time = Time::from_micros((20_000 * 24 * 3600 + 23 * 3600 + 1800) * 1_000_000);

/// Allows what [`asked`] asks, and hardly more.
const TIGHT: &str = r#"
tasks = ["train"]
models = ["linear"]
parameters_max = 3
clients_min = 10
sites_min = 10
rounds_per_day = 2
hours = { from = 22, to = 6 }
separation_min_seconds = 60
metrics = ["examples"]
rehearsals = false

[privacy]
require = ["central"]
noise_multiplier_min = 2.0
norm_max_max = 100.0
epsilon_max = 8.0
delta = 1e-6
relations = ["zero_out"]
"#;

fn asked() -> Task {
    Task { seed: None, ..private(5, central(NoiseCorrelation::Independent)) }
}

fn judge(policy: &str, task: &Task, now: Time, history: &History) -> Result<(), Denied> {
    let parameters = task.work.model().map_or(0, |model| model.len()) as u64;
    Policy::parse(policy).unwrap().judge(
        task,
        &SiteFacts { parameters, ..SiteFacts::default() },
        now,
        history,
    )
}

/// Trainings that were begun and brought to an end.
fn history(trained: Vec<Participation>) -> History {
    let mut history = History::default();
    trained.into_iter().for_each(|training| history.begin(training));
    history
}

fn rule(policy: &str, task: &Task) -> &'static str {
    judge(policy, task, NOW, &History::default()).unwrap_err().rule
}

fn trained(seconds_ago: u64, run: u64, round: u32) -> Participation {
    let at = Time::from_micros(NOW.as_micros() - seconds_ago * 1_000_000);
    Participation { at, run: RunId(run), round: Round(round) }
}

fn changed(change: impl FnOnce(&mut Spec)) -> Task {
    let mut task = asked();
    change(Arc::make_mut(&mut task.spec));
    task
}

#[test]
fn what_the_policy_lists_is_allowed() {
    judge(TIGHT, &asked(), NOW, &History::default()).unwrap();
    judge(PLAIN_POLICY, &asked(), Time::ZERO, &History::default()).unwrap();
    judge(
        PRIVATE_POLICY,
        &changed(|spec| {
            spec.update.weights = Weighting::Uniform;
            spec.update.norm_max = Positive::new(10.0).unwrap();
        }),
        NOW,
        &History::default(),
    )
    .unwrap();
    let statistics = task(0, Work::Statistics { names: vec![] });
    judge(PLAIN_POLICY, &statistics, NOW, &History::default()).unwrap();
}

#[test]
fn every_line_that_is_taken_out_denies() {
    let key = |line: &str| line.split_once(" = ").map(|(key, _)| key.to_owned());
    for line in TIGHT.lines() {
        let Some(key) = key(line) else { continue };
        // `false` is what an absent word means; delta goes with epsilon_max.
        if ["rehearsals", "delta"].contains(&key.as_str()) {
            continue;
        }
        let without = TIGHT.replace(&format!("\n{line}\n"), "\n");
        let denied = rule(&without, &asked());
        assert!(denied == key || denied == format!("privacy.{key}"), "{key} was left out, {denied} denied");
    }
    assert_eq!(rule("", &asked()), "tasks");
}

#[test]
fn no_statistics_leave_for_a_plan_of_which_the_site_would_do_nothing_else() {
    let sums = |change: &dyn Fn(&mut Spec)| {
        let mut task = task(0, Work::Statistics { names: Vec::new() });
        change(Arc::make_mut(&mut task.spec));
        task
    };
    let plain = |old: &str, new: &str| {
        assert!(PLAIN_POLICY.contains(old), "{old}");
        PLAIN_POLICY.replace(old, new)
    };
    let any = plain("", "");
    judge(&any, &sums(&|_| {}), NOW, &History::default()).unwrap();
    let values = sums(&|spec| spec.model = ModelSpec::Values { shape: vec![2] });
    let protected = sums(&|spec| spec.privacy = asked().spec.privacy.clone());
    let long = sums(&|spec| spec.update.norm_max = Positive::new(1e6).unwrap());
    let cases = [
        (plain("\"train\", ", ""), sums(&|_| {}), "tasks", "`train` is not allowed"),
        (any, values, "tasks", "`method:NAME`"),
        (plain("norm_max_max = \"any\"", "norm_max_max = 100.0"), long, "privacy.norm_max_max", "1000000"),
        (plain("metrics = [", "metrics = [] #"), sums(&|_| {}), "metrics", "weighted by examples"),
        // The sums themselves may leave unprotected, and the training may not leave as the plan protects it.
        (plain("require = [\"none\"", "require = [\"none\"] #"), protected, "privacy.require", "central"),
    ];
    for (policy, task, rule, told) in cases {
        let denied = judge(&policy, &task, NOW, &History::default()).unwrap_err();
        assert_eq!(denied.rule, rule, "{denied}");
        assert!(denied.message.contains(told) && denied.message.contains("no other task"), "{denied}");
    }
}

#[test]
fn a_method_is_allowed_by_its_name_alone() {
    let work = |method: &str| {
        let (method, numbers, blocks) = (method.parse().unwrap(), Vec::new(), Vec::new());
        Work::Method(Arc::new(protocol::MethodWork { method, version: 1, numbers, blocks }))
    };
    let mut asked = task(1, work("groups"));
    Arc::make_mut(&mut asked.spec).model = ModelSpec::Values { shape: vec![2] };
    let allowing =
        |tasks: &str| PLAIN_POLICY.replace("tasks = [\"train\", \"evaluate\", \"statistics\"]", tasks);
    assert!(judge(&allowing("tasks = [\"method:groups\"]"), &asked, NOW, &History::default()).is_ok());
    for tasks in ["tasks = [\"train\", \"evaluate\", \"statistics\"]", "tasks = [\"method:group\"]"] {
        assert_eq!(rule(&allowing(tasks), &asked), "tasks", "{tasks}");
    }
    // Values of a method are no model of a family: who allows no method trains none, and sums nothing for one.
    let models = |policy: String| policy.replace("models = \"any\"", "models = [\"linear\"]");
    let mut sums = task(1, Work::Statistics { names: Vec::new() });
    sums.spec = Arc::clone(&asked.spec);
    assert_eq!(rule(&models(PLAIN_POLICY.to_owned()), &sums), "tasks", "no list of models could allow it");
    assert!(
        judge(
            &models(allowing("tasks = [\"statistics\", \"method:groups\"]")),
            &sums,
            NOW,
            &History::default()
        )
        .is_ok()
    );
    for typed in ["method", "method:", "method:a/b", "step-16", "methods:groups"] {
        let error = Policy::parse(&allowing(&format!("tasks = [\"{typed}\"]"))).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{typed}: {error}");
    }
}

#[test]
fn every_rule_denies_alone() {
    let mut seeded = asked();
    seeded.seed = Some(Seed::from_number(1));
    let mut larger = asked();
    let model = Arc::new(Parameters::new(vec![0.0; 4]));
    larger.work = Work::Train { model, learning_rate_scale: 1.0, norm_max: None };
    let mut longer = asked();
    let model = Arc::new(Parameters::new(vec![0.0; 3]));
    longer.work = Work::Train {
        model: Arc::clone(&model),
        learning_rate_scale: 1.0,
        norm_max: Positive::new(101.0).ok(),
    };
    let central_of =
        |change: fn(&mut CentralPrivacy)| changed(|spec| change(spec.privacy.central.as_mut().unwrap()));
    let cases = [
        ("tasks", task(1, Work::Evaluate { model })),
        ("rehearsals", seeded),
        ("models", changed(|spec| spec.model = ModelSpec::Custom { name: "linear".into() })),
        ("parameters_max", larger),
        ("clients_min", central_of(|central| central.clients_min = 9)),
        ("clients_min", changed(|spec| spec.cohort_max = 9)),
        (
            "privacy.noise_multiplier_min",
            central_of(|central| {
                central.noise_multiplier = Positive::new(1.999).unwrap();
            }),
        ),
        ("privacy.relations", central_of(|central| central.relation = Relation::AddOrRemoveOne)),
        ("privacy.norm_max_max", longer),
        ("privacy.norm_max_max", changed(|spec| spec.update.norm_max = Positive::new(100.1).unwrap())),
        ("participation", Task { id: protocol::TaskId { round: Round(51), ..asked().id }, ..asked() }),
    ];
    for (expected, task) in cases {
        assert_eq!(rule(TIGHT, &task), expected);
    }
    let alone =
        TIGHT.replace("clients_min = 10", "clients_min = 1").replace("sites_min = 10", "sites_min = 1");
    let plain = changed(|spec| spec.privacy = PrivacySpec::default());
    assert_eq!(rule(&alone, &plain), "privacy.require");
    assert_eq!(rule(TIGHT, &plain), "clients_min", "a plan without central noise promises no cohort");
    assert_eq!(rule(&TIGHT.replace("sites_min = 10", "sites_min = 11"), &asked()), "sites_min");
    let silent = TIGHT.replace("metrics = [\"examples\"]", "metrics = []");
    assert_eq!(rule(&silent, &asked()), "metrics");
    judge(&silent, &changed(|spec| spec.update.weights = Weighting::Uniform), NOW, &History::default())
        .unwrap();
}

#[test]
fn hours_go_over_midnight_and_end_with_their_last_minute() {
    let at = |hour: u64, minute: u64| Time::from_micros((hour * 3600 + minute * 60) * 1_000_000);
    let allowed = |hours: &str, now: Time| {
        judge(&TIGHT.replace("{ from = 22, to = 6 }", hours), &asked(), now, &History::default()).is_ok()
    };
    for hour in 0..24 {
        assert_eq!(allowed("{ from = 22, to = 6 }", at(hour, 59)), !(6..22).contains(&hour), "{hour}");
        assert_eq!(allowed("{ from = 8, to = 18 }", at(hour, 0)), (8..18).contains(&hour), "{hour}");
        assert!(allowed("\"any\"", at(hour, 30)));
    }
}

#[test]
fn trainings_are_counted_over_all_runs_and_a_clock_that_goes_back_gains_nothing() {
    let denied = |trained: Vec<Participation>| {
        judge(TIGHT, &asked(), NOW, &history(trained)).err().map(|why| why.rule)
    };
    assert_eq!(denied(vec![trained(61, 7, 1)]), None);
    assert_eq!(denied(vec![trained(59, 7, 1)]), Some("separation_min_seconds"));
    assert_eq!(denied(vec![trained(3000, 7, 1), trained(86_000, 8, 1)]), Some("rounds_per_day"));
    assert_eq!(denied(vec![trained(3000, 7, 1), trained(86_400, 8, 1)]), None);
    let future = Participation { at: Time::from_micros(NOW.as_micros() + 1), run: RunId(9), round: Round(1) };
    assert_eq!(denied(vec![future]), Some("separation_min_seconds"));
}

#[test]
fn the_plan_s_own_promise_on_participation_is_held_by_the_site() {
    let free = TIGHT.replace("rounds_per_day = 2", "rounds_per_day = \"any\"");
    let ask = |rounds: &[u32]| {
        let before = rounds.iter().map(|round| trained(100_000, 1, *round)).collect();
        judge(&free, &asked(), NOW, &history(before)).err().map(|why| why.rule)
    };
    assert_eq!(ask(&[1, 3]), None);
    assert_eq!(ask(&[5]), None, "a repeated round is the same round");
    assert_eq!((ask(&[4]), ask(&[6])), (Some("participation"), Some("participation")));
    let many: Vec<u32> = (10..30).collect();
    assert_eq!((ask(&many[1..]), ask(&many)), (None, Some("participation")));
    let mut other = asked();
    let spec = Arc::make_mut(&mut other.spec);
    let sampled = spec.privacy.central.as_mut().unwrap();
    (sampled.sampling, sampled.relation) = (Sampling::Poisson { rate: 0.5 }, Relation::ZeroOut);
    judge(&free, &other, NOW, &history(many.iter().map(|round| trained(100_000, 1, *round)).collect()))
        .unwrap();
}

#[test]
fn only_listed_metrics_leave_and_none_where_the_plan_hides_them() {
    let policy = Policy::parse(TIGHT).unwrap();
    let metrics = Metrics { loss: 0.5, accuracy: Some(0.7), examples: 9, seconds: 2.0 };
    let plain = changed(|spec| spec.privacy = PrivacySpec::default());
    assert_eq!(policy.visible(&plain.spec, metrics), Metrics { examples: 9, ..Metrics::default() });
    assert_eq!(policy.visible(&asked().spec, metrics), Metrics::default());
    assert!(policy.tells_metrics(&plain.spec) && !policy.tells_metrics(&asked().spec));
    assert_eq!(Policy::parse(PLAIN_POLICY).unwrap().visible(&plain.spec, metrics), metrics);
}

#[test]
fn an_attempt_counts_for_how_often_is_trained_and_only_a_training_for_what_the_plan_promises() {
    let begun = |seconds_ago| {
        let mut history = history(vec![trained(seconds_ago, 1, 4)]);
        history.end_unread(RunId(1), Round(4));
        history
    };
    let denied = |policy: &str, history| judge(policy, &asked(), NOW, &history).err().map(|why| why.rule);
    assert_eq!(denied(TIGHT, begun(59)), Some("separation_min_seconds"));
    let once = TIGHT.replace("rounds_per_day = 2", "rounds_per_day = 1");
    assert_eq!(denied(&once, begun(3000)), Some("rounds_per_day"));
    assert_eq!(denied(TIGHT, begun(3000)), None, "round 4 was begun, and no record was read for it");
    assert_eq!(denied(TIGHT, history(vec![trained(3000, 1, 4)])), Some("participation"));
}

#[test]
fn metrics_leave_beside_a_promise_only_where_plan_and_policy_say_that_they_are_outside_of_it() {
    let metrics = Metrics { loss: 0.5, accuracy: Some(0.7), examples: 9, seconds: 2.0 };
    let says = PLAIN_POLICY;
    let silent = PLAIN_POLICY.replace("outside_the_guarantee = true", "");
    let told = |privacy: &PrivacySpec, policy: &str| {
        let spec = changed(|spec| spec.privacy = privacy.clone()).spec;
        let policy = Policy::parse(policy).unwrap();
        let visible = policy.visible(&spec, metrics);
        assert_eq!(policy.tells_metrics(&spec), visible != Metrics::default());
        visible == metrics
    };
    type Change = fn(&mut PrivacySpec);
    let promises: [(PrivacySpec, Change); 3] = [
        (central(NoiseCorrelation::Independent), |p| {
            p.central.as_mut().unwrap().metrics = MetricsRule::OutsideTheGuarantee;
        }),
        (local(8.0), |p| p.local.as_mut().unwrap().metrics = MetricsRule::OutsideTheGuarantee),
        (examples(8.0), |p| p.examples.as_mut().unwrap().metrics = MetricsRule::OutsideTheGuarantee),
    ];
    for (mut privacy, outside) in promises {
        assert!(!told(&privacy, says) && !told(&privacy, &silent), "{privacy:?}: the plan hides them");
        outside(&mut privacy);
        assert!(told(&privacy, says) && !told(&privacy, &silent), "{privacy:?}: the policy decides");
    }
    let mut stacked = examples(8.0);
    stacked.examples.as_mut().unwrap().metrics = MetricsRule::OutsideTheGuarantee;
    stacked.central = central(NoiseCorrelation::Independent).central;
    assert!(!told(&stacked, says), "one promise that hides them is enough");
    assert!(told(&PrivacySpec::default(), &silent), "without a promise nothing is outside of it");
}

#[test]
fn what_follows_from_the_number_of_records_needs_a_number_that_is_public() {
    let denied = |policy: &str, privacy: PrivacySpec, records| {
        let task = changed(|spec| (spec.privacy, spec.training.batch_size) = (privacy, 4));
        let facts = SiteFacts { parameters: 3, records };
        let judged = Policy::parse(policy).unwrap().judge(&task, &facts, NOW, &History::default());
        judged.err().map(|why| why.rule)
    };
    // The list of metrics does not make the number of records public.
    assert_eq!(denied(PLAIN_POLICY, examples(8.0), RecordCount::Hidden), Some("public_records"));
    assert_eq!(denied(PLAIN_POLICY, examples(8.0), RecordCount::Public(9)), None);
    let all = changed(|spec| {
        (spec.privacy, spec.update.weights) = (examples(8.0), Weighting::Uniform);
    });
    assert_eq!(rule(PLAIN_POLICY, &all), "public_records", "all in one step, divided by their number");
    assert_eq!(denied(PLAIN_POLICY, local(8.0), RecordCount::Hidden), None, "these weigh one each");
}

#[test]
fn noise_is_judged_by_what_the_mechanism_amounts_to() {
    let policy = PLAIN_POLICY.replace("noise_multiplier_min = 0", "noise_multiplier_min = 1");
    let judged = |noise: NoiseCorrelation, multiplier: f64| {
        let task = changed(|spec| {
            spec.privacy = central(noise.clone());
            let central = spec.privacy.central.as_mut().unwrap();
            (central.rounds, central.sampling) =
                (64, Sampling::Availability { participations_max: 64, separation_min: 1 });
            central.noise_multiplier = Positive::new(multiplier).unwrap();
        });
        judge(&policy, &task, NOW, &History::default()).err().map(|why| why.rule)
    };
    assert_eq!(judged(NoiseCorrelation::Independent, 1.0), None);
    // A client in every one of 64 rounds moves the nodes of the tree by 64 + 2^2 32 + ... + 64^2 = 8128, squared.
    let whole = 8128f64.sqrt();
    assert_eq!(judged(NoiseCorrelation::Tree, whole * 0.999), Some("privacy.noise_multiplier_min"));
    assert_eq!(judged(NoiseCorrelation::Tree, whole * 1.001), None);
    let bands = NoiseCorrelation::Banded { weights: vec![1 << 18] };
    assert_eq!(
        (judged(bands.clone(), 0.99), judged(bands, 1.0)),
        (Some("privacy.noise_multiplier_min"), None)
    );
}

#[test]
fn a_wrong_file_is_refused_with_line_and_column() {
    let cases = [
        ("models = [\"linear\"]", "model = [\"linear\"]", 3, "unknown field `model`"),
        ("parameters_max = 3", "parameters_max = -3", 4, "\"any\""),
        ("parameters_max = 3", "parameters_max = \"all\"", 4, "\"any\""),
        ("to = 6 }", "to = 6, also = 1 }", 8, "two different hours"),
        ("to = 6 }", "to = 22 }", 8, "22 to 22"),
        ("\"linear\"", "\"lnear\"", 3, "\"custom:NAME\""),
        ("[\"train\"]", "[\"trian\"]", 2, "trian"),
        ("separation_min_seconds = 60", "separation_min_seconds = -1", 9, "at least 0"),
        ("delta = 1e-6\n", "", 17, "delta"),
        ("delta = 1e-6", "delta = 1.0", 18, "delta is 1; it must be above 0 and at most 0.01"),
        ("delta = 1e-6", "delta = 0.9", 18, "delta is 0.9; it must be above 0 and at most 0.01"),
        ("epsilon_max = 8.0", "epsilon_max = 0.0", 17, "above 0"),
        ("\"zero_out\"", "\"zero\"", 19, "zero"),
    ];
    for (right, wrong, line, told) in cases {
        let error = Policy::parse(&TIGHT.replace(right, wrong)).unwrap_err();
        assert!(error.line == line && error.message.contains(told), "{wrong}: {error}");
    }
}

#[test]
fn with_secret_sampling_the_clients_that_are_drawn_are_compared_since_no_quorum_may_be_promised() {
    let plan = |sampling, relation, denominator| {
        changed(|spec| {
            let central = spec.privacy.central.as_mut().unwrap();
            (central.sampling, central.relation, central.clients_min) = (sampling, relation, 0);
            central.denominator = Positive::new(denominator).unwrap();
        })
    };
    let poisson = |denominator| plan(Sampling::Poisson { rate: 0.1 }, Relation::ZeroOut, denominator);
    judge(TIGHT, &poisson(10.0), NOW, &History::default()).unwrap();
    assert_eq!(rule(TIGHT, &poisson(9.9)), "clients_min");
    let exchange = TIGHT.replace("\"zero_out\"", "\"replace_one\"");
    let fixed = |sample| plan(Sampling::Fixed { population: 100, sample }, Relation::ReplaceOne, 50.0);
    judge(&exchange, &fixed(10), NOW, &History::default()).unwrap();
    assert_eq!(rule(&exchange, &fixed(9)), "clients_min");
}
