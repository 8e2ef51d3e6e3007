//! A plan's columns, completed from a file's header: what `features` means by `"rest"`, `{ except = [...] }` and
//! `{ prefix = "..." }` becomes the list that all sites read.
//!
//! Only that one value of the text is replaced, on as many lines, so that errors name the file's own lines.

use std::collections::BTreeSet;
use std::path::Path;

use learning::{CsvSource, IdSource, Partition, SourceSpec, header};
use serde::Deserialize;
use toml::{Spanned, Value};

use super::failure::{Failure, Kind, OrFail};
use super::kinds::FileKind;
use super::text::read_text;

/// A file whose header line names the columns, and those of them by which rows are chosen.
struct Header {
    file: String,
    columns: Vec<String>,
    choosing: BTreeSet<String>,
}

/// What matters of a plan; whatever else is in it, or wrong with it, is for others to say.
#[derive(Deserialize)]
struct PlanText {
    data: Option<DataText>,
    simulation: Option<SimulationText>,
}

#[derive(Deserialize)]
struct DataText {
    table: Option<TableText>,
}

#[derive(Deserialize)]
struct TableText {
    label: String,
    features: Option<Spanned<Value>>,
    #[serde(default)]
    categorical: Vec<CategoricalText>,
}

#[derive(Deserialize)]
struct CategoricalText {
    column: String,
}

#[derive(Deserialize)]
struct SimulationText {
    dataset: Option<DatasetText>,
    partition: Option<Value>,
}

#[derive(Deserialize)]
struct DatasetText {
    files: Option<SourceSpec>,
}

/// What `features` may say.
#[derive(Deserialize)]
#[serde(untagged)]
enum Features {
    Word(String),
    List(Vec<Item>),
    One(Open),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    Name(String),
    Open(Open),
}

/// Columns that only a header tells.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Open {
    Prefix(String),
    Except(Vec<String>),
}

/// Reads a plan; columns that it does not list are those of `table`, a site's own, or else of its `[simulation]`.
pub(super) fn read_plan_text(path: &Path, table: Option<&CsvSource>) -> Result<String, Failure> {
    if !path.exists() && super::examples::is_one(path) {
        let message = format!(
            "{}: there is no such file; `consortia examples` writes the examples into a folder",
            path.display()
        );
        return Err(Failure::new(Kind::Configuration, message));
    }
    match FileKind::of(path) {
        Some(FileKind::Plan | FileKind::Empty) | None => {}
        Some(other) => return Err(other.is_not(path, "a plan")),
    }
    read_settings_text(path, table)
}

/// The same of a file that may be another kind of settings.
pub(super) fn read_settings_text(path: &Path, table: Option<&CsvSource>) -> Result<String, Failure> {
    completed(&read_text(path)?, path, table)
}

/// The text of a plan in which `features` is a list, where a header to complete it from is known.
pub(super) fn completed(text: &str, path: &Path, table: Option<&CsvSource>) -> Result<String, Failure> {
    let Ok(plan) = toml::from_str::<PlanText>(text) else { return Ok(text.to_owned()) };
    let Some(TableText { label, features: Some(features), categorical }) =
        plan.data.and_then(|data| data.table)
    else {
        return Ok(text.to_owned());
    };
    let (span, value) = (features.span(), features.into_inner());
    let items = match value.try_into() {
        Ok(Features::Word(word)) if word == "rest" => vec![Item::Open(Open::Except(Vec::new()))],
        Ok(Features::One(open)) => vec![Item::Open(open)],
        Ok(Features::List(items)) if items.iter().any(|item| matches!(item, Item::Open(_))) => items,
        Ok(Features::Word(_) | Features::List(_)) | Err(_) => return Ok(text.to_owned()),
    };
    let shown = path.display();
    let header = match (table, plan.simulation) {
        (Some(csv), _) => Some(header_of(csv, None)?),
        (None, Some(simulation)) => simulated(simulation, path)?,
        (None, None) => None,
    };
    let Some(header) = header else { return Ok(text.to_owned()) };
    let used: BTreeSet<String> = categorical.into_iter().map(|one| one.column).chain([label]).collect();
    let names = list(items, &header, &used).map_err(|message| {
        Failure::new(Kind::Configuration, format!("{shown}: data.table.features: {message}"))
    })?;
    let lines = "\n".repeat(text[span.clone()].matches('\n').count());
    let written: Vec<String> = names.iter().map(|name| Value::from(name.as_str()).to_string()).collect();
    let complete = format!("{}[{}{lines}]{}", &text[..span.start], written.join(", "), &text[span.end..]);
    if toml::from_str::<toml::Table>(&complete).is_err() {
        let message = "write it as one value, such as `features = { prefix = \"gene_\" }`, and not as a table of its own";
        return Err(Failure::new(Kind::Configuration, format!("{shown}: data.table.features: {message}")));
    }
    Ok(complete)
}

/// The header of a simulation's table, if it has one.
fn simulated(simulation: SimulationText, path: &Path) -> Result<Option<Header>, Failure> {
    let Some(SourceSpec::Csv(csv)) = simulation.dataset.and_then(|dataset| dataset.files) else {
        return Ok(None);
    };
    let base = path.parent().unwrap_or_else(|| Path::new(""));
    let lookup = |name: &str| std::env::var(name).ok();
    let source = SourceSpec::Csv(csv).resolved(base, &lookup).or_fail(Kind::Configuration, path.display())?;
    let ids = match simulation.partition.map(Value::try_into::<Partition>) {
        Some(Ok(Partition::Natural(IdSource::Column(column)))) => Some(column),
        Some(_) | None => None,
    };
    match source {
        SourceSpec::Csv(csv) => header_of(&csv, ids).map(Some),
        SourceSpec::Idx(_) | SourceSpec::Numpy(_) => Ok(None),
    }
}

fn header_of(csv: &CsvSource, ids: Option<String>) -> Result<Header, Failure> {
    let columns = header(&csv.train, csv.separator)
        .map_err(|error| Failure::new(Kind::Configuration, error.message))?;
    let choosing =
        csv.filter.keys().chain(&csv.split_column).chain(&csv.group_column).chain(&ids).cloned().collect();
    Ok(Header { file: csv.train.display().to_string(), columns, choosing })
}

/// The columns that are meant, in the order of the plan and, where it lists none, of the header; each once.
fn list(items: Vec<Item>, header: &Header, used: &BTreeSet<String>) -> Result<Vec<String>, String> {
    let mut names: Vec<String> = Vec::new();
    for item in items {
        let found: Vec<String> = match item {
            Item::Name(name) => vec![name],
            Item::Open(open) => {
                let means = |column: &&String| match &open {
                    Open::Prefix(prefix) => column.starts_with(prefix.as_str()),
                    Open::Except(except) => !header.choosing.contains(*column) && !except.contains(column),
                };
                if let Open::Except(except) = &open
                    && let Some(absent) = except.iter().find(|name| !header.columns.contains(name))
                {
                    return Err(format!("`except` names `{absent}`, which {} does not have", header.file));
                }
                header
                    .columns
                    .iter()
                    .filter(means)
                    .filter(|column| !used.contains(*column))
                    .cloned()
                    .collect()
            }
        };
        if found.is_empty() {
            let have: Vec<String> = header.columns.iter().map(|column| format!("`{column}`")).collect();
            return Err(format!("it means no column of {}, which has {}", header.file, have.join(", ")));
        }
        let new: Vec<String> = found.into_iter().filter(|name| !names.contains(name)).collect();
        names.extend(new);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The columns that a plan's text means beside a table with this header.
    fn columns(features: &str, header: &str) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let (plan, table) = (folder.path().join("plan.toml"), folder.path().join("rows.csv"));
        std::fs::write(&table, format!("{header}\n")).unwrap();
        let mut csv = CsvSource::new(table);
        csv.split_column = Some("split".to_owned());
        csv.filter.insert("site".to_owned(), "north".to_owned());
        let text = format!(
            "rounds = 1 # kept\n[data.table]\nlabel = 'ill'\nfeatures = {features}\n\
             categorical = [{{ column = 'sex', values = ['f', 'm'] }}]\nmissing = 'drop'\n"
        );
        std::fs::write(&plan, &text).unwrap();
        let read = read_plan_text(&plan, Some(&csv)).map_err(|failure| failure.message().to_string())?;
        assert_eq!(read.lines().count(), text.lines().count(), "every setting stays on its line");
        assert!(read.contains("# kept"));
        let table: toml::Table = read.parse().unwrap();
        let list = table["data"]["table"]["features"].as_array().unwrap();
        Ok(list.iter().map(|name| name.as_str().unwrap().to_owned()).collect())
    }

    const HEADER: &str = "id;site;split;age;sex;gene_b;gene_a;ill";

    #[test]
    fn columns_are_meant_by_rest_by_prefix_and_by_name() {
        let of = |features: &str| columns(features, HEADER).unwrap();
        assert_eq!(of("\"rest\""), ["id", "age", "gene_b", "gene_a"]);
        assert_eq!(of("{ except = ['id'] }"), ["age", "gene_b", "gene_a"]);
        assert_eq!(of("{ prefix = 'gene_' }"), ["gene_b", "gene_a"]);
        assert_eq!(of("[\n  'age',\n  { prefix = 'gene_' },\n]"), ["age", "gene_b", "gene_a"]);
        assert_eq!(of("['gene_a', { prefix = 'gene_' }]"), ["gene_a", "gene_b"]);
        assert_eq!(of("['age', 'rest']"), ["age", "rest"], "a list of names stays as it is");
    }

    #[test]
    fn columns_that_are_not_there_are_named_with_those_that_are() {
        let refusal = |features: &str| columns(features, HEADER).unwrap_err();
        let none = refusal("{ prefix = 'protein_' }");
        assert!(none.contains("means no column of") && none.contains("`gene_b`, `gene_a`"), "{none}");
        assert!(refusal("{ except = ['weight'] }").contains("`except` names `weight`"));
        assert!(columns("'rest'", "site,split,ill,sex").unwrap_err().contains("means no column"));
    }
}
