//! Whether a site's policy is the one that is in force: it is read at the start of `site run`, and not again.

use std::path::{Path, PathBuf};

use privacy::chain::Digest;

use super::super::folder::SiteFile;
use super::super::hints::Given;

/// The policy that a running site keeps to: the file as it was at the start. What is written there later is not in force, so that one policy
/// judges all tasks between two `started` records of the audit log.
pub(super) struct PolicyInForce {
    path: PathBuf,
    /// The site's file, for what is advised.
    site: PathBuf,
    /// Its text; `None` where it cannot be read.
    text: Option<Digest>,
    in_force: Option<Digest>,
}

impl PolicyInForce {
    pub(super) fn of(file: &SiteFile) -> Self {
        let (path, site) = (file.policy.clone(), file.path.clone());
        let text = Self::read(&path);
        Self { path, site, text, in_force: text }
    }

    fn read(path: &Path) -> Option<Digest> {
        std::fs::read(path).ok().map(|text| Digest::of(&text))
    }

    /// Warns once of each change, and of its end.
    pub(super) fn look(&mut self) {
        if let Some(said) = self.changed() {
            tracing::warn!("{}", Given::Site(&self.site).complete(&said));
        }
    }

    fn changed(&mut self) -> Option<String> {
        let text = Self::read(&self.path);
        if text == self.text {
            return None;
        }
        self.text = text;
        let shown = self.path.display();
        Some(if text == self.in_force {
            format!("{shown} is the policy of this site's start again, and in force")
        } else if text.is_none() {
            format!(
                "{shown} cannot be read any more: the policy of this site's start stays in force, and the next start needs the file"
            )
        } else {
            format!(
                "{shown} has changed and is not in force: the policy of this site's start is in force until the site is restarted (`consortia site pause` stops it \
                 from taking part until then)"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_changes_under_a_running_site_is_told_once_to_be_not_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("tasks = []\n");
        let site = dir.path().join("site.toml");
        let text = "server = \"h:1\"\nidentity = \"i\"\nstate = \"s\"\n[data.csv]\ntrain = \"t\"\n";
        std::fs::write(&site, text).unwrap();
        let mut policy = PolicyInForce::of(&SiteFile::read(&site).unwrap());
        assert_eq!(policy.changed(), None);
        write("tasks = [\"train\"]\n");
        assert!(policy.changed().unwrap().contains("has changed and is not in force"));
        assert_eq!(policy.changed(), None, "it was told");
        write("tasks = []\n");
        assert!(policy.changed().unwrap().contains("in force"));
        std::fs::remove_file(&path).unwrap();
        assert!(policy.changed().unwrap().contains("cannot be read"));
    }
}
