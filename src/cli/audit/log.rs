//! An audit log that is verified: all segments of it, or one alone.

use std::path::Path;

use privacy::chain::segments::{Survey, closed_by_name, files_of, read_segment, survey};
use privacy::counted;
use serde_json::{Value, json};

use super::super::failure::{Failure, Kind, OrFail};
use super::super::global::Global;
use super::super::kinds::FileKind;
use super::super::output::{Format, print};
use super::{Findings, VerifyArgs, entries, told};

fn name_of(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn is_audit(kind: Option<FileKind>) -> bool {
    matches!(kind, Some(FileKind::SiteAudit | FileKind::ServerAudit))
}

/// Whether a file is an audit log's current segment, by its name or by what it holds; it may be missing where closed ones are there.
pub(super) fn is_log(file: &Path, kind: Option<FileKind>) -> bool {
    let name = name_of(file);
    let is_named = name == "audit.jsonl" || name.starts_with("audit-") && name.ends_with(".jsonl");
    let is_chain = kind.is_none_or(|kind| kind.is_chain() || kind == FileKind::Empty);
    let is_there = file.exists() || files_of(file).is_ok_and(|files| !files.is_empty());
    is_audit(kind) || (is_named && is_chain && is_there)
}

/// Whether a file is a closed segment.
pub(super) fn is_closed(file: &Path, kind: Option<FileKind>) -> bool {
    closed_by_name(&name_of(file)).is_some() && (is_audit(kind) || kind.is_none()) && file.exists()
}

/// Verifies a log with all of its segments.
pub(super) fn verify(
    log: &Path,
    args: &VerifyArgs,
    global: &Global,
    found: &mut Findings,
) -> Result<(), Failure> {
    let name = log.file_name().unwrap_or_default().to_owned();
    if !args.archives.is_empty() && found.logs.contains(&name) {
        let message = format!(
            "{}: --archive is for one log, and another {} was named with it: name one of the two alone",
            log.display(),
            name.display()
        );
        return Err(Failure::new(Kind::Configuration, message));
    }
    found.logs.push(name);
    let (mut lines, mut records) = (0, Vec::new());
    let seen = survey(log, &args.archives, &mut |_, segment| {
        let links = &segment.lines.links;
        lines = links.len();
        match global.format {
            Format::Text => print(&told(links, args.records)),
            Format::Json if args.records => records.extend(entries(links)),
            Format::Json | Format::Silent => {}
        }
    });
    let seen = seen.or_fail(Kind::Configuration, "")?;
    let shown = log.display();
    let mut faults: Vec<String> = seen.faults.iter().map(ToString::to_string).collect();
    if seen.torn > 0 {
        faults.push(format!(
            "{shown}: line {}: it has no end ({} bytes); a crash left it or somebody cut it, and the next start removes it",
            lines + 1,
            seen.torn
        ));
    }
    for absent in &seen.absent {
        found.absent.push(format!(
            "{shown}: not verified in full: {absent} are not here. If they were moved, name their folder by --archive DIR; else put them back from a \
             backup"
        ));
    }
    if faults.is_empty() {
        global.format.say(|| describe(log, &seen), || object(log, &seen, args.records.then_some(records)));
    }
    found.damaged.extend(faults);
    Ok(())
}

fn describe(log: &Path, seen: &Survey) -> String {
    let (shown, end) = (log.display(), seen.end());
    let files = match seen.segments.len() {
        0 | 1 => String::new(),
        files => format!(" in {}", counted(files, "file")),
    };
    format!("{shown}: {} in order{files}, head {}", counted(seen.records(), "record"), end.head())
}

fn object(log: &Path, seen: &Survey, entries: Option<Vec<Value>>) -> Value {
    let segments: Vec<Value> = seen
        .segments
        .iter()
        .map(|one| json!({ "file": one.path, "segment": one.number, "from": one.start.len(), "records": one.end.len() - one.start.len() }))
        .collect();
    let absent: Vec<Value> = seen
        .absent
        .iter()
        .map(|one| json!({ "segments": [one.first, one.last], "from": one.from, "to": one.to }))
        .collect();
    let mut object = json!({
        "file": log, "records": seen.records(), "head": seen.end().head(), "segments": segments, "absent": absent,
    });
    if let Some(entries) = entries {
        object["entries"] = Value::Array(entries);
    }
    object
}

/// Verifies a closed segment that was named, by itself: what it goes on from is not looked at.
pub(super) fn verify_alone(
    file: &Path,
    args: &VerifyArgs,
    global: &Global,
    found: &mut Findings,
) -> Result<(), Failure> {
    let text = std::fs::read(file).or_fail(Kind::Configuration, file.display())?;
    let shown = file.display();
    let segment = match read_segment(&text) {
        Ok(segment) => segment,
        Err(damage) => {
            found.damaged.push(format!("{shown}: {damage}"));
            return Ok(());
        }
    };
    let (number, lines) = (segment.number, segment.lines);
    let named = closed_by_name(&name_of(file)).map_or(number, |(_, number)| number);
    if lines.torn > 0 {
        let line = lines.links.len() + 1;
        found
            .damaged
            .push(format!("{shown}: line {line}: it has no end, and the segment is closed: somebody cut it"));
    } else if named != number {
        found.damaged.push(format!(
            "{shown}: by its first record it is segment {number}: it was exchanged or renamed"
        ));
    } else {
        let (from, count, head) = (lines.start.len(), lines.links.len(), lines.chain.head());
        let to = lines.chain.len().saturating_sub(1);
        global.format.say(
            || {
                told(&lines.links, args.records)
                    + &format!(
                        "{shown}: segment {number} alone: records {from} to {to} in order, head {head}"
                    )
            },
            || {
                let mut object =
                    json!({ "file": file, "segment": number, "from": from, "records": count, "head": head });
                if args.records {
                    object["entries"] = entries(&lines.links).collect();
                }
                object
            },
        );
    }
    Ok(())
}
