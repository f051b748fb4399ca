//! The files in the state directory: the journal of who changed what and why, and the last
//! live colours.

mod ask;
mod directory;
mod error;
mod journal;
mod last_live;
mod moment;
mod private;
mod who;

pub use ask::PATIENCE;
pub(crate) use ask::ask;
pub(crate) use directory::prepare_state_dir;
pub use error::HistoryError;
pub use journal::{Action, History, Journal, Record};
pub use last_live::{Entry, LastLive, Writer};
pub use moment::Moment;
pub(crate) use private::{is_private, make_private, open_lock};
pub use who::Who;
