//! From an XID and what else is known of its GPU to the action it asks for.

use cic_common::gpu::{GpuAction, RecoveryAction, XidSeen};

use super::catalogue::{Rule, entry_of};
use super::nvlink::{Step, decode, workflow_74};

/// What else is known of the GPU.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Context<'a> {
    /// Other XIDs on the same GPU within the symptom window, and what each came to.
    pub beside: &'a [(u32, GpuAction)],
    /// The driver's newest word on this GPU; `None` when it has not spoken or this driver cannot.
    pub recovery: Option<RecoveryAction>,
}

/// What an XID asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    pub action: GpuAction,
    /// For people: the code, what it means, and what turned the decision.
    pub why: String,
}

/// The action that `xid` asks for.
///
/// A code that the catalogue does not have, or of which the details are missing, is reported and nothing more: a
/// table that is too old must not restart machines.
#[must_use]
pub fn resolve(xid: &XidSeen, context: &Context<'_>) -> Resolution {
    let code = xid.code;
    let Some(entry) = entry_of(code) else {
        return Resolution { action: GpuAction::Report, why: format!("XID {code}: not in the catalogue") };
    };
    let (action, detail) = match entry.rule {
        Rule::Always(action) => (action, String::new()),
        Rule::Symptom => symptom(context),
        Rule::DoubleBitError => {
            let remapped = context.beside.iter().find(|(other, _)| matches!(other, 63 | 64));
            let detail = remapped.map(|(other, _)| format!("drain first: XID {other} is beside it"));
            (GpuAction::ResetGpu, detail.unwrap_or_default())
        }
        Rule::NvlinkRegisters => {
            let (action, detail) = workflow_74(&xid.text);
            (action, detail.to_owned())
        }
        Rule::Nvlink5 => match decode(xid) {
            (Some(Step::Always(action)), detail) => (action, detail),
            (Some(Step::AskDriver), detail) => {
                let said = context.recovery.and_then(RecoveryAction::action);
                (said.unwrap_or(GpuAction::RestartApp), detail)
            }
            (None, detail) => (GpuAction::Report, detail),
        },
        Rule::AsRecovery => match xid.recovery {
            Some(word) => (word.action().unwrap_or(GpuAction::Ignore), format!("to {}", recovery_text(word))),
            // NVML's event has no text. The sampled word may be older than it; the next sample tells.
            None => (GpuAction::Report, "without the action".to_owned()),
        },
        Rule::Person(what) => (GpuAction::ContactSupport, what.to_owned()),
        Rule::NoneGiven => (GpuAction::Report, String::new()),
    };
    let what = entry.what;
    let why = if detail.is_empty() {
        format!("XID {code}: {what}")
    } else {
        format!("XID {code}: {what} ({detail})")
    };
    Resolution { action, why }
}

/// The driver's word in plain words, after NVIDIA's names for the numbers.
#[must_use]
pub fn recovery_text(word: RecoveryAction) -> String {
    match word {
        RecoveryAction::None => "none".to_owned(),
        RecoveryAction::GpuReset => "GPU reset".to_owned(),
        RecoveryAction::NodeReboot => "node reboot".to_owned(),
        RecoveryAction::DrainPeerToPeer => "drain peer-to-peer".to_owned(),
        RecoveryAction::DrainAndReset => "drain and reset".to_owned(),
        RecoveryAction::RecoverImex => "recover the IMEX domain".to_owned(),
        RecoveryAction::BusReset => "bus reset".to_owned(),
        RecoveryAction::SystemReboot => "system reboot".to_owned(),
        RecoveryAction::Unknown(number) => format!("unknown action {number}"),
    }
}

/// NVIDIA, workflow of XID 45: beside another code follow that one. Alone NVIDIA asks for the fabric manager to be
/// restarted, which a tenant does not have; every engine that is killed leaves some (NVSentinel #1710).
fn symptom(context: &Context<'_>) -> (GpuAction, String) {
    match context.beside.iter().max_by_key(|(_, action)| *action) {
        Some((other, action)) => (*action, format!("follows XID {other}")),
        None => (GpuAction::Report, "alone: a process was ended".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use cic_common::gpu::XidSource;

    use super::*;

    fn xid(code: u32) -> XidSeen {
        XidSeen {
            source: XidSource::Kmsg,
            pci: None,
            code,
            pid: None,
            interrupt_info: None,
            recovery: None,
            text: String::new(),
        }
    }

    fn alone(xid: &XidSeen) -> GpuAction {
        resolve(xid, &Context::default()).action
    }

    #[test]
    fn every_code_comes_to_an_action_and_an_unknown_one_is_only_reported() {
        for code in 0..=300 {
            let resolution = resolve(&xid(code), &Context::default());
            assert!(resolution.why.starts_with(&format!("XID {code}: ")), "{}", resolution.why);
            if code == 0 || code > 172 {
                assert_eq!(resolution.action, GpuAction::Report, "{code}");
            }
        }
    }

    #[test]
    fn every_rule_and_every_action_is_reached() {
        let name = |rule: Rule| format!("{rule:?}").split('(').next().unwrap_or_default().to_owned();
        let rules: BTreeSet<_> = (1..=172).filter_map(entry_of).map(|entry| name(entry.rule)).collect();
        assert_eq!(rules.len(), 8, "{rules:?}");
        let actions: BTreeSet<_> = (0..=300).map(|code| alone(&xid(code))).collect();
        assert_eq!(actions.into_iter().collect::<Vec<_>>(), GpuAction::ALL);
    }

    #[test]
    fn the_codes_that_matter_come_to_these_actions() {
        for (code, action) in [
            (13, GpuAction::RestartApp),
            (31, GpuAction::RestartApp),
            (43, GpuAction::Ignore),
            (48, GpuAction::ResetGpu),
            (54, GpuAction::ContactSupport),
            (63, GpuAction::Ignore),
            (64, GpuAction::ResetGpu),
            (74, GpuAction::ContactSupport),
            (78, GpuAction::ContactSupport),
            (79, GpuAction::ReplaceNode),
            (94, GpuAction::RestartApp),
            (95, GpuAction::ResetGpu),
            (119, GpuAction::ResetGpu),
            (120, GpuAction::ResetGpu),
            (149, GpuAction::Report),
            (151, GpuAction::RestartVm),
            (154, GpuAction::Report),
            (159, GpuAction::ContactSupport),
            (162, GpuAction::Report),
            (172, GpuAction::Report),
        ] {
            assert_eq!(alone(&xid(code)), action, "{code}");
        }
    }

    #[test]
    fn a_symptom_alone_is_reported_and_beside_others_follows_the_gravest() {
        assert_eq!(alone(&xid(45)), GpuAction::Report);
        for (beside, action) in [
            (vec![(43, GpuAction::Ignore)], GpuAction::Ignore),
            (vec![(31, GpuAction::RestartApp)], GpuAction::RestartApp),
            (
                vec![(63, GpuAction::Ignore), (95, GpuAction::ResetGpu), (94, GpuAction::RestartApp)],
                GpuAction::ResetGpu,
            ),
        ] {
            let resolution = resolve(&xid(45), &Context { beside: &beside, recovery: None });
            assert_eq!(resolution.action, action, "{}", resolution.why);
            assert!(resolution.why.contains("follows XID"), "{}", resolution.why);
        }
    }

    #[test]
    fn a_double_bit_error_beside_a_remap_says_to_drain() {
        let beside = [(63, GpuAction::Ignore)];
        let resolution = resolve(&xid(48), &Context { beside: &beside, recovery: None });
        assert_eq!(resolution.action, GpuAction::ResetGpu);
        assert!(resolution.why.contains("drain first"), "{}", resolution.why);
    }

    #[test]
    fn xid_154_says_what_the_driver_says() {
        for (word, action) in [
            (RecoveryAction::None, GpuAction::Ignore),
            (RecoveryAction::GpuReset, GpuAction::ResetGpu),
            (RecoveryAction::NodeReboot, GpuAction::RestartVm),
            (RecoveryAction::DrainPeerToPeer, GpuAction::RestartApp),
            (RecoveryAction::Unknown(99), GpuAction::Report),
        ] {
            assert_eq!(alone(&XidSeen { recovery: Some(word), ..xid(154) }), action, "{word:?}");
            let context = Context { beside: &[], recovery: Some(word) };
            assert_eq!(resolve(&xid(154), &context).action, GpuAction::Report, "{word:?} may be old");
        }
    }

    #[test]
    fn an_nvlink_5_fault_asks_the_driver_where_the_table_says_so() {
        let text = "145, RLW_REMAP Nonfatal XC1 i0 Link 03 (0x00000004 0x00000001)";
        let seen = XidSeen { interrupt_info: Some(4), text: text.to_owned(), ..xid(145) };
        assert_eq!(alone(&seen), GpuAction::RestartApp);
        for (word, action) in
            [(RecoveryAction::None, GpuAction::RestartApp), (RecoveryAction::GpuReset, GpuAction::ResetGpu)]
        {
            let context = Context { beside: &[], recovery: Some(word) };
            assert_eq!(resolve(&seen, &context).action, action, "{word:?}");
        }
    }
}
