//! A simulation file: a federation file and the table `[simulation]` that only the simulator reads.

use std::num::NonZeroUsize;
use std::path::Path;

use learning::{Partition, SourceError, SourceSpec};
use protocol::SpecError;
use serde::{Deserialize, Serialize};
use server::{ConfigError, Methods, Plan, read_toml};

use crate::adversaries::AdversariesConfig;
use crate::availability::AvailabilityConfig;
use crate::learners::LearnerConfig;
use crate::synthetic::SyntheticSource;

/// The table `[simulation]` as typed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulationConfig {
    /// The seed from which everything random follows.
    #[serde(default)]
    pub seed: u64,
    /// Virtual clients; must be absent for a natural partition, where the data says who there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<usize>,
    /// How many virtual clients are made of each client of the partition, with the same records: a way to the large cohorts
    /// that client-level privacy needs. What comes of it is said with this number.
    #[serde(default = "single", skip_serializing_if = "is_single")]
    pub copies: NonZeroUsize,
    /// The records; none where an external learner reads its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetConfig>,
    /// What trains, where the plan's model is external.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learner: Option<LearnerConfig>,
    /// How records become clients.
    #[serde(default = "iid")]
    pub partition: Partition,
    /// Latency, loss and churn. Files of the version before call it `weather`.
    #[serde(default, alias = "weather")]
    pub availability: AvailabilityConfig,
    /// Clients that attack; none where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adversaries: Option<AdversariesConfig>,
    /// Whether the server evaluates on the whole test set; by default only where clients have no test records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub central_test: Option<bool>,
}

fn single() -> NonZeroUsize {
    NonZeroUsize::MIN
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_single(copies: &NonZeroUsize) -> bool {
    copies.get() == 1
}

fn iid() -> Partition {
    Partition::Iid
}

impl SimulationConfig {
    /// That records and learner are those of the plan's model: an external one has a learner, which reads its own records.
    fn check_learner(&self, plan: &Plan) -> Result<(), SpecError> {
        let fault = |key: &str, message: &str| Err(SpecError::new(format!("simulation{key}"), message));
        let is_external = plan.spec.external().is_some();
        if !is_external {
            return match (&self.learner, &self.dataset) {
                (Some(_), _) => {
                    fault(".learner", "only a plan whose model is `external` has a learner; leave it out")
                }
                (None, None) => fault(
                    "",
                    "missing field `dataset`: say whose records are trained on, such as dataset = { synthetic = { rows = 1000 } }",
                ),
                (None, Some(_)) => Ok(()),
            };
        }
        let Some(learner) = &self.learner else {
            return fault(
                "",
                "the plan's model is external: add a table [simulation.learner] that says what trains it, such as command = [\"python\", \
                 \"train.py\"]",
            );
        };
        if self.dataset.is_some() {
            return fault(".dataset", "an external learner reads its own records; leave this out");
        }
        if self.partition != iid() {
            return fault(
                ".partition",
                "an external learner knows whose records a client has; leave this out",
            );
        }
        if self.copies.get() > 1 {
            return fault(
                ".copies",
                "clients of an external learner are made by `clients` alone; leave this out",
            );
        }
        if self.central_test == Some(true) {
            return fault(".central_test", "the server has no learner of an external model; leave this out");
        }
        learner
            .settings()
            .map(drop)
            .map_err(|error| SpecError::new(format!("simulation.learner.{}", error.setting), error.message))
    }
}

/// Where a simulation's records come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatasetConfig {
    /// Files.
    Files(SourceSpec),
    /// Made up: classes as Gaussian clouds.
    Synthetic(SyntheticSource),
}

/// A simulation that makes sense: a plan, a population to be built, and who is there when.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What is trained, and how.
    pub plan: Plan,
    /// The rest of the file.
    pub simulation: SimulationConfig,
}

/// Why a simulation file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScenarioError {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A path cannot be resolved.
    #[error("simulation.dataset: {0}")]
    Path(#[from] SourceError),
    /// A word of a learner's command cannot be resolved.
    #[error("simulation.learner: {0}")]
    Learner(#[source] SourceError),
}

/// Only the table that is ours; the rest of the file is the plan's.
#[derive(Deserialize)]
struct SimulationFile {
    simulation: SimulationConfig,
}

impl Scenario {
    /// Reads the text of a simulation file. Relative paths start at `base`; `${NAME}` in a path is what `lookup` says.
    ///
    /// # Errors
    /// [`ScenarioError`] with line and column, or the path at fault.
    pub fn parse(
        text: &str,
        base: &Path,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ScenarioError> {
        Self::parse_with(text, base, lookup, &Methods::default())
    }

    /// [`Scenario::parse`] of a file whose plan may name these methods.
    ///
    /// # Errors
    /// As there.
    pub fn parse_with(
        text: &str,
        base: &Path,
        lookup: &dyn Fn(&str) -> Option<String>,
        methods: &Methods,
    ) -> Result<Self, ScenarioError> {
        let plan = methods.parse(text)?;
        let SimulationFile { mut simulation } = read_toml(text)?;
        simulation.check_learner(&plan).map_err(|error| ConfigError::of(text, &error))?;
        let natural = matches!(simulation.partition, Partition::Natural(_));
        let fault = |key: &str, message: &str| {
            ScenarioError::Config(ConfigError::of(text, &SpecError::new(key, message)))
        };
        match (natural, simulation.clients) {
            (true, Some(_)) => {
                return Err(fault(
                    "simulation.clients",
                    "a natural partition finds its clients in the data; leave it out",
                ));
            }
            (false, None) => {
                return Err(fault("simulation.partition", "give `clients`, how many clients to make"));
            }
            (false, Some(0)) => {
                return Err(fault("simulation.clients", "0 clients train nothing; give at least 1"));
            }
            _ => {}
        }
        simulation.availability.check().map_err(|mut error| {
            if Self::deprecated(text).next().is_some() {
                error.key = error.key.replace("simulation.availability", "simulation.weather");
            }
            ConfigError::of(text, &error)
        })?;
        let adversaries = simulation.adversaries.as_ref();
        adversaries
            .map_or(Ok(()), |table| table.check(&plan))
            .map_err(|error| ConfigError::of(text, &error))?;
        simulation.dataset = match simulation.dataset {
            Some(DatasetConfig::Files(source)) => Some(DatasetConfig::Files(source.resolved(base, lookup)?)),
            other @ (Some(DatasetConfig::Synthetic(_)) | None) => other,
        };
        let learner = simulation.learner.map(|learner| learner.resolved(base, lookup)).transpose();
        simulation.learner = learner.map_err(ScenarioError::Learner)?;
        simulation.partition = simulation.partition.resolved(base, lookup)?;
        Ok(Self { plan, simulation })
    }

    /// Settings under names that are read for one more minor version, each with the name that it has now.
    pub fn deprecated(text: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
        let typed =
            read_toml(text).ok().and_then(|file: toml::Table| file.get("simulation")?.as_table().cloned());
        let is_typed =
            move |(old, _): &(&str, &str)| typed.as_ref().is_some_and(|table| table.contains_key(*old));
        [("weather", "availability")].into_iter().filter(is_typed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "name = \"t\"\nrounds = 1\nmodel = \"logistic\"\n\
        [data.tensor]\nshape = [4]\ntarget = { classes = 2 }\n\
        [training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.1 } }\n\
        [simulation]\nclients = 3\ndataset = { synthetic = { rows = 30 } }\n";

    fn parse(text: &str) -> Result<Scenario, ScenarioError> {
        Scenario::parse(text, Path::new("."), &|_| None)
    }

    #[test]
    fn a_simulation_file_is_a_plan_and_a_table() {
        let scenario = parse(FILE).unwrap();
        assert_eq!((scenario.simulation.clients, scenario.plan.rounds), (Some(3), 1));
        assert_eq!(scenario.simulation.partition, Partition::Iid);
    }

    #[test]
    fn contradictions_name_their_line() {
        let line = |text: &str| match parse(text) {
            Err(ScenarioError::Config(error)) => error.line,
            other => panic!("{other:?}"),
        };
        assert_eq!(line(&FILE.replace("clients = 3\n", "")), 10);
        assert_eq!(line(&FILE.replace("clients = 3", "clients = 0")), 11);
        assert_eq!(line(&format!("{FILE}partition = {{ natural = {{ column = \"site\" }} }}\n")), 11);
        for name in ["weather", "availability"] {
            assert_eq!(line(&format!("{FILE}{name} = {{ dropout = 1.5 }}\n")), 13);
        }
        assert_eq!(line(&FILE.replace("clients = 3", "client = 3")), 11);
        let attacked = |table: &str| line(&format!("{FILE}[simulation.adversaries]\n{table}\n"));
        assert_eq!(attacked("attack = \"zero\""), 13);
        assert_eq!(attacked("share = 1.0\nattack = \"zero\""), 14);
        assert_eq!(attacked("attack = \"zero\"\nshare = 0.1\ncount = 1"), 16);
        assert_eq!(attacked("count = 1\nattack = { backdoor = { target = 2 } }"), 15);
        assert_eq!(attacked("count = 1\nattack = { backdoor = { side = 5 } }"), 15);
        assert_eq!(attacked("count = 1\nattack = \"nonsense\""), 15);
        assert_eq!(line(FILE.split("[simulation]").next().unwrap()), 1);
    }

    #[test]
    fn a_table_of_the_version_before_is_read_and_told() {
        let typed = |name: &str| format!("{FILE}{name} = {{ dropout = 0.5 }}\n");
        for name in ["weather", "availability"] {
            assert_eq!(parse(&typed(name)).unwrap().simulation.availability.dropout, 0.5);
        }
        assert_eq!(
            Scenario::deprecated(&typed("weather")).collect::<Vec<_>>(),
            [("weather", "availability")]
        );
        assert_eq!(Scenario::deprecated(&typed("availability")).count(), 0);
        assert!(parse(&format!("{}weather = {{}}\n", typed("availability"))).is_err(), "both names");
    }

    #[test]
    fn paths_start_at_the_file_s_folder() {
        let text =
            FILE.replace("{ synthetic = { rows = 30 } }", "{ files = { csv = { train = \"a.csv\" } } }");
        let scenario = Scenario::parse(&text, Path::new("/base"), &|_| None).unwrap();
        let Some(DatasetConfig::Files(SourceSpec::Csv(csv))) = scenario.simulation.dataset else {
            panic!("csv was typed")
        };
        assert_eq!(csv.train, Path::new("/base/a.csv"));
    }
}
