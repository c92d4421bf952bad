//! A Rust file as the rules see it: code with comments and strings blanked out, comments apart, test regions,
//! and the function each line stands in.

/// Lexed text. All line numbers count from 1.
#[derive(Debug)]
pub(super) struct Source {
    code: String,
    comments: String,
    line_starts: Vec<usize>,
    test_lines: Vec<bool>,
    functions: Vec<Option<String>>,
}

impl Source {
    pub(super) fn new(text: &str) -> Self {
        let (code, comments) = split(text);
        let line_starts: Vec<usize> =
            std::iter::once(0).chain(code.match_indices('\n').map(|(at, _)| at + 1)).collect();
        let mut source = Self { test_lines: Vec::new(), functions: Vec::new(), code, comments, line_starts };
        source.test_lines = source.find_tests();
        source.functions = source.find_functions();
        source
    }

    /// The code line by line, as wide as the text; comments and strings are blanks.
    pub(super) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// The comments, everything else blank.
    pub(super) fn comment_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.comments.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    pub(super) fn comment(&self, number: usize) -> &str {
        self.comments.lines().nth(number.wrapping_sub(1)).unwrap_or("")
    }

    pub(super) fn line_of(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    pub(super) fn is_test_line(&self, number: usize) -> bool {
        self.test_lines.get(number.wrapping_sub(1)).copied().unwrap_or(false)
    }

    /// Name of the innermost function around a line.
    pub(super) fn function(&self, number: usize) -> Option<&str> {
        self.functions.get(number.wrapping_sub(1))?.as_deref()
    }

    /// Modules named by path below `root`: `root::name` and, in groups, `root::{name, …}`.
    pub(super) fn modules_below(&self, root: &str) -> Vec<(usize, String)> {
        let prefix = format!("{root}::");
        let mut found = Vec::new();
        for (at, _) in self.code.match_indices(&prefix) {
            let before = self.code[..at].chars().next_back();
            if before.is_some_and(|c| is_word(c) || c == ':') {
                continue;
            }
            let start = at + prefix.len();
            let rest = &self.code[start..];
            match rest.strip_prefix('{') {
                None => found.push((self.line_of(start), first_word(rest))),
                Some(group) => found.extend(
                    group_items(group)
                        .into_iter()
                        .map(|(offset, item)| (self.line_of(start + 1 + offset), first_word(item))),
                ),
            }
        }
        found
    }

    fn find_tests(&self) -> Vec<bool> {
        let mut lines = vec![false; self.line_starts.len()];
        for (at, mark) in self.code.match_indices("#[cfg(test)]") {
            let after = at + mark.len();
            let end = item_end(&self.code[after..]) + after;
            let (first, last) = (self.line_of(at), self.line_of(end));
            lines[first - 1..last].fill(true);
        }
        lines
    }

    fn find_functions(&self) -> Vec<Option<String>> {
        let mut open: Vec<Option<String>> = Vec::new();
        let mut pending = None;
        let mut lines = Vec::with_capacity(self.line_starts.len());
        for line in self.code.split('\n') {
            let mut innermost = innermost_name(&open);
            for (at, c) in line.char_indices() {
                match c {
                    'f' if is_word_at(line, at, "fn") => {
                        let name = first_word(line[at + 2..].trim_start());
                        pending = (!name.is_empty()).then_some(name);
                    }
                    '{' => {
                        open.push(pending.take());
                        innermost = innermost_name(&open).or(innermost);
                    }
                    '}' => {
                        open.pop();
                    }
                    ';' => pending = None,
                    _ => {}
                }
            }
            lines.push(innermost);
        }
        lines
    }
}

/// Files that hold modules declared `#[cfg(test)] mod name;` in `path`, both places they may lie in.
pub(super) fn test_modules(path: &str, source: &Source) -> Vec<String> {
    let folder = match path.rsplit_once('/') {
        Some((folder, "mod.rs" | "lib.rs" | "main.rs")) => folder.to_owned(),
        _ => path.trim_end_matches(".rs").to_owned(),
    };
    source
        .lines()
        .filter(|(number, _)| source.is_test_line(*number))
        .filter_map(|(_, line)| {
            let declaration = line.split("mod ").nth(1)?;
            let (name, rest) = declaration.split_at(first_word(declaration).len());
            rest.trim_start().starts_with(';').then(|| name.to_owned())
        })
        .flat_map(|name| [format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs")])
        .collect()
}

/// Whether `word` stands at `at` and is not part of a longer word.
pub(super) fn is_word_at(line: &str, at: usize, word: &str) -> bool {
    let edges_are_words = (word.starts_with(is_word), word.ends_with(is_word));
    line[at..].starts_with(word)
        && !(edges_are_words.0 && line[..at].chars().next_back().is_some_and(is_word))
        && !(edges_are_words.1 && line[at + word.len()..].chars().next().is_some_and(is_word))
}

/// Whether `line` holds `word`, not as part of a longer word.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| is_word_at(line, at, word))
}

pub(super) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn innermost_name(open: &[Option<String>]) -> Option<String> {
    open.iter().rev().find_map(Clone::clone)
}

fn first_word(text: &str) -> String {
    text.trim_start().chars().take_while(|c| is_word(*c)).collect()
}

/// The items of a `{a, b::{c, d}}` group from after its brace, each with its offset.
fn group_items(text: &str) -> Vec<(usize, &str)> {
    let (mut depth, mut start, mut items) = (0usize, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' | ',' if depth == 0 => {
                let item = &text[start..at];
                let blank = item.len() - item.trim_start().len();
                if !item.trim().is_empty() {
                    items.push((start + blank, item.trim()));
                }
                if c == '}' {
                    break;
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    items
}

/// Offset of the end of the item at the start of `code`: its last brace, or its semicolon.
fn item_end(code: &str) -> usize {
    let mut depth = 0usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at;
                }
            }
            ';' if depth == 0 => return at,
            _ => {}
        }
    }
    code.len().saturating_sub(1)
}

/// Splits a text into code and comments of the same length, line by line.
fn split(text: &str) -> (String, String) {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut comments = blank(bytes);
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let (span, is_comment) = if rest.starts_with(b"//") {
            (rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()), true)
        } else if rest.starts_with(b"/*") {
            (block_comment(rest), true)
        } else if let Some(span) = literal(bytes, at) {
            (span, false)
        } else {
            at += 1;
            continue;
        };
        let end = at + span;
        if is_comment {
            comments[at..end].copy_from_slice(&bytes[at..end]);
        }
        code[at..end].copy_from_slice(&blank(&bytes[at..end]));
        at = end;
    }
    (String::from_utf8_lossy(&code).into_owned(), String::from_utf8_lossy(&comments).into_owned())
}

fn blank(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|byte| if *byte == b'\n' { b'\n' } else { b' ' }).collect()
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// Length of the string or character literal at `at`, if one starts there.
fn literal(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let follows_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if rest[0] == b'"' {
        return Some(quoted(rest, b'"'));
    }
    if rest[0] == b'r' && !(follows_word && bytes[at - 1] != b'b') {
        let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
        if rest.get(1 + hashes) == Some(&b'"') {
            let mut close = vec![b'"'];
            close.resize(1 + hashes, b'#');
            let body = 2 + hashes;
            let found = rest[body..].windows(close.len()).position(|window| window == close);
            return Some(found.map_or(rest.len(), |offset| body + offset + close.len()));
        }
        return None;
    }
    // A quote that closes two characters on, or after an escape, is a character; any other starts a lifetime.
    if rest[0] == b'\'' {
        let is_escape = rest.get(1) == Some(&b'\\');
        let width = match rest.get(1)? {
            byte if *byte < 0x80 => 1,
            byte if *byte < 0xE0 => 2,
            byte if *byte < 0xF0 => 3,
            _ => 4,
        };
        if is_escape || rest.get(1 + width) == Some(&b'\'') {
            return Some(quoted(rest, b'\''));
        }
    }
    None
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_no_code() {
        let text = "let a = \"tokio // x\"; // tokio\n/* tokio /* in */ tokio */ let b = r#\"tokio \" tokio\"#;\nlet c = '\"'; let d: &'static str = b\"tokio\";";
        let source = Source::new(text);
        assert_eq!(source.code.len(), text.len());
        assert!(!source.code.contains("tokio"), "{}", source.code);
        assert!(source.code.contains("let d: &'static str"));
        assert!(source.comment(1).contains("// tokio"));
    }

    #[test]
    fn a_test_region_ends_with_its_brace() {
        let source = Source::new("fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() { x() }\n}\nfn c() {}\n");
        let marked: Vec<bool> = (1..=6).map(|number| source.is_test_line(number)).collect();
        assert_eq!(marked, [false, true, true, true, true, false]);
    }

    #[test]
    fn a_module_declared_for_tests_is_a_test_file() {
        let source = Source::new("#[cfg(test)]\nmod golden;\nmod frame;\n");
        assert_eq!(
            test_modules("common/src/wire/mod.rs", &source),
            ["common/src/wire/golden.rs", "common/src/wire/golden/mod.rs"]
        );
        assert_eq!(test_modules("a/src/b.rs", &source)[0], "a/src/b/golden.rs");
    }

    #[test]
    fn a_line_knows_its_function() {
        let source =
            Source::new("fn outer() {\n  if x {\n    y();\n  }\n}\nconst A: u8 = 1;\nfn one() { z() }\n");
        let names: Vec<_> = (1..=7).map(|number| source.function(number)).collect();
        let outer = Some("outer");
        assert_eq!(names, [outer, outer, outer, outer, outer, None, Some("one")]);
    }

    #[test]
    fn modules_are_found_in_paths_and_groups() {
        let source = Source::new(
            "use crate::core::View;\nuse crate::{\n    api::{self, x},\n    store,\n};\nuse mycrate::no;\n",
        );
        let found = source.modules_below("crate");
        let expected = [(1, "core"), (3, "api"), (4, "store")].map(|(line, name)| (line, name.to_owned()));
        assert_eq!(found, expected);
    }
}
