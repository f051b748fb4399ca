//! The cargo subcommands that tests and packaging use, installed from crates.io.

use crate::process::{output, run, say};
use anyhow::{Context, Result};
use std::process::Command;

/// A crate that cargo installs, and the version with which this repository was tested.
pub(crate) struct CargoTool {
    name: &'static str,
    version: &'static str,
    used_for: &'static str,
    takes: &'static str,
}

/// The tool that checks licences and origins of the dependencies.
pub(crate) const CARGO_DENY: CargoTool = CargoTool {
    name: "cargo-deny",
    version: "0.20.2",
    used_for: "licences and origins of the dependencies",
    takes: "3 to 6 minutes",
};

/// The tool that builds the Debian package.
pub(crate) const CARGO_DEB: CargoTool =
    CargoTool { name: "cargo-deb", version: "3.8.0", used_for: "the Debian package", takes: "about a minute" };

impl CargoTool {
    /// Its version line, if it is installed.
    fn installed(&self) -> Option<String> {
        // As `cargo deny` would find it: in the path or in cargo's own directory.
        let mut command = Command::new(self.name);
        command.env("PATH", crate::toolchain::path_with_cargo_bin());
        output(command.arg("--version")).ok()
    }
}

/// Installs the missing tools. A tool of another version is used as it is.
pub(crate) fn install(tools: &[CargoTool]) -> Result<()> {
    for tool in tools {
        let CargoTool { name, version, used_for, takes } = tool;
        if let Some(found) = tool.installed() {
            say(format_args!("{name}: {found}"));
            continue;
        }
        say(format_args!("cargo install {name} {version}, for {used_for}: {takes}"));
        let mut cargo = Command::new("cargo");
        // They run for a second. Their authors' profiles, made for months of use, take several times as long to build.
        cargo.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
        cargo.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
        run(cargo.args(["install", name, "--version", version, "--locked", "--quiet"]))?;
        tool.installed().with_context(|| format!("cargo has installed {name}, but it does not run"))?;
    }
    Ok(())
}
