//! What is kept of a run besides its outcome: nothing, a fingerprint, the last lines, or all of it on stdout.

use std::collections::VecDeque;

use cic_common::time::Mono;

/// Lines shown with a failure: the last second or two of a busy fleet.
pub const TAIL_LINES: usize = 40;

/// Where the lines go. Text is only made where somebody will read it.
#[derive(Debug)]
pub enum Trace {
    Off,
    /// FNV-1a over every line, to compare two runs.
    Hash(u64),
    Tail(VecDeque<String>),
    Print,
}

impl Trace {
    #[must_use]
    pub fn hash() -> Self {
        Self::Hash(0xcbf2_9ce4_8422_2325)
    }

    pub fn line(&mut self, now: Mono, text: impl FnOnce() -> String) {
        match self {
            Self::Off => {}
            Self::Hash(hash) => {
                let line = stamped(now, &text());
                *hash = line
                    .bytes()
                    .fold(*hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
            }
            Self::Tail(lines) => {
                if lines.len() == TAIL_LINES {
                    lines.pop_front();
                }
                lines.push_back(stamped(now, &text()));
            }
            Self::Print => {
                let line = stamped(now, &text());
                // A reader that stopped reading, such as `head`, is no fault of the run.
                let _ = std::io::Write::write_all(&mut std::io::stdout(), format!("{line}\n").as_bytes());
            }
        }
    }
}

fn stamped(now: Mono, text: &str) -> String {
    let us = now.since(Mono::ZERO).as_micros();
    format!("{:>5}.{:06} {text}", us / 1_000_000, us % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_newest_lines() {
        let mut trace = Trace::Tail(VecDeque::new());
        for ms in 0..100 {
            trace.line(Mono::from_millis(ms), || format!("line {ms}"));
        }
        let Trace::Tail(lines) = trace else { panic!("it stays a tail") };
        assert_eq!(lines.len(), TAIL_LINES);
        assert_eq!(lines[TAIL_LINES - 1], "    0.099000 line 99");
    }

    #[test]
    fn a_hash_tells_two_runs_apart() {
        let hash = |text: &str| {
            let mut trace = Trace::hash();
            trace.line(Mono::ZERO, || text.to_owned());
            format!("{trace:?}")
        };
        assert_eq!(hash("a"), hash("a"));
        assert_ne!(hash("a"), hash("b"));
    }
}
