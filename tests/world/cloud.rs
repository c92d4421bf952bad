//! A cloud that does what clouds do: quota, no stock, slow boots, replies that get lost after the act, requests
//! carried out late, listings that lag, and VMs taken back.

use std::collections::BTreeMap;
use std::time::Duration;

use cic_common::id::{FleetName, NodeId, OperationId};
use cic_common::time::Mono;
use cic_controller::core::{CloudFault, Instance, InstanceState};

use super::rng::Rng;

/// How this cloud behaves. Shares are 0.0 to 1.0 of the calls.
#[derive(Debug, Clone, Copy)]
pub struct Manners {
    /// VMs that may exist at once.
    pub quota: usize,
    /// Calls carried out whose reply is lost or an error.
    pub lost_reply: f64,
    /// Calls carried out only after their caller has given up.
    pub late: f64,
    /// Calls carried out whose reply says that they were not.
    pub denied: f64,
    /// Calls carried out twice, each time answered.
    pub duplicated: f64,
    /// Whether a repeated launch finds what the first made. Only a broken cloud does not.
    pub looks_up_ids: bool,
    /// Launches refused for want of stock.
    pub scarce: f64,
    /// Launches whose host is so slow to boot that it looks dead.
    pub slow_boot: f64,
    /// A new VM may be missing from listings up to this long, a dead one linger a quarter of it.
    pub visibility: Duration,
}

impl Manners {
    /// Nothing goes wrong; only the ordinary waits are left.
    pub const GOOD: Self = Self {
        quota: usize::MAX,
        lost_reply: 0.0,
        late: 0.0,
        denied: 0.0,
        duplicated: 0.0,
        looks_up_ids: true,
        scarce: 0.0,
        slow_boot: 0.0,
        visibility: Duration::from_secs(5),
    };
}

/// Boot time of a VM, from its creation to its host answering.
const BOOT_MS: (u64, u64) = (10_000, 120_000);

/// What a slow boot adds.
const SLOW_BOOT_MS: (u64, u64) = (60_000, 400_000);

/// An ordinary API call, either way.
const CALL_MS: (u64, u64) = (20, 400);

/// The caller's own deadline for one call.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// How late a call that its caller gave up is still carried out.
const LATE_MS: (u64, u64) = (5_000, 20_000);

/// How one API call goes: when it is carried out, when the caller hears, and what if not the truth.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    pub act_at: Option<Mono>,
    pub reply_at: Mono,
    /// What the caller hears instead of the outcome.
    pub instead: Option<CloudFault>,
    /// The request is carried out once more, and that is answered too.
    pub again: Option<(Mono, Mono)>,
}

/// Whether a VM runs, for the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmState {
    Running,
    Stopped,
    Ended,
}

/// One VM of ours, from its launch on. Ended ones are kept: a repeated launch finds them.
#[derive(Debug, Clone)]
pub struct Vm {
    pub node: NodeId,
    pub operation: OperationId,
    pub zone: String,
    pub created_at: Mono,
    pub boots_at: Mono,
    pub ended_at: Option<Mono>,
    pub state: VmState,
    listed_from: Mono,
    listed_until: Option<Mono>,
}

/// The provider.
#[derive(Debug)]
pub struct Cloud {
    vms: Vec<Vm>,
    by_operation: BTreeMap<OperationId, usize>,
    manners: Manners,
    outage_until: Mono,
    drought_until: Mono,
    rng: Rng,
}

impl Cloud {
    #[must_use]
    pub fn new(manners: Manners, rng: Rng) -> Self {
        let (vms, by_operation) = (Vec::new(), BTreeMap::new());
        Self { vms, by_operation, manners, outage_until: Mono::ZERO, drought_until: Mono::ZERO, rng }
    }

    /// No call is answered until then; a fifth of them are carried out all the same.
    pub fn fail_until(&mut self, until: Mono) {
        self.outage_until = self.outage_until.max(until);
    }

    /// No launch finds stock until then.
    pub fn run_dry_until(&mut self, until: Mono) {
        self.drought_until = self.drought_until.max(until);
    }

    /// Ends every fault of the cloud.
    pub fn clear(&mut self) {
        let Manners { visibility, looks_up_ids, .. } = self.manners;
        self.manners = Manners { visibility, looks_up_ids, ..Manners::GOOD };
        (self.outage_until, self.drought_until) = (Mono::ZERO, Mono::ZERO);
    }

    #[must_use]
    pub fn is_failing(&self, now: Mono) -> bool {
        now < self.outage_until
    }

    /// Decides how a call made now goes.
    pub fn call(&mut self, now: Mono) -> Call {
        let reach = now + self.rng.ms(CALL_MS.0, CALL_MS.1);
        let no_answer = |text: &str| Some(CloudFault::NoAnswer(text.to_owned()));
        let deadline = now + CALL_DEADLINE;
        if now < self.outage_until {
            let act_at = self.rng.chance(0.2).then_some(reach);
            let reply_at = if self.rng.chance(0.5) { deadline } else { reach };
            return Call { act_at, reply_at, instead: no_answer("503 service unavailable"), again: None };
        }
        if self.rng.chance(self.manners.late) {
            let act_at = Some(now + self.rng.ms(LATE_MS.0, LATE_MS.1));
            return Call { act_at, reply_at: deadline, instead: no_answer("timed out"), again: None };
        }
        if self.rng.chance(self.manners.lost_reply) {
            let reply_at = if self.rng.chance(0.5) { deadline } else { reach };
            let instead = no_answer("connection reset");
            return Call { act_at: Some(reach), reply_at, instead, again: None };
        }
        let reply_at = reach + self.rng.ms(CALL_MS.0, CALL_MS.1);
        let denied = self.rng.chance(self.manners.denied);
        let instead = denied.then(|| CloudFault::NoCapacity("internal error after the act".to_owned()));
        let duplicated = self.rng.chance(self.manners.duplicated);
        let again = duplicated.then(|| {
            let act_at = reach + self.rng.ms(0, LATE_MS.1);
            (act_at, act_at + self.rng.ms(CALL_MS.0, CALL_MS.1))
        });
        Call { act_at: Some(reach), reply_at, instead, again }
    }

    /// Makes the VM of `node`, or finds the one that this operation made. Returns the index of a new one.
    ///
    /// # Errors
    /// No capacity, when the quota is reached or there is no stock.
    pub fn launch(
        &mut self,
        now: Mono,
        operation: OperationId,
        node: &NodeId,
        zone: &str,
    ) -> Result<Option<usize>, CloudFault> {
        if self.manners.looks_up_ids && self.by_operation.contains_key(&operation) {
            return Ok(None);
        }
        if self.alive().count() >= self.manners.quota {
            return Err(CloudFault::NoCapacity("quota reached".to_owned()));
        }
        if now < self.drought_until || self.rng.chance(self.manners.scarce) {
            return Err(CloudFault::NoCapacity("insufficient capacity".to_owned()));
        }
        let mut boots_at = now + self.rng.ms(BOOT_MS.0, BOOT_MS.1);
        if self.rng.chance(self.manners.slow_boot) {
            boots_at = boots_at + self.rng.ms(SLOW_BOOT_MS.0, SLOW_BOOT_MS.1);
        }
        let lag = self.rng.ms(0, ms(self.manners.visibility));
        let index = self.vms.len();
        self.by_operation.insert(operation, index);
        self.vms.push(Vm {
            node: node.clone(),
            operation,
            zone: zone.to_owned(),
            created_at: now,
            boots_at,
            ended_at: None,
            state: VmState::Running,
            listed_from: now + lag,
            listed_until: None,
        });
        Ok(Some(index))
    }

    /// Gives every VM of `node` back; returns those that were still there.
    pub fn terminate(&mut self, now: Mono, node: &NodeId) -> Vec<usize> {
        let indices: Vec<usize> =
            (0..self.vms.len()).filter(|&i| self.vms[i].node == *node && self.exists(i)).collect();
        for &index in &indices {
            self.end(now, index);
        }
        indices
    }

    /// The VM is no more, by whoever's will.
    pub fn end(&mut self, now: Mono, index: usize) {
        let linger = self.rng.ms(0, ms(self.manners.visibility) / 4);
        let vm = &mut self.vms[index];
        vm.state = VmState::Ended;
        vm.ended_at.get_or_insert(now);
        vm.listed_until.get_or_insert(now + linger);
    }

    /// The VM is there and does not run: a stop notice, or a dead host found out.
    pub fn stop(&mut self, index: usize) {
        if self.exists(index) {
            self.vms[index].state = VmState::Stopped;
        }
    }

    /// What a listing shows now. An ended VM may linger in it, as running.
    #[must_use]
    pub fn list(&self, now: Mono) -> Vec<Instance> {
        let is_listed = |vm: &&Vm| vm.listed_from <= now && vm.listed_until.is_none_or(|until| now < until);
        self.vms
            .iter()
            .filter(is_listed)
            .map(|vm| Instance {
                fleet: FleetName::default(),
                node: vm.node.clone(),
                operation: vm.operation,
                state: match vm.state {
                    VmState::Running | VmState::Ended => InstanceState::Running,
                    VmState::Stopped => InstanceState::Stopped,
                },
            })
            .collect()
    }

    #[must_use]
    pub fn vms(&self) -> &[Vm] {
        &self.vms
    }

    /// VMs that cost money: created and not ended.
    pub fn alive(&self) -> impl Iterator<Item = &Vm> {
        self.vms.iter().filter(|vm| vm.state != VmState::Ended)
    }

    /// What all VMs have cost until now, in time.
    #[must_use]
    pub fn cost(&self, now: Mono) -> Duration {
        self.vms.iter().map(|vm| vm.ended_at.unwrap_or(now).since(vm.created_at)).sum()
    }

    fn exists(&self, index: usize) -> bool {
        self.vms[index].state != VmState::Ended
    }
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Mono {
        Mono::from_millis(s * 1000)
    }

    fn node(n: u32) -> NodeId {
        NodeId::new(format!("node{n}")).expect("a label")
    }

    fn cloud(manners: Manners) -> Cloud {
        Cloud::new(manners, Rng::new(5))
    }

    #[test]
    fn one_operation_makes_one_vm_however_often_it_is_asked() {
        let mut cloud = cloud(Manners::GOOD);
        assert_eq!(cloud.launch(at(0), OperationId(1), &node(1), "a"), Ok(Some(0)));
        assert_eq!(cloud.launch(at(1), OperationId(1), &node(1), "a"), Ok(None));
        cloud.terminate(at(2), &node(1));
        assert_eq!(cloud.launch(at(3), OperationId(1), &node(1), "a"), Ok(None), "an ended one is found too");
        assert_eq!(cloud.alive().count(), 0);
    }

    #[test]
    fn the_quota_counts_what_is_alive() {
        let mut cloud = cloud(Manners { quota: 1, ..Manners::GOOD });
        assert!(cloud.launch(at(0), OperationId(1), &node(1), "a").is_ok());
        let refused = cloud.launch(at(0), OperationId(2), &node(2), "a");
        assert!(matches!(refused, Err(CloudFault::NoCapacity(_))));
        cloud.terminate(at(1), &node(1));
        assert!(cloud.launch(at(2), OperationId(3), &node(3), "a").is_ok());
    }

    #[test]
    fn a_listing_lags_behind_at_both_ends() {
        let mut cloud = cloud(Manners { visibility: Duration::from_secs(60), ..Manners::GOOD });
        for n in 0..20 {
            cloud.launch(at(0), OperationId(n.into()), &node(n), "a").expect("quota is free");
        }
        let early = cloud.list(at(5)).len();
        assert!(early < 20, "{early} of 20 after 5 s");
        assert_eq!(cloud.list(at(60)).len(), 20);
        for n in 0..20 {
            cloud.terminate(at(100), &node(n));
        }
        assert!(!cloud.list(at(100)).is_empty());
        assert!(cloud.list(at(116)).is_empty());
    }

    #[test]
    fn a_lost_reply_hides_an_act_that_happened() {
        let mut cloud = cloud(Manners { lost_reply: 1.0, ..Manners::GOOD });
        let call = cloud.call(at(0));
        assert!(call.act_at.is_some());
        assert!(matches!(call.instead, Some(CloudFault::NoAnswer(_))));
    }

    #[test]
    fn a_denied_call_was_carried_out_and_a_duplicated_one_is_twice() {
        let mut cloud = cloud(Manners { denied: 1.0, duplicated: 1.0, ..Manners::GOOD });
        let call = cloud.call(at(0));
        assert!(matches!(call.instead, Some(CloudFault::NoCapacity(_))));
        assert!(call.again.is_some_and(|(act_at, _)| Some(act_at) >= call.act_at));
    }

    #[test]
    fn a_late_call_is_carried_out_after_the_caller_gave_up() {
        let mut cloud = cloud(Manners { late: 1.0, ..Manners::GOOD });
        let calls: Vec<Call> = (0..20).map(|_| cloud.call(at(0))).collect();
        assert!(calls.iter().any(|call| call.act_at > Some(call.reply_at)));
    }

    #[test]
    fn a_vm_costs_from_its_creation_to_its_end() {
        let mut cloud = cloud(Manners::GOOD);
        cloud.launch(at(10), OperationId(1), &node(1), "a").expect("quota is free");
        cloud.launch(at(20), OperationId(2), &node(2), "a").expect("quota is free");
        cloud.terminate(at(40), &node(1));
        assert_eq!(cloud.cost(at(50)), Duration::from_secs(60));
    }
}
