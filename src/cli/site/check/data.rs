//! What the site's data hold, and whether a plan can use them.

use learning::{ColumnSurvey, SourceSpec, TableSurvey, load_measured, survey};
use privacy::{counted, plural, verb};
use protocol::{DataSpec, EvaluationRecords, RecordCount, TableSpec, UpdateSpec, Weighting};
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
        Some(DataSpec::Tensor(_) | DataSpec::Own) | None => None,
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
    let records = plan.spec.evaluation_records;
    let loaded = load_measured(source, &plan.spec.data, records);
    match loaded.and_then(|data| Ok((data.try_out(&plan.spec)?, data))) {
        Ok((flat, data)) => {
            let measured = data.test.as_ref().map_or(0, |test| test.len());
            let what = match records {
                EvaluationRecords::Test => "to test",
                EvaluationRecords::Validation => "for validation",
            };
            let told = format!("{} to train on, {measured} {what}", counted(data.train.len(), "record"));
            findings.ok("data for the plan", told);
            for column in flat {
                let message = "all its numbers are the same, or as good as the same in 53 bits: standardised, they are 0 here; where that is \
                               not meant, write it with more digits or from a nearer zero";
                findings.warn(format!("spread of {column}"), message);
            }
            if measured == 0 && records == EvaluationRecords::Validation {
                let message = "the plan evaluates on validation records and there are none: this site measures nothing; set \
                                `validation_fraction` or `validation` under [data.csv]";
                findings.warn("validation", message.to_owned());
            }
            let found = data.train.len() as u64;
            let UpdateSpec { weights, weight_max, .. } = plan.spec.update;
            if weights == Weighting::Examples && found > u64::from(weight_max) {
                let message = format!(
                    "{} {} as {weight_max}, as the plan's update.weight_max says; ask for a higher one where \
                     sites are to be weighed by their records",
                    counted(found, "training record"),
                    verb(found, "counts", "count")
                );
                findings.warn("weight", message);
            }
            if let RecordCount::Public(declared) = declared
                && declared != found
            {
                let message = format!(
                    "site.toml declares {} and there {} {found}; where records are protected, steps and \
                     weights follow from the declared number",
                    counted(declared, "training record"),
                    verb(found, "is", "are")
                );
                findings.warn("public_records", message);
            }
        }
        Err(error) => findings.fail("data for the plan", error.message),
    }
}

fn describe(file: &TableSurvey, plan: Option<&TableSpec>, findings: &mut Findings) {
    let path = file.path.display();
    let told = format!("{path}: {} of {} chosen", file.chosen, counted(file.rows, "row"));
    let told = match file.divided {
        Some([train, validation, test]) => {
            format!("{told}: {train} to train on, {validation} for validation, {test} to test")
        }
        None => told,
    };
    match file.chosen {
        0 => findings.fail("data", format!("{told}; compare `where` with the file")),
        _ => findings.ok("data", told),
    }
    for column in &file.columns {
        describe_column(column, file.chosen, plan.is_some(), findings);
    }
    if file.dropped > 0 {
        let message = format!(
            "{path}: {} {} a cell, and the plan leaves {} out",
            counted(file.dropped, "chosen row"),
            verb(file.dropped, "misses", "miss"),
            verb(file.dropped, "it", "them")
        );
        findings.warn("rows left out", message);
    }
    if file.bad > 0 {
        let lines: Vec<String> = file.faults.iter().map(|(line, _)| line.to_string()).collect();
        let (first, more) = (&file.faults[0].1, if file.bad > lines.len() as u64 { ", ..." } else { "" });
        let message = format!(
            "{} cannot be used, at {} {}{more}; the first: {first}",
            counted(file.bad, "row"),
            plural(file.bad, "line"),
            lines.join(", ")
        );
        findings.fail("rows", message);
    }
}

fn describe_column(column: &ColumnSurvey, rows: u64, planned: bool, findings: &mut Findings) {
    let mut told = vec![format!("{} missing", counted(column.missing, "cell"))];
    let ColumnSurvey { missing, words, wants_numbers, unlisted, .. } = *column;
    let absent: Vec<&str> =
        column.classes.iter().filter(|(_, rows)| *rows == 0).map(|(class, _)| class.as_str()).collect();
    if words > 0 {
        let line = column.first_word.unwrap_or_default();
        let shown: Vec<&str> = column.values.iter().take(SHOWN).map(String::as_str).collect();
        let more = if column.values.len() > SHOWN { ", ..." } else { "" };
        let what = match column.classes.is_empty() {
            true => verb(words, "is not numeric", "are not numeric"),
            false => verb(words, "is not a class of the plan", "are not classes of the plan"),
        };
        told.push(format!(
            "{} {what} (first at line {line}): {}{more}",
            counted(words, "value"),
            shown.join(", ")
        ));
    }
    if unlisted > 0 {
        told.push(format!(
            "{unlisted} {} none of the plan's categories and {} as all zeros",
            verb(unlisted, "is", "are"),
            verb(unlisted, "counts", "count")
        ));
    }
    if !column.classes.is_empty() && column.classes.len() <= SHOWN {
        let count = |(class, rows): &(String, u64)| format!("{class} in {}", counted(*rows, "row"));
        told.push(format!("classes: {}", column.classes.iter().map(count).collect::<Vec<_>>().join(", ")));
    } else if !absent.is_empty() {
        told.push(format!(
            "{} of {} {} no row",
            absent.len(),
            counted(column.classes.len(), "class"),
            verb(absent.len(), "has", "have")
        ));
    }
    let name = format!("column {}", column.name);
    let empty = rows > 0 && missing == rows;
    if (planned && wants_numbers && words > 0) || unlisted > 0 || empty || !absent.is_empty() {
        findings.warn(name, told.join("; "));
    } else {
        findings.ok(name, told.join("; "));
    }
}

/// Whether array files are there; what they hold shows with a plan.
fn open_files(source: &SourceSpec, findings: &mut Findings) {
    let files = match source {
        SourceSpec::Csv(csv) => csv.files().map(Some).collect(),
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
            Ok(_) => findings
                .ok("data", format!("{} can be opened; `--plan FILE` checks its records", path.display())),
            Err(error) => {
                findings.fail("data", format!("{}: {error}; check the path under [data]", path.display()));
            }
        }
    }
}
