//! The parsers of a model's files under changed inputs, the same ones each time. `cargo xtask fuzz` looks further.

#[allow(dead_code)]
mod parsers;

use fastrand::Rng;

use self::parsers::TARGETS;

/// Of each target; some seconds in a build for tests.
const INPUTS: usize = 20_000;

const CHANGES_MAX: usize = 6;

/// Bytes that such files are made of.
const WORDS: [&[u8]; 14] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b":",
    b",",
    b"\\u0000",
    b"../",
    b"/",
    b"-1",
    b"1e400",
    b"18446744073709551615",
    b"\xff",
];

/// `input` with some of its bytes changed, moved, doubled or left out.
fn changed(input: &[u8], other: &[u8], random: &mut Rng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..random.usize(1..=CHANGES_MAX) {
        let at = random.usize(..=bytes.len());
        match random.u8(..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.u8(..8),
            1 => bytes.truncate(at),
            2 => drop(bytes.splice(at..at, WORDS[random.usize(..WORDS.len())].iter().copied())),
            3 => {
                let end = random.usize(at..=bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                let end = random.usize(at..=bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.extend(part);
            }
            _ => {
                let from = random.usize(..=other.len());
                bytes.splice(at..at, other[from..].iter().copied());
            }
        }
    }
    bytes
}

#[test]
fn no_change_of_a_model_s_small_files_breaks_what_reads_them() {
    for (name, target, inputs) in TARGETS {
        let (mut random, inputs) = (Rng::with_seed(7), inputs());
        inputs.iter().for_each(|input| target(input));
        for _ in 0..INPUTS {
            let (one, other) = (random.usize(..inputs.len()), random.usize(..inputs.len()));
            let input = changed(&inputs[one], &inputs[other], &mut random);
            let shown = String::from_utf8_lossy(&input).into_owned();
            let seen = std::panic::catch_unwind(|| target(&input));
            assert!(seen.is_ok(), "{name}: {shown}");
        }
    }
}
