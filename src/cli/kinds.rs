//! What a file is, told by what it begins with, and which command reads it: for whoever gave a command the wrong one.
//!
//! It judges nothing: a file of a kind may be damaged all the same.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use privacy::chain::Link;
use serde_json::Value;

use super::failure::{Failure, Kind};
use super::shell::quoted;

/// Bytes of a file that are looked at.
const HEAD_MAX: u64 = 1 << 20;

/// Files that this program writes or reads, and some that people take for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    Empty,
    /// Of one model; what may be said of its privacy.
    Statement,
    /// What a site has given away.
    SiteLedger,
    /// What a population's budget has paid, as a simulation leaves it.
    RunLedger,
    SiteAudit,
    ServerAudit,
    /// The events of a run, in the folder of its results.
    Events,
    /// Another object of JSON.
    Json,
    Model,
    Plan,
    Site,
    Server,
    Policy,
    Table,
    Certificate,
    Invite,
    Database,
    Page,
    Archive,
}

impl FileKind {
    /// What a file is, where that can be told.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let mut head = Vec::new();
        File::open(path).ok()?.take(HEAD_MAX).read_to_end(&mut head).ok()?;
        Self::of_bytes(&head)
    }

    fn of_bytes(head: &[u8]) -> Option<Self> {
        let begins = |with: &[u8]| head.starts_with(with);
        if head.is_empty() {
            return Some(Self::Empty);
        }
        if begins(b"SQLite format 3\0") {
            return Some(Self::Database);
        }
        if begins(b"PK\x03\x04") || begins(&[0x1f, 0x8b]) {
            return Some(Self::Archive);
        }
        // Eight bytes of length, then an object of JSON.
        if head.len() > 8 && head[8] == b'{' && head[..8].contains(&0) {
            return Some(Self::Model);
        }
        // The last letter may have been cut in two.
        let text = match std::str::from_utf8(head) {
            Ok(text) => text,
            Err(error) if error.error_len().is_none() => {
                std::str::from_utf8(&head[..error.valid_up_to()]).ok()?
            }
            Err(_) => return None,
        };
        let text = text.trim_start_matches('\u{feff}').trim_start();
        if text.starts_with('{') {
            return Self::of_json(text);
        }
        if text.starts_with("-----BEGIN ") {
            return Some(Self::Certificate);
        }
        if text.starts_with("consortia-invite-") {
            return Some(Self::Invite);
        }
        if text.starts_with('<') {
            return Some(Self::Page);
        }
        Self::of_settings(text).or_else(|| Self::of_table(text))
    }

    fn of_json(text: &str) -> Option<Self> {
        let line = text.lines().next().unwrap_or_default();
        if let Ok(link) = serde_json::from_str::<Link>(line) {
            return Some(Self::of_link(&link));
        }
        if let Ok(Value::Object(object)) = serde_json::from_str(line)
            && text.lines().nth(1).is_some_and(|second| second.starts_with('{'))
        {
            // Other lines of objects are nobody's here, or a book whose first line was changed.
            let is_link =
                ["sequence", "previous", "record", "hash"].iter().any(|name| object.contains_key(*name));
            return (object.contains_key("event") && !is_link).then_some(Self::Events);
        }
        let object: Value = serde_json::from_str(text).ok()?;
        let has = |name: &str| object.get(name).is_some();
        if has("sequence") && has("hash") {
            return None;
        }
        Some(match (has("claims"), has("event")) {
            (true, _) => Self::Statement,
            (false, true) => Self::Events,
            (false, false) => Self::Json,
        })
    }

    /// Whose book begins with this record.
    fn of_link(link: &Link) -> Self {
        let record: Value = serde_json::from_str(link.record.get()).unwrap_or_default();
        if link.read::<privacy::ledger::Record>().is_ok() {
            return Self::RunLedger;
        }
        match (record.get("event").is_some(), record.get("at_micros").is_some()) {
            (true, true) => Self::SiteAudit,
            (true, false) => Self::ServerAudit,
            (false, _) => Self::SiteLedger,
        }
    }

    /// A file of settings, by those that only it has. One with those of two is the one or the other with a mistake, and none here.
    fn of_settings(text: &str) -> Option<Self> {
        let table: toml::Table = toml::from_str(text).ok()?;
        let has = |names: &[&str]| names.iter().any(|name| table.contains_key(*name));
        let is_plan =
            table.contains_key("rounds") && ["model", "method"].iter().any(|key| table.contains_key(*key));
        let fits = [
            (Self::Plan, is_plan || table.contains_key("simulation")),
            (Self::Site, has(&["identity", "server", "servers"])),
            (Self::Server, has(&["listen", "addresses"])),
            (Self::Policy, has(&["tasks", "rounds_per_day", "parameters_max"])),
        ];
        let mut found = fits.into_iter().filter_map(|(kind, fits)| fits.then_some(kind));
        found.next().filter(|_| found.next().is_none())
    }

    /// Lines of as many cells as the first has.
    fn of_table(text: &str) -> Option<Self> {
        // A file of settings with a mistake is none.
        let is_settings = |line: &str| line.starts_with(['#', '[']) || line.contains('=');
        if text.lines().take(2).any(is_settings) {
            return None;
        }
        let mut lines = text.lines();
        let (first, second) = (lines.next()?, lines.next()?);
        let is_separated = |by: char| {
            let cells = first.matches(by).count();
            cells > 0 && second.matches(by).count() == cells
        };
        [',', ';', '\t'].into_iter().any(is_separated).then_some(Self::Table)
    }

    /// Whether `audit verify` reads it.
    pub(super) fn is_chain(self) -> bool {
        matches!(self, Self::SiteLedger | Self::RunLedger | Self::SiteAudit | Self::ServerAudit)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Empty => "an empty file",
            Self::Statement => "a privacy statement",
            Self::SiteLedger => "a site's ledger",
            Self::RunLedger => "the ledger of a run's population",
            Self::SiteAudit => "a site's audit log",
            Self::ServerAudit => "a server's audit log",
            Self::Events => "the events of a run, which are no chain",
            Self::Json => "an object of JSON",
            Self::Model => "a model",
            Self::Plan => "a plan",
            Self::Site => "a site's settings",
            Self::Server => "a server's settings",
            Self::Policy => "a site's policy",
            Self::Table => "a table",
            Self::Certificate => "a certificate or key",
            Self::Invite => "an invite",
            Self::Database => "an SQLite database",
            Self::Page => "a page or picture",
            Self::Archive => "a packed file",
        }
    }

    /// The command that reads it, if there is one.
    fn reader(self, shown: &str) -> Option<String> {
        let command = match self {
            Self::Statement => "privacy verify",
            Self::SiteLedger | Self::RunLedger | Self::SiteAudit | Self::ServerAudit => "audit verify",
            Self::Model => "model verify",
            Self::Plan | Self::Site | Self::Server | Self::Policy => "check",
            Self::Invite => return Some("`consortia site join INVITE` takes its text".to_owned()),
            Self::Database => {
                return Some("`consortia audit verify FOLDER` reads the folder of its server".to_owned());
            }
            Self::Table => return Some("it is the `data` of a site or simulation".to_owned()),
            Self::Empty | Self::Events | Self::Json | Self::Certificate | Self::Page | Self::Archive => {
                return None;
            }
        };
        Some(format!("`consortia {command} {}` reads it", quoted(shown)))
    }

    /// The failure of a command that wanted `wanted` and got this.
    pub(super) fn is_not(self, path: &Path, wanted: &str) -> Failure {
        let shown = path.display().to_string();
        let reader = self.reader(&shown).map_or_else(String::new, |reader| format!("; {reader}"));
        Failure::new(
            Kind::Configuration,
            format!("{shown}: this is {}, and not {wanted}{reader}", self.name()),
        )
    }
}

/// Where a file could not be read as what was `wanted`: what it is, when that is something else; else `failure`.
pub(super) fn or_what_it_is(path: &Path, own: &[FileKind], wanted: &str, failure: Failure) -> Failure {
    match FileKind::of(path) {
        Some(kind) if !own.contains(&kind) => kind.is_not(path, wanted),
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use privacy::chain::Chain;
    use serde_json::json;

    use super::*;

    fn line(record: &Value) -> String {
        serde_json::to_string(&Chain::new().append(record)).unwrap() + "\n"
    }

    #[test]
    fn files_are_told_by_what_they_begin_with_and_each_has_its_command() {
        let audit = line(&json!({ "version": 1, "at_micros": 1, "event": "started" }));
        let log = line(&json!({ "event": "started", "time": 1 }));
        let ledger = line(&json!({ "version": 1, "training": {} }));
        let refused = json!({ "refused": { "run": "a", "round": 1, "charge": { "noise_multiplier": 1.0 }, "releases": 1, "epsilon": 1.0 } });
        let model = [&9u64.to_le_bytes()[..], b"{\"a\": 1}  "].concat();
        let cases: Vec<(&[u8], FileKind, &str)> = vec![
            (b"", FileKind::Empty, ""),
            (audit.as_bytes(), FileKind::SiteAudit, "audit verify"),
            (log.as_bytes(), FileKind::ServerAudit, "audit verify"),
            (ledger.as_bytes(), FileKind::SiteLedger, "audit verify"),
            (b"{\"event\":\"round\"}\n{\"event\":\"end\"}\n", FileKind::Events, ""),
            (b"{\n \"version\": 2,\n \"claims\": []\n}\n", FileKind::Statement, "privacy verify"),
            (b"{\"state\": 1}", FileKind::Json, ""),
            (&model, FileKind::Model, "model verify"),
            (b"# a plan\nmodel = \"a\"\nrounds = 3\n", FileKind::Plan, "check"),
            (b"identity = \"i\"\n", FileKind::Site, "check"),
            (b"listen = \"127.0.0.1:0\"\n", FileKind::Server, "check"),
            (b"tasks = [\"train\"]\n", FileKind::Policy, "check"),
            (b"a;b\n1;2\n", FileKind::Table, "data"),
            (b"-----BEGIN CERTIFICATE-----\n", FileKind::Certificate, ""),
            (b"consortia-invite-abc", FileKind::Invite, "site join"),
            (b"<!doctype html>", FileKind::Page, ""),
            (b"SQLite format 3\0", FileKind::Database, "folder"),
        ];
        for (bytes, kind, command) in cases {
            let said = kind.is_not(Path::new("x"), "that").message().to_owned();
            assert_eq!(FileKind::of_bytes(bytes), Some(kind), "{}", String::from_utf8_lossy(bytes));
            assert!(said.contains(command) && said.contains(kind.name()), "{said}");
        }
        assert!(FileKind::of_bytes(line(&refused).as_bytes()).is_some_and(FileKind::is_chain));
        // A book whose first line was changed stays one for the command that finds that out.
        let changed = audit.replacen("\"sequence\"", "\"sequenze\"", 1) + &audit;
        assert_eq!(FileKind::of_bytes(changed.as_bytes()), None);
        for mistake in [
            "tasks = [\"train\"]\nmodel = \"any\"\nrounds = 3\n",
            "identity = \"i\"\ntasks = []\n",
            "model = \"any\"\n",
            "# a, b\n# c, d\nrounds = \n",
            "a = [1, 2\nb = [3, 4\n",
            "[a,b]\n[c,d]\n",
        ] {
            assert_eq!(FileKind::of_bytes(mistake.as_bytes()), None, "{mistake}");
        }
        for unknown in [&b"\xff\xfe\x00"[..], b"some words", b"{\"sequence\":0,\"hash\":\"\"}"] {
            assert_eq!(FileKind::of_bytes(unknown), None);
        }
    }
}
