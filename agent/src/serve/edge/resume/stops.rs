//! Stop strings across a cut: one may begin before it and end after it, where no engine sees it whole.
//!
//! As vLLM does (`v1/engine/detokenizer.py`, 0.32): as many characters are held back as the longest stop string has,
//! less one; of several that are found the one that is complete first counts, and of two alike the first in the list.

/// Looks for stop strings in what an engine writes from a cut on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stops {
    stop: Vec<String>,
    /// The answer goes up to the end of the stop string, not to its beginning, and nothing is held back.
    keeps_stop: bool,
    /// The last characters of what was looked at. The client has them if `keeps_stop`.
    tail: String,
}

/// What of a text may go to the client.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) text: String,
    /// The stop string that ends the answer here.
    pub(super) found: Option<String>,
}

impl Stops {
    /// `tail` is what was generated last before the cut, [`Stops::tail_chars`] characters where there are so many.
    pub(super) fn new(stop: Vec<String>, keeps_stop: bool, tail: String) -> Self {
        Self { stop, keeps_stop, tail }
    }

    /// Characters that must be known to find a stop string that is not complete yet.
    pub(super) fn tail_chars(stop: &[String]) -> usize {
        stop.iter().map(|stop| stop.chars().count()).max().unwrap_or(0).saturating_sub(1)
    }

    pub(super) fn pass(&mut self, text: &str) -> Passed {
        let old_len = self.tail.len();
        let mut seen = std::mem::take(&mut self.tail);
        seen.push_str(text);
        let found =
            self.stop.iter().filter_map(|stop| seen.find(stop.as_str()).map(|at| (at + stop.len(), stop)));
        // Of two alike, `min_by_key` keeps the first.
        if let Some((end, stop)) = found.min_by_key(|(end, _)| *end) {
            let stop = stop.clone();
            let text = if self.keeps_stop { &seen[old_len.min(end)..end] } else { &seen[..end - stop.len()] };
            return Passed { text: text.to_owned(), found: Some(stop) };
        }
        let kept = last_chars(&seen, Self::tail_chars(&self.stop));
        self.tail = kept.to_owned();
        let passed = if self.keeps_stop { &seen[old_len..] } else { &seen[..seen.len() - kept.len()] };
        Passed { text: passed.to_owned(), found: None }
    }

    /// What was held back, when the answer ends for another reason.
    pub(super) fn rest(&mut self) -> String {
        if self.keeps_stop { String::new() } else { std::mem::take(&mut self.tail) }
    }
}

/// The last `count` characters of `text`, or all.
pub(super) fn last_chars(text: &str, count: usize) -> &str {
    match count.checked_sub(1) {
        None => "",
        Some(before) => text.char_indices().rev().nth(before).map_or(text, |(at, _)| &text[at..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stop: &[&str], keeps_stop: bool, tail: &str, texts: &[&str]) -> (String, Option<String>) {
        let stop = stop.iter().map(|&stop| stop.to_owned()).collect();
        let mut stops = Stops::new(stop, keeps_stop, tail.to_owned());
        let mut all = String::new();
        for text in texts {
            let passed = stops.pass(text);
            all.push_str(&passed.text);
            if passed.found.is_some() {
                return (all, passed.found);
            }
        }
        all.push_str(&stops.rest());
        (all, None)
    }

    #[test]
    fn a_stop_string_that_began_before_the_cut_is_found() {
        for (stop, keeps_stop, tail, texts, text, found) in [
            (&["END"][..], false, "xE", &["N", "D", "y"][..], "x", Some("END")),
            (&["END"], false, "xE", &["N", "O"], "xENO", None),
            (&["END"], true, "xE", &["N", "D", "y"], "ND", Some("END")),
            (&["END"], true, "xE", &["NO"], "NO", None),
            (&["END"], false, "ab", &["cENDd"], "abc", Some("END")),
            // The one that is complete first counts.
            (&["bcd", "c"], false, "ab", &["cd"], "ab", Some("c")),
            (&["abc", "bc"], false, "ab", &["c"], "", Some("abc")),
            (&["é!"], false, "é", &["!"], "", Some("é!")),
            (&["x"], false, "", &["ab"], "ab", None),
        ] {
            let (all, stopped) = run(stop, keeps_stop, tail, texts);
            assert_eq!((all.as_str(), stopped.as_deref()), (text, found), "{stop:?} {tail:?} {texts:?}");
        }
    }

    #[test]
    fn the_last_characters_are_counted_as_characters() {
        for (text, count, last) in [("aéb", 2, "éb"), ("aéb", 9, "aéb"), ("aéb", 0, ""), ("", 3, "")] {
            assert_eq!(last_chars(text, count), last);
        }
    }
}
