//! Packets of open flows, by the number of flows.

use super::{
    super::report::{Axis, Plot, Series, Table},
    RoundsTable, Setup,
    case::{Case, Direction},
    columns,
    edge::Edge,
    frame::Flows,
};
use anyhow::Result;
use bg_common::Protocol;

/// The table has room for so many flows at least: a smaller one is in the caches whatever is asked of it.
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
        y: Axis { label: "ns a packet".into(), logarithmic: false },
        series,
    };
    Ok((table.finish("A packet of an open flow", about), plot))
}

/// The two flow tables side by side.
pub(super) fn reference(setup: &Setup<'_>) -> Result<Table> {
    let case = Case::ipv4(Protocol::Tcp)?;
    let mut rows = Vec::new();
    for flows in setup.args.flows(u32::MAX) {
        let mut row = vec![f64::from(flows).into()];
        for object in [None, Some(&*setup.reference)] {
            let mut edge = Edge::load_object(setup, object, flows.max(ROOM), &case)?;
            let rounds = edge.open_flows(&case, Direction::Forward, Flows::first(flows))?;
            if object.is_none() {
                row.push(rounds.of(|sample| sample.line - sample.empty).into());
            }
            row.push(rounds.ours().into());
        }
        rows.push(row);
    }
    Ok(Table {
        title: "The flow table, beside the kernel's LRU hash in its place".into(),
        about: "IPv4 TCP, client to backend. The same programs with another table behind the same trait. One cache line is \
                what the load alone takes, without the wrapper."
            .into(),
        columns: columns(&["flows", "one cache line at random, ns", "set-associative, ns", "LRU hash, ns"]),
        rows,
    })
}
