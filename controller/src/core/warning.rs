//! What a node's notice asks for: its replacement now or later, or a spare beside it.

use std::time::Duration;

use cic_common::id::{DeploymentName, NodeId};
use cic_common::notice::{Notice, NoticeKind, REPLACEMENT_LEAD};
use cic_common::report::NodeReport;
use cic_common::time::Mono;

use super::Action;
use super::fleet::Fleet;
use super::node::Node;
use super::trail::Severity;

/// Advice that has not come true by then is not going to: most of AWS's rebalance recommendations come minutes before the
/// notice, and one may stand for the rest of the instance's life. For so long its spare is kept, whatever becomes of the advice:
/// one that comes and goes must not buy and sell nodes.
const ADVICE_HOLDS: Duration = Duration::from_secs(30 * 60);

/// What a notice asks of the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoticeWord {
    /// It concerns nobody's place.
    Nothing,
    /// The node may be taken: a spare beside it.
    Advises,
    /// It is taken, but not soon.
    Later,
    /// It is taken: another in its place now.
    Leaves,
}

impl NoticeWord {
    pub(super) fn of(notice: &Notice) -> Self {
        match notice.kind {
            NoticeKind::Rebalance => Self::Advises,
            kind if !kind.takes_the_node() => Self::Nothing,
            _ if Duration::from_millis(notice.left_ms) <= REPLACEMENT_LEAD => Self::Leaves,
            _ => Self::Later,
        }
    }
}

/// What became of the advice about a node, as far as this controller knows. `None -> Holds -> Spent`, once in a node's life.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advice {
    #[default]
    None,
    Holds {
        since: Mono,
    },
    Spent,
}

impl Node {
    /// Keeps the books of advice. True when a spare more or less is wanted now.
    fn heed_advice(&mut self, now: Mono) -> bool {
        let notice = self.report.as_ref().and_then(|report| report.notice.as_ref());
        let is_advised = notice.is_some_and(|notice| NoticeWord::of(notice) == NoticeWord::Advises);
        let next = match self.advice {
            Advice::None if is_advised && self.is_ours() && self.leaving.is_none() => {
                Advice::Holds { since: now }
            }
            Advice::Holds { since } if now >= since + ADVICE_HOLDS => Advice::Spent,
            advice @ (Advice::None | Advice::Holds { .. } | Advice::Spent) => advice,
        };
        std::mem::replace(&mut self.advice, next) != next
    }

    /// Whether it may be taken soon, by its cloud's advice.
    fn is_advised(&self) -> bool {
        matches!(self.advice, Advice::Holds { .. })
    }

    /// When its advice will have come to nothing.
    pub(super) fn advice_ends_at(&self) -> Option<Mono> {
        match self.advice {
            Advice::Holds { since } => Some(since + ADVICE_HOLDS),
            Advice::None | Advice::Spent => None,
        }
    }
}

/// What an earlier run of a node's agent told. It stands until this run knows what the same source says: an agent that has just
/// started knows of no notice.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    notice: Notice,
    deadline: Mono,
}

/// So long after its deadline a notice that nobody repeats is not coming true any more.
const STALE_AFTER: Duration = Duration::from_secs(300);

impl Standing {
    /// Of what was told at `told_at`. A signal is told once, and means that run alone.
    pub(super) fn of(told_at: Mono, notice: &Notice) -> Option<Self> {
        let is_listed = !matches!(notice.source.as_str(), "sigterm" | "shutdown");
        let deadline = told_at + Duration::from_millis(notice.left_ms);
        is_listed.then(|| Self { notice: notice.clone(), deadline })
    }

    pub(super) fn is_over(&self, now: Mono, report: &NodeReport) -> bool {
        report.spot.knows(&self.notice.source) || now > self.deadline + STALE_AFTER
    }

    pub(super) fn is_of(&self, source: &str, id: &str) -> bool {
        self.notice.source == source && self.notice.id == id
    }

    /// The report with this notice, unless it tells the same one or a more urgent one.
    pub(super) fn added_to(&self, now: Mono, mut report: NodeReport) -> NodeReport {
        let left_ms = u64::try_from(self.deadline.since(now).as_millis()).unwrap_or(u64::MAX);
        let standing = Notice { left_ms, ..self.notice.clone() };
        let stands = report
            .notice
            .as_ref()
            .is_none_or(|told| !self.is_of(&told.source, &told.id) && standing.urgency() < told.urgency());
        if stands {
            report.notice = Some(standing);
        }
        report
    }
}

impl Fleet {
    pub(super) fn heed_advice(&mut self, now: Mono, id: &NodeId, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        if !node.heed_advice(now) {
            return;
        }
        let text = if node.is_advised() {
            "it may be taken soon, by its cloud's advice: a spare is wanted, for half of the replicas at most"
        } else {
            "its cloud's advice came to nothing: no spare is wanted for it"
        };
        self.is_dirty = true;
        self.tell(now, id, Severity::Info, "spare", text.to_owned(), out);
    }

    /// Nodes wanted of a deployment: its replicas, and one for each staying node that may be taken soon, for half of them at
    /// most.
    pub(super) fn wanted_count(&self, name: &DeploymentName) -> usize {
        let replicas = self.deployments.get(name).map_or(0, |wanted| usize::from(wanted.deployment.replicas));
        let advised =
            self.members(name).filter(|(_, node)| node.leaving.is_none() && node.is_advised()).count();
        replicas + advised.min(replicas.div_ceil(2))
    }
}

#[cfg(test)]
mod tests {
    use cic_common::notice::Confidence;

    use super::*;

    #[test]
    fn only_what_takes_the_node_soon_asks_for_another_in_its_place() {
        let lead_ms = u64::try_from(REPLACEMENT_LEAD.as_millis()).expect("minutes");
        for (kind, left_ms, expected) in [
            (NoticeKind::Terminate, 120_000, NoticeWord::Leaves),
            (NoticeKind::Hibernate, 0, NoticeWord::Leaves),
            (NoticeKind::Reboot, lead_ms, NoticeWord::Leaves),
            (NoticeKind::Reboot, lead_ms + 1, NoticeWord::Later),
            (NoticeKind::Rebalance, 0, NoticeWord::Advises),
            (NoticeKind::Freeze, 0, NoticeWord::Nothing),
            (NoticeKind::Maintenance, 0, NoticeWord::Nothing),
        ] {
            let (source, id) = ("test".to_owned(), "a".to_owned());
            let notice = Notice {
                kind,
                source,
                id,
                left_ms,
                confidence: Confidence::Announced,
                resources: Vec::new(),
            };
            assert_eq!(NoticeWord::of(&notice), expected, "{kind} {left_ms}");
        }
    }
}
