//! The files in the state directory: the journal of who changed what and why, and the last
//! live colours.

mod ask;
mod caller;
mod chain;
mod directory;
mod error;
mod head;
mod journal;
mod last_live;
mod moment;
mod private;
mod receipt;
mod record;
mod verify;
mod who;

pub use ask::PATIENCE;
pub(crate) use ask::ask;
pub use caller::Caller;
pub use chain::{Hash, Head, Link};
pub(crate) use directory::{GATES, LISTENERS, LOCK, is_same, prepare_state_dir};
pub use error::HistoryError;
pub use journal::{History, Journal};
pub use last_live::{Entry, Found, LastLive, Scheduled, Unrecorded, Writer};
pub use moment::Moment;
pub(crate) use private::{is_private, make_private, open_lock};
pub use receipt::Receipt;
pub(crate) use record::OTHER_LIFE;
pub use record::{Action, Record};
pub use verify::{Fault, Verified};
pub use who::Who;

#[cfg(test)]
mod tests;
