//! Backends that reply to clients directly, by modes `l2dsr`, `ipip` and `gue`: real servers and clients under load and switches, over
//! all families, protocols and hooks.
//!
//! - `stage`: the network, in which replies do not pass the edge.
//! - `loads`: nobody notices switches, and each service has its own mode.
//! - `links`: a megabyte over links that are narrower than their ends know.
//! - `captures`: what leaves the edge, as tshark sees it.
//! - `commands`: what commands say of such services.
//! - `checks`: health checks take the way of clients' packets.

mod captures;
mod checks;
mod commands;
mod links;
mod loads;
mod stage;
