//! The rules no run may break, each with the words it is reported under.

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    RecordedBeforePerformed,
    TerminationsWithinBrake,
    LaunchesWithinBrake,
    FreshWordProtects,
    HealthyNodeStays,
    AddFirst,
    BoundedLaunch,
    EdgesWordIsChecked,
    OneLaunchPerNode,
    OneOperationPerNode,
    RoutesHoldNoSilentNode,
    RoutesHoldNoStalledNode,
    OldIncarnationChangesNothing,
    LowerTermChangesNothing,
    PathsAgree,
    EveryQueueWithinItsBound,
    Convergence,
}

impl Rule {
    pub const ALL: [Self; 17] = [
        Self::RecordedBeforePerformed,
        Self::TerminationsWithinBrake,
        Self::LaunchesWithinBrake,
        Self::FreshWordProtects,
        Self::HealthyNodeStays,
        Self::AddFirst,
        Self::BoundedLaunch,
        Self::EdgesWordIsChecked,
        Self::OneLaunchPerNode,
        Self::OneOperationPerNode,
        Self::RoutesHoldNoSilentNode,
        Self::RoutesHoldNoStalledNode,
        Self::OldIncarnationChangesNothing,
        Self::LowerTermChangesNothing,
        Self::PathsAgree,
        Self::EveryQueueWithinItsBound,
        Self::Convergence,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RecordedBeforePerformed => "nothing is performed before it is recorded",
            Self::TerminationsWithinBrake => "terminations stay within the brake",
            Self::LaunchesWithinBrake => "launches stay within the brake",
            Self::FreshWordProtects => "a node just heard is never terminated without a cause",
            Self::HealthyNodeStays => "a healthy node is never terminated without a cause",
            Self::AddFirst => "a serving node goes only when enough others serve",
            Self::BoundedLaunch => "no more is launched than is wanted or lost",
            Self::EdgesWordIsChecked => "an edge's word launches nothing while a node is heard serving",
            Self::OneLaunchPerNode => "a node id is launched by one operation only",
            Self::OneOperationPerNode => "a node has one open operation at most",
            Self::RoutesHoldNoSilentNode => "routes hold no silent node while others answer",
            Self::RoutesHoldNoStalledNode => "routes hold no stalled replica beside one that works",
            Self::OldIncarnationChangesNothing => "an old incarnation changes nothing",
            Self::LowerTermChangesNothing => "a lower term changes nothing",
            Self::PathsAgree => "push and poll bring the same of one state",
            Self::EveryQueueWithinItsBound => "every queue stays within its bound",
            Self::Convergence => "faults off: wanted = serving, no unowned VM, nothing open",
        }
    }
}

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub rule: Rule,
    pub text: String,
}
