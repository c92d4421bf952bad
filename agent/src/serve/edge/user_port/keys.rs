//! The API keys: who may ask, for what, how much. A file of hashes; no key is kept anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use cic_common::route::Class;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::Deserialize;
use subtle::ConstantTimeEq as _;

use super::allowance::{Allowance, Bounds};
use super::files::read_bounded;

/// How Anthropic's and Azure's clients show a key; OpenAI's send `Authorization: Bearer`.
pub(super) const API_KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");

/// Keys of one file. Each is compared with what every request shows: 10,000 take about 0.1 ms.
const KEYS_MAX: usize = 10_000;

/// A name goes into every access line.
const NAME_BYTES_MAX: usize = 64;

/// What secret scanners and clients expect of a key, and whose it is.
const KEY_PREFIX: &str = "sk-cic-";

/// 256 bits: beyond guessing, so that a hash without salt or stretching is enough.
const KEY_BYTES: usize = 32;

/// Why a keys file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum KeyRingError {
    #[error("cannot be read")]
    Read(#[source] std::io::Error),
    #[error("is no keys file: {}", .0.message())]
    Shape(#[source] toml::de::Error),
    #[error("key {name:?}: {what}")]
    Key { name: String, what: &'static str },
    #[error("has {0} keys; at most {KEYS_MAX} are allowed")]
    TooMany(usize),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    key: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    /// Of the key's text, as 64 hexadecimal digits.
    sha256: String,
    /// For requests that name none.
    #[serde(default)]
    class: Class,
    /// The best a request may name.
    class_max: Option<Class>,
    requests_per_minute: Option<u32>,
    in_flight_max: Option<u32>,
    /// All, unless given.
    models: Option<BTreeSet<String>>,
}

/// Every key that is taken.
#[derive(Debug, Default)]
pub struct KeyRing {
    keys: Vec<Arc<Key>>,
}

/// One key, and what was used of it.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: String,
    hash: [u8; 32],
    class: Class,
    class_max: Class,
    pub(super) bounds: Bounds,
    models: Option<BTreeSet<String>>,
    pub(super) allowance: Allowance,
}

impl KeyRing {
    /// Reads the keys file at `path`.
    ///
    /// # Errors
    /// When it cannot be read or one of its keys is of no use: none of them is taken then.
    pub fn read(path: &Path) -> Result<Self, KeyRingError> {
        Self::parse(&read_bounded(path).map_err(KeyRingError::Read)?)
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, KeyRingError> {
        let file: File = toml::from_slice(bytes).map_err(KeyRingError::Shape)?;
        if file.key.len() > KEYS_MAX {
            return Err(KeyRingError::TooMany(file.key.len()));
        }
        let keys: Vec<Arc<Key>> =
            file.key.into_iter().map(|entry| Key::new(entry).map(Arc::new)).collect::<Result<_, _>>()?;
        let (mut names, mut hashes) = (BTreeSet::new(), BTreeSet::new());
        for key in &keys {
            if !names.insert(&key.name) {
                return Err(wrong(&key.name, "its name is used twice"));
            }
            if !hashes.insert(key.hash) {
                return Err(wrong(&key.name, "another name has the same key"));
            }
        }
        Ok(Self { keys })
    }

    /// These keys, with what was used of those of the same name.
    pub(super) fn after(mut self, before: &Self) -> Self {
        let used: BTreeMap<&str, &Allowance> =
            before.keys.iter().map(|key| (key.name.as_str(), &key.allowance)).collect();
        for key in &mut self.keys {
            if let Some(allowance) = used.get(key.name.as_str())
                && let Some(key) = Arc::get_mut(key)
            {
                key.allowance = (*allowance).clone();
            }
        }
        self
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key that `headers` show. How long it takes says nothing about any key.
    pub(super) fn find(&self, headers: &HeaderMap) -> Option<Arc<Key>> {
        let hash = digest(&SHA256, shown(headers)?);
        let mut found = None;
        // Every one is looked at, found or not.
        for key in &self.keys {
            if bool::from(key.hash.as_slice().ct_eq(hash.as_ref())) {
                found = Some(key);
            }
        }
        found.cloned()
    }
}

impl Key {
    fn new(entry: Entry) -> Result<Self, KeyRingError> {
        let Entry { name, sha256, class, class_max, requests_per_minute, in_flight_max, models } = entry;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(is_plain) {
            return Err(wrong(&name, "a name has 1 to 64 letters, digits and - _ . @"));
        }
        let Some(hash) = from_hex(&sha256) else {
            return Err(wrong(&name, "sha256 must be 64 hexadecimal digits"));
        };
        if requests_per_minute == Some(0) || in_flight_max == Some(0) {
            return Err(wrong(&name, "a bound must be at least 1; remove the key to refuse it"));
        }
        let class_max = class_max.unwrap_or(Class::LatencyCritical);
        if class < class_max {
            return Err(wrong(&name, "class is better than class_max"));
        }
        let bounds = Bounds { per_minute: requests_per_minute, in_flight_max };
        Ok(Self { name, hash, class, class_max, bounds, models, allowance: Allowance::default() })
    }

    /// The class of a request that names `asked`: never better than the key's best.
    pub(super) fn class(&self, asked: Option<Class>) -> Class {
        asked.unwrap_or(self.class).max(self.class_max)
    }

    pub(super) fn may_use(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.contains(model))
    }
}

/// A new key, and the entry of a keys file that takes it.
///
/// # Errors
/// When `name` cannot be one, or the system has no randomness to give.
pub fn new_key(name: &str) -> anyhow::Result<(String, String)> {
    let mut secret = [0; KEY_BYTES];
    SystemRandom::new().fill(&mut secret).map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
    let key = format!("{KEY_PREFIX}{}", hex(&secret));
    let entry = format!(
        "[[key]]\nname = \"{}\"\nsha256 = \"{}\"\n",
        name.escape_default(),
        hex(digest(&SHA256, key.as_bytes()).as_ref())
    );
    KeyRing::parse(entry.as_bytes())?;
    Ok((key, entry))
}

fn shown(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key.trim_ascii())
    });
    bearer.or_else(|| headers.get(API_KEY_HEADER).map(|value| value.as_bytes().trim_ascii()))
}

fn wrong(name: &str, what: &'static str) -> KeyRingError {
    KeyRingError::Key { name: name.to_owned(), what }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let digits = text.as_bytes();
    if digits.len() != bytes.len() * 2 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use cic_common::time::Mono;
    use hyper::header::HeaderValue;

    use super::*;

    // printf %s alpha | sha256sum
    const ALPHA: &str = "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8";
    // printf %s beta | sha256sum
    const BETA: &str = "f44e64e75f3948e9f73f8dfa94721c4ce8cbb4f265c4790c702b2d41cfbf2753";

    fn ring(text: &str) -> Result<KeyRing, String> {
        KeyRing::parse(text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_is_found_however_it_is_shown_and_nothing_else_is() {
        let ring = ring(&format!(
            "[[key]]\nname = 'a'\nsha256 = '{ALPHA}'\n[[key]]\nname = 'b'\nsha256 = '{}'\n",
            BETA.to_uppercase()
        ))
        .unwrap();
        for (header, value, name) in [
            ("authorization", "Bearer alpha", Some("a")),
            ("authorization", "bearer  beta ", Some("b")),
            ("x-api-key", "beta", Some("b")),
            ("authorization", "Bearer alph", None),
            ("authorization", "Basic alpha", None),
            ("authorization", "Bearer", None),
            ("authorization", ALPHA, None),
            ("x-api-key", "", None),
            ("x-other", "alpha", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header, HeaderValue::from_static(value));
            let found = ring.find(&headers).map(|key| key.name.clone());
            assert_eq!(found.as_deref(), name, "{header}: {value}");
        }
    }

    #[test]
    fn a_file_with_one_bad_key_is_of_no_use() {
        let key = |more: &str| format!("[[key]]\nname = 'a'\nsha256 = '{ALPHA}'\n{more}");
        for (text, why) in [
            ("[[key]]\nname = 'a'\nsha256 = 'ab'\n".to_owned(), "64 hexadecimal digits"),
            (format!("[[key]]\nname = ''\nsha256 = '{ALPHA}'\n"), "1 to 64"),
            (key("requests_per_minute = 0"), "at least 1"),
            (key("class = 'standard'\nclass_max = 'batch'"), "better than class_max"),
            (key("class = 'fast'"), "no keys file"),
            (key("colour = 1"), "no keys file"),
            (key(&key("")), "used twice"),
            (key(&format!("[[key]]\nname = 'b'\nsha256 = '{ALPHA}'\n")), "the same key"),
            ("key = ".to_owned(), "no keys file"),
        ] {
            let error = ring(&text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert_eq!(ring("").unwrap().len(), 0);
    }

    #[test]
    fn a_class_is_never_better_than_the_key_s_best() {
        use Class::*;
        for (class, class_max, asked, given) in [
            (Standard, LatencyCritical, None, Standard),
            (Standard, LatencyCritical, Some(LatencyCritical), LatencyCritical),
            (Standard, Standard, Some(LatencyCritical), Standard),
            (Standard, Standard, Some(Batch), Batch),
            (Batch, Batch, Some(Standard), Batch),
            (Batch, Standard, None, Batch),
        ] {
            let text = format!(
                "[[key]]\nname = 'a'\nsha256 = '{ALPHA}'\nclass = '{}'\nclass_max = '{}'\n",
                class.as_str(),
                class_max.as_str()
            );
            assert_eq!(ring(&text).unwrap().keys[0].class(asked), given, "{text} {asked:?}");
        }
    }

    #[test]
    fn a_new_file_does_not_give_back_what_was_used() {
        let text =
            format!("[[key]]\nname = 'a'\nsha256 = '{ALPHA}'\nrequests_per_minute = 1\nmodels = ['m']\n");
        let before = ring(&text).unwrap();
        let _spent = before.keys[0].allowance.take(before.keys[0].bounds, Mono::ZERO).unwrap();
        let after = ring(&text.replace(ALPHA, BETA)).unwrap().after(&before);
        assert!(after.keys[0].allowance.take(after.keys[0].bounds, Mono::ZERO).is_err());
        assert!(after.keys[0].may_use("m") && !after.keys[0].may_use("n"));
    }

    #[test]
    fn a_new_key_is_taken_by_its_entry_and_not_written_there() {
        let (key, entry) = new_key("alice").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(API_KEY_HEADER, HeaderValue::from_str(&key).unwrap());
        assert!(ring(&entry).unwrap().find(&headers).is_some());
        assert!(!entry.contains(&key[KEY_PREFIX.len()..]));
        assert!(new_key("not a name").is_err());
        assert_ne!(new_key("alice").unwrap().0, key);
    }
}
