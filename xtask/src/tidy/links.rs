//! Relative links of Markdown files point at files that are there.

use super::finding::Finding;
use super::tree::Tree;

pub(super) fn check(tree: &Tree, found: &mut Vec<Finding>) {
    for (path, text) in tree.texts.iter().filter(|(path, _)| path.ends_with(".md")) {
        let mut is_code = false;
        for (index, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                is_code = !is_code;
                continue;
            }
            if is_code {
                continue;
            }
            for target in targets(line) {
                if !leads_somewhere(tree, path, target) {
                    let what = format!("`{target}` is not in the repository");
                    found.push(Finding::error(
                        path,
                        index + 1,
                        "dead-link",
                        what,
                        "fix the link or add the file",
                    ));
                }
            }
        }
    }
}

/// What stands in `](…)` outside of inline code.
fn targets(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (at, opening) in line.match_indices("](") {
        let is_code = line[..at].matches('`').count() % 2 == 1 && line[at..].contains('`');
        let rest = &line[at + opening.len()..];
        if let Some(end) = rest.find(')')
            && !is_code
        {
            found.push(rest[..end].split_whitespace().next().unwrap_or(""));
        }
    }
    found
}

fn leads_somewhere(tree: &Tree, from: &str, target: &str) -> bool {
    let file = target.split('#').next().unwrap_or("");
    if file.is_empty() || file.contains("://") || file.starts_with("mailto:") {
        return true;
    }
    let mut parts: Vec<&str> = if file.starts_with('/') { Vec::new() } else { from.split('/').collect() };
    parts.pop();
    for part in file.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.pop().is_none() => return false,
            ".." => {}
            part => parts.push(part),
        }
    }
    let path = parts.join("/");
    let folder = format!("{path}/");
    path.is_empty() || tree.paths.contains(&path) || tree.paths.iter().any(|other| other.starts_with(&folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_nothing_is_named() {
        let readme = "[a](docs/a.md#top) [d](docs/) [up](../x.md)\n[gone](docs/gone.md) `[not](a.link)`\n\
                      [web](https://example.org/x) [here](#here)\n```\n[code](nothing.md)\n```\n";
        let tree = Tree::of(&[("README.md", readme), ("docs/a.md", "[back](../README.md) [me](a.md)")]);
        let mut found = Vec::new();
        check(&tree, &mut found);
        let named: Vec<_> = found.iter().map(|finding| (finding.line, finding.what.as_str())).collect();
        assert_eq!(
            named,
            [(1, "`../x.md` is not in the repository"), (2, "`docs/gone.md` is not in the repository")]
        );
    }
}
