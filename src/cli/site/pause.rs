//! `consortia site pause` and `resume`: the site's own pause, which always wins.
//!
//! It is a file in the state folder, so that it survives a restart and needs nobody to be running. The running site looks for
//! it at every task and each second.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ::client::{Audit, AuditEvent, Pause};
use clap::Args;
use serde_json::{Value, json};

use super::super::failure::{Failure, Kind, OrFail};
use super::super::folder::SiteFile;
use super::super::global::Global;
use super::super::members::moment;
use super::super::output::Format;
use super::begun::with_path;

#[derive(Debug, Args)]
pub(in crate::cli) struct PauseArgs {
    /// The site's file.
    #[arg(default_value = "site.toml")]
    file: PathBuf,
}

/// How often a running site looks.
const LOOK: Duration = Duration::from_secs(1);

fn path(state: &Path) -> PathBuf {
    state.join("paused")
}

/// Whether the site has paused. Where that cannot be known, it has.
pub(super) fn is_paused(state: &Path) -> bool {
    path(state).try_exists().unwrap_or(true)
}

/// The user of this process, as far as the system says.
pub(super) fn who() -> String {
    let named = ["SUDO_USER", "USER", "LOGNAME", "USERNAME"].into_iter();
    let name = named.filter_map(|name| std::env::var(name).ok()).find(|name| !name.is_empty());
    name.or_else(user_number).unwrap_or_else(|| "somebody".to_owned())
}

#[cfg(target_os = "linux")]
fn user_number() -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    Some(format!("user {}", std::fs::metadata("/proc/self").ok()?.uid()))
}

#[cfg(not(target_os = "linux"))]
fn user_number() -> Option<String> {
    None
}

pub(in crate::cli) fn pause(args: &PauseArgs, global: &Global) -> Result<(), Failure> {
    let file = SiteFile::read(&args.file)?;
    let (path, by) = (path(&file.state), who());
    if path.exists() {
        global.format.say(
            || format!("the site is paused already ({})", told(&read(&file.state))),
            || json!({ "paused": true, "changed": false }),
        );
        return Ok(());
    }
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let record = json!({ "by": by, "since": since });
    // Beside and renamed: a running site that looks in between must not read half of it.
    let beside = path.with_extension("new");
    let written =
        std::fs::write(&beside, format!("{record}\n")).and_then(|()| std::fs::rename(&beside, &path));
    written.or_fail(Kind::Configuration, path.display())?;
    let told = "the site is paused: the running task is stopped and every task is declined, also after a restart; `consortia site resume` ends the pause";
    global.format.say(|| with_path(told, &file), || json!({ "paused": true, "changed": true, "by": by }));
    Ok(())
}

pub(in crate::cli) fn resume(args: &PauseArgs, global: &Global) -> Result<(), Failure> {
    let file = SiteFile::read(&args.file)?;
    let path = path(&file.state);
    let changed = match std::fs::remove_file(&path) {
        Ok(()) => true,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(error).or_fail(Kind::Configuration, path.display()),
    };
    global.format.say(
        || if changed { "the site takes part again" } else { "the site was not paused" }.to_owned(),
        || json!({ "paused": false, "changed": changed }),
    );
    Ok(())
}

/// Who paused, and since when.
fn read(state: &Path) -> Value {
    let text = std::fs::read_to_string(path(state)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

fn told(record: &Value) -> String {
    let by = record["by"].as_str().unwrap_or("somebody");
    record["since"].as_u64().map_or_else(|| format!("by {by}"), |since| format!("by {by}, {}", moment(since)))
}

/// The pause of a site that runs, which follows the file.
pub(super) fn following(state: &Path) -> Pause {
    let state = state.to_owned();
    Pause::new(move || is_paused(&state))
}

/// Looks each second for as long as it is polled; changes are told, and written into the audit log.
pub(super) async fn watch(
    file: &SiteFile,
    pause: &Pause,
    audit: Option<Audit>,
    format: Format,
    tell: impl Fn(bool),
) {
    let mut was = false;
    let mut ticks = tokio::time::interval(LOOK);
    loop {
        ticks.tick().await;
        let holds = pause.look();
        if holds == was {
            continue;
        }
        was = holds;
        let record = read(&file.state);
        let by = record["by"].as_str().unwrap_or("somebody").to_owned();
        let event = if holds { AuditEvent::Paused { by } } else { AuditEvent::Resumed };
        if let Some(audit) = audit.clone() {
            let sealed = tokio::task::spawn_blocking(move || audit.seal(event)).await;
            if let Ok(Err(error)) = sealed {
                tracing::error!("{error}");
            }
        }
        tell(holds);
        let line = if holds {
            let line =
                format!("paused ({}): every task is declined until `consortia site resume`", told(&record));
            with_path(&line, file)
        } else {
            "resumed: the site takes part again".to_owned()
        };
        let event = if holds { "paused" } else { "resumed" };
        format.say(|| line.clone(), || json!({ "event": event, "message": line }));
    }
}
