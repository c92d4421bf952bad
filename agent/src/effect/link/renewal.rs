//! Asking for the next certificate, one link at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cic_common::time::{Clock, Mono, unix_ms};
use cic_common::tls::identity::IdentityError;
use cic_common::tls::{Identity, PendingKey};
use tracing::info;

/// A controller that has not signed by then is not going to; another link may ask.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// The wall clock may be set while we wait for a moment of it, so it is read again this often.
const CLOCK_TRUST: Duration = Duration::from_secs(60);

/// How often a link looks whether another link's asking has ended.
const TURN_INTERVAL: Duration = Duration::from_millis(500);

/// The identity of this node and the request that is under way for the next.
#[derive(Debug)]
pub(super) struct Renewal {
    identity: Identity,
    clock: Clock,
    asked: Mutex<Option<Asked>>,
}

#[derive(Debug)]
struct Asked {
    link: usize,
    key: PendingKey,
    at: Mono,
}

impl Renewal {
    pub(super) fn new(identity: Identity, clock: Clock) -> Self {
        Self { identity, clock, asked: Mutex::new(None) }
    }

    /// Resolves when it is time to [`Renewal::ask`]. Cancel-safe.
    pub(super) async fn due(&self) {
        while let Some(wait) = self.wait() {
            tokio::time::sleep(wait).await;
        }
    }

    /// A signing request for `link` to send; `None` when it is not (or no longer) this link's turn.
    ///
    /// # Errors
    /// When no key can be made.
    pub(super) fn ask(&self, link: usize) -> Result<Option<Vec<u8>>, IdentityError> {
        if self.wait().is_some() {
            return Ok(None);
        }
        let key = PendingKey::generate()?;
        let csr_der = key.csr_der()?;
        *self.lock() = Some(Asked { link, key, at: self.clock.now() });
        Ok(Some(csr_der))
    }

    /// Takes a certificate that came over `link`. One that nobody asked for is ignored.
    ///
    /// # Errors
    /// When it does not fit the key or the node; the old one stays and is asked for again.
    pub(super) fn answer(&self, link: usize, chain_pem: &str) -> Result<(), IdentityError> {
        let Some(asked) = self.lock().take_if(|asked| asked.link == link) else {
            return Ok(());
        };
        // Writes a few kilobytes and syncs; once in hours, so the wait for the disk is taken here.
        self.identity.renew(&asked.key, chain_pem)?;
        info!(validity = ?self.identity.validity(), "certificate renewed");
        Ok(())
    }

    fn wait(&self) -> Option<Duration> {
        let left_ms = self.identity.validity().renew_at_ms().saturating_sub(unix_ms());
        if left_ms > 0 {
            return Some(Duration::from_millis(left_ms).min(CLOCK_TRUST));
        }
        let asked = self.lock();
        let is_asked = asked.as_ref().is_some_and(|asked| self.clock.now().since(asked.at) < ANSWER_DEADLINE);
        is_asked.then_some(TURN_INTERVAL)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
