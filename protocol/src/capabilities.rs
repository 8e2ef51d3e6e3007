//! What a site knows how to do, as it says in its hello: names and versions.
//!
//! A server asks a site only for what it knows. A name that a server does not know is kept and means nothing, so that a newer site can
//! name what comes later. What is malformed, said twice, or too long a list is refused: a peer that does so is no honest site.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Name, Trains};

/// The most capabilities of one site.
pub const CAPABILITIES_MAX: usize = 128;
/// The most bytes of a capability's name.
const NAME_MAX: usize = 80;
/// What stands before the name of a method. No built-in capability has a colon in its name, and no method's name can have one.
const METHOD: &str = "method:";

/// Something that a site knows, in one version of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Capability {
    /// Its name: 1 to 80 printable ASCII characters without spaces.
    pub name: String,
    /// Its version.
    pub version: u16,
}

impl Capability {
    /// To train, and to answer with an update.
    pub fn training() -> Self {
        Self::built_in("training")
    }

    /// To evaluate a model.
    pub fn evaluation() -> Self {
        Self::built_in("evaluation")
    }

    /// To sum the statistics that a plan standardises by.
    pub fn statistics() -> Self {
        Self::built_in("statistics")
    }

    /// To train and evaluate external models, by a program of the site's own.
    pub fn external() -> Self {
        Self::built_in("external")
    }

    /// To be put the same step again under the number of a later attempt.
    pub fn attempts() -> Self {
        Self::built_in("attempts")
    }

    /// To do the site's half of a method in this version.
    pub fn method(name: &Name, version: u16) -> Self {
        Self { name: format!("{METHOD}{}", name.as_str()), version }
    }

    fn built_in(name: &str) -> Self {
        Self { name: name.to_owned(), version: 1 }
    }

    fn is_sound(&self) -> bool {
        (1..=NAME_MAX).contains(&self.name.len()) && self.name.bytes().all(|byte| byte.is_ascii_graphic())
    }
}

/// As messages name it: "the method `k-means` in version 2".
impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.strip_prefix(METHOD) {
            Some(method) => write!(f, "the method `{method}` in version {}", self.version),
            None => write!(f, "`{}` in version {}", self.name, self.version),
        }
    }
}

/// All that a site knows, at most [`CAPABILITIES_MAX`], in the order in which it says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Capability>", into = "Vec<Capability>")]
pub struct Capabilities(Vec<Capability>);

/// A list that names no capabilities of an honest site.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CapabilitiesError {
    /// Too many.
    #[error("{0} capabilities are named; at most {CAPABILITIES_MAX} are allowed")]
    Many(usize),
    /// A name that is empty, too long, or has other characters.
    #[error("`{}` does not name a capability; use 1 to 80 printable ASCII characters without spaces", .0.escape_debug())]
    Name(String),
    /// The same name and version twice.
    #[error("{0} is named twice")]
    Twice(Capability),
}

impl Capabilities {
    /// What a site of a release without capabilities knows: training, evaluation, statistics, each at the first attempt.
    pub fn of_earlier_release() -> Self {
        Self(vec![Capability::training(), Capability::evaluation(), Capability::statistics()])
    }

    /// What every site of this release knows; methods come on top.
    pub fn of_this_release() -> Self {
        let mut known = Self::of_earlier_release();
        known.0.push(Capability::attempts());
        known
    }

    /// What a site of this release knows whose learner trains these models; methods come on top.
    pub fn of_learner(trains: Trains) -> Self {
        let mut known = match trains {
            Trains::BuiltIn | Trains::Both => Self::of_this_release(),
            Trains::External => Self(vec![Capability::attempts()]),
        };
        if trains != Trains::BuiltIn {
            known.0.push(Capability::external());
        }
        known
    }

    /// These, and one more.
    ///
    /// # Errors
    /// [`CapabilitiesError`] where it is among them already, or there is no room for it.
    pub fn with(self, capability: Capability) -> Result<Self, CapabilitiesError> {
        let mut known = self.0;
        known.push(capability);
        known.try_into()
    }

    /// Whether `capability` is among them.
    pub fn has(&self, capability: &Capability) -> bool {
        self.0.contains(capability)
    }

    /// The other versions in which it is known.
    pub fn other_versions(&self, capability: &Capability) -> impl Iterator<Item = u16> {
        let Capability { name, version } = capability;
        let other = move |known: &&Capability| known.name == *name && known.version != *version;
        self.0.iter().filter(other).map(|known| known.version)
    }
}

impl TryFrom<Vec<Capability>> for Capabilities {
    type Error = CapabilitiesError;

    fn try_from(list: Vec<Capability>) -> Result<Self, CapabilitiesError> {
        if list.len() > CAPABILITIES_MAX {
            return Err(CapabilitiesError::Many(list.len()));
        }
        let mut known = BTreeSet::new();
        for capability in &list {
            if !capability.is_sound() {
                return Err(CapabilitiesError::Name(capability.name.chars().take(NAME_MAX).collect()));
            }
            if !known.insert(capability) {
                return Err(CapabilitiesError::Twice(capability.clone()));
            }
        }
        Ok(Self(list))
    }
}

impl From<Capabilities> for Vec<Capability> {
    fn from(known: Capabilities) -> Self {
        known.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, version: u16) -> Capability {
        Capability { name: name.to_owned(), version }
    }

    #[test]
    fn what_is_not_known_is_kept_and_what_is_malformed_refused() {
        let odd = named("x25519/secure-sums", 7);
        let known = Capabilities::of_this_release().with(odd.clone()).unwrap();
        assert!(known.has(&odd) && known.has(&Capability::attempts()));
        assert!(!Capabilities::of_earlier_release().has(&Capability::attempts()));
        let twice = known.with(odd.clone());
        assert_eq!(twice, Err(CapabilitiesError::Twice(odd)));
        for name in ["", "a b", "\u{e4}", "a\n", &"x".repeat(81)] {
            let refused = Capabilities::try_from(vec![named(name, 1)]);
            assert_eq!(refused, Err(CapabilitiesError::Name(name.to_owned().chars().take(80).collect())));
        }
        let many = |count: usize| (0..count).map(|at| named(&format!("c{at}"), 1)).collect::<Vec<_>>();
        assert!(Capabilities::try_from(many(CAPABILITIES_MAX)).is_ok());
        let refused = Capabilities::try_from(many(CAPABILITIES_MAX + 1));
        assert_eq!(refused, Err(CapabilitiesError::Many(CAPABILITIES_MAX + 1)));
    }

    #[test]
    fn a_site_says_whose_models_it_trains() {
        let knows = |trains| {
            let known = Capabilities::of_learner(trains);
            assert!(known.has(&Capability::attempts()));
            [Capability::training(), Capability::external()].map(|one| known.has(&one))
        };
        assert_eq!(knows(Trains::BuiltIn), [true, false]);
        assert_eq!(knows(Trains::External), [false, true]);
        assert_eq!(knows(Trains::Both), [true, true]);
    }

    #[test]
    fn a_method_is_never_taken_for_something_that_is_built_in() {
        let method = Capability::method(&"training".parse().unwrap(), 1);
        assert!(!Capabilities::of_this_release().has(&method));
        let known = Capabilities::of_this_release().with(method.clone()).unwrap();
        assert!(known.has(&method) && !known.has(&Capability { version: 2, ..method.clone() }));
        assert_eq!(
            known.other_versions(&Capability { version: 2, ..method.clone() }).collect::<Vec<_>>(),
            [1]
        );
        assert_eq!(method.to_string(), "the method `training` in version 1");
    }
}
