//! Reading `/proc` without holding up the runtime: a read about a process that hangs in a driver may hang too.

use std::io;
use std::path::PathBuf;

use cic_common::process::{Process, environment_path, stat_path};
use nix::errno::Errno;
use tokio::fs;

/// The process `pid`, or `None` when there is none.
///
/// # Errors
/// When `/proc` cannot be read (no descriptors left): that says nothing about the process.
pub(super) async fn process(pid: u32) -> io::Result<Option<Process>> {
    match fs::read_to_string(stat_path(pid)).await {
        Ok(text) => Ok(Process::parse(pid, &text)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every process that can be seen.
///
/// # Errors
/// When some of `/proc` cannot be read.
pub(super) async fn processes() -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    let mut entries = fs::read_dir("/proc").await?;
    while let Some(entry) = entries.next_entry().await? {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(pid) = pid
            && let Some(process) = process(pid).await?
        {
            found.push(process);
        }
    }
    Ok(found)
}

/// Bytes that `pid` has read so far: what it asked for (`rchar`, pages in the cache included) and what was fetched from
/// disks for it (`read_bytes`, which counts the page faults of a mapped file too). 0 when that may not be read.
pub(super) async fn read_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).await.unwrap_or_default();
    let value = |line: &str| {
        ["rchar: ", "read_bytes: "].iter().find_map(|name| line.strip_prefix(name)?.parse::<u64>().ok())
    };
    text.lines().filter_map(value).sum::<u64>()
}

/// The environment a process was started with, entries ended by NUL; empty when it may not be read.
pub(super) async fn environment(pid: u32) -> Vec<u8> {
    fs::read(environment_path(pid)).await.unwrap_or_default()
}

/// The kernel's random name of this boot.
///
/// # Errors
/// When it cannot be read.
pub(super) async fn boot_id() -> io::Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").await?;
    Ok(text.trim().to_owned())
}

/// The cgroup (version 2) this process is in, as a directory; `None` without one.
pub(super) async fn own_cgroup() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").await.ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(PathBuf::from(format!("/sys/fs/cgroup{path}")))
}

/// A process that ends while it is read about shows as either of the two.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_process_is_found() {
        let own = process(std::process::id()).await.unwrap().unwrap();
        assert!(processes().await.unwrap().contains(&own));
        assert!(!boot_id().await.unwrap().is_empty());
    }
}
