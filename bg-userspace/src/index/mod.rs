//! The two indexes in which packets look up virtual addresses and backends: `vip_index` and `backend_index`.
//!
//! A head holds a link to the first row of a list, and each row a link to the next one. A link is a number plus one, or zero at the end.
//! Packets walk the lists while they change, and never miss a row that is to be found:
//!
//! - Linking a row takes two stores, first its own link, then the head. The row is the first in its list, so it does not make
//!   running walks longer.
//! - Unlinking a row takes one store, in the row before it or in the head. Its own link does not change, so a walk that has reached it
//!   continues with the rest of the list.
//! - A row takes the place of another one that packets cannot tell from it, by the same two stores: its own link becomes that of the other
//!   row, and the link to the other row now leads to it. The list does not grow, so that this works in a full list too.
//! - A row is reused a grace period after it was unlinked.
//!
//! After each store, all lists are well-formed. A killed call may leave missing or superfluous rows. The
//! next call compares all rows, and links and unlinks what differs.

mod lists;
mod mapped;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use bg_common::{Backend, MAX_CHAIN, Mode, ServiceKey, ServiceRow, Vip};

pub(crate) use lists::{Endpoint, Listed, Lists, endpoint};
use mapped::MappedLists;

use crate::{
    maps::{Heads, Tables},
    running::{role_of, vip_row},
};

/// A list has no room for this row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full {
    pub(crate) row: usize,
}

/// The index of virtual addresses.
pub(crate) fn vips<'a>(heads: &'a Heads, tables: &'a Tables) -> Index<MappedLists<'a, Vip>> {
    Index(MappedLists { heads: &heads.vips, rows: &tables.services.vips })
}

/// The index of backends.
pub(crate) fn backends<'a>(heads: &'a Heads, tables: &'a Tables) -> Index<MappedLists<'a, Backend>> {
    Index(MappedLists { heads: &heads.backends, rows: &tables.backends })
}

/// Whether all that is to be found is linked, and nothing else.
pub(crate) fn is_settled(heads: &Heads, tables: &Tables, services: &HashMap<ServiceKey, ServiceRow>) -> bool {
    let (vips, backends) = (vips(heads, tables), backends(heads, tables));
    vips.is_settled(&vips.wanted_vips(services)) && backends.is_settled(&backends.wanted_backends())
}

/// Whether packets are to find the row of a backend by their source: those behind a listener belong to it alone, and others reply to clients directly.
pub(crate) fn is_found(backend: &Backend) -> bool {
    backend.identity.in_use != 0 && backend.mode != Mode::Tee as u8 && !backend.is_direct()
}

/// An index, as who changes it sees it.
pub(crate) struct Index<L>(L);

impl<L: Lists> Index<L> {
    /// For each row, the head of the list in which it is.
    pub(crate) fn linked(&self) -> Vec<Option<usize>> {
        let mut linked = vec![None; self.0.rows()];
        for head in 0..self.0.heads() {
            self.0.list(head).for_each(|row| linked[row] = Some(head));
        }
        linked
    }

    /// Whether the rows that are linked are those that are wanted.
    pub(crate) fn is_settled(&self, wanted: &[bool]) -> bool {
        self.linked().iter().zip(wanted).all(|(linked, wanted)| linked.is_some() == *wanted)
    }

    /// Links every row that is wanted and is not linked.
    pub(crate) fn link_missing(&self, wanted: &[bool]) -> Result<(), Full> {
        let linked = self.linked();
        let missing = (0..wanted.len()).filter(|row| wanted[*row] && linked[*row].is_none());
        missing.into_iter().try_for_each(|row| self.link(row))
    }

    /// Of rows with the same identity, one is wanted: the other one is replaced.
    fn link(&self, row: usize) -> Result<(), Full> {
        let new = self.0.row(row);
        let head = self.head_of(&new);
        let list: Vec<usize> = self.0.list(head).collect();
        if let Some(place) = list.iter().position(|other| self.0.row(*other).identity() == new.identity()) {
            self.0.set_next(row, self.0.row(list[place]).next());
            self.lead(head, place.checked_sub(1).map(|before| list[before]), lists::link(row));
            return Ok(());
        }
        if list.len() >= MAX_CHAIN as usize {
            return Err(Full { row });
        }
        self.0.set_next(row, self.0.head(head));
        self.0.set_head(head, lists::link(row));
        Ok(())
    }

    /// Changes the link in a row of the list, or in its head.
    fn lead(&self, head: usize, row: Option<usize>, link: u32) {
        match row {
            Some(row) => self.0.set_next(row, link),
            None => self.0.set_head(head, link),
        }
    }

    /// Unlinks every row that is linked and is not wanted.
    pub(crate) fn unlink_others(&self, wanted: &[bool]) {
        for head in 0..self.0.heads() {
            let mut last_kept = None;
            // Collected, since the list changes on the way.
            for row in self.0.list(head).collect::<Vec<_>>() {
                if wanted[row] {
                    last_kept = Some(row);
                    continue;
                }
                self.lead(head, last_kept, self.0.row(row).next());
            }
        }
    }

    /// The head of a row's list.
    pub(crate) fn head_of(&self, row: &impl Listed) -> usize {
        row.hash() as usize & (self.0.heads() - 1)
    }
}

impl<L: Lists<Row = Vip>> Index<L> {
    /// The virtual addresses that are to be found: those that a row of the `services` map names.
    pub(crate) fn wanted_vips(&self, services: &HashMap<ServiceKey, ServiceRow>) -> Vec<bool> {
        let mut wanted = vec![false; self.0.rows()];
        for (key, service) in services {
            let row = vip_row(service.service, role_of(service));
            if row < wanted.len() && self.0.row(row).key == *key {
                wanted[row] = true;
            }
        }
        wanted
    }
}

impl<L: Lists<Row = Backend>> Index<L> {
    /// The backends that are to be found: of those in use at an endpoint the one that is linked, or else the first.
    pub(crate) fn wanted_backends(&self) -> Vec<bool> {
        let linked = self.linked();
        let mut chosen: HashMap<Endpoint, usize> = HashMap::new();
        for slot in 0..self.0.rows() {
            let backend = self.0.row(slot);
            if !is_found(&backend) {
                continue;
            }
            let chosen = chosen.entry(endpoint(&backend)).or_insert(slot);
            if linked[slot].is_some() && linked[*chosen].is_none() {
                *chosen = slot;
            }
        }
        let mut wanted = vec![false; self.0.rows()];
        chosen.into_values().for_each(|slot| wanted[slot] = true);
        wanted
    }
}
