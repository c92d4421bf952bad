//! All rules over the whole repository.

use anyhow::{Result, ensure};

use super::finding::{Finding, Level};
use super::tree::Tree;
use super::{arrows, homes, links, purity, shape, text, waits};
use crate::repository;

pub(crate) fn run(args: &[String]) -> Result<()> {
    ensure!(args.is_empty(), "usage: cargo xtask tidy");
    let tree = Tree::read(&repository::root()?)?;
    let findings = examine(&tree);
    for finding in &findings {
        println!("{finding}");
    }
    let error_count = findings.iter().filter(|finding| finding.level == Level::Error).count();
    let warning_count = findings.len() - error_count;
    println!("tidy: {} files, {error_count} errors, {warning_count} warnings", tree.paths.len());
    ensure!(error_count == 0, "{error_count} rules of the repository are broken");
    Ok(())
}

fn examine(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for rule in
        [purity::check, homes::check, arrows::check, shape::check, waits::check, text::check, links::check]
    {
        rule(tree, &mut found);
    }
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tidy_tree_has_no_findings() {
        let tree = Tree::of(&[
            ("README.md", "[core](agent/src/core/mod.rs)"),
            (
                "agent/src/core/mod.rs",
                "//! Core.\n#![deny(clippy::disallowed_methods, clippy::disallowed_types)]\nmod agent;\n",
            ),
            ("agent/src/core/agent.rs", "pub struct Agent;\n"),
        ]);
        assert_eq!(examine(&tree), []);
    }

    #[test]
    fn findings_come_in_the_order_of_the_files() {
        let tree = Tree::of(&[("b/src/x.rs", "dbg!(1);"), ("a/src/x.rs", "\ndbg!(1);\nInstant::now();")]);
        let places: Vec<_> = examine(&tree).iter().map(|f| format!("{}:{}", f.path, f.line)).collect();
        assert_eq!(places, ["a/src/x.rs:2", "a/src/x.rs:3", "b/src/x.rs:1"]);
    }
}
