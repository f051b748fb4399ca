//! The bgctl that is measured: the release build, with an object built from the sources.

use crate::{
    build_ebpf,
    process::{run as run_command, say},
    workspace,
};
use anyhow::Result;
use std::{path::PathBuf, process::Command};

/// The bgctl that the variable `BGCTL` names, else one that is built now.
pub(super) fn build() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BGCTL") {
        return Ok(path.into());
    }
    let object = build_ebpf::build()?;
    say("building bgctl");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace::root()).env("BGCTL_BPF_OBJECT", &object.path);
    run_command(cargo.args(["build", "--release", "--quiet", "--package", "bg-userspace"]))?;
    Ok(workspace::target_dir().join("release/bgctl"))
}
