//! The site's half of methods: what a site does when it is asked for something else than training, evaluation or statistics.
//!
//! A method is registered under its name and version by whoever builds the program; nothing in this crate names one. What it computes
//! leaves the site as named blocks and is protected by nothing but what the method itself does, so that a site's policy must allow it
//! by name (`tasks = ["method:NAME"]`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use protocol::{
    Capabilities, Capability, ClientId, Contribution, LearnError, Learner, MethodWork, Name, Round, Seed,
    Spec, Standardiser, StepId, StepLabel, Stop, Trains,
};
use serde::{Deserialize, Serialize};

/// What a site does for one method, in one version.
pub trait SiteMethod: Send + Sync {
    /// The method's name.
    fn name(&self) -> Name;

    /// The version that it speaks: a task of another one is declined.
    fn version(&self) -> u16;

    /// What the site's logs call a step of it, in a word or two; its number where there is no word.
    fn step_name(&self, step: StepId) -> Option<&'static str> {
        let _ = step;
        None
    }

    /// Does one piece of work. With the same work, records, state and seed it gives the same bits.
    ///
    /// # Errors
    /// [`LearnError`] declines the task; the server learns its reason alone, the site's own log the message.
    fn perform(&self, work: &MethodWork, site: &mut MethodSite<'_>) -> Result<Contribution, LearnError>;
}

/// What is at hand at the site while a method works.
#[expect(missing_debug_implementations, reason = "it holds the site's records and state")]
pub struct MethodSite<'a> {
    /// The site.
    pub id: &'a ClientId,
    /// The run's plan, as sites know it.
    pub spec: &'a Spec,
    /// The round.
    pub round: Round,
    /// The step of the method.
    pub step: StepId,
    /// Federation-wide standardisation, where the plan has it.
    pub standardiser: Option<&'a Standardiser>,
    /// The site's records ([`Learner::visit_records`]), prepared for the plan.
    pub learner: &'a mut dyn Learner,
    /// Randomness of this site in this round: from the operating system, or, in a run with a seed, from that seed.
    pub seed: Seed,
    /// Set once nobody wants the answer any more.
    pub stop: &'a Stop,
    /// What the method keeps at this site from one task of the run to the next. It never travels.
    pub state: &'a mut Option<MethodState>,
}

/// What a method keeps at a site: bytes that it alone understands, in a version of its own.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodState {
    /// The version of the bytes; a method that reads another one than its own begins anew or declines.
    pub version: u16,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Only sizes: what it holds may follow from every record.
impl fmt::Debug for MethodState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MethodState(version {}, {} bytes)", self.version, self.bytes.len())
    }
}

/// The methods that a site knows. Cheap to clone.
#[derive(Clone, Default)]
pub struct SiteMethods(BTreeMap<(Name, u16), Arc<dyn SiteMethod>>);

impl SiteMethods {
    /// The same, and this method; another of its name and version gives way.
    #[must_use]
    pub fn with(mut self, method: impl SiteMethod + 'static) -> Self {
        self.0.insert((method.name(), method.version()), Arc::new(method));
        self
    }

    /// The method that this work asks for.
    pub fn get(&self, work: &MethodWork) -> Option<&Arc<dyn SiteMethod>> {
        self.0.get(&(work.method.clone(), work.version))
    }

    /// What logs call the step of a method in some version, where this site knows it.
    pub fn label_of(&self, method: &Name, version: u16, step: StepId) -> StepLabel {
        let known = self.0.get(&(method.clone(), version));
        let own = known.and_then(|known| Some((known.name().as_literal()?, known.step_name(step)?)));
        own.map_or_else(StepLabel::default, |(method, own)| StepLabel::new(method, own))
    }

    /// What a site knows that knows them and whose learner trains these models: this release, and each of them by name and version, as many as
    /// a hello may name. A method computes on records, which only the learner of this program's models shows.
    pub fn capabilities(&self, trains: Trains) -> Capabilities {
        let known = Capabilities::of_learner(trains);
        if trains == Trains::External {
            return known;
        }
        self.0.keys().fold(known, |known, (name, version)| {
            known.clone().with(Capability::method(name, *version)).unwrap_or(known)
        })
    }
}

impl fmt::Debug for SiteMethods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
