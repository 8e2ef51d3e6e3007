//! The rows of a stopped server, from SQLite into an empty PostgreSQL database: all of them or none; and a copy of them the other
//! way, while servers work.
//!
//! What is copied is counted, and every ledger is replayed from what the new database gives back, before anything counts. The old
//! file is renamed, so that no server goes on with it by mistake: two states that both pay from one budget pay twice. From before the first
//! row is copied until then a file says that the state is being moved, and no server starts with the old one: whoever was cut off
//! moves it again, and a copy that had been made by then is recognised.

use std::path::{Path, PathBuf};
use std::time::Duration;

use privacy::ledger::{Ledger, LedgerError};
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, AnyPool, AssertSqlSafe, Row, Transaction};

use super::crash;
use super::leading::{MIGRATED, MIGRATING};
use super::lease::Fence;
use super::{Postgres, Store, StoreError, database, ledger};

/// Rows that are read at a time.
const ROWS: i64 = 500;
/// How often somebody else's lease is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// The tables, in SQLite's words. Whatever refers to another table refers to `runs`.
const TABLES: &str = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' \
                      ORDER BY name <> 'runs', rowid";

/// Why the rows were not copied. The new database is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// One of the two databases.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is something already.
    #[error(
        "{database} is not empty: its table {table} has {rows} rows; name a database of which nothing would be lost"
    )]
    NotEmpty {
        /// The new database.
        database: String,
        /// One of its tables.
        table: String,
        /// What it holds.
        rows: i64,
    },
    /// A server works there.
    #[error("a server holds the lease of {0} and renews it; stop it first, and give the command again")]
    Held(String),
    /// Not everything arrived.
    #[error("the table {table} has {there} rows where {here} were copied; nothing was kept")]
    Count {
        /// The table.
        table: String,
        /// In SQLite.
        here: i64,
        /// In PostgreSQL.
        there: i64,
    },
    /// A ledger cannot be replayed.
    #[error("the ledger of `{population}` as it arrived: {source}; nothing was kept")]
    Ledger {
        /// The population.
        population: String,
        /// What is wrong.
        source: LedgerError,
    },
    /// A ledger arrived as another one.
    #[error("the ledger of `{0}` ends with another hash than here; nothing was kept")]
    Head(String),
    /// All is copied, and the old file is still there.
    #[error("everything was copied, but {} could not be renamed ({source}); rename or remove it yourself before a server starts", path.display())]
    Rename {
        /// The old database.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

impl From<sqlx::Error> for TransferError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// What was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transferred {
    /// Rows of each table.
    pub rows: Vec<(String, i64)>,
    /// Populations whose ledger was replayed.
    pub ledgers: Vec<String>,
    /// The old database, under its new name.
    pub kept: PathBuf,
}

/// A column of the new database.
struct Column {
    name: String,
    kind: String,
    counts: bool,
}

impl Store {
    /// Copies the rows of the stopped server in `dir` into `target`, which must be empty. Files of tensors stay where they are.
    ///
    /// # Errors
    /// [`TransferError`]; the new database holds nothing then, and the old one is untouched, but for [`TransferError::Rename`].
    pub async fn transfer(dir: &Path, target: &Postgres) -> Result<Transferred, TransferError> {
        if !dir.join("state.sqlite").exists() {
            return Err(StoreError::Empty(dir.join("state.sqlite").display().to_string()).into());
        }
        // Nobody else works on either of them meanwhile.
        let source = Self::open_to_move(dir).await?;
        let (path, kept, mark) = (dir.join("state.sqlite"), dir.join(MIGRATED), dir.join(MIGRATING));
        let pool = target.connect().await?;
        let fence = lease(&pool, target).await?.ok_or_else(|| TransferError::Held(target.to_string()))?;
        let was_cut_off = mark.exists();
        let copied = async {
            let marked = std::fs::write(&mark, format!("being moved to {target}\n"));
            let marked = marked.and_then(|()| std::fs::File::open(&mark)?.sync_all());
            marked.map_err(|source| StoreError::File { path: mark.clone(), source })?;
            let mut transaction = pool.begin().await?;
            fence.check(&mut transaction).await?;
            database::migrate(&mut transaction).await?;
            let rows = match was_cut_off {
                true => same(&source.pool, &mut transaction).await?,
                false => None,
            };
            let rows = match rows {
                Some(rows) => rows,
                None => copy(&source.pool, &mut transaction, target).await?,
            };
            let ledgers = compare(&source, &mut transaction).await?;
            crash::point("moving");
            transaction.commit().await?;
            crash::point("moved");
            Ok((rows, ledgers))
        };
        let copied: Result<_, TransferError> = copied.await;
        // Without it a server waits a little longer.
        let _ = fence.release(&pool).await;
        pool.close().await;
        source.close().await;
        let (rows, ledgers) = match copied {
            Ok(copied) => copied,
            Err(error) => {
                // A database that was refused has nothing of this state, unless an answer was lost now or before.
                if !was_cut_off && !matches!(error, TransferError::Store(_)) {
                    let _ = std::fs::remove_file(&mark);
                }
                return Err(error);
            }
        };
        std::fs::rename(&path, &kept).map_err(|source| TransferError::Rename { path, source })?;
        // Without state.sqlite it says nothing any more.
        let _ = std::fs::remove_file(mark);
        Ok(Transferred { rows, ledgers, kept })
    }
}

/// The lease. A move that was killed has left its own, which nobody renews: its time is waited for.
async fn lease(pool: &AnyPool, target: &Postgres) -> Result<Option<Fence>, StoreError> {
    let waited = async {
        loop {
            if let Some(fence) = Fence::take(pool, target).await? {
                return Ok(fence);
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(target.lease() + 2 * LOOK, waited).await.ok().transpose()
}

/// The rows of each table, where the new database has as many of each and the same version: an earlier attempt copied them.
async fn same(
    source: &AnyPool,
    target: &mut Transaction<'_, Any>,
) -> Result<Option<Vec<(String, i64)>>, TransferError> {
    let version = "SELECT COALESCE(MAX(version), 0) FROM state_version";
    let here: i64 = sqlx::query(version).fetch_one(source).await?.try_get(0)?;
    let there: i64 = sqlx::query(version).fetch_one(&mut **target).await?.try_get(0)?;
    let mut done = Vec::new();
    for row in sqlx::query(TABLES).fetch_all(source).await? {
        let table: String = row.try_get(0)?;
        let sql = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        let rows: i64 = sqlx::query(sql).fetch_one(source).await?.try_get(0)?;
        if here != there || rows != count(target, &table).await? {
            return Ok(None);
        }
        done.push((table, rows));
    }
    Ok(Some(done))
}

/// Copies every table and says how many rows each has.
async fn copy(
    source: &AnyPool,
    target: &mut Transaction<'_, Any>,
    place: &Postgres,
) -> Result<Vec<(String, i64)>, TransferError> {
    let mut done = Vec::new();
    for row in sqlx::query(TABLES).fetch_all(source).await? {
        let table: String = row.try_get(0)?;
        let rows = count(target, &table).await?;
        if rows > 0 {
            return Err(TransferError::NotEmpty { database: place.to_string(), table, rows });
        }
        let columns = columns(target, &table).await?;
        let here = copy_table(source, target, &table, &columns).await?;
        let there = count(target, &table).await?;
        if here != there {
            return Err(TransferError::Count { table, here, there });
        }
        for column in columns.iter().filter(|column| column.counts) {
            let name = &column.name;
            let go_on = format!(
                "SELECT setval(pg_get_serial_sequence('{table}', '{name}'), (SELECT max({name}) FROM {table}))"
            );
            sqlx::query(AssertSqlSafe(go_on)).execute(&mut **target).await?;
        }
        done.push((table, here));
    }
    Ok(done)
}

/// Copies the rows of a PostgreSQL database, as they are at one moment, into a new SQLite file in `to`.
pub(super) async fn copy_out(source: &AnyPool, to: &Path) -> Result<(), StoreError> {
    let pool = database::sqlite(to, true).await?;
    let mut target = pool.begin().await?;
    database::migrate(&mut target).await?;
    let mut source = source.begin().await?;
    let moment = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY";
    sqlx::query(moment).execute(&mut *source).await?;
    for row in sqlx::query(TABLES).fetch_all(&mut *target).await? {
        let table: String = row.try_get(0)?;
        let columns = columns(&mut source, &table).await?;
        let (names, insert) = statement(&table, &columns);
        let declare = format!("DECLARE rest NO SCROLL CURSOR FOR SELECT {names} FROM {table}");
        sqlx::query(AssertSqlSafe(declare)).execute(&mut *source).await?;
        let fetch = format!("FETCH {ROWS} FROM rest");
        loop {
            let sql = sqlx::query(AssertSqlSafe(fetch.clone())).persistent(false);
            let found = sql.fetch_all(&mut *source).await?;
            if found.is_empty() {
                break;
            }
            put(&mut target, &insert, &columns, &found).await?;
        }
        sqlx::query("CLOSE rest").execute(&mut *source).await?;
    }
    target.commit().await?;
    pool.close().await;
    Ok(())
}

async fn count(target: &mut Transaction<'_, Any>, table: &str) -> Result<i64, TransferError> {
    let sql = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
    Ok(sqlx::query(sql).fetch_one(&mut **target).await?.try_get(0)?)
}

async fn columns(target: &mut Transaction<'_, Any>, table: &str) -> Result<Vec<Column>, StoreError> {
    let sql = "SELECT CAST(column_name AS TEXT) AS name, CAST(data_type AS TEXT) AS kind, is_identity = 'YES' AS counts \
               FROM information_schema.columns \
               WHERE table_name = $1 AND table_schema = ANY (current_schemas(false)) ORDER BY ordinal_position";
    let found = sqlx::query(sql).bind(table).fetch_all(&mut **target).await?;
    let column = |row: &AnyRow| {
        Ok(Column { name: row.try_get("name")?, kind: row.try_get("kind")?, counts: row.try_get("counts")? })
    };
    found.iter().map(column).collect()
}

/// Copies one table, some rows at a time, and says how many there were.
async fn copy_table(
    source: &AnyPool,
    target: &mut Transaction<'_, Any>,
    table: &str,
    columns: &[Column],
) -> Result<i64, TransferError> {
    let (names, insert) = statement(table, columns);
    let select =
        format!("SELECT rowid AS place, {names} FROM {table} WHERE rowid > $1 ORDER BY rowid LIMIT {ROWS}");
    let (mut last, mut rows) = (i64::MIN, 0);
    loop {
        let found = sqlx::query(AssertSqlSafe(select.clone())).bind(last).fetch_all(source).await?;
        let Some(end) = found.last() else { return Ok(rows) };
        last = end.try_get("place")?;
        put(target, &insert, columns, &found).await?;
        rows += i64::try_from(found.len()).unwrap_or(ROWS);
    }
}

/// The names of the columns, and the statement that adds a row.
fn statement(table: &str, columns: &[Column]) -> (String, String) {
    let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
    let names = names.join(", ");
    let places: Vec<_> = (1..=columns.len()).map(|place| format!("${place}")).collect();
    let insert = format!("INSERT INTO {table} ({names}) VALUES ({})", places.join(", "));
    (names, insert)
}

/// Adds rows.
async fn put(
    target: &mut Transaction<'_, Any>,
    insert: &str,
    columns: &[Column],
    found: &[AnyRow],
) -> Result<(), StoreError> {
    for row in found {
        // Not kept prepared: a missing number has another type there than one that is given.
        let mut query = sqlx::query(AssertSqlSafe(insert.to_owned())).persistent(false);
        for column in columns {
            query = bind(query, row, column)?;
        }
        query.execute(&mut **target).await?;
    }
    Ok(())
}

/// Binds a row's value with the type of the new database's column.
fn bind<'q>(
    query: Query<'q, Any, AnyArguments>,
    row: &AnyRow,
    column: &Column,
) -> Result<Query<'q, Any, AnyArguments>, StoreError> {
    let name = column.name.as_str();
    Ok(match column.kind.as_str() {
        "bigint" => query.bind(row.try_get::<Option<i64>, _>(name)?),
        "double precision" => query.bind(row.try_get::<Option<f64>, _>(name)?),
        "bytea" => query.bind(row.try_get::<Option<Vec<u8>>, _>(name)?),
        // A type that no step of the schema uses would be refused by the database.
        _ => query.bind(row.try_get::<Option<String>, _>(name)?),
    })
}

/// Replays every ledger from the new database, and compares its end with the old one's.
async fn compare(source: &Store, target: &mut Transaction<'_, Any>) -> Result<Vec<String>, TransferError> {
    let populations = source.populations().await?;
    for population in &populations {
        let replayed = |links: &[privacy::chain::Link]| {
            let wrong = |source| TransferError::Ledger { population: population.clone(), source };
            Ledger::replay(links).map_err(wrong)
        };
        let here = replayed(&source.ledger(population).await?)?;
        let there = replayed(&ledger::records(target, population).await?)?;
        if here.head() != there.head() {
            return Err(TransferError::Head(population.clone()));
        }
    }
    Ok(populations)
}

#[cfg(unix)]
#[cfg(test)]
mod tests;
