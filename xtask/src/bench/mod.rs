//! `bench`: figures that anyone can make again, each beside its baseline from the same run.

mod datapath;
mod report;
mod stats;

use anyhow::Result;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    part: Part,
}

#[derive(clap::Subcommand)]
enum Part {
    /// Nanoseconds a packet, by test runs of the loaded program with the frame restored before each.
    Datapath(datapath::Args),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.part {
        Part::Datapath(args) => datapath::run(args),
    }
}
