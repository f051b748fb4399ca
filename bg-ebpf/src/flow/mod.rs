//! The flow table: rows of words, found by the client's end of a flow. It knows nothing of services.

pub mod bucket;
pub mod key;
pub mod memory;
pub mod row;
pub mod table;
mod victim;
