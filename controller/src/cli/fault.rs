//! `cic fault`: breaks one node of provider `local` by signals to its own processes.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::time::unix_ms;
use nix::sys::signal::Signal;
use serde_json::json;

use super::args::{FaultArgs, FaultKind};
use super::endpoint::DevRecord;
use super::failure::Failure;
use super::processes;
use super::span;
use crate::provision::local::{Home, MachineRecord, homes, process};

/// After SIGKILL a process goes unless it hangs in the kernel.
const KILL_WITHIN: Duration = Duration::from_secs(5);

pub(super) async fn fault(args: &FaultArgs) -> Result<(), Failure> {
    let node = Node::find(&directory(args.dir.as_deref())?, &args.node)?;
    let began = unix_ms();
    match args.kind {
        FaultKind::Kill => {
            if !process::kill_all(KILL_WITHIN, || processes::of_home(&node.home)).await {
                return Err(Failure::new(format!("{}: some processes remain after SIGKILL", node.name)));
            }
            node.say("killed: machine, agent and engine");
        }
        FaultKind::Freeze => {
            node.signal_inside(Signal::SIGSTOP)?;
            node.say("frozen: agent and engine are stopped; `cic fault NODE thaw` lets them go on");
        }
        FaultKind::Thaw => {
            node.signal_inside(Signal::SIGCONT)?;
            node.say("thawed");
        }
        FaultKind::KillAgent => {
            let pid = node.home.agent_pid().filter(|pid| processes::of_home(&node.home).contains(pid));
            let pid = pid.ok_or_else(|| Failure::new(format!("{}: no agent runs", node.name)))?;
            process::send(pid, Signal::SIGKILL);
            node.say(&format!("agent {pid} killed; its engine runs on"));
        }
        FaultKind::Partition => {
            node.signal_machine(Signal::SIGUSR1)?;
            node.say("partitioned: its network drops everything; `cic fault NODE mend` ends it");
        }
        FaultKind::Mend => {
            node.signal_machine(Signal::SIGUSR2)?;
            node.say("mended");
        }
        FaultKind::Notice => node.give_notice(args.within)?,
    }
    let Some(lasting) = args.lasting else { return Ok(()) };
    let after = match args.kind {
        FaultKind::Partition => Some((Signal::SIGUSR2, "mended")),
        FaultKind::Freeze => Some((Signal::SIGCONT, "thawed")),
        FaultKind::Kill | FaultKind::Thaw | FaultKind::KillAgent | FaultKind::Mend | FaultKind::Notice => {
            None
        }
    };
    let Some((signal, done)) = after else { return Ok(()) };
    let spent = Duration::from_millis(unix_ms().saturating_sub(began));
    // Ctrl-C must not leave the node broken for longer than was asked.
    let interrupted = tokio::select! {
        () = tokio::time::sleep(lasting.saturating_sub(spent)) => false,
        _ = tokio::signal::ctrl_c() => true,
    };
    match signal {
        Signal::SIGUSR2 => node.signal_machine(signal)?,
        _ => node.signal_inside(signal)?,
    }
    node.say(&format!("{done}{}", if interrupted { " (interrupted)" } else { "" }));
    Ok(())
}

fn directory(given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(dir) = given {
        return dir.canonicalize().map_err(|error| Failure::new(format!("--dir {}: {error}", dir.display())));
    }
    let running = DevRecord::running().map(|dev| dev.dir);
    running.ok_or_else(|| {
        Failure::new("no `cic dev` is running; pass --dir, the directory of its provider `local`")
    })
}

struct Node {
    name: NodeId,
    home: Home,
}

impl Node {
    fn find(directory: &Path, ending: &str) -> Result<Self, Failure> {
        let homes =
            homes(directory).map_err(|error| Failure::new(format!("{}: {error}", directory.display())))?;
        let mut known: Vec<Self> = Vec::new();
        for home in homes {
            if let Ok(Some(launch)) = home.launch() {
                known.push(Self { name: launch.node, home });
            }
        }
        let names = known.iter().map(|node| node.name.to_string()).collect::<Vec<_>>().join(", ");
        let is_exact = |node: &Self| node.name.as_str() == ending;
        if !known.iter().any(is_exact) {
            known.retain(|node| node.name.as_str().ends_with(ending));
        } else {
            known.retain(is_exact);
        }
        match known.len() {
            1 => Ok(known.remove(0)),
            0 => Err(Failure::new(format!(
                "no node in {} ends in {ending:?}; there is: {}",
                directory.display(),
                if names.is_empty() { "none" } else { &names }
            ))),
            count => Err(Failure::new(format!("{ending:?} fits {count} nodes; give more of the name"))),
        }
    }

    /// A reader that is gone is no reason to leave the node broken for longer than was asked.
    fn say(&self, what: &str) {
        let _ = writeln!(io::stdout(), "{} {}: {what}", cic_common::time::utc_text(unix_ms()), self.name);
    }

    fn machine(&self) -> Result<MachineRecord, Failure> {
        let machine = self.home.machine().ok().flatten().filter(MachineRecord::is_running);
        machine.ok_or_else(|| Failure::new(format!("{}: its machine does not run", self.name)))
    }

    fn signal_machine(&self, signal: Signal) -> Result<(), Failure> {
        process::send(self.machine()?.pid, signal);
        Ok(())
    }

    /// Everything in the VM but the machine itself, which plays the hardware.
    fn signal_inside(&self, signal: Signal) -> Result<(), Failure> {
        let machine = self.machine()?.pid;
        let inside: Vec<u32> =
            processes::of_home(&self.home).into_iter().filter(|pid| *pid != machine).collect();
        inside.iter().for_each(|pid| process::send(*pid, signal));
        if inside.is_empty() {
            return Err(Failure::new(format!("{}: neither agent nor engine runs", self.name)));
        }
        Ok(())
    }

    fn give_notice(&self, within: Duration) -> Result<(), Failure> {
        let text =
            json!({ "kind": "terminate", "id": format!("fault-{}", unix_ms()), "in_s": within.as_secs() });
        let path = self.home.file("notice.json");
        let part = path.with_extension("part");
        // The agent may look at any moment: it must see all of it or nothing.
        std::fs::write(&part, text.to_string())
            .and_then(|()| std::fs::rename(&part, &path))
            .map_err(|error| Failure::new(format!("{} cannot be written: {error}", path.display())))?;
        self.say(&format!("given notice: it is taken in {}", span::text(within)));
        Ok(())
    }
}
