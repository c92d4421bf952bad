//! `cic fault`: breaks one node of provider `local` by signals to its own processes.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::notice::Cloud;
use cic_common::time::unix_ms;
use nix::sys::signal::Signal;
use serde_json::json;

use super::args::{FaultArgs, FaultKind};
use super::endpoint::DevRecord;
use super::failure::Failure;
use super::processes;
use super::span;
use crate::provision::local::{Home, MachineRecord, Taking, homes, process};

/// The metadata service of a node answers from memory.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

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
        FaultKind::Notice => node.give_notice(args.within, args.cloud.as_deref())?,
        FaultKind::Lift => node.lift_notice()?,
    }
    let Some(lasting) = args.lasting else { return Ok(()) };
    let after = match args.kind {
        FaultKind::Partition => Some((Signal::SIGUSR2, "mended")),
        FaultKind::Freeze => Some((Signal::SIGCONT, "thawed")),
        FaultKind::Kill
        | FaultKind::Thaw
        | FaultKind::KillAgent
        | FaultKind::Mend
        | FaultKind::Notice
        | FaultKind::Lift => None,
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
    cloud: Cloud,
}

impl Node {
    fn find(directory: &Path, ending: &str) -> Result<Self, Failure> {
        let homes =
            homes(directory).map_err(|error| Failure::new(format!("{}: {error}", directory.display())))?;
        let mut known: Vec<Self> = Vec::new();
        for home in homes {
            if let Ok(Some(launch)) = home.launch() {
                known.push(Self { name: launch.node, home, cloud: launch.hardware.cloud });
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

    /// Announces that the VM is taken `within`, and has it taken then.
    fn give_notice(&self, within: Duration, cloud: Option<&str>) -> Result<(), Failure> {
        if let Some(cloud) = cloud.filter(|cloud| *cloud != self.cloud.as_str()) {
            let (name, own) = (&self.name, self.cloud);
            return Err(Failure::new(format!(
                "{name} plays a machine of {own}, and gets no notice of {cloud}: start `cic dev --cloud {cloud}`"
            )));
        }
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let at_unix_ms = unix_ms().saturating_add(within_ms);
        let by = match cloud {
            Some("runpod") => {
                let pid = self.home.agent_pid().filter(|pid| processes::of_home(&self.home).contains(pid));
                let pid = pid.ok_or_else(|| Failure::new(format!("{}: no agent runs", self.name)))?;
                process::send(pid, Signal::SIGTERM);
                "SIGTERM".to_owned()
            }
            Some(cloud) => {
                self.tell_metadata(&format!("/fake/notice?cloud={cloud}&kind=terminate&in_ms={within_ms}"))?;
                format!("the metadata service of {cloud}")
            }
            None => {
                self.write_notice(within)?;
                "the notice file".to_owned()
            }
        };
        let failed = |error: io::Error| Failure::new(format!("{}: {error}", self.name));
        self.home.take_at(Some(Taking { at_unix_ms })).map_err(failed)?;
        let told = match cloud {
            Some("gcp") => "; Google names no moment, and the agent counts on 30 s",
            Some("runpod") => "; the agent counts on 5 s",
            Some(_) | None => "",
        };
        self.say(&format!("given notice by {by}: it is taken in {}{told}", span::text(within)));
        Ok(())
    }

    fn lift_notice(&self) -> Result<(), Failure> {
        if self.cloud == Cloud::Runpod {
            return Err(Failure::new(format!("{}: a signal cannot be taken back", self.name)));
        }
        let failed = |error: io::Error| Failure::new(format!("{}: {error}", self.name));
        self.home.take_at(None).map_err(failed)?;
        match std::fs::remove_file(self.home.file("notice.json")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        if self.home.metadata().is_some() {
            self.tell_metadata("/fake/cancel")?;
        }
        self.say("its notice is taken back");
        Ok(())
    }

    fn write_notice(&self, within: Duration) -> Result<(), Failure> {
        let text =
            json!({ "kind": "terminate", "id": format!("fault-{}", unix_ms()), "in_s": within.as_secs() });
        let path = self.home.file("notice.json");
        let part = path.with_extension("part");
        // The agent may look at any moment: it must see all of it or nothing.
        std::fs::write(&part, text.to_string())
            .and_then(|()| std::fs::rename(&part, &path))
            .map_err(|error| Failure::new(format!("{} cannot be written: {error}", path.display())))
    }

    /// Has the node's metadata service say something else from now on.
    fn tell_metadata(&self, path: &str) -> Result<(), Failure> {
        let failed = |what: String| Failure::new(format!("{}: its metadata service {what}", self.name));
        let address = self.home.metadata().ok_or_else(|| failed("was not started".to_owned()))?;
        let exchange = || -> io::Result<String> {
            let mut stream = TcpStream::connect(&address)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            );
            stream.write_all(head.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = exchange().map_err(|error| failed(format!("at {address} does not answer: {error}")))?;
        if answer.starts_with("HTTP/1.1 200") {
            return Ok(());
        }
        Err(failed(format!("says {:?}", answer.lines().last().unwrap_or_default())))
    }
}
