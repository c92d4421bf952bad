//! What a program knows of its configuration, and the nearest known name to an unknown one.

use std::fmt;

use toml::Value;

/// What a key may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Integer,
    /// An integer is taken too.
    Number,
    Flag,
    /// In the environment: separated by commas.
    TextList,
    /// A table or list whose inside the program checks itself. Not in the environment.
    Free,
}

impl Kind {
    pub(super) fn allows(self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_str(),
            Self::Integer => value.is_integer(),
            Self::Number => value.is_float() || value.is_integer(),
            Self::Flag => value.is_bool(),
            Self::TextList => value.as_array().is_some_and(|items| items.iter().all(Value::is_str)),
            Self::Free => true,
        }
    }

    /// The value that a text from the environment stands for.
    pub(super) fn parse(self, text: &str) -> Option<Value> {
        match self {
            Self::Text => Some(Value::String(text.to_owned())),
            Self::Integer => text.trim().parse().ok().map(Value::Integer),
            Self::Number => text.trim().parse().ok().map(Value::Float),
            Self::Flag => text.trim().parse().ok().map(Value::Boolean),
            Self::TextList => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Some(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
            }
            Self::Free => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "a text",
            Self::Integer => "an integer",
            Self::Number => "a number",
            Self::Flag => "true or false",
            Self::TextList => "a list of texts",
            Self::Free => "a table",
        })
    }
}

/// One key of one section.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub section: &'static str,
    pub name: &'static str,
    pub kind: Kind,
    pub required: bool,
}

impl Key {
    pub const fn required(section: &'static str, name: &'static str, kind: Kind) -> Self {
        Self { section, name, kind, required: true }
    }

    pub const fn optional(section: &'static str, name: &'static str, kind: Kind) -> Self {
        Self { section, name, kind, required: false }
    }

    /// The environment variable over this key.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{}{}", variable_prefix(self.section), self.name.to_uppercase())
    }
}

pub(super) fn variable_prefix(section: &str) -> String {
    format!("CIC_{}_", section.to_uppercase())
}

/// All keys a program knows.
#[derive(Debug, Clone, Copy)]
pub struct Schema {
    pub keys: &'static [Key],
}

impl Schema {
    pub(super) fn sections(self) -> impl Iterator<Item = &'static str> {
        let mut seen = Vec::new();
        self.keys.iter().map(|key| key.section).filter(move |section| {
            let is_new = !seen.contains(section);
            seen.push(*section);
            is_new
        })
    }

    pub(super) fn section(self, section: &str) -> impl Iterator<Item = &'static Key> {
        self.keys.iter().filter(move |key| key.section == section)
    }
}

/// `unknown NOUN`, with the nearest of `known` when one is near enough to be meant.
pub fn unknown<'a>(noun: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let nearest = known.map(|candidate| (distance(name, candidate), candidate)).min();
    match nearest {
        // Up to a third of the letters wrong, and one always: a slip, not another word.
        Some((steps, candidate)) if steps <= 1.max(candidate.len().max(name.len()) / 3) => {
            format!("unknown {noun}; did you mean {candidate}?")
        }
        _ => format!("unknown {noun}"),
    }
}

/// Insertions, deletions, replacements and swaps of neighbours between two words (optimal string alignment).
fn distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=right.len()).collect();
    for i in 1..=left.len() {
        for j in 1..=right.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_guessed_and_another_word_is_not() {
        let known = ["listen", "advertise", "ca"];
        for (name, guess) in [
            ("lisen", Some("listen")),
            ("litsen", Some("listen")),
            ("advertize", Some("advertise")),
            ("cs", Some("ca")),
            ("colour", None),
            ("xy", None),
        ] {
            let said = unknown("key", name, known.into_iter());
            match guess {
                Some(guess) => assert_eq!(said, format!("unknown key; did you mean {guess}?")),
                None => assert_eq!(said, "unknown key"),
            }
        }
    }
}
