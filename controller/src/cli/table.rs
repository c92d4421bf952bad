//! Aligned columns.

use super::style::{Style, Tone, cut};

/// Between two columns.
const GAP: &str = "  ";

/// The last column keeps at least this much, even where the terminal is too narrow for all.
const LAST_WIDTH_MIN: usize = 12;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(super) fn new(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: printable(&text.into()), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    header: [&'static str; N],
    rows: Vec<[Cell; N]>,
    /// A column that is not shown.
    hidden: Option<usize>,
}

impl<const N: usize> Table<N> {
    pub(super) fn new(header: [&'static str; N]) -> Self {
        Self { header, rows: Vec::new(), hidden: None }
    }

    /// Leaves the column with this header out; not the last one.
    pub(super) fn hide(&mut self, header: &str) {
        self.hidden = self.header.iter().position(|text| *text == header);
    }

    pub(super) fn row(&mut self, cells: [Cell; N]) {
        self.rows.push(cells);
    }

    /// One line a row, header first, each without its line break.
    pub(super) fn lines(&self, style: &Style) -> Vec<String> {
        let widths: [usize; N] = std::array::from_fn(|column| {
            let cells = self.rows.iter().map(|row| row[column].text.chars().count());
            cells.chain([self.header[column].chars().count()]).max().unwrap_or(0)
        });
        let before_last = widths.iter().enumerate().rev().skip(1).filter(|(column, _)| self.shows(*column));
        let before_last: usize = before_last.map(|(_, width)| width + GAP.len()).sum();
        let last_width = style.width.map(|width| width.saturating_sub(before_last).max(LAST_WIDTH_MIN));
        let header = self.header.map(|text| Cell::new(text, Tone::Faint));
        let rows = std::iter::once(&header).chain(&self.rows);
        rows.map(|row| self.line(row, &widths, last_width, style)).collect()
    }

    /// Prints it, or `nothing` where there are no rows.
    pub(super) fn print(&self, style: &Style, nothing: &str) {
        if self.rows.is_empty() {
            println!("{nothing}");
            return;
        }
        for line in self.lines(style) {
            println!("{line}");
        }
    }

    fn line(&self, row: &[Cell; N], widths: &[usize; N], last_width: Option<usize>, style: &Style) -> String {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate().filter(|(column, _)| self.shows(*column)) {
            if column + 1 == N {
                let text = last_width.map_or_else(|| cell.text.clone(), |width| cut(&cell.text, width));
                line.push_str(&style.paint(&text, cell.tone));
            } else {
                let padding = widths[column] - cell.text.chars().count();
                line.push_str(&style.paint(&cell.text, cell.tone));
                line.push_str(&" ".repeat(padding));
                line.push_str(GAP);
            }
        }
        line.trim_end().to_owned()
    }

    fn shows(&self, column: usize) -> bool {
        self.hidden != Some(column)
    }
}

/// `text` without what would break a table or the terminal: line breaks and escapes from outside become blanks.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table<3> {
        let mut table = Table::new(["NODE", "PHASE", "WHY"]);
        table.row(["node001".into(), Cell::new("serving", Tone::Good), "both paths answer".into()]);
        table.row(["n2".into(), "loading".into(), "größer\nthan".into()]);
        table
    }

    #[test]
    fn columns_line_up_and_control_characters_are_blanks() {
        assert_eq!(
            table().lines(&Style::PLAIN),
            ["NODE     PHASE    WHY", "node001  serving  both paths answer", "n2       loading  größer than"]
        );
    }

    #[test]
    fn a_narrow_terminal_cuts_the_last_column() {
        let style = Style { width: Some(30), ..Style::PLAIN };
        assert_eq!(table().lines(&style)[1], "node001  serving  both paths …");
    }

    #[test]
    fn a_hidden_column_takes_no_room() {
        let mut table = table();
        table.hide("PHASE");
        let style = Style { width: Some(21), ..Style::PLAIN };
        assert_eq!(table.lines(&style)[..2], ["NODE     WHY", "node001  both paths …"]);
    }

    #[test]
    fn colour_does_not_change_the_columns() {
        let style = Style { is_coloured: true, ..Style::PLAIN };
        let lines = table().lines(&style);
        assert_eq!(lines[1], "node001  \x1b[32mserving\x1b[0m  both paths answer");
    }
}
