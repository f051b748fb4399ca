//! The two sources of a compiler for the BPF target, and the matching linker.
//!
//! The target has no prebuilt `core`, so the compiler needs the source of the standard library and must accept cargo's
//! `-Z build-std`. rustup's nightly with `rust-src` provides both. If rustup
//! cannot download, Debian's `rustc-web` with `rust-web-src` does too.

use crate::process::output;
use anyhow::{Result, bail};
use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    process::Command,
};

/// The version of bpf-linker, and of its LLVM, which must be at least as new as rustc's.
pub(crate) const BPF_LINKER: &str = "0.13.0";
pub(crate) const LLVM: u32 = 22;

/// The nightly that setup installs if there is none. It has the linker's LLVM version.
pub(crate) const NIGHTLY: &str = "nightly-2026-05-20";

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A compiler that can build the BPF object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// rustup's toolchain of this name, with the component `rust-src`.
    Rustup(&'static str),
    /// Debian's rustc-web, a stable compiler with unstable options enabled.
    DebianWeb,
}

impl Toolchain {
    /// The first one that is complete on this machine.
    pub(crate) fn find() -> Option<Self> {
        let all = [Self::Rustup(NIGHTLY), Self::Rustup("nightly"), Self::DebianWeb];
        all.into_iter().find(|toolchain| toolchain.is_complete())
    }

    /// The first one that is complete, or an error that says how to get one.
    pub(crate) fn require() -> Result<Self> {
        match Self::find() {
            Some(toolchain) => Ok(toolchain),
            None => bail!(
                "no compiler for the BPF target: expected rustup's {NIGHTLY} with rust-src, or Debian's rustc-web with \
                 rust-web-src (LLVM {LLVM} at the most); `cargo xtask setup` installs one of them"
            ),
        }
    }

    /// A description for people.
    pub(crate) fn describe(self) -> String {
        match self {
            Self::Rustup(name) => format!("rustup's {name} with rust-src"),
            Self::DebianWeb => "Debian's rustc-web with rust-web-src".to_owned(),
        }
    }

    /// The compiler's version line, for example `rustc 1.97.0-nightly (e50aa6fba 2026-05-19)`.
    pub(crate) fn version(self) -> Result<String> {
        output(self.rustc().arg("--version"))
    }

    /// A cargo that builds with this compiler. Settings that an outer cargo has put into the environment are
    /// removed, because they belong to the outer compiler.
    pub(crate) fn cargo(self) -> Command {
        let mut command = match self {
            Self::Rustup(name) => {
                let mut command = Command::new("rustup");
                command.args(["run", name, "cargo"]);
                command.env_remove("RUSTC");
                command
            }
            Self::DebianWeb => {
                let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command
            }
        };
        for name in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_BUILD_TARGET"] {
            command.env_remove(name);
        }
        command
    }

    /// The nightly that is pinned.
    pub(crate) const NIGHTLY: &str = NIGHTLY;

    /// A program, run with rustup's pinned nightly: tools that need it, whatever compiler builds the object.
    pub(crate) fn nightly_run(program: &OsStr) -> Result<Command> {
        if output(Self::Rustup(NIGHTLY).rustc().arg("--version")).is_err() {
            bail!("expected rustup's {NIGHTLY}, which `cargo xtask setup` installs");
        }
        let mut command = Command::new("rustup");
        command.args(["run", NIGHTLY]).arg(program);
        for name in
            ["CARGO", "RUSTC", "RUSTDOC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_BUILD_TARGET"]
        {
            command.env_remove(name);
        }
        Ok(command)
    }

    /// The directory of the compiler's libraries and of the standard library's source.
    pub(crate) fn sysroot(self) -> Result<PathBuf> {
        Ok(output(self.rustc().args(["--print", "sysroot"]))?.into())
    }

    fn rustc(self) -> Command {
        match self {
            Self::Rustup(name) => {
                let mut command = Command::new("rustup");
                command.args(["run", name, "rustc"]);
                command
            }
            Self::DebianWeb => Command::new(DEBIAN_RUSTC),
        }
    }

    /// Whether the compiler exists, with the source, and its LLVM is not newer than the linker's.
    fn is_complete(self) -> bool {
        let has_source = |sysroot: PathBuf| sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists();
        self.sysroot().is_ok_and(has_source) && self.llvm().is_some_and(|llvm| llvm <= LLVM)
    }

    fn llvm(self) -> Option<u32> {
        let verbose = output(self.rustc().args(["--version", "--verbose"])).ok()?;
        let version = verbose.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
        version.split('.').next()?.parse().ok()
    }
}

/// The version of the bpf-linker in the search path, for example `bpf-linker 0.13.0`.
pub(crate) fn bpf_linker() -> Option<String> {
    output(Command::new("bpf-linker").arg("--version").env("PATH", path_with_cargo_bin())).ok()
}

/// The bpf-linker's version if it is the expected one, or an error that says what to do.
pub(crate) fn require_bpf_linker() -> Result<String> {
    match bpf_linker() {
        Some(version) => Ok(version),
        None => bail!("bpf-linker is not in the path: expected version {BPF_LINKER}; `cargo xtask setup` installs it"),
    }
}

/// The search path, with the directory of `cargo install`, which not every shell has.
pub(crate) fn path_with_cargo_bin() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(cargo_home().map(|home| home.join("bin")));
    std::env::join_paths(dirs).unwrap_or(path)
}

/// Cargo's home directory.
pub(crate) fn cargo_home() -> Option<PathBuf> {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo"));
    std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home)
}
