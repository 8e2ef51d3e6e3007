//! Where a server's state is: `[state]` of `server.toml`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use learning::{SourceError, expand};
use serde::{Deserialize, Serialize};
use server::net::{Database, Postgres};

/// `[state]` of `server.toml`.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StateFile {
    /// The database's address, which may hold a password.
    #[serde(skip_serializing)]
    database: Option<String>,
    /// A file whose first line is the password.
    #[serde(skip_serializing_if = "Option::is_none")]
    password_file: Option<PathBuf>,
    /// This server's name among its replicas; by default the machine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<String>,
    /// After how long without a sign of life a server's work is taken over.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_seconds: Option<u64>,
}

/// Without the address.
impl fmt::Debug for StateFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { password_file, replica, lease_seconds, .. } = self;
        write!(f, "StateFile({password_file:?}, {replica:?}, {lease_seconds:?})")
    }
}

impl StateFile {
    /// The database that is meant, for the replica of this name if one is given. Paths start at `base`.
    pub(super) fn database(&self, base: &Path, replica: Option<&str>) -> Result<Database, String> {
        let Some(typed) = &self.database else {
            let alone =
                self.password_file.is_none() && self.replica.is_none() && self.lease_seconds.is_none();
            if alone && replica.is_none() {
                return Ok(Database::Sqlite);
            }
            return Err(
                "password_file, replica and lease_seconds belong to `database = \"postgres://...\"`, \
                        and there is none"
                    .to_owned(),
            );
        };
        let password = self.password_file.as_ref().map(|path| base.join(path));
        let password = password.as_deref().map(password_in).transpose()?;
        let replica = replica.or(self.replica.as_deref()).map_or_else(machine, str::to_owned);
        let postgres = postgres(typed, password.as_deref(), &replica)?;
        let postgres = match self.lease_seconds {
            Some(seconds) => {
                postgres.with_lease(Duration::from_secs(seconds)).map_err(|error| error.to_string())?
            }
            None => postgres,
        };
        Ok(Database::Postgres(postgres))
    }
}

/// The database at an address with `${NAME}` in it. Nothing of the address is ever shown but what [`Postgres`] shows.
pub(super) fn postgres(typed: &str, password: Option<&str>, replica: &str) -> Result<Postgres, String> {
    let url = expand(typed, &|name| std::env::var(name).ok()).map_err(|error| match error {
        SourceError::Unset { name, .. } => {
            format!("the database's address needs the environment variable {name}, which is not set")
        }
        _ => "the database's address has `${` without `}`; write `${NAME}`".to_owned(),
    })?;
    Postgres::new(&url, password, replica).map_err(|error| error.to_string())
}

pub(super) fn password_in(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// The name of this machine, as a replica may be called.
pub(super) fn machine() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name.or_else(|| std::env::var("COMPUTERNAME").ok()).unwrap_or_default();
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || letter == '.' { letter } else { '-' };
    let name: String = name.trim().to_ascii_lowercase().chars().map(plain).take(64).collect();
    if name.is_empty() { "server".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> StateFile {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_state_is_in_sqlite_unless_a_database_is_named_and_nothing_shows_its_password() {
        assert!(matches!(of("").database(Path::new("."), None), Ok(Database::Sqlite)));
        let lonely = of("replica = \"a\"").database(Path::new("."), None).unwrap_err();
        assert!(lonely.contains("there is none"), "{lonely}");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "s3cret\nmore").unwrap();
        let text =
            "database = \"postgres://ada:0ther@db/wards\"\npassword_file = \"secret\"\nlease_seconds = 3";
        let file = of(text);
        let Ok(Database::Postgres(there)) = file.database(dir.path(), Some("b")) else {
            panic!("not PostgreSQL")
        };
        assert_eq!((there.to_string().as_str(), there.replica()), ("postgres://ada@db/wards", "b"));
        let shown = format!("{file:?} {there:?} {}", serde_json::to_string(&file).unwrap());
        assert!(!shown.contains("s3cret") && !shown.contains("0ther"), "{shown}");
        let unset = of("database = \"postgres://ada:0ther@${NOT_SET_ANYWHERE}/wards\"");
        let error = unset.database(dir.path(), None).unwrap_err();
        assert!(error.contains("NOT_SET_ANYWHERE") && !error.contains("0ther"), "{error}");
        let short = of("database = \"postgres://db/wards\"\nlease_seconds = 0").database(dir.path(), None);
        assert!(short.unwrap_err().contains("1 second"));
    }
}
