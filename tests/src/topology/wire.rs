//! Separate machines on wires. Checksums are finished, as off any network card.
//!
//! ```text
//! client eth0 -- front EDGE back -- uplink SWITCH or ROUTER -- eth0 blue1
//!                                                           -- eth0 blue2
//!                                                           -- eth0 green1
//!                                                           -- eth0 green2
//! ```

use super::{Backend, Fabric, Lab, Offloads, address::*, addresses, cable, client, forwards, front, machine};
use crate::{netns::Namespace, sandbox::Sandbox};
use anyhow::Result;
use std::net::IpAddr;

/// The address of a router on each port towards a backend. A gateway does not need its own subnet.
const GATEWAY_V4: &str = "169.254.0.1";
const GATEWAY_V6: &str = "fe80::1";

pub(super) fn build(fabric: Fabric) -> Result<Lab> {
    let sandbox = Sandbox::create()?;
    let (client, edge) = (client(&sandbox)?, machine(&sandbox, "edge")?);
    let middle = machine(&sandbox, "middle")?;
    forwards(&edge)?;
    front(&client, &edge, Offloads::Wire)?;
    cable((&edge, "back"), (&middle, "uplink"), Offloads::Wire)?;

    match fabric {
        Fabric::Switch => {
            addresses(&edge, "back", &[&format!("{BACK_V4}/16"), &format!("{BACK_V6}/64")])?;
            middle.ip("link add br0 type bridge forward_delay 0")?;
            middle.ip("link set br0 up")?;
            middle.ip("link set uplink master br0")?;
        }
        Fabric::Router => {
            forwards(&middle)?;
            addresses(&edge, "back", &[&format!("{BACK_V4}/30"), &format!("{BACK_V6}/126")])?;
            addresses(&middle, "uplink", &[&format!("{ROUTER_V4}/30"), &format!("{ROUTER_V6}/126")])?;
            middle.ip(&format!("route add default via {BACK_V4}"))?;
            middle.ip(&format!("-6 route add default via {BACK_V6}"))?;
        }
    }

    let mut backends = Vec::new();
    for (name, colour, [v4, v6]) in BACKENDS {
        let namespace = machine(&sandbox, name)?;
        cable((&namespace, "eth0"), (&middle, name), Offloads::Wire)?;
        match fabric {
            Fabric::Switch => neighbour(&namespace, &middle, name, [v4, v6])?,
            Fabric::Router => {
                addresses(&middle, name, &[&format!("{GATEWAY_V4}/32"), &format!("{GATEWAY_V6}/64")])?;
                middle.ip(&format!("route add {v4} dev {name}"))?;
                middle.ip(&format!("-6 route add {v6} dev {name}"))?;
                addresses(&namespace, "eth0", &[&format!("{v4}/32"), &format!("{v6}/128")])?;
                namespace.ip(&format!("route add default via {GATEWAY_V4} dev eth0 onlink"))?;
                namespace.ip(&format!("-6 route add default via {GATEWAY_V6} dev eth0 onlink"))?;
                edge.ip(&format!("route add {v4} via {ROUTER_V4}"))?;
                edge.ip(&format!("-6 route add {v6} via {ROUTER_V6}"))?;
            }
        }
        backends.push(Backend { name, colour, addresses: [v4, v6], namespace });
    }
    let lab = Lab { client, edge, backends, interfaces: vec!["front", "back"], others: vec![middle], sandbox };
    lab.warm_up()?;
    Ok(lab)
}

/// A backend in the same network as the edge. Its cable ends in the switch.
fn neighbour(namespace: &Namespace, switch: &Namespace, port: &str, [v4, v6]: [IpAddr; 2]) -> Result<()> {
    switch.ip(&format!("link set {port} master br0"))?;
    addresses(namespace, "eth0", &[&format!("{v4}/16"), &format!("{v6}/64")])?;
    namespace.ip(&format!("route add default via {BACK_V4}"))?;
    namespace.ip(&format!("-6 route add default via {BACK_V6}"))?;
    Ok(())
}
