//! A test waits for a condition, never for a time.

use super::finding::Finding;
use super::source::has_word;
use super::tree::{RustFile, Tree};

/// Written above a sleep that is a bounded wait in a place whose name does not say so.
const MARK: &str = "// bounded wait:";

/// Names of functions that poll a condition until a deadline.
const WAITERS: [&str; 4] = ["wait_", "until", "poll_", "eventually"];

/// Programs and players, not tests: pacing is what they are for.
const PLAYERS: [&str; 2] = ["tests/engine/", "tests/fakes/"];

pub(super) fn check(tree: &Tree, found: &mut Vec<Finding>) {
    for file in tree.rust.iter().filter(|file| !PLAYERS.iter().any(|folder| file.is_under(folder))) {
        for (number, line) in file.source.lines() {
            let sleeps = line.match_indices("sleep(").any(|(at, _)| {
                !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') && !has_word(line, "fn")
            });
            if sleeps && file.is_test_line(number) && !is_bounded(file, number) {
                let way_out = format!(
                    "wait for a condition in a function named wait_…, until… or poll_…, or write `{MARK} why` above"
                );
                found.push(Finding::error(&file.path, number, "no-sleep", "a test sleeps", way_out));
            }
        }
    }
}

fn is_bounded(file: &RustFile, number: usize) -> bool {
    let named =
        file.source.function(number).is_some_and(|name| WAITERS.iter().any(|start| name.starts_with(start)));
    named || [number, number - 1].iter().any(|line| file.source.comment(*line).contains(MARK))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        let mut found = Vec::new();
        check(&Tree::of(&[(path, text)]), &mut found);
        found.len()
    }

    #[test]
    fn a_sleep_in_a_test_is_an_error() {
        let sleep = "fn boots() {\n    tokio::time::sleep(SECOND).await;\n}\n";
        assert_eq!(count("tests/process/boot.rs", sleep), 1);
        assert_eq!(count("agent/src/driver.rs", &format!("#[cfg(test)]\nmod tests {{\n{sleep}}}\n")), 1);
        assert_eq!(count("agent/src/driver.rs", sleep), 0, "not a test");
        assert_eq!(count("tests/engine/main.rs", sleep), 0, "the stand-in engine paces tokens");
    }

    #[test]
    fn a_bounded_wait_is_not() {
        assert_eq!(
            count("tests/process/boot.rs", "fn wait_until(x: X) {\n    std::thread::sleep(STEP);\n}\n"),
            0
        );
        let marked =
            "fn boots() {\n    // bounded wait: the kernel frees the port after this\n    sleep(STEP);\n}\n";
        assert_eq!(count("tests/process/boot.rs", marked), 0);
    }
}
