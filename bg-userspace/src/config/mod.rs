//! The configuration file: what it may say, and what is wrong with one that says something else.
//!
//! [`load`] is the only way from a file to a [`Config`]; nothing behind it checks again.

mod address;
mod deployment;
mod error;
pub mod model;
mod parse;
mod service;
#[cfg(test)]
mod tests;
mod value;

use std::path::Path;

pub use error::{ConfigError, Expected, Position, Problem};
pub use model::{BackendSpec, Config, Deployment, OnSwitch, Prefix, Service, mode_name, protocol_name};

/// Reads and checks a file.
///
/// # Errors
/// [`ConfigError::Invalid`] has every problem of the file, by position.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let bytes = std::fs::read(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(path, text),
        Err(error) => {
            let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            Err(ConfigError::NotUtf8 { path: path.to_owned(), position: Position::of(&valid, valid.len()) })
        }
    }
}

/// Checks a configuration's text; `path` is what errors call it.
pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    parse::parse(text).map_err(|problems| ConfigError::Invalid { path: path.to_owned(), problems })
}
