//! What the observer has seen.

use crate::Status;

/// What the observer has seen.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) at: jiff::Timestamp,
    pub(crate) status: Status,
}
