//! The addresses of a whole file, to find those that two services claim.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
};

use bg_common::Protocol;

use super::{error::Expected, value::Notes};

/// The addresses of the whole file: VIPs and preview addresses, which must be unique, and backends, which must not be among
/// them.
#[derive(Default)]
pub(super) struct Taken {
    /// The kind of an address and the offset of its first occurrence, by address and protocol.
    claimed: HashMap<(SocketAddr, Protocol), (&'static str, usize)>,
    backends: Vec<Used>,
    places: Vec<String>,
}

/// A backend of a service.
struct Used {
    address: SocketAddr,
    protocol: Protocol,
    offset: usize,
    place: usize,
}

impl Taken {
    /// Adds a VIP or preview address. Returns the offset of an earlier occurrence.
    pub(super) fn claim(
        &mut self,
        address: SocketAddr,
        protocol: Protocol,
        what: &'static str,
        offset: usize,
    ) -> Option<usize> {
        match self.claimed.entry((address, protocol)) {
            Entry::Occupied(first) => Some(first.get().1),
            Entry::Vacant(free) => {
                free.insert((what, offset));
                None
            }
        }
    }

    /// Adds a backend.
    pub(super) fn used(&mut self, address: SocketAddr, protocol: Protocol, offset: usize, place: &str) {
        if self.places.last().is_none_or(|last| last != place) {
            self.places.push(place.to_owned());
        }
        self.backends.push(Used { address, protocol, offset, place: self.places.len() - 1 });
    }

    /// Notes each backend that is an address of another service, after all addresses are known.
    pub(super) fn check(&self, notes: &mut Notes<'_>) {
        for backend in &self.backends {
            if let Some((what, offset)) = self.claimed.get(&(backend.address, backend.protocol)) {
                let kind = Expected::Server { got: backend.address, what, at: notes.position(*offset) };
                notes.note(&(backend.offset..backend.offset), &self.places[backend.place], kind);
            }
        }
    }
}
