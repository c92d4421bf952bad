//! Names of clusters and nodes, parsed and generated here and nowhere else.
//!
//! Cluster: `cic-{provider}-{region}-{gpu}-{pricing}-{YYYYMMDD}-{seq:03}`; node: `{cluster}-node{n:03}`.
//! Both must stay lower-case DNS labels of at most 63 bytes: the strictest limit among the providers, and the
//! limit of a certificate's DNS name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{IdError, NodeId, check_label};

/// Stands in a name where nodes have no GPU.
pub const GPU_NONE: &str = "none";

/// Why a text is no cluster or node name, or why one cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("{0:?} does not read cic-PROVIDER-REGION-GPU-PRICING-YYYYMMDD-NNN")]
    Shape(String),
    #[error("{part} {text:?} may hold only a-z and 0-9 in a name")]
    Part { part: &'static str, text: String },
    #[error("{0:?} is not a calendar date as YYYYMMDD")]
    Date(String),
    #[error(transparent)]
    Label(#[from] IdError),
}

/// Name of a cluster: nodes of one provider, region, GPU type and pricing.
///
/// `region` may hold dashes (`us-east-1`); the other parts may not, so that the name parses without a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName {
    pub provider: String,
    pub region: String,
    pub gpu: String,
    pub pricing: String,
    /// `YYYYMMDD`, UTC.
    pub date: String,
    pub seq: u16,
}

impl ClusterName {
    /// # Errors
    /// Names the part that breaks the rule, or the whole name when it would be longer than a DNS label.
    pub fn new(
        provider: &str,
        region: &str,
        gpu: &str,
        pricing: &str,
        date: &str,
        seq: u16,
    ) -> Result<Self, NameError> {
        for (part, text) in [("provider", provider), ("gpu", gpu), ("pricing", pricing)] {
            check_part(part, text)?;
        }
        check_label(region)?;
        check_date(date)?;
        if seq > 999 {
            return Err(NameError::Part { part: "sequence", text: seq.to_string() });
        }
        let name = Self {
            provider: provider.to_owned(),
            region: region.to_owned(),
            gpu: gpu.to_owned(),
            pricing: pricing.to_owned(),
            date: date.to_owned(),
            seq,
        };
        check_label(&name.node_text(999))?;
        Ok(name)
    }

    /// The GPU of its nodes; `None` when they have none.
    #[must_use]
    pub fn gpu_model(&self) -> Option<&str> {
        Some(self.gpu.as_str()).filter(|gpu| *gpu != GPU_NONE)
    }

    /// Id of the cluster's `n`th node, 1 to 999.
    ///
    /// # Errors
    /// When `n` does not fit three digits.
    pub fn node(&self, n: u16) -> Result<NodeId, NameError> {
        if n > 999 {
            return Err(NameError::Part { part: "node number", text: n.to_string() });
        }
        Ok(NodeId::new(self.node_text(n))?)
    }

    /// Splits a node id into its cluster and number.
    ///
    /// # Errors
    /// When `node` was not made by [`ClusterName::node`].
    pub fn parse_node(node: &NodeId) -> Result<(Self, u16), NameError> {
        let shape = || NameError::Shape(node.to_string());
        let (cluster, number) = node.as_str().rsplit_once("-node").ok_or_else(shape)?;
        Ok((cluster.parse()?, three_digits(number).ok_or_else(shape)?))
    }

    fn node_text(&self, n: u16) -> String {
        format!("{self}-node{n:03}")
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { provider, region, gpu, pricing, date, seq } = self;
        write!(f, "cic-{provider}-{region}-{gpu}-{pricing}-{date}-{seq:03}")
    }
}

impl FromStr for ClusterName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let shape = || NameError::Shape(text.to_owned());
        let parts: Vec<&str> = text.split('-').collect();
        let ["cic", provider, region @ .., gpu, pricing, date, seq] = parts.as_slice() else {
            return Err(shape());
        };
        let seq = three_digits(seq).ok_or_else(shape)?;
        Self::new(provider, &region.join("-"), gpu, pricing, date, seq)
    }
}

impl TryFrom<String> for ClusterName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<ClusterName> for String {
    fn from(name: ClusterName) -> String {
        name.to_string()
    }
}

/// Checks one of a name's parts that hold no dash; `part` says which, for the error.
///
/// # Errors
/// Names the part and its text; the caller shows it to whoever wrote it.
pub fn check_part(part: &'static str, text: &str) -> Result<(), NameError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        return Err(NameError::Part { part, text: text.to_owned() });
    }
    Ok(())
}

fn three_digits(text: &str) -> Option<u16> {
    (text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

fn check_date(text: &str) -> Result<(), NameError> {
    let bad = || NameError::Date(text.to_owned());
    if text.len() != 8 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let month: u8 = text[4..6].parse().map_err(|_| bad())?;
    let day: u8 = text[6..8].parse().map_err(|_| bad())?;
    if (1..=12).contains(&month) && (1..=31).contains(&day) { Ok(()) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_survives_the_round_trip() {
        for (region, gpu, n) in
            [("us-east-1", "h100", 1), ("here", "none", 999), ("europe-west4-a", "a100", 7)]
        {
            let cluster = ClusterName::new("aws", region, gpu, "spot", "20261124", 42).expect("valid");
            assert_eq!(cluster.to_string().parse::<ClusterName>().expect("parses"), cluster);
            let node = cluster.node(n).expect("valid");
            assert_eq!(ClusterName::parse_node(&node).expect("parses"), (cluster, n));
        }
    }

    #[test]
    fn a_name_that_would_break_a_providers_limit_is_refused() {
        let long = "a-region-name-much-longer-than-any-cloud-has";
        assert!(matches!(
            ClusterName::new("aws", long, "h100", "spot", "20261124", 1),
            Err(NameError::Label(_))
        ));
        for (provider, gpu, date, seq) in [
            ("a-b", "h100", "20261124", 1),
            ("aws", "H100", "20261124", 1),
            ("aws", "h100", "20261324", 1),
            ("aws", "h100", "20261124", 1000),
        ] {
            assert!(ClusterName::new(provider, "r", gpu, "spot", date, seq).is_err());
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_its_text() {
        for text in ["", "cic", "cic-aws-r-h100-spot-20261124-1", "x-aws-r-h100-spot-20261124-001"] {
            let error = text.parse::<ClusterName>().expect_err("no name").to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
