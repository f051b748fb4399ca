//! The health of backends, as far as the data path has to know it.
//!
//! Somebody checks the backends, such as `bgctl serve`, and tells the instance what came of it. A backend that is down gets no new
//! flows: its entries of the Maglev table go to the others, in place, and come back with its health. No other entry changes.
//! Its open flows stay, and its configured weight too. The health is kept beside the weight in the pinned maps, so every
//! command sees it and an apply respects it, whether or not a process is checking.

mod set;
mod word;

pub(crate) use self::set::is_refused;
pub(crate) use self::word::HealthWord;
pub use self::{
    set::{BackendHealth, HealthSet},
    word::Health,
};
