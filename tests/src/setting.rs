//! The settings in which bgctl is tested: a network, where bgctl is attached in it, and how packets reach the backends.

use crate::{
    config::shop,
    ready::Ready,
    topology::{Fabric, Lab, Offloads},
};
use anyhow::Result;

/// A network, and how bgctl is used in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Machines on wires, behind a switch, and native XDP.
    Native,
    /// Machines on wires, behind a router, and generic XDP.
    Generic,
    /// Neighbours like virtual machines, behind a bridge of the edge, and tc.
    Bridge,
    /// Addresses of the edge itself, and tc.
    Zones,
}

impl Setting {
    /// The network.
    pub fn lab(self) -> Result<Lab> {
        match self {
            Self::Native => Lab::wire(Fabric::Switch),
            Self::Generic => Lab::wire(Fabric::Router),
            Self::Bridge => Lab::bridge(),
            Self::Zones => Lab::zones(Offloads::Default),
        }
    }

    /// The mode in which bgctl is attached.
    pub const fn attach_mode(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Bridge | Self::Zones => "tc",
        }
    }

    /// The mode of services.
    pub const fn service_mode(self) -> &'static str {
        match self {
            Self::Zones => "local",
            _ => "nat",
        }
    }

    /// The network with servers, and with bgctl attached and configured: the shop, with these keys in its deployment.
    pub fn ready(self, deployment_keys: &str) -> Result<Ready> {
        self.ready_with(|lab, mode| Ok(shop(lab, mode, deployment_keys)))
    }

    /// The same, with the configuration that `prepare` returns for the lab and the mode of services.
    pub fn ready_with(self, prepare: impl FnOnce(&Lab, &str) -> Result<String>) -> Result<Ready> {
        let lab = self.lab()?;
        let config = prepare(&lab, self.service_mode())?;
        Ready::with(lab, self.attach_mode(), &config)
    }

    /// The same with the shop, whose backends drop segments of connections that they do not know.
    pub fn ready_behind_firewalls(self) -> Result<Ready> {
        self.ready_with(|lab, mode| lab.guard_backends().map(|()| shop(lab, mode, "")))
    }
}

/// Makes tests of a function that takes a [`Setting`](crate::Setting): one in each of them.
#[macro_export]
macro_rules! in_each_setting {
    ($test:ident) => {
        mod $test {
            use $crate::Setting;

            #[test]
            fn with_native_xdp() -> anyhow::Result<()> {
                super::$test(Setting::Native)
            }

            #[test]
            fn with_generic_xdp_behind_a_router() -> anyhow::Result<()> {
                super::$test(Setting::Generic)
            }

            #[test]
            fn with_tc_before_a_bridge() -> anyhow::Result<()> {
                super::$test(Setting::Bridge)
            }

            #[test]
            fn between_zones_with_tc() -> anyhow::Result<()> {
                super::$test(Setting::Zones)
            }
        }
    };
}
