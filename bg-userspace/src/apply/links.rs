//! Updating the indexes during an apply; see [`crate::index`].

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use bg_common::{Backend, Be16, Colour, Family, MAX_CHAIN, Protocol, ServiceKey, Vip};

use super::{salts::Salts, work::Work};
use crate::{
    Error,
    config::protocol_name,
    index::{self, Endpoint, Full, endpoint},
    maps::{Heads, Tables},
    plan::{Diff, ServiceDiff},
    running::{Running, address_of, service_key},
};

impl Work<'_> {
    /// Links the virtual addresses that a row of `services` names, except those that are to be unlinked.
    pub(super) fn link_vips(&self) -> Result<(), Error> {
        let index = index::vips(&self.heads, &self.tables);
        index.link_missing(&self.wanted_vips()).map_err(|full| vip_full(full, &self.tables))
    }

    /// Links the used backends.
    pub(super) fn link_backends(&self) -> Result<(), Error> {
        let index = index::backends(&self.heads, &self.tables);
        index.link_missing(&index.wanted_backends()).map_err(|full| backend_full(full, &self.tables))
    }

    /// Links what is to be found, and unlinks everything else. Unlinked rows can then be reused.
    pub(super) fn settle_indexes(&mut self) -> Result<(), Error> {
        let wanted_vips = self.wanted_vips();
        let wanted_backends = index::backends(&self.heads, &self.tables).wanted_backends();
        if index::vips(&self.heads, &self.tables).is_settled(&wanted_vips)
            && index::backends(&self.heads, &self.tables).is_settled(&wanted_backends)
        {
            return Ok(());
        }
        self.link_vips()?;
        self.link_backends()?;
        index::vips(&self.heads, &self.tables).unlink_others(&wanted_vips);
        index::backends(&self.heads, &self.tables).unlink_others(&wanted_backends);
        self.wait()
    }

    fn wanted_vips(&self) -> Vec<bool> {
        let mut wanted = index::vips(&self.heads, &self.tables).wanted_vips(self.rows.published());
        self.unlinked.iter().for_each(|row| wanted[*row] = false);
        wanted
    }
}

fn vip_full(full: Full, tables: &Tables) -> Error {
    let vip = tables.services.vips.read(full.row);
    index_full("virtual address", address_of(&vip.key), vip.key.protocol)
}

fn backend_full(full: Full, tables: &Tables) -> Error {
    let backend = tables.backends.read(full.row);
    let family = Family::from_u8(backend.family).unwrap_or(Family::V4);
    index_full("backend", SocketAddr::new(backend.addr.to_ip(family), backend.port.host()), backend.protocol)
}

fn index_full(what: &'static str, address: SocketAddr, protocol: u8) -> Error {
    Error::IndexFull { what, address, protocol: Protocol::from_u8(protocol).map_or("?", protocol_name) }
}

/// Refuses a configuration that would put more rows into one list than packets look at, while old and new rows coexist.
pub(super) fn check(diff: &Diff<'_>, running: &Running, heads: &Heads, tables: &Tables) -> Result<(), Error> {
    let (vips, backends) = (index::vips(heads, tables), index::backends(heads, tables));
    // What is in the lists once everything is removed that killed calls have left, which is done first.
    let left_over: HashSet<u32> = running.left_over.slots.iter().copied().collect();
    let mut published = running.published.clone();
    running.left_over.rows.iter().for_each(|key| {
        published.remove(key);
    });
    let wanted = |wanted: Vec<bool>| (0..wanted.len()).filter(move |row| wanted[*row]);
    let used =
        (0..tables.backends.rows()).filter(|slot| running.used.slots[*slot] && !left_over.contains(&(*slot as u32)));
    let used = used.filter(|slot| index::is_found(&tables.backends.read(*slot)));
    // By head. A row that takes the place of another one with the same address or endpoint makes no list longer.
    let mut vip_lists: HashMap<usize, HashSet<ServiceKey>> = HashMap::new();
    for row in wanted(vips.wanted_vips(&published)) {
        let vip = tables.services.vips.read(row);
        vip_lists.entry(vips.head_of(&vip)).or_default().insert(vip.key);
    }
    let mut backend_lists: HashMap<usize, HashSet<Endpoint>> = HashMap::new();
    for slot in used {
        let backend = tables.backends.read(slot);
        backend_lists.entry(backends.head_of(&backend)).or_default().insert(endpoint(&backend));
    }

    let mut salts = Salts::new(running);
    // Placeholders for the indexes of new services, which are not known yet.
    let mut new_index = u16::MAX / 2;
    for ServiceDiff { wanted: service, current, .. } in
        diff.deployments.iter().flat_map(|deployment| &deployment.services)
    {
        let vip = service_key(service.vip, service.protocol);
        let preview = service.preview.map(|address| service_key(address, service.protocol));
        for key in std::iter::once(vip).chain(preview) {
            let list = vip_lists.entry(vips.head_of(&Vip { key, ..Vip::default() })).or_default();
            list.insert(key);
            if list.len() > MAX_CHAIN as usize {
                return Err(index_full("virtual address", address_of(&key), key.protocol));
            }
        }
        new_index = new_index.saturating_add(u16::from(current.is_none()));
        let salt = salts.take(service, *current, new_index);
        // No list has backends whose replies do not pass this host.
        if service.mode.is_direct() {
            continue;
        }
        for spec in Colour::ALL.into_iter().flat_map(|colour| service.targets(colour).into_owned()) {
            let backend = Backend {
                addr: spec.address.ip().into(),
                port: Be16::new(spec.address.port()),
                family: Family::of(spec.address.ip()) as u8,
                protocol: service.protocol as u8,
                salt,
                ..Backend::default()
            };
            let list = backend_lists.entry(backends.head_of(&backend)).or_default();
            list.insert(endpoint(&backend));
            if list.len() > MAX_CHAIN as usize {
                return Err(index_full("backend", spec.address, backend.protocol));
            }
        }
    }
    Ok(())
}
