//! The bgctl that is measured: the release build, with an object built from the sources.

use crate::{
    build_ebpf,
    process::{run as run_command, say},
    workspace,
};
use anyhow::Result;
use std::{path::PathBuf, process::Command};

/// The modes in which it is attached.
pub(super) const MODES: [&str; 3] = ["native", "generic", "tc"];

/// Its name in tables, when it is attached in this mode.
pub(super) fn name(mode: &str) -> String {
    match mode {
        "tc" => "ours, tc".into(),
        _ => format!("ours, {mode} XDP"),
    }
}

/// The bgctl that the variable `BGCTL` names, else one that is built now.
pub(super) fn build() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BGCTL") {
        return Ok(path.into());
    }
    let object = build_ebpf::build()?;
    say("building bgctl");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace::root()).envs(object.variable()?);
    run_command(cargo.args(["build", "--release", "--quiet", "--package", "bg-userspace"]))?;
    Ok(workspace::target_dir().join("release/bgctl"))
}
