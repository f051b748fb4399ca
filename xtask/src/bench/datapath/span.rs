//! The first packet of an open flow after some time, for which the engine may have more work than for others.

use super::{
    super::{
        report::{Cell, Table},
        stats::Summary,
    },
    Setup,
    case::{Case, Direction},
    columns,
    edge::{Edge, Packets},
    frame::{Flows, Order, Segment},
};
use anyhow::Result;
use bg_common::Protocol;
use std::{thread, time::Duration};

/// Ticks of silence, one more than the longest time that matters to the engine.
const SILENCE: u32 = 17;

/// The most rounds, because each takes seconds.
const ROUNDS: u32 = 7;

/// Flows of one kind, and the times of their packets.
struct Kind<'a> {
    name: String,
    flows: Flows,
    edge: Edge<'a>,
    packets: Packets,
    first: Vec<f64>,
    next: Vec<f64>,
    line: Vec<f64>,
    ratio: Vec<f64>,
}

pub(super) fn measure(setup: &Setup<'_>) -> Result<Table> {
    let (v4, v6) = (Case::ipv4(Protocol::Tcp)?, Case::ipv6(Protocol::Tcp)?);
    let mut kinds = Vec::new();
    for (case, direction, what) in [
        (v4, Direction::Forward, "client to backend"),
        (v4, Direction::Reply, "backend to client"),
        (v6, Direction::Forward, "client to backend"),
    ] {
        for count in setup.args.flows(524_288).into_iter().filter(|count| *count > 1) {
            let flows = Flows::first(count);
            let mut edge = Edge::load(setup, count, &case)?;
            edge.establish(&case, flows)?;
            let packets = edge.packets(&case, direction, Segment::Data, flows, Order::Random)?;
            let name = format!("{}, {what}", case.name());
            let (first, next, line, ratio) = Default::default();
            kinds.push(Kind { name, flows, edge, packets, first, next, line, ratio });
        }
    }
    // All of them are silent at the same time, for that takes seconds.
    for _ in 0..setup.args.rounds().min(ROUNDS) {
        if let Some(kind) = kinds.first_mut() {
            let until = kind.edge.kernel().tick()?.wrapping_add(SILENCE);
            while kind.edge.kernel().tick()? != until {
                thread::sleep(Duration::from_millis(10));
            }
        }
        for Kind { flows, edge, packets, first, next, line, ratio, .. } in &mut kinds {
            // The caches are left to the baselines before both, so that both find the flows where these are.
            line.push(edge.baselines(packets, flows.count)?.1);
            let (of_first, _) = edge.send(packets, flows.count)?;
            edge.baselines(packets, flows.count)?;
            let (of_next, _) = edge.send(packets, flows.count)?;
            first.push(of_first);
            next.push(of_next);
            ratio.push(of_first / of_next);
        }
    }
    let row = |kind: Kind<'_>| -> Vec<Cell> {
        let head = [kind.name.into(), f64::from(kind.flows.count).into()];
        let figures = [kind.first, kind.next, kind.ratio, kind.line].map(|sample| Summary::of(sample).into());
        head.into_iter().chain(figures).collect()
    };
    Ok(Table {
        title: "The first packet after some seconds".into(),
        about: format!(
            "All flows are silent for {SILENCE} ticks of the data path's clock, of 64 timer ticks each. Then each flow sends one \
             packet, and another one right after it."
        ),
        columns: columns(&["packet", "flows", "first, ns", "next, ns", "first, times next", "one cache line, ns"]),
        rows: kinds.into_iter().map(row).collect(),
    })
}
