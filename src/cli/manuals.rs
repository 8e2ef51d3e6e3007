//! Completions and man pages, from the command tree itself.

use std::path::Path;

use clap::Command;

use super::failure::{Failure, Kind, OrFail};
use super::output::print;

pub(super) fn completions(shell: clap_complete::Shell, mut tree: Command) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut tree, "consortia", &mut script);
    print(&String::from_utf8_lossy(&script));
}

pub(super) fn man(folder: &Path, tree: Command) -> Result<(), Failure> {
    let doing = folder.display().to_string();
    std::fs::create_dir_all(folder).or_fail(Kind::Configuration, &doing)?;
    clap_mangen::generate_to(tree, folder).or_fail(Kind::Configuration, doing)
}
