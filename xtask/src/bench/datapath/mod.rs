//! `bench datapath`: the cost of a packet in the programs, without a NIC and without the network stack.
//!
//! A wrapper program writes a fresh frame, of the next flow, and tail-calls the program under test. An empty program and a program that
//! loads a single cache line are the baselines. They run behind the same wrapper in the same round. Verdicts and counters are
//! checked, so that the whole work is measured: parsing, flow look-up, rewriting, checksums, next hop, counters, redirect.

mod case;
mod drain;
mod duplex;
mod edge;
mod frame;
mod lost;
mod new;
mod open;
mod passed;
mod processors;
mod programs;
mod span;
mod tables;
mod tc;

use super::{
    edge::{ifindex, wire},
    report::{Cell, Report, Table},
};
use crate::{build_ebpf, process::say};
use anyhow::{Context, Result};
use bg_tests::{Processor, Sandbox};
use case::Sides;
use edge::Rounds;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds. Each runs every program once.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Packets per round.
    #[arg(long, default_value_t = 1 << 20)]
    packets: u32,
    /// Numbers of flows, which are powers of two.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 65_536, 524_288, 1_048_576])]
    flows: Vec<u32>,
    /// A few rounds of a few packets, which take seconds; the figures mean little.
    #[arg(long)]
    pub(super) quick: bool,
    /// Only these tables, which are printed and not kept for the page.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Topic>,
}

impl Args {
    fn rounds(&self) -> u32 {
        if self.quick { 3 } else { self.rounds }
    }

    fn packets(&self) -> u32 {
        if self.quick { 1 << 16 } else { self.packets }
    }

    /// The requested numbers of flows, up to a limit.
    fn flows(&self, most: u32) -> Vec<u32> {
        let most = if self.quick { 65_536 } else { most };
        self.flows.iter().copied().filter(|flows| *flows <= most).collect()
    }

    pub(super) fn is_partial(&self) -> bool {
        !self.only.is_empty()
    }
}

/// The topics that can be measured, in the order of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Topic {
    /// Packets of open flows, and the flow table beside the kernel's hash.
    Open,
    /// Both directions in turn.
    Duplex,
    /// The first packet of a flow after a while.
    Span,
    /// Packets during and after a drain.
    Drain,
    /// Packets that open flows.
    New,
    /// Flows that the table loses.
    Lost,
    /// Packets that are passed on.
    Passed,
    /// tc, and mode `local`.
    Tc,
    /// Two processors at once.
    Processors,
    /// Sizes of programs and of flows.
    Programs,
}

/// The setup of every measurement.
struct Setup<'a> {
    args: &'a Args,
    /// The object with the wrappers.
    bench: PathBuf,
    sides: Sides,
    processors: Vec<Processor>,
}

pub(crate) fn run(args: &Args) -> Result<Report> {
    let bench = build_ebpf::build_bench()?;
    let sandbox = Sandbox::create()?;
    let edge = wire(&sandbox)?;
    let sides = Sides { client: ifindex(&edge, "c0")?, backend: ifindex(&edge, "b0")? };
    let setup = Setup { args, bench, sides, processors: Processor::all()? };
    edge.enter(|| measure(&setup))?
}

fn measure(setup: &Setup<'_>) -> Result<Report> {
    // The wrapper counts flows on each processor by itself.
    setup.processors.last().context("no processor")?.adopt_thread()?;
    let (mut tables, mut plots) = (Vec::new(), Vec::new());
    let all = <Topic as clap::ValueEnum>::value_variants();
    for topic in all.iter().filter(|topic| !setup.args.is_partial() || setup.args.only.contains(topic)) {
        say(format_args!("datapath: {topic:?}"));
        match topic {
            Topic::Open => {
                let (table, plot) = open::flows(setup)?;
                tables.extend([table, open::reference(setup)?]);
                plots.push(plot);
            }
            Topic::Duplex => tables.push(duplex::measure(setup)?),
            Topic::Span => tables.push(span::measure(setup)?),
            Topic::Drain => tables.push(drain::measure(setup)?),
            Topic::New => tables.push(new::measure(setup)?),
            Topic::Lost => tables.push(lost::measure(setup)?),
            Topic::Passed => tables.push(passed::measure(setup)?),
            Topic::Tc => tables.push(tc::measure(setup)?),
            Topic::Processors => tables.push(processors::measure(setup)?),
            Topic::Programs => tables.extend([programs::sizes(setup)?, programs::memory(setup)?]),
        }
    }
    Ok(Report { part: "datapath".into(), about: ABOUT.into(), tables, plots })
}

const ABOUT: &str = "\
    Nanoseconds per packet, by test runs of the loaded programs. A wrapper restores the frame before each run and tail-calls \
    the program. In each round, two more programs run behind the same wrapper: an empty program, and a program that only loads \
    one cache line of the flow, from as much memory as the flow table takes. Each of these loads waits for the previous \
    one, while a processor may start the loads of independent packets earlier. The columns with `less` are \
    medians of the difference in each round. The kernel reports whole nanoseconds. Verdicts and counters are checked. Unless \
    stated otherwise, flows are in random order, both ends of each flow have sent packets, and the table has room for twice as \
    many flows. About once a second, XDP leaves one packet of each next hop to tc. The figures include the cost of that for XDP, \
    but not for tc.";

/// A table of [`Rounds`], with columns of words or counts in front.
struct RoundsTable {
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

impl RoundsTable {
    fn new(columns: &[&str]) -> Self {
        Self {
            columns: columns.iter().chain(&Rounds::COLUMNS).map(|name| (*name).to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    fn push<const N: usize>(&mut self, head: [Cell; N], rounds: &Rounds) {
        let shown = head.iter().map(Cell::to_string).collect::<Vec<_>>().join(", ");
        say(format_args!("{shown}: {} ns", rounds.ours()));
        self.rows.push(head.into_iter().chain(rounds.summaries().map(Cell::from)).collect());
    }

    fn finish(self, title: &str, about: impl Into<String>) -> Table {
        Table { title: title.into(), about: about.into(), columns: self.columns, rows: self.rows }
    }
}

/// Names of columns.
fn columns(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
