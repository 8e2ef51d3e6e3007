//! The audit logs of a state, beside the ends of them that its database has noted, and beside a database that is not there.

use std::path::Path;

use privacy::chain::segments::{KnownHead, closed_in, logs_in};
use sqlx::Row as _;

use super::super::{Store, StoreError, database};
use super::BooksError;
use crate::net::store::audit::witness::Witness;

impl Store {
    /// Whether each audit log is at least as long as the database knows, and has the same records. A server with SQLite must have its
    /// `own`; one of several that share a database may have lost it with its machine.
    pub(super) async fn check_heads(
        &self,
        dir: &Path,
        own: &Path,
        witness: &Witness,
    ) -> Result<(), StoreError> {
        let is_alone = !database::is_postgres(&*self.pool.acquire().await?);
        let own = own.file_name().and_then(|name| name.to_str()).filter(|_| is_alone);
        for row in sqlx::query("SELECT log, records, head FROM audit_heads").fetch_all(&self.pool).await? {
            let (name, head): (String, String) = (row.try_get("log")?, row.try_get("head")?);
            let known = row.try_get::<i64, _>("records")?.cast_unsigned();
            let fault = |found: String| BooksError::Log { log: dir.join(&name), known, found };
            let Some(log) = witness.logs.iter().find(|log| log.name == name) else {
                if own == Some(name.as_str()) {
                    return Err(fault("the file is not there".to_owned()).into());
                }
                continue;
            };
            match log.head_at(known)? {
                KnownHead::Beyond => return Err(fault(format!("the file has {}", log.records())).into()),
                KnownHead::Is(hash) if known > 0 && hash.to_string() != head => {
                    return Err(fault("the file has other ones".to_owned()).into());
                }
                // What a segment has that was moved away is for `audit verify` to miss: the newest one goes on from it.
                KnownHead::Is(_) | KnownHead::Elsewhere => {}
            }
        }
        Ok(())
    }
}

/// Refuses to make a new database beside an audit log that remembers one.
pub(in crate::net::store) fn miss_database(dir: &Path) -> Result<(), StoreError> {
    let witness = Witness::read_newest(dir)?;
    if let Some(log) = witness.logs.iter().find(|log| log.records() > 0) {
        return Err(BooksError::NoDatabase(dir.join(&log.name)).into());
    }
    let failed = |source| StoreError::File { path: dir.to_owned(), source };
    for log in logs_in(dir).map_err(failed)? {
        if let Some(closed) = closed_in(dir, &log).map_err(failed)?.pop() {
            return Err(BooksError::NoDatabase(closed.path).into());
        }
    }
    miss_rows_of_models(&dir.join("blobs"))
}

/// A folder with models is evidence, too, where database and log are both gone.
fn miss_rows_of_models(blobs: &Path) -> Result<(), StoreError> {
    let Ok(entries) = std::fs::read_dir(blobs) else { return Ok(()) };
    let is_model =
        |entry: &std::fs::DirEntry| entry.path().extension().is_some_and(|end| end == "safetensors");
    match entries.flatten().find(is_model) {
        Some(model) => Err(BooksError::NoDatabase(model.path()).into()),
        None => Ok(()),
    }
}
