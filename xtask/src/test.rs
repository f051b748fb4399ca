//! `test`: all checks and tests that a change must pass, from formatting to labs.

use crate::{
    budget, build_ebpf, package,
    process::{can_be_root, is_root, output, run as run_command, say},
    setup, toolchain, workspace,
};
use anyhow::{Context, Result, bail};
use std::{ffi::OsString, process::Command, time::Instant};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Soak longer: more switches, more flows, more cases.
    #[arg(long)]
    full: bool,
    /// Only tests whose names contain this.
    filter: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    if !is_root() && !can_be_root() {
        bail!("expected root or sudo: labs make network namespaces and load BPF programs");
    }
    workspace::require_space()?;
    setup::run()?;
    let object = build_ebpf::build()?;
    build_ebpf::check(&object)?;

    step("formatting");
    run_command(cargo().args(["fmt", "--all", "--check"]))?;
    step("clippy");
    run_command(cargo().args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"]))?;
    licences()?;
    step("budgets of the hot paths");
    budget::run(&budget::Args::default())?;

    step("bgctl, with the object that was just built");
    run_command(cargo().env("BGCTL_BPF_OBJECT", &object.path).args([
        "build",
        "--release",
        "--package",
        "bg-userspace",
    ]))?;

    step("the Debian package");
    package::build()?;

    step("tests");
    let mut tests = cargo();
    tests.env("BGCTL_BPF_OBJECT", &object.path);
    tests.env("BGCTL", workspace::target_dir().join("release/bgctl"));
    if args.full {
        tests.env("BG_TEST_FULL", "1");
    }
    if !is_root() {
        // Only the finished test programs run as root, so that no file of the target directory becomes root's.
        tests.env(runner_variable()?, "sudo --preserve-env --");
    }
    tests.args(["test", "--workspace", "--no-fail-fast"]);
    tests.args(&args.filter);
    run_command(&mut tests).context("tests failed, see above")?;
    say(format_args!("everything passed, in {} s", start.elapsed().as_secs()));
    Ok(())
}

/// Licences, duplicates and origins of the dependencies.
fn licences() -> Result<()> {
    step("cargo-deny");
    let mut deny = cargo();
    deny.env("PATH", toolchain::path_with_cargo_bin());
    run_command(deny.args(["deny", "--log-level", "error", "check", "licenses", "bans", "sources"]))
}

fn step(name: &str) {
    say(name);
}

/// The cargo that runs this task, in the root of the repository.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace::root());
    command
}

/// The variable that tells cargo how to run the programs that it has built for this machine.
fn runner_variable() -> Result<OsString> {
    let verbose = output(Command::new("rustc").arg("-vV"))?;
    let host = verbose.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    Ok(format!("CARGO_TARGET_{}_RUNNER", host.to_uppercase().replace('-', "_")).into())
}
