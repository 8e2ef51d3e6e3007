//! Who holds what: virtual clients as rows of one data set in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::SiteMethods;
use external::SettingsError;
use learning::device::Device;
use learning::{
    Dataset, Models, Partition, PartitionError, SiteData, Trainer, View, load_measured,
    load_measured_with_ids, partition,
};
use protocol::{
    ClientId, DataSpec, EvaluationRecords, IdError, LearnError, Learner, Metrics, Parameters, Purpose, Round,
    RunId, Seed, Spec, Standardiser, StepId, Target, Task, TaskId, Work,
};

use crate::adversaries::{
    Adversaries, AdversariesConfig, AdversariesError, Attack, Pattern, poison, relabelled,
};
use crate::scenario::{DatasetConfig, SimulationConfig};
use crate::simulator::unprotected;
use crate::workers::{Worker, Workforce, measure};

/// The clients of a simulation, their records, and the models they train.
#[derive(Debug)]
pub struct Population {
    clients: Vec<ClientId>,
    sites: Vec<SiteData>,
    central: Option<SiteData>,
    /// The server's own records in parts, where they need not be looked at together.
    parts: Vec<SiteData>,
    models: Models,
    methods: SiteMethods,
    device: Device,
}

/// How often a model takes test records of other classes for the target of a backdoor. Only a rate with the pattern that is well above the one
/// without shows a backdoor: a model that answers with one class for everything has both rates at 0 or at 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BackdoorRates {
    /// Of records that carry the pattern, from 0 to 1: the attack's success.
    pub with_pattern: f64,
    /// Of the same records as they are.
    pub without_pattern: f64,
}

/// Test records in one part of the server's own evaluation: few enough to keep all threads busy, and the same whatever their
/// number.
const PART_ROWS: usize = 1000;

/// Why a population cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PopulationError {
    /// The records cannot be read or do not fit the plan.
    #[error("simulation.dataset: {0}")]
    Records(#[from] LearnError),
    /// The records cannot be divided as asked.
    #[error("simulation.partition: {0}")]
    Partition(#[from] PartitionError),
    /// An id in the data is no client's name.
    #[error("simulation.partition: the id `{id}` in the data, as a name: {fault}")]
    Name {
        /// As it stands there.
        id: String,
        /// What is wrong with what becomes of it.
        fault: IdError,
    },
    /// Two ids in the data would be one client's.
    #[error(
        "simulation.partition: `{one}` and `{other}` in the data would both be the client `{name}`, since names have letters a to z, digits, `.`, `_` \
         and `-` alone; write them alike if they mean the same, or so that they differ by such letters"
    )]
    Alike {
        /// The name.
        name: ClientId,
        /// One of them, as it stands there.
        one: String,
        /// The other.
        other: String,
    },
    /// Nobody can be corrupted as asked.
    #[error(transparent)]
    Adversaries(#[from] AdversariesError),
    /// Nothing could be measured.
    #[error(
        "simulation.dataset: the plan evaluates on validation records and there are none; set `validation_fraction` or `validation` \
         beside the file's name, or let `split_column` say which they are"
    )]
    NoValidation,
    /// Made-up records have no columns.
    #[error("simulation.dataset: synthetic records have no columns; give `data.tensor`, or `dataset.files`")]
    SyntheticTable,
    /// Nothing to train on.
    #[error("simulation.dataset: say whose records are trained on")]
    NoRecords,
    /// A plan with an external model, and nobody to train it.
    #[error(
        "simulation.learner: the plan's model is external; say how a learner is started, and how many `clients` there are"
    )]
    NoLearner,
    /// The learner cannot be started so.
    #[error("simulation.{0}")]
    Learner(#[from] SettingsError),
    /// Nobody but an external learner reads the records.
    #[error(
        "simulation.dataset: the plan's records are read by an external learner; leave this out and give `[simulation.learner]`"
    )]
    OwnRecords,
}

impl Population {
    /// Reads the records, divides them, and names the clients: by their ids in the data, or `client-0001` and so on.
    ///
    /// # Errors
    /// [`PopulationError`] says what does not fit.
    pub fn build(config: &SimulationConfig, spec: &Spec, device: Device) -> Result<Self, PopulationError> {
        let seed = Seed::from_number(config.seed).derive(Purpose::Partition, Round(0), None);
        let dataset = config.dataset.as_ref().ok_or(PopulationError::NoRecords)?;
        if let (DatasetConfig::Files(source), Partition::Natural(ids)) = (dataset, &config.partition) {
            let found = load_measured_with_ids(source, &spec.data, spec.evaluation_records, ids)?;
            let (train, test) = (Arc::clone(&found.train), measured(found.test.clone(), spec)?);
            let (mut clients, mut sites) = (Vec::new(), Vec::new());
            let mut ids = BTreeMap::new();
            for natural in found.clients() {
                let name = name_of(&natural.id)?;
                if let Some(other) = ids.insert(name.clone(), natural.id.clone()) {
                    return Err(PopulationError::Alike { name, one: other, other: natural.id });
                }
                clients.push(name);
                sites.push(natural.data);
            }
            let has_tests = sites.iter().any(|site: &SiteData| site.has_tests());
            let central = central_data(config, spec, &train, test, has_tests);
            let population = Self::new(clients, sites, central, device).copied(config.copies.get())?;
            return population.poisoned(config.adversaries.as_ref(), config.seed, spec);
        }
        let (train, test) = match (dataset, &spec.data) {
            (DatasetConfig::Files(source), data) => {
                let data = load_measured(source, data, spec.evaluation_records)?;
                (data.train.dataset, measured(data.test.map(|test| test.dataset), spec)?)
            }
            (DatasetConfig::Synthetic(source), DataSpec::Tensor(tensor)) => {
                let (train, test) = source.make(&tensor.shape, tensor.target.target(), seed);
                (Arc::new(train), Some(Arc::new(test)))
            }
            (DatasetConfig::Synthetic(_), DataSpec::Table(_)) => return Err(PopulationError::SyntheticTable),
            (DatasetConfig::Synthetic(_), DataSpec::Own) => return Err(PopulationError::OwnRecords),
        };
        let parts = partition(&train.labels, &config.partition, config.clients.unwrap_or(0), seed)?;
        let clients = numbered(parts.len())?;
        let site = |rows: Vec<u32>| {
            let train = View { dataset: Arc::clone(&train), rows: rows.into() };
            SiteData { train, test: None }
        };
        let central = central_data(config, spec, &train, test, false);
        let sites = parts.into_iter().map(site).collect();
        Self::new(clients, sites, central, device).copied(config.copies.get())?.poisoned(
            config.adversaries.as_ref(),
            config.seed,
            spec,
        )
    }

    /// The names of the clients, without a look at any record; `None` where the data names them.
    ///
    /// # Errors
    /// [`PopulationError::Name`], where there are so many copies that a name gets too long.
    pub fn names(config: &SimulationConfig) -> Result<Option<Vec<ClientId>>, PopulationError> {
        let Some(count) = config.clients else { return Ok(None) };
        let mut names = numbered(count)?;
        for copy in 2..=config.copies.get() {
            for index in 0..count {
                names.push(copy_of(&names[index], copy)?);
            }
        }
        Ok(Some(names))
    }

    /// The same population with the training records of corrupted clients as their attack wants them; `seed` is the simulation's.
    ///
    /// # Errors
    /// [`PopulationError::Adversaries`] when nobody can be corrupted as asked.
    pub fn poisoned(
        mut self,
        adversaries: Option<&AdversariesConfig>,
        seed: u64,
        spec: &Spec,
    ) -> Result<Self, PopulationError> {
        let Some(adversaries) = adversaries else { return Ok(self) };
        let seed = Seed::from_number(seed);
        let adversaries = Adversaries::draw(adversaries, seed, self.clients.iter())?;
        let Target::Classes(classes) = spec.target() else { return Ok(self) };
        for (client, site) in self.clients.iter().zip(&mut self.sites) {
            if adversaries.corrupted().contains(client) && adversaries.attack().changes_records() {
                let chance = seed.derive(Purpose::Adversary, Round(0), Some(client));
                site.train = poison(&site.train, adversaries.attack(), classes, &mut chance.generator());
            }
        }
        Ok(self)
    }

    /// How often a model takes test records of other classes for the target of a backdoor, with its pattern and without; `None` for another
    /// attack, without test records, and for a model of which parts stay at the sites.
    pub fn backdoor_rates(
        &self,
        attack: &Attack,
        model: &Arc<Parameters>,
        standardiser: Option<&Arc<Standardiser>>,
        spec: &Arc<Spec>,
    ) -> Option<BackdoorRates> {
        let rate = |pattern| self.rate(attack, pattern, model, standardiser, spec);
        let (with_pattern, without_pattern) = (rate(Pattern::Drawn)?, rate(Pattern::Absent)?);
        Some(BackdoorRates { with_pattern, without_pattern })
    }

    fn rate(
        &self,
        attack: &Attack,
        pattern: Pattern,
        model: &Arc<Parameters>,
        standardiser: Option<&Arc<Standardiser>>,
        spec: &Arc<Spec>,
    ) -> Option<f64> {
        let own = |site: &SiteData| site.test.as_ref().and_then(|test| relabelled(test, attack, pattern));
        let central = self.central.as_ref().and_then(own);
        let tests = central.map_or_else(|| self.sites.iter().filter_map(own).collect(), |test| vec![test]);
        let train = self.sites.first()?.train.clone();
        let id = TaskId::new(RunId(0), Round(0), StepId::EVALUATE);
        let (standardiser, work) = (standardiser.cloned(), Work::Evaluate { model: Arc::clone(model) });
        let task = Task { id, spec: unprotected(spec), seed: None, standardiser, work };
        let mut learner = self.trainer();
        let measured = tests.into_iter().map(|test| {
            let test = Some(View::whole(Arc::new(test)));
            learner.set_site(SiteData { train: train.clone(), test });
            measure(&mut learner, &task)
        });
        let measured: Vec<Metrics> = measured.collect::<Option<_>>()?;
        Metrics::pooled(measured.iter(), u64::MAX)?.accuracy
    }

    /// The same population `copies` times: from the second copy on, names end in its number.
    fn copied(mut self, copies: usize) -> Result<Self, PopulationError> {
        let originals = self.clients.len();
        for copy in 2..=copies {
            for index in 0..originals {
                self.clients.push(copy_of(&self.clients[index], copy)?);
                self.sites.push(self.sites[index].clone());
            }
        }
        Ok(self)
    }

    /// A population of given sites, for simulations in code.
    pub fn of(sites: Vec<(ClientId, SiteData)>, central: Option<SiteData>, device: Device) -> Self {
        let (clients, sites) = sites.into_iter().unzip();
        Self::new(clients, sites, central, device)
    }

    fn new(
        clients: Vec<ClientId>,
        mut sites: Vec<SiteData>,
        mut central: Option<SiteData>,
        device: Device,
    ) -> Self {
        lay_side_by_side(&mut sites, central.as_mut());
        let parts = central.as_ref().map_or_else(Vec::new, in_parts);
        Self {
            clients,
            sites,
            central,
            parts,
            models: Models::new(),
            methods: SiteMethods::default(),
            device,
        }
    }

    /// The same population training models of your own.
    #[must_use]
    pub fn with_models(mut self, models: Models) -> Self {
        self.models = models;
        self
    }

    /// The same population with clients that know these methods.
    #[must_use]
    pub fn with_methods(mut self, methods: SiteMethods) -> Self {
        self.methods = methods;
        self
    }

    /// The models it can train.
    pub fn models(&self) -> &Models {
        &self.models
    }

    /// Whether any client has test records of its own.
    pub fn has_tests(&self) -> bool {
        self.sites.iter().any(SiteData::has_tests)
    }

    /// Whether there are test records anywhere: with a client, or with the server.
    pub fn is_tested(&self) -> bool {
        self.has_tests() || self.central.as_ref().is_some_and(SiteData::has_tests)
    }

    /// Each client's records.
    pub fn sites(&self) -> impl Iterator<Item = (&ClientId, &SiteData)> {
        self.clients.iter().zip(&self.sites)
    }

    fn trainer(&self) -> Trainer {
        Trainer::without_data(self.device.clone()).with_counted_records().with_models(self.models.clone())
    }
}

/// The records to measure on, which a plan that asks for others than test records must have.
fn measured(found: Option<Arc<Dataset>>, spec: &Spec) -> Result<Option<Arc<Dataset>>, PopulationError> {
    match (&found, spec.evaluation_records) {
        (None, EvaluationRecords::Validation) => Err(PopulationError::NoValidation),
        (_, EvaluationRecords::Validation | EvaluationRecords::Test) => Ok(found),
    }
}

/// The client of an id in the data, which may have letters that names may not.
fn name_of(id: &str) -> Result<ClientId, PopulationError> {
    let plain =
        |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c.to_ascii_lowercase() } else { '_' };
    called(&id.trim().chars().map(plain).collect::<String>(), id)
}

/// Clients that the data does not name: `client-01` and so on.
fn numbered(count: usize) -> Result<Vec<ClientId>, PopulationError> {
    let digits = count.to_string().len();
    let name = |number: usize| {
        let name = format!("client-{number:0digits$}");
        called(&name, &name)
    };
    (1..=count).map(name).collect()
}

/// The name of a client's copy: from the second on, it ends in the copy's number.
fn copy_of(client: &ClientId, copy: usize) -> Result<ClientId, PopulationError> {
    let name = format!("{client}.{copy}");
    called(&name, &name)
}

fn called(name: &str, id: &str) -> Result<ClientId, PopulationError> {
    ClientId::new(name).map_err(|fault| PopulationError::Name { id: id.to_owned(), fault })
}

fn central_data(
    config: &SimulationConfig,
    spec: &Spec,
    train: &Arc<Dataset>,
    test: Option<Arc<Dataset>>,
    clients_have_tests: bool,
) -> Option<SiteData> {
    let all = |dataset: Arc<Dataset>| View { rows: (0..dataset.len() as u32).collect(), dataset };
    let wanted = config.central_test.unwrap_or(!clients_have_tests);
    // Tables may be standardised by the server's own training rows; arrays never are, and copying them would be waste.
    let train = match &spec.data {
        DataSpec::Table(_) => all(Arc::clone(train)),
        DataSpec::Tensor(_) | DataSpec::Own => View { dataset: Arc::clone(train), rows: Arc::new([]) },
    };
    test.filter(|test| wanted && !test.is_empty()).map(|test| SiteData { train, test: Some(all(test)) })
}

/// Moves every site's training records next to each other, where all sites share one data set and no record belongs to two:
/// a client's next batch is then close to its last one.
fn lay_side_by_side(sites: &mut [SiteData], central: Option<&mut SiteData>) {
    let Some(shared) = sites.first().map(|site| Arc::clone(&site.train.dataset)) else { return };
    let needs_all = central.as_ref().is_some_and(|central| !central.train.is_empty());
    let is_shared = sites.iter().all(|site| Arc::ptr_eq(&site.train.dataset, &shared));
    let rows: Vec<u32> = sites.iter().flat_map(|site| site.train.rows.iter().copied()).collect();
    if needs_all || !is_shared || rows.len() > shared.len() {
        return;
    }
    let moved = Arc::new(shared.select(&rows));
    let mut next = 0;
    for SiteData { train, .. } in sites {
        let end = next + train.len() as u32;
        *train = View { dataset: Arc::clone(&moved), rows: (next..end).collect() };
        next = end;
    }
    if let Some(central) = central {
        central.train.dataset = moved;
    }
}

/// The test records in parts, unless training records come with them: those would have to be looked at for each part.
fn in_parts(central: &SiteData) -> Vec<SiteData> {
    let Some(test) = central.test.as_ref().filter(|_| central.train.is_empty()) else { return Vec::new() };
    let part = |rows: &[u32]| {
        let test = View { dataset: Arc::clone(&test.dataset), rows: rows.into() };
        SiteData { train: central.train.clone(), test: Some(test) }
    };
    test.rows.chunks(PART_ROWS).map(part).collect()
}

impl Workforce for Population {
    fn clients(&self) -> &[ClientId] {
        &self.clients
    }

    fn methods(&self) -> SiteMethods {
        self.methods.clone()
    }

    fn central_parts(&self) -> usize {
        self.parts.len()
    }

    fn size(&self, client: usize) -> usize {
        self.sites[client].train.len()
    }

    fn worker(&self) -> Box<dyn Worker + '_> {
        Box::new(Visitor { population: self, trainer: self.trainer() })
    }

    fn central(&self) -> Option<Box<dyn Learner>> {
        let data = self.central.clone()?;
        let mut trainer = self.trainer();
        trainer.set_site(data);
        Some(Box::new(trainer))
    }
}

struct Visitor<'a> {
    population: &'a Population,
    trainer: Trainer,
}

impl Worker for Visitor<'_> {
    fn visit(&mut self, client: usize) -> &mut dyn Learner {
        self.trainer.set_site(self.population.sites[client].clone());
        &mut self.trainer
    }

    fn visit_central(&mut self, part: usize) -> Option<&mut dyn Learner> {
        self.trainer.set_site(self.population.parts.get(part)?.clone());
        Some(&mut self.trainer)
    }
}

/// Evaluates and trains outside a federation, as a yardstick: one site's records alone, or all pooled.
impl Population {
    /// All training records as one site, and all test records.
    pub fn pooled(&self) -> Option<SiteData> {
        let first = self.sites.first()?;
        let rows = |view: fn(&SiteData) -> Option<&View>| -> Arc<[u32]> {
            self.sites.iter().filter_map(view).flat_map(|view| view.rows.iter().copied()).collect()
        };
        let train = View { dataset: Arc::clone(&first.train.dataset), rows: rows(|site| Some(&site.train)) };
        let test = self
            .sites
            .iter()
            .find_map(|site| site.test.as_ref())
            .map(|test| View { dataset: Arc::clone(&test.dataset), rows: rows(|site| site.test.as_ref()) });
        Some(SiteData { train, test })
    }

    /// A population of one client that holds `data`.
    ///
    /// # Errors
    /// [`PopulationError::Name`] when `name` is no client's name.
    pub fn alone(&self, name: &str, data: SiteData) -> Result<Self, PopulationError> {
        let mut alone = Self::of(vec![(called(name, name)?, data)], None, self.device.clone());
        alone.models = self.models.clone();
        alone.methods = self.methods.clone();
        Ok(alone)
    }
}

#[cfg(test)]
mod tests {
    use learning::Labels;

    use super::*;

    fn sites(rows: [&[u32]; 2]) -> Vec<(ClientId, SiteData)> {
        let features: Vec<f32> = (0u8..8).map(f32::from).collect();
        let labels = Labels::Classes(vec![0, 1, 2, 3]);
        let dataset = Arc::new(Dataset { shape: vec![2], features: features.into(), labels });
        let site = |(name, rows): (&str, &[u32])| {
            let train = View { dataset: Arc::clone(&dataset), rows: rows.into() };
            (ClientId::new(name).unwrap(), SiteData { train, test: None })
        };
        ["one", "other"].into_iter().zip(rows).map(site).collect()
    }

    #[test]
    fn records_are_laid_side_by_side_and_stay_whose_they_were() {
        let held = sites([&[3, 1], &[0]]);
        let before: Vec<Dataset> = held.iter().map(|(_, site)| site.train.copied()).collect();
        let population = Population::of(held, None, Device::Cpu);
        let after: Vec<&View> = population.sites().map(|(_, site)| &site.train).collect();
        assert_eq!(after.iter().map(|view| view.copied()).collect::<Vec<_>>(), before);
        assert_eq!((&*after[0].rows, &*after[1].rows), (&[0, 1][..], &[2][..]));
        assert!(Arc::ptr_eq(&after[0].dataset, &after[1].dataset));
        assert_eq!(population.pooled().unwrap().train.copied().labels, Labels::Classes(vec![3, 1, 0]));
    }

    #[test]
    fn records_that_several_hold_are_not_copied() {
        let held = sites([&[0, 1, 2], &[2, 3]]);
        let population = Population::of(held.clone(), None, Device::Cpu);
        for ((_, site), (_, was)) in population.sites().zip(&held) {
            assert!(Arc::ptr_eq(&site.train.dataset, &was.train.dataset));
            assert_eq!(site.train.rows, was.train.rows);
        }
    }
}
