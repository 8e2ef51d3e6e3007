//! Where the store's tests keep their state: the same tests run in SQLite and in PostgreSQL.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::{Database, Postgres, Store, StoreError};

#[path = "../../../../../tests/support/postgres.rs"]
pub(super) mod postgres;

/// The least that a lease may live.
pub(super) const LEASE: Duration = Duration::from_secs(1);

/// A folder and a database, both gone at the end of the test.
pub(super) struct Place {
    dir: TempDir,
    url: Option<String>,
    server: Option<Arc<postgres::Postgres>>,
}

impl Place {
    /// In PostgreSQL for the tests of the module that is named so; `None` where it is not installed.
    pub(super) fn of(module: &str) -> Option<Self> {
        if module.ends_with("tests_in_postgres") { Self::in_postgres() } else { Some(Self::in_sqlite()) }
    }

    pub(super) fn in_sqlite() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), url: None, server: None }
    }

    pub(super) fn in_postgres() -> Option<Self> {
        let server = postgres::Postgres::shared()?;
        let url = Some(server.database());
        Some(Self { dir: tempfile::tempdir().unwrap(), url, server: Some(server) })
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The database as a replica of this name has it.
    pub(super) fn database(&self, replica: &str) -> Database {
        let Some(url) = &self.url else { return Database::Sqlite };
        Database::Postgres(Postgres::new(url, None, replica).unwrap().with_lease(LEASE).unwrap())
    }

    pub(super) async fn try_open(&self) -> Result<Store, StoreError> {
        Store::lead(self.path(), &self.database("a")).await
    }

    pub(super) async fn open(&self) -> Store {
        for _ in 0..100 {
            match self.try_open().await {
                // A program that another test starts has all files of this one for an instant, and with them the lock.
                Err(StoreError::Locked(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                opened => return opened.unwrap(),
            }
        }
        self.try_open().await.unwrap()
    }

    /// The folder of PostgreSQL's socket.
    pub(super) fn socket(&self) -> &str {
        let (_, folder) = self.url.as_ref().unwrap().split_once("?host=").unwrap();
        folder
    }

    /// What a statement returns in PostgreSQL.
    pub(super) fn query(&self, sql: &str) -> String {
        let (server, url) = (self.server.as_ref().unwrap(), self.url.as_ref().unwrap());
        server.query(url, sql)
    }
}
