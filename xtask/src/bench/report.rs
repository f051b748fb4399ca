//! The results of a part of the benchmarks: tables and plots. `text` prints them, `record` keeps them, and `plot` draws them.

use super::stats::{Summary, number};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The results of one part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Name of the part, as in `cargo xtask bench <part>`.
    pub(crate) part: String,
    /// What was measured and how, in a few sentences.
    pub(crate) about: String,
    /// Tables, in the order in which they are shown.
    pub(crate) tables: Vec<Table>,
    /// Plots, in the order in which they are shown.
    pub(crate) plots: Vec<Plot>,
}

/// A table: each row has a cell for each column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Table {
    /// Title, one line.
    pub(crate) title: String,
    /// A note for the reader.
    pub(crate) about: String,
    /// Heads of the columns, with their units.
    pub(crate) columns: Vec<String>,
    /// Rows.
    pub(crate) rows: Vec<Vec<Cell>>,
}

/// A cell of a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Cell {
    /// Words.
    Text(String),
    /// A count, or a figure that was measured once.
    Number(f64),
    /// A figure with its spread.
    Figure(Summary),
    /// Empty, because it was not measured or is not possible.
    Empty,
}

/// Lines over a common axis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plot {
    /// Name of the file, without extension.
    pub(crate) name: String,
    /// Title, one line.
    pub(crate) title: String,
    /// The horizontal axis, with its unit.
    pub(crate) x: Axis,
    /// The vertical axis, with its unit.
    pub(crate) y: Axis,
    /// The lines.
    pub(crate) series: Vec<Series>,
}

/// An axis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Axis {
    /// Its label, with the unit.
    pub(crate) label: String,
    /// Whether it is logarithmic.
    pub(crate) logarithmic: bool,
}

/// One line of a plot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Series {
    /// Its name in the legend.
    pub(crate) name: String,
    /// Its points: x, and y with its spread.
    pub(crate) points: Vec<(f64, Summary)>,
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<f64> for Cell {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<Summary> for Cell {
    fn from(figure: Summary) -> Self {
        Self::Figure(figure)
    }
}

/// The text of a cell, which is the same on the terminal and on the page.
impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.pad(text),
            Self::Number(value) => f.pad(&number(*value)),
            Self::Figure(summary) => summary.fmt(f),
            Self::Empty => f.pad("–"),
        }
    }
}

impl Table {
    /// Whether a column contains words rather than figures.
    pub(crate) fn is_words(&self, column: usize) -> bool {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        let mut said = cells.filter(|cell| **cell != Cell::Empty).peekable();
        said.peek().is_none() || said.all(|cell| matches!(cell, Cell::Text(_)))
    }
}
