//! `consortia site audit`: the site's audit log for a person, once its chain is seen to be whole.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use ::client::AuditEvent;
use clap::Args;
use clap::builder::PossibleValuesParser;
use privacy::chain::segments::{Segment, Survey, files_of, survey};
use privacy::counted;
use serde_json::Value;
use time::{Date, Month};

use super::super::failure::{Failure, Kind, OrFail};
use super::super::folder::SiteFile;
use super::super::global::Global;
use super::super::members::moment;
use super::super::output::fields;
use super::{now, owner};

#[derive(Debug, Args)]
pub(in crate::cli) struct AuditArgs {
    /// The site's file.
    #[arg(default_value = "site.toml")]
    file: PathBuf,
    /// Only events since this time: a day as 2026-11-30 (UTC), or 90m, 24h, 7d ago.
    #[arg(long)]
    since: Option<Since>,
    /// Only events of this kind; may be repeated.
    #[arg(long = "event", value_name = "EVENT", value_parser = PossibleValuesParser::new(AuditEvent::NAMES))]
    events: Vec<String>,
    /// A folder to which closed segments of the log were moved; may be repeated.
    #[arg(long = "archive", value_name = "DIR")]
    archives: Vec<PathBuf>,
}

/// A moment as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    /// Seconds since the Unix epoch.
    At(u64),
    /// So many seconds ago.
    Ago(u64),
}

impl Since {
    fn seconds(self) -> u64 {
        match self {
            Self::At(seconds) => seconds,
            Self::Ago(seconds) => (now().as_micros() / 1_000_000).saturating_sub(seconds),
        }
    }
}

impl FromStr for Since {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no moment; give a day as 2026-11-30, or 90m, 24h or 7d ago");
        let unit = [("m", 60), ("h", 3600), ("d", 24 * 3600)];
        if let Some((count, unit)) = unit.iter().find_map(|(end, unit)| Some((text.strip_suffix(end)?, unit)))
        {
            let count: u64 = count.parse().map_err(|_| wrong())?;
            return count.checked_mul(*unit).map(Self::Ago).ok_or_else(wrong);
        }
        let parts: Vec<u16> =
            text.split('-').map(str::parse).collect::<Result<_, _>>().map_err(|_| wrong())?;
        let [year, month, day] = parts[..] else { return Err(wrong()) };
        let month = u8::try_from(month).ok().and_then(|month| Month::try_from(month).ok());
        let day = u8::try_from(day).ok();
        let date = month
            .zip(day)
            .and_then(|(month, day)| Date::from_calendar_date(i32::from(year), month, day).ok());
        let seconds = date.map(|date| date.midnight().assume_utc().unix_timestamp());
        seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Self::At).ok_or_else(wrong)
    }
}

pub(in crate::cli) fn audit(args: &AuditArgs, global: &Global) -> Result<(), Failure> {
    let file = SiteFile::read(&args.file)?;
    if let Some(fault) = owner::fault(&file) {
        return Err(Failure::new(Kind::Configuration, fault));
    }
    let path = file.state.join("audit.jsonl");
    let shown = path.display();
    if files_of(&path).or_fail(Kind::Configuration, &shown)?.is_empty() {
        let message = format!(
            "{shown}: there is no audit log yet; `site run` begins it. Where it was there before, see `site check`"
        );
        return Err(Failure::new(Kind::Configuration, message));
    }
    // Nothing is shown before all of it is seen to be whole; then it is read again, so that one file at a time is in memory.
    let read = |visit: &mut dyn FnMut(&Path, &Segment)| -> Result<Survey, Failure> {
        let seen = survey(&path, &args.archives, visit).or_fail(Kind::Configuration, "")?;
        match seen.faults.first() {
            Some(fault) => Err(Failure::new(Kind::Run, fault)),
            None => Ok(seen),
        }
    };
    read(&mut |_, _| {})?;
    let since = args.since.map_or(0, Since::seconds);
    let seen = read(&mut |_, segment| {
        for link in &segment.lines.links {
            let record: Value = serde_json::from_str(link.record.get()).unwrap_or_default();
            let named = record["event"].as_str().unwrap_or_default();
            let wanted = args.events.is_empty() || args.events.iter().any(|event| event == named);
            if wanted && seconds(&record) >= since {
                global.format.say(|| told(&record), || record.clone());
            }
        }
    })?;
    if seen.torn > 0 {
        // A site at work may be writing this very line.
        tracing::warn!("{shown}: the last line has no end yet");
    }
    for absent in &seen.absent {
        tracing::warn!(
            "{shown}: {absent} are not here and not shown; name the folder to which they were moved by --archive DIR"
        );
    }
    if global.quiet == 0 {
        let (count, head) = (seen.records(), seen.end().head());
        super::super::output::tell(format_args!(
            "{shown}: {} in order, head {head}",
            counted(count, "record")
        ));
    }
    Ok(())
}

fn seconds(record: &Value) -> u64 {
    record["at_micros"].as_u64().unwrap_or_default() / 1_000_000
}

/// A record for a person: when, what, which task, and the rest.
fn told(record: &Value) -> String {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut rest = Vec::new();
    if let Value::Object(task) = &record["task"] {
        let [kind, round, run] =
            ["kind", "round", "run"].map(|name| task.get(name).map(plain).unwrap_or_default());
        let kind = task.get("title").map_or(kind, plain);
        rest.push(format!("{kind} in round {round} of run {run}"));
    }
    if let Value::Object(copy) = &record["ledger"] {
        let records = copy.get("records").map(plain).unwrap_or_default();
        rest.push(format!("ledger={records}"));
    }
    rest.push(fields(record, &["version", "at_micros", "event", "task", "ledger"]));
    format!("{}  {:<9} {}", moment(seconds(record)), plain(&record["event"]), rest.join(" "))
        .trim_end()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn moments_are_days_or_spans_and_nothing_else() {
        assert_eq!("1970-01-02".parse(), Ok(Since::At(86_400)));
        assert_eq!("90m".parse(), Ok(Since::Ago(5_400)));
        for wrong in ["", "yesterday", "2026-13-01", "2026-02-30", "5", "h", "-1h", "99999999999999999999d"] {
            assert!(wrong.parse::<Since>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_record_is_told_in_one_line() {
        let record = json!({
            "version": 1, "at_micros": 86_400_000_000u64, "event": "denied",
            "task": { "run": "ab", "round": 3, "kind": "train" }, "rule": "hours", "message": "it is late",
        });
        assert_eq!(
            told(&record),
            "1970-01-02 00:00 UTC  denied    train in round 3 of run ab message=\"it is late\" rule=hours"
        );
        let task = json!({ "run": "ab", "round": 3, "kind": "step-16", "title": "kmeans: assign" });
        let method = json!({ "version": 1, "at_micros": 0, "event": "done", "task": task });
        assert_eq!(told(&method), "1970-01-01 00:00 UTC  done      kmeans: assign in round 3 of run ab");
    }
}
