//! The flow tables one entry at a time: what an apply ends of them. Reading them as a whole is in `maps`.

use std::{net::IpAddr, os::fd::AsFd as _};

use aya::maps::{HashMap, MapData, MapError};
use bg_common::{Addr, Family, Flow, FlowKey4, FlowKey6, FlowRole};

use crate::{Error, Paths, maps::typed, sys::lookup_batch};

/// A five-tuple of either family.
pub(crate) trait FlowKey: aya::Pod + bytemuck::Pod {
    /// The client, which sends the forward direction and gets the reply.
    fn client(&self, flow: &Flow) -> IpAddr;
}

impl FlowKey for FlowKey4 {
    fn client(&self, flow: &Flow) -> IpAddr {
        let words = if flow.role & FlowRole::REPLY == 0 { self.src } else { self.dst };
        Addr([words, 0, 0, 0]).to_ip(Family::V4)
    }
}

impl FlowKey for FlowKey6 {
    fn client(&self, flow: &Flow) -> IpAddr {
        let address = if flow.role & FlowRole::REPLY == 0 { self.src } else { self.dst };
        address.to_ip(Family::V6)
    }
}

/// One flow table, to be read and thinned out.
pub(crate) struct FlowTable<K: FlowKey> {
    name: &'static str,
    map: HashMap<MapData, K, Flow>,
    fd: MapData,
}

impl<K: FlowKey> FlowTable<K> {
    pub(crate) fn open(paths: &Paths, name: &'static str) -> Result<Self, Error> {
        Ok(Self {
            name,
            map: typed(paths, name)?,
            fd: MapData::from_pin(paths.map(name)).map_err(Error::map("open", name))?,
        })
    }

    /// Calls `each` with every entry.
    pub(crate) fn each(&self, each: impl FnMut(K, Flow)) -> Result<(), Error> {
        lookup_batch(self.fd.fd().as_fd(), each).map_err(Error::map("read", self.name))
    }

    /// The entry of a key, if there is one.
    pub(crate) fn flow(&self, key: &K) -> Result<Option<Flow>, Error> {
        match self.map.get(key, 0) {
            Err(MapError::KeyNotFound) => Ok(None),
            result => result.map(Some).map_err(Error::map("read", self.name)),
        }
    }

    /// Removes an entry, if it is there.
    pub(crate) fn remove(&mut self, key: &K) -> Result<(), Error> {
        unless_missing(self.map.remove(key)).map_err(Error::map("write", self.name))
    }
}

/// What was to be removed may be gone already.
pub(crate) fn unless_missing(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}
