//! The root directory of a new machine: a Debian of this host's release, made by debootstrap.

use crate::command::output;
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The code name of this host's release, for example `bookworm`. Programs that were built here run there.
pub fn suite() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("/etc/os-release names no release of Debian (VERSION_CODENAME)")?.trim_matches('"').to_owned())
}

/// The path of the tarball of `cargo xtask setup` in a target directory.
pub fn image_in(target_dir: &Path) -> Result<PathBuf> {
    Ok(target_dir.join("machine").join(format!("{}.tar", suite()?)))
}

/// Unpacks it.
pub(super) fn unpack(to: &Path) -> Result<()> {
    let image = built(image_in, "cargo xtask setup")?;
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    output(Command::new("tar").args(["--extract", "--file"]).arg(image).arg("--directory").arg(to)).map(drop)
}

/// The Debian package that `cargo xtask package` has built.
pub(super) fn package() -> Result<PathBuf> {
    built(|target_dir| Ok(target_dir.join("debian/bgctl.deb")), "cargo xtask package")
}

/// A file in the target directory of this test.
fn built(path_in: impl Fn(&Path) -> Result<PathBuf>, made_by: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    for target_dir in test.ancestors().skip(1).take(4) {
        let path = path_in(target_dir)?;
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!("expected {}; `{made_by}` makes it", path_in(Path::new("target"))?.display())
}
