//! The way of a packet, in each direction.

pub mod classify;
pub mod direct;
pub mod error;
pub mod forward;
pub mod mirror;
pub mod relay;
pub mod reply;
pub mod slow;
