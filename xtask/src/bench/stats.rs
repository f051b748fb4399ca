//! Median and spread, and the form of figures.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The median of a sample, and its quartiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    /// Lower quartile.
    pub(crate) low: f64,
    /// Upper quartile.
    pub(crate) high: f64,
}

impl Summary {
    /// Computes them for a sample, which must not be empty.
    pub(crate) fn of(mut sample: Vec<f64>) -> Self {
        sample.sort_by(f64::total_cmp);
        let last = (sample.len() - 1) as f64;
        // Of small samples the outer of two neighbours: the spread is rather told too large than too small.
        let (low, high) = ((last * 0.25).floor() as usize, (last * 0.75).ceil() as usize);
        let median = (sample[(last / 2.0).floor() as usize] + sample[(last / 2.0).ceil() as usize]) / 2.0;
        Self { median, low: sample[low], high: sample[high] }
    }
}

/// `86.1 [85.9..86.4]`: the quartiles with as many decimals as the median.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = [self.median, self.low, self.high];
        let whole = values.iter().all(|value| value.fract() == 0.0);
        let decimals = if whole { 0 } else { decimals(self.median) };
        let [median, low, high] = values.map(|value| fixed(value, decimals));
        f.pad(&format!("{median} [{low}..{high}]"))
    }
}

/// A figure in readable form: whole if it is a count, else with three significant digits.
pub(crate) fn number(value: f64) -> String {
    let whole = value.fract() == 0.0;
    fixed(value, if whole { 0 } else { decimals(value) })
}

/// The number of decimals that gives a figure three significant digits, and none to a large figure.
fn decimals(value: f64) -> usize {
    match value.abs() {
        0.0 => 0,
        100.0.. => 0,
        small => (2 - small.log10().floor() as i32).clamp(0, 9) as usize,
    }
}

/// A number with separators for thousands.
fn fixed(value: f64, decimals: usize) -> String {
    let plain = format!("{value:.decimals$}");
    let digits = plain.find(|c: char| c.is_ascii_digit());
    let Some(start) = digits.filter(|_| value.abs() >= 10_000.0) else { return plain };
    let end = plain.find('.').unwrap_or(plain.len());
    let mut out = plain[..start].to_owned();
    for (index, digit) in plain[start..end].chars().enumerate() {
        if index > 0 && (end - start - index) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out + &plain[end..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_not_moved_by_one_bad_run() {
        let summary = Summary::of(vec![1.0, 900.0, 3.0, 2.0, 4.0]);
        assert_eq!((summary.median, summary.low, summary.high), (3.0, 2.0, 4.0));
        let of_few = Summary::of(vec![5.0, 2.0]);
        assert_eq!((of_few.median, of_few.low, of_few.high), (3.5, 2.0, 5.0));
    }

    #[test]
    fn figures_are_as_exact_as_they_are_worth() {
        let shown = [0.0, 1.0, 0.9312, 86.12, 340.6, 4_194_304.0, 3_730_112.25, -12_345.6, 0.000_042_1].map(number);
        assert_eq!(shown, ["0", "1", "0.931", "86.1", "341", "4,194,304", "3,730,112", "-12,346", "0.0000421"]);
    }

    #[test]
    fn quartiles_have_the_decimals_of_the_median() {
        let summary = Summary { median: 86.12, low: 85.0, high: 101.26 };
        assert_eq!(format!("{summary:>20}"), "  86.1 [85.0..101.3]");
    }
}
