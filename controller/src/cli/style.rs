//! Colour and width of what is printed.

use std::io::IsTerminal as _;
use std::process::{Command, Stdio};

/// Columns when the terminal does not say.
const WIDTH_DEFAULT: usize = 100;

/// What a text means to whoever reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    Odd,
    Bad,
    Faint,
}

/// How standard output takes what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    pub(super) is_terminal: bool,
    pub(super) is_coloured: bool,
    /// Columns of the terminal; None where lines may have any length.
    pub(super) width: Option<usize>,
}

impl Style {
    /// For a file or a pipe.
    pub(super) const PLAIN: Self = Self { is_terminal: false, is_coloured: false, width: None };

    /// Of standard output. Colour only on a terminal, and not where `NO_COLOR` is set (<https://no-color.org>).
    pub(super) fn of_stdout() -> Self {
        if !std::io::stdout().is_terminal() {
            return Self::PLAIN;
        }
        let wants_colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let is_dumb = std::env::var("TERM").is_ok_and(|term| term == "dumb");
        Self { is_terminal: !is_dumb, is_coloured: wants_colour && !is_dumb, width: Some(terminal_width()) }
    }

    pub(super) fn paint(&self, text: &str, tone: Tone) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Good => "32",
            Tone::Odd => "33",
            Tone::Bad => "31",
            Tone::Faint => "2",
        };
        if self.is_coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// `text` cut to the width, with `…` where it was cut.
    pub(super) fn fit(&self, text: &str) -> String {
        self.width.map_or_else(|| text.to_owned(), |width| cut(text, width))
    }
}

/// `text`, or its first `width` characters with the last one replaced by `…`.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// `stty` asks the terminal, so that no unsafe call is needed here.
fn terminal_width() -> usize {
    let asked = Command::new("stty").arg("size").stdin(Stdio::inherit()).stderr(Stdio::null()).output();
    let answer = asked.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let width = answer.split_whitespace().nth(1).and_then(|columns| columns.parse().ok());
    width.filter(|width| *width > 0).unwrap_or(WIDTH_DEFAULT)
}
