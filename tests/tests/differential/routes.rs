//! Routes and neighbours of the kernel that say the same as the host engine's world.

use crate::packets::{OUT, ROUTED};
use bg_tests::run;

/// The next hop of [`ROUTED`].
pub(crate) const DMAC: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
pub(crate) const SMAC: [u8; 6] = [6, 0, 0, 0, 0, 1];

/// Has the kernel's routes say the same as the host engine's world.
pub(crate) fn lay_routes() -> anyhow::Result<()> {
    run(&format!("ip link add out index {OUT} type veth peer name far"))?;
    run(&format!("ip link set out address {}", text(SMAC)))?;
    for line in ["ip link set lo up", "ip link set far up", "ip link set out up"] {
        run(line)?;
    }
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
    for address in ROUTED {
        run(&format!("ip route replace {address} dev out"))?;
        run(&format!("ip neigh replace {address} lladdr {} dev out nud permanent", text(DMAC)))?;
    }
    Ok(())
}

pub(crate) fn mac([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

pub(crate) fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
