//! What the server counts, for Prometheus: one registry that is made with the server and passed in.
//!
//! Most of it follows from the notes of runs, at the one place where they are logged; the rest is one line where it happens.
//! What can be asked for is not counted but asked when somebody looks ([`Observed`]). No label names a site or a run: the
//! number of series does not grow with the federation.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};
use protocol::wire::RunState;
use protocol::{Decline, Rejection, RunId, StepId, Time};

use crate::Note;
use crate::net::transport::messages::SOFTWARE;

/// Every reason to decline, so that a reason that has not occurred yet is a zero and no gap.
const DECLINES: [Decline; 7] = [
    Decline::Unsupported,
    Decline::Data,
    Decline::NotFinite,
    Decline::Stopped,
    Decline::Failed,
    Decline::Policy,
    Decline::Budget,
];
/// Every state of a run.
pub(crate) const STATES: [(RunState, &str); 8] = [
    (RunState::Queued, "queued"),
    (RunState::Running, "running"),
    (RunState::Paused, "paused"),
    (RunState::Stopping, "stopping"),
    (RunState::Finished, "finished"),
    (RunState::Failed, "failed"),
    (RunState::BudgetExhausted, "budget_exhausted"),
    (RunState::Stopped, "stopped"),
];
/// How rounds come out.
const OUTCOMES: [&str; 4] = ["released", "no_quorum", "withheld", "empty"];
/// Populations that are told apart at most; plans name them.
const POPULATIONS_MAX: usize = 100;

/// The word for a state.
pub(crate) fn state_name(state: RunState) -> &'static str {
    STATES.iter().find(|(one, _)| *one == state).map_or("unknown", |(_, name)| name)
}

type Label = [(&'static str, &'static str); 1];
type Named = [(&'static str, String); 1];
type Number = Gauge<f64, std::sync::atomic::AtomicU64>;
type Seconds = Family<Label, Histogram, fn() -> Histogram>;

/// What is not counted, but looked up for whoever asks.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    /// Runs by state.
    pub(crate) runs: BTreeMap<&'static str, u64>,
    /// Sites with a greeted connection.
    pub(crate) sites_connected: usize,
    /// Sites that get no task.
    pub(crate) sites_quarantined: usize,
    /// Streams over TCP that carry QUIC.
    pub(crate) tunnels: usize,
    /// Which certificates end when, in seconds since the Unix epoch.
    pub(crate) certificates: Vec<(&'static str, u64)>,
    /// Population, epsilon so far, budget.
    pub(crate) epsilons: Vec<(String, Option<f64>, f64)>,
    /// Bytes in the state folder.
    pub(crate) storage_bytes: u64,
}

/// See the module.
pub(crate) struct Metrics {
    registry: Registry,
    rounds: Family<Label, Counter>,
    ended: Family<Label, Counter>,
    phase_seconds: Seconds,
    accepted: Family<Label, Counter>,
    refused: Family<Label, Counter>,
    declined: Family<Label, Counter>,
    updates_bytes: Counter,
    models_bytes: Counter,
    handshakes_refused: Counter,
    enrolments: Family<Label, Counter>,
    admin_refused: Family<Label, Counter>,
    ledgers_refused: Counter,
    site_displacements: Counter,
    site_alternations: Counter,
    sites_connected: Gauge,
    sites_quarantined: Gauge,
    tunnels: Gauge,
    certificates: Family<Label, Gauge>,
    runs: Family<Label, Gauge>,
    epsilon: Family<Named, Number>,
    budget: Family<Named, Number>,
    storage_bytes: Gauge,
    /// What each run that is being worked on is doing, and since when.
    phases: Mutex<BTreeMap<RunId, Phase>>,
}

/// What a run is doing.
#[derive(Clone, Copy, Default)]
struct Phase {
    /// The name of the phase and when it began.
    open: Option<(&'static str, Time)>,
    withheld: bool,
}

/// Bytes that have come and gone, where exchanges count them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Carried {
    /// Of updates, inwards.
    Update,
    /// Of models, outwards.
    Model,
}

/// How an enrolment came out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Enrolment {
    Issued,
    Renewed,
    /// For the first time; asking again is not counted.
    Waiting,
    Refused,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

fn put<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut all = Registry::with_prefix("consortia");
        let to = &mut all;
        put::<Family<Label, Gauge>>(to, "build_info", "The program; always 1", Family::default())
            .get_or_create(&[("software", SOFTWARE)])
            .set(1);
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(0.01, 4.0, 10));
        let phases = Family::new_with_constructor(histogram);
        let metrics = Self {
            rounds: put(to, "rounds", "Training rounds that are over, by outcome", Family::default()),
            ended: put(to, "runs_ended", "Runs that ended, by how", Family::default()),
            phase_seconds: put(to, "phase_seconds", "Seconds of a round, by phase", phases),
            accepted: put(to, "answers_accepted", "Answers that count, by task", Family::default()),
            refused: put(to, "answers_refused", "Answers that do not count, by reason", Family::default()),
            declined: put(to, "tasks_declined", "Tasks that sites declined, by reason", Family::default()),
            updates_bytes: put(to, "update_bytes_received", "Bytes of answers", Counter::default()),
            models_bytes: put(to, "model_bytes_sent", "Bytes of models", Counter::default()),
            handshakes_refused: put(
                to,
                "handshakes_refused",
                "Connections that were refused, failed or timed out before they were greeted",
                Counter::default(),
            ),
            enrolments: put(to, "enrolments", "Requests for a certificate, by outcome", Family::default()),
            admin_refused: put(
                to,
                "admin_requests_refused",
                "Requests to the admin port that were refused, by reason",
                Family::default(),
            ),
            ledgers_refused: put(to, "ledgers_refused", "Sites with another ledger", Counter::default()),
            site_displacements: put(to, "site_displacements", "Connections replaced", Counter::default()),
            site_alternations: put(
                to,
                "site_alternations",
                "Times that connections of one site ended each other again and again",
                Counter::default(),
            ),
            sites_connected: put(to, "sites_connected", "Sites that are connected", Gauge::default()),
            sites_quarantined: put(to, "sites_quarantined", "Sites that get no task", Gauge::default()),
            certificates: put(
                to,
                "certificate_end_seconds",
                "When a certificate of the server's ends, in seconds since 1970",
                Family::default(),
            ),
            tunnels: put(
                to,
                "tunnels",
                "Peers whose network lets no UDP out and that came over TCP",
                Gauge::default(),
            ),
            runs: put(to, "runs", "Runs by state; `queued` is the queue", Family::default()),
            epsilon: put(to, "epsilon_spent", "Epsilon so far, by population", Family::default()),
            budget: put(to, "epsilon_budget", "The budget of a population", Family::default()),
            storage_bytes: put(to, "storage_bytes", "Bytes in the state folder", Gauge::default()),
            phases: Mutex::default(),
            registry: all,
        };
        metrics.begin_at_zero();
        metrics
    }

    /// A rate can be taken only of a series that is there before it grows.
    fn begin_at_zero(&self) {
        let touch = |family: &Family<Label, Counter>, name, values: &[&'static str]| {
            values.iter().for_each(|value| drop(family.get_or_create(&[(name, *value)])));
        };
        touch(&self.rounds, "outcome", &OUTCOMES);
        let over = STATES.iter().filter(|(state, _)| state.is_over());
        touch(&self.ended, "state", &over.map(|(_, name)| *name).collect::<Vec<_>>());
        touch(&self.refused, "reason", &Rejection::ALL.map(Rejection::name));
        touch(&self.declined, "reason", &DECLINES.map(Decline::name));
        let kinds = [StepId::STATISTICS, StepId::TRAIN, StepId::EVALUATE, StepId::method(0)];
        touch(&self.accepted, "task", &kinds.map(StepId::family));
        touch(&self.enrolments, "outcome", &["issued", "renewed", "refused"]);
        touch(&self.admin_refused, "reason", &["token", "host", "rate"]);
        for phase in ["collecting", "releasing", "evaluating"] {
            drop(self.phase_seconds.get_or_create(&[("phase", phase)]));
        }
    }

    /// Counts what a note says.
    pub(crate) fn note(&self, now: Time, run: RunId, note: &Note) {
        let count = |family: &Family<Label, Counter>, name, value| {
            family.get_or_create(&[(name, value)]).inc();
        };
        match note {
            Note::Waiting { .. } | Note::Warned { .. } => {}
            Note::Opened { task, .. } => match task.step {
                StepId::EVALUATE => self.enter(run, now, Some("evaluating")),
                _ => self.enter(run, now, Some("collecting")),
            },
            Note::Accepted { task, .. } => count(&self.accepted, "task", task.step.family()),
            Note::Refused { reason, .. } => count(&self.refused, "reason", reason.name()),
            Note::Declined { reason, .. } => count(&self.declined, "reason", reason.name()),
            Note::Closed { task, .. } if task.step == StepId::EVALUATE => self.enter(run, now, None),
            // The sum has been released before this is heard: `committed` knows when it began.
            Note::Closed { .. } => {}
            Note::Withheld { .. } => self.phase(run, |phase| phase.withheld = true),
            Note::Round(summary) => {
                self.enter(run, now, None);
                let withheld = self.phase(run, |phase| std::mem::take(&mut phase.withheld));
                let outcome = match (summary.released, withheld) {
                    (true, _) => "released",
                    (false, true) => "withheld",
                    (false, false) if summary.cohort == 0 => "empty",
                    (false, false) => "no_quorum",
                };
                // Round 0 asks for statistics and moves no model.
                if summary.round > 0 {
                    count(&self.rounds, "outcome", outcome);
                }
            }
            Note::Ended(end) => {
                count(&self.ended, "state", state_name(end.state()));
                self.phases.lock().unwrap_or_else(PoisonError::into_inner).remove(&run);
            }
        }
    }

    /// A commit of this run is on disk, whose round collected for `seconds`.
    pub(crate) fn committed(&self, now: Time, run: RunId, seconds: f64) {
        let collected = self.phase(run, |phase| phase.open.take_if(|(name, _)| *name == "collecting"));
        if let Some((name, since)) = collected {
            let releasing = (now - since).as_secs_f64() - seconds;
            self.phase_seconds.get_or_create(&[("phase", name)]).observe(seconds);
            self.phase_seconds.get_or_create(&[("phase", "releasing")]).observe(releasing.max(0.0));
        }
    }

    fn phase<T>(&self, run: RunId, change: impl FnOnce(&mut Phase) -> T) -> T {
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        change(phases.entry(run).or_default())
    }

    /// Ends the run's phase and begins the next.
    fn enter(&self, run: RunId, now: Time, next: Option<&'static str>) {
        let over = self.phase(run, |phase| std::mem::replace(&mut phase.open, next.map(|name| (name, now))));
        if let Some((name, since)) = over {
            self.phase_seconds.get_or_create(&[("phase", name)]).observe((now - since).as_secs_f64());
        }
    }

    /// Counts bytes.
    pub(crate) fn carried(&self, what: Carried, bytes: u64) {
        match what {
            Carried::Update => self.updates_bytes.inc_by(bytes),
            Carried::Model => self.models_bytes.inc_by(bytes),
        };
    }

    /// Counts a connection that came to nothing.
    pub(crate) fn handshake_refused(&self) {
        self.handshakes_refused.inc();
    }

    /// Counts a request for a certificate.
    pub(crate) fn enrolment(&self, outcome: Enrolment) {
        let outcome = match outcome {
            Enrolment::Issued => "issued",
            Enrolment::Renewed => "renewed",
            Enrolment::Waiting => "waiting",
            Enrolment::Refused => "refused",
        };
        self.enrolments.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// Counts a site whose ledger is another one.
    pub(crate) fn ledger_refused(&self) {
        self.ledgers_refused.inc();
    }

    /// Counts a connection that a newer one of its site has ended, and whether the two take turns.
    pub(crate) fn displaced(&self, alternates: bool) {
        self.site_displacements.inc();
        self.site_alternations.inc_by(u64::from(alternates));
    }

    /// Counts a request to the admin port that was refused.
    pub(crate) fn admin_refused(&self, reason: &'static str) {
        self.admin_refused.get_or_create(&[("reason", reason)]).inc();
    }

    /// Everything, in the text format of OpenMetrics.
    pub(crate) fn text(&self, observed: &Observed) -> String {
        let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        for (_, state) in STATES {
            let runs = observed.runs.get(state).copied().unwrap_or(0);
            self.runs.get_or_create(&[("state", state)]).set(whole(runs));
        }
        self.sites_connected.set(whole(observed.sites_connected as u64));
        self.sites_quarantined.set(whole(observed.sites_quarantined as u64));
        self.tunnels.set(whole(observed.tunnels as u64));
        for (certificate, ends) in &observed.certificates {
            self.certificates.get_or_create(&[("certificate", certificate)]).set(whole(*ends));
        }
        self.storage_bytes.set(whole(observed.storage_bytes));
        for (population, spent, budget) in observed.epsilons.iter().take(POPULATIONS_MAX) {
            let label = [("population", population.clone())];
            self.epsilon.get_or_create(&label).set(spent.unwrap_or(f64::INFINITY));
            self.budget.get_or_create(&label).set(*budget);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes everything");
        text
    }
}

#[cfg(test)]
mod tests {
    use protocol::wire::RoundSummary;
    use protocol::{Round, TaskId};

    use super::*;
    use crate::RunEnd;

    fn round(released: bool, cohort: u32) -> Note {
        Note::Round(RoundSummary {
            round: 3,
            released,
            cohort,
            answered: 0,
            train: None,
            sites: None,
            central: None,
            seconds: 1.0,
            epsilon: None,
            further: Default::default(),
        })
    }

    fn task(kind: StepId) -> TaskId {
        TaskId::new(RunId(1), Round(3), kind)
    }

    fn observed() -> Observed {
        let epsilons = vec![("patients".to_owned(), Some(0.5), 2.0)];
        Observed {
            runs: BTreeMap::from([("queued", 2)]),
            sites_connected: 3,
            sites_quarantined: 1,
            tunnels: 1,
            certificates: vec![("server", 1_800_000_000)],
            epsilons,
            storage_bytes: 17,
        }
    }

    #[test]
    fn a_round_is_counted_by_its_outcome_and_timed_by_its_phases() {
        let (metrics, run) = (Metrics::new(), RunId(1));
        let at = Time::from_micros;
        metrics.note(at(0), run, &Note::Opened { task: task(StepId::TRAIN), cohort: 3 });
        let closed =
            Note::Closed { task: task(StepId::TRAIN), answered: 3, missing: 0, surplus: 0, quorum: true };
        metrics.note(at(2_400_000), run, &closed);
        metrics.committed(at(2_500_000), run, 2.0);
        metrics.note(at(2_500_000), run, &Note::Opened { task: task(StepId::EVALUATE), cohort: 3 });
        metrics.note(at(6_500_000), run, &round(true, 3));
        metrics.note(at(7_000_000), run, &round(false, 3));
        metrics.note(at(7_000_000), run, &round(false, 0));
        let reason = "no noise".to_owned();
        metrics.note(at(7_000_000), run, &Note::Withheld { task: task(StepId::TRAIN), reason });
        metrics.note(at(7_000_000), run, &round(false, 3));
        let text = metrics.text(&observed());
        for line in [
            "consortia_rounds_total{outcome=\"released\"} 1",
            "consortia_rounds_total{outcome=\"no_quorum\"} 1",
            "consortia_rounds_total{outcome=\"empty\"} 1",
            "consortia_rounds_total{outcome=\"withheld\"} 1",
            "consortia_phase_seconds_sum{phase=\"collecting\"} 2.0",
            "consortia_phase_seconds_sum{phase=\"releasing\"} 0.5",
            "consortia_phase_seconds_sum{phase=\"evaluating\"} 4.0",
            "consortia_runs{state=\"queued\"} 2",
            "consortia_sites_connected 3",
            "consortia_tunnels 1",
            "consortia_certificate_end_seconds{certificate=\"server\"} 1800000000",
            "consortia_epsilon_spent{population=\"patients\"} 0.5",
            "consortia_epsilon_budget{population=\"patients\"} 2.0",
            "consortia_storage_bytes 17",
            "consortia_answers_refused_total{reason=\"norm_exceeded\"} 0",
            "consortia_tasks_declined_total{reason=\"policy\"} 0",
        ] {
            assert!(text.contains(line), "there is no `{line}` in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn every_state_has_a_word_that_the_wire_uses_too() {
        for (state, name) in STATES {
            assert_eq!(serde_json::to_value(state).unwrap(), name);
        }
    }

    #[test]
    fn the_series_do_not_grow_with_sites_runs_or_populations() {
        let metrics = Metrics::new();
        let lines = metrics.text(&observed()).lines().count();
        for run in 0..1000 {
            let client = protocol::ClientId::new(&format!("site-{run}")).unwrap();
            let accepted = Note::Accepted { client, task: task(StepId::TRAIN), metrics: None };
            metrics.note(Time::ZERO, RunId(run), &accepted);
            metrics.note(Time::ZERO, RunId(run), &Note::Ended(RunEnd::Finished));
        }
        assert_eq!(metrics.text(&observed()).lines().count(), lines);
        let many = (0..1000).map(|index| (format!("population-{index}"), None, 1.0));
        let text = metrics.text(&Observed { epsilons: many.collect(), ..Observed::default() });
        assert!(text.lines().count() <= lines + 2 * POPULATIONS_MAX);
        assert!(metrics.phases.lock().unwrap().is_empty());
    }
}
