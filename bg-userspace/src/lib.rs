//! Library of the blue-green traffic switcher: open a pinned instance, plan, apply, switch, read.

pub mod config;
pub mod doctor;
pub mod history;
pub mod maglev;
pub mod net;
