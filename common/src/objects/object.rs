//! One object: a line that says what follows, and then that, as JSON.
//!
//! `KIND 1 sha256:HEX LENGTH\n`: a person can read it, and whatever was cut off, flipped or put in its place
//! shows.

use bytes::Bytes;
use ring::digest::{SHA256, digest};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Written by this program, read by no other version.
const VERSION: u32 = 1;

/// Why an object cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectFault {
    #[error("it is no {what}")]
    Foreign { what: &'static str },
    #[error("it is of version {version}, and this program reads {VERSION}")]
    Version { version: String },
    #[error("it has {have} bytes of {want}")]
    Length { have: usize, want: usize },
    #[error("its checksum is wrong")]
    Checksum,
    #[error("it cannot be understood: {cause}")]
    Content { cause: String },
}

/// `value` as an object of the kind `what`.
///
/// # Errors
/// When `value` is none that JSON has.
pub fn seal(what: &str, value: &impl Serialize) -> Result<Bytes, serde_json::Error> {
    let body = serde_json::to_vec(value)?;
    let mut object =
        format!("{what} {VERSION} sha256:{} {}\n", sha256_hex(&[&body]), body.len()).into_bytes();
    object.extend_from_slice(&body);
    Ok(object.into())
}

/// What [`seal`] was given.
///
/// # Errors
/// Why the object is not whole, or not of the kind `what`.
pub fn unseal<T: DeserializeOwned>(what: &'static str, object: &[u8]) -> Result<T, ObjectFault> {
    let foreign = ObjectFault::Foreign { what };
    let end = object.iter().position(|byte| *byte == b'\n').ok_or_else(|| foreign.clone())?;
    let line = std::str::from_utf8(&object[..end]).map_err(|_| foreign.clone())?;
    let body = &object[end + 1..];
    let mut words = line.split(' ');
    let (Some(kind), Some(version), Some(sum), Some(length), None) =
        (words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return Err(foreign);
    };
    let (Some(sum), Ok(want), true) = (sum.strip_prefix("sha256:"), length.parse(), kind == what) else {
        return Err(foreign);
    };
    if version.parse() != Ok(VERSION) {
        return Err(ObjectFault::Version { version: version.to_owned() });
    }
    if body.len() != want {
        return Err(ObjectFault::Length { have: body.len(), want });
    }
    if sha256_hex(&[body]) != sum {
        return Err(ObjectFault::Checksum);
    }
    serde_json::from_slice(body).map_err(|error| ObjectFault::Content { cause: error.to_string() })
}

/// SHA-256 of `parts`, each with its length before it, so that no two lists have the same; one part has its own.
pub fn sha256_hex(parts: &[&[u8]]) -> String {
    let sum = match parts {
        [whole] => digest(&SHA256, whole),
        parts => {
            let mut context = ring::digest::Context::new(&SHA256);
            for part in parts {
                context.update(&(part.len() as u64).to_le_bytes());
                context.update(part);
            }
            context.finish()
        }
    };
    sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_read_as_it_was_written_and_no_other_way() {
        let object = seal("cic-thing", &vec![1, 2, 3]).unwrap();
        assert_eq!(unseal::<Vec<u8>>("cic-thing", &object), Ok(vec![1, 2, 3]));
        let foreign = |what| Err(ObjectFault::Foreign { what });
        assert_eq!(unseal::<Vec<u8>>("cic-other", &object), foreign("cic-other"));
        let text = String::from_utf8(object.to_vec()).unwrap();
        let cases: [(String, ObjectFault); 5] = [
            (text.replace("[1,2,3]", "[1,2,4]"), ObjectFault::Checksum),
            (text.replace("[1,2,3]", "[1,2"), ObjectFault::Length { have: 4, want: 7 }),
            (text.replace("thing 1 ", "thing 3 "), ObjectFault::Version { version: "3".to_owned() }),
            (text.replace(" 7\n", " seven\n"), ObjectFault::Foreign { what: "cic-thing" }),
            (text.replace('\n', " "), ObjectFault::Foreign { what: "cic-thing" }),
        ];
        for (wrong, fault) in cases {
            assert_eq!(unseal::<Vec<u8>>("cic-thing", wrong.as_bytes()), Err(fault), "{wrong}");
        }
        let text = seal("cic-thing", &"text").unwrap();
        assert!(matches!(unseal::<Vec<u8>>("cic-thing", &text), Err(ObjectFault::Content { .. })));
    }

    #[test]
    fn parts_are_not_run_together_in_a_digest() {
        assert_ne!(sha256_hex(&[b"ab", b"c"]), sha256_hex(&[b"a", b"bc"]));
        // Of FIPS 180-2.
        assert!(sha256_hex(&[b"abc"]).starts_with("ba7816bf8f01cfea"));
    }
}
