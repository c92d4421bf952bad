//! The keys file and the certificate, read again when they change. What is broken changes nothing.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cic_common::supervise::TaskResult;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::keys::{KeyRing, KeyRingError};
use super::tls::{Certificate, CertificateError};

/// How long a changed file can lie unread. Whoever revokes a key waits for it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A file system that takes longer is looked at again at the next turn.
const READ_WITHIN: Duration = Duration::from_secs(2);

/// Ten thousand keys with all their settings are 3 MB; what is longer is a slip.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Why the port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("{path} is no keys file")]
    Keys { path: PathBuf, source: KeyRingError },
    #[error("no certificate to show to users")]
    Certificate(#[source] CertificateError),
}

/// Reads the port's files, at first and whenever they change.
#[derive(Debug)]
pub struct Files {
    keys: Option<Watched<KeyRing>>,
    certificate: Option<Watched<Certificate>>,
}

#[derive(Debug)]
struct Watched<T> {
    paths: Vec<PathBuf>,
    /// As they were read last, whether or not they were of use.
    seen: Vec<Vec<u8>>,
    /// Why they could not be read at the last look.
    fault: Option<String>,
    current: watch::Sender<T>,
}

impl Files {
    /// Reads the files that are given: a keys file, a certificate with its key.
    ///
    /// # Errors
    /// When one of them is of no use.
    pub(super) fn open(keys: Option<&Path>, certificate: Option<(&Path, &Path)>) -> Result<Self, FilesError> {
        let keys = keys.map(|path| {
            let ring = read_bounded(path).map_err(KeyRingError::Read).and_then(|bytes| {
                let ring = KeyRing::parse(&bytes)?;
                Ok(Watched::new([path], [bytes], ring))
            });
            ring.map_err(|source| FilesError::Keys { path: path.to_owned(), source })
        });
        let certificate = certificate.map(|(certificate, key)| {
            let read = |path: &Path| {
                read_bounded(path).map_err(|source| CertificateError::Read { path: path.to_owned(), source })
            };
            let bytes = [read(certificate)?, read(key)?];
            let parsed = Certificate::parse(&bytes[0], &bytes[1])?;
            Ok(Watched::new([certificate, key], bytes, parsed))
        });
        let certificate = certificate.transpose().map_err(FilesError::Certificate)?;
        Ok(Self { keys: keys.transpose()?, certificate })
    }

    pub(super) fn keys(&self) -> Option<watch::Receiver<KeyRing>> {
        self.keys.as_ref().map(|watched| watched.current.subscribe())
    }

    pub(super) fn certificate(&self) -> Option<watch::Receiver<Certificate>> {
        self.certificate.as_ref().map(|watched| watched.current.subscribe())
    }

    /// Looks at the files until cancelled.
    ///
    /// # Errors
    /// Never; the type is that of a supervised task.
    pub async fn watch(mut self, token: CancellationToken) -> TaskResult {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            // Cancel safe: a tick that is dropped comes again.
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            self.look().await;
        }
    }

    async fn look(&mut self) {
        if let Some(keys) = &mut self.keys
            && let Some(read) = keys.changed().await
        {
            match KeyRing::parse(&read[0]) {
                Ok(ring) => {
                    info!(key_count = ring.len(), "keys file read again");
                    keys.current.send_modify(|current| *current = ring.after(current));
                }
                Err(error) => warn!(%error, "new keys file is of no use; the keys stay as they were"),
            }
        }
        if let Some(certificate) = &mut self.certificate
            && let Some(read) = certificate.changed().await
        {
            match Certificate::parse(&read[0], &read[1]) {
                Ok(new) => {
                    info!("certificate for users read again");
                    certificate.current.send_replace(new);
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    warn!(%error, cause, "new certificate is of no use; the one before is shown on");
                }
            }
        }
    }
}

impl<T> Watched<T> {
    fn new<const N: usize>(paths: [&Path; N], seen: [Vec<u8>; N], first: T) -> Self {
        Self {
            paths: paths.map(Path::to_owned).into(),
            seen: seen.into(),
            fault: None,
            current: watch::Sender::new(first),
        }
    }

    /// What the files hold, when that is not what they held at the last look. A file that cannot be read now changes
    /// nothing, since it may be gone by mistake; but whoever revoked a key in it must hear that it was not read.
    async fn changed(&mut self) -> Option<&[Vec<u8>]> {
        let mut read = Vec::with_capacity(self.paths.len());
        for path in &self.paths {
            match read_soon(path).await {
                Ok(bytes) => read.push(bytes),
                Err(error) => {
                    let fault = format!("{}: {error}", path.display());
                    if self.fault.as_ref() != Some(&fault) {
                        warn!(
                            fault,
                            "file of the user port cannot be read; what it held before is in use on"
                        );
                        self.fault = Some(fault);
                    }
                    return None;
                }
            }
        }
        if self.fault.take().is_some() {
            info!(paths = ?self.paths, "files of the user port can be read again");
        }
        if read == self.seen {
            return None;
        }
        self.seen = read;
        Some(&self.seen)
    }
}

async fn read_soon(path: &Path) -> std::io::Result<Vec<u8>> {
    let late =
        || std::io::Error::new(std::io::ErrorKind::TimedOut, format!("not read within {READ_WITHIN:?}"));
    let file = path.to_owned();
    let read = tokio::task::spawn_blocking(move || read_bounded(&file));
    tokio::time::timeout(READ_WITHIN, read).await.map_err(|_| late())??
}

/// Reads a file of the port, the same way at start and later: what loads once loads again.
pub(super) fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let why = format!("longer than {FILE_BYTES_MAX} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, why));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_changed_file_is_taken_and_a_broken_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (keys, certificate, key) = (path("keys.toml"), path("cert.pem"), path("key.pem"));
        let write_pair = |with_key: bool| {
            let made = rcgen::generate_simple_self_signed(["edge.test".to_owned()]).unwrap();
            std::fs::write(&certificate, made.cert.pem()).unwrap();
            if with_key {
                std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
            }
        };
        write_pair(true);
        let (_, entry) = super::super::new_key("a").unwrap();
        std::fs::write(&keys, &entry).unwrap();
        let mut files = Files::open(Some(&keys), Some((&certificate, &key))).unwrap();
        let (ring, shown) = (files.keys().unwrap(), files.certificate().unwrap());
        let server = || std::sync::Arc::as_ptr(&shown.borrow().server);

        let first = server();
        files.look().await;
        assert_eq!((ring.borrow().len(), server()), (1, first), "nothing changed");
        std::fs::write(&keys, format!("{entry}{}", super::super::new_key("b").unwrap().1)).unwrap();
        write_pair(false);
        files.look().await;
        assert_eq!((ring.borrow().len(), server()), (2, first), "a certificate without its key");
        std::fs::write(&keys, "key = ").unwrap();
        write_pair(true);
        files.look().await;
        assert_eq!(ring.borrow().len(), 2, "broken keys");
        assert_ne!(server(), first);
        std::fs::remove_file(&keys).unwrap();
        files.look().await;
        assert_eq!(ring.borrow().len(), 2, "no file is no word that every key is refused");
        let fault = |files: &Files| files.keys.as_ref().and_then(|keys| keys.fault.clone());
        assert!(fault(&files).is_some_and(|fault| fault.contains("keys.toml: No such file")));
        std::fs::write(&keys, &entry).unwrap();
        files.look().await;
        assert_eq!((ring.borrow().len(), fault(&files)), (1, None), "back, with a key less");

        let comment = format!("{entry}#{}", " ".repeat(8 << 20));
        std::fs::write(&keys, &comment).unwrap();
        files.look().await;
        assert!(fault(&files).is_some_and(|fault| fault.contains("longer than 8388608 bytes")));
        assert!(Files::open(Some(&keys), None).is_err(), "what could not be read again is not read at first");
        assert!(KeyRing::read(&keys).is_err());
        std::fs::write(&keys, &comment[..8 << 20]).unwrap();
        assert!(Files::open(Some(&keys), None).is_ok());
    }
}
