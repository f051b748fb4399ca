//! Attaching to XDP, only by bpf_link. aya can also attach by netlink, but such a program could be removed without notice.

use aya::programs::{links::FdLink, xdp::XdpMode};

use super::{hook::Hook, mode::AttachedMode};
use crate::{
    Error, Paths,
    loader::{INGRESS, Loaded},
    net::Interface,
    pins,
};

/// Attaches `ingress` and pins the link.
pub(super) fn attach(
    paths: &Paths,
    loaded: &mut Loaded,
    interface: &Interface,
    mode: AttachedMode,
    xdp_mode: XdpMode,
) -> Result<(), Error> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Attach {
        interface: interface.name.clone(),
        mode: mode.name(),
        hint: hint(mode),
        source,
    };
    let pin = paths.links().join(Hook::Xdp(mode).pin_name(&interface.name));
    let program = loaded.xdp(INGRESS)?;
    let id = program.attach_to_if_index(interface.index, xdp_mode).map_err(|error| failed(error.into()))?;
    let link = program.take_link(id).map_err(|error| failed(error.into()))?;
    // If it is not a link, dropping it detaches the program again.
    let link: FdLink = link.try_into().map_err(|_| failed("the kernel refused a bpf_link for it".into()))?;
    // A pin that is left there belongs to an interface of this name that is gone.
    pins::remove(&pin)?;
    link.pin(&pin).map_err(|error| failed(error.into()))?;
    Ok(())
}

const fn hint(mode: AttachedMode) -> &'static str {
    match mode {
        AttachedMode::Native => {
            "; its driver may not support XDP, or not with the present MTU, number of queues or LRO: see `bgctl doctor`, or use --mode tc"
        }
        _ => "; see `bgctl doctor`, or use --mode tc",
    }
}
