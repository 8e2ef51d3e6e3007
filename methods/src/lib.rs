//! What a plan may name beside federated training, and rules that see every update: one file each, and one line that registers it.
//!
//! A method is a workflow at the server ([`server::Method`]) and what a site does for it ([`client::SiteMethod`]), under one name and
//! version. It names nothing of the wire, the server or the site but the types of these traits, and nothing there names it.

mod kmeans;
mod robust;

use client::{SiteMethod, SiteMethods};
use server::{Method, Methods, Rule, Step};

pub use kmeans::KMeans;
pub use robust::{
    Bucketing, CentredClipping, CoordinateMedian, GeometricMedian, Krum, MultiKrum, NearestNeighbourMixing,
    TrimmedMean,
};

/// Both halves of every method that a program knows. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    server: Methods,
    site: SiteMethods,
}

impl Registry {
    /// The methods of this crate.
    pub fn standard() -> Self {
        Self::default()
            // One line a method.
            .with(KMeans)
            .with_rule(CoordinateMedian)
            .with_rule(TrimmedMean)
            .with_rule(Krum)
            .with_rule(MultiKrum)
            .with_rule(GeometricMedian)
            .with_rule(CentredClipping)
            .with_step(NearestNeighbourMixing)
            .with_step(Bucketing)
    }

    /// The same, and this method; another of its name gives way.
    #[must_use]
    pub fn with(self, method: impl Method + SiteMethod + Clone + 'static) -> Self {
        Self { server: self.server.with(method.clone()), site: self.site.with(method) }
    }

    /// The same, and this rule that sees every update; another of its name gives way.
    #[must_use]
    pub fn with_rule(self, rule: impl Rule + 'static) -> Self {
        Self { server: self.server.with_rule(rule), site: self.site }
    }

    /// The same, and this step before a rule; another of its name gives way.
    #[must_use]
    pub fn with_step(self, step: impl Step + 'static) -> Self {
        Self { server: self.server.with_step(step), site: self.site }
    }

    /// What plans may name.
    pub fn server(&self) -> &Methods {
        &self.server
    }

    /// What sites know.
    pub fn site(&self) -> &SiteMethods {
        &self.site
    }
}
