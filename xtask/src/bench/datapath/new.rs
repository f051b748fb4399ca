//! Packets that open flows.

use super::{
    super::{
        report::{Cell, Table},
        stats::Summary,
    },
    Setup,
    case::{Case, Direction},
    columns,
    edge::Edge,
    frame::{Flows, Order, Segment},
};
use crate::process::say;
use anyhow::{Result, ensure};
use bg_common::Protocol;

/// The number of flows at which the table is half full. An instance has room for as many by default.
const FLOWS: u32 = 1 << 18;
/// The number of flows of a table that fits into the processor's own caches, and how often it is filled.
const FEW_FLOWS: u32 = 1 << 12;
const TIMES: u32 = 33;
/// The most rounds with the large table, because each creates a new one.
const ROUNDS: u32 = 5;

pub(super) fn measure(setup: &Setup<'_>) -> Result<Table> {
    let mut rows: Vec<Vec<Cell>> = Vec::new();
    for case in [Case::ipv4(Protocol::Tcp)?, Case::ipv4(Protocol::Udp)?, Case::ipv6(Protocol::Tcp)?] {
        let Large { ours, lru, empty, line } = large(setup, &case)?;
        let in_cache = in_cache(setup, &case)?;
        say(format_args!("{}: {} ns, in cache {in_cache} ns", case.name(), Summary::of(ours.to_half.clone())));
        let baselines = [empty, line].map(Summary::of);
        rows.push(ours.row(case.name(), in_cache.into(), baselines));
        // It is the same for all of them.
        if rows.len() == 1 {
            rows.push(lru.row("LRU hash, insertion alone".into(), Cell::Empty, baselines));
        }
    }
    Ok(Table {
        title: "A packet that opens a flow".into(),
        about: format!(
            "For TCP, the packet is a SYN. `To half`: until {FLOWS} flows are open, which is half of the table. `Full`: when the \
             table is full of open flows, so that each new flow evicts another one, or is sent without a row. `In \
             cache`: a table of {FEW_FLOWS} flows, which is filled to half repeatedly. `Insertion alone`: only one entry per flow, \
             with a key of 16 bytes and a value of 16."
        ),
        columns: columns(&[
            "packet",
            "to half, ns",
            "full, ns",
            "in cache, ns",
            "empty program, ns",
            "one cache line, ns",
        ]),
        rows,
    })
}

/// Nanoseconds per packet, by round.
#[derive(Default)]
struct Filling {
    to_half: Vec<f64>,
    full: Vec<f64>,
}

impl Filling {
    fn row(self, name: String, in_cache: Cell, [empty, line]: [Summary; 2]) -> Vec<Cell> {
        let [to_half, full] = [self.to_half, self.full].map(|sample| Summary::of(sample).into());
        vec![name.into(), to_half, full, in_cache, empty.into(), line.into()]
    }
}

#[derive(Default)]
struct Large {
    ours: Filling,
    lru: Filling,
    empty: Vec<f64>,
    line: Vec<f64>,
}

fn large(setup: &Setup<'_>, case: &Case) -> Result<Large> {
    let mut found = Large::default();
    let flows = Flows::first(if setup.args.quick { 1 << 14 } else { FLOWS });
    for _ in 0..setup.args.rounds().min(ROUNDS) {
        let mut edge = Edge::load_beside(setup, flows.count, 2 * flows.count, case)?;
        let others = flows.next();
        let opening = |flows| edge.packets(case, Direction::Forward, Segment::Opening, flows, Order::Linear);
        let [packets, next, last] = [flows, others, others.next()].map(opening);
        let (packets, next, last) = (packets?, next?, last?);
        let (empty, line) = edge.baselines(&packets, flows.count)?;
        found.empty.push(empty);
        found.line.push(line);
        found.lru.to_half.push(edge.lru(&packets, flows.count)?);
        edge.lru(&next, flows.count)?;
        found.lru.full.push(edge.lru(&last, flows.count)?);
        found.ours.to_half.push(edge.open(case, flows)?);
        let opened = edge.traffic()?.flows_opened;
        ensure!(opened == u64::from(flows.count), "expected {} flows opened, got {opened}", flows.count);
        // Both ends have answered, so that none of them gives way easily.
        edge.establish(case, flows)?;
        edge.establish(case, others)?;
        found.ours.full.push(edge.open(case, others.next())?);
    }
    Ok(found)
}

fn in_cache(setup: &Setup<'_>, case: &Case) -> Result<Summary> {
    let flows = Flows::first(FEW_FLOWS);
    let mut edge = Edge::load(setup, flows.count, case)?;
    let mut sample = Vec::new();
    for _ in 0..TIMES {
        edge.kernel().forget_flows()?;
        sample.push(edge.open(case, flows)?);
    }
    Ok(Summary::of(sample))
}
