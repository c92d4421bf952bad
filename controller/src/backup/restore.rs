//! Finding the snapshot to restore from.

use super::name::SnapshotName;
use super::save::{Backup, FOLDER, OBJECT_BYTES_MAX, OBJECT_WITHIN};
use super::snapshot;
use crate::store::StateCopy;

/// The newest snapshot that verifies, or the one asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// Object and all.
    pub object: String,
    pub state: StateCopy,
    /// Newer ones that do not verify, each with its cause.
    pub skipped: Vec<String>,
}

/// There is none to restore from; each that was looked at with its cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no snapshot in {place} can be used{}", .causes.iter().map(|cause| format!("\n{cause}")).collect::<String>())]
pub struct Nothing {
    pub place: String,
    pub causes: Vec<String>,
}

impl Backup {
    /// The newest that verifies; with `from`, that one or none.
    ///
    /// # Errors
    /// [`Nothing`].
    pub async fn choose(&self, from: Option<SnapshotName>) -> Result<Chosen, Nothing> {
        let nothing = |causes| Nothing { place: self.place(), causes };
        let names = match from {
            Some(name) => vec![name],
            None => self.names().await.map_err(|error| nothing(vec![error.to_string()]))?,
        };
        let mut skipped = Vec::new();
        for name in names.into_iter().rev() {
            match self.read(name).await {
                Ok(state) => return Ok(Chosen { object: self.object(name), state, skipped }),
                Err(cause) => skipped.push(format!("{}: {cause}", self.object(name))),
            }
        }
        Err(nothing(skipped))
    }

    async fn read(&self, name: SnapshotName) -> Result<StateCopy, String> {
        let found = self.store.get(&format!("{FOLDER}/{name}"), OBJECT_BYTES_MAX, OBJECT_WITHIN).await?;
        let object = found.ok_or("there is no such object")?;
        let state = snapshot::read(&self.fleet, &object).map_err(|fault| fault.to_string())?;
        if (state.term, state.taken_at_ms) != (name.term, name.taken_at_ms) {
            return Err("it was taken at another time than its name says".to_owned());
        }
        Ok(state)
    }
}
