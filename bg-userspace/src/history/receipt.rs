//! What a switch has done.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What the data path saw of a switch, from the store of the live word until the command returned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Microseconds from the store to the first new flow on the new colour. `None` if there was none yet.
    pub first_new_us: Option<u64>,
    /// Microseconds from the store to the last new flow that was decided by the old word. `None` if there was none after the store.
    pub last_old_us: Option<u64>,
    /// Open flows that stay on their backends.
    pub kept: u64,
    /// Open flows that go on at a backend of the new colour.
    pub moved: u64,
    /// Open TCP connections that end.
    pub reset: u64,
    /// Packets that were dropped meanwhile, of all deployments, by reason.
    pub dropped: BTreeMap<String, u64>,
}

impl std::fmt::Display for Receipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.first_new_us {
            Some(after) => write!(f, "first new flow after {after} µs")?,
            None => f.write_str("no new flow yet")?,
        }
        if let Some(after) = self.last_old_us {
            write!(f, ", last one on the old colour after {after} µs")?;
        }
        write!(f, "; open flows: {} kept, {} moved, {} reset; ", self.kept, self.moved, self.reset)?;
        let dropped: Vec<_> = self.dropped.iter().map(|(reason, packets)| format!("{packets} {reason}")).collect();
        if dropped.is_empty() { f.write_str("nothing dropped") } else { write!(f, "dropped: {}", dropped.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_is_told_in_one_line() {
        let mut receipt = Receipt { kept: 120, moved: 2, reset: 1, ..Receipt::default() };
        assert_eq!(receipt.to_string(), "no new flow yet; open flows: 120 kept, 2 moved, 1 reset; nothing dropped");
        (receipt.first_new_us, receipt.last_old_us) = (Some(84), Some(12));
        receipt.dropped =
            [("ended_flow", 7), ("malformed", 1)].map(|(reason, count)| (reason.to_owned(), count)).into();
        assert_eq!(
            receipt.to_string(),
            "first new flow after 84 µs, last one on the old colour after 12 µs; open flows: 120 kept, 2 moved, 1 reset; \
             dropped: 7 ended_flow, 1 malformed"
        );
    }
}
