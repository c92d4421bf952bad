//! Who listens at a node's ssh port: the identification line of RFC 4253, section 4.2, and not a byte more.

use std::io;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::host::Host;
use crate::core::SshWord;

/// From the first packet to the line. A live sshd answers in a round trip and the time of a fork.
const BANNER_WITHIN: Duration = Duration::from_secs(1);

/// RFC 4253: the identification line with its line end has at most 255 bytes.
const LINE_BYTES_MAX: usize = 255;

/// Lines that a server may send before it; a legal notice fits.
const BYTES_MAX: usize = 4096;

/// Asks the port. Says nothing itself, so the server closes the connection when it has waited enough.
pub(super) async fn ask(host: &Host, port: u16) -> SshWord {
    let mut heard = Vec::new();
    let asked = timeout(BANNER_WITHIN, listen(host, port, &mut heard)).await;
    match asked {
        Ok(Ok(word)) => word,
        Ok(Err(error)) => of_error(&error, &heard),
        Err(_) if heard.is_empty() => SshWord::NoAnswer,
        Err(_) => SshWord::NotSsh,
    }
}

async fn listen(host: &Host, port: u16, heard: &mut Vec<u8>) -> io::Result<SshWord> {
    let mut stream = TcpStream::connect((host.as_str(), port)).await?;
    let mut part = [0; 512];
    loop {
        let count = stream.read(&mut part).await?;
        heard.extend_from_slice(part.get(..count).unwrap_or_default());
        if let Some(word) = word_of(heard) {
            return Ok(word);
        }
        if count == 0 {
            return Ok(SshWord::NotSsh);
        }
    }
}

/// What was heard means this; `None` while more may change it.
fn word_of(heard: &[u8]) -> Option<SshWord> {
    let mut rest = heard;
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n');
        let line = end.map_or(rest, |end| rest.get(..end).unwrap_or_default());
        if line.starts_with(b"SSH-") {
            return match end {
                Some(end) if end < LINE_BYTES_MAX => Some(SshWord::Banner(printable(line))),
                None if line.len() < LINE_BYTES_MAX => None,
                Some(_) | None => Some(SshWord::NotSsh),
            };
        }
        match end {
            Some(end) => rest = rest.get(end + 1..).unwrap_or_default(),
            None => return (heard.len() >= BYTES_MAX).then_some(SshWord::NotSsh),
        }
    }
}

fn printable(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    line.iter().map(|&byte| if matches!(byte, b' '..=b'~') { char::from(byte) } else { '?' }).collect()
}

fn of_error(error: &io::Error, heard: &[u8]) -> SshWord {
    match error.kind() {
        _ if !heard.is_empty() => SshWord::NotSsh,
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => SshWord::Refused,
        // No route, no such name: nothing is known of the host.
        _ => SshWord::NoAnswer,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_identification_line_is_the_first_that_begins_with_ssh() {
        let banner = |text: &str| Some(SshWord::Banner(text.to_owned()));
        let long = |count: usize| [b"SSH-2.0-".as_slice(), &vec![b'x'; count], b"\r\n"].concat();
        for (heard, word) in [
            (b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n".to_vec(), banner("SSH-2.0-OpenSSH_9.2p1 Debian")),
            (b"Authorised use only.\r\n\nSSH-2.0-x\n".to_vec(), banner("SSH-2.0-x")),
            (b"SSH-2.0-a\x1b[2Jb\n".to_vec(), banner("SSH-2.0-a?[2Jb")),
            (b"SSH-2.0-half".to_vec(), None),
            (b"HTTP/1.1 400 Bad Request\r\n".to_vec(), None),
            (vec![b'z'; BYTES_MAX], Some(SshWord::NotSsh)),
            (long(245), banner(&format!("SSH-2.0-{}", "x".repeat(245)))),
            (long(300), Some(SshWord::NotSsh)),
            (b"SSH-".repeat(100), Some(SshWord::NotSsh)),
        ] {
            assert_eq!(word_of(&heard), word, "{}", String::from_utf8_lossy(&heard));
        }
    }

    #[tokio::test]
    async fn silence_a_closed_port_and_another_server_are_told_apart() {
        let host = Host::of_address("127.0.0.1:1").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for (said, word) in [
            (Some(&b"SSH-2.0-test\r\n"[..]), SshWord::Banner("SSH-2.0-test".to_owned())),
            (Some(b"220 mail.example ESMTP\r\n"), SshWord::NotSsh),
            (Some(b""), SshWord::NotSsh),
            (None, SshWord::NoAnswer),
        ] {
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                if let Some(said) = said {
                    stream.write_all(said).await.unwrap();
                    return None;
                }
                Some(stream)
            };
            let (heard, _held) = tokio::join!(ask(&host, port), serve);
            assert_eq!(heard, word, "{said:?}");
        }
        drop(listener);
        assert_eq!(ask(&host, port).await, SshWord::Refused);
    }
}
