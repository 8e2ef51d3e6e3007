//! A site's ledger on paper that can be read while it is written.

use std::io;
use std::sync::{Arc, Mutex};

use privacy::accounting::{self, Event, Mechanism};
use protocol::{
    CentralPrivacy, Clipping, ExamplePrivacy, LocalPrivacy, MetricsRule, NoiseCorrelation, Positive,
    PrivacySpec, RunId, Sampling, Seed, Stop,
};

use super::*;
use crate::participant::tests::train;

/// Bytes in memory that outlive their writer.
#[derive(Clone, Default)]
pub(crate) struct Paper {
    bytes: Arc<Mutex<Vec<u8>>>,
    full: bool,
    stop: Option<Stop>,
}

impl Paper {
    pub(crate) fn text(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    /// Paper on which nothing can be written.
    pub(crate) fn full() -> Self {
        Self { full: true, ..Self::default() }
    }

    /// Paper whose first line stops a task.
    pub(crate) fn stopping(stop: &Stop) -> Self {
        Self { stop: Some(stop.clone()), ..Self::default() }
    }
}

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.full {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.bytes.lock().unwrap().extend_from_slice(bytes);
        if let Some(stop) = &self.stop {
            stop.stop();
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const DELTA: f64 = 1e-5;
const NOW: Time = Time::ZERO;

fn positive(value: f64) -> Positive {
    Positive::new(value).unwrap()
}

pub(crate) fn central(noise: NoiseCorrelation) -> PrivacySpec {
    let central = CentralPrivacy {
        population: "patients".into(),
        relation: Relation::ZeroOut,
        delta: DELTA,
        epsilon_max: positive(100.0),
        noise_multiplier: positive(2.0),
        rounds: 50,
        denominator: positive(10.0),
        sampling: Sampling::Availability { participations_max: 20, separation_min: 2 },
        noise,
        clipping: Clipping::Fixed,
        metrics: MetricsRule::Off,
        clients_min: 10,
    };
    PrivacySpec { central: Some(central), ..PrivacySpec::default() }
}

pub(crate) fn local(epsilon_max: f64) -> PrivacySpec {
    let local = LocalPrivacy {
        noise_multiplier: positive(4.0),
        delta: DELTA,
        epsilon_max: positive(epsilon_max),
        metrics: MetricsRule::Off,
    };
    PrivacySpec { local: Some(local), ..PrivacySpec::default() }
}

pub(crate) fn examples(epsilon_max: f64) -> PrivacySpec {
    let examples = ExamplePrivacy {
        noise_multiplier: positive(1.0),
        norm_max: positive(1.0),
        delta: DELTA,
        epsilon_max: positive(epsilon_max),
        metrics: MetricsRule::Off,
    };
    PrivacySpec { examples: Some(examples), ..PrivacySpec::default() }
}

pub(crate) fn private(round: u32, privacy: PrivacySpec) -> Task {
    let mut task = Task { seed: None, ..train(round, 3) };
    let spec = Arc::make_mut(&mut task.spec);
    spec.privacy = privacy;
    spec.cohort_max = 100;
    spec.data = match spec.data.clone() {
        protocol::DataSpec::Table(table) => {
            let standardise = protocol::Standardise::None;
            protocol::DataSpec::Table(protocol::TableSpec { standardise, ..table })
        }
        other => other,
    };
    task
}

pub(crate) fn ledger(paper: &Paper) -> SiteLedger<Paper> {
    SiteLedger::open(&paper.text(), paper.clone(), Digest::of(b"federation")).unwrap()
}

fn pay(
    ledger: &mut SiteLedger<Paper>,
    task: &Task,
    releases: Option<ExampleReleases>,
    budget: Option<(f64, f64)>,
) -> Result<LedgerReservation, PayError> {
    ledger.reserve(task, releases, false, budget, NOW).map(|reservation| reservation.unwrap())
}

fn epsilon(mechanism: Mechanism, count: u64) -> f64 {
    let event = Event::new(mechanism, count).unwrap();
    accounting::epsilon(&[event], Relation::ZeroOut, DELTA).unwrap().best()
}

fn gaussian(noise_multiplier: f64) -> Mechanism {
    Mechanism::Gaussian { noise_multiplier }
}

fn total(ledger: &SiteLedger<Paper>, unit: Unit) -> Total {
    ledger.account().total(unit, None, DELTA).unwrap()
}

pub(crate) const POISSON: ExampleReleases = ExampleReleases { steps: 30, sampling_rate: 0.1, batch_size: 10 };

/// The first round that is refused, when a restart precedes every round.
fn refused_at(paper: &Paper, privacy: &PrivacySpec, budget: Option<(f64, f64)>) -> u32 {
    let releases = privacy.examples.map(|_| POISSON);
    (1..100)
        .find(|round| {
            let paid = pay(&mut ledger(paper), &private(*round, privacy.clone()), releases, budget);
            matches!(paid, Err(PayError::Exhausted { spent, next, epsilon_max, .. })
                if spent <= epsilon_max && next > epsilon_max)
        })
        .unwrap()
}

/// The same, computed without a ledger.
fn affordable(mechanism: Mechanism, releases: u64, epsilon_max: f64) -> u32 {
    (1..100).find(|round| epsilon(mechanism, releases * u64::from(*round)) > epsilon_max).unwrap()
}

#[test]
fn the_round_of_refusal_is_the_one_computed_offline_and_a_restart_does_not_reset_it() {
    let site = Some((6.0, DELTA));
    let cases = [
        (central(NoiseCorrelation::Independent), site, affordable(gaussian(2.0), 1, 6.0)),
        // An exchange moves an update twice as far.
        (local(1e6), site, affordable(gaussian(2.0), 1, 6.0)),
        (local(5.0), None, affordable(gaussian(2.0), 1, 5.0)),
        (examples(7.0), None, affordable(POISSON.mechanism(1.0), 30, 7.0)),
        (examples(1e6), site, affordable(POISSON.mechanism(1.0), 30, 6.0)),
    ];
    for (privacy, budget, round) in cases {
        assert!(round > 2, "a refusal of the first round shows nothing");
        assert_eq!(refused_at(&Paper::default(), &privacy, budget), round, "{privacy:?}");
    }
}

#[test]
fn a_plan_s_budget_holds_over_all_runs_of_the_ledger() {
    for (privacy, releases) in [(examples(7.0), Some(POISSON)), (local(5.0), None)] {
        let alone = refused_at(&Paper::default(), &privacy, None);
        let mut ledger = ledger(&Paper::default());
        let mut task = private(1, privacy.clone());
        let paid = (1..100).find(|round| {
            // Every round is of another run.
            task.id.run = RunId(u64::from(*round));
            matches!(
                pay(&mut ledger, &task, releases, None),
                Err(PayError::Exhausted { whose: "the plan", .. })
            )
        });
        assert_eq!(paid, Some(alone), "{privacy:?}");
    }
}

#[test]
fn chance_that_a_seed_gives_away_is_not_charged() {
    let (mut seeded, mut secret) = (ledger(&Paper::default()), ledger(&Paper::default()));
    let task = Task { seed: Some(Seed::from_number(1)), ..private(1, examples(1e6)) };
    let reservation = pay(&mut seeded, &task, Some(POISSON), None).unwrap();
    let permit = reservation.permit.unwrap();
    assert_eq!((permit.reservation().charge.mechanism, permit.left()), (gaussian(1.0), 30));
    let _ = pay(&mut secret, &Task { seed: None, ..task }, Some(POISSON), None).unwrap();
    assert_eq!(total(&seeded, Unit::Example).epsilon.best(), epsilon(gaussian(1.0), 30));
    assert_eq!(total(&secret, Unit::Example).epsilon.best(), epsilon(POISSON.mechanism(1.0), 30));
}

#[test]
fn a_server_that_samples_is_not_believed() {
    let mut privacy = central(NoiseCorrelation::Independent);
    let promised = privacy.central.as_mut().unwrap();
    (promised.sampling, promised.relation) = (Sampling::Poisson { rate: 0.01 }, Relation::AddOrRemoveOne);
    let mut ledger = ledger(&Paper::default());
    let _ = pay(&mut ledger, &private(1, privacy), None, None).unwrap();
    assert_eq!(total(&ledger, Unit::Client).epsilon.best(), epsilon(gaussian(2.0), 1));
}

#[test]
fn a_repeated_round_of_central_noise_is_paid_once_and_one_of_local_noise_again() {
    let mut ledger = ledger(&Paper::default());
    let once = private(1, central(NoiseCorrelation::Independent));
    for _ in 0..3 {
        let _ = pay(&mut ledger, &once, None, None).unwrap();
    }
    assert_eq!(total(&ledger, Unit::Client).epsilon.best(), epsilon(gaussian(2.0), 1));
    for _ in 0..3 {
        let _ = pay(&mut ledger, &private(1, local(1e6)), None, None).unwrap();
    }
    let after = total(&ledger, Unit::Client);
    assert_eq!((after.protected, after.epsilon.best()), (6, epsilon(gaussian(2.0), 4)));
}

#[test]
fn a_plan_that_promises_less_noise_than_before_pays_anew() {
    let mut ledger = ledger(&Paper::default());
    let _ = pay(&mut ledger, &private(1, central(NoiseCorrelation::Tree)), None, None).unwrap();
    let before = total(&ledger, Unit::Client).epsilon.best();
    let mut weaker = central(NoiseCorrelation::Tree);
    weaker.central.as_mut().unwrap().noise_multiplier = positive(0.5);
    let _ = pay(&mut ledger, &private(1, weaker), None, None).unwrap();
    assert!(total(&ledger, Unit::Client).epsilon.best() > before + 1.0);
}

#[test]
fn correlated_noise_is_paid_for_the_whole_run_by_its_first_round() {
    let weights = NoiseCorrelation::Banded { weights: vec![1 << 18] };
    for noise in [NoiseCorrelation::Tree, weights] {
        let mut ledger = ledger(&Paper::default());
        let _ = pay(&mut ledger, &private(1, central(noise.clone())), None, None).unwrap();
        let whole = central(noise.clone()).central.unwrap().events(1).unwrap()[0].mechanism();
        let first = total(&ledger, Unit::Client).epsilon;
        assert_eq!(first.best(), epsilon(whole, 1));
        for round in 2..6 {
            let _ = pay(&mut ledger, &private(round, central(noise.clone())), None, None).unwrap();
        }
        assert_eq!(total(&ledger, Unit::Client), Total { protected: 5, unprotected: 0, epsilon: first });
    }
}

#[test]
fn what_is_cancelled_costs_nothing_and_stays_an_attempt() {
    let paper = Paper::default();
    let mut one = ledger(&paper);
    let kept = pay(&mut one, &private(1, local(1e6)), None, None).unwrap();
    let back = pay(&mut one, &private(2, local(1e6)), None, None).unwrap();
    assert_eq!((kept.record(), back.record()), (0, 1));
    one.cancel(back, NOW).unwrap();
    let trained: Vec<Round> = one.account().trained().map(|(_, round)| round).collect();
    assert_eq!((one.account().history().attempts(), trained), (2, vec![Round(1)]));
    let again = ledger(&paper);
    assert_eq!(again.account(), one.account());
    assert_eq!(total(&again, Unit::Client).epsilon.best(), epsilon(gaussian(2.0), 1));
}

#[test]
fn clients_and_records_are_counted_apart_and_what_has_no_noise_is_counted_without_epsilon() {
    let mut ledger = ledger(&Paper::default());
    let _ = pay(&mut ledger, &private(1, examples(100.0)), Some(POISSON), None).unwrap();
    let _ = pay(&mut ledger, &private(2, local(100.0)), None, None).unwrap();
    let _ = pay(&mut ledger, &private(3, PrivacySpec::default()), None, Some((0.1, DELTA))).unwrap();
    let (clients, records) = (total(&ledger, Unit::Client), total(&ledger, Unit::Example));
    assert_eq!((clients.protected, clients.unprotected), (1, 2));
    assert_eq!((records.protected, records.unprotected), (1, 2));
    assert_eq!(clients.epsilon.best(), epsilon(gaussian(2.0), 1));
    assert_eq!(records.epsilon.best(), epsilon(POISSON.mechanism(1.0), 30));
    let runs = ledger.account().runs();
    assert_eq!((runs.len(), runs[0].tasks, runs[0].seeded, runs[0].delta), (1, 3, 0, Some(DELTA)));
}

fn seeded(round: u32, privacy: PrivacySpec) -> Task {
    Task { seed: Some(Seed::from_number(7)), ..private(round, privacy) }
}

#[test]
fn a_server_that_has_given_the_seed_knows_the_batches_and_they_cost_as_if_nothing_was_drawn() {
    let mut ledger = ledger(&Paper::default());
    let _ = pay(&mut ledger, &private(1, examples(1e6)), Some(POISSON), None).unwrap();
    let sampled = total(&ledger, Unit::Example).epsilon.best();
    assert_eq!(sampled, epsilon(POISSON.mechanism(1.0), 30));
    let _ = pay(&mut ledger, &seeded(2, examples(1e6)), Some(POISSON), None).unwrap();
    let found = total(&ledger, Unit::Example).epsilon.best();
    // Thirty steps of noise 1 are one of 1 / sqrt(30).
    let exact = accounting::gaussian::epsilon(1.0 / 30f64.sqrt(), DELTA).unwrap();
    assert!(found > exact && found < exact + sampled, "{found} for {exact} and {sampled}");
    // Neither a plan's budget nor a site's lets a seeded training through that real ones would have.
    let budget = epsilon(POISSON.mechanism(1.0), 60);
    for (privacy, site) in [(examples(budget), None), (examples(1e6), Some((budget, DELTA)))] {
        let mut ledger = self::ledger(&Paper::default());
        assert!(pay(&mut ledger, &private(1, privacy.clone()), Some(POISSON), site).is_ok());
        let refused = pay(&mut ledger, &seeded(2, privacy), Some(POISSON), site);
        assert!(matches!(refused, Err(PayError::Exhausted { .. })), "{refused:?}");
    }
}

#[test]
fn a_seeded_training_that_an_earlier_version_reserved_as_sampled_is_counted_as_it_was() {
    let paper = Paper::default();
    let task = seeded(1, examples(1e6));
    let event = Event::new(POISSON.mechanism(1.0), 30).unwrap();
    let charge = Charge { unit: Unit::Example, relation: Relation::ZeroOut, event };
    let mut writer = ChainWriter::new(privacy::chain::Chain::new(), paper.clone());
    writer.append(&Entry::of(&task, vec![charge], Digest::of(b"federation"), NOW)).unwrap();
    let found = total(&ledger(&paper), Unit::Example).epsilon.best();
    assert_eq!(found, epsilon(gaussian(1.0), 30));
}

#[test]
fn records_are_not_trained_on_without_knowing_what_is_released() {
    let mut ledger = ledger(&Paper::default());
    let unpaid = pay(&mut ledger, &private(1, examples(100.0)), None, None);
    assert!(matches!(unpaid, Err(PayError::Unprotected)));
    let paid = pay(&mut ledger, &private(1, examples(100.0)), Some(POISSON), None).unwrap();
    assert_eq!(paid.permit.map(|permit| (permit.left(), permit.noise_multiplier())), Some((30, 1.0)));
}

#[test]
fn a_client_without_a_ledger_pays_for_all_rounds_up_to_its_own() {
    let refused = |privacy: &PrivacySpec, releases| {
        let pay = |round| pay_without_memory(&private(round, privacy.clone()), releases);
        (1..100).find(|round| matches!(pay(*round), Err(PayError::Exhausted { .. })))
    };
    let (records, clients) = (affordable(POISSON.mechanism(1.0), 30, 7.0), affordable(gaussian(2.0), 1, 6.0));
    assert_eq!(refused(&examples(7.0), Some(POISSON)), Some(records));
    assert_eq!(refused(&local(6.0), None), Some(clients));
    let unknown = pay_without_memory(&private(1, examples(7.0)), None);
    assert!(matches!(unknown, Err(PayError::Unprotected)));
}

#[test]
fn an_answer_that_tells_nothing_is_not_reserved() {
    let mut ledger = ledger(&Paper::default());
    let model = Arc::new(protocol::Parameters::new(vec![0.0; 3]));
    let task = crate::participant::tests::task(1, Work::Evaluate { model });
    assert!(ledger.reserve(&task, None, false, None, NOW).unwrap().is_none());
    assert!(ledger.reserve(&task, None, true, None, NOW).unwrap().is_some());
    assert_eq!((total(&ledger, Unit::Client).unprotected, ledger.account().history().attempts()), (1, 0));
}

#[test]
fn every_changed_byte_of_a_ledger_is_found_with_its_line() {
    let paper = Paper::default();
    let mut ledger = ledger(&paper);
    let _ = pay(&mut ledger, &private(1, local(1e6)), None, None).unwrap();
    let back = pay(&mut ledger, &private(2, PrivacySpec::default()), None, None).unwrap();
    ledger.cancel(back, NOW).unwrap();
    let text = paper.text();
    for at in 0..text.len() {
        let mut changed = text.clone();
        changed[at] ^= 1;
        let line = 1 + text[..at].iter().filter(|byte| **byte == b'\n').count();
        let said = SiteAccount::read(&changed).unwrap_err().to_string();
        assert!(said.starts_with(&format!("line {line}:")), "byte {at}: {said}");
    }
}

#[test]
fn a_cancellation_of_what_was_never_reserved_is_damage() {
    let paper = Paper::default();
    let mut writer = ChainWriter::new(privacy::chain::Chain::new(), paper.clone());
    writer.append(&Entry::cancelling(0, NOW)).unwrap();
    let error = SiteAccount::read(&paper.text()).unwrap_err();
    assert_eq!(error, SiteLedgerError::Cancellation { line: 1, reservation: 0 });
    let mut writer = ChainWriter::new(privacy::chain::Chain::new(), Vec::new());
    let newer = serde_json::json!({ "cancelled": { "version": 2, "at_micros": 0, "reservation": 0 } });
    let link = writer.append(&newer).unwrap();
    let line = serde_json::to_vec(&link).unwrap();
    let said = SiteAccount::read(&[&line[..], b"\n"].concat()).unwrap_err().to_string();
    assert!(said.contains("version 2"), "{said}");
}

#[test]
fn what_cannot_be_written_is_not_paid() {
    let paper = Paper::full();
    let mut ledger = ledger(&paper);
    let unpaid = pay(&mut ledger, &private(1, local(1e6)), None, None);
    assert!(matches!(unpaid, Err(PayError::Write(_))));
    assert_eq!(ledger.account().history().attempts(), 0);
}

#[test]
fn a_round_behind_the_latest_is_refused_and_the_latest_may_be_repeated() {
    for privacy in [central(NoiseCorrelation::Independent), local(1e6), examples(1e6)] {
        let releases = privacy.examples.map(|_| POISSON);
        let paper = Paper::default();
        let mut book = ledger(&paper);
        for round in [1, 4, 4] {
            let _ = pay(&mut book, &private(round, privacy.clone()), releases, None).unwrap();
        }
        let before = paper.text();
        for round in [1, 3] {
            let refused = pay(&mut book, &private(round, privacy.clone()), releases, None).unwrap_err();
            assert!(matches!(refused, PayError::Past { latest: Round(4), .. }), "{refused}");
            assert_eq!((refused.reason(), refused.rule()), (Decline::Policy, "rounds"));
        }
        assert_eq!(paper.text(), before, "nothing is reserved");
        // A program that was started again remembers; another run and another federation have rounds of their own.
        let mut book = ledger(&paper);
        assert!(pay(&mut book, &private(3, privacy.clone()), releases, None).is_err());
        let mut other = private(1, privacy.clone());
        other.id.run = RunId(other.id.run.0 + 1);
        assert!(pay(&mut book, &other, releases, None).is_ok());
        let _ = pay(&mut book, &private(5, privacy.clone()), releases, None).unwrap();
    }
    // Nothing is released of a run without a promise that was not released in clear before.
    let mut book = ledger(&Paper::default());
    for round in [2, 1] {
        assert!(pay(&mut book, &train(round, 3), None, None).is_ok());
    }
}

/// Ratios of times of the same machine in the same second, so that a slow one changes nothing: what walks through all records takes a
/// hundred times as long.
#[test]
#[expect(clippy::disallowed_methods, reason = "it times what it measures")]
fn a_task_is_judged_and_paid_as_fast_after_a_hundred_thousand_rounds_as_after_a_thousand() {
    let federation = Digest::of(b"federation");
    let policy = crate::Policy::parse(crate::PLAIN_POLICY).unwrap();
    let facts = crate::policy::SiteFacts { parameters: 3, ..Default::default() };
    let mut account = SiteAccount::default();
    let mut grow = |rounds: std::ops::Range<u32>| {
        for round in rounds {
            let task = private(round + 1, local(1e6));
            let charges = account.charges(&task, None, federation).unwrap();
            let now = Time::from_micros(u64::from(round) * 1_000_000);
            account.book(u64::from(round), Entry::of(&task, charges, federation, now));
        }
        account.clone()
    };
    let few = grow(0..1000);
    let many = grow(1000..100_000);
    let fastest = |account: &SiteAccount, round: u32| {
        let task = private(round, local(1e6));
        let now = Time::from_micros(u64::from(round) * 1_000_000);
        let once = || {
            let began = std::time::Instant::now();
            for _ in 0..20 {
                policy.judge(&task, &facts, now, account.history()).unwrap();
                account.would_pay(&task, None, federation, None).unwrap();
            }
            began.elapsed()
        };
        (0..20).map(|_| once()).min().unwrap()
    };
    let (early, late) = (fastest(&few, 1001), fastest(&many, 100_001));
    assert!(late < 10 * early, "{early:?} after 1,000 rounds, {late:?} after 100,000");
}
