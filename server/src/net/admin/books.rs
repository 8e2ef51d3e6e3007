//! What has been released from each population, and what its budget still allows.
//!
//! Epsilon is computed anew from the book's events, and only when the book has grown: an accountant may take a while.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use privacy::chain::Link;
use privacy::ledger::{Epsilons, Ledger, Record, Unit};
use serde::Serialize;
use tokio::sync::Mutex;
use utoipa::ToSchema;

use super::Shared;
use super::views::Problem;
use crate::net::store::Store;

/// Releases of a population that are told, the newest ones.
const RELEASES_MAX: usize = 500;

/// A population and its budget.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct PopulationView {
    population: String,
    /// What one unit of it is: client or example.
    #[schema(value_type = String)]
    unit: Unit,
    delta: f64,
    /// The budget.
    epsilon_max: f64,
    /// Of everything released so far, by the best accountant; null when none has a bound.
    epsilon: Option<f64>,
    /// By Rényi divergence.
    rdp: Option<f64>,
    /// By the privacy loss distribution.
    pld: Option<f64>,
    /// Releases that were made.
    releases: u64,
    /// Reservations that the budget could not pay.
    refused: u64,
    /// Records in the book, and the hash of the last one.
    records: u64,
    head: String,
    /// Whether nobody can predict the noise of any release.
    secure: bool,
    /// The newest 500 releases, oldest first.
    history: Vec<ReleaseView>,
}

/// A release.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct ReleaseView {
    run: String,
    round: u32,
    /// Of everything released up to here.
    epsilon: Option<f64>,
}

/// The books as they were when somebody last looked.
pub(super) struct Books {
    store: Arc<Store>,
    known: Mutex<BTreeMap<String, (usize, PopulationView)>>,
}

impl Books {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store, known: Mutex::default() }
    }

    /// Every population, by name.
    pub(super) async fn populations(&self) -> Result<Vec<PopulationView>, String> {
        let mut known = self.known.lock().await;
        let mut found = Vec::new();
        for population in self.store.populations().await.map_err(|error| error.to_string())? {
            let links = self.store.ledger(&population).await.map_err(|error| error.to_string())?;
            if let Some((records, view)) = known.get(&population)
                && *records == links.len()
            {
                found.push(view.clone());
                continue;
            }
            let records = links.len();
            let computed = tokio::task::spawn_blocking(move || account(&links)).await;
            let view = computed.map_err(|_| "an accountant panicked; the server's log has more")??;
            known.insert(population, (records, view.clone()));
            found.push(view);
        }
        Ok(found)
    }

    /// Population, epsilon so far, budget.
    pub(super) async fn epsilons(&self) -> Result<Vec<(String, Option<f64>, f64)>, String> {
        let views = self.populations().await?;
        Ok(views.into_iter().map(|view| (view.population, view.epsilon, view.epsilon_max)).collect())
    }
}

/// The account of one book.
fn account(links: &[Link]) -> Result<PopulationView, String> {
    let ledger = Ledger::replay(links).map_err(|error| error.to_string())?;
    let Epsilons { rdp, pld } = Epsilons::from(ledger.epsilon().map_err(|error| error.to_string())?);
    let (mut history, mut refused) = (Vec::new(), 0);
    for link in links {
        match link.read() {
            Ok(Record::Spent { run, round, epsilon, .. }) => {
                let epsilon = epsilon.and_then(best);
                history.push(ReleaseView { run, round, epsilon });
            }
            Ok(Record::Refused { .. }) => refused += 1,
            Ok(
                Record::Opened { .. }
                | Record::Declared { .. }
                | Record::Reserved { .. }
                | Record::Cancelled { .. },
            )
            | Err(_) => {}
        }
    }
    history.drain(..history.len().saturating_sub(RELEASES_MAX));
    let terms = ledger.terms();
    Ok(PopulationView {
        population: terms.population.clone(),
        unit: terms.unit,
        delta: terms.delta,
        epsilon_max: terms.epsilon_max,
        epsilon: best(Epsilons { rdp, pld }),
        rdp,
        pld,
        releases: ledger.releases(),
        refused,
        records: ledger.len(),
        head: ledger.head().to_string(),
        secure: ledger.is_secure(),
        history,
    })
}

/// Every accountant gives an upper bound; the least of them holds.
fn best(Epsilons { rdp, pld }: Epsilons) -> Option<f64> {
    rdp.into_iter().chain(pld).reduce(f64::min)
}

/// The ledger of every population: epsilon so far, the budget, the releases.
#[utoipa::path(get, path = "/api/v1/ledger", responses((status = OK, body = [PopulationView])))]
pub(super) async fn ledger(State(admin): State<Shared>) -> Result<Json<Vec<PopulationView>>, Problem> {
    admin.books.populations().await.map(Json).map_err(Problem::ours)
}
