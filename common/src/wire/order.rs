//! A command by the poll path: the body of `POST /v1/command` on an agent's mTLS port.

use serde::{Deserialize, Serialize};

use super::message::Command;
use crate::id::{OperationId, Term};

/// Largest body, as JSON: a reason for people and a few numbers.
pub const ORDER_BYTES_MAX: usize = 16 << 10;

/// One command with its fences. The answer is a [`super::message::CommandOutcome`] as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    pub operation: OperationId,
    pub term: Term,
    pub command: Command,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_this_json() {
        let command = Command::RestartAgent { reason: "push path is silent".to_owned() };
        let order = Order { operation: OperationId(7), term: Term(2), command };
        let json = r#"{"operation":7,"term":2,"command":{"restart_agent":{"reason":"push path is silent"}}}"#;
        assert_eq!(serde_json::to_string(&order).unwrap(), json);
        assert_eq!(serde_json::from_str::<Order>(json).unwrap(), order);
        assert!(serde_json::from_str::<Order>(&json.replace("term", "turn")).is_err());
    }
}
