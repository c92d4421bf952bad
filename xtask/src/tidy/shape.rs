//! The form of files: tables of contents, length, nothing unfinished.

use super::finding::Finding;
use super::source::has_word;
use super::tree::{RustFile, Tree};

/// STYLE: a file is one noun, usually 100 to 400 lines. Past this it is worth a second look.
const LINES_MAX: usize = 500;

const LOGIC: [&str; 6] = ["fn", "impl", "struct", "enum", "trait", "macro_rules!"];

/// Spelled in two so that this file does not accuse itself.
const UNFINISHED_MARKS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
const UNFINISHED_CALLS: [&str; 3] = ["todo!", "unimplemented!", "dbg!"];

pub(super) fn check(tree: &Tree, found: &mut Vec<Finding>) {
    for file in &tree.rust {
        if file.path.ends_with("/mod.rs") {
            contents(file, found);
        }
        let count = file.source.lines().count();
        if count > LINES_MAX {
            let what = format!("{count} lines");
            let finding =
                Finding::error(&file.path, count, "long-file", what, "split it by idea, one noun a file");
            found.push(finding.warning());
        }
        unfinished(file, found);
    }
}

fn contents(file: &RustFile, found: &mut Vec<Finding>) {
    let lines = file.source.lines().filter(|(number, _)| !file.source.is_test_line(*number));
    for (number, line) in lines {
        let item = line.split_whitespace().find(|word| !is_qualifier(word)).unwrap_or("");
        if let Some(kind) = LOGIC.iter().find(|kind| has_word(item, kind) && line.contains(*kind)) {
            let what = format!("`{kind}` in a table of contents");
            let way_out = "move it to a file named after it; mod.rs says what is here and how data flows";
            found.push(Finding::error(&file.path, number, "mod-is-contents", what, way_out));
        }
    }
}

fn is_qualifier(word: &str) -> bool {
    ["pub", "async", "unsafe", "const"].contains(&word) || word.starts_with("pub(")
}

fn unfinished(file: &RustFile, found: &mut Vec<Finding>) {
    let way_out = "finish it, or open an issue and say the limit in the docs";
    for (number, line) in file.source.lines() {
        for call in UNFINISHED_CALLS.into_iter().filter(|call| has_word(line, call)) {
            found.push(Finding::error(&file.path, number, "unfinished", format!("`{call}`"), way_out));
        }
    }
    for (number, line) in file.source.comment_lines() {
        for mark in UNFINISHED_MARKS.into_iter().filter(|mark| has_word(line, mark)) {
            found.push(Finding::error(
                &file.path,
                number,
                "unfinished",
                format!("a {mark} comment"),
                way_out,
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<Finding> {
        let mut found = Vec::new();
        check(&Tree::of(&[(path, text)]), &mut found);
        found
    }

    #[test]
    fn a_table_of_contents_holds_no_logic() {
        for text in ["pub fn a() {}", "struct A;", "impl A {}", "pub(crate) enum A {}", "pub async fn a() {}"]
        {
            assert_eq!(findings("common/src/wire/mod.rs", text).len(), 1, "{text}");
            assert!(findings("common/src/wire/frame.rs", text).is_empty(), "{text}");
        }
        let contents = "//! Frames: a struct in, an enum out.\nmod frame;\npub use frame::{Frame, fn_like};\n\
                        #[cfg(test)]\nmod tests { fn a() {} }\n";
        assert!(findings("common/src/wire/mod.rs", contents).is_empty());
    }

    #[test]
    fn a_long_file_is_a_warning() {
        let found = findings("a/src/b.rs", &"\n".repeat(LINES_MAX + 1));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].level, super::super::finding::Level::Warning);
        assert!(findings("a/src/b.rs", &"\n".repeat(LINES_MAX)).is_empty());
    }

    #[test]
    fn nothing_is_left_unfinished() {
        for text in ["fn a() { todo!() }", "dbg!(x);", &format!("// {}: later", UNFINISHED_MARKS[0])] {
            assert_eq!(findings("a/src/b.rs", text).len(), 1, "{text}");
        }
        assert!(findings("a/src/b.rs", "let todos = \"a todo!\";").is_empty());
    }
}
