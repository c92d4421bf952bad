//! The index of a model in several files: which of them holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

/// The file's name, in the model's directory.
pub const INDEX_NAME: &str = "model.safetensors.index.json";

/// The index of the largest public model is some megabytes (a mixture of 256 experts names 100,000 tensors).
pub const INDEX_BYTES_MAX: u64 = 64 << 20;

/// Tensor to shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    shard_of: BTreeMap<String, String>,
}

/// Why an index is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexFault {
    #[error("is no index of shards: {cause}")]
    Json { cause: String },
    #[error("names no shard")]
    Empty,
    #[error("shard {shard:?} is not a plain file name")]
    Path { shard: String },
}

impl Index {
    /// # Errors
    /// When the text is no index, is empty, names a tensor twice or points out of its directory.
    pub fn parse(json: &[u8]) -> Result<Self, IndexFault> {
        #[derive(Deserialize)]
        struct Whole {
            weight_map: Unique,
        }
        let Whole { weight_map: Unique(shard_of) } =
            serde_json::from_slice(json).map_err(|error| IndexFault::Json { cause: error.to_string() })?;
        if let Some(shard) = shard_of.values().find(|shard| !is_plain_name(shard)) {
            return Err(IndexFault::Path { shard: shard.clone() });
        }
        if shard_of.is_empty() { Err(IndexFault::Empty) } else { Ok(Self { shard_of }) }
    }

    /// The files, each once.
    #[must_use]
    pub fn shards(&self) -> BTreeSet<&str> {
        self.shard_of.values().map(String::as_str).collect()
    }

    /// Each tensor and the file that is to hold it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.shard_of.iter().map(|(tensor, shard)| (tensor.as_str(), shard.as_str()))
    }
}

/// An index comes from a download: it must not make its reader look outside the model's directory.
fn is_plain_name(shard: &str) -> bool {
    let mut parts = Path::new(shard).components();
    let is_one = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    is_one && !shard.contains(['/', '\\', '\0'])
}

/// A map in which no tensor stands twice.
struct Unique(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;

        impl<'de> Visitor<'de> for Each {
            type Value = Unique;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object from tensors to files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
                let mut shard_of = BTreeMap::new();
                while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
                    if shard_of.contains_key(&tensor) {
                        return Err(A::Error::custom(format_args!("{tensor} stands there twice")));
                    }
                    shard_of.insert(tensor, shard);
                }
                Ok(Unique(shard_of))
            }
        }

        deserializer.deserialize_map(Each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(weight_map: &str) -> Result<Index, IndexFault> {
        Index::parse(format!(r#"{{"metadata":{{"total_size":4}},"weight_map":{weight_map}}}"#).as_bytes())
    }

    #[test]
    fn an_index_says_which_shard_holds_a_tensor() {
        let index = parse(r#"{"a":"1.safetensors","b":"2.safetensors","c":"1.safetensors"}"#).expect("whole");
        assert_eq!(index.shards().into_iter().collect::<Vec<_>>(), ["1.safetensors", "2.safetensors"]);
        let held: Vec<_> = index.iter().collect();
        assert_eq!(held, [("a", "1.safetensors"), ("b", "2.safetensors"), ("c", "1.safetensors")]);
    }

    #[test]
    fn an_index_that_points_elsewhere_or_contradicts_itself_is_refused() {
        for shard in ["../secret", "/etc/passwd", "sub/m.safetensors", "..", ".", "", "./a", "a/", "sub\\\\m"]
        {
            let fault = parse(&format!(r#"{{"a":"{shard}"}}"#)).expect_err(shard);
            assert!(matches!(fault, IndexFault::Path { .. }), "{shard}: {fault}");
        }
        for (map, said) in [
            ("{}", "names no shard"),
            ("[]", "an object"),
            (r#"{"a":"1","a":"2"}"#, "a stands there twice"),
            (r#"{"a":1}"#, "no index"),
        ] {
            let fault = parse(map).expect_err(map).to_string();
            assert!(fault.contains(said), "{map}: {fault}");
        }
    }
}
