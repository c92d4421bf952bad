//! Replicas on the wire: each says only what differs from the one before it. Names of one cluster differ in their last
//! characters, so ten thousand replicas are some 150 KB instead of 700. In JSON they are as they are.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Replica;
use crate::id::NodeId;

/// Bytes of a zone's or GPU's name: a word that is said once and counts for many must not take memory for each.
/// A longer one is not said: no cloud has such names.
const WORD_BYTES_MAX: usize = 128;

/// One replica after another.
#[derive(Serialize, Deserialize)]
struct Packed {
    /// Bytes that the node's name begins with like the one before, and the rest of it.
    node: (u8, String),
    address: (u8, String),
    /// `None`: as the one before.
    zone: Option<Option<String>>,
    gpu: Option<Option<String>>,
}

/// What the one before said, at first nothing.
#[derive(Default)]
struct Last {
    node: String,
    address: String,
    zone: Option<String>,
    gpu: Option<String>,
}

impl Last {
    fn pack(&mut self, replica: &Replica) -> Packed {
        let changed = |was: &mut Option<String>, is: &Option<String>| {
            let is = is.as_ref().filter(|word| word.len() <= WORD_BYTES_MAX);
            (was.as_ref() != is).then(|| {
                *was = is.cloned();
                was.clone()
            })
        };
        Packed {
            node: shorten(&mut self.node, replica.node.as_str()),
            address: shorten(&mut self.address, &replica.address),
            zone: changed(&mut self.zone, &replica.zone),
            gpu: changed(&mut self.gpu, &replica.gpu),
        }
    }

    /// `None` for what cannot have been packed.
    fn unpack(&mut self, packed: Packed) -> Option<Replica> {
        lengthen(&mut self.node, &packed.node)?;
        lengthen(&mut self.address, &packed.address)?;
        self.zone = packed.zone.unwrap_or_else(|| self.zone.take());
        self.gpu = packed.gpu.unwrap_or_else(|| self.gpu.take());
        let is_long = |word: &Option<String>| word.as_ref().is_some_and(|word| word.len() > WORD_BYTES_MAX);
        if is_long(&self.zone) || is_long(&self.gpu) {
            return None;
        }
        Some(Replica {
            node: NodeId::new(self.node.as_str()).ok()?,
            address: self.address.clone(),
            zone: self.zone.clone(),
            gpu: self.gpu.clone(),
        })
    }
}

fn shorten(last: &mut String, text: &str) -> (u8, String) {
    let alike = last.bytes().zip(text.bytes()).take(u8::MAX.into()).take_while(|(a, b)| a == b).count();
    let shared = (0..=alike).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    text.clone_into(last);
    (u8::try_from(shared).unwrap_or(0), text[shared..].to_owned())
}

fn lengthen(last: &mut String, (shared, rest): &(u8, String)) -> Option<()> {
    let shared = usize::from(*shared);
    if !last.is_char_boundary(shared) {
        return None;
    }
    last.truncate(shared);
    last.push_str(rest);
    Some(())
}

pub(super) fn serialize<S: Serializer>(replicas: &[Replica], serializer: S) -> Result<S::Ok, S::Error> {
    if serializer.is_human_readable() {
        return replicas.serialize(serializer);
    }
    let mut last = Last::default();
    serializer.collect_seq(replicas.iter().map(|replica| last.pack(replica)))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Replica>, D::Error> {
    if deserializer.is_human_readable() {
        return Vec::deserialize(deserializer);
    }
    let mut last = Last::default();
    let packed = Vec::<Packed>::deserialize(deserializer)?;
    let unpacked = packed.into_iter().map(|one| last.unpack(one));
    unpacked
        .collect::<Option<_>>()
        .ok_or_else(|| D::Error::custom("a replica that follows from none before it"))
}

/// Names of nodes, likewise.
pub(super) mod names {
    use super::{Deserialize, Deserializer, NodeId, Serialize, Serializer, lengthen, shorten};

    pub(in super::super) fn serialize<S: Serializer>(
        names: &[NodeId],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return names.serialize(serializer);
        }
        let mut last = String::new();
        serializer.collect_seq(names.iter().map(|name| shorten(&mut last, name.as_str())))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<NodeId>, D::Error> {
        use serde::de::Error as _;
        if deserializer.is_human_readable() {
            return Vec::deserialize(deserializer);
        }
        let mut last = String::new();
        let named = Vec::<(u8, String)>::deserialize(deserializer)?.into_iter().map(|name| {
            lengthen(&mut last, &name)?;
            NodeId::new(last.as_str()).ok()
        });
        named
            .collect::<Option<_>>()
            .ok_or_else(|| D::Error::custom("a name that follows from none before it"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Route;
    use super::*;
    use crate::id::DeploymentName;
    use crate::routing::Routing;
    use crate::wire::codec;

    fn route(replicas: Vec<Replica>) -> Route {
        let deployment = DeploymentName::new("d").expect("a label");
        Route { deployment, model: "m".to_owned(), replicas, routing: Routing::default() }
    }

    fn replica(node: &str, address: &str, zone: Option<&str>, gpu: Option<&str>) -> Replica {
        let (zone, gpu) = (zone.map(str::to_owned), gpu.map(str::to_owned));
        Replica { node: NodeId::new(node).expect("a label"), address: address.to_owned(), zone, gpu }
    }

    #[test]
    fn every_list_is_read_as_it_was_written() {
        let long = "x".repeat(300);
        for replicas in [
            Vec::new(),
            vec![replica("n1", "10.0.0.1:7444", Some("a"), Some("h100"))],
            vec![
                replica("n1", "10.0.0.1:7444", Some("a"), Some("h100")),
                replica("n10", "10.0.0.1:7445", Some("a"), Some("h100")),
                replica("n1", "", None, None),
                replica("m", "10.0.0.1:7444", Some("b"), None),
                replica("m2", "10.0.0.1:7444", Some("b"), Some("h200")),
            ],
            vec![replica("n", "ö.example:1", None, None), replica("n2", "ä.example:1", None, None)],
            vec![replica("n", &long, None, None), replica("n2", &long, None, None)],
        ] {
            let route = route(replicas);
            let bytes = codec::encode(&route).expect("encodes");
            assert_eq!(codec::decode::<Route>(&bytes).expect("decodes"), route);
            let json = serde_json::to_string(&route).expect("JSON");
            assert_eq!(serde_json::from_str::<Route>(&json).expect("reads"), route);
        }
    }

    #[test]
    fn replicas_of_one_cluster_take_a_fifth_of_what_they_say() {
        let one = |number: usize| {
            let name = format!("cic-aws-us-east-1-h100-spot-20261126-001-node{number:03}");
            replica(
                &name,
                &format!("10.0.{}.{}:7444", number / 200, number % 200),
                Some("us-east-1a"),
                Some("h100"),
            )
        };
        let replicas: Vec<Replica> = (0..1000).map(one).collect();
        let said: usize = replicas.iter().map(|one| one.node.as_str().len() + one.address.len() + 14).sum();
        let bytes = codec::encode(&route(replicas)).expect("encodes").len();
        assert!(bytes * 5 < said, "{bytes} bytes for {said}");
    }

    #[test]
    fn a_word_too_long_for_the_wire_is_not_said() {
        let long = "z".repeat(WORD_BYTES_MAX + 1);
        let said = route(vec![replica("n", "a:1", Some(&long), Some("h100"))]);
        let read: Route = codec::decode(&codec::encode(&said).expect("encodes")).expect("decodes");
        assert_eq!(read, route(vec![replica("n", "a:1", None, Some("h100"))]));
    }

    #[test]
    fn what_follows_from_nothing_is_refused() {
        let packed = |shared, rest: &str| Packed {
            node: (shared, rest.to_owned()),
            address: (0, String::new()),
            zone: None,
            gpu: None,
        };
        let long = Packed { zone: Some(Some("z".repeat(WORD_BYTES_MAX + 1))), ..packed(0, "n") };
        for wrong in [packed(1, "n"), packed(255, ""), packed(0, ""), packed(0, "No Name"), long] {
            assert_eq!(Last::default().unpack(wrong), None);
        }
    }
}
