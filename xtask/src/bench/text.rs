//! Printing a report on the terminal.

use super::report::{Cell, Report, Table};
use std::fmt;

/// The width at which a paragraph is wrapped.
const WIDTH: usize = 110;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.part)?;
        paragraph(f, &self.about)?;
        self.tables.iter().try_for_each(|table| write!(f, "\n{table}"))
    }
}

/// Aligns columns: words to the left, figures to the right.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        paragraph(f, &self.about)?;
        let head = self.columns.clone();
        let rows: Vec<Vec<_>> = self.rows.iter().map(|row| row.iter().map(Cell::to_string).collect()).collect();
        let width_of = |column: usize| {
            let cells = rows.iter().chain([&head]).filter_map(|row| row.get(column));
            cells.map(|cell: &String| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..head.len()).map(width_of).collect();
        for row in [&head].into_iter().chain(&rows) {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                line += &match self.is_words(column) {
                    true => format!("{cell:<width$}  "),
                    false => format!("{cell:>width$}  "),
                };
            }
            writeln!(f, "  {}", line.trim_end())?;
        }
        Ok(())
    }
}

fn paragraph(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    let mut column = 0;
    for word in text.split_whitespace() {
        let len = word.chars().count();
        if column > 0 && column + 1 + len > WIDTH {
            writeln!(f)?;
            column = 0;
        }
        if column > 0 {
            write!(f, " ")?;
            column += 1;
        }
        write!(f, "{word}")?;
        column += len;
    }
    if column > 0 { writeln!(f) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::stats::Summary;

    #[test]
    fn words_stand_to_the_left_and_figures_to_the_right() {
        let table = Table {
            title: "Title".into(),
            about: String::new(),
            columns: vec!["what".into(), "ns".into()],
            rows: vec![
                vec!["a".into(), Summary { median: 86.1, low: 85.0, high: 87.5 }.into()],
                vec!["longer".into(), Cell::Empty],
            ],
        };
        assert_eq!(
            table.to_string(),
            "Title\n  what                   ns\n  a       86.1 [85.0..87.5]\n  longer                  –\n"
        );
    }
}
