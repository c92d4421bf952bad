//! No file names a place that exists on one machine only.

use super::finding::Finding;
use super::tree::Tree;

/// Spelled in two so that this file does not accuse itself.
const MACHINE_PATHS: [&str; 2] = [concat!("/ro", "ot/"), concat!("/wo", "rk/")];

pub(super) fn check(tree: &Tree, found: &mut Vec<Finding>) {
    for (path, text) in &tree.texts {
        for (index, line) in text.lines().enumerate() {
            for place in MACHINE_PATHS {
                let starts_a_path = |at: usize| {
                    let before = line[..at].chars().next_back();
                    !before.is_some_and(|c| c.is_alphanumeric() || "._-/$}~".contains(c))
                };
                if line.match_indices(place).any(|(at, _)| starts_a_path(at)) {
                    let what = format!("`{place}…` is a place on one machine");
                    let way_out = "write it relative to the repository, or make it configurable";
                    found.push(Finding::error(path, index + 1, "machine-path", what, way_out));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_one_machine_is_named_in_any_text() {
        let [home, _] = MACHINE_PATHS;
        let tree = Tree::of(&[
            ("README.md", &format!("one\nsee {home}x\n")),
            ("a.sh", &format!("cd '{home}'")),
            ("b.md", &format!("docs{home}x is relative, $HOME{home} is not fixed")),
        ]);
        let mut found = Vec::new();
        check(&tree, &mut found);
        let places: Vec<_> = found.iter().map(|finding| (finding.path.as_str(), finding.line)).collect();
        assert_eq!(places, [("README.md", 2), ("a.sh", 1)]);
    }
}
