//! Packets of open flows through tc, including those of mode `local`, which only tc handles.

use super::{
    super::report::Table,
    RoundsTable, Setup,
    case::{Case, Direction, Way},
    edge::Edge,
    frame::Flows,
};
use anyhow::Result;

pub(super) fn measure(setup: &Setup<'_>) -> Result<Table> {
    let mut table = RoundsTable::new(&["packet", "flows"]);
    for case in Case::both_families()? {
        for (way, mode) in [(Way::Tc, "nat"), (Way::Local, "local")] {
            let case = case.by(way);
            for (direction, what) in
                [(Direction::Forward, "client to backend"), (Direction::Reply, "backend to client")]
            {
                for flows in setup.args.flows(65_536) {
                    let mut edge = Edge::load(setup, flows.max(65_536), &case)?;
                    let rounds = edge.open_flows(&case, direction, Flows::first(flows))?;
                    let name = format!("{}, `{mode}`, {what}", case.name());
                    table.push([name.into(), f64::from(flows).into()], &rounds);
                }
            }
        }
    }
    Ok(table.finish(
        "A packet of an open flow through tc",
        "The kernel's helpers update checksums. In mode `local`, `tc_ingress` handles the client's packets, and `tc_egress` the \
         replies of the host's own stack.",
    ))
}
