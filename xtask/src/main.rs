//! `cargo xtask`: the development tasks of this repository, one subcommand per file.

mod bench;
mod budget;
mod build_ebpf;
mod cargo_tools;
mod demo;
mod fuzz;
mod machine_image;
mod miri;
mod package;
mod packages;
mod process;
mod schemathesis;
mod setup;
mod sources;
mod test;
mod toolchain;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set-up, builds, demo and tests of this repository")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install what the BPF object, the tests and the demo need.
    Setup,
    /// Build the BPF object that bgctl embeds.
    BuildEbpf(build_ebpf::Args),
    /// Build bgctl and its Debian package, target/debian/bgctl.deb.
    Package(package::Args),
    /// Show how real connections move from blue to green and back. Needs root or sudo.
    Demo(demo::Args),
    /// Run benchmarks, with each figure beside its baseline. Needs root.
    Bench(bench::Args),
    /// Count the instructions of the hot paths, and compare them with their budgets. Part of `test`.
    Budget(budget::Args),
    /// Feed chosen bytes to the packet engine, and to what reads files, by libFuzzer or without it.
    Fuzz(fuzz::Args),
    /// Run tests of the data path in an interpreter that sees undefined behaviour.
    Miri,
    /// Run all checks and tests. Needs root or sudo, for network namespaces.
    Test(test::Args),
    /// Run what continuous integration runs, which is `test`.
    Ci(test::Args),
    /// Run a backend of the demo.
    #[command(hide = true)]
    Backend(demo::backend::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Setup => setup::run(),
        Task::BuildEbpf(args) => build_ebpf::run(&args),
        Task::Package(args) => package::run(&args),
        Task::Demo(args) => demo::run(&args),
        Task::Backend(args) => demo::backend::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Budget(args) => budget::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Miri => miri::run(),
        Task::Test(args) | Task::Ci(args) => test::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
