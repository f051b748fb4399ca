//! Which interfaces XDP may redirect frames to.
//!
//! A frame that native XDP redirects to an interface without native XDP vanishes, and no counter of ours sees
//! it. So an interface is in `egress` if it is attached natively. Generic XDP sends by the ordinary way, which
//! every interface takes; but the program does not know which of the two runs it, so interfaces with
//! generic XDP are in `egress` only if there is no native one.

use aya::maps::{MapData, xdp::DevMap};
use bg_common::MAX_INTERFACES;

use super::{AttachedMode, PinnedLink};
use crate::{Error, Paths, maps::typed};

/// Makes `egress` tell what `links` are. Interfaces whose index does not fit are left out: their frames go by
/// the host's stack.
pub(super) fn refresh(paths: &Paths, links: &[PinnedLink]) -> Result<(), Error> {
    let alive = || links.iter().filter(|link| link.works());
    let of_mode = |mode| alive().filter(move |link| link.hook.mode() == Some(mode)).filter_map(PinnedLink::ifindex);
    let mut wanted: Vec<u32> = of_mode(AttachedMode::Native).collect();
    if wanted.is_empty() {
        wanted = of_mode(AttachedMode::Generic).collect();
    }
    let mut map: DevMap<MapData> = typed(paths, "egress")?;
    for ifindex in alive().filter_map(PinnedLink::ifindex).filter(|ifindex| *ifindex < MAX_INTERFACES) {
        let target = if wanted.contains(&ifindex) { ifindex } else { NOWHERE };
        map.set(ifindex, target, None, 0).map_err(Error::map("write", "egress"))?;
    }
    Ok(())
}

/// Takes an interface out before its program goes. One that is gone was taken out by the kernel.
pub(super) fn forget(paths: &Paths, ifindex: u32) -> Result<(), Error> {
    if ifindex >= MAX_INTERFACES {
        return Ok(());
    }
    let mut map: DevMap<MapData> = typed(paths, "egress")?;
    map.set(ifindex, NOWHERE, None, 0).map_err(Error::map("write", "egress"))
}

/// An interface index that empties an entry.
const NOWHERE: u32 = 0;
