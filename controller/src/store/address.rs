//! Where the database is, and how each kind of database is set up for us.

use std::path::Path;
use std::str::FromStr;
use std::sync::Once;
use std::time::Duration;

use sqlx::any::AnyConnectOptions;

use super::loan::STATEMENT_WITHIN;

/// Another transaction's lock is waited for this long: less than a statement's own deadline.
const LOCK_WITHIN: Duration = Duration::from_secs(2);

/// PostgreSQL ends a transaction whose controller says nothing for this long. A controller that is stopped in the middle
/// of one holds the lease's row locked, and a standby could not take the lease: it has to be free before the lease (4 s)
/// is over.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(1);

/// PostgreSQL gives a connection up whose other end has been silent for 2 s and then leaves 3 probes, 1 s apart,
/// unanswered: as late as a statement's own deadline on this side.
const KEEPALIVE: &str =
    "SET tcp_keepalives_idle = 2; SET tcp_keepalives_interval = 1; SET tcp_keepalives_count = 3;";

/// Which database it is. Only this file and the folders of migrations know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    Sqlite,
    Postgres,
}

/// `sqlite:PATH`, or `postgres://USER@HOST[:PORT]/DATABASE` with the parameters of libpq (`sslmode`, `sslrootcert`, …).
#[derive(Debug, Clone)]
pub struct Address {
    pub(super) backend: Backend,
    /// As it was given; it holds no secret.
    text: String,
    options: AnyConnectOptions,
}

/// What is wrong with an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("expected sqlite:PATH or postgres://USER@HOST/DATABASE")]
    Kind,
    #[error("holds a password; secrets come as files: name one in store.password_file")]
    Password,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let options = AnyConnectOptions::from_str(text).map_err(|_| AddressError::Kind)?;
        let backend = match options.database_url.scheme() {
            "sqlite" => Backend::Sqlite,
            "postgres" | "postgresql" => Backend::Postgres,
            _ => return Err(AddressError::Kind),
        };
        let has_password = options.database_url.password().is_some()
            || options.database_url.query_pairs().any(|(name, _)| name == "password");
        if has_password {
            return Err(AddressError::Password);
        }
        Ok(Self { backend, text: text.to_owned(), options }.with_defaults())
    }
}

impl Address {
    /// The SQLite file at `path`.
    ///
    /// # Errors
    /// When the path is no text.
    pub fn file(path: &Path) -> Result<Self, AddressError> {
        let path = path.to_str().ok_or(AddressError::Kind)?;
        // As in a url: these end the path, or begin an escape.
        let path = path.replace('%', "%25").replace('?', "%3F").replace('#', "%23");
        format!("sqlite:{path}").parse()
    }

    /// Whether a password is of any use there.
    #[must_use]
    pub fn takes_password(&self) -> bool {
        self.backend == Backend::Postgres
    }

    /// The options to connect with. They hold the password.
    pub(super) fn options(&self, password: Option<&str>) -> AnyConnectOptions {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        let mut options = self.options.clone();
        if let (Backend::Postgres, Some(password)) = (self.backend, password) {
            // As a parameter: it is escaped there, whatever it holds.
            options.database_url.query_pairs_mut().append_pair("password", password);
        }
        options
    }

    fn with_defaults(mut self) -> Self {
        let (name, value) = match self.backend {
            Backend::Sqlite => ("mode", "rwc"),
            Backend::Postgres => ("application_name", "cic-controller"),
        };
        let url = &mut self.options.database_url;
        if !url.query_pairs().any(|(given, _)| given == name) {
            url.query_pairs_mut().append_pair(name, value);
        }
        self
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Backend {
    /// What every new connection is told first.
    pub(super) fn session(self) -> String {
        let lock_ms = LOCK_WITHIN.as_millis();
        match self {
            // An operation that was acknowledged survives a power cut; readers go on while the writer commits.
            Self::Sqlite => format!(
                "PRAGMA busy_timeout = {lock_ms}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
                 PRAGMA foreign_keys = ON"
            ),
            Self::Postgres => format!(
                "SET statement_timeout = {}; SET lock_timeout = {lock_ms};
                 SET idle_in_transaction_session_timeout = {}; {KEEPALIVE}",
                STATEMENT_WITHIN.as_millis(),
                IDLE_IN_TRANSACTION.as_millis(),
            ),
        }
    }

    /// Begins a transaction whose reads are all of one moment.
    pub(super) fn begin_reading(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN",
            Self::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_of_two_kinds_and_holds_no_password() {
        for (text, expected) in [
            ("sqlite:/var/lib/cic/controller.db", Ok(Backend::Sqlite)),
            ("sqlite:controller.db", Ok(Backend::Sqlite)),
            ("postgres://cic@db.example:5432/cic?sslmode=verify-full", Ok(Backend::Postgres)),
            ("postgresql:///cic?host=/run/postgresql", Ok(Backend::Postgres)),
            ("postgres://cic:secret@db.example/cic", Err(AddressError::Password)),
            ("postgres://cic@db.example/cic?password=secret", Err(AddressError::Password)),
            ("mysql://db.example/cic", Err(AddressError::Kind)),
            ("controller.db", Err(AddressError::Kind)),
        ] {
            assert_eq!(text.parse::<Address>().map(|address| address.backend), expected, "{text}");
        }
    }

    #[test]
    fn a_password_of_any_letters_reaches_the_driver() {
        let address: Address = "postgres://cic@db.example/cic".parse().expect("right");
        let options = address.options(Some("a&b=c% d#é"));
        let given = options.database_url.query_pairs().find(|(name, _)| name == "password");
        assert_eq!(given.map(|(_, value)| value.into_owned()).as_deref(), Some("a&b=c% d#é"));
        assert!(!format!("{address:?} {address}").contains("a&b"));
    }
}
