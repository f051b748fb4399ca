//! `miri`: runs tests of the data path in an interpreter that sees undefined behaviour: accesses out of bounds or of other memory, references that exclude
//! each other, values that no type has, and races of data.

use crate::{
    process::{run as run_command, say},
    toolchain::Toolchain,
    workspace,
};
use anyhow::Result;
use std::ffi::OsStr;

/// What is run: arguments of `cargo miri test`, flags for Miri, and what it is.
const PARTS: [(&str, &[&str], &str); 3] = [
    ("unit tests of engine and maps", &["--package", "bg-ebpf", "--package", "bg-common", "--lib"], ""),
    ("packets through the engine", &["--package", "bg-fuzz", "--test", "under_miri", "packets"], ""),
    (
        "threads at one flow table, in many orders",
        &["--package", "bg-fuzz", "--test", "under_miri", "threads"],
        "-Zmiri-many-seeds=0..8",
    ),
];

pub(crate) fn run() -> Result<()> {
    let add = ["component", "add", "miri", "--toolchain", Toolchain::NIGHTLY];
    let mut probe = Toolchain::nightly_run(OsStr::new("cargo"))?;
    if crate::process::output(probe.args(["miri", "--version"])).is_err() {
        say(format_args!("rustup {}", add.join(" ")));
        run_command(std::process::Command::new("rustup").args(add))?;
    }
    for (what, args, flags) in PARTS {
        say(format_args!("miri: {what}"));
        let mut cargo = Toolchain::nightly_run(OsStr::new("cargo"))?;
        cargo.current_dir(workspace::root()).env("CARGO_TARGET_DIR", workspace::target_dir());
        // Files of the corpus are read.
        cargo.env("MIRIFLAGS", format!("-Zmiri-disable-isolation {flags}").trim());
        run_command(cargo.args(["miri", "test", "--quiet"]).args(args))?;
    }
    Ok(())
}
