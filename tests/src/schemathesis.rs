//! Schemathesis, as `cargo xtask setup` installs it.

use anyhow::{Context, Result};
use std::path::PathBuf;

/// Its environment in the target directory, by its version.
pub const SCHEMATHESIS: &str = "schemathesis-4.32.5";

/// The program.
pub fn schemathesis() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let mut places = test.ancestors().map(|dir| dir.join(SCHEMATHESIS).join("bin/schemathesis"));
    places
        .find(|path| path.is_file())
        .context("no schemathesis in the target directory: `cargo xtask setup` installs it")
}
