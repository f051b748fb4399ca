//! A lab that is ready to be switched: servers up, programs attached, the shop's configuration applied.

use crate::{
    bgctl::Bgctl,
    config::{NEIGHBOUR, shop},
    live::Live,
    neighbour::Neighbour,
    server::Server,
    topology::{Fabric, Lab},
};
use anyhow::Result;

/// The lab, its servers, and its bgctl. Dropping it removes everything.
#[derive(Debug)]
pub struct Ready {
    /// The real bgctl on the edge.
    pub bgctl: Bgctl,
    neighbour: Option<Neighbour>,
    _servers: Vec<Server>,
    /// The network.
    pub lab: Lab,
}

impl Ready {
    /// Machines on wires, native XDP, and the shop, with these keys in its deployment.
    pub fn native(deployment_keys: &str) -> Result<Self> {
        let lab = Lab::wire(Fabric::Switch)?;
        let config = shop(&lab, "nat", deployment_keys);
        Self::with(lab, "native", &config)
    }

    /// This lab, with its interfaces attached in this mode and this configuration.
    pub fn with(lab: Lab, attach_mode: &str, config: &str) -> Result<Self> {
        let servers = lab.servers()?;
        Ok(Self { _servers: servers, ..Self::with_others(lab, attach_mode, config)? })
    }

    /// The same, with servers that the caller has started.
    pub fn with_others(lab: Lab, attach_mode: &str, config: &str) -> Result<Self> {
        let bgctl = lab.bgctl()?;
        bgctl.run(&[&["attach", "--mode", attach_mode], lab.interfaces.as_slice()].concat())?;
        bgctl.apply(config)?;
        let has_neighbour = config.contains(&format!("[deployments.{NEIGHBOUR}]"));
        let neighbour = if has_neighbour { Some(Neighbour::open(&lab)?) } else { None };
        Ok(Self { bgctl, neighbour, _servers: Vec::new(), lab })
    }

    /// Proves that nothing that was done to the deployment under test has affected the other one.
    pub fn neighbour_is_undisturbed(&self) -> Result<()> {
        self.neighbour().is_undisturbed(&self.bgctl)
    }

    /// The connections of the deployment that is not under test.
    ///
    /// # Panics
    /// If the configuration has no such deployment.
    pub fn neighbour(&self) -> &Neighbour {
        self.neighbour.as_ref().expect("the configuration is that of `shop`")
    }

    /// The live words, as programs read them.
    pub fn live(&self) -> Result<Live> {
        Live::open(self.lab.sandbox.pin_root())
    }
}
