//! What a plan may name beside federated training: one file a method, and one line that registers it.
//!
//! A method is a workflow at the server ([`server::Method`]) and what a site does for it ([`client::SiteMethod`]), under one name and
//! version. It names nothing of the wire, the server or the site but the types of these traits, and nothing there names it.

mod kmeans;

use client::{SiteMethod, SiteMethods};
use server::{Method, Methods};

pub use kmeans::KMeans;

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
    }

    /// The same, and this method; another of its name gives way.
    #[must_use]
    pub fn with(self, method: impl Method + SiteMethod + Clone + 'static) -> Self {
        Self { server: self.server.with(method.clone()), site: self.site.with(method) }
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
