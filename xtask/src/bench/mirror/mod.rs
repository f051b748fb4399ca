//! `bench mirror`: what `mirror = "idle"` costs a datagram, and what the live colour's clients notice of it.

mod cost;
mod latency;
mod rate;
mod stage;

use super::{
    bgctl,
    machine::is_installed,
    report::{Cell, Report, Table},
    stats::Summary,
    throughput::LiveFrames,
};
use crate::{build_ebpf, process::say};
use anyhow::{Context, Result};
use cost::Cost;
use latency::{Latency, REQUESTS};
use rate::Rate;
use stage::{Mirror, Stage, Way};
use std::path::Path;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds of frames. Each sends them to services with and without a mirror.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Frames that are sent at a time.
    #[arg(long, default_value_t = 1 << 18)]
    frames: u32,
    /// Seconds at half of the top rate.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Rounds of requests. Each asks with and without a mirror.
    #[arg(long, default_value_t = 150)]
    turns: u32,
    /// Two short rounds, which take seconds; the figures mean little.
    #[arg(long)]
    pub(super) quick: bool,
}

impl Args {
    fn rounds(&self) -> u32 {
        if self.quick { 2 } else { self.rounds }
    }

    fn frames(&self) -> u32 {
        if self.quick { 1 << 16 } else { self.frames }
    }

    fn seconds(&self) -> f64 {
        if self.quick { 0.3 } else { self.seconds }
    }

    fn turns(&self) -> u32 {
        if self.quick { 5 } else { self.turns }
    }
}

/// The results of a way.
struct Measured {
    way: String,
    /// IPv4, then IPv6.
    costs: Vec<Vec<Cost>>,
    rate: Rate,
    /// As in [`Mirror::ALL`]; none of nftables.
    latencies: Vec<Latency>,
}

pub(crate) fn run(args: &Args) -> Result<Report> {
    let (object, bgctl) = (build_ebpf::build_bench()?, bgctl::build()?);
    let mut all = Vec::new();
    for way in Way::ALL {
        if way == Way::Nftables && !is_installed("nft") {
            say("mirror: without nftables: nft is not installed");
            continue;
        }
        say(format_args!("mirror: {}", way.name()));
        all.push(measure(args, way, &object, &bgctl).with_context(|| way.name())?);
    }
    Ok(report(args, all))
}

/// Measures a way, in a network of its own.
fn measure(args: &Args, way: Way, object: &Path, bgctl: &Path) -> Result<Measured> {
    let (stage, mut live, mut idle) =
        (Stage::create(way, bgctl)?, LiveFrames::load(object)?, LiveFrames::load(object)?);
    let receivers = stage.receive(&mut live, &mut idle)?;
    let mut costs = vec![cost::measure(args, &stage, &mut live, &mut idle, false, &Mirror::ALL)?];
    let is_ours = way != Way::Nftables;
    if is_ours {
        costs.push(cost::measure(args, &stage, &mut live, &mut idle, true, &[Mirror::None, Mirror::There])?);
    }
    let rate = rate::measure(args, &stage, &mut live, &mut idle)?;
    drop(receivers);
    // Nobody takes copies that still bear the virtual address, so that nothing would be said of a mirror that is there.
    let latencies = if is_ours { latency::measure(args, &stage)? } else { Vec::new() };
    Ok(Measured { way: way.name(), costs, rate, latencies })
}

fn report(args: &Args, all: Vec<Measured>) -> Report {
    let tables = vec![costs(args, &all), rates(&all), latencies(args, all)];
    Report {
        part: "mirror".into(),
        about: "A service with `mirror = \"idle\"`, whose datagrams are copied to the idle colour, beside the same service without a mirror, in the same \
                network and in turns. The edge has a veth pair to each machine: the client, the live colour's, and three of the idle colour: one that is there, one that has \
                gone (its link has carrier, but nobody answers, so that the kernel gives the neighbour up), and one whose link is down. `nftables, dup` rewrites datagrams by rules without connection tracking, and \
                copies them by `dup`. Its copies still bear the virtual address, so that somebody has to rewrite them, which is not part of its figures."
            .into(),
        tables,
        plots: Vec::new(),
    }
}

fn costs(args: &Args, all: &[Measured]) -> Table {
    let mut rows = Vec::new();
    for Measured { way, costs, .. } in all {
        for (family, costs) in ["IPv4 UDP", "IPv6 UDP"].into_iter().zip(costs) {
            for Cost { mirror, ns, counts } in costs {
                let more = || Summary::of(ns.iter().zip(&costs[0].ns).map(|(ns, without)| ns - without).collect());
                rows.push(vec![
                    way.clone().into(),
                    family.into(),
                    mirror.name().into(),
                    Summary::of(ns.clone()).into(),
                    if *mirror == Mirror::None { Cell::Empty } else { more().into() },
                    if *mirror == Mirror::There { ratio(*counts) } else { Cell::Empty },
                ]);
            }
        }
    }
    let columns = ["through", "frames", "mirror", "ns per datagram", "more than without, ns", "copies of a datagram"];
    Table {
        title: "What a mirrored datagram costs".into(),
        about: format!(
            "{} rounds of {} frames of 1,024 flows to each service. Live frames, one processor that runs to completion, and the time that it worked for \
             each datagram that the live colour received, as in [packets per second](#packets-per-second-across-a-network). The time includes the copy, up to \
             the idle colour's machine, where an XDP program counts and drops it. `More than without` is the difference to the service without a mirror, in the same round.",
            args.rounds(),
            args.frames(),
        ),
        columns: columns.map(Into::into).into(),
        rows,
    }
}

fn rates(all: &[Measured]) -> Table {
    let row = |Measured { way, rate, .. }: &Measured| {
        vec![
            way.clone().into(),
            rate.top.round().into(),
            rate.offered.round().into(),
            (rate.originals as f64).into(),
            (rate.copies as f64).into(),
            ratio([rate.originals, rate.copies]),
        ]
    };
    let columns = [
        "through",
        "top rate, 1/s",
        "half of it, 1/s",
        "datagrams received",
        "copies received",
        "copies of a datagram",
    ];
    Table {
        title: "Copies at half of the top rate".into(),
        about: "Sockets on all processors send to the service without a mirror as fast as they can: the top rate is what the live colour received. Then they send to the \
                service with a mirror at half of this rate. Datagrams and copies are counted where they arrive."
            .into(),
        columns: columns.map(Into::into).into(),
        rows: all.iter().map(row).collect(),
    }
}

fn latencies(args: &Args, all: Vec<Measured>) -> Table {
    let mut rows = Vec::new();
    for Measured { way, latencies, .. } in all {
        let Some(plain) = latencies.first().cloned() else { continue };
        for (mirror, latency) in Mirror::ALL.into_iter().zip(latencies) {
            let against = |figures: &[f64], plain: &[f64]| match mirror {
                Mirror::None => Cell::Empty,
                _ => Summary::of(figures.iter().zip(plain).map(|(figure, plain)| figure / plain).collect()).into(),
            };
            let (p50, p99) = (against(&latency.p50, &plain.p50), against(&latency.p99, &plain.p99));
            rows.push(vec![
                way.clone().into(),
                mirror.name().into(),
                Summary::of(latency.p50).into(),
                Summary::of(latency.p99).into(),
                p50,
                p99,
                (latency.lost as f64).into(),
            ]);
        }
    }
    let columns =
        ["through", "mirror", "p50, µs", "p99, µs", "p50, of no mirror", "p99, of no mirror", "without an answer"];
    Table {
        title: "What clients of the live colour notice".into(),
        about: format!(
            "Time from a question by UDP to its answer. {} rounds; in each, {REQUESTS} questions to each of the services, one after the other. Client and servers wait \
             for datagrams without sleeping, each on a processor of its own. `Of no mirror` is the ratio to the same round's questions to the service without a mirror; the \
             figures are medians of rounds, with quartiles.",
            args.turns()
        ),
        columns: columns.map(Into::into).into(),
        rows,
    }
}

/// With six decimals: one copy too few in a million is seen.
fn ratio([originals, copies]: [u64; 2]) -> Cell {
    format!("{:.6}", copies as f64 / originals as f64).into()
}
