//! Why a check has failed.

use std::fmt;

/// Why a check has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Why(String);

impl Why {
    pub(super) fn new(why: impl fmt::Display) -> Self {
        /// Longer texts come from the backend, and would only fill the log.
        const MOST: usize = 200;
        let text = why.to_string();
        Self(text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST).collect())
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
