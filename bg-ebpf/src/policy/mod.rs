//! Decisions: which colour and backend a new flow gets, and when a flow is over.

pub mod backend;
pub mod colour;
pub mod connection;
pub mod error_rate;
pub mod freeze;
pub mod lifetime;
pub mod refusals;
pub mod switch;
pub mod timed;
pub mod trips;
