//! Backends with a fault.

use crate::topology::{Backend, Lab};
use anyhow::Result;
use bg_common::Colour;

/// What is wrong with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Their port is closed.
    Closed,
    /// They are silent.
    Silent,
    /// They lose 5 % of what they send.
    Lossy,
}

/// Backends with a fault, until this is dropped.
#[derive(Debug)]
pub struct Faulty<'a> {
    lab: &'a Lab,
    colours: &'a [Colour],
}

impl<'a> Faulty<'a> {
    /// The backends of green.
    pub fn green(lab: &'a Lab, fault: Fault) -> Result<Self> {
        Self::new(lab, &[Colour::Green], fault)
    }

    /// The backends of these colours.
    pub fn new(lab: &'a Lab, colours: &'a [Colour], fault: Fault) -> Result<Self> {
        let faulty = Self { lab, colours };
        for backend in faulty.backends() {
            let namespace = &backend.namespace;
            namespace.run("nft add table inet fault")?;
            if fault == Fault::Lossy {
                // Not every kernel has netem.
                namespace.run("nft add chain inet fault output { type filter hook output priority 0 ; }")?;
                namespace.run("nft add rule inet fault output numgen random mod 100 < 5 drop")?;
                continue;
            }
            namespace.run("nft add chain inet fault input { type filter hook input priority 0 ; }")?;
            for address in backend.addresses {
                let family = if address.is_ipv4() { "ip" } else { "ip6" };
                let what = if fault == Fault::Closed { "tcp dport 8080 reject with tcp reset" } else { "drop" };
                namespace.run(&format!("nft add rule inet fault input {family} daddr {address} {what}"))?;
            }
        }
        Ok(faulty)
    }

    fn backends(&self) -> impl Iterator<Item = &'a Backend> + use<'a> {
        let colours = self.colours;
        self.lab.backends.iter().filter(move |backend| colours.contains(&backend.colour))
    }
}

impl Drop for Faulty<'_> {
    fn drop(&mut self) {
        for backend in self.backends() {
            // Zones share one namespace.
            let _ = backend.namespace.run("nft delete table inet fault");
        }
    }
}
