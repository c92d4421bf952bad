//! Reading `/proc`: who is alive, since when, in which session, with which environment.

use std::io;
use std::path::PathBuf;

use tokio::fs;

/// One process as `/proc/PID/stat` shows it (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) session: u32,
    /// Clock ticks between boot and start. With the boot id it names one process for ever.
    pub(super) start_ticks: u64,
    /// Ended, and not yet waited for by its parent.
    pub(super) is_zombie: bool,
}

/// The process `pid`, or `None` when there is none.
pub(super) async fn process(pid: u32) -> Option<Process> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).await.ok()?;
    parse_stat(pid, &text)
}

/// Every process that can be seen.
pub(super) async fn processes() -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    let mut entries = fs::read_dir("/proc").await?;
    while let Some(entry) = entries.next_entry().await? {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(pid) = pid
            && let Some(process) = process(pid).await
        {
            found.push(process);
        }
    }
    Ok(found)
}

/// The environment a process was started with, entries ended by NUL; empty when it may not be read.
pub(super) async fn environment(pid: u32) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/environ")).await.unwrap_or_default()
}

/// The kernel's random name of this boot.
pub(super) async fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").await.unwrap_or_default();
    text.trim().to_owned()
}

/// The cgroup (version 2) this process is in, as a directory; `None` without one.
pub(super) async fn own_cgroup() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").await.ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(PathBuf::from(format!("/sys/fs/cgroup{path}")))
}

fn parse_stat(pid: u32, text: &str) -> Option<Process> {
    // The second field is the program's name in brackets and may hold anything, brackets and spaces included.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    Some(Process {
        pid,
        is_zombie: matches!(*fields.first()?, "Z" | "X" | "x"),
        session: fields.get(3)?.parse().ok()?,
        start_ticks: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_brackets_does_not_shift_the_fields() {
        let text = "42 (a) Z 1 (b) S 1 40 41 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 98765 1 1 1";
        let expected = Process { pid: 42, session: 41, start_ticks: 98_765, is_zombie: false };
        assert_eq!(parse_stat(42, text), Some(expected));
        assert_eq!(parse_stat(42, "42 (a"), None);
        assert_eq!(parse_stat(42, ""), None);
    }

    #[tokio::test]
    async fn this_process_is_found() {
        let own = process(std::process::id()).await.unwrap();
        assert!(!own.is_zombie && own.start_ticks > 0);
        assert!(processes().await.unwrap().contains(&own));
        assert!(!boot_id().await.is_empty());
    }
}
