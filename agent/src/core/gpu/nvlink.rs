//! NVLink faults: what the registers in the text of XID 74 and of 144 to 150 come to.
//!
//! Source: NVIDIA XID catalogue as generated on 2025-10-29: sheet "Xid 144-150 Decode", and the workflow of XID 74.

use cic_common::gpu::{GpuAction, XidSeen};

/// XID 74 prints seven registers, 144 to 150 four or six; more are not read.
const REGISTERS_MAX: usize = 8;

/// Bits of the first register of XID 74 that mean nothing.
const FIRST_HARMLESS: u32 = 1 | 1 << 23 | 1 << 30;
/// Bit of the fourth: the fabric has to be reset.
const FOURTH_FABRIC: u32 = 1 << 18;
/// Bits of the fifth: corrected errors passed a threshold, operation goes on.
const FIFTH_CORRECTED: u32 = 1 << 20 | 1 << 23 | 1 << 26 | 1 << 29;

/// What a fault asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Always(GpuAction),
    /// The driver's word, if it has one; else the application is restarted.
    AskDriver,
}

/// One line of the decode table. An empty list stands for every value.
struct Row {
    code: u32,
    units: &'static [&'static str],
    sub_codes: &'static [u32],
    statuses: &'static [u32],
    step: Step,
}

const IGNORE: Step = Step::Always(GpuAction::Ignore);
const RESET: Step = Step::Always(GpuAction::ResetGpu);
/// Status of an error that was injected.
const INJECTED: u32 = 0x8000_0000;

const fn row(
    code: u32,
    units: &'static [&'static str],
    sub_codes: &'static [u32],
    statuses: &'static [u32],
    step: Step,
) -> Row {
    Row { code, units, sub_codes, statuses, step }
}

const TLW: &[&str] =
    &["TLW_CTRL", "TLW_RX", "TLW_RX_PIPE0", "TLW_RX_PIPE1", "TLW_TX", "TLW_TX_PIPE0", "TLW_TX_PIPE1"];
const LINK: &[&str] = &["NETIR_LINK_EVT", "NETIR_LINK_DOWN"];

#[rustfmt::skip]
const ROWS: [Row; 26] = [
    row(144, &["SAW_MVB"],             &[0], &[0x1, 0x4, 0x8, 0x20],                IGNORE),
    row(144, &["SAW_MVB"],             &[0], &[0x2, 0x10],                          RESET),
    row(145, &["RLW_CTRL"],            &[0], &[INJECTED],                           IGNORE),
    row(145, &["RLW_REMAP"],           &[0], &[0x1, 0x2, 0x4, 0x8, 0x10, 0x20],     Step::AskDriver),
    row(145, &["RLW_REMAP"],           &[0], &[0x40, 0x80],                         RESET),
    row(145, &["RLW_REMAP"],           &[0], &[0x100, 0x200, INJECTED],             IGNORE),
    row(145, &["RLW_RSPCOL"],          &[0], &[0x1, INJECTED],                      IGNORE),
    row(145, &["RLW_RSPCOL"],          &[0], &[0x2],                                RESET),
    row(145, &["RLW_RXPIPE"],          &[0], &[0x1, 0x2, 0x4, 0x8, INJECTED],       IGNORE),
    row(145, &["RLW_SRC_TRACK"],       &[0], &[0x1, 0x10, 0x20],                    RESET),
    row(145, &["RLW_SRC_TRACK"],       &[0], &[0x2, INJECTED],                      IGNORE),
    row(145, &["RLW_SRC_TRACK"],       &[0], &[0x4, 0x8],                           Step::AskDriver),
    row(145, &["RLW_TAGSTATE"],        &[0], &[0x1, 0x1_0000, INJECTED],            IGNORE),
    row(145, &["RLW_TAGSTATE"],        &[0], &[0x2, 0x2_0000, 0x10_0000],           RESET),
    row(146, TLW,                      &[0], &[0x1, 0x2, INJECTED],                 IGNORE),
    row(146, TLW,                      &[0], &[0x4],                                RESET),
    row(147, &["TREX"],                &[0], &[0x1, INJECTED],                      IGNORE),
    row(148, &["NVLPW", "NVLPW_CTRL"], &[0], &[INJECTED],                           IGNORE),
    row(149, &["NETIR", "NETIR_INT"],  &[0], &[],                                   RESET),
    row(149, &["NETIR_BER_EVENT"],     &[0], &[],                                   IGNORE),
    row(149, LINK,                     &[38, 40], &[],                              IGNORE),
    row(149, LINK, &[0, 1, 2, 4, 10, 15, 16, 17, 18, 21, 22, 42, 43], &[],          RESET),
    row(149, LINK, &[32, 33, 34, 35, 36, 37], &[],                                  RESET),
    row(149, &["NETIR_MFDE_EVENT"],    &[0], &[0x1, 0x4, 0x5, 0x7],                 RESET),
    row(149, &["NETIR_MFDE_EVENT"],    &[0], &[0x3],                                IGNORE),
    row(150, &["MSE_WATCHDOG"],        &[0], &[],                                   RESET),
];

/// What 144 to 150 asks for, with unit and sub-code for people. `None` as step: the table does not have it, or the
/// source gave no details.
pub(super) fn decode(xid: &XidSeen) -> (Option<Step>, String) {
    let Some(interrupt_info) = xid.interrupt_info else {
        return (None, "without details".to_owned());
    };
    let sub_code = (interrupt_info >> 20) & 0x3F;
    let Some(unit) = unit(&xid.text) else {
        return (None, format!("sub-code {sub_code}, unit unknown"));
    };
    let status = registers(&xid.text).get(1).copied().unwrap_or(0);
    let row = ROWS.iter().find(|row| {
        row.code == xid.code
            && row.units.contains(&unit)
            && row.sub_codes.contains(&sub_code)
            && (row.statuses.is_empty() || row.statuses.contains(&status))
    });
    (row.map(|row| row.step), format!("{unit} sub-code {sub_code} status {status:#x}"))
}

/// What XID 74 asks for, and why.
pub(super) fn workflow_74(text: &str) -> (GpuAction, &'static str) {
    let registers = registers(text);
    let &[first, _, third, fourth, fifth, ..] = registers.as_slice() else {
        return (GpuAction::ContactSupport, "without registers");
    };
    if fourth & FOURTH_FABRIC != 0 {
        // A fabric spans GPUs: booting the VM anew resets them all.
        return (GpuAction::RestartVm, "the fabric is to be reset");
    }
    if first & !FIRST_HARMLESS != 0 || third != 0 || fourth != 0 || fifth & !FIFTH_CORRECTED != 0 {
        return (GpuAction::ContactSupport, "link or its parity is faulty");
    }
    match (first, fifth) {
        (0, 0) => (GpuAction::ContactSupport, "registers are empty"),
        (_, 0) => (GpuAction::Ignore, "harmless bits only"),
        (_, _) => (GpuAction::Report, "many corrected errors; operation goes on"),
    }
}

/// The unit is the word before the severity: `NETIR_LINK_EVT  Fatal   XC0 i0 Link 01 (…)`.
fn unit(text: &str) -> Option<&str> {
    let mut before = None;
    for word in text.split_ascii_whitespace() {
        if word == "Fatal" || word == "Nonfatal" {
            return before.map(|unit: &str| unit.split('/').next_back().unwrap_or(unit));
        }
        before = Some(word);
    }
    None
}

/// The hexadecimal numbers of the last group: `(0x0, 0x1)`, `(0x00000000 0x00000001)`, `[0x0000000a]`.
fn registers(text: &str) -> Vec<u32> {
    let Some(start) = ["(0x", "[0x"].into_iter().filter_map(|open| text.rfind(open)).max() else {
        return Vec::new();
    };
    let group = text[start + 1..].split([')', ']']).next().unwrap_or("");
    let words = group.split([',', ' ']).filter(|word| !word.is_empty());
    let numbers =
        words.map_while(|word| u32::from_str_radix(word.strip_prefix("0x").unwrap_or(word), 16).ok());
    numbers.take(REGISTERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use cic_common::gpu::XidSource;

    use super::*;

    fn seen(code: u32, text: &str, interrupt_info: u32) -> XidSeen {
        XidSeen {
            source: XidSource::Kmsg,
            pci: None,
            code,
            pid: None,
            interrupt_info: Some(interrupt_info),
            recovery: None,
            text: text.to_owned(),
        }
    }

    fn line(code: u32, unit: &str, interrupt_info: u32, status: u32) -> XidSeen {
        let text = format!(
            "{code}, {unit}  Fatal   XC0 i0 Link 01 ({interrupt_info:#010x} {status:#010x} 0x00000000)"
        );
        seen(code, &text, interrupt_info)
    }

    #[test]
    fn every_row_is_found_by_each_of_its_values() {
        for (index, row) in ROWS.iter().enumerate() {
            for unit in row.units {
                for sub_code in row.sub_codes {
                    for status in if row.statuses.is_empty() { &[0, 7] } else { row.statuses } {
                        let (step, text) = decode(&line(row.code, unit, (sub_code << 20) | 0x5c6, *status));
                        assert_eq!(step, Some(row.step), "row {index}: {text}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_the_table_does_not_have_has_no_step() {
        for xid in [
            line(149, "NETIR_LINK_EVT", 63 << 20, 0),
            line(144, "SAW_MVB", 1 << 20, 2),
            line(144, "SAW_MVB", 0, 0x40),
            line(147, "NEW_UNIT", 0, 1),
            seen(149, "149", 0),
            XidSeen { interrupt_info: None, ..line(149, "NETIR_LINK_EVT", 0, 0) },
        ] {
            assert_eq!(decode(&xid).0, None, "{}", xid.text);
        }
    }

    #[test]
    fn unit_and_registers_are_read_in_every_spelling() {
        for (text, wanted_unit, wanted) in [
            (
                "149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 01 (0x021425c6 0x00000000)",
                "NETIR_LINK_EVT",
                vec![0x0214_25c6, 0],
            ),
            (
                "145, pid=9, name=a b, RLW_REMAP Nonfatal XC1 i0 Link -1 (0x4 0x40)",
                "RLW_REMAP",
                vec![4, 0x40],
            ),
            (
                "149, NETIR_LINK_EVT/NETIR_LINK_DOWN Fatal XC0 i0 Link 00 (0x11 0x0)",
                "NETIR_LINK_DOWN",
                vec![0x11, 0],
            ),
            ("149, NETIR_LINK_EVT Fatal XC 1 i 2 Link 01 [0x0000000a]", "NETIR_LINK_EVT", vec![10]),
        ] {
            assert_eq!((unit(text), registers(text)), (Some(wanted_unit), wanted), "{text}");
        }
        for text in ["", "(0x", "(0x)", "(0xzz 0x1)", "(0x123456789)", "Fatal", "[0x ( 0x"] {
            assert_eq!((unit(text), registers(text)), (None, vec![]), "{text}");
        }
    }

    #[test]
    fn xid_74_follows_its_registers() {
        let say = |registers: &str| {
            workflow_74(&format!("74, NVLink: fatal error detected on link 14({registers})")).0
        };
        for (registers, action) in [
            ("0x1, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0", GpuAction::Ignore),
            ("0x40800001, 0xff, 0x0, 0x0, 0x0, 0x0, 0x0", GpuAction::Ignore),
            ("0x2, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0", GpuAction::ContactSupport),
            ("0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0", GpuAction::ContactSupport),
            ("0x0, 0x0, 0x0, 0x10000, 0x0, 0x0, 0x0", GpuAction::ContactSupport),
            ("0x0, 0x0, 0x0, 0x40000, 0x0, 0x0, 0x0", GpuAction::RestartVm),
            ("0x0, 0x0, 0x0, 0x0, 0x100000, 0x0, 0x0", GpuAction::Report),
            ("0x0, 0x0, 0x0, 0x0, 0x140000, 0x0, 0x0", GpuAction::ContactSupport),
            ("0x0, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0", GpuAction::ContactSupport),
            ("0x1", GpuAction::ContactSupport),
        ] {
            assert_eq!(say(registers), action, "{registers}");
        }
        assert_eq!(workflow_74("").0, GpuAction::ContactSupport);
    }
}
