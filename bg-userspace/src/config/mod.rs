//! The configuration file: its parser, and the errors of an invalid file.
//!
//! [`load`] is the only way from a file to a [`Config`], so later code need not check it again.

mod address;
mod deployment;
mod error;
mod gate;
mod health;
pub mod model;
mod name;
mod notes;
mod parse;
mod serve;
mod service;
mod taken;
#[cfg(test)]
mod tests;
mod value;
mod write;

use std::{
    io::{self, Read},
    path::Path,
};

pub(crate) use address::{endpoint_problem, prefix_problem, source_problem};
pub use error::{ConfigError, Expected, Position, Problem};
#[cfg(test)]
pub(crate) use health::is_path;
pub use model::{
    BackendSpec, Bound, Config, Deployment, DivideBy, Encap, Failover, Gate, GateKind, OnSwitch, Prefix, Service,
    StatusRanges, StickyPrefix, Tee, When, mode_name, protocol_name,
};
pub use notes::{SharedBackend, shared_backends};

/// Reads and checks a file. Relative paths of `[serve]` become relative to the file's directory.
///
/// # Errors
/// [`ConfigError::Invalid`] has every problem of the file, by position.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let mut config = read(path, std::fs::read(path))?;
    if let (Some(serve), Some(directory)) = (&mut config.serve, path.parent()) {
        serve.below(directory);
    }
    Ok(config)
}

/// Reads and checks a configuration from an open file or a pipe; `path` is what errors call it. Relative paths of `[serve]`
/// stay as they are, relative to the working directory.
pub fn load_from(path: &Path, mut input: impl Read) -> Result<Config, ConfigError> {
    let mut bytes = Vec::new();
    let read_all = input.read_to_end(&mut bytes);
    read(path, read_all.map(|_| bytes))
}

fn read(path: &Path, bytes: io::Result<Vec<u8>>) -> Result<Config, ConfigError> {
    let bytes = bytes.map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(path, text),
        Err(error) => {
            let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            Err(ConfigError::NotUtf8 {
                path: path.to_owned(),
                position: error::Places::new(&valid).position(valid.len()),
            })
        }
    }
}

/// The gates of each deployment in a text of [`Config::gates_to_toml`].
pub(crate) fn kept_gates(path: &Path, text: &str) -> Result<Vec<(String, Vec<Gate>)>, ConfigError> {
    parse::kept_gates(text).map_err(|problems| ConfigError::Invalid { path: path.to_owned(), problems })
}

/// Checks a configuration's text; `path` is what errors call it. Relative paths of `[serve]` stay as they are.
pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    parse::parse(text).map_err(|problems| ConfigError::Invalid { path: path.to_owned(), problems })
}
