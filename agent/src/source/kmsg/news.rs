//! What the kernel log tells that matters here: faults of GPUs, and processes killed for memory.

use cic_common::gpu::{PciAddress, RecoveryAction, XidSeen, XidSource};

/// Text kept of a message, in characters.
const TEXT_CHARS_MAX: usize = 512;

/// NVIDIA: "fallen off the bus" is XID 79, also where the driver prints it without the number.
const FALLEN: &str = "fallen off the bus";
const FALLEN_CODE: u32 = 79;

/// Lines of the driver after the first that may belong to one message printed line by line.
const JOINED_LINES_MAX: u8 = 2;

/// One thing that matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelNews {
    Xid(XidSeen),
    /// The kernel killed a process for want of memory.
    Oom {
        pid: u32,
        text: String,
    },
}

/// What one message of the kernel says, if it matters here.
#[must_use]
pub fn recognise(text: &str) -> Option<KernelNews> {
    if let Some(pid) = oom_killed(text) {
        return Some(KernelNews::Oom { pid, text: cut(text) });
    }
    text.lines().find_map(xid).or_else(|| fallen(text)).map(KernelNews::Xid)
}

/// [`recognise`] over messages in order, for what the driver prints in several.
#[derive(Debug, Default)]
pub struct Recogniser {
    begun: Option<(String, u8)>,
}

impl Recogniser {
    /// What `text`, with what was begun before it, says.
    pub fn hear(&mut self, text: &str) -> Option<KernelNews> {
        let alone = recognise(text);
        let is_whole = match &alone {
            Some(KernelNews::Xid(seen)) => seen.pci.is_some(),
            Some(KernelNews::Oom { .. }) => true,
            None => false,
        };
        if is_whole || !text.starts_with("NVRM:") {
            return alone;
        }
        if text.starts_with("NVRM: The NVIDIA GPU ") {
            self.begun = Some((cut(text), JOINED_LINES_MAX));
            return None;
        }
        let Some((begun, left)) = self.begun.take() else { return alone };
        let joined = format!("{begun}\n{}", cut(text));
        let news = recognise(&joined);
        if news.is_none() && left > 1 {
            self.begun = Some((joined, left - 1));
        }
        news
    }
}

/// `NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python3, GPU has fallen off the bus.`, with or without `PCI:`,
/// domain and process, on a MIG GPU with ` GPU-I:05` after the address.
fn xid(line: &str) -> Option<XidSeen> {
    let line = &line[line.find("NVRM: Xid")?..];
    let rest = line.strip_prefix("NVRM: Xid")?.trim_start().strip_prefix('(')?;
    let (place, rest) = rest.split_once(')')?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start();
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let code: u32 = rest[..digits].parse().ok()?;
    Some(XidSeen {
        source: XidSource::Kmsg,
        pci: place.split_ascii_whitespace().next().and_then(address),
        code,
        pid: after(rest, "pid=").and_then(number),
        interrupt_info: if (144..=150).contains(&code) { interrupt_info(rest) } else { None },
        recovery: if code == 154 { recovery(rest) } else { None },
        text: cut(line),
    })
}

/// `NVRM: GPU 0000:04:00.0: GPU has fallen off the bus.`, or the form of three lines.
fn fallen(text: &str) -> Option<XidSeen> {
    if !text.starts_with("NVRM:") || !text.contains(FALLEN) {
        return None;
    }
    Some(XidSeen {
        source: XidSource::Kmsg,
        pci: text.split_ascii_whitespace().find_map(address),
        code: FALLEN_CODE,
        pid: None,
        interrupt_info: None,
        recovery: None,
        text: cut(text),
    })
}

/// `Out of memory: Killed process 1234 (python3) …`, also of a cgroup.
fn oom_killed(text: &str) -> Option<u32> {
    let is_oom = ["Out of memory", "Memory cgroup out of memory"].iter().any(|start| text.starts_with(start));
    number(after(text, ": Killed process ").filter(|_| is_oom)?)
}

fn address(word: &str) -> Option<PciAddress> {
    let word = word.strip_prefix("PCI:").unwrap_or(word).trim_end_matches([':', ',', '.']);
    word.contains(':').then(|| word.parse().ok()).flatten()
}

/// `(0x021425c6 0x00000000 …)`, or `[0x0000000a]` before R575: the first word of the last group.
fn interrupt_info(text: &str) -> Option<u32> {
    let start = text.rfind("(0x").max(text.rfind("[0x"))?;
    hex(&text[start + 3..])
}

/// `GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)`. The numbers are NVML's; the words in
/// brackets differ between drivers.
fn recovery(text: &str) -> Option<RecoveryAction> {
    hex(after(text, " to 0x")?).map(RecoveryAction::of)
}

fn after<'a>(text: &'a str, start: &str) -> Option<&'a str> {
    text.find(start).map(|at| &text[at + start.len()..])
}

/// The decimal number at the start; quotes around it are passed over.
fn number(text: &str) -> Option<u32> {
    let text = text.trim_start_matches('\'');
    text[..text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len())].parse().ok()
}

fn hex(text: &str) -> Option<u32> {
    let digits = text.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(text.len());
    u32::from_str_radix(&text[..digits], 16).ok()
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(pci: &str, code: u32, pid: Option<u32>, text: &str) -> XidSeen {
        XidSeen {
            source: XidSource::Kmsg,
            pci: pci.parse().ok(),
            code,
            pid,
            interrupt_info: None,
            recovery: None,
            text: text.to_owned(),
        }
    }

    #[test]
    fn an_xid_is_recognised_in_every_form() {
        for (text, pci, code, pid) in [
            (
                "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python3, GPU has fallen off the bus.",
                "3b:00",
                79,
                Some(1234),
            ),
            ("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.", "3b:00", 79, None),
            ("NVRM: Xid (0000:86:00): 14, Channel 00000001", "86:00", 14, None),
            ("NVRM: Xid (86:00): 31, Ch 00000008, engmask 00000101", "86:00", 31, None),
            (
                "NVRM: Xid (PCI:0008:01:00): 13, pid='<unknown>', name=<unknown>, Graphics SM Warp Exception",
                "0008:01:00",
                13,
                None,
            ),
            (
                "NVRM: Xid (PCI:0000:65:00): 48, pid='N/A', name=, An uncorrectable double bit error",
                "65:00",
                48,
                None,
            ),
            (
                "NVRM: Xid (PCI:0000:01:00 GPU-I:05): 94, pid='7194', name=x, Contained: CE User Channel (0x9). RST: No",
                "01:00",
                94,
                Some(7194),
            ),
            ("NVRM: Xid (PCI:0000:01:00): 62, 223b6a66 00002100 00000000", "01:00", 62, None),
            ("NVRM: Xid (PCI:0000:01:00): 119", "01:00", 119, None),
            ("NVRM: Xid (nonsense): 43, pid=9", "", 43, Some(9)),
        ] {
            let expected = KernelNews::Xid(seen(pci, code, pid, text));
            assert_eq!(recognise(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn an_xid_in_a_message_of_several_lines_is_found() {
        let line = "NVRM: Xid (PCI:0000:3b:00): 79, pid=7, name=x, GPU has fallen off the bus.";
        let text = format!(
            "NVRM: GPU at PCI:0000:3b:00: GPU-b850f46d-d5ea-c752-ddf3-c4453e44d3f7\n{line}\nNVRM: more"
        );
        assert_eq!(recognise(&text), Some(KernelNews::Xid(seen("3b:00", 79, Some(7), line))));
    }

    #[test]
    fn off_the_bus_is_79_without_the_number() {
        let single = "NVRM: GPU 0000:04:00.0: GPU has fallen off the bus.";
        assert_eq!(recognise(single), Some(KernelNews::Xid(seen("04:00", 79, None, single))));
        let old = "NVRM: GPU at 0000:04:00.0 has fallen off the bus.";
        assert_eq!(recognise(old), Some(KernelNews::Xid(seen("04:00", 79, None, old))));
        let lines = [
            "NVRM: The NVIDIA GPU 0000:b3:00.0",
            "NVRM: (PCI ID: 10de:26b5) installed in this system has",
            "NVRM: fallen off the bus and is not responding to commands.",
        ];
        let joined = lines.join("\n");
        let expected = Some(KernelNews::Xid(seen("b3:00", 79, None, &joined)));
        assert_eq!(recognise(&joined), expected);
        let mut recogniser = Recogniser::default();
        assert_eq!(recogniser.hear(lines[0]), None);
        assert_eq!(recogniser.hear("usb 1-1: new device"), None, "others print in between");
        assert_eq!(recogniser.hear(lines[1]), None);
        assert_eq!(recogniser.hear(lines[2]), expected);
        assert!(recogniser.begun.is_none());
    }

    #[test]
    fn a_message_that_is_not_ended_is_forgotten() {
        let mut recogniser = Recogniser::default();
        recogniser.hear("NVRM: The NVIDIA GPU 0000:b3:00.0");
        for _ in 0..2 {
            assert_eq!(recogniser.hear("NVRM: installed in this system is not supported"), None);
        }
        let KernelNews::Xid(seen) =
            recogniser.hear("NVRM: GPU 0000:04:00.0: GPU has fallen off the bus.").unwrap()
        else {
            panic!("an XID")
        };
        assert_eq!(seen.pci, "04:00".parse().ok());
    }

    #[test]
    fn nvlink_5_has_its_interrupt_word_and_154_its_action() {
        let of = |text: &str| match recognise(text) {
            Some(KernelNews::Xid(seen)) => (seen.code, seen.interrupt_info, seen.recovery),
            other => panic!("{text}: {other:?}"),
        };
        for (text, expected) in [
            (
                "NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 09 (0x025525c6 0x00000000 0x00000000)",
                (149, Some(0x0255_25c6), None),
            ),
            (
                "NVRM: Xid (PCI:0018:01:00): 145, pid=5, name=(0x1, RLW_REMAP Nonfatal XC1 i0 Link 11 (0x00000004 0x00000001)",
                (145, Some(4), None),
            ),
            (
                "NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_EVT Fatal XC 1 i 2 Link 01 [0x0000000a]",
                (149, Some(10), None),
            ),
            ("NVRM: Xid (PCI:0018:01:00): 150, MSE_WATCHDOG", (150, None, None)),
            (
                "NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
                (154, None, Some(RecoveryAction::GpuReset)),
            ),
            (
                "NVRM: Xid (PCI:0000:01:00): 154, pid=1, name=x, GPU recovery action changed from 0x0 (None) to 0x2 (OS Reboot)",
                (154, None, Some(RecoveryAction::NodeReboot)),
            ),
            (
                "NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x1 (PF FLR) to 0x0 (None)",
                (154, None, Some(RecoveryAction::None)),
            ),
            (
                "NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x0 to 0x63",
                (154, None, Some(RecoveryAction::Unknown(99))),
            ),
            ("NVRM: Xid (PCI:0000:01:00): 154", (154, None, None)),
        ] {
            assert_eq!(of(text), expected, "{text}");
        }
    }

    #[test]
    fn an_oom_kill_is_recognised() {
        for (text, pid) in [
            ("Out of memory: Killed process 1234 (python3) total-vm:23870700kB, anon-rss:16736460kB", 1234),
            ("Memory cgroup out of memory: Killed process 23793 (VLLM::EngineCor) total-vm:2623712kB", 23793),
            ("Out of memory (oom_kill_allocating_task): Killed process 7 (x)", 7),
        ] {
            assert_eq!(recognise(text), Some(KernelNews::Oom { pid, text: text.to_owned() }));
        }
    }

    #[test]
    fn other_messages_say_nothing() {
        for text in [
            "",
            "NVRM: Xid",
            "NVRM: Xid ()",
            "NVRM: Xid (PCI:0000:3b:00)",
            "NVRM: Xid (PCI:0000:3b:00): ",
            "NVRM: Xid (PCI:0000:3b:00): x",
            "NVRM: Xid (PCI:0000:3b:00): 99999999999",
            "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.95.05",
            "NVRM: krcRcAndNotifyAllChannels_IMPL: RC all channels for critical error 79.",
            "nvidia-nvswitch0: SXid (PCI:0000:85:00.0): 20034, Fatal, Link 32",
            "python3[7]: GPU has fallen off the bus",
            "oom_reaper: reaped process 1234 (python3), now anon-rss:0kB",
            "python3 invoked oom-killer: gfp_mask=0x1100cca",
            "Out of memory: Killed process x",
            "comm: Out of memory: Killed process 7 (x)",
        ] {
            assert_eq!(recognise(text), None, "{text}");
        }
    }
}
