//! The controller's calls at the cloud, and what becomes of the machines.

use std::time::Duration;

use cic_controller::core::Event;

use super::fact::Fact;
use super::happening::{CloudAct, Happening};
use super::machine::{Host, Machine};
use super::world::World;

/// How far zones are from the controller, by the length of their name: nothing depends on it but variety.
const ZONE_DISTANCE: Duration = Duration::from_millis(3);

impl World {
    pub(super) fn call_cloud(&mut self, act: CloudAct) {
        let now = self.now();
        let call = self.cloud.call(now);
        let run = self.controller.run;
        if let Some(fault) = call.instead.clone() {
            let event = match &act {
                CloudAct::Launch { operation, .. } | CloudAct::Terminate { operation, .. } => {
                    Event::Performed { operation: *operation, result: Err(fault) }
                }
                CloudAct::List { provider } => {
                    Event::Listed { provider: provider.clone(), result: Err(fault) }
                }
            };
            self.queue.push(call.reply_at, Happening::ControllerHears { run, event: Box::new(event) });
        }
        if let Some((at, reply_at)) = call.again {
            let (act, reply_at) = (Box::new(act.clone()), Some(reply_at));
            self.queue.push(at, Happening::CloudActs { run, act, reply_at });
        }
        if let Some(at) = call.act_at {
            let reply_at = call.instead.is_none().then_some(call.reply_at);
            self.queue.push(at, Happening::CloudActs { run, act: Box::new(act), reply_at });
        }
    }

    pub(super) fn cloud_acts(&mut self, run: u32, act: CloudAct, reply_at: Option<cic_common::time::Mono>) {
        let now = self.now();
        let is_act = !matches!(act, CloudAct::List { .. });
        if is_act {
            self.passes(run, "a call before it is carried out");
        }
        let event = match act {
            CloudAct::Launch { operation, node, deployment, zone } => {
                let made = self.cloud.launch(now, operation, &node, &zone);
                if let Ok(Some(vm)) = made {
                    self.add_machine(Machine::new(node, deployment, vm, zone));
                }
                Event::Performed { operation, result: made.map(|_| ()) }
            }
            CloudAct::Terminate { operation, node } => {
                for vm in self.cloud.terminate(now, &node) {
                    self.host_ends(vm);
                }
                Event::Performed { operation, result: Ok(()) }
            }
            CloudAct::List { provider } => Event::Listed { provider, result: Ok(self.cloud.list(now)) },
        };
        if is_act {
            self.passes(run, "a call after it is carried out");
        }
        if let Some(at) = reply_at {
            self.queue.push(at, Happening::ControllerHears { run, event: Box::new(event) });
        }
    }

    fn add_machine(&mut self, machine: Machine) {
        let node = self.machines.len();
        let boots_at = self.cloud.vms()[machine.vm].boots_at;
        self.network.attach(ZONE_DISTANCE * u32::try_from(machine.zone.len()).unwrap_or(1));
        self.by_node.insert(machine.node.clone(), node);
        self.machines.push(machine);
        self.queue.push(boots_at, Happening::HostBoots { node });
        self.facts.push(Fact::Launched { node });
    }

    pub(super) fn vm_ends(&mut self, vm: usize) {
        let now = self.now();
        self.cloud.end(now, vm);
        self.host_ends(vm);
    }

    pub(super) fn vm_stops(&mut self, vm: usize) {
        self.cloud.stop(vm);
        let Some(node) = self.machines.iter().position(|machine| machine.vm == vm) else { return };
        self.host_dies(node, Host::Down);
    }

    fn host_ends(&mut self, vm: usize) {
        if let Some(node) = self.machines.iter().position(|machine| machine.vm == vm) {
            self.host_dies(node, Host::Ended);
        }
    }

    /// All that runs on it is gone without a word to anyone.
    pub(super) fn host_dies(&mut self, node: usize, host: Host) {
        let now = self.now();
        let name = self.machines[node].node.clone();
        self.trace.line(now, || format!("{name} host is {host:?}"));
        self.end_process(node);
        let machine = &mut self.machines[node];
        if machine.host != Host::Ended {
            machine.host = host;
        }
        machine.engine = None;
        machine.is_warm = false;
        machine.is_frozen = false;
        machine.pile.clear();
    }
}
