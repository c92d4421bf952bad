//! Lines redrawn in place.

use std::io::{self, Write as _};

use super::style::Style;

/// What is drawn at the bottom of a terminal; lines said stay above it.
#[derive(Debug)]
pub(super) struct Screen {
    pub(super) style: Style,
    drawn_count: usize,
}

impl Screen {
    pub(super) fn new(style: Style) -> Self {
        Self { style, drawn_count: 0 }
    }

    /// Puts `lines` in place of those drawn before. Each must fit the width: a wrapped line would not be cleared.
    pub(super) fn draw(&mut self, lines: &[String]) {
        let text = format!(
            "{}{}",
            self.clearing(),
            lines.iter().map(|line| format!("{line}\n")).collect::<String>()
        );
        self.drawn_count = lines.len();
        put(&text);
    }

    /// Prints a line that stays, above what is drawn. The next [`Screen::draw`] puts that back.
    pub(super) fn say(&mut self, line: &str) {
        let text = format!("{}{line}\n", self.clearing());
        self.drawn_count = 0;
        put(&text);
    }

    pub(super) fn clear(&mut self) {
        let text = self.clearing();
        self.drawn_count = 0;
        put(&text);
    }

    fn clearing(&self) -> String {
        match (self.style.is_terminal, self.drawn_count) {
            (false, _) | (true, 0) => String::new(),
            (true, count) => format!("\x1b[{count}A\r\x1b[J"),
        }
    }
}

/// A terminal that is gone is no reason to leave a fleet behind.
fn put(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
