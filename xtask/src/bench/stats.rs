//! Median and spread.

use serde::Serialize;
use std::fmt;

/// A sample's median and the quartiles around it.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    /// Lower quartile.
    pub(crate) low: f64,
    /// Upper quartile.
    pub(crate) high: f64,
}

impl Summary {
    /// Of a sample that is not empty.
    pub(crate) fn of(mut sample: Vec<f64>) -> Self {
        sample.sort_by(f64::total_cmp);
        let at = |share: f64| sample[((sample.len() - 1) as f64 * share).round() as usize];
        Self { median: at(0.5), low: at(0.25), high: at(0.75) }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:6.1} [{:.0}..{:.0}]", self.median, self.low, self.high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_not_moved_by_one_bad_run() {
        let summary = Summary::of(vec![1.0, 900.0, 3.0, 2.0, 4.0]);
        assert_eq!((summary.median, summary.low, summary.high), (3.0, 2.0, 4.0));
    }
}
