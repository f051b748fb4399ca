//! The maps by which the programs know interfaces: `egress` says to which interfaces XDP may redirect frames, `interfaces` which
//! frames are for this host.
//!
//! If XDP redirects a frame to an interface that cannot send it, the frame vanishes without a counter. An interface
//! that is attached natively can send it, and so can a tap in any mode (the frame came off a wire, so its checksum is finished).
//! Generic XDP sends like the stack, which works for every interface. But the program does not know whether it runs as native
//! or generic XDP, so interfaces with generic XDP are in `egress` only if there is no native one. Frames to all other interfaces leave
//! by tc.

use std::collections::BTreeMap;

use aya::maps::{Array, MapData, xdp::DevMap};
use bg_common::{MAX_INTERFACES, TAKES_ALL};

use super::{
    mode::AttachedMode,
    pinned::{PinnedLink, mode_of},
};
use crate::{
    Error, Paths,
    maps::typed,
    net::{self, Interface},
};

/// Updates both maps to `links`. Interfaces whose index is too large are left out, and their frames leave by tc.
pub(super) fn refresh(paths: &Paths, links: &[PinnedLink]) -> Result<(), Error> {
    let mut by_index: BTreeMap<u32, Vec<&PinnedLink>> = BTreeMap::new();
    for link in links.iter().filter(|link| link.works()) {
        if let Some(ifindex) = link.ifindex().filter(|ifindex| *ifindex < MAX_INTERFACES) {
            by_index.entry(ifindex).or_default().push(link);
        }
    }
    let modes: BTreeMap<u32, AttachedMode> = by_index
        .into_iter()
        .filter_map(|(ifindex, links)| mode_of(links.iter().copied()).map(|mode| (ifindex, mode)))
        .collect();
    let any_native = modes.values().any(|mode| *mode == AttachedMode::Native);
    let interfaces = net::interfaces()?;
    let mut egress: DevMap<MapData> = typed(paths, "egress")?;
    let mut taken: Array<MapData, u64> = typed(paths, "interfaces")?;
    for interface in &interfaces {
        let Some(mode) = modes.get(&interface.index) else { continue };
        let takes_frames = match mode {
            AttachedMode::Native => true,
            AttachedMode::Generic => !any_native,
            AttachedMode::Tc => is_tap(interface),
        };
        let target = if takes_frames { interface.index } else { NOWHERE };
        egress.set(interface.index, target, None, 0).map_err(Error::map("write", "egress"))?;

        let now = taken.get(&interface.index, 0).map_err(Error::map("read", "interfaces"))?;
        let is_port = is_bridge_port(interface, &interfaces);
        if is_port != (now & TAKES_ALL != 0) {
            let wanted = if is_port { TAKES_ALL } else { now & !TAKES_ALL };
            taken.set(interface.index, wanted, 0).map_err(Error::map("write", "interfaces"))?;
        }
    }
    Ok(())
}

/// The interfaces that have become ports of a bridge, or have ceased to be, since they were attached.
pub(crate) fn changed_ports<'a>(
    paths: &Paths,
    attached: impl Iterator<Item = &'a Interface>,
    all: &[Interface],
) -> Result<Vec<PortChange>, Error> {
    let taken: Array<MapData, u64> = typed(paths, "interfaces")?;
    let mut changes = Vec::new();
    for interface in attached.filter(|interface| interface.index < MAX_INTERFACES) {
        let row = taken.get(&interface.index, 0).map_err(Error::map("read", "interfaces"))?;
        let is_port = is_bridge_port(interface, all);
        if is_port != (row & TAKES_ALL != 0) {
            changes.push(PortChange { interface: interface.name.clone(), is_port });
        }
    }
    Ok(changes)
}

/// An interface that has become a port of a bridge, or has ceased to be, without the programs knowing.
pub(crate) struct PortChange {
    pub(crate) interface: String,
    /// Whether it is a port of a bridge now.
    pub(crate) is_port: bool,
}

/// Removes an interface from the map before its program is detached. The kernel has already removed an interface that is gone.
pub(super) fn forget(paths: &Paths, ifindex: u32) -> Result<(), Error> {
    if ifindex >= MAX_INTERFACES {
        return Ok(());
    }
    let mut map: DevMap<MapData> = typed(paths, "egress")?;
    map.set(ifindex, NOWHERE, None, 0).map_err(Error::map("write", "egress"))
}

fn is_bridge_port(interface: &Interface, all: &[Interface]) -> bool {
    let master = all.iter().find(|other| interface.master == Some(other.index));
    master.is_some_and(|master| master.kind.as_deref() == Some("bridge"))
}

/// Whether it is a tap: a `tun` device that carries Ethernet frames.
fn is_tap(interface: &Interface) -> bool {
    interface.kind.as_deref() == Some("tun") && interface.arphrd == net::ARPHRD_ETHER
}

/// The interface index that empties an entry.
const NOWHERE: u32 = 0;
