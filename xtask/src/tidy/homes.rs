//! Things that may be named in one place only, so that they can be reviewed, faked or replaced there.

use super::finding::Finding;
use super::source::{has_word, is_word};
use super::tree::{RustFile, Tree};

/// Threads and tasks outside the supervisor: path, call, and why it may.
const SPAWNS_ALLOWED: [(&str, &str, &str); 2] = [
    (
        "agent/src/bin/cic-gpu-probe/wish.rs",
        "thread::spawn",
        "the probe has no runtime, and must hear that it is to end while a driver call hangs",
    ),
    (
        "agent/src/bin/cic-gpu-probe/run.rs",
        "thread::scope",
        "the probe has no runtime, and waits for XIDs while it samples",
    ),
];

/// Crates that one place keeps to itself, so that another can be put there or none else is burdened with it: name,
/// the manifest, and the file or folder that may name it.
const CRATES: [(&str, &str, &str); 4] = [
    ("bincode", "common/Cargo.toml", "common/src/wire/codec.rs"),
    ("backoff", "common/Cargo.toml", "common/src/backoff.rs"),
    ("object_store", "common/Cargo.toml", "common/src/objects/"),
    // A static agent that loads NVML dies of it (docs/decisions/0001).
    ("nvml-wrapper", "agent/Cargo.toml", "agent/src/bin/cic-gpu-probe/"),
];

pub(super) fn check(tree: &Tree, found: &mut Vec<Finding>) {
    for file in &tree.rust {
        clocks(file, found);
        spawns(file, found);
        crates(file, found);
    }
    for (path, text) in tree.texts.iter().filter(|(path, _)| path.ends_with("Cargo.toml")) {
        manifests(path, text, found);
    }
}

fn clocks(file: &RustFile, found: &mut Vec<Finding>) {
    if file.path == "common/src/time.rs" || file.is_under("xtask/") {
        return;
    }
    for (number, line) in file.source.lines().filter(|(number, _)| !file.is_test_line(*number)) {
        for call in ["Instant::now", "SystemTime::now"].into_iter().filter(|call| has_word(line, call)) {
            let way_out = "only common/src/time.rs does: take a `Mono` or a `Clock`";
            found.push(Finding::error(
                &file.path,
                number,
                "one-clock",
                format!("`{call}` reads a clock"),
                way_out,
            ));
        }
    }
}

fn spawns(file: &RustFile, found: &mut Vec<Finding>) {
    if file.is_under("common/src/supervise/") || file.is_under("xtask/") {
        return;
    }
    for (number, line) in file.source.lines().filter(|(number, _)| !file.is_test_line(*number)) {
        for call in ["tokio::spawn", "task::spawn", "thread::spawn", "thread::scope", "thread::Builder"] {
            let is_allowed =
                SPAWNS_ALLOWED.iter().any(|(path, allowed, _)| file.path == *path && call == *allowed);
            if has_word(line, call) && !is_allowed {
                let way_out = "give it to the Supervisor, which names it, stops it and reports its end";
                found.push(Finding::error(
                    &file.path,
                    number,
                    "one-spawner",
                    format!("`{call}` detaches work"),
                    way_out,
                ));
            }
        }
    }
}

fn crates(file: &RustFile, found: &mut Vec<Finding>) {
    for (name, manifest, home) in CRATES {
        // Only the package whose manifest names the crate can reach it.
        let package = manifest.trim_end_matches("Cargo.toml");
        if file.is_under(home) || !file.is_under(package) {
            continue;
        }
        let path = format!("{}::", name.replace('-', "_"));
        for (number, line) in file.source.lines() {
            let is_first_segment = |at: usize| {
                let before = line[..at].chars().next_back();
                !before.is_some_and(|c| is_word(c) || c == ':')
            };
            if line.match_indices(&path).any(|(at, _)| is_first_segment(at)) {
                found.push(Finding::error(
                    &file.path,
                    number,
                    "replaceable-crate",
                    format!("`{path}` outside {home}"),
                    format!("use what {home} offers; a module of the same name is written `crate::{name}`"),
                ));
            }
        }
    }
}

fn manifests(path: &str, text: &str, found: &mut Vec<Finding>) {
    for (index, line) in text.lines().enumerate() {
        let key: String = line.chars().take_while(|c| is_word(*c) || *c == '-').collect();
        for (name, manifest, home) in CRATES {
            if key == name && path != manifest && path != "Cargo.toml" {
                found.push(Finding::error(
                    path,
                    index + 1,
                    "replaceable-crate",
                    format!("depends on {name} itself"),
                    format!("use what {home} offers"),
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<&'static str> {
        let mut found = Vec::new();
        check(&Tree::of(&[(path, text)]), &mut found);
        found.iter().map(|finding| finding.rule).collect()
    }

    #[test]
    fn one_file_reads_the_clock() {
        let text = "let a = Instant::now();\n#[cfg(test)]\nmod tests { fn b() { Instant::now(); } }\n";
        assert_eq!(rules("agent/src/driver.rs", text), ["one-clock"]);
        assert!(rules("common/src/time.rs", text).is_empty());
        assert!(rules("tests/process/boot.rs", text).is_empty());
        assert!(rules("xtask/src/engine.rs", text).is_empty());
    }

    #[test]
    fn one_place_spawns() {
        assert_eq!(rules("agent/src/serve/poll.rs", "tokio::spawn(async {});"), ["one-spawner"]);
        assert_eq!(rules("agent/src/source/gpu.rs", "std::thread::spawn(|| ());"), ["one-spawner"]);
        assert!(rules("common/src/supervise/supervisor.rs", "tokio::spawn(work);").is_empty());
        assert!(rules("agent/src/serve/poll.rs", "supervisor.spawn(\"poll\", kind, work);").is_empty());
        for (path, call, _) in SPAWNS_ALLOWED {
            assert!(rules(path, &format!("{call}(work);")).is_empty(), "{path}");
            assert_eq!(rules("agent/src/source/gpu.rs", &format!("{call}(work);")), ["one-spawner"]);
        }
    }

    #[test]
    fn a_replaceable_crate_has_one_file() {
        assert_eq!(rules("common/src/wire/frame.rs", "bincode::encode(x)"), ["replaceable-crate"]);
        assert_eq!(
            rules("common/src/tls/enrol.rs", "use backoff::ExponentialBackoff;"),
            ["replaceable-crate"]
        );
        assert!(rules("common/src/wire/codec.rs", "use bincode::config;").is_empty());
        assert!(rules("common/src/tls/enrol.rs", "use crate::backoff::Backoff;").is_empty());
        assert!(
            rules("agent/src/effect/push.rs", "use cic_common::backoff;\nbackoff::Backoff::new()").is_empty()
        );
        assert_eq!(
            rules("agent/Cargo.toml", "[dependencies]\nbackoff.workspace = true\n"),
            ["replaceable-crate"]
        );
        assert!(rules("common/Cargo.toml", "bincode.workspace = true\n").is_empty());
        assert_eq!(rules("agent/src/source/gpu.rs", "nvml_wrapper::Nvml::init()"), ["replaceable-crate"]);
        assert!(rules("agent/src/bin/cic-gpu-probe/nvml.rs", "use nvml_wrapper::Nvml;").is_empty());
    }
}
