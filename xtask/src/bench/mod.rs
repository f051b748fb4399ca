//! `bench`: reproducible benchmarks, with each figure beside a baseline from the same run.

mod bars;
mod bgctl;
mod compare;
mod controller;
mod cutover;
mod datapath;
mod edge;
mod health;
mod machine;
mod mirror;
mod page;
mod plot;
mod record;
mod report;
mod scale;
mod stats;
mod switch;
mod tee;
mod test_run;
mod text;
mod throughput;

use crate::{
    build_ebpf,
    process::{as_root, can_be_root, is_root, run as run_command, say},
    setup, toolchain, workspace,
};
use anyhow::{Context, Result, bail};
use clap::Parser;
use page::{CUTOVER, Chapter, PERFORMANCE};
use record::Record;
use report::Report;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    /// One part. Without it, all parts of docs/performance.md run.
    #[command(subcommand)]
    part: Option<Part>,
    /// Run all parts in seconds rather than minutes; the figures mean little.
    #[arg(long)]
    quick: bool,
    /// Measure nothing; generate the pages again from the last measurements.
    #[arg(long, conflicts_with = "quick")]
    page: bool,
}

#[derive(clap::Subcommand)]
enum Part {
    /// Nanoseconds per packet, by test runs of the loaded program, with the frame restored before each.
    Datapath(datapath::Args),
    /// Packets per second across a network of veth interfaces.
    Throughput(throughput::Args),
    /// The instant of a switch under load, beside nftables, HAProxy and nginx.
    Switch(switch::Args),
    /// The cost of a mirrored datagram, and what clients of the live colour notice of a mirror.
    Mirror(mirror::Args),
    /// Commands, memory and packets with many services, backends and flows.
    Scale(scale::Args),
    /// The same network and traffic through alternatives.
    Compare(compare::Args),
    /// What the controller takes while nothing happens, beside HAProxy.
    Controller(controller::Args),
    /// What a request takes through a service in mode `tee`, beside HAProxy and without a proxy.
    Tee(tee::Args),
    /// Requests that fail while a backend dies, with health checks of the controller and of HAProxy.
    Health(health::Args),
    /// Open connections that break when the balancer changes, beside nftables, HAProxy and nginx. Writes docs/cutover.md.
    Cutover(cutover::Args),
}

impl Part {
    /// The parts of docs/performance.md, in the order in which they run and are shown: the name, the heading of the chapter, and whether its tables
    /// are drawn as bars.
    const ALL: &[(&str, &str, bool)] = &[
        ("datapath", "What a packet costs", false),
        ("throughput", "Packets per second across a network", false),
        ("switch", "The instant of a switch", false),
        ("mirror", "The mirror", false),
        ("scale", "With many services, backends and flows", false),
        ("compare", "Compared with alternatives", true),
        ("controller", "The controller at rest", false),
    ];

    fn run(&self) -> Result<Report> {
        match self {
            Self::Datapath(args) => datapath::run(args),
            Self::Throughput(args) => throughput::run(args),
            Self::Switch(args) => switch::run(args),
            Self::Mirror(args) => mirror::run(args),
            Self::Scale(args) => scale::run(args),
            Self::Compare(args) => compare::run(args),
            Self::Controller(args) => controller::run(args),
            Self::Tee(args) => tee::run(args),
            Self::Health(args) => health::run(args),
            Self::Cutover(args) => cutover::run(args),
        }
    }

    fn is_quick(&self) -> bool {
        match self {
            Self::Datapath(args) => args.quick,
            Self::Throughput(args) => args.quick,
            Self::Switch(args) => args.quick,
            Self::Mirror(args) => args.quick,
            Self::Scale(args) => args.quick,
            Self::Compare(args) => args.quick,
            Self::Controller(args) => args.quick,
            Self::Tee(args) => args.quick,
            Self::Health(args) => args.quick,
            Self::Cutover(args) => args.quick,
        }
    }

    /// Whether it measures only some of the part's tables, which do not go to the page.
    fn is_partial(&self) -> bool {
        matches!(self, Self::Datapath(args) if args.is_partial())
    }

    /// The part of this name, with default arguments.
    fn by_name(name: &str, quick: bool) -> Result<Self> {
        #[derive(clap::Parser)]
        struct OnePart {
            #[command(subcommand)]
            part: Part,
        }
        let words = ["bench", name].into_iter().chain(quick.then_some("--quick"));
        Ok(OnePart::try_parse_from(words)?.part)
    }
}

/// The variable that names the bgctl to measure: a release build, not the one beside this program.
const BGCTL: &str = "BGCTL";

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.page {
        page::write(&PERFORMANCE, &chapters()?)?;
        return write_cutover();
    }
    if let Some(Part::Cutover(args)) = &args.part
        && args.page
    {
        let record = Record::read("cutover")?.context("`cargo xtask bench cutover` has not been run yet")?;
        Record { report: cutover::last(args)?, ..record }.write()?;
        return write_cutover();
    }
    if build_ebpf::is_prebuilt() {
        // As root, started by the caller's process, which makes the page.
        return measure(args);
    }
    let bgctl = prepare()?;
    let measured = if is_root() {
        // SAFETY: no other thread has been started yet.
        unsafe { std::env::set_var(BGCTL, bgctl) };
        measure(args)
    } else {
        measure_as_root(&bgctl)
    };
    // What has been measured is shown, whatever failed.
    match args.part {
        None => measured.and(chapters().and_then(|chapters| page::write(&PERFORMANCE, &chapters))),
        Some(Part::Cutover(_)) => measured.and(write_cutover()),
        Some(_) => measured,
    }
}

/// Writes the page of the part that has one of its own, if it was measured.
fn write_cutover() -> Result<()> {
    let Some(record) = Record::read("cutover")? else { return Ok(()) };
    let chapter = Chapter { part: "cutover", title: "Results", bars: false, record: Some(record) };
    page::write(&CUTOVER, &[chapter])
}

/// Installs what is missing and builds what is measured. Returns the path of bgctl.
fn prepare() -> Result<PathBuf> {
    if !is_root() && !can_be_root() {
        bail!("expected root or sudo: the benchmarks make network namespaces and load BPF programs");
    }
    setup::run()?;
    build_ebpf::prebuild_benches()?;
    say("building bgctl");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace::root());
    run_command(cargo.args(["build", "--release", "--quiet", "--package", "bg-userspace", "--bin", "bgctl"]))?;
    fs::create_dir_all(record::dir())?;
    Ok(workspace::target_dir().join("release/bgctl"))
}

/// Starts this program again, as root. Everything is built then, and it creates no files in the caller's directories
/// except the records.
fn measure_as_root(bgctl: &Path) -> Result<()> {
    let mut command = as_root("env");
    command.arg(format!("{BGCTL}={}", bgctl.display()));
    command.arg(format!("{}=1", build_ebpf::PREBUILT));
    command.arg(format!("CARGO_TARGET_DIR={}", workspace::target_dir().display()));
    command.arg(format!("PATH={}", toolchain::path_with_cargo_bin().display()));
    // Else rustup, asked for versions, looks for toolchains of root's.
    for name in ["HOME", "RUSTUP_HOME", "CARGO_HOME", "CARGO", "RUSTUP_TOOLCHAIN"] {
        if let Some(value) = std::env::var_os(name) {
            command.arg(format!("{name}={}", value.display()));
        }
    }
    command.arg(std::env::current_exe()?);
    run_command(command.args(std::env::args_os().skip(1)))
}

fn measure(args: &Args) -> Result<()> {
    match &args.part {
        Some(part) => measure_part(part),
        None => measure_all(args.quick),
    }
}

/// Runs the parts one after the other. If one fails, the others still run.
fn measure_all(quick: bool) -> Result<()> {
    let mut failed = Vec::new();
    for (name, ..) in Part::ALL {
        say(format_args!("bench {name}"));
        Record::forget(name)?;
        if let Err(error) = Part::by_name(name, quick).and_then(|part| measure_part(&part)) {
            say(format_args!("{name} failed: {error:#}"));
            failed.push(format!("{name}: {error:#}"));
        }
    }
    if !failed.is_empty() {
        bail!("{} of {} parts failed: {}", failed.len(), Part::ALL.len(), failed.join("; "));
    }
    Ok(())
}

/// Measures and prints. The result of a whole part is recorded.
fn measure_part(part: &Part) -> Result<()> {
    let record = Record::measure(part.is_quick(), || part.run())?;
    println!("{}", record.report);
    if part.is_partial() {
        return Ok(());
    }
    let path = record.write()?;
    say(format_args!("wrote {}", path.display()));
    Ok(())
}

fn chapters() -> Result<Vec<Chapter>> {
    let chapter = |&(part, title, bars)| Ok(Chapter { part, title, bars, record: Record::read(part)? });
    Part::ALL.iter().map(chapter).collect()
}
