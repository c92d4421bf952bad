//! A process held by a descriptor: its number may come to mean another process, the descriptor never does.

use std::io;
use std::os::fd::AsFd as _;

use cic_common::descriptor::Descriptor;
use nix::errno::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// One process, whether or not it is a child of this one.
#[derive(Debug)]
pub(super) struct PidFd {
    descriptor: Descriptor,
}

impl PidFd {
    /// Takes hold of `pid`; `None` when there is no such process. Whether it is the one that was meant has to be checked
    /// after this.
    ///
    /// # Errors
    /// When the kernel gives no descriptor (none left, or Linux before 5.3).
    pub(super) fn open(pid: u32) -> io::Result<Option<Self>> {
        let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(descriptor) => Ok(Some(Self { descriptor: Descriptor::new(descriptor)? })),
            Err(error) if error.raw_os_error() == Errno::ESRCH as i32 => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for its end. Cancel safe.
    ///
    /// # Errors
    /// When the runtime is going down.
    pub(super) async fn ended(&self) -> io::Result<()> {
        self.descriptor.readable().await.map(|_| ())
    }

    /// Sends SIGTERM to exactly this process; one that has ended is no failure.
    pub(super) fn terminate(&self) {
        let _gone_already = pidfd_send_signal(self.descriptor.as_fd(), Signal::TERM);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_is_seen_by_one_that_is_not_its_parent() {
        let mut child = tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
        let held = PidFd::open(child.id().unwrap()).unwrap().unwrap();
        held.terminate();
        tokio::time::timeout(std::time::Duration::from_secs(10), held.ended()).await.unwrap().unwrap();
        child.wait().await.unwrap();
        held.terminate();
    }

    #[test]
    fn a_number_without_a_process_is_none() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        assert!(PidFd::open(0x3fff_fff0).unwrap().is_none());
        assert!(PidFd::open(0).unwrap().is_none());
    }
}
