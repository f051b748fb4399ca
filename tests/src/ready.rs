//! A lab that is ready to be switched: servers up, programs attached, the shop's configuration applied.

use crate::{
    bgctl::Bgctl,
    config::shop,
    live::Live,
    server::Server,
    topology::{Fabric, Lab},
};
use anyhow::Result;

/// The lab, what runs in it, and its bgctl. Dropped, it is gone.
#[derive(Debug)]
pub struct Ready {
    /// The real bgctl on the edge.
    pub bgctl: Bgctl,
    _servers: Vec<Server>,
    /// The network.
    pub lab: Lab,
}

impl Ready {
    /// Machines on wires, native XDP, and the shop with these keys for its deployment.
    pub fn native(deployment_keys: &str) -> Result<Self> {
        let lab = Lab::wire(Fabric::Switch)?;
        let config = shop(&lab, "nat", deployment_keys);
        Self::with(lab, "native", &config)
    }

    /// This lab, its interfaces attached in this mode, with this configuration.
    pub fn with(lab: Lab, attach_mode: &str, config: &str) -> Result<Self> {
        let servers = lab.servers()?;
        let bgctl = lab.bgctl()?;
        bgctl.run(&[&["attach", "--mode", attach_mode], lab.interfaces.as_slice()].concat())?;
        bgctl.apply(config)?;
        Ok(Self { bgctl, _servers: servers, lab })
    }

    /// The live words, as the programs read them.
    pub fn live(&self) -> Result<Live> {
        Live::open(self.lab.sandbox.pin_root())
    }
}
