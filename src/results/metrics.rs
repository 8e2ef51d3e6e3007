//! `metrics.csv`: a line a round, with three columns more for each client where they are few enough to be read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use protocol::wire::RoundSummary;
use protocol::{ClientId, Metrics, StepId, TaskId};
use serde::{Deserialize, Serialize};

/// Clients that get columns of their own. Of more, the report shows the last metrics of those that fared worst.
pub const CLIENT_COLUMNS_MAX: usize = 64;

/// What each client has measured, round by round; nothing of a federation with more than [`CLIENT_COLUMNS_MAX`] clients.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClientMetrics {
    clients: Vec<ClientId>,
    rounds: BTreeMap<u32, BTreeMap<ClientId, Measured>>,
}

/// Of one client in one round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// While it trained.
    pub train: Option<Metrics>,
    /// Of the round's model on its test records.
    pub test: Option<Metrics>,
}

impl ClientMetrics {
    /// For these clients, in this order.
    pub fn of(clients: impl IntoIterator<Item = ClientId>) -> Self {
        let clients: Vec<ClientId> = clients.into_iter().take(CLIENT_COLUMNS_MAX + 1).collect();
        let clients = if clients.len() > CLIENT_COLUMNS_MAX { Vec::new() } else { clients };
        Self { clients, rounds: BTreeMap::new() }
    }

    /// Takes what came with a round or its evaluation.
    pub fn add(&mut self, reports: &[(ClientId, TaskId, Metrics)]) {
        if self.clients.is_empty() {
            return;
        }
        for (client, task, metrics) in reports {
            let measured = self.rounds.entry(task.round.0).or_default().entry(client.clone()).or_default();
            match task.step {
                StepId::EVALUATE => measured.test = Some(*metrics),
                step if step.is_of_round() => measured.train = Some(*metrics),
                _ => {}
            }
        }
    }

    /// What its clients have measured in a round, in order.
    pub fn round(&self, round: u32) -> impl Iterator<Item = (&ClientId, Measured)> {
        let measured = self.rounds.get(&round);
        let clients = if measured.is_some() { &self.clients[..] } else { &[] };
        clients.iter().map(move |client| {
            let measured = measured.and_then(|all| all.get(client)).copied();
            (client, measured.unwrap_or_default())
        })
    }

    fn header(&self) -> String {
        let columns =
            |client: &ClientId| format!(",{client}_train_loss,{client}_test_loss,{client}_test_accuracy");
        // Without a number in any round there is nothing to show.
        if self.rounds.is_empty() { String::new() } else { self.clients.iter().map(columns).collect() }
    }

    fn line(&self, round: u32) -> String {
        if self.rounds.is_empty() {
            return String::new();
        }
        let known = self.rounds.get(&round);
        let columns = |client: &ClientId| {
            let Measured { train, test } = known.and_then(|all| all.get(client)).copied().unwrap_or_default();
            let values = [
                number(train.map(|metrics| metrics.loss)),
                number(test.map(|metrics| metrics.loss)),
                number(test.and_then(|metrics| metrics.accuracy)),
            ];
            format!(",{}", values.join(","))
        };
        self.clients.iter().map(columns).collect()
    }
}

/// Columns of what external learners measured beside loss and accuracy: two for each name that was told in some round.
struct Further(BTreeSet<String>);

impl Further {
    fn of(rounds: &[RoundSummary]) -> Self {
        let names =
            rounds.iter().flat_map(|round| round.further.train().keys().chain(round.further.sites().keys()));
        Self(names.cloned().collect())
    }

    fn header(&self) -> String {
        self.0.iter().map(|name| format!(",train_{name},sites_{name}")).collect()
    }

    fn line(&self, round: &RoundSummary) -> String {
        let of = |all: &BTreeMap<String, f64>, name: &String| number(all.get(name).copied());
        let (train, sites) = (round.further.train(), round.further.sites());
        self.0.iter().map(|name| format!(",{},{}", of(train, name), of(sites, name))).collect()
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| format!("{value:.6}"))
}

/// Writes the file.
pub(super) fn write_metrics(
    csv: &mut impl Write,
    rounds: &[RoundSummary],
    clients: &ClientMetrics,
) -> io::Result<()> {
    let further = Further::of(rounds);
    writeln!(
        csv,
        "round,released,cohort,answered,train_loss,train_accuracy,sites_loss,sites_accuracy,sites_examples,\
         central_loss,central_accuracy,seconds,epsilon{}{}",
        further.header(),
        clients.header()
    )?;
    for round in rounds {
        let columns = [
            number(round.train.map(|metrics| metrics.loss)),
            number(round.train.and_then(|metrics| metrics.accuracy)),
            number(round.sites.map(|metrics| metrics.loss)),
            number(round.sites.and_then(|metrics| metrics.accuracy)),
            round.sites.map_or_else(String::new, |metrics| metrics.examples.to_string()),
            number(round.central.map(|metrics| metrics.loss)),
            number(round.central.and_then(|metrics| metrics.accuracy)),
        ];
        let RoundSummary { round: place, released, seconds, .. } = round;
        let shown = round.participation();
        let (cohort, answered) = shown
            .map_or_else(Default::default, |(asked, answered)| (asked.to_string(), answered.to_string()));
        let seconds = shown.map_or_else(String::new, |_| format!("{seconds:.6}"));
        let (epsilon, each) = (number(round.epsilon), clients.line(*place));
        let each = further.line(round) + &each;
        let columns = columns.join(",");
        let place = if *place == 0 { "statistics".to_owned() } else { place.to_string() };
        writeln!(csv, "{place},{released},{cohort},{answered},{columns},{seconds},{epsilon}{each}")?;
    }
    Ok(())
}
