//! Notices and faults by hand: `POST /fake/notice?cloud=aws&kind=terminate&in_ms=120000`, `POST /fake/cancel`,
//! `POST /fake/fault?path=/latest/…&fault=503` (without `fault`: none).

use super::azure::AzureEvent;
use super::server::{Asked, Shared};

pub(super) const PREFIX: &str = "/fake/";

/// Status and body.
pub(super) fn answer(asked: &Asked, shared: &Shared) -> (u16, String) {
    let result = match (asked.method.as_str(), asked.path.trim_start_matches(PREFIX)) {
        ("POST", "notice") => notice(asked, shared),
        ("POST", "cancel") => {
            cancel(shared);
            Ok(())
        }
        ("POST", "fault") => fault(asked, shared),
        ("GET", "started") => {
            let started = shared.lock().azure.started.join("\n");
            return (200, started);
        }
        _ => return (404, "there is: POST notice, cancel, fault; GET started\n".to_owned()),
    };
    match result {
        Ok(()) => (200, "ok\n".to_owned()),
        Err(what) => (400, format!("{what}\n")),
    }
}

fn notice(asked: &Asked, shared: &Shared) -> Result<(), String> {
    let in_ms = asked.query("in_ms").unwrap_or("30000");
    let in_ms: u64 = in_ms.parse().map_err(|_| format!("in_ms={in_ms} is no number"))?;
    let kind = asked.query("kind").unwrap_or("terminate");
    let unknown = |cloud: &str| Err(format!("{cloud} announces no {kind:?}"));
    shared.change(|state| {
        let at = state.now_unix_ms() + in_ms;
        match asked.query("cloud") {
            Some("aws") => match kind {
                "terminate" | "stop" | "hibernate" => state.aws.spot = Some((kind.to_owned(), at)),
                "rebalance" => state.aws.rebalance_unix_ms = Some(state.now_unix_ms()),
                _ => return unknown("aws"),
            },
            Some("gcp") => {
                let (key, value) = match kind {
                    "terminate" => (super::GcpKey::Preempted, "TRUE"),
                    "maintenance" => (super::GcpKey::Maintenance, "MIGRATE_ON_HOST_MAINTENANCE"),
                    "stop" => (super::GcpKey::Maintenance, "TERMINATE_ON_HOST_MAINTENANCE"),
                    _ => return unknown("gcp"),
                };
                let kept = state.gcp.value(key);
                *kept = (value.to_owned(), kept.1 + 1);
            }
            Some("azure") => {
                let event_kind = match kind {
                    "terminate" => "Preempt",
                    "reboot" => "Reboot",
                    "redeploy" => "Redeploy",
                    "freeze" => "Freeze",
                    _ => return unknown("azure"),
                };
                let azure = &mut state.azure;
                azure.incarnation += 1;
                azure.events.push(AzureEvent {
                    id: format!("fake-{}", azure.incarnation),
                    kind: event_kind.to_owned(),
                    resources: vec![azure.vm.clone()],
                    not_before_unix_ms: Some(at),
                });
            }
            other => return Err(format!("cloud={} is none of aws, gcp, azure", other.unwrap_or_default())),
        }
        Ok(())
    })
}

fn cancel(shared: &Shared) {
    shared.change(|state| {
        state.aws.spot = None;
        state.aws.rebalance_unix_ms = None;
        state.aws.scheduled.clear();
        state.aws.lifecycle = None;
        for (key, value) in [(super::GcpKey::Preempted, "FALSE"), (super::GcpKey::Maintenance, "NONE")] {
            let kept = state.gcp.value(key);
            *kept = (value.to_owned(), kept.1 + 1);
        }
        state.azure.events.clear();
        state.azure.incarnation += 1;
    });
}

fn fault(asked: &Asked, shared: &Shared) -> Result<(), String> {
    let path = asked.query("path").ok_or("path= is missing")?;
    let fault = asked.query("fault").map(str::parse).transpose()?;
    shared.change(|state| state.spoil(path, fault));
    Ok(())
}
