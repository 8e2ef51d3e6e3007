//! `consortia examples`: the plans and records of the repository's `examples` folder, which this program carries, as files.
//!
//! What is there already and says the same is left; a file that says something else is somebody's, and nothing is written then.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use command::results::{Existing, write_whole};
use privacy::{counted, verb};
use serde_json::json;

use super::failure::{Failure, Kind, OrFail};
use super::global::Global;
use super::shell::quoted;

#[derive(Debug, Args)]
pub(super) struct ExamplesArgs {
    /// The folder to write them into.
    #[arg(default_value = "examples")]
    folder: PathBuf,
}

/// Four hospitals, and the same with every patient's record protected.
pub(super) const HEART: &str = include_str!("../../examples/heart.toml");
pub(super) const HEART_PRIVATE: &str = include_str!("../../examples/heart_private.toml");
/// The records of the four hospitals.
pub(super) const RECORDS: &str = include_str!("../../examples/data/heart_disease.csv");

/// The files as they are in the repository.
const FILES: [(&str, &str); 13] = [
    ("heart.toml", HEART),
    ("heart_private.toml", HEART_PRIVATE),
    ("heterogeneous.toml", include_str!("../../examples/heterogeneous.toml")),
    ("kmeans.toml", include_str!("../../examples/kmeans.toml")),
    ("many_clients.toml", include_str!("../../examples/many_clients.toml")),
    ("layers.toml", include_str!("../../examples/layers.toml")),
    ("mnist.toml", include_str!("../../examples/mnist.toml")),
    ("mnist_shards.toml", include_str!("../../examples/mnist_shards.toml")),
    ("writers.toml", include_str!("../../examples/writers.toml")),
    ("writers_private.toml", include_str!("../../examples/writers_private.toml")),
    ("data/README.md", include_str!("../../examples/data/README.md")),
    ("data/heart_disease.csv", RECORDS),
    ("data/heart_disease_raw.csv", include_str!("../../examples/data/heart_disease_raw.csv")),
];

/// The folder with a file of each hospital's own records.
pub(super) const HOSPITALS: &str = "hospitals";

/// Each hospital's name and its own rows, header line included.
pub(super) fn hospitals() -> Vec<(String, String)> {
    let mut lines = RECORDS.lines();
    let header = lines.next().unwrap_or_default();
    let mut hospitals: Vec<(String, String)> = Vec::new();
    for line in lines {
        let name = line.split(',').next().unwrap_or_default();
        let place = hospitals.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            hospitals.push((name.to_owned(), format!("{header}\n")));
            hospitals.len() - 1
        });
        hospitals[place].1.push_str(line);
        hospitals[place].1.push('\n');
    }
    hospitals
}

/// Every file by its path below the folder.
fn files() -> Vec<(String, String)> {
    let named = FILES.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    let own = hospitals().into_iter().map(|(name, rows)| (format!("{HOSPITALS}/{name}.csv"), rows));
    named.chain(own).collect()
}

/// Whether a path ends with the name of an example's plan, as texts show it.
pub(super) fn is_one(path: &Path) -> bool {
    let plan = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    path.parent().is_some_and(|folder| folder.ends_with("examples"))
        && FILES.iter().any(|(name, _)| *name == plan)
}

pub(super) fn examples(args: &ExamplesArgs, global: &Global) -> Result<(), Failure> {
    let folder = &args.folder;
    let missing = missing(folder)?;
    for (name, text) in &missing {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).or_fail(Kind::Configuration, parent.display())?;
        write_whole(&path, Existing::Kept, |path| fs::write(path, text))
            .or_fail(Kind::Run, path.display())?;
    }
    let shown = folder.display();
    let text = || {
        format!(
            "{shown}: {} written, {} {} there\n\n  \
             heart.toml           four hospitals predict heart disease\n  \
             heart_private.toml   the same with every patient's record protected\n  \
             heterogeneous.toml, many_clients.toml: made-up records; the other plans read MNIST from $CONSORTIA_DATA\n  \
             data, {HOSPITALS}      the records of all hospitals, and each hospital's own (CC BY 4.0, see data/README.md)\n\n\
             next:\n  consortia simulate {}",
            counted(missing.len(), "file"),
            files().len() - missing.len(),
            verb(files().len() - missing.len(), "was", "were"),
            quoted(folder.join("heart.toml"))
        )
    };
    let written: Vec<PathBuf> = missing.iter().map(|(name, _)| folder.join(name)).collect();
    global.format.say(text, || json!({ "folder": folder, "written": written }));
    Ok(())
}

/// The files that are not there yet; a failure where one is and differs.
fn missing(folder: &Path) -> Result<Vec<(String, String)>, Failure> {
    let mut missing = Vec::new();
    for (name, text) in files() {
        let path = folder.join(&name);
        match fs::read(&path) {
            Ok(there) if there == text.as_bytes() => {}
            Ok(_) => {
                let message = format!(
                    "{} exists and is not the example of this name; nothing was changed: name another folder, `consortia examples FOLDER`",
                    path.display()
                );
                return Err(Failure::new(Kind::Configuration, message));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                refuse_link(&path)?;
                missing.push((name, text));
            }
            Err(error) => return Err(error).or_fail(Kind::Configuration, path.display()),
        }
    }
    Ok(missing)
}

/// Refuses a link that leads nowhere: what is at its end may be on a disk that is not there for now, and the link is somebody's.
fn refuse_link(path: &Path) -> Result<(), Failure> {
    let Ok(to) = fs::read_link(path) else { return Ok(()) };
    let message = format!(
        "{} is a link to {}, where nothing is; nothing was changed: remove the link, or name another folder, `consortia examples FOLDER`",
        path.display(),
        to.display()
    );
    Err(Failure::new(Kind::Configuration, message))
}

#[cfg(test)]
mod tests {
    use super::super::output::Format;
    use super::*;

    const SILENT: Global = Global { format: Format::Silent, quiet: 1, verbose: 0 };

    #[test]
    fn every_hospital_gets_its_own_rows_and_the_header() {
        let hospitals = hospitals();
        let names: Vec<&str> = hospitals.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["cleveland", "hungarian", "switzerland", "va"]);
        let rows: Vec<usize> = hospitals.iter().map(|(_, rows)| rows.lines().count() - 1).collect();
        assert_eq!(rows, [303, 261, 46, 130]);
        assert!(hospitals.iter().all(|(_, rows)| rows.starts_with("site,split,")));
    }

    #[test]
    fn every_plan_and_table_of_the_repository_is_carried() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        let within = |folder: &str| -> Vec<String> {
            let entries = fs::read_dir(examples.join(folder)).unwrap().map(|entry| entry.unwrap().path());
            let files = entries.filter(|path| path.extension().is_some_and(|ending| ending != "rs"));
            files.map(|path| path.strip_prefix(&examples).unwrap().display().to_string()).collect()
        };
        let mut there = [within(""), within("data")].concat();
        let mut carried: Vec<String> = FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
        there.sort();
        carried.sort();
        assert_eq!(carried, there);
    }

    #[test]
    fn files_that_are_there_are_left_and_somebody_s_own_are_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let args = ExamplesArgs { folder: dir.path().join("a/b") };
        examples(&args, &SILENT).unwrap();
        assert!(missing(&args.folder).unwrap().is_empty());
        fs::remove_file(args.folder.join("heart.toml")).unwrap();
        examples(&args, &SILENT).unwrap();
        fs::write(args.folder.join("hospitals/va.csv"), "ours\n").unwrap();
        fs::remove_file(args.folder.join("heart.toml")).unwrap();
        let said = examples(&args, &SILENT).unwrap_err();
        assert!(said.message().contains("va.csv") && said.kind() == Kind::Configuration, "{said:?}");
        assert!(!args.folder.join("heart.toml").exists(), "nothing was changed");
    }
}
