//! Packets of open flows through tc, and those of mode `local`, which tc alone does.

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
        "Checksums are updated by the kernel's helpers. `local`: the client's packets meet `tc_ingress`, the answers of the \
         host's own stack `tc_egress`.",
    ))
}
