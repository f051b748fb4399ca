//! Packets of open flows, by the number of flows.

use super::{
    super::{
        report::{Axis, Cell, Plot, Series, Table},
        stats::Summary,
    },
    RoundsTable, Setup,
    case::{Case, Direction},
    columns,
    edge::{Edge, Rounds},
    frame::{Flows, Order, Segment},
};
use anyhow::Result;
use bg_common::Protocol;

/// The table has room for at least this many flows, because a smaller table is always in the caches.
const ROOM: u32 = 65_536;

pub(super) fn flows(setup: &Setup<'_>) -> Result<(Table, Plot)> {
    let (v4, v6) = (Case::ipv4(Protocol::Tcp)?, Case::ipv6(Protocol::Tcp)?);
    let mut table = RoundsTable::new(&["packet", "flows"]);
    let mut series = Vec::new();
    for (case, direction, what) in [
        (v4, Direction::Forward, "client to backend"),
        (v4, Direction::Reply, "backend to client"),
        (Case::ipv4(Protocol::Udp)?, Direction::Forward, "client to backend"),
        (v6, Direction::Forward, "client to backend"),
        (v6, Direction::Reply, "backend to client"),
    ] {
        let name = format!("{}, {what}", case.name());
        let mut line = Series { name: name.clone(), points: Vec::new() };
        for flows in setup.args.flows(u32::MAX) {
            let mut edge = Edge::load(setup, flows.max(ROOM), &case)?;
            let rounds = edge.open_flows(&case, direction, Flows::first(flows))?;
            line.points.push((flows.into(), rounds.ours()));
            table.push([name.clone().into(), f64::from(flows).into()], &rounds);
        }
        series.push(line);
    }
    let about = format!("{} rounds of {} packets.", setup.args.rounds(), setup.args.packets());
    let plot = Plot {
        name: "datapath-flows".into(),
        title: "A packet of an open flow, by number of flows".into(),
        x: Axis { label: "open flows".into(), logarithmic: true },
        y: Axis { label: "ns per packet".into(), logarithmic: false },
        series,
    };
    Ok((table.finish("A packet of an open flow", about), plot))
}

/// The comparison with the kernel's own table.
pub(super) fn reference(setup: &Setup<'_>) -> Result<Table> {
    let case = Case::ipv4(Protocol::Tcp)?;
    let mut rows = Vec::new();
    for count in setup.args.flows(u32::MAX) {
        let flows = Flows::first(count);
        let mut edge = Edge::load_beside(setup, count.max(ROOM), 2 * count.max(ROOM), &case)?;
        edge.establish(&case, flows)?;
        let packets = edge.packets(&case, Direction::Forward, Segment::Data, flows, Order::Random)?;
        edge.lru(&packets, count)?;
        let (mut samples, mut lru) = (Vec::new(), Vec::new());
        for _ in 0..setup.args.rounds() {
            lru.push(edge.lru(&packets, setup.args.packets())?);
            samples.push(edge.sample(&packets, setup.args.packets())?);
        }
        let rounds = Rounds(samples);
        let figures =
            [rounds.of(|sample| sample.empty), rounds.of(|sample| sample.line), Summary::of(lru), rounds.ours()];
        rows.push([f64::from(count).into()].into_iter().chain(figures.map(Cell::from)).collect());
    }
    Ok(Table {
        title: "Compared with the kernel's LRU hash".into(),
        about: "IPv4 TCP, client to backend: the whole work for a packet, beside a program behind the same wrapper that only \
                looks up its flow in a hash map of type `BPF_MAP_TYPE_LRU_HASH`, by a key of 16 bytes."
            .into(),
        columns: columns(&["flows", "empty program, ns", "one cache line, ns", "LRU look-up alone, ns", "ours, whole work, ns"]),
        rows,
    })
}
