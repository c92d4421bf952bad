//! `cic-controller backup` and `cic-controller restore`.

use std::fmt::Write as _;

use cic_common::tls::CertificateAuthority;
use cic_common::tls::authority::AuthorityError;

use super::name::{NameError, SnapshotName};
use super::restore::Nothing;
use super::save::{Backup, BackupError};
use super::snapshot::FleetMark;
use crate::config::Config;
use crate::store::{Database, LoadError, StoreError};

/// Why a command did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("there is no [backup] url in the configuration")]
    NoUrl,
    #[error(
        "the fleet's authority is needed first: copy ca.pem and ca.key of the lost controller into tls.dir"
    )]
    Authority(#[source] AuthorityError),
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error("the store is empty: there is nothing to keep")]
    Empty,
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Nothing(#[from] Nothing),
    #[error(
        "{0}\nWith --force these rows go and the snapshot's take their place; the event log stays as it is."
    )]
    NotEmpty(LoadError),
    #[error("nothing was restored")]
    Load(#[source] LoadError),
    #[error("store cannot be used")]
    Store(#[from] StoreError),
}

/// Takes a snapshot now; says which.
///
/// # Errors
/// [`CommandError`].
pub async fn take(config: &Config) -> Result<String, CommandError> {
    let backup = open(config).await?;
    let taken = backup.take().await;
    backup.database.close().await;
    let saved = taken?.ok_or(CommandError::Empty)?;
    let row = &saved.row;
    let mut text = format!(
        "{}: term {}, {} nodes, {} operations, {} bytes, written and read back",
        row.url, row.term, row.node_count, row.operation_count, row.bytes
    );
    if let Some(cause) = saved.not_removed {
        let _ = write!(text, "\nolder ones could not be removed: {cause}");
    }
    Ok(text)
}

/// Writes the newest snapshot that verifies, or `from`, into the database; says which, and which were skipped.
///
/// # Errors
/// [`CommandError`]; of a database that is not empty and not to be written over, what it would lose.
pub async fn restore(config: &Config, from: Option<&str>, over: bool) -> Result<String, CommandError> {
    let from: Option<SnapshotName> = from.map(last_part).map(str::parse).transpose()?;
    let backup = open(config).await?;
    let chosen = backup.choose(from).await?;
    let loaded = backup.database.load(&chosen.state, &chosen.object, over).await;
    backup.database.close().await;
    let loaded = loaded.map_err(|error| match error {
        LoadError::NotEmpty(_) => CommandError::NotEmpty(error),
        LoadError::Led { .. } | LoadError::Table(_) | LoadError::Row { .. } | LoadError::Store(_) => {
            CommandError::Load(error)
        }
    })?;
    let mut text = String::new();
    for cause in &chosen.skipped {
        let _ = writeln!(text, "skipped {cause}");
    }
    let rows: Vec<String> = loaded.rows.iter().map(|(table, count)| format!("{table} {count}")).collect();
    let _ = write!(text, "restored {}: {}; term {}", chosen.object, rows.join(", "), loaded.term);
    if loaded.kept_events {
        text.push_str("; the event log was not touched");
    }
    Ok(text)
}

async fn open(config: &Config) -> Result<Backup, CommandError> {
    let spec = config.backup.as_ref().ok_or(CommandError::NoUrl)?;
    let authority = CertificateAuthority::load(&config.tls_dir).map_err(CommandError::Authority)?;
    let database = Database::open(&config.store_url, config.store_password.as_deref()).await?;
    database.migrate().await?;
    Ok(Backup::open(&spec.url, spec.keep, FleetMark::of(authority.certificate_pem()), database)?)
}

/// People copy an object's full name.
fn last_part(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}
