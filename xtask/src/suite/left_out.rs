//! The tests that a run leaves out unless it is asked for them, each with its reason.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::repository;

/// Name and reason of every `#[ignore = "…"]` that git knows of.
pub(super) fn tests() -> Result<Vec<(String, String)>> {
    let listed = Command::new("git")
        .args(["grep", "--no-color", "-h", "-A2", "-e", "#\\[ignore", "--", "*.rs"])
        .current_dir(repository::root()?)
        .output()
        .context("cannot start git")?;
    // 1: none was found.
    ensure!(
        matches!(listed.status.code(), Some(0 | 1)),
        "git grep: {}",
        String::from_utf8_lossy(&listed.stderr).trim()
    );
    Ok(read(&String::from_utf8_lossy(&listed.stdout)))
}

fn read(lines: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut reason = None;
    for line in lines.lines().map(str::trim) {
        let said = line.strip_prefix("#[ignore = \"").and_then(|rest| rest.strip_suffix("\"]"));
        if let Some(said) = said {
            reason = Some(said.to_owned());
        }
        if let Some((name, _)) = line.strip_prefix("fn ").and_then(|rest| rest.split_once('(')) {
            found.extend(reason.take().map(|reason| (name.to_owned(), reason)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_reason_belongs_to_the_function_after_it() {
        let lines = "#[ignore = \"ten minutes\"]\nfn long() {\n--\n    #[ignore = \"a\"]\n    fn other(x: u8) {\nfn third() {";
        let found = [("long", "ten minutes"), ("other", "a")];
        assert_eq!(super::read(lines), found.map(|(name, reason)| (name.to_owned(), reason.to_owned())));
    }
}
