//! Completions and man pages, from the command tree itself.

use std::io::Write;
use std::path::Path;

use super::command;
use super::failure::{Failure, Kind, OrFail};

pub(super) fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "consortia", &mut script);
    std::io::stdout().write_all(&script).or_fail(Kind::Run, "stdout")
}

pub(super) fn man(folder: &Path) -> Result<(), Failure> {
    let doing = folder.display().to_string();
    std::fs::create_dir_all(folder).or_fail(Kind::Configuration, &doing)?;
    clap_mangen::generate_to(command(), folder).or_fail(Kind::Configuration, doing)
}
