//! Tables for people, with aligned columns, and the styles of the colours.

use anstyle::{AnsiColor, Style};
use bg_common::Colour;
use unicode_width::UnicodeWidthStr as _;

/// The style of the live colour.
pub(crate) const LIVE: Style = Style::new().bold();
/// The style of problems.
pub(crate) const ALARM: Style = AnsiColor::Red.on_default().bold();
/// The style of the head of a table.
const HEAD: Style = Style::new().underline();

/// The style of a colour.
pub(crate) const fn style_of(colour: Colour) -> Style {
    match colour {
        Colour::Blue => AnsiColor::Blue.on_default(),
        Colour::Green => AnsiColor::Green.on_default(),
    }
}

/// Text in a style.
pub(crate) fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// How a column is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A text and its style.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(crate) fn new(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(text, Style::new())
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::new(text, Style::new())
    }
}

/// A table. Columns are as wide as their widest cell, with two spaces between them and none after the last.
pub(crate) struct Table<const N: usize> {
    align: [Align; N],
    rows: Vec<[Cell; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(head: [(&str, Align); N]) -> Self {
        Self { align: head.map(|(_, align)| align), rows: vec![head.map(|(text, _)| Cell::new(text, HEAD))] }
    }

    pub(crate) fn row(&mut self, cells: [Cell; N]) {
        self.rows.push(cells);
    }

    /// Whether it has only the head.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// The lines, the head first. Each begins with `indent` and ends without a line feed.
    pub(crate) fn lines(&self, indent: &str) -> Vec<String> {
        self.render(indent).lines().map(str::to_owned).collect()
    }

    /// The lines as one text.
    pub(crate) fn render(&self, indent: &str) -> String {
        let mut widths = [0; N];
        for row in &self.rows {
            for (widest, cell) in widths.iter_mut().zip(row) {
                *widest = width(&cell.text).max(*widest);
            }
        }
        let mut text = String::new();
        for row in &self.rows {
            text += indent;
            self.add_cells(&mut text, row, &widths);
            text.push('\n');
        }
        text
    }

    fn add_cells(&self, line: &mut String, row: &[Cell; N], widths: &[usize; N]) {
        // The gap before the next cell, which is dropped at the end of the line.
        let mut gap = 0;
        for ((Cell { text, style }, widest), align) in row.iter().zip(widths).zip(self.align) {
            let padding = widest - width(text);
            let (before, after) = match align {
                Align::Left => (0, padding),
                Align::Right => (padding, 0),
            };
            gap += before;
            if !text.is_empty() {
                line.extend(std::iter::repeat_n(' ', gap));
                if style.is_plain() {
                    *line += text;
                } else {
                    *line += &styled(*style, text);
                }
                gap = 0;
            }
            gap += after + 2;
        }
    }
}

/// The number of columns that a text takes. There may be millions of texts, nearly all of them in ASCII.
fn width(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.width() }
}

#[cfg(test)]
mod tests {
    use anstream::adapter::strip_str;

    use super::*;

    fn plain(table: &Table<3>) -> String {
        strip_str(&table.render("  ")).to_string()
    }

    #[test]
    fn text_begins_and_numbers_end_in_line() {
        let mut table = Table::new([("NAME", Align::Left), ("N", Align::Right), ("WHY", Align::Left)]);
        assert!(table.is_empty());
        table.row(["é".into(), "1".into(), "".into()]);
        table.row(["longer".into(), Cell::new("1000", LIVE), "because".into()]);
        assert_eq!(plain(&table), "  NAME       N  WHY\n  é          1\n  longer  1000  because\n");
    }

    #[test]
    fn wide_and_combining_characters_are_counted_as_the_terminal_does() {
        let mut table = Table::new([("NAME", Align::Left), ("N", Align::Right), ("", Align::Left)]);
        table.row(["店".into(), "1".into(), "".into()]);
        table.row(["e\u{301}".into(), "1".into(), "".into()]);
        assert_eq!(plain(&table), "  NAME  N\n  店    1\n  e\u{301}     1\n");
    }

    #[test]
    fn a_style_takes_no_room() {
        let mut table = Table::new([("A", Align::Left), ("B", Align::Left), ("C", Align::Right)]);
        table.row([Cell::new("x", ALARM), "y".into(), "z".into()]);
        assert_eq!(plain(&table), "  A  B  C\n  x  y  z\n");
        assert!(table.render("").contains(&styled(ALARM, "x")));
    }
}
