//! Comparing counts with their budgets.

use std::{collections::BTreeMap, fmt};

/// The subject of a finding, and a number of instructions.
pub(crate) type Numbers = BTreeMap<String, f64>;

/// How far a count may be from its budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Margin {
    /// The percentage of the budget.
    pub(crate) percent: f64,
}

/// A count and its budget.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Finding {
    name: String,
    budget: Option<f64>,
    counted: Option<f64>,
    margin: Margin,
}

/// Pairs each count with its budget.
pub(crate) fn judge(budgets: &Numbers, counted: &Numbers, margin: Margin) -> Vec<Finding> {
    let names = budgets.keys().chain(counted.keys().filter(|name| !budgets.contains_key(*name)));
    let finding = |name: &String| Finding {
        name: name.clone(),
        budget: budgets.get(name).copied(),
        counted: counted.get(name).copied(),
        margin,
    };
    names.map(finding).collect()
}

impl Finding {
    /// Whether it exceeds its budget by more than the margin.
    pub(crate) fn is_over(&self) -> bool {
        self.change().is_some_and(|percent| percent > self.margin.percent)
    }

    /// Whether it is below its budget by more than the margin, so that losing the improvement would not be noticed.
    pub(crate) fn is_far_under(&self) -> bool {
        self.change().is_some_and(|percent| percent < -self.margin.percent)
    }

    /// Whether it is an error: over its budget, a count without a budget, or a budget without a count.
    pub(crate) fn fails(&self) -> bool {
        self.is_over() || self.change().is_none()
    }

    /// The percentage by which it exceeds the budget.
    fn change(&self) -> Option<f64> {
        let (budget, counted) = self.budget.zip(self.counted)?;
        Some(100.0 * (counted - budget) / budget)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<f64>| number.map_or("–".to_owned(), |number| format!("{number:.1}"));
        let change = self.change().map_or(String::new(), |percent| format!("{percent:+.1} %"));
        let (budget, counted) = (number(self.budget), number(self.counted));
        write!(f, "{:<38} {budget:>9} {counted:>9} {change:>9}", self.name)?;
        match (self.budget, self.counted) {
            (None, _) => write!(f, "  NO BUDGET"),
            (_, None) => write!(f, "  NO LONGER THERE"),
            _ if self.is_over() => write!(f, "  OVER BUDGET (more than {} %)", self.margin.percent),
            _ if self.is_far_under() => write!(f, "  could be lowered"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARGIN: Margin = Margin { percent: 2.0 };

    fn numbers(numbers: &[(&str, f64)]) -> Numbers {
        numbers.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect()
    }

    fn one(budget: f64, counted: f64) -> Finding {
        judge(&numbers(&[("path", budget)]), &numbers(&[("path", counted)]), MARGIN).remove(0)
    }

    #[test]
    fn a_margin_is_kept_and_not_more() {
        assert!(!one(200.0, 204.0).fails() && one(200.0, 204.1).fails());
        assert!(one(200.0, 260.0).to_string().contains("OVER BUDGET"));
    }

    #[test]
    fn a_budget_that_is_far_too_large_is_told_and_does_not_fail() {
        assert!(one(200.0, 195.0).is_far_under() && !one(200.0, 195.0).fails());
        assert!(!one(200.0, 197.0).is_far_under());
    }

    #[test]
    fn a_path_without_a_budget_and_a_budget_without_a_path_fail() {
        let findings = judge(&numbers(&[("old", 1.0)]), &numbers(&[("new", 1.0)]), MARGIN);
        assert_eq!(findings.iter().filter(|finding| finding.fails()).count(), 2);
    }
}
