//! One record of `/dev/kmsg`.
//!
//! Format: Linux, Documentation/ABI/testing/dev-kmsg.

/// One message of the kernel log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelLine {
    /// Counts up over all messages of a boot.
    pub seq: u64,
    /// 0 emergency to 7 debug.
    pub priority: u8,
    /// 0 is the kernel. A write from userland with 0 is changed by the kernel to 1, so 0 cannot be forged.
    pub facility: u32,
    /// As it was printed; a message of several lines has line feeds.
    pub text: String,
}

/// Reads `6,339,5140900,-;text`. `None` for what is no message: a continuation line (` SUBSYSTEM=…`), or anything else.
#[must_use]
pub fn parse(record: &str) -> Option<KernelLine> {
    let record = record.strip_suffix('\n').unwrap_or(record);
    if record.starts_with(' ') {
        return None;
    }
    let (head, text) = record.split_once(';')?;
    let mut fields = head.split(',');
    let prefix: u32 = fields.next()?.parse().ok()?;
    let seq = fields.next()?.parse().ok()?;
    // Three bits of priority, then the facility.
    Some(KernelLine { seq, priority: (prefix & 7) as u8, facility: prefix >> 3, text: unescaped(text) })
}

/// Turns `\x0a` back into the byte it stands for; what is no UTF-8 then becomes U+FFFD.
fn unescaped(text: &str) -> String {
    if !text.contains('\\') {
        return text.to_owned();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = match rest {
            [b'\\', b'x', high, low, ..] => hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_and_anything_else_is_none() {
        let line = |seq, priority, facility, text: &str| {
            Some(KernelLine { seq, priority, facility, text: text.to_owned() })
        };
        for (record, expected) in [
            ("4,1021,933412345,-;NVRM: loading\n", line(1021, 4, 0, "NVRM: loading")),
            ("30,340,5690716,-;udevd[80]: starting", line(340, 6, 3, "udevd[80]: starting")),
            ("12,7,1,-,caller=T12;a;b, c", line(7, 4, 1, "a;b, c")),
            ("6,1,2,-;a\\x0ab\\x5cx \\x \\xzz \\xc3\\xa9", line(1, 6, 0, "a\nb\\x \\x \\xzz é")),
            ("6,18446744073709551615,2,c;x", line(u64::MAX, 6, 0, "x")),
            ("6,1,2,-;", line(1, 6, 0, "")),
            (" SUBSYSTEM=pci", None),
            (" DEVICE=+pci:0000:3b:00.0;x", None),
            ("", None),
            (";", None),
            ("6;x", None),
            ("6,x,2,-;x", None),
            ("-6,1,2,-;x", None),
            ("6,1,2,-", None),
            ("99999999999,1,2,-;x", None),
        ] {
            assert_eq!(parse(record), expected, "{record:?}");
        }
    }
}
