//! The table `[aggregation]`: a rule that sees every update instead of their sum.

use std::sync::Arc;

use privacy::counted;
use protocol::{SpecError, Weighting};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{CohortPlan, FederationConfig};
use crate::methods::{Given, Methods};
use crate::workflow::{AggregationRule, Prepared};

/// Memory for updates where a plan says nothing.
const MEMORY_MIB_USUAL: usize = 512;

/// The table as typed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AggregationConfig {
    /// The rule.
    pub rule: Named,
    /// Corrupted clients among those of a round, at most: f.
    pub corrupted: usize,
    /// What is done to all updates before, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<Named>,
    /// MiB of a round's updates in memory; those beyond go into a file in the folder for temporary files.
    #[serde(default = "usual")]
    pub memory_mib: usize,
}

fn usual() -> usize {
    MEMORY_MIB_USUAL
}

/// A rule or step by name: typed as a word, or as a table of one, with its settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// The name.
    pub name: String,
    /// The settings.
    pub settings: toml::Table,
}

/// How a plan makes one vector of the updates of a round.
#[derive(Clone, Debug)]
pub struct AggregationPlan {
    /// The rule, with the steps before it.
    pub rule: Arc<dyn AggregationRule>,
    /// Corrupted clients among those of a round that it tolerates: f.
    pub corrupted: usize,
    /// Clients of the smallest round: n.
    pub clients: usize,
    /// Bytes of updates in memory, at most.
    pub memory_max: usize,
}

impl AggregationConfig {
    /// What it means for a plan whose cohorts are these. Where no quorum was typed, a round counts without as many as may be corrupted, as
    /// long as the rule has enough: whoever sends what is refused, or nothing, must not be able to stop the run.
    pub(super) fn parse(
        &self,
        cohort: &mut CohortPlan,
        quorum: Option<usize>,
        methods: &Methods,
    ) -> Result<AggregationPlan, SpecError> {
        let smallest = cohort.size_of(cohort.clients_min);
        let mut given = Given { corrupted: self.corrupted, updates: smallest };
        let mut steps = Vec::with_capacity(self.before.len());
        for step in &self.before {
            let step = methods.step(step, &given)?;
            given.updates = step.updates_left(given.updates);
            steps.push(step);
        }
        let rule = Prepared { steps, rule: methods.rule(&self.rule, &given)? };
        let needed = rule.updates_min();
        if smallest < needed {
            let message = format!(
                "{} needs {}, and a round may ask only {}; set `cohort.clients_min` (and `count` or `fraction`) so \
                 that at least {needed} are asked, or lower `corrupted`",
                rule.describe(),
                counted(needed, "update"),
                counted(smallest, "client")
            );
            return Err(SpecError::new("aggregation.corrupted", message));
        }
        if quorum.is_none() {
            cohort.quorum = needed.max(smallest.saturating_sub(self.corrupted));
        }
        let rule = if rule.steps.is_empty() { rule.rule } else { Arc::new(rule) };
        let Some(memory_max) = self.memory_mib.checked_mul(1 << 20) else {
            let message = format!("{} MiB are more than there is", self.memory_mib);
            return Err(SpecError::new("aggregation.memory_mib", message));
        };
        Ok(AggregationPlan { rule, corrupted: self.corrupted, clients: smallest, memory_max })
    }
}

/// Refuses what goes with a sum alone beside a rule that sees every update.
pub(super) fn check_beside(typed: &FederationConfig, methods: &Methods) -> Result<(), SpecError> {
    let Some(aggregation) = &typed.aggregation else { return Ok(()) };
    // What does not go with a rule means nothing as long as there is no such rule.
    methods.check_names(aggregation)?;
    let rule = &aggregation.rule.name;
    if typed.privacy.central.is_some() {
        let message = format!(
            "{rule} sees every update one by one, and the noise of [privacy.central] covers a sum alone; leave out [aggregation], or take \
             [privacy.examples], by which each site protects its own records"
        );
        return Err(SpecError::new("aggregation", message));
    }
    if typed.method.is_some() {
        let message = "a method has a way of its own to put answers together; leave [aggregation] out";
        return Err(SpecError::new("aggregation", message));
    }
    if typed.update.weights == Some(Weighting::Examples) {
        let message = format!(
            "{rule} counts every client alike: a site says itself how many examples it has, and a corrupted one would count as many; leave this \
             out, or give \"uniform\""
        );
        return Err(SpecError::new("update.weights", message));
    }
    Ok(())
}

impl Serialize for Named {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.settings.is_empty() {
            return serializer.serialize_str(&self.name);
        }
        toml::Table::from_iter([(self.name.clone(), self.settings.clone().into())]).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Typed)
    }
}

struct Typed;

impl<'de> Visitor<'de> for Typed {
    type Value = Named;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a word such as \"krum\", or a table such as { trimmed_mean = { beta = 0.3 } }")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<Named, E> {
        Ok(Named { name: word.to_owned(), settings: toml::Table::new() })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named, A::Error> {
        let Some((name, settings)) = map.next_entry::<String, toml::Table>()? else {
            return Err(A::Error::custom("the table is empty; name a rule or step in it"));
        };
        match map.next_key::<String>()? {
            Some(other) => Err(A::Error::custom(format!("one name is enough here; remove `{other}`"))),
            None => Ok(Named { name, settings }),
        }
    }
}
