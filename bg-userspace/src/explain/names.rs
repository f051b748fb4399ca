//! Names for the numbers in a step.

use std::net::SocketAddr;

use bg_common::{Backend, Colour, Family, Protocol, Role, ServiceKey};

use crate::{
    Error, Paths,
    config::protocol_name,
    maps::{Tables, Words},
    net::Interface,
    running::{address_of, text},
};

/// The maps of the instance, and the interfaces of the host.
pub(super) struct Names<'a> {
    pub(super) words: &'a Words,
    pub(super) tables: Tables,
    pub(super) interfaces: Vec<Interface>,
}

/// A virtual address.
pub(super) struct VipName {
    pub(super) address: SocketAddr,
    pub(super) protocol: Protocol,
    pub(super) role: Role,
    pub(super) service: String,
    pub(super) deployment: String,
}

/// A backend.
pub(super) struct BackendName {
    pub(super) address: SocketAddr,
    pub(super) colour: Colour,
    pub(super) service: String,
    pub(super) deployment: String,
}

impl<'a> Names<'a> {
    pub(super) fn open(paths: &Paths, words: &'a Words, interfaces: Vec<Interface>) -> Result<Self, Error> {
        Ok(Self { words, tables: Tables::open(paths)?, interfaces })
    }

    pub(super) fn vip(&self, row: u64) -> VipName {
        let key: ServiceKey = self.tables.services.vips.read(row as usize).key;
        let published = self.tables.services.rows.get(&key, 0);
        VipName {
            address: address_of(&key),
            protocol: Protocol::from_u8(key.protocol).unwrap_or(Protocol::Tcp),
            role: if row % 2 == Role::Preview as u64 { Role::Preview } else { Role::Vip },
            service: self.service(row / 2),
            deployment: published.map_or_else(|_| String::new(), |row| self.deployment(row.deployment.into())),
        }
    }

    pub(super) fn backend(&self, slot: u64) -> BackendName {
        let row: Backend = self.tables.backends.read(slot as usize);
        let family = Family::from_u8(row.family).unwrap_or(Family::V4);
        BackendName {
            address: SocketAddr::new(row.addr.to_ip(family), row.port.host()),
            colour: Colour::from_u8(row.colour),
            service: self.service(row.service.into()),
            deployment: self.deployment(row.deployment.into()),
        }
    }

    pub(super) fn service(&self, index: u64) -> String {
        text(&self.tables.services.info.read(index as usize).name)
    }

    pub(super) fn deployment(&self, index: u64) -> String {
        text(&self.words.deployments.read(index as usize).name)
    }

    pub(super) fn interface(&self, ifindex: u64) -> String {
        let named = self.interfaces.iter().find(|interface| u64::from(interface.index) == ifindex);
        named.map_or_else(|| format!("interface {ifindex}"), |interface| interface.name.clone())
    }
}

impl VipName {
    /// Address, port and protocol.
    pub(super) fn endpoint(&self) -> String {
        format!("{}/{}", self.address, protocol_name(self.protocol))
    }
}
