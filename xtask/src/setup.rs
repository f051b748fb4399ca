//! `setup`: finds or installs what building the BPF object needs, the programs that tests use, and a Debian root in which the
//! package is tested. A second run finds everything and changes nothing.

use crate::{
    cargo_tools::{self, CARGO_DEB, CARGO_DENY},
    machine_image,
    packages::{Tools, apt_install, install_tools, is_installed},
    process::{run as run_command, say},
    schemathesis,
    toolchain::{self, BPF_LINKER, LLVM, NIGHTLY, Toolchain},
};
use anyhow::{Context, Result, bail};
use std::process::Command;

pub(crate) fn run() -> Result<()> {
    compiler()?;
    linker()?;
    install_tools(Tools::All)?;
    cargo_tools::install(&[CARGO_DENY, CARGO_DEB])?;
    schemathesis::install()?;
    machine_image::make()
}

fn compiler() -> Result<()> {
    if let Some(toolchain) = Toolchain::find() {
        say(format_args!("BPF compiler: {} ({})", toolchain.describe(), toolchain.version()?));
        return Ok(());
    }
    say(format_args!("no compiler for the BPF target; asking rustup for {NIGHTLY} with rust-src"));
    let mut rustup = Command::new("rustup");
    rustup.args(["toolchain", "install", NIGHTLY, "--profile", "minimal", "--component", "rust-src"]);
    if let Err(error) = run_command(rustup.arg("--no-self-update")) {
        say(format_args!("that did not work ({error:#}); taking Debian's rustc-web instead"));
        apt_install(&["rustc-web", "rust-web-src"]).context("neither rustup nor Debian gave a compiler")?;
    }
    let toolchain = Toolchain::require()?;
    say(format_args!("BPF compiler: {} ({})", toolchain.describe(), toolchain.version()?));
    Ok(())
}

fn linker() -> Result<()> {
    if let Some(version) = toolchain::bpf_linker() {
        say(format_args!("BPF linker: {version}"));
        if version != format!("bpf-linker {BPF_LINKER}") {
            say(format_args!("note: the committed object was linked with {BPF_LINKER}; another makes other bytes"));
        }
        return Ok(());
    }
    let packages = [format!("llvm-{LLVM}-dev"), format!("libpolly-{LLVM}-dev")];
    let missing: Vec<_> = packages.iter().map(String::as_str).filter(|package| !is_installed(package)).collect();
    if !missing.is_empty() {
        apt_install(&missing).with_context(|| {
            format!("bpf-linker needs LLVM {LLVM}; where Debian has none, apt.llvm.org has packages of the same names")
        })?;
    }
    say(format_args!("cargo install bpf-linker {BPF_LINKER} on LLVM {LLVM}: about a minute"));
    let prefix = format!("/usr/lib/llvm-{LLVM}");
    let path = toolchain::path_with_cargo_bin();
    let path = std::env::join_paths([format!("{prefix}/bin").into()].into_iter().chain(std::env::split_paths(&path)))?;
    let mut cargo = Command::new("cargo");
    cargo.env("PATH", path).env("LLVM_PREFIX", &prefix);
    cargo.args(["install", "bpf-linker", "--version", BPF_LINKER, "--no-default-features", "--features"]);
    run_command(cargo.arg(format!("llvm-{LLVM}")))?;
    match toolchain::bpf_linker() {
        Some(version) => say(format_args!("BPF linker: {version}")),
        None => bail!("cargo has installed bpf-linker, but it does not run; try `bpf-linker --version`"),
    }
    Ok(())
}
