//! What the API says, in the words of JSON. These are promises to programs: they are not the wire's types.

use std::collections::BTreeMap;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use privacy::ledger::Unit;
use protocol::wire::{ClientSummary, RoundSummary, RunSummary};
use protocol::{Metrics, PrivacySpec};
use serde::Serialize;
use utoipa::ToSchema;

use crate::net::engine::metrics::state_name;

/// What went wrong, for a person.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    #[serde(skip)]
    #[schema(ignore)]
    status: StatusCode,
    /// One sentence: what is at fault and what to do.
    error: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into() }
    }

    /// The request is at fault.
    pub(super) fn bad(error: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.to_string())
    }

    /// The server is.
    pub(super) fn ours(error: impl ToString) -> Self {
        let error = error.to_string();
        tracing::error!("the admin port cannot answer: {error}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, Json(self)).into_response()
    }
}

/// What sites measured, pooled or alone.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct MetricsView {
    loss: f64,
    accuracy: Option<f64>,
    examples: u64,
    seconds: f64,
}

impl From<Metrics> for MetricsView {
    fn from(metrics: Metrics) -> Self {
        let Metrics { loss, accuracy, examples, seconds } = metrics;
        Self { loss, accuracy, examples, seconds }
    }
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct RunView {
    /// 16 hexadecimal digits.
    pub(super) run: String,
    /// Its plan's name.
    name: String,
    /// queued, running, paused, stopping, stopped, finished, failed or budget_exhausted.
    state: &'static str,
    /// What it waits for or why it ended.
    message: String,
    rounds_done: u32,
    rounds: u32,
    /// Whether it carries a seed: it may not claim privacy then.
    #[serde(rename = "rehearsal")]
    is_seeded: bool,
    model_sha256: String,
}

impl From<&RunSummary> for RunView {
    fn from(summary: &RunSummary) -> Self {
        Self {
            run: summary.run.to_string(),
            name: summary.name.clone(),
            state: state_name(summary.state),
            message: summary.message.clone(),
            rounds_done: summary.rounds_done,
            rounds: summary.rounds,
            is_seeded: summary.is_seeded,
            model_sha256: summary.model_sha256.clone(),
        }
    }
}

/// A run with its plan, its last 1,000 rounds and its sites.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WholeRunView {
    #[serde(flatten)]
    pub(super) run: RunView,
    /// The plan as it was handed in.
    pub(super) plan_toml: String,
    /// Whether the plan predicts a number and its loss is a mean squared error.
    pub(super) squared_error: bool,
    /// On which records of theirs sites measure a model: test or validation.
    pub(super) evaluation_records: &'static str,
    /// What the plan promises of privacy; empty where it promises nothing.
    pub(super) promises: Vec<PromiseView>,
    /// Oldest first.
    pub(super) history: Vec<RoundView>,
    /// By name.
    pub(super) sites: Vec<RunSiteView>,
}

/// A promise of privacy.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct PromiseView {
    /// Whose data it protects: client or example.
    #[schema(value_type = String)]
    unit: Unit,
    /// The population whose ledger at the server pays; null where each site accounts for itself.
    population: Option<String>,
    /// Noise over the clipping norm, of one release or one gradient step; of correlated noise that of the whole run as one release.
    noise_multiplier: f64,
    delta: f64,
    /// The budget, at `delta`.
    epsilon_max: f64,
}

impl PromiseView {
    /// All that a plan promises.
    pub(super) fn all(privacy: &PrivacySpec) -> Vec<Self> {
        let central = privacy.central.as_ref().map(|central| Self {
            unit: Unit::Client,
            population: Some(central.population.clone()),
            noise_multiplier: central.noise_multiplier.value(),
            delta: central.delta,
            epsilon_max: central.epsilon_max.value(),
        });
        let local = privacy.local.map(|local| Self {
            unit: Unit::Client,
            population: None,
            noise_multiplier: local.noise_multiplier.value(),
            delta: local.delta,
            epsilon_max: local.epsilon_max.value(),
        });
        let examples = privacy.examples.map(|examples| Self {
            unit: Unit::Example,
            population: None,
            noise_multiplier: examples.noise_multiplier.value(),
            delta: examples.delta,
            epsilon_max: examples.epsilon_max.value(),
        });
        central.into_iter().chain(local).chain(examples).collect()
    }
}

/// A round.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct RoundView {
    /// 0 is the statistics round.
    round: u32,
    /// Whether the model moved.
    released: bool,
    /// Sites asked; null where the plan draws them in secret, so that nothing may show how many took part.
    cohort: Option<u32>,
    /// Updates that count; null where `cohort` is.
    answered: Option<u32>,
    /// Mean of the sites' training metrics; null where the plan keeps them at the sites.
    train: Option<MetricsView>,
    /// Mean of the sites' test metrics.
    sites: Option<MetricsView>,
    /// On the server's own records.
    central: Option<MetricsView>,
    /// From the opening of the round to its release; null where `cohort` is.
    seconds: Option<f64>,
    /// Of everything released from the run's population so far; null without noise.
    epsilon: Option<f64>,
    /// Means of the further metrics of external learners in training, by the plan's names.
    further_train: BTreeMap<String, f64>,
    /// The same of the sites' evaluations.
    further_sites: BTreeMap<String, f64>,
}

impl From<&RoundSummary> for RoundView {
    fn from(line: &RoundSummary) -> Self {
        let (asked, answered) = line.participation().unzip();
        Self {
            round: line.round,
            released: line.released,
            cohort: asked,
            answered,
            train: line.train.map(MetricsView::from),
            sites: line.sites.map(MetricsView::from),
            central: line.central.map(MetricsView::from),
            seconds: asked.map(|_| line.seconds),
            epsilon: line.epsilon.filter(|epsilon| epsilon.is_finite()),
            further_train: line.further.train().clone(),
            further_sites: line.further.sites().clone(),
        }
    }
}

/// A site in a run.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct RunSiteView {
    site: String,
    connected: bool,
    /// Updates that counted; null where the plan draws sites in secret, as are no refused and declined ones told then.
    accepted: Option<u32>,
    /// Refused answers by reason.
    refused: BTreeMap<String, u32>,
    /// Declined tasks by reason.
    declined: BTreeMap<String, u32>,
    /// Its last test metrics.
    test: Option<MetricsView>,
}

impl RunSiteView {
    /// A run that is over does not know who is connected.
    pub(super) fn new(client: &ClientSummary, connected: bool) -> Self {
        Self {
            site: client.client.to_string(),
            connected,
            accepted: Some(client.accepted),
            refused: client.refused.iter().cloned().collect(),
            declined: client.declined.iter().cloned().collect(),
            test: client.test.map(MetricsView::from),
        }
    }

    /// The same for a run that does not show who took part.
    pub(super) fn without_participation(self) -> Self {
        let (refused, declined) = (BTreeMap::new(), BTreeMap::new());
        Self { accepted: None, refused, declined, ..self }
    }
}
