//! What the site's data hold, and whether a plan can use them.

use learning::{ColumnSurvey, SourceSpec, TableSurvey, load, survey};
use protocol::{DataSpec, RecordCount, TableSpec, UpdateSpec, Weighting};
use server::Plan;

use super::Findings;

/// How many words of a column are shown.
const SHOWN: usize = 6;

pub(super) fn look_at_data(
    source: &SourceSpec,
    plan: Option<&Plan>,
    declared: RecordCount,
    findings: &mut Findings,
) {
    let table = match plan.map(|plan| &plan.spec.data) {
        Some(DataSpec::Table(table)) => Some(table),
        Some(DataSpec::Tensor(_)) | None => None,
    };
    if let SourceSpec::Csv(csv) = source {
        match survey(csv, table) {
            Ok(files) => files.iter().for_each(|file| describe(file, table, findings)),
            Err(error) => return findings.fail("data", error.message),
        }
    } else if plan.is_none() {
        return open_files(source, findings);
    }
    let Some(plan) = plan else { return };
    match load(source, &plan.spec.data) {
        Ok(data) => {
            let test = data.test.as_ref().map_or(0, |test| test.len());
            findings
                .ok("data for the plan", format!("{} records to train on, {test} to test", data.train.len()));
            let found = data.train.len() as u64;
            let UpdateSpec { weights, weight_max, .. } = plan.spec.update;
            if weights == Weighting::Examples && found > u64::from(weight_max) {
                let message = format!(
                    "the {found} training records count as {weight_max}, as the plan's update.weight_max says; ask for a higher one where \
                     sites are to be weighed by their records"
                );
                findings.warn("weight", message);
            }
            if let RecordCount::Public(declared) = declared
                && declared != found
            {
                let message = format!(
                    "site.toml declares {declared} training records and there are {found}; where records are protected, steps and \
                     weights follow from the declared number"
                );
                findings.warn("public_records", message);
            }
        }
        Err(error) => findings.fail("data for the plan", error.message),
    }
}

fn describe(file: &TableSurvey, plan: Option<&TableSpec>, findings: &mut Findings) {
    let path = file.path.display();
    let told = format!("{path}: {} of {} rows are chosen", file.chosen, file.rows);
    match file.chosen {
        0 => findings.fail("data", format!("{told}; compare `where` and `split_column` with the file")),
        _ => findings.ok("data", told),
    }
    for column in &file.columns {
        describe_column(column, file.chosen, plan.is_some(), findings);
    }
    if file.dropped > 0 {
        let message =
            format!("{path}: {} chosen rows miss a cell, and the plan leaves them out", file.dropped);
        findings.warn("rows left out", message);
    }
    if file.bad > 0 {
        let lines: Vec<String> = file.faults.iter().map(|(line, _)| line.to_string()).collect();
        let (first, more) = (&file.faults[0].1, if file.bad > lines.len() as u64 { ", ..." } else { "" });
        let message = format!(
            "{} rows cannot be used, at lines {}{more}; the first: {first}",
            file.bad,
            lines.join(", ")
        );
        findings.fail("rows", message);
    }
}

fn describe_column(column: &ColumnSurvey, rows: u64, planned: bool, findings: &mut Findings) {
    let mut told = vec![format!("{} cells missing", column.missing)];
    let ColumnSurvey { missing, words, wants_numbers, unlisted, .. } = *column;
    if words > 0 {
        let line = column.first_word.unwrap_or_default();
        let shown: Vec<&str> = column.values.iter().take(SHOWN).map(String::as_str).collect();
        let more = if column.values.len() > SHOWN { ", ..." } else { "" };
        told.push(format!("{words} no numbers (first at line {line}): {}{more}", shown.join(", ")));
    }
    if unlisted > 0 {
        told.push(format!("{unlisted} are none of the plan's categories and count as all zeros"));
    }
    let name = format!("column {}", column.name);
    let empty = rows > 0 && missing == rows;
    if (planned && wants_numbers && words > 0) || unlisted > 0 || empty {
        findings.warn(name, told.join("; "));
    } else {
        findings.ok(name, told.join("; "));
    }
}

/// Whether array files are there; what they hold shows with a plan.
fn open_files(source: &SourceSpec, findings: &mut Findings) {
    let files = match source {
        SourceSpec::Csv(csv) => vec![Some(&csv.train), csv.test.as_ref()],
        SourceSpec::Idx(idx) => vec![
            Some(&idx.train_images),
            Some(&idx.train_labels),
            idx.test_images.as_ref(),
            idx.test_labels.as_ref(),
        ],
        SourceSpec::Numpy(numpy) => {
            vec![Some(&numpy.train_x), Some(&numpy.train_y), numpy.test_x.as_ref(), numpy.test_y.as_ref()]
        }
    };
    for path in files.into_iter().flatten() {
        match std::fs::File::open(path) {
            Ok(_) => findings.ok("data", format!("{} opens; `--plan FILE` looks into it", path.display())),
            Err(error) => {
                findings.fail("data", format!("{}: {error}; check the path under [data]", path.display()));
            }
        }
    }
}
