//! `bench`: figures that anyone can make again, each beside its baseline from the same run.

mod datapath;
mod edge;
mod report;
mod scale;
mod stats;
mod switch;
mod text;

use crate::{process::say, workspace};
use anyhow::{Context, Result, bail};
use clap::Parser;
use report::Report;
use std::fs;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    /// One part; without it, all of them.
    #[command(subcommand)]
    part: Option<Part>,
    /// All parts in seconds rather than minutes, with figures that are worth little.
    #[arg(long)]
    quick: bool,
}

#[derive(clap::Subcommand)]
enum Part {
    /// Nanoseconds a packet, by test runs of the loaded program with the frame restored before each.
    Datapath(datapath::Args),
    /// The instant of a switch under load, beside nftables, HAProxy and nginx.
    Switch(switch::Args),
    /// Commands, memory and packets with many services, backends and flows.
    Scale(scale::Args),
}

impl Part {
    /// All parts, in the order in which they are run and shown.
    const NAMES: &[&str] = &["datapath", "switch", "scale"];

    fn run(&self) -> Result<Report> {
        match self {
            Self::Datapath(args) => datapath::run(args),
            Self::Switch(args) => switch::run(args),
            Self::Scale(args) => scale::run(args),
        }
    }
}

/// Makes a part from its name, with the defaults of its arguments.
#[derive(clap::Parser)]
struct OnePart {
    #[command(subcommand)]
    part: Part,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(part) = &args.part {
        return show(&part.run()?);
    }
    let mut failed = Vec::new();
    for name in Part::NAMES {
        say(format_args!("bench {name}"));
        let words = ["bench", name].into_iter().chain(args.quick.then_some("--quick"));
        let part = OnePart::try_parse_from(words)?.part;
        if let Err(error) = part.run().and_then(|report| show(&report)) {
            say(format_args!("{name} failed: {error:#}"));
            failed.push(format!("{name}: {error:#}"));
        }
    }
    if !failed.is_empty() {
        bail!("{} of {} parts failed: {}", failed.len(), Part::NAMES.len(), failed.join("; "));
    }
    Ok(())
}

/// Prints a report and keeps it as JSON.
fn show(report: &Report) -> Result<()> {
    println!("{report}");
    let dir = workspace::target_dir().join("bench");
    fs::create_dir_all(&dir)?;
    let path = dir.join(&report.part).with_extension("json");
    fs::write(&path, serde_json::to_vec_pretty(report)?).with_context(|| format!("cannot write {}", path.display()))?;
    say(format_args!("wrote {}", path.display()));
    Ok(())
}
