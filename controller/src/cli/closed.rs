//! A reader that closes our output, as `head` does once it has enough.

use std::io::{self, ErrorKind};
use std::panic;
use std::process;

/// 128 and SIGPIPE: what a shell reports of a program that the signal ended, as it ends most.
pub(super) const EXIT_CLOSED: u8 = 141;

/// From here on the command ends without a word when nobody reads its output any more.
///
/// Rust ignores SIGPIPE, so that `println!` panics instead. Taking the signal's default back needs `unsafe`, and would
/// end `cic dev` by a socket too; hence the panic is told by its text, which the standard library's own tools match too.
/// Only `println!` speaks so: whatever must be finished first writes with errors ignored.
pub fn end_quietly_when_closed() {
    let others = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or_default();
        if text.starts_with("failed printing to std") && text.contains(&broken_pipe()) {
            process::exit(EXIT_CLOSED.into());
        }
        others(panic);
    }));
}

/// `Broken pipe (os error 32)`
fn broken_pipe() -> String {
    io::Error::from_raw_os_error(nix::errno::Errno::EPIPE as i32).to_string()
}

pub(super) fn is_closed(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe
}
