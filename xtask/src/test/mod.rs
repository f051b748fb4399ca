//! `test`: all checks and tests that a change must pass, from formatting to labs.

mod conflicts;
mod programs;

use crate::{
    budget, build_ebpf, fuzz, miri, package,
    process::{can_be_root, is_root, run as run_command, say},
    setup, toolchain, workspace,
};
use anyhow::{Context, Result, bail};
use programs::Run;
use std::{path::Path, process::Command, time::Instant};

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
    let object = object.variable()?;
    let cargo_with_object = || {
        let mut command = cargo();
        command.envs(object);
        command
    };

    step("formatting");
    run_command(cargo().args(["fmt", "--all", "--check"]))?;
    step("conflict markers");
    conflicts::check()?;
    step("clippy");
    run_command(cargo_with_object().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "--deny",
        "warnings",
    ]))?;
    licences()?;
    step("budgets of the hot paths");
    budget::run(&budget::Args::default())?;

    step("fuzzing");
    fuzz::bounded(args.full)?;
    if args.full {
        step("miri");
        miri::run()?;
    }

    step("bgctl");
    run_command(cargo_with_object().args(["build", "--release", "--package", "bg-userspace"]))?;

    step("the Debian package");
    package::build()?;

    step("tests");
    let bgctl = workspace::target_dir().join("release/bgctl");
    let full = args.full.then_some(("BG_TEST_FULL", Path::new("1")));
    let environment: Vec<_> = object.into_iter().chain([("BGCTL", &*bgctl)]).chain(full).collect();
    // Only the finished test programs run as root, so that no file of the target directory becomes root's.
    let runner: &[_] = if is_root() { &[] } else { &["sudo", "--preserve-env", "--"] };
    let run = Run { runner, environment: &environment, filter: args.filter.as_deref() };
    let passed = run.build_and_run(cargo_with_object().args(["test", "--workspace"]));
    let documented = run_command(cargo_with_object().args(["test", "--workspace", "--doc"]).args(&args.filter));
    passed.and(documented.context("tests in documentation failed"))?;
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
