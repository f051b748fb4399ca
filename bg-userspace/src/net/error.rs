//! The errors of reading interfaces.

use std::io;

/// The error of reading interfaces.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// There is no interface of this name.
    #[error("no interface \"{name}\" in this network namespace; there are: {}", existing.join(", "))]
    NoSuchInterface {
        /// The name that was asked for.
        name: String,
        /// The names that exist.
        existing: Vec<String>,
    },
    /// The netlink socket failed.
    #[error("cannot ask the kernel by rtnetlink")]
    Socket(#[source] io::Error),
}
