//! Why the controller ends.

use std::io;

use crate::{Error, config::ConfigError};

/// Why the controller ends.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its configuration is invalid or cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The instance refuses it.
    #[error(transparent)]
    Instance(#[from] Error),
    /// The system refuses something.
    #[error("cannot {doing}")]
    Io {
        /// What was tried, with its object.
        doing: String,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// A part of the controller has panicked.
    #[error("a part of the controller has failed: {why}")]
    Part {
        /// What is known of it.
        why: String,
    },
}

impl ServeError {
    /// Makes an error of the system into one that says what was tried.
    pub(super) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Io { doing: doing.into(), source }
    }
}
