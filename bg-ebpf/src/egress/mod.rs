//! The way out: the next hop, and the rewritten bytes.

pub mod next_hop;
pub mod outer;
pub mod reset;
pub mod rewrite;
pub mod translate;
pub mod unreachable;
