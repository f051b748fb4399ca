//! Backends behind a bridge of the edge host, like its virtual machines and containers. Offloads have their
//! default settings, so checksums are unfinished, and packets are larger than frames.
//!
//! ```text
//! client eth0 -- front EDGE br0 -- eth0 blue1
//!                               -- eth0 blue2
//!                               -- eth0 green1
//!                               -- eth0 green2
//! ```

use super::{Backend, Lab, Offloads, address::*, addresses, cable, client, forwards, front, machine};
use crate::sandbox::Sandbox;
use anyhow::Result;

pub(super) fn build() -> Result<Lab> {
    let sandbox = Sandbox::create()?;
    let (client, edge) = (client(&sandbox)?, machine(&sandbox, "edge")?);
    forwards(&edge)?;
    front(&client, &edge, Offloads::Default)?;
    edge.ip("link add br0 type bridge forward_delay 0")?;
    edge.ip("link set br0 up")?;
    addresses(&edge, "br0", &[&format!("{BACK_V4}/16"), &format!("{BACK_V6}/64")])?;

    let mut backends = Vec::new();
    for (name, colour, [v4, v6]) in BACKENDS {
        let namespace = machine(&sandbox, name)?;
        cable((&namespace, "eth0"), (&edge, name), Offloads::Default)?;
        edge.ip(&format!("link set {name} master br0"))?;
        addresses(&namespace, "eth0", &[&format!("{v4}/16"), &format!("{v6}/64")])?;
        namespace.ip(&format!("route add default via {BACK_V4}"))?;
        namespace.ip(&format!("-6 route add default via {BACK_V6}"))?;
        backends.push(Backend { name, colour, addresses: [v4, v6], namespace });
    }
    let lab = Lab { client, edge, backends, interfaces: vec!["front", "br0"], others: vec![], sandbox };
    lab.warm_up()?;
    Ok(lab)
}
