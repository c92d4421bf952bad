//! NVIDIA's XID catalogue as data: what a code means, and the rule for what is to be done at once.
//!
//! Source: NVIDIA XID catalogue as generated on 2025-10-29, sheet "Xids", column "Resolution Bucket (Immediate
//! Action)". The words are ours. To follow a newer catalogue change the rows and the counts in the test.

use cic_common::gpu::GpuAction;

/// How the action of a code is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The same whatever else is seen.
    Always(GpuAction),
    /// 45: follows what else was seen on the GPU; alone it says that a process was ended.
    Symptom,
    /// 48: the GPU is reset, after a drain when a row remap (63, 64) goes with it.
    DoubleBitError,
    /// 74: by the bits of the registers in the text.
    NvlinkRegisters,
    /// 144 to 150: by unit, sub-code and error status in the text.
    Nvlink5,
    /// 154: the action that the driver names.
    AsRecovery,
    /// Asks for something that only a person at the machine can do.
    Person(&'static str),
    /// The catalogue has the code and gives no action.
    NoneGiven,
}

/// One code of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub code: u32,
    /// In a few words, for people.
    pub what: &'static str,
    pub rule: Rule,
}

/// The entry of `code`; `None` when the catalogue does not have it.
#[must_use]
pub fn entry_of(code: u32) -> Option<&'static Entry> {
    let index = usize::try_from(code.checked_sub(1)?).ok()?;
    CATALOGUE.get(index)
}

const fn entry(code: u32, what: &'static str, rule: Rule) -> Entry {
    Entry { code, what, rule }
}

const UNUSED: &str = "not in use";
const SUPPORT: Rule = Rule::Always(GpuAction::ContactSupport);
const RESTART: Rule = Rule::Always(GpuAction::RestartApp);
const IGNORE: Rule = Rule::Always(GpuAction::Ignore);
const RESET: Rule = Rule::Always(GpuAction::ResetGpu);

/// All codes, from 1 without a gap.
///
/// 79 asks for the bare metal to be restarted: to us, who rent the VM above it, that is another node.
#[rustfmt::skip]
pub const CATALOGUE: [Entry; 172] = [
    entry(1, UNUSED, SUPPORT),
    entry(2, UNUSED, SUPPORT),
    entry(3, UNUSED, SUPPORT),
    entry(4, UNUSED, SUPPORT),
    entry(5, UNUSED, SUPPORT),
    entry(6, UNUSED, SUPPORT),
    entry(7, UNUSED, SUPPORT),
    entry(8, "a channel stopped making progress", RESTART),
    entry(9, UNUSED, SUPPORT),
    entry(10, UNUSED, SUPPORT),
    entry(11, "invalid command stream", RESTART),
    entry(12, UNUSED, SUPPORT),
    entry(13, "compute or graphics engine exception", RESTART),
    entry(14, UNUSED, IGNORE),
    entry(15, UNUSED, SUPPORT),
    entry(16, UNUSED, SUPPORT),
    entry(17, UNUSED, SUPPORT),
    entry(18, UNUSED, SUPPORT),
    entry(19, UNUSED, SUPPORT),
    entry(20, UNUSED, SUPPORT),
    entry(21, UNUSED, SUPPORT),
    entry(22, UNUSED, SUPPORT),
    entry(23, UNUSED, SUPPORT),
    entry(24, UNUSED, SUPPORT),
    entry(25, "illegal command stream", RESTART),
    entry(26, UNUSED, SUPPORT),
    entry(27, UNUSED, SUPPORT),
    entry(28, UNUSED, SUPPORT),
    entry(29, UNUSED, SUPPORT),
    entry(30, UNUSED, SUPPORT),
    entry(31, "page fault in GPU memory", RESTART),
    entry(32, "corrupted command stream", RESTART),
    entry(33, UNUSED, SUPPORT),
    entry(34, UNUSED, SUPPORT),
    entry(35, UNUSED, SUPPORT),
    entry(36, UNUSED, SUPPORT),
    entry(37, "method unknown to the firmware", IGNORE),
    entry(38, "firmware watchdog expired", IGNORE),
    entry(39, "copy engine 0 error", RESTART),
    entry(40, "copy engine 1 error", RESTART),
    entry(41, "copy engine 2 error", RESTART),
    entry(42, UNUSED, SUPPORT),
    entry(43, "a channel was reset after a fault", IGNORE),
    entry(44, "engine fault while switching contexts", IGNORE),
    entry(45, "channel removed because of an earlier fault", Rule::Symptom),
    entry(46, "GPU stopped answering", RESET),
    entry(47, UNUSED, SUPPORT),
    entry(48, "uncorrectable memory error", Rule::DoubleBitError),
    entry(49, UNUSED, SUPPORT),
    entry(50, UNUSED, SUPPORT),
    entry(51, UNUSED, SUPPORT),
    entry(52, UNUSED, SUPPORT),
    entry(53, UNUSED, SUPPORT),
    entry(54, "power cable of the board is not connected", Rule::Person("check the power cables")),
    entry(55, UNUSED, SUPPORT),
    entry(56, UNUSED, SUPPORT),
    entry(57, UNUSED, SUPPORT),
    entry(58, UNUSED, SUPPORT),
    entry(59, UNUSED, SUPPORT),
    entry(60, "security engine exception", RESTART),
    entry(61, UNUSED, SUPPORT),
    entry(62, "power controller halted", RESET),
    entry(63, "memory row marked for remapping", IGNORE),
    entry(64, "memory row could not be remapped", RESET),
    entry(65, UNUSED, SUPPORT),
    entry(66, "driver touched a forbidden register", IGNORE),
    entry(67, "driver failed a firmware check", IGNORE),
    entry(68, "video decoder 0 exception", RESTART),
    entry(69, "illegal class for the engine", RESTART),
    entry(70, "copy engine 3 error", RESTART),
    entry(71, "copy engine 4 error", RESTART),
    entry(72, "copy engine 5 error", RESTART),
    entry(73, UNUSED, SUPPORT),
    entry(74, "NVLink error", Rule::NvlinkRegisters),
    entry(75, "copy engine 6 error", RESTART),
    entry(76, "copy engine 7 error", RESTART),
    entry(77, "copy engine 8 error", RESTART),
    entry(78, "vGPU could not start", Rule::Person("update driver and firmware")),
    entry(79, "fallen off the bus", Rule::Always(GpuAction::ReplaceNode)),
    entry(80, "command stream fails its checksum", RESTART),
    entry(81, UNUSED, SUPPORT),
    entry(82, "JPEG engine 0 error", RESTART),
    entry(83, "video decoder 1 error", RESTART),
    entry(84, "video decoder 2 error", RESTART),
    entry(85, "copy engine 9 error", RESTART),
    entry(86, "optical flow engine 0 exception", RESTART),
    entry(87, UNUSED, SUPPORT),
    entry(88, "video decoder 3 error", RESTART),
    entry(89, "video decoder 4 error", RESTART),
    entry(90, UNUSED, SUPPORT),
    entry(91, UNUSED, SUPPORT),
    entry(92, "many correctable memory errors", IGNORE),
    entry(93, "wear limit of the board's flash passed", IGNORE),
    entry(94, "contained memory error", RESTART),
    entry(95, "uncontained memory error", RESET),
    entry(96, "video decoder 5 error", RESTART),
    entry(97, "video decoder 6 error", RESTART),
    entry(98, "video decoder 7 error", RESTART),
    entry(99, "JPEG engine 1 error", RESTART),
    entry(100, "JPEG engine 2 error", RESTART),
    entry(101, "JPEG engine 3 error", RESTART),
    entry(102, "JPEG engine 4 error", RESTART),
    entry(103, "JPEG engine 5 error", RESTART),
    entry(104, "JPEG engine 6 error", RESTART),
    entry(105, "JPEG engine 7 error", RESTART),
    entry(106, "test message of the board controller", IGNORE),
    entry(107, "silent test message of the board controller", IGNORE),
    entry(108, "NVLink translation error at the peer", IGNORE),
    entry(109, "context switch timed out", RESET),
    entry(110, "security fault", RESET),
    entry(111, UNUSED, SUPPORT),
    entry(112, UNUSED, SUPPORT),
    entry(113, UNUSED, SUPPORT),
    entry(114, UNUSED, SUPPORT),
    entry(115, UNUSED, SUPPORT),
    entry(116, UNUSED, SUPPORT),
    entry(117, UNUSED, SUPPORT),
    entry(118, UNUSED, SUPPORT),
    entry(119, "GSP firmware does not answer", RESET),
    entry(120, "GSP firmware error", RESET),
    entry(121, "chip-to-chip link error", IGNORE),
    entry(122, UNUSED, SUPPORT),
    entry(123, UNUSED, SUPPORT),
    entry(124, UNUSED, SUPPORT),
    entry(125, UNUSED, SUPPORT),
    entry(126, "copy engine 10 error", RESTART),
    entry(127, "copy engine 11 error", RESTART),
    entry(128, "copy engine 12 error", RESTART),
    entry(129, "copy engine 13 error", RESTART),
    entry(130, "copy engine 14 error", RESTART),
    entry(131, "copy engine 15 error", RESTART),
    entry(132, "copy engine 16 error", RESTART),
    entry(133, "copy engine 17 error", RESTART),
    entry(134, "copy engine 18 error", RESTART),
    entry(135, "copy engine 19 error", RESTART),
    entry(136, "NVLink training failed", RESET),
    entry(137, "NVLink access denied", IGNORE),
    entry(138, UNUSED, SUPPORT),
    entry(139, "optical flow engine 1 error", RESTART),
    entry(140, "unrecovered ECC error", RESET),
    entry(141, "error on the fast path", IGNORE),
    entry(142, "video encoder 3 error", SUPPORT),
    entry(143, "GPU initialisation failed", RESET),
    entry(144, "NVLink 5 switch adapter error", Rule::Nvlink5),
    entry(145, "NVLink 5 receive side error", Rule::Nvlink5),
    entry(146, "NVLink 5 transmit side error", Rule::Nvlink5),
    entry(147, "NVLink 5 crossbar error", Rule::Nvlink5),
    entry(148, "NVLink 5 wrapper error", Rule::Nvlink5),
    entry(149, "NVLink 5 network port error", Rule::Nvlink5),
    entry(150, "NVLink 5 management engine error", Rule::Nvlink5),
    entry(151, "key rotation failed", Rule::Always(GpuAction::RestartVm)),
    entry(152, "DLA memory management error", IGNORE),
    entry(153, "DLA timed out", IGNORE),
    entry(154, "recovery action changed", Rule::AsRecovery),
    entry(155, "NVLink error defined by software", RESET),
    entry(156, "resource retired", RESET),
    entry(157, "resource could not be retired", IGNORE),
    entry(158, "fatal timeout of the GPU", RESET),
    entry(159, "coherent bus error without data", Rule::Person("check unified memory")),
    entry(160, "channel retired", IGNORE),
    entry(161, "channel could not be retired", IGNORE),
    entry(162, "power smoothing works again", Rule::NoneGiven),
    entry(163, "power smoothing is off", Rule::NoneGiven),
    entry(164, "power smoothing nears its end of life", Rule::NoneGiven),
    entry(165, "power smoothing is worn out", Rule::NoneGiven),
    entry(166, "NVLink traffic before encryption was set up", Rule::NoneGiven),
    entry(167, "fatal timeout on PCIe", Rule::NoneGiven),
    entry(168, "GPU memory reduced by errors in a protected region", Rule::NoneGiven),
    entry(169, "security processor halted", Rule::NoneGiven),
    entry(170, "NVLink interrupt in confidential mode", Rule::NoneGiven),
    entry(171, "uncorrectable memory error, in DRAM", Rule::NoneGiven),
    entry(172, "uncorrectable memory error, in SRAM", Rule::NoneGiven),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn count(rule: Rule) -> usize {
        CATALOGUE.iter().filter(|entry| entry.rule == rule).count()
    }

    #[test]
    fn the_codes_run_from_1_without_a_gap() {
        for (index, entry) in CATALOGUE.iter().enumerate() {
            assert_eq!(entry.code as usize, index + 1);
            assert_eq!(entry_of(entry.code), Some(entry));
        }
        for code in [0, 173, u32::MAX] {
            assert_eq!(entry_of(code), None);
        }
    }

    #[test]
    fn the_table_counts_as_nvidias_does() {
        let counts = [
            (SUPPORT, 62),
            (RESTART, 48),
            (IGNORE, 21),
            (RESET, 14),
            (Rule::NoneGiven, 11),
            (Rule::Nvlink5, 7),
            (Rule::Always(GpuAction::ReplaceNode), 1),
            (Rule::Always(GpuAction::RestartVm), 1),
            (Rule::Symptom, 1),
            (Rule::DoubleBitError, 1),
            (Rule::NvlinkRegisters, 1),
            (Rule::AsRecovery, 1),
        ];
        for (rule, expected) in counts {
            assert_eq!(count(rule), expected, "{rule:?}");
        }
        let persons = CATALOGUE.iter().filter(|entry| matches!(entry.rule, Rule::Person(_)));
        assert_eq!(persons.map(|entry| entry.code).collect::<Vec<_>>(), [54, 78, 159]);
        assert_eq!(counts.iter().map(|(_, count)| count).sum::<usize>() + 3, CATALOGUE.len());
    }

    #[test]
    fn a_code_not_in_use_is_for_support_but_14_is_ignored() {
        let unused: Vec<_> = CATALOGUE.iter().filter(|entry| entry.what == UNUSED).collect();
        assert_eq!(unused.len(), 62);
        for entry in unused {
            assert_eq!(entry.rule, if entry.code == 14 { IGNORE } else { SUPPORT }, "{}", entry.code);
        }
        assert_eq!(entry_of(142).map(|entry| entry.rule), Some(SUPPORT));
    }

    #[test]
    fn where_other_tools_differ_the_table_sides_with_nvidia() {
        let mild = [IGNORE, RESTART];
        for code in [32, 38, 44, 60, 63, 68, 69, 94, 121] {
            let rule = entry_of(code).map(|entry| entry.rule).unwrap();
            assert!(mild.contains(&rule), "{code} is not fatal: {rule:?}");
        }
        for code in [109, 136] {
            assert_eq!(entry_of(code).map(|entry| entry.rule), Some(RESET), "{code} is not to be ignored");
        }
    }
}
