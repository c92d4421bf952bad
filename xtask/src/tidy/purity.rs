//! A core neither waits nor touches the outside.

use super::finding::Finding;
use super::source::has_word;
use super::tree::{RustFile, Tree};

const RULE: &str = "core-is-pure";

const WORDS: [(&str, &str); 5] = [
    ("async", "a core never waits: return an Action and take its outcome as an Event"),
    (".await", "a core never waits: return an Action and take its outcome as an Event"),
    ("tokio", "a core has no runtime: move this to a shell"),
    ("Instant::now", "a core is told the time: take `now: Mono`"),
    ("SystemTime", "a core is told the time: take `now: Mono`"),
];

const STD_MODULES: [&str; 5] = ["fs", "net", "env", "process", "thread"];

const DENIAL: &str = "#![deny(clippy::disallowed_methods, clippy::disallowed_types)]";

pub(super) fn check(tree: &Tree, found: &mut Vec<Finding>) {
    for file in tree.rust.iter().filter(|file| is_core(file)) {
        for (number, line) in file.source.lines() {
            for (word, way_out) in WORDS.iter().filter(|(word, _)| has_word(line, word)) {
                found.push(Finding::error(&file.path, number, RULE, format!("`{word}` in a core"), *way_out));
            }
        }
        for (number, module) in file.source.modules_below("std") {
            if STD_MODULES.contains(&module.as_str()) {
                let what = format!("`std::{module}` in a core");
                let way_out = "only shells touch the outside: take it as an Event, or return an Action";
                found.push(Finding::error(&file.path, number, RULE, what, way_out));
            }
        }
        if file.path.ends_with("/src/core/mod.rs")
            && !file.source.lines().any(|(_, line)| line.trim() == DENIAL)
        {
            let way_out = format!("write `{DENIAL}` above its first `mod`");
            found.push(Finding::error(
                &file.path,
                1,
                RULE,
                "clippy.toml's bans are not turned on here",
                way_out,
            ));
        }
    }
}

fn is_core(file: &RustFile) -> bool {
    file.path.split_once('/').is_some_and(|(_, rest)| rest.starts_with("src/core/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        check(&Tree::of(&[(path, text)]), &mut found);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_core_that_waits_or_touches_the_outside_is_named_by_line() {
        for text in [
            "async fn a() {}",
            "x.await;",
            "use tokio::sync::mpsc;",
            "use std::fs;",
            "use std::{env, fmt};",
            "let t = std::time::Instant::now();",
            "fn a(t: SystemTime) {}",
        ] {
            let found = findings("agent/src/core/agent.rs", &format!("fn first() {{}}\n{text}\n"));
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].starts_with("agent/src/core/agent.rs:2: core-is-pure: "), "{}", found[0]);
            assert!(findings("agent/src/effect/engine.rs", text).is_empty(), "{text}");
        }
    }

    #[test]
    fn words_in_comments_and_longer_words_are_no_breach() {
        let text =
            "//! async, tokio and std::fs have no place here\nlet is_async = my_tokio; use std::fmt;\n";
        assert!(findings("agent/src/core/agent.rs", text).is_empty());
    }

    #[test]
    fn every_core_turns_the_bans_on() {
        assert_eq!(findings("agent/src/core/mod.rs", "mod agent;\n").len(), 1);
        assert!(findings("agent/src/core/mod.rs", &format!("//! Core.\n{DENIAL}\nmod agent;\n")).is_empty());
    }
}
