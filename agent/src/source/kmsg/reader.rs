//! Which records count: those of the kernel that no run of the agent in this boot has handled.

use super::news::{KernelNews, Recogniser};
use super::record::parse;

/// The kernel's facility.
const KERNEL: u32 = 0;

/// Which records are old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Old {
    /// All that lie there when the first run of a boot begins to read: they are from before it.
    UntilDrained,
    /// Those that an earlier run handled.
    UpTo(u64),
    Nothing,
}

/// Takes lines of `/dev/kmsg` in order.
#[derive(Debug)]
pub(super) struct Reader {
    old: Old,
    newest: Option<u64>,
    lost_count: u64,
    is_dirty: bool,
    recogniser: Recogniser,
}

impl Reader {
    /// `handled` is the last record that an earlier run of this boot took in.
    pub(super) fn new(handled: Option<u64>) -> Self {
        let old = handled.map_or(Old::UntilDrained, Old::UpTo);
        Self { old, newest: None, lost_count: 0, is_dirty: false, recogniser: Recogniser::default() }
    }

    /// What `line` says, if it counts and matters.
    pub(super) fn read(&mut self, line: &str) -> Option<KernelNews> {
        let line = parse(line)?;
        // What went by before the first record of this run is not known to be lost.
        let gap = self.newest.map_or(0, |newest| line.seq.saturating_sub(newest.saturating_add(1)));
        self.newest = self.newest.max(Some(line.seq));
        match self.old {
            Old::UntilDrained => return None,
            Old::UpTo(handled) if line.seq <= handled => return None,
            Old::UpTo(_) | Old::Nothing => {}
        }
        self.lost_count = self.lost_count.saturating_add(gap);
        if line.facility != KERNEL {
            return None;
        }
        let news = self.recogniser.hear(&line.text)?;
        self.is_dirty = true;
        Some(news)
    }

    /// There is no record left for now.
    pub(super) fn drained(&mut self) {
        if self.old == Old::UntilDrained {
            self.old = Old::Nothing;
            self.is_dirty = self.newest.is_some();
        }
    }

    /// The record up to which a later run need not look, if that is to be saved.
    pub(super) fn take_handled(&mut self) -> Option<u64> {
        self.newest.filter(|_| std::mem::take(&mut self.is_dirty))
    }

    /// Records that were overwritten unread since the last call.
    pub(super) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost_count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xid(seq: u64) -> String {
        format!("3,{seq},1,-;NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.\n")
    }

    #[test]
    fn the_first_run_of_a_boot_begins_at_the_end() {
        let mut reader = Reader::new(None);
        assert_eq!(reader.read(&xid(5)), None);
        assert_eq!(reader.read(&xid(9)), None);
        assert_eq!(reader.take_handled(), None);
        reader.drained();
        assert_eq!((reader.take_handled(), reader.take_handled()), (Some(9), None));
        assert_eq!(reader.take_lost(), 0, "what was lost before");
        assert!(reader.read(&xid(10)).is_some());
        assert_eq!(reader.take_handled(), Some(10));
    }

    #[test]
    fn a_later_run_begins_after_what_was_handled() {
        let mut reader = Reader::new(Some(5));
        assert_eq!(reader.read(&xid(4)), None);
        assert_eq!(reader.read(&xid(5)), None);
        assert!(reader.read(&xid(6)).is_some());
        reader.drained();
        assert!(reader.read(&xid(7)).is_some());
        assert_eq!(reader.take_handled(), Some(7));
    }

    #[test]
    fn only_the_kernels_own_records_count() {
        let mut reader = Reader::new(Some(0));
        let forged = "11,1,1,-;NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.";
        assert_eq!(reader.read(forged), None);
        assert_eq!(reader.read(" DEVICE=+pci:0000:3b:00.0"), None);
        assert!(reader.read(&xid(2)).is_some());
    }

    #[test]
    fn a_gap_counts_what_was_lost() {
        let mut reader = Reader::new(Some(0));
        reader.read("6,10,1,-;a");
        reader.read("6,11,1,-;a");
        assert_eq!(reader.take_lost(), 0);
        reader.read("6,15,1,-;a");
        reader.read("6,17,1,-;a");
        reader.read("6,3,1,-;a");
        reader.read("6,18,1,-;a");
        assert_eq!((reader.take_lost(), reader.take_lost()), (4, 0));
    }

    #[test]
    fn no_line_panics() {
        let mut random = fastrand::Rng::with_seed(7);
        let lines = [
            xid(1),
            "3,2,1,-;NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 09 (0x025525c6 0x0)".to_owned(),
            "3,3,1,-;NVRM: Xid (PCI:0:1:0): 154, GPU recovery action changed from 0x0 (None) to 0x1 (x)".to_owned(),
            "3,4,1,-;Out of memory: Killed process 1234 (python3) \\xc3\\xa9 é".to_owned(),
            "3,5,1,-;NVRM: The NVIDIA GPU 0000:b3:00.0\\x0aNVRM: has fallen off the bus".to_owned(),
        ];
        let mut reader = Reader::new(Some(0));
        for round in 0..20_000 {
            let mut bytes = lines[round % lines.len()].clone().into_bytes();
            for _ in 0..random.usize(0..6) {
                let at = random.usize(0..bytes.len().max(1));
                match random.u8(0..4) {
                    0 if at < bytes.len() => bytes[at] = random.u8(..),
                    1 => bytes.truncate(at),
                    2 => bytes.insert(at.min(bytes.len()), b"(:;,x\\0\xE9 "[random.usize(0..9)]),
                    _ => bytes.extend_from_within(at.min(bytes.len())..),
                }
            }
            let _ = reader.read(&String::from_utf8_lossy(&bytes));
        }
    }
}
