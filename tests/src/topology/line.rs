//! A client, an edge and one machine with backends on two cables, with nothing between them that would be measured too.
//!
//! ```text
//! client eth0 -- front EDGE back -- eth0 backends, which holds the addresses of blue1 and green1
//! ```

use super::{Backend, Lab, Offloads, address::*, addresses, cable, client, forwards, front, machine};
use crate::sandbox::Sandbox;
use anyhow::Result;

pub(super) fn build(offloads: Offloads) -> Result<Lab> {
    let sandbox = Sandbox::create()?;
    let (client, edge, namespace) = (client(&sandbox)?, machine(&sandbox, "edge")?, machine(&sandbox, "backends")?);
    forwards(&edge)?;
    front(&client, &edge, offloads)?;
    cable((&edge, "back"), (&namespace, "eth0"), offloads)?;
    addresses(&edge, "back", &[&format!("{BACK_V4}/16"), &format!("{BACK_V6}/64")])?;
    let mut backends = Vec::new();
    for (name, colour, [v4, v6]) in BACKENDS.into_iter().filter(|(name, ..)| name.ends_with('1')) {
        addresses(&namespace, "eth0", &[&format!("{v4}/16"), &format!("{v6}/64")])?;
        backends.push(Backend { name, colour, addresses: [v4, v6], namespace: namespace.clone() });
    }
    namespace.ip(&format!("route add default via {BACK_V4}"))?;
    namespace.ip(&format!("-6 route add default via {BACK_V6}"))?;
    let lab = Lab { client, edge, backends, interfaces: vec!["front", "back"], others: vec![], sandbox };
    lab.warm_up()?;
    Ok(lab)
}
