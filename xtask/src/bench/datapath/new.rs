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

/// Flows of which the table is half full: as many as an instance has room for by default.
const FLOWS: u32 = 1 << 18;
/// Flows of a table that the processor's own caches hold, and how often it is filled.
const FEW_FLOWS: u32 = 1 << 12;
const TIMES: u32 = 33;
/// Rounds of the large table at most: each makes a new one.
const ROUNDS: u32 = 5;

pub(super) fn measure(setup: &Setup<'_>) -> Result<Table> {
    let mut rows: Vec<Vec<Cell>> = Vec::new();
    for case in [Case::ipv4(Protocol::Tcp)?, Case::ipv4(Protocol::Udp)?, Case::ipv6(Protocol::Tcp)?] {
        for (table, is_reference) in [("set-associative", false), ("LRU hash", true)] {
            let large = large(setup, &case, is_reference)?;
            let in_cache = in_cache(setup, &case, is_reference)?;
            say(format_args!(
                "{}, {table}: {} ns, in cache {in_cache} ns",
                case.name(),
                Summary::of(large.to_half.clone())
            ));
            let [to_half, full, empty, line] =
                [large.to_half, large.full, large.empty, large.line].map(|sample| Summary::of(sample).into());
            rows.push(vec![case.name().into(), table.into(), to_half, full, in_cache.into(), empty, line]);
        }
    }
    Ok(Table {
        title: "A packet that opens a flow".into(),
        about: format!(
            "TCP: a SYN. `To half`: until {FLOWS} flows are open, which is half of what the table holds. `Full`: when it is \
             full of flows that are open; then each new one takes the place of another, or is sent on without an entry. `In \
             cache`: a table of {FEW_FLOWS} flows, filled to half again and again."
        ),
        columns: columns(&[
            "packet",
            "flow table",
            "to half, ns",
            "full, ns",
            "in cache, ns",
            "empty program, ns",
            "one cache line, ns",
        ]),
        rows,
    })
}

#[derive(Default)]
struct Large {
    to_half: Vec<f64>,
    full: Vec<f64>,
    empty: Vec<f64>,
    line: Vec<f64>,
}

fn large(setup: &Setup<'_>, case: &Case, is_reference: bool) -> Result<Large> {
    let mut found = Large::default();
    let flows = Flows::first(if setup.args.quick { 1 << 14 } else { FLOWS });
    for _ in 0..setup.args.rounds().min(ROUNDS) {
        let mut edge = Edge::load_object(setup, is_reference.then_some(&*setup.reference), flows.count, case)?;
        let packets = edge.packets(case, Direction::Forward, Segment::Opening, flows, Order::Linear)?;
        let (empty, line) = edge.baselines(&packets, flows.count)?;
        found.empty.push(empty);
        found.line.push(line);
        found.to_half.push(edge.open(case, flows)?);
        let opened = edge.traffic()?.flows_opened;
        ensure!(opened == u64::from(flows.count), "expected {} flows opened, got {opened}", flows.count);
        // Both ends have answered, so that none of them gives way easily.
        edge.establish(case, flows)?;
        let others = flows.next();
        edge.establish(case, others)?;
        found.full.push(edge.open(case, others.next())?);
    }
    Ok(found)
}

fn in_cache(setup: &Setup<'_>, case: &Case, is_reference: bool) -> Result<Summary> {
    let flows = Flows::first(FEW_FLOWS);
    let mut edge = Edge::load_object(setup, is_reference.then_some(&*setup.reference), flows.count, case)?;
    let mut sample = Vec::new();
    for _ in 0..TIMES {
        edge.kernel().forget_flows()?;
        sample.push(edge.open(case, flows)?);
    }
    Ok(Summary::of(sample))
}
