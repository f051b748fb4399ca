//! `miri`: runs tests of the data path in an interpreter that sees undefined behaviour: accesses out of bounds or of other memory, references that exclude
//! each other, values that no type has, and races of data.

use crate::{
    process::{run as run_command, say},
    toolchain::Toolchain,
    workspace,
};
use anyhow::Result;
use std::ffi::OsStr;

/// What is run: what it is, arguments of `cargo miri test`, and flags for Miri. What is skipped makes lists of thousands of addresses.
const PARTS: [(&str, &[&str], &str); 3] = [
    ("unit tests of the maps' rows", &["--package", "bg-common", "--lib", "--", "--skip", "long_lists"], ""),
    ("packets through the engine", &[FUZZ[0], FUZZ[1], FUZZ[2], FUZZ[3], FUZZ[4], "packets"], ""),
    (
        "threads at one flow table, in several orders",
        &[FUZZ[0], FUZZ[1], FUZZ[2], FUZZ[3], FUZZ[4], "threads"],
        "-Zmiri-many-seeds=0..8",
    ),
];

const FUZZ: [&str; 5] = ["--package", "bg-fuzz", "--no-default-features", "--test", "under_miri"];

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
