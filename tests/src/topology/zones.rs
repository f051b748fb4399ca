//! Zones of one operating system. Both environments are addresses of the edge host itself.
//!
//! ```text
//! client eth0 -- front EDGE, whose loopback has the addresses of blue1, blue2, green1, green2
//! ```

use super::{Backend, Lab, Offloads, address::BACKENDS, addresses, client, front, machine};
use crate::sandbox::Sandbox;
use anyhow::Result;

pub(super) fn build(offloads: Offloads) -> Result<Lab> {
    let sandbox = Sandbox::create()?;
    let (client, edge) = (client(&sandbox)?, machine(&sandbox, "edge")?);
    front(&client, &edge, offloads)?;
    let mut backends = Vec::new();
    for (name, colour, [v4, v6]) in BACKENDS {
        addresses(&edge, "lo", &[&format!("{v4}/32"), &format!("{v6}/128")])?;
        backends.push(Backend { name, colour, addresses: [v4, v6], namespace: edge.clone() });
    }
    let lab = Lab { client, edge, backends, interfaces: vec!["front"], others: vec![], sandbox };
    lab.warm_up()?;
    Ok(lab)
}
