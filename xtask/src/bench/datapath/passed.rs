//! Packets that XDP passes on: those that do not concern it, and those that it leaves to tc.

use super::{
    super::{report::Table, test_run::PASS},
    RoundsTable, Setup,
    case::{Case, Direction, Way},
    edge::{Edge, Packets},
    frame::{Flows, Order, Segment, of_type, tagged},
};
use anyhow::Result;
use bg_common::Protocol;
use std::net::SocketAddr;

/// The number of flows for which the table is made. An instance has room for as many by default.
const ROOM: u32 = 1 << 18;
/// The number of open flows.
const OPEN: u32 = 65_536;

/// EtherType of ARP.
const ARP: u16 = 0x0806;

pub(super) fn measure(setup: &Setup<'_>) -> Result<Table> {
    let mut table = RoundsTable::new(&["packet", "sources"]);
    for case in Case::both_families()? {
        let mut edge = Edge::load(setup, ROOM, &case)?;
        edge.establish(&case, Flows::first(OPEN))?;
        for (direction, what) in [(Direction::Forward, "to no VIP"), (Direction::Reply, "from no backend")] {
            for count in setup.args.flows(524_288) {
                let stranger = strangers(&case)?;
                let packets = Packets {
                    verdict: PASS,
                    ..edge.packets(&stranger, direction, Segment::Data, Flows::first(count), Order::Random)?
                };
                let rounds = edge.rounds(&packets)?;
                table.push([format!("{}, {what}", case.name()).into(), f64::from(count).into()], &rounds);
            }
        }
    }
    let case = Case::ipv4(Protocol::Tcp)?;
    let mut edge = Edge::load(setup, ROOM, &case)?;
    edge.establish(&case, Flows::first(OPEN))?;
    let packets = edge.packets(&case, Direction::Forward, Segment::Data, Flows::first(1), Order::Random)?;
    for (name, template) in [
        ("ARP", of_type(&packets.templates[0], ARP)),
        ("IPv4 TCP of a VLAN, open flow: left to tc", tagged(&packets.templates[0])),
    ] {
        let target = packets.target.try_clone()?;
        let packets = Packets { templates: vec![template], verdict: PASS, target, ..packets };
        table.push([name.into(), 1.0.into()], &edge.rounds(&packets)?);
    }
    for case in Case::both_families()? {
        let local = case.by(Way::Local);
        let mut edge = Edge::load(setup, ROOM, &local)?;
        edge.establish(&local, Flows::first(OPEN))?;
        let packets = edge.packets(&case, Direction::Forward, Segment::Data, Flows::first(1), Order::Random)?;
        let rounds = edge.rounds(&Packets { verdict: PASS, ..packets })?;
        table.push([format!("{}, mode `local`, open flow: left to tc", case.name()).into(), 1.0.into()], &rounds);
    }
    Ok(table.finish(
        "Packets that XDP passes on",
        format!(
            "{OPEN} flows are open in a table for {ROOM}. `To no VIP`: from this many addresses and ports to an address of the \
             host. `From no backend`: from a neighbour of the backend to this many addresses and ports."
        ),
    ))
}

/// The packets of the case with a destination that is no VIP, or a source that is no backend.
fn strangers(case: &Case) -> Result<Case> {
    let (vip, backend): (SocketAddr, SocketAddr) = if case.is_ipv4() {
        ("192.0.2.254:443".parse()?, "10.0.1.12:8443".parse()?)
    } else {
        ("[2001:db8:1::fe]:443".parse()?, "[fd00:1::12]:8443".parse()?)
    };
    Ok(Case { vip, backend, ..*case })
}
