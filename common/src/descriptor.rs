//! A file descriptor that the runtime watches: a pidfd, `/dev/kmsg`. The only file with the `unsafe` that this takes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

/// An owned, non-blocking descriptor.
#[derive(Debug)]
pub struct Descriptor {
    watched: AsyncFd<OwnedFd>,
}

impl Descriptor {
    /// Has the runtime watch `descriptor`, which must be non-blocking if it is to be read.
    ///
    /// # Errors
    /// When it cannot be watched (a regular file), or there is no room.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        // SAFETY: the descriptor is owned, so open, and stays in `watched`, which never gives it out to be closed or
        // replaced; an `OwnedFd` has one number for its life (docs/decisions/0014-one-watched-descriptor.md).
        #[allow(unsafe_code)]
        let watched = unsafe { AsyncFd::register(descriptor)? };
        Ok(Self { watched })
    }

    /// Waits until there is something to read, or the end. Cancel safe.
    ///
    /// # Errors
    /// When the runtime is going down.
    pub async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.watched.readable().await
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watched.get_ref().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_pipe_makes_it_readable() {
        let (read, write) = std::io::pipe().unwrap();
        let watched = Descriptor::new(read.into()).unwrap();
        drop(write);
        let ready =
            tokio::time::timeout(std::time::Duration::from_secs(10), watched.readable()).await.unwrap();
        assert!(ready.is_ok());
    }

    #[tokio::test]
    async fn a_file_that_is_always_ready_cannot_be_watched() {
        let file = tempfile::tempfile().unwrap();
        assert!(Descriptor::new(file.into()).is_err());
    }
}
