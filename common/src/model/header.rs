//! The header of a safetensors file: which tensors lie where in it.
//!
//! ```text
//! u64 length of the header (least significant byte first) | header: JSON, padded with spaces | tensors, without gaps
//! ```

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::dtype::Dtype;

/// Of the length that stands before the header.
pub const LENGTH_BYTES: usize = 8;

/// Longest header that the safetensors library takes.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;

/// The name under which a header keeps what is no tensor.
const METADATA: &str = "__metadata__";

/// One tensor: what it is, and where it begins and ends among the tensors' bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub begin: u64,
    pub end: u64,
}

impl Tensor {
    /// Elements; `None` beyond what a file can hold.
    #[must_use]
    pub fn element_count(&self) -> Option<u64> {
        self.shape.iter().try_fold(1_u64, |product, extent| product.checked_mul(*extent))
    }

    /// Bytes that elements of this type and number take; `None` beyond what a file can hold, or in the middle of a byte.
    fn byte_count(&self) -> Option<u64> {
        let bits = self.element_count()?.checked_mul(self.dtype.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

/// A header that agrees with itself and with the length of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub tensors: BTreeMap<String, Tensor>,
    /// Of the file, before the tensors.
    pub tensors_at: u64,
}

/// Why a file is no whole safetensors file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    #[error("{length} bytes, too short for a safetensors file")]
    Short { length: u64 },
    #[error("begins like a web page: a download that stored an error page")]
    Page,
    #[error("begins with zeros: a copy that was not finished")]
    Zeros,
    #[error("says that its header has {stated} bytes, more than the {max} that one may have")]
    Long { stated: u64, max: u64 },
    #[error(
        "says that its header has {stated} bytes, in a file of {length}: cut off, or no safetensors file"
    )]
    Cut { stated: u64, length: u64 },
    #[error("its header is no safetensors header: {cause}")]
    Header { cause: String },
    #[error("tensor {tensor}: {cause}")]
    Tensor { tensor: String, cause: String },
    #[error("has {length} bytes where its header says {wanted}: {}", if length < wanted { "cut off" } else { "something was added" })]
    Length { length: u64, wanted: u64 },
}

/// How long the header is, from the first bytes of a file of `file_length`. Never more than [`HEADER_BYTES_MAX`].
///
/// # Errors
/// When no header can be so long.
pub fn header_length(first: [u8; LENGTH_BYTES], file_length: u64) -> Result<u64, HeaderFault> {
    if file_length < LENGTH_BYTES as u64 {
        return Err(HeaderFault::Short { length: file_length });
    }
    if is_page(&first) {
        return Err(HeaderFault::Page);
    }
    let stated = u64::from_le_bytes(first);
    if stated == 0 {
        return Err(HeaderFault::Zeros);
    }
    if stated > HEADER_BYTES_MAX {
        return Err(HeaderFault::Long { stated, max: HEADER_BYTES_MAX });
    }
    if stated > file_length - LENGTH_BYTES as u64 {
        return Err(HeaderFault::Cut { stated, length: file_length });
    }
    Ok(stated)
}

/// Text where the length of a header ought to be.
fn is_page(first: &[u8; LENGTH_BYTES]) -> bool {
    let text = first.trim_ascii_start();
    text.first() == Some(&b'<')
        && text.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
}

impl Header {
    /// Reads the `json` between the length and the tensors of a file of `file_length` bytes.
    ///
    /// # Errors
    /// What is wrong with it: each byte behind the header must belong to exactly one tensor, whose type and shape
    /// must take as many bytes as it has.
    pub fn parse(json: &[u8], file_length: u64) -> Result<Self, HeaderFault> {
        if json.iter().all(|byte| *byte == 0) {
            return Err(HeaderFault::Zeros);
        }
        let Entries(entries) =
            serde_json::from_slice(json).map_err(|error| HeaderFault::Header { cause: error.to_string() })?;
        let tensors = entries.into_iter().map(tensor).collect::<Result<BTreeMap<_, _>, _>>()?;
        let wanted = packed(&tensors)?;
        let tensors_at = (LENGTH_BYTES + json.len()) as u64;
        // Both are within a file's length by now, or the addition tells.
        let wanted = tensors_at.saturating_add(wanted);
        if file_length != wanted {
            return Err(HeaderFault::Length { length: file_length, wanted });
        }
        Ok(Self { tensors, tensors_at })
    }
}

fn tensor((name, entry): (String, Entry)) -> Result<(String, Tensor), HeaderFault> {
    let wrong = |cause: String| HeaderFault::Tensor { tensor: name.clone(), cause };
    let dtype = entry.dtype.parse().map_err(|error| wrong(format!("{:?} is {error}", entry.dtype)))?;
    let (begin, end) = entry.data_offsets;
    let tensor = Tensor { dtype, shape: entry.shape, begin, end };
    let Some(wanted) = tensor.byte_count() else {
        return Err(wrong(format!(
            "shape {:?} of {} does not come to whole bytes",
            tensor.shape, entry.dtype
        )));
    };
    match end.checked_sub(begin) {
        None => Err(wrong(format!("ends at {end}, before it begins at {begin}"))),
        Some(span) if span != wanted => Err(wrong(format!(
            "has {span} bytes where shape {:?} of {} takes {wanted}",
            tensor.shape, entry.dtype
        ))),
        Some(_) => Ok((name, tensor)),
    }
}

/// How many bytes the tensors take, which must follow one upon the other.
fn packed(tensors: &BTreeMap<String, Tensor>) -> Result<u64, HeaderFault> {
    let mut order: Vec<(&String, &Tensor)> = tensors.iter().collect();
    order.sort_by_key(|(_, tensor)| (tensor.begin, tensor.end));
    let mut at = 0;
    for (name, tensor) in order {
        if tensor.begin != at {
            let what = if tensor.begin < at { "overlaps with the one that" } else { "leaves a gap to what" };
            let cause = format!("begins at {}, and {what} ends at {at}", tensor.begin);
            return Err(HeaderFault::Tensor { tensor: name.clone(), cause });
        }
        at = tensor.end;
    }
    Ok(at)
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// A map in which no name stands twice: with a usual one the later would count, and other readers may take the first.
struct Entries(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;

        impl<'de> Visitor<'de> for Each {
            type Value = Entries;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object with an entry for each tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let (mut entries, mut has_metadata) = (BTreeMap::new(), false);
                while let Some(name) = map.next_key::<String>()? {
                    let is_new = if name == METADATA {
                        map.next_value::<IgnoredAny>()?;
                        !std::mem::replace(&mut has_metadata, true)
                    } else {
                        let entry = map.next_value()?;
                        entries.insert(name.clone(), entry).is_none()
                    };
                    if !is_new {
                        return Err(A::Error::custom(format_args!("{name} stands there twice")));
                    }
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(Each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str, tensor_bytes: u64) -> Result<Header, HeaderFault> {
        Header::parse(json.as_bytes(), (LENGTH_BYTES + json.len()) as u64 + tensor_bytes)
    }

    fn length(first: [u8; 8], file: u64) -> Result<u64, HeaderFault> {
        header_length(first, file)
    }

    #[test]
    fn a_header_says_where_each_tensor_lies() {
        let json = r#"{"__metadata__":{"format":"pt"},
            "b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},
            "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
            "none":{"dtype":"F32","shape":[0,7],"data_offsets":[4,4]},
            "four":{"dtype":"F4","shape":[4],"data_offsets":[16,18]}}   "#;
        let header = parse(json, 18).expect("whole");
        assert_eq!(header.tensors.len(), 4);
        assert_eq!(header.tensors_at, (LENGTH_BYTES + json.len()) as u64);
        let b = &header.tensors["b"];
        assert_eq!((b.dtype, b.element_count(), b.begin, b.end), (Dtype::BF16, Some(6), 4, 16));
    }

    #[test]
    fn a_length_that_no_header_can_have_is_refused_before_anything_is_read() {
        for (first, file, said) in [
            (*b"<!DOCTYP", 4096, "web page"),
            (*b"\n<html> ", 4096, "web page"),
            ([0; 8], 4096, "zeros"),
            ((1_u64 << 63).to_le_bytes(), u64::MAX, "9223372036854775808"),
            (u64::MAX.to_le_bytes(), 4096, "more than"),
            ((HEADER_BYTES_MAX + 1).to_le_bytes(), u64::MAX, "more than"),
            (4089_u64.to_le_bytes(), 4096, "cut off"),
            (8_u64.to_le_bytes(), 7, "too short"),
        ] {
            let fault = length(first, file).expect_err(said).to_string();
            assert!(fault.contains(said), "{fault}");
        }
        assert_eq!(length(4088_u64.to_le_bytes(), 4096), Ok(4088));
    }

    #[test]
    fn whatever_does_not_add_up_is_refused_by_the_name_of_its_tensor() {
        let one = |entry: &str| format!(r#"{{"w":{entry}}}"#);
        let two = |a: &str, b: &str| {
            format!(
                r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
            )
        };
        for (json, bytes, said) in [
            (one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#), 7, "cut off"),
            (one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#), 9, "something was added"),
            (one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#), 4, "tensor w: has 4 bytes where"),
            (one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#), 8, "before it begins"),
            (one(r#"{"dtype":"F31","shape":[2],"data_offsets":[0,8]}"#), 8, "\"F31\" is no element type"),
            (one(r#"{"dtype":"F4","shape":[3],"data_offsets":[0,2]}"#), 2, "whole bytes"),
            (
                one(r#"{"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,8]}"#),
                8,
                "whole bytes",
            ),
            (one(r#"{"dtype":"U8","shape":[-1],"data_offsets":[0,8]}"#), 8, "no safetensors header"),
            (two("[0,4]", "[2,6]"), 6, "tensor b: begins at 2, and overlaps"),
            (two("[0,4]", "[0,4]"), 4, "overlaps"),
            (two("[0,4]", "[5,9]"), 9, "leaves a gap"),
            (
                one(
                    r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}"#,
                ),
                1,
                "w stands there twice",
            ),
            ("[]".to_owned(), 0, "an object"),
            ("{".to_owned(), 0, "no safetensors header"),
            ("\0\0\0\0".to_owned(), 0, "zeros"),
        ] {
            let fault = parse(&json, bytes).expect_err(&json).to_string();
            assert!(fault.contains(said), "{json}: {fault}");
        }
    }
}
