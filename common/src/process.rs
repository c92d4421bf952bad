//! Processes of this machine, as `/proc` shows them, and which of them belong together.
//!
//! A mark in the environment alone does not find a real vLLM: its engine core and its workers write their title over
//! the place that `/proc/PID/environ` shows, mark included. They are found as kin of the process that still has it.

use std::collections::BTreeSet;
use std::{fs, io};

/// One process as `/proc/PID/stat` shows it (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    pub session: u32,
    /// Clock ticks between boot and start. With the boot id it names one process for ever.
    pub start_ticks: u64,
    /// Ended, and not yet waited for by its parent.
    pub is_zombie: bool,
}

impl Process {
    /// The process `pid`, or `None` when there is none.
    #[must_use]
    pub fn read(pid: u32) -> Option<Self> {
        Self::parse(pid, &fs::read_to_string(stat_path(pid)).ok()?)
    }

    /// Every process that can be seen.
    ///
    /// # Errors
    /// When `/proc` cannot be listed.
    pub fn all() -> io::Result<Vec<Self>> {
        let pids =
            fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Ok(pids.filter_map(Self::read).collect())
    }

    /// What the text of `/proc/PID/stat` says.
    #[must_use]
    pub fn parse(pid: u32, stat: &str) -> Option<Self> {
        // The second field is the program's name in brackets and may hold anything, brackets and spaces included.
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        Some(Self {
            pid,
            is_zombie: matches!(*fields.first()?, "Z" | "X" | "x"),
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
        })
    }
}

/// Where [`Process::parse`]'s text is.
#[must_use]
pub fn stat_path(pid: u32) -> String {
    format!("/proc/{pid}/stat")
}

/// Where the environment is that `pid` was started with: entries ended by NUL.
#[must_use]
pub fn environment_path(pid: u32) -> String {
    format!("/proc/{pid}/environ")
}

/// The living ones among `processes` that `is_marked` says are ours, their descendants, and all of the sessions that
/// one of them leads.
#[must_use]
pub fn family(processes: &[Process], is_marked: impl Fn(&Process) -> bool) -> Vec<Process> {
    let mut members: BTreeSet<u32> =
        processes.iter().filter(|one| is_marked(one)).map(|one| one.pid).collect();
    loop {
        let kin = processes.iter().filter(|one| !members.contains(&one.pid));
        let kin = kin.filter(|one| members.contains(&one.parent) || members.contains(&one.session));
        let kin: Vec<u32> = kin.map(|one| one.pid).collect();
        if kin.is_empty() {
            break;
        }
        members.extend(kin);
    }
    processes.iter().filter(|one| !one.is_zombie && members.contains(&one.pid)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_brackets_does_not_shift_the_fields() {
        let text = "42 (a) Z 1 (b) S 1 40 41 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 98765 1 1 1";
        let expected = Process { pid: 42, parent: 1, session: 41, start_ticks: 98_765, is_zombie: false };
        assert_eq!(Process::parse(42, text), Some(expected));
        assert_eq!(Process::parse(42, "42 (a"), None);
        assert_eq!(Process::parse(42, ""), None);
    }

    #[test]
    fn this_process_is_found() {
        let own = Process::read(std::process::id()).unwrap();
        assert!(!own.is_zombie && own.start_ticks > 0);
        assert!(Process::all().unwrap().contains(&own));
    }

    #[test]
    fn descendants_and_whole_sessions_belong_to_a_marked_process() {
        let one = |pid, parent, session| Process { pid, parent, session, start_ticks: 1, is_zombie: false };
        let dead = |pid, parent, session| Process { is_zombie: true, ..one(pid, parent, session) };
        let pids = |processes: &[Process], marked: u32| -> Vec<u32> {
            family(processes, |process| process.pid == marked).iter().map(|process| process.pid).collect()
        };
        let shell = one(10, 1, 10);
        for (rule, processes, marked, expected) in [
            ("nothing is marked", vec![shell, one(11, 10, 10)], 99, vec![]),
            ("a parent's session is not its child's", vec![shell, one(11, 10, 10)], 11, vec![11]),
            ("children of children", vec![one(2, 1, 1), one(3, 2, 1), one(4, 3, 4)], 2, vec![2, 3, 4]),
            ("an orphan of a led session", vec![one(2, 1, 2), one(3, 1, 2), one(4, 3, 3)], 2, vec![2, 3, 4]),
            ("in any order", vec![one(4, 3, 1), one(3, 2, 1), one(2, 1, 1)], 2, vec![4, 3, 2]),
            ("a zombie is dead, its children are not", vec![dead(2, 1, 2), one(3, 2, 2)], 2, vec![3]),
        ] {
            assert_eq!(pids(&processes, marked), expected, "{rule}");
        }
    }
}
