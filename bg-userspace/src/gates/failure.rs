//! Why an attempt of a gate has failed.

/// The reason; `None` is that it has not ended in time.
pub(super) type Failure = Option<String>;
