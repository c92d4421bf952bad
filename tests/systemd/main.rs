//! The unit `systemd/cic-agent.service` under a real systemd: what outlives the agent, and what the end of the machine
//! leaves time for.
//!
//! ```text
//! test -> apart (the same test once more, in namespaces of its own) -> machine (systemd-nspawn on these files) -> client
//! ```

mod apart;
mod files;
mod machine;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use fleet_tests::process::{Ask, Heard};
use serde_json::{Value, json};

use self::machine::Machine;

/// Longest for what must happen; a loaded machine is slow.
const SOON: Duration = Duration::from_secs(60);

/// Of `[spot] shutdown_window_ms`, by default.
const SHUTDOWN_WINDOW: Duration = Duration::from_secs(20);

fn wait_serving(machine: &mut Machine, is_adopted: bool) -> Value {
    machine.wait_for("serving engine", SOON, |report| {
        let is_it = report["phase"] == "serving" && report["engine"]["is_adopted"] == is_adopted;
        is_it.then(|| report["engine"].clone())
    })
}

#[test]
fn the_engine_outlives_each_end_of_the_agent_and_only_a_bad_configuration_is_not_tried_again() {
    let Some(mut machine) = Machine::boot() else { return };
    wait_serving(&mut machine, false);
    assert_eq!(machine.complaints(), "");
    let engine = machine.engine().expect("recorded");
    for way in [
        &["restart"][..],
        &["kill", "--kill-whom=main", "--signal=KILL"],
        &["kill", "--kill-whom=main", "--signal=TERM"],
    ] {
        let agent = machine.property("MainPID");
        machine.systemctl(&[way, &["cic-agent.service"]].concat());
        machine.wait_until("another run of the agent", SOON, |machine| {
            let now = machine.property("MainPID");
            now != "0" && now != agent
        });
        let seen = wait_serving(&mut machine, true);
        println!("{way:?}: agent {agent}, then {}; engine {seen}", machine.property("MainPID"));
        assert_eq!(machine.engine(), Some(engine), "{way:?}");
    }

    let good = machine.configure("[nod]\n");
    machine.systemctl(&["restart", "cic-agent.service"]);
    machine.wait_until("the unit given up", SOON, |machine| machine.property("ActiveState") == "failed");
    assert_eq!(machine.property("ExecMainStatus"), "78");
    machine.configure(&good);
    machine.systemctl(&["start", "cic-agent.service"]);
    wait_serving(&mut machine, true);
    assert_eq!(machine.engine(), Some(engine), "it outlives the unit too");
}

#[test]
fn a_machine_that_goes_down_keeps_its_network_until_streams_have_ended_and_the_agent_has_stopped_the_engine()
{
    /// Of 50 ms each: six seconds.
    const TOKENS: usize = 120;
    let Some(mut machine) = Machine::boot() else { return };
    wait_serving(&mut machine, false);
    let (told, counts) = mpsc::channel();
    let edge = machine.edge();
    let stream = std::thread::spawn(move || {
        let body = json!({
            "model": "tiny", "prompt": "1", "max_tokens": TOKENS, "stream": true, "ignore_eos": true,
            "return_token_ids": true,
        });
        let ask = Ask { path: "/v1/completions", body };
        let heard = Heard::listen(&edge, &ask, &mut |_, count| {
            let _ = told.send(count);
        });
        (heard, Instant::now())
    });
    let has_begun = std::iter::from_fn(|| counts.recv_timeout(SOON).ok()).any(|count| count > 1);
    assert!(has_begun, "{}", machine.told());

    machine.systemctl(&["poweroff"]);
    let began = Instant::now();
    let notice = machine.wait_for("the machine's end noticed", SOON, |report| {
        let is_it = report["phase"] == "draining" && report["notice"]["source"] == "shutdown";
        is_it.then(|| report["notice"].clone())
    });
    let noticed_after = began.elapsed();
    let (heard, ended_at) = stream.join().expect("a thread");
    machine.wait_off(SOON);
    let off_after = began.elapsed();
    let ended_after = ended_at.saturating_duration_since(began);
    println!(
        "asked over a new connection after {:.2} s: {notice}; stream over after {:.2} s: {}; machine off after {:.2} s",
        noticed_after.as_secs_f64(),
        ended_after.as_secs_f64(),
        heard.ending(),
        off_after.as_secs_f64()
    );

    let journal = machine.journal();
    assert!(heard.is_whole(), "{}\n{journal}", heard.ending());
    assert_eq!(heard.token_ids().len(), TOKENS, "{}", heard.ending());
    assert!(noticed_after < ended_after, "the stream ran when the machine was going down:\n{journal}");
    assert!(off_after < SHUTDOWN_WINDOW, "{off_after:?}\n{journal}");
    // Whoever sees the engine's end removes its record: init's last SIGKILL does not.
    assert_eq!(machine.engine(), None, "{journal}");
    assert!(!journal.contains("remains running after unit stopped"), "left to init:\n{journal}");
    assert_order(
        &journal,
        &[
            "Stopping cic-agent.service",
            "source: \"shutdown\"",
            "EngineExited",
            "Farewell",
            "Stopped cic-agent.service",
            "Stopping wire.service",
        ],
    );
}

/// That lines with these parts follow each other; prints them.
fn assert_order(journal: &str, parts: &[&str]) {
    let mut lines = journal.lines();
    for part in parts {
        let Some(line) = lines.find(|line| line.contains(part)) else {
            panic!("no {part:?} where it should be in\n{journal}")
        };
        println!("{line}");
    }
}
