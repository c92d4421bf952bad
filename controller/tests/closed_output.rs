//! `cic COMMAND | head`: a reader that goes ends the command without a word.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;

use cic_common::time::Mono;
use cic_controller::core::{BrakeRules, Event, Timing};
use serde_json::json;

/// What a shell reports of a program that SIGPIPE ended.
const EXIT_CLOSED: i32 = 141;

/// An API that gives its first caller an empty event log.
fn api() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let at = listener.local_addr().expect("an address");
    thread::spawn(move || {
        let (mut caller, _) = listener.accept().expect("a caller");
        let _ = caller.read(&mut [0; 4096]);
        let body = json!({ "events": [] }).to_string();
        let length = body.len();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
        let _ = write!(caller, "{head}\r\ncontent-length: {length}\r\n\r\n{body}");
    });
    at
}

/// A record that decides something, so that there is something to print.
fn record(path: &Path) {
    let mut file = File::create(path).expect("creates");
    let head = json!({ "timing": Timing::default(), "brake": BrakeRules::default() });
    let restored = json!({ "now": Mono::ZERO, "event": Event::Restored(Default::default()) });
    let later = json!({ "now": Mono::from_millis(60_000), "event": Event::Tick });
    write!(file, "{head}\n{restored}\n{later}\n").expect("writes");
}

/// Runs it with an output that was closed before it began.
fn unread(args: &[&str]) -> Output {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut cic = Command::new(env!("CARGO_BIN_EXE_cic"));
    cic.args(args).stdout(writer).stderr(Stdio::piped()).stdin(Stdio::null());
    cic.output().expect("runs")
}

#[test]
fn a_command_whose_reader_has_gone_ends_without_a_word() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("record");
    record(&path);
    let at = api().to_string();
    let path = path.to_str().expect("a name");
    for args in [&["--api", &at, "events"][..], &["replay", path]] {
        let output = unread(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*errors), (Some(EXIT_CLOSED), ""), "{args:?}");
    }
    assert_eq!(unread(&["--help"]).stderr, b"");
}
