//! The directories of this repository.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// What the checks and tests write into an empty target directory, and room for the labs' files.
const FIRST_RUN: u64 = 5 << 30;
/// What a later run may need.
const LATER_RUN: u64 = 2 << 30;

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask stands in the root of the repository")
}

/// Cargo's target directory, which the caller may have set.
pub(crate) fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => std::path::absolute(&dir).unwrap_or_else(|_| dir.into()),
        None => root().join("target"),
    }
}

/// Fails if there is too little room on the disk for the checks and tests: a build that stops halfway says so less clearly.
pub(crate) fn require_space() -> Result<()> {
    let dir = target_dir();
    let needed = if dir.join("debug").exists() { LATER_RUN } else { FIRST_RUN };
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let disk =
        rustix::fs::statvfs(&dir).with_context(|| format!("cannot ask for the free space of {}", dir.display()))?;
    let free = disk.f_bavail * disk.f_frsize;
    if free < needed {
        let gib = |bytes: u64| bytes as f64 / (1_u64 << 30) as f64;
        let (dir, needed, free) = (dir.display(), gib(needed), gib(free));
        bail!(
            "{dir} needs {needed:.0} GiB of free space, but has {free:.1}; free some, or set CARGO_TARGET_DIR to another disk"
        );
    }
    Ok(())
}
