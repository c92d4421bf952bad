//! The wish for a sample now.

use std::sync::Arc;

use tokio::sync::Notify;

/// Asks the probe for a sample of the cheap fields at once. Clones are one; wishes that wait are one wish.
#[derive(Debug, Default, Clone)]
pub struct GpuRequests(Arc<Notify>);

impl GpuRequests {
    /// Never waits. The sample comes as an event, as any other; none comes while there is no probe.
    pub fn sample_now(&self) {
        self.0.notify_one();
    }

    /// Resolves with the next wish. Cancel safe: a wish that was not seen is kept.
    pub(super) async fn asked(&self) {
        self.0.notified().await;
    }
}
