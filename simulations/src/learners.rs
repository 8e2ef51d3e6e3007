//! Virtual clients whose work external learners do: processes that each serve many clients, and read those clients' records themselves.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use external::{ClientPlace, ExternalLearner, LearnerSettings, SettingsError};
use learning::{SourceError, expand};
use protocol::{ClientId, LearnError, Learner, Spec, Stop, Trains};
use serde::{Deserialize, Serialize};

use crate::population::{Population, PopulationError};
use crate::scenario::SimulationConfig;
use crate::workers::{Worker, Workforce};

/// The table `[simulation.learner]`: how the processes are started that train and evaluate.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearnerConfig {
    /// The program and its arguments; `${NAME}` in them is what the environment says.
    pub command: Vec<String>,
    /// Processes, each of which serves many clients; as many as threads by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<NonZeroUsize>,
    /// The folder in which they work; the plan's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
    /// What they find in their environment beside `PATH`, `HOME`, `LANG`, `PYTHONUNBUFFERED` and `CONSORTIA_LEARNER`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// From the start of a process to its first frame, at most: 1 to 86,400 s, 120 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_seconds: Option<u64>,
    /// Without any frame, before a process is ended: 2 to 86,400 s, 60 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_seconds: Option<u64>,
    /// One task, at most: 1 s to a year; none without a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_seconds: Option<u64>,
    /// For a process to answer after it was told to stop, and to exit after it was told to end: 1 to 3,600 s, 10 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_seconds: Option<u64>,
}

impl LearnerConfig {
    /// With its paths resolved: those of the plan begin at `base`.
    pub(crate) fn resolved(
        mut self,
        base: &Path,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, SourceError> {
        let folder = self.folder.unwrap_or_else(|| ".".into());
        self.folder = Some(base.join(expand(&folder.to_string_lossy(), lookup)?));
        let words = self.command.into_iter();
        self.command = words.map(|word| expand(&word, lookup)).collect::<Result<_, _>>()?;
        Ok(self)
    }

    /// What a process is started by.
    ///
    /// # Errors
    /// [`SettingsError`] names the key.
    pub(crate) fn settings(&self) -> Result<LearnerSettings, SettingsError> {
        let usual = LearnerSettings::default();
        LearnerSettings {
            command: self.command.clone(),
            environment: self.environment.clone(),
            start_seconds: self.start_seconds.unwrap_or(usual.start_seconds),
            silent_seconds: self.silent_seconds.unwrap_or(usual.silent_seconds),
            task_seconds: self.task_seconds,
            end_seconds: self.end_seconds.unwrap_or(usual.end_seconds),
            attach: false,
        }
        .checked()
    }
}

/// The clients of a simulation whose plan has an external model.
#[derive(Debug)]
pub struct ExternalClients {
    clients: Vec<ClientId>,
    settings: LearnerSettings,
    folder: PathBuf,
    ending: Stop,
    /// One that was started before the first round.
    ready: Mutex<Option<ExternalLearner>>,
}

/// Where libraries that compute in Python look for their number of threads. Several processes on all cores each would be in each other's way.
const THREADS: [&str; 3] = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"];

impl ExternalClients {
    /// Names the clients `client-0001` and so on. Where the plan says no number, a process gets its share of the machine's `cores` for
    /// threads of its own.
    ///
    /// # Errors
    /// [`PopulationError`] when the simulation names no learner, or too many clients.
    pub fn build(config: &SimulationConfig, processes: usize, cores: usize) -> Result<Self, PopulationError> {
        let learner = config.learner.as_ref().ok_or(PopulationError::NoLearner)?;
        let clients = Population::names(config)?.ok_or(PopulationError::NoLearner)?;
        let mut settings = learner.settings()?;
        let threads = (cores / processes.max(1)).max(1).to_string();
        for name in THREADS {
            settings.environment.entry(name.to_owned()).or_insert_with(|| threads.clone());
        }
        let folder = learner.folder.clone().unwrap_or_else(|| ".".into());
        Ok(Self { clients, settings, folder, ending: Stop::default(), ready: Mutex::default() })
    }

    /// With what says, from any thread, that nobody waits for them any longer.
    #[must_use]
    pub fn with_ending(mut self, ending: Stop) -> Self {
        self.ending = ending;
        self
    }

    /// Starts the first process, which compares its model's tensors with the plan's.
    ///
    /// # Errors
    /// When it cannot be started, its model is another, or the plan promises what no external learner can be held to.
    pub fn start(&self, spec: &Spec) -> Result<(), LearnError> {
        let mut learner = self.learner();
        learner.look(spec)?;
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = Some(learner);
        Ok(())
    }

    fn learner(&self) -> ExternalLearner {
        ExternalLearner::new(self.settings.clone(), self.folder.clone(), "simulation")
            .with_ending(self.ending.clone())
    }
}

impl Workforce for ExternalClients {
    fn clients(&self) -> &[ClientId] {
        &self.clients
    }

    fn trains(&self) -> Trains {
        Trains::External
    }

    fn worker(&self) -> Box<dyn Worker + '_> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner).take();
        let learner = ready.unwrap_or_else(|| self.learner());
        Box::new(Process { clients: &self.clients, learner })
    }

    fn central(&self) -> Option<Box<dyn Learner>> {
        None
    }
}

/// One process, started with its first task.
struct Process<'a> {
    clients: &'a [ClientId],
    learner: ExternalLearner,
}

impl Worker for Process<'_> {
    fn visit(&mut self, client: usize) -> &mut dyn Learner {
        let name = self.clients[client].as_str().to_owned();
        self.learner.serve(ClientPlace { name, index: client, clients: self.clients.len() });
        &mut self.learner
    }
}

impl Drop for Process<'_> {
    fn drop(&mut self) {
        self.learner.end();
    }
}
