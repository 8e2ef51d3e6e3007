//! The participant with a toy learner in every mood.

use std::sync::atomic::{AtomicU32, Ordering};

use privacy::accounting::Relation;
use privacy::chain::Digest;
use privacy::{Encoded, Released, Sum, WideSum};
use protocol::{
    Block, CentralPrivacy, Clipping, DataSpec, EvaluateOrder, ExampleReleases, GradientPath, Layout, Metrics,
    MetricsRule, ModelSpec, NoiseCorrelation, OptimizerSpec, Parameters, Positive, PrivacySpec, Round, RunId,
    Sampling, Standardise, Statistic, StepId, TableSpec, Target, TrainOrder, TrainingSpec, UPDATE,
    UpdateCodec, UpdateSpec, Values, Work,
};
use protocol::{Contribution, MethodWork, Name};
use rand::RngCore;

use super::*;
use crate::methods::{MethodSite, MethodState, SiteMethod};

/// What a [`Toy`] does when it trains.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Mood {
    Well,
    NotFinite,
    BadLoss,
    Private,
    Panics,
    /// Has no record.
    Empty,
    /// Works until it is told to stop.
    Endless,
}

/// Adds 1 (times the scale) to every parameter, plus a little chance from the order's seed.
pub(crate) struct Toy {
    pub(crate) layout: Layout,
    pub(crate) mood: Mood,
    pub(crate) prepared: Arc<AtomicU32>,
    pub(crate) trained: std::sync::mpsc::Sender<()>,
}

impl Toy {
    pub(crate) fn new(personal: &[&str], mood: Mood) -> Self {
        let tensors = [("body", vec![2]), ("head", vec![1])].map(|(name, shape)| (name.to_owned(), shape));
        let personal: Vec<String> = personal.iter().map(|name| (*name).to_owned()).collect();
        let layout = Layout::new(tensors).unwrap().with_personal(&personal).unwrap();
        Self { layout, mood, prepared: Arc::default(), trained: std::sync::mpsc::channel().0 }
    }
}

impl Learner for Toy {
    fn prepare(&mut self, _: &Arc<Spec>) -> Result<(), LearnError> {
        self.prepared.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn initialise(&mut self, _: Seed) -> Result<Vec<f32>, LearnError> {
        Ok(vec![7.0; self.layout.len()])
    }

    fn statistics(&mut self) -> Result<Vec<Statistic>, LearnError> {
        let value = if self.mood == Mood::NotFinite { f64::NAN } else { 2.0 };
        let value = WideSum::of(value).map_err(|error| LearnError::new(Decline::Data, error.to_string()))?;
        let statistic = |name: &str| Statistic { name: name.into(), value: value.clone() };
        Ok(["count/age", "sum/age", "square/age"].map(statistic).into())
    }

    fn example_releases(&mut self) -> Result<Option<ExampleReleases>, LearnError> {
        Ok(Some(ExampleReleases { steps: 1, sampling_rate: 1.0, batch_size: 4 }))
    }

    fn train(
        &mut self,
        parameters: &mut [f32],
        order: &TrainOrder,
        stop: &Stop,
    ) -> Result<Metrics, LearnError> {
        let _ = self.trained.send(());
        let chance = (order.seed.generator().next_u32() >> 20) as f32 * 1e-6;
        parameters.iter_mut().for_each(|value| *value += order.learning_rate_scale as f32 + chance);
        match self.mood {
            Mood::Well => {}
            Mood::NotFinite => parameters[1] = f32::NAN,
            Mood::BadLoss => return Ok(Metrics { loss: f64::NAN, examples: 5, ..Metrics::default() }),
            Mood::Private => {
                return Err(LearnError::new(Decline::Data, "patients.csv line 3: age is `secret`"));
            }
            Mood::Panics => panic!("out of cheese"),
            Mood::Empty => return Ok(Metrics::default()),
            Mood::Endless => {
                while !stop.is_stopped() {
                    std::thread::yield_now();
                }
            }
        }
        Ok(Metrics { loss: 0.5, examples: 5, ..Metrics::default() })
    }

    fn evaluate(&mut self, parameters: &[f32], _: &EvaluateOrder, _: &Stop) -> Result<Metrics, LearnError> {
        Ok(Metrics { loss: f64::from(parameters[2]), examples: 3, ..Metrics::default() })
    }
}

pub(crate) fn spec() -> Spec {
    let table = TableSpec {
        label: "label".into(),
        target: Target::Real.into(),
        features: vec!["age".into()],
        categorical: vec![],
        standardise: Standardise::Federated,
        missing: Default::default(),
    };
    let optimizer =
        OptimizerSpec::Sgd { learning_rate: Positive::new(0.1).unwrap(), momentum: 0.0, weight_decay: 0.0 };
    let training = TrainingSpec {
        epochs: 1,
        batch_size: 0,
        loss: Default::default(),
        optimizer,
        gradient_norm_max: None,
        accumulate: 1,
        gradient: GradientPath::Auto,
    };
    Spec {
        model: ModelSpec::Linear,
        data: DataSpec::Table(table),
        training,
        update: UpdateSpec { weight_max: 10, ..UpdateSpec::default() },
        personal_layers: vec![],
        proximal_mu: 0.0,
        cohort_max: 4,
        evaluation_records: Default::default(),
        privacy: PrivacySpec::default(),
        learner: Default::default(),
    }
}

pub(crate) fn task(round: u32, work: Work) -> Task {
    let kind = match work {
        Work::Statistics { .. } => StepId::STATISTICS,
        Work::Train { .. } => StepId::TRAIN,
        Work::Evaluate { .. } => StepId::EVALUATE,
        Work::Method(_) => StepId::method(0),
    };
    let id = TaskId::new(RunId(1), Round(round), kind);
    let seed = Some(Seed::from_number(3));
    Task { id, spec: Arc::new(spec()), seed, standardiser: None, work }
}

pub(crate) fn train(round: u32, len: usize) -> Task {
    let model = Arc::new(Parameters::new(vec![0.5; len]));
    task(round, Work::Train { model, learning_rate_scale: 1.0, norm_max: None })
}

pub(crate) fn entropy() -> Seed {
    Seed::from_number(99)
}

pub(crate) fn participant(personal: &[&str], mood: Mood) -> Participant {
    Participant::new(ClientId::new("north").unwrap(), Box::new(Toy::new(personal, mood)))
}

fn declined(mood: Mood, task: &Task) -> (Decline, String) {
    match participant(&[], mood).perform(task, entropy(), &Stop::default()).outcome {
        Outcome::Declined { reason, detail } => (reason, detail),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_update_is_what_training_changed_on_the_lattice() {
    let task = train(1, 3);
    let answer = participant(&[], Mood::Well).perform(&task, entropy(), &Stop::default());
    let done = answer.outcome.into_contribution().unwrap();
    let (weight, metrics) = (done.weight, done.metrics.unwrap());
    let points = done.into_points().unwrap();
    assert_eq!((answer.task, weight, metrics.examples), (task.id, 5, 5));
    let lattice = task.spec.lattice(3).unwrap();
    let mut sum = Sum::new(&lattice);
    sum.add(&Encoded::admit(points, weight, &lattice).unwrap()).unwrap();
    let mean: Vec<f64> = Released::unprotected(sum).unwrap().mean().collect();
    assert!(mean.len() == 3 && mean.iter().all(|value| (1.0..1.01).contains(value)), "{mean:?}");
}

#[test]
fn where_the_plan_says_so_every_tensor_that_travels_is_clipped_on_its_own() {
    let positive = |value| Positive::new(value).unwrap();
    let central = CentralPrivacy {
        population: "p".into(),
        relation: Relation::ZeroOut,
        delta: 1e-5,
        epsilon_max: positive(9.0),
        noise_multiplier: positive(4.0),
        rounds: 3,
        denominator: positive(2.0),
        sampling: Sampling::Availability { participations_max: 3, separation_min: 1 },
        noise: NoiseCorrelation::Independent,
        clipping: Clipping::PerLayer,
        metrics: MetricsRule::Off,
        clients_min: 2,
    };
    let mut task = train(1, 3);
    let spec = Arc::make_mut(&mut task.spec);
    spec.privacy.central = Some(central);
    spec.update.norm_max = positive(0.5);
    let answer = participant(&[], Mood::Well).perform(&task, entropy(), &Stop::default());
    let done = answer.outcome.into_contribution().unwrap();
    let weight = done.weight;
    let points = done.into_points().unwrap();
    let lattice = task.spec.lattice_within(task.spec.update.norm_max, &[2, 1]).unwrap();
    let update = Encoded::admit(points, weight, &lattice).expect("the server clips the same tensors");
    let norm = |points: &[i32]| points.iter().map(|point| f64::from(*point).powi(2)).sum::<f64>().sqrt();
    for tensor in [&update.points()[..2], &update.points()[2..]] {
        let share = norm(tensor) * lattice.step() * 2f64.sqrt();
        assert!((share - 0.5).abs() < 1e-6, "{share}: both were too long, so both are at their bound");
    }
    // A tensor that stays at the site takes no share of the norm.
    let answer = participant(&["head"], Mood::Well).perform(
        &Task { work: train(1, 2).work, ..task.clone() },
        entropy(),
        &Stop::default(),
    );
    let points = answer.outcome.into_contribution().unwrap().into_points().unwrap();
    assert!((norm(&points) * lattice.step() - 0.5).abs() < 1e-6);
}

#[test]
fn with_uniform_weights_every_update_weighs_one() {
    let mut task = train(1, 3);
    Arc::make_mut(&mut task.spec).update.weights = protocol::Weighting::Uniform;
    let answer = participant(&[], Mood::Well).perform(&task, entropy(), &Stop::default());
    assert_eq!(answer.outcome.contribution().map(|done| done.weight), Some(1), "{answer:?}");
}

#[test]
fn a_seeded_task_gives_the_same_bits_again_and_an_unseeded_one_uses_the_entropy() {
    let (mut one, mut other) = (participant(&["head"], Mood::Well), participant(&["head"], Mood::Well));
    let stop = Stop::default();
    for round in 1..4 {
        let first = one.perform(&train(round, 2), entropy(), &stop);
        assert_eq!(first, one.perform(&train(round, 2), Seed::from_number(5), &stop));
        assert_eq!(first, other.perform(&train(round, 2), Seed::from_number(6), &stop));
        assert_eq!(one.personal(), other.personal());
    }
    let free = Task { seed: None, ..train(9, 2) };
    let first = one.perform(&free, entropy(), &stop);
    assert_ne!(first, other.perform(&free, Seed::from_number(5), &stop));
}

#[test]
fn the_personal_part_stays_and_grows_from_round_to_round() {
    let (mut site, stop) = (participant(&["head"], Mood::Well), Stop::default());
    let answer = site.perform(&train(1, 2), entropy(), &stop);
    assert_eq!(answer.outcome.points().map(<[i32]>::len), Some(2));
    site.perform(&train(2, 2), entropy(), &stop);
    let kept = site.personal().values(RunId(1)).unwrap()[0];
    assert!((9.0..9.1).contains(&kept), "{kept}");
    let mut heir = participant(&["head"], Mood::Well);
    heir.restore_personal(site.personal().clone());
    let model = Arc::new(Parameters::new(vec![0.0; 2]));
    let answer = heir.perform(&task(2, Work::Evaluate { model }), entropy(), &stop);
    assert_eq!(answer.outcome.metrics().map(|metrics| metrics.loss), Some(f64::from(kept)), "{answer:?}");
}

/// Where what is kept of a task without books comes from.
fn origin(task: &Task) -> crate::local_state::Origin {
    let (run, promise) = (task.id.run, task.spec.privacy.clone());
    crate::local_state::Origin { federation: Digest::default(), run, promise }
}

#[test]
fn no_server_carries_what_was_made_without_noise_into_a_run_that_hides_records() {
    let (mut site, stop) = (participant(&["head"], Mood::Well), Stop::default());
    let half = |task: &Task, privacy: PrivacySpec| {
        let mut spec = Spec { privacy, ..(*task.spec).clone() };
        spec.update.codec = UpdateCodec::TopK { fraction: 0.5 };
        // Where records are hidden, nothing may follow from their number.
        spec.update.weights = protocol::Weighting::Uniform;
        spec.training.batch_size = 4;
        Task { spec: Arc::new(spec), ..task.clone() }
    };
    let open = half(&train(1, 2), PrivacySpec::default());
    site.perform(&open, entropy(), &stop);
    let carried = site.personal().clone();
    assert!(carried.latest(&origin(&open)).is_some() && carried.residual(&origin(&open), Round(2)).is_some());
    // The same number of a run, and a promise beside it.
    let privacy = PrivacySpec {
        examples: Some(protocol::ExamplePrivacy {
            noise_multiplier: Positive::new(1.0).unwrap(),
            norm_max: Positive::new(1.0).unwrap(),
            delta: 1e-5,
            epsilon_max: Positive::new(1e6).unwrap(),
            metrics: MetricsRule::default(),
        }),
        ..PrivacySpec::default()
    };
    let hidden = half(&train(2, 2), privacy);
    let mut fresh = participant(&["head"], Mood::Well);
    let (answer, expected) =
        (site.perform(&hidden, entropy(), &stop), fresh.perform(&hidden, entropy(), &stop));
    assert!(answer.outcome.points().is_some(), "{answer:?}");
    assert_eq!(answer, expected, "it begins as a site that has kept nothing");
    assert_eq!(site.personal(), fresh.personal());
    let complaint = site.take_complaint().unwrap();
    assert!(complaint.message.contains("another promise of privacy"), "{complaint}");
    // In its own run it goes on.
    let mut heir = participant(&["head"], Mood::Well);
    assert!(heir.restore_personal(carried).is_empty());
    let next = half(&train(2, 2), PrivacySpec::default());
    assert_ne!(heir.perform(&next, entropy(), &stop), fresh.perform(&next, entropy(), &stop));
    assert!(heir.take_complaint().is_none());
}

#[test]
fn a_personal_part_that_does_not_fit_is_named() {
    let mut site = participant(&["head"], Mood::Well);
    let mut wrong = LocalState::default();
    wrong.keep(&origin(&train(2, 2)), Round(1), vec![0.0; 9]);
    site.restore_personal(wrong);
    let error = site.attempt(&train(2, 2), entropy(), &Stop::default()).unwrap_err();
    assert_eq!(error.reason, Decline::Failed);
    assert!(error.detail.contains("forget what is kept"));
}

/// What the toy changes in each of these rounds, as it is sent and as it would be without a codec, in units of the parameters; and
/// what is left out in the end.
fn sent_over(rounds: &[u32], codec: UpdateCodec) -> (Vec<f64>, Vec<f64>, Option<Vec<f32>>) {
    let mut client = participant(&[], Mood::Well);
    let (mut sent, mut whole) = (vec![0.0; 3], vec![0.0; 3]);
    let mut last = train(0, 3);
    for round in rounds {
        for (codec, total) in [(codec, &mut sent), (UpdateCodec::Exact, &mut whole)] {
            let mut task = train(*round, 3);
            let mut changed = spec();
            changed.update.codec = codec;
            let step = changed.lattice(3).unwrap().step();
            task.spec = Arc::new(changed);
            last = task.clone();
            let client = if codec.is_lossy() { &mut client } else { &mut participant(&[], Mood::Well) };
            let answer = client.perform(&task, entropy(), &Stop::default());
            let points = answer.outcome.into_contribution().unwrap().into_points().unwrap();
            total.iter_mut().zip(points).for_each(|(total, point)| *total += f64::from(point) * step);
        }
    }
    let left_out = client.personal().residual(&origin(&last), last.id.round.next());
    (sent, whole, left_out.map(<[f32]>::to_vec))
}

#[test]
fn what_was_sent_and_what_was_left_out_are_all_that_was_learned() {
    let rounds: Vec<u32> = (1..=20).collect();
    let third = UpdateCodec::TopK { fraction: 0.34 };
    for codec in [UpdateCodec::F16, UpdateCodec::Bf16, UpdateCodec::Int8, third] {
        let (sent, whole, left_out) = sent_over(&rounds, codec);
        let left_out = left_out.unwrap();
        for ((sent, whole), left_out) in sent.iter().zip(&whole).zip(&left_out) {
            let error = (sent + f64::from(*left_out) - whole).abs();
            assert!(error < 1e-5 * whole.abs().max(1.0), "{codec:?}: {sent} + {left_out} is not {whole}");
        }
    }
    assert_eq!(sent_over(&rounds, UpdateCodec::Packed).2, None, "nothing is left out");
}

#[test]
fn what_was_left_out_is_forgotten_when_a_round_was_missed() {
    let half = UpdateCodec::TopK { fraction: 0.5 };
    let (_, whole, _) = sent_over(&[3], half);
    let (missed, _, _) = sent_over(&[1, 3], half);
    let (alone, _, _) = sent_over(&[3], half);
    let (first, _, _) = sent_over(&[1], half);
    assert_ne!(alone, whole, "something is left out");
    let difference: Vec<f64> = missed.iter().zip(&first).map(|(all, first)| all - first).collect();
    assert!(difference.iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-12), "{difference:?} {alone:?}");
}

#[test]
fn without_personal_layers_nothing_is_kept() {
    let mut site = participant(&[], Mood::Well);
    site.perform(&train(1, 3), entropy(), &Stop::default());
    assert!(site.personal().is_empty());
}

#[test]
fn statistics_are_counted_when_their_names_agree() {
    let names = spec().statistics();
    let counted = task(0, Work::Statistics { names });
    let answer = participant(&[], Mood::Well).perform(&counted, entropy(), &Stop::default());
    assert_eq!(answer.outcome.words().map(<[i64]>::len), Some(12));
    let other = task(0, Work::Statistics { names: vec!["count/height".into()] });
    let (reason, detail) = declined(Mood::Well, &other);
    assert!(reason == Decline::Unsupported && detail.contains("count/height"), "{detail}");
    assert_eq!(declined(Mood::NotFinite, &counted).0, Decline::Data);
}

#[test]
fn a_model_of_another_length_is_declined_naming_both() {
    let (reason, detail) = declined(Mood::Well, &train(1, 4));
    assert_eq!(reason, Decline::Unsupported);
    assert!(detail.contains("4 values") && detail.contains("layout 3"), "{detail}");
}

#[test]
fn numbers_that_are_not_finite_never_leave() {
    let (reason, detail) = declined(Mood::NotFinite, &train(1, 3));
    assert!(reason == Decline::NotFinite && detail.contains("parameter 1"), "{detail}");
    assert_eq!(declined(Mood::BadLoss, &train(1, 3)).0, Decline::NotFinite);
    let model = Arc::new(Parameters::new(vec![f32::INFINITY; 3]));
    let (_, detail) =
        declined(Mood::Well, &task(1, Work::Train { model, learning_rate_scale: 1.0, norm_max: None }));
    assert!(detail.contains("server sent"), "{detail}");
}

#[test]
fn the_operator_is_not_told_what_the_sites_log_is_told() {
    let (reason, detail) = declined(Mood::Private, &train(1, 3));
    assert!(reason == Decline::Data && !detail.contains("secret"), "{detail}");
    let error = participant(&[], Mood::Private).attempt(&train(1, 3), entropy(), &Stop::default());
    assert!(error.unwrap_err().message.contains("line 3"));
}

#[test]
fn a_panic_of_the_learner_is_a_declined_task_and_the_next_one_prepares_anew() {
    let mut toy = Toy::new(&[], Mood::Panics);
    let (mut personal, mut memory) = (LocalState::default(), Memory::default());
    let id = ClientId::new("north").unwrap();
    let stop = Stop::default();
    let methods = SiteMethods::default();
    let mut lent =
        Lent { id: &id, learner: &mut toy, personal: &mut personal, memory: &mut memory, methods: &methods };
    let error = lent.attempt(&train(1, 3), entropy(), &stop).unwrap_err();
    assert_eq!(
        (error.reason, error.message.as_str()),
        (Decline::Failed, "the learner panicked: out of cheese")
    );
    toy.mood = Mood::Well;
    lent =
        Lent { id: &id, learner: &mut toy, personal: &mut personal, memory: &mut memory, methods: &methods };
    let answer = lent.perform(&train(1, 3), entropy(), &stop);
    assert!(answer.outcome.points().is_some());
    assert_eq!(toy.prepared.load(Ordering::Relaxed), 2);
}

#[test]
fn one_update_after_another_is_made_in_the_same_memory_and_is_the_same_as_in_new() {
    let (mut kept, stop) = (participant(&[], Mood::Well), Stop::default());
    kept.perform(&train(1, 3), entropy(), &stop);
    let values = kept.memory.values.as_ptr();
    kept.memory.give_back(vec![9; 500]);
    let again = kept.perform(&train(2, 3), entropy(), &stop);
    assert_eq!((kept.memory.values.as_ptr(), kept.memory.points.capacity()), (values, 0));
    let Some(Values::I32(points)) = again.outcome.contribution().and_then(|done| done.block(&UPDATE)) else {
        panic!()
    };
    assert!(points.capacity() >= 500);
    assert_eq!(again, participant(&[], Mood::Well).perform(&train(2, 3), entropy(), &stop));
}

#[test]
fn a_learner_is_prepared_again_only_when_the_spec_changes() {
    let toy = Toy::new(&[], Mood::Well);
    let (prepared, stop) = (Arc::clone(&toy.prepared), Stop::default());
    let mut site = Participant::new(ClientId::new("north").unwrap(), Box::new(toy));
    let mut done = |task: &Task| {
        site.perform(task, entropy(), &stop);
        prepared.load(Ordering::Relaxed)
    };
    assert_eq!((done(&train(1, 3)), done(&train(2, 3))), (1, 1));
    let mut changed = train(3, 3);
    Arc::make_mut(&mut changed.spec).training.epochs = 2;
    assert_eq!((done(&changed), done(&changed)), (2, 2));
}

#[test]
fn a_stopped_task_is_declined_and_keeps_nothing() {
    let stop = Stop::default();
    stop.stop();
    let mut site = participant(&["head"], Mood::Well);
    let error = site.attempt(&train(1, 2), entropy(), &stop).unwrap_err();
    assert_eq!(error.reason, Decline::Stopped);
    let (toy, stop) = (Toy::new(&["head"], Mood::Endless), Stop::default());
    let (started, begins) = std::sync::mpsc::channel();
    let mut site = Participant::new(site.id().clone(), Box::new(Toy { trained: started, ..toy }));
    let asked = stop.clone();
    let outcome = std::thread::scope(|scope| {
        let work = scope.spawn(|| site.attempt(&train(1, 2), entropy(), &asked));
        begins.recv().unwrap();
        stop.stop();
        work.join().unwrap()
    });
    assert_eq!(outcome.unwrap_err().reason, Decline::Stopped);
    assert!(site.personal().is_empty());
}

/// Counts how often it was asked, in its state, and tells the count.
struct Counts;

impl SiteMethod for Counts {
    fn name(&self) -> Name {
        Name::literal("counts")
    }

    fn version(&self) -> u16 {
        2
    }

    fn perform(&self, work: &MethodWork, site: &mut MethodSite<'_>) -> Result<Contribution, LearnError> {
        if work.number(&Name::literal("panic")).is_some() {
            panic!("a method went wrong");
        }
        let count = site.state.as_ref().map_or(0, |state| state.bytes[0]) + 1;
        *site.state = Some(MethodState { version: 1, bytes: vec![count] });
        let values = Values::U8(vec![count, site.seed.generator().next_u32() as u8]);
        Ok(Contribution::of(vec![Block::new(Name::literal("count"), values)]))
    }
}

fn method(round: u32, version: u16, numbers: Vec<(Name, f64)>) -> Task {
    let work = MethodWork { method: Name::literal("counts"), version, numbers, blocks: Vec::new() };
    task(round, Work::Method(Arc::new(work)))
}

#[test]
fn a_method_is_found_by_name_and_version_and_keeps_its_state() {
    let knowing = || participant(&[], Mood::Well).with_methods(SiteMethods::default().with(Counts));
    let ask = |site: &mut Participant, task: &Task| site.perform(task, entropy(), &Stop::default()).outcome;
    let counted = |outcome: Outcome| match outcome {
        Outcome::Done(done) => match done.block(&Name::literal("count")) {
            Some(Values::U8(values)) => (values[0], values[1]),
            _ => panic!("{done:?}"),
        },
        other => panic!("{other:?}"),
    };
    let mut site = knowing();
    let first = counted(ask(&mut site, &method(1, 2, Vec::new())));
    assert_eq!(first.0, 1);
    assert_eq!(
        counted(ask(&mut site, &method(1, 2, Vec::new()))),
        first,
        "a repeated task begins where it began"
    );
    assert_eq!(counted(ask(&mut site, &method(2, 2, Vec::new()))).0, 2);
    // What stays is written to disk, and brought back.
    let text = serde_json::to_string(site.personal()).unwrap();
    let mut again = knowing();
    again.restore_personal(serde_json::from_str(&text).unwrap());
    assert_eq!(counted(ask(&mut again, &method(3, 2, Vec::new()))).0, 3);
    for (site, version) in [(&mut site, 3), (&mut participant(&[], Mood::Well), 2)] {
        let Outcome::Declined { reason, detail } = ask(site, &method(4, version, Vec::new())) else {
            panic!()
        };
        assert_eq!(reason, Decline::Unsupported);
        assert!(detail.contains(&format!("`counts` in version {version}")), "{detail}");
    }
    let panics = method(4, 2, vec![(Name::literal("panic"), 1.0)]);
    let Outcome::Declined { reason, detail } = ask(&mut site, &panics) else { panic!() };
    assert_eq!((reason, detail.contains("went wrong")), (Decline::Failed, false));
    assert_eq!(counted(ask(&mut site, &method(4, 2, Vec::new()))).0, 3, "what failed keeps nothing");
}
