//! Reading a file that a person wrote or another program made: as text, and no more of it than such a file can have.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::failure::{Failure, Kind, OrFail};

/// Bytes of a plan, a policy, a file of settings, a privacy statement.
const TEXT_MAX: u64 = 16 << 20;

/// The text of a file.
pub(super) fn read_text(path: &Path) -> Result<String, Failure> {
    let shown = path.display();
    let mut text = String::new();
    let file = File::open(path).or_fail(Kind::Configuration, shown)?;
    let read =
        file.take(TEXT_MAX + 1).read_to_string(&mut text).or_fail(Kind::Configuration, path.display())?;
    if read as u64 > TEXT_MAX {
        let message =
            format!("{}: the file has more than {TEXT_MAX} bytes; is it the right one?", path.display());
        return Err(Failure::new(Kind::Configuration, message));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_longer_than_any_such_file_is_not_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.toml");
        std::fs::write(&path, "rounds = 1").unwrap();
        assert_eq!(read_text(&path).unwrap(), "rounds = 1");
        File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        let said = read_text(&path).unwrap_err();
        assert!(
            said.message().contains("plan.toml") && said.message().contains("16777216"),
            "{}",
            said.message()
        );
    }
}
