//! Packets of frozen deployments: queues, the log, and playing back. See [`bg_common::Hold`].

mod checksum;
mod log;
mod play_back;

pub(crate) use log::HeldLog;
pub(crate) use play_back::{Played, Player};
