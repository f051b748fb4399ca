//! Writing and removing rows of the `services` map, and the fences between these.
//!
//! A program reads a row field by field in the map. The map is preallocated: the next update reuses the element of a row that was
//! replaced or removed at once, although a program on another CPU may still be
//! reading it. So there is a fence after a row is replaced or removed, before the next one is written. Adding a row frees no element.

use std::collections::HashMap;

use bg_common::{ServiceKey, ServiceRow};

/// The rows, and whether a program may still read a freed element.
#[derive(Debug)]
pub(super) struct Rows {
    published: HashMap<ServiceKey, ServiceRow>,
    freed: bool,
}

impl Rows {
    /// A killed call may have freed elements a moment ago.
    pub(super) const fn new(published: HashMap<ServiceKey, ServiceRow>) -> Self {
        Self { published, freed: true }
    }

    /// All rows, by their keys.
    pub(super) const fn published(&self) -> &HashMap<ServiceKey, ServiceRow> {
        &self.published
    }

    /// Whether the next row may be written only after a fence.
    pub(super) fn need_fence(&self) -> bool {
        self.freed
    }

    /// Records a fence.
    pub(super) fn fenced(&mut self) {
        self.freed = false;
    }

    /// Records that a row has been written.
    pub(super) fn written(&mut self, key: ServiceKey, row: ServiceRow) {
        let replaced = self.published.insert(key, row).is_some();
        self.freed |= replaced;
    }

    /// Records that a row has been removed.
    pub(super) fn removed(&mut self, key: &ServiceKey) {
        self.freed |= self.published.remove(key).is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> ServiceKey {
        ServiceKey { port: bg_common::Be16::new(port), ..ServiceKey::default() }
    }

    #[test]
    fn a_row_that_goes_is_waited_for_before_the_next_one_is_written() {
        let row = ServiceRow::default();
        let mut rows = Rows::new(HashMap::from([(key(1), row), (key(2), row)]));
        assert!(rows.need_fence(), "a killed call may have left one");
        rows.fenced();
        rows.written(key(3), row);
        rows.written(key(4), row);
        assert!(!rows.need_fence(), "added rows free nothing");
        rows.written(key(1), row);
        assert!(rows.need_fence(), "replaced");
        rows.fenced();
        rows.removed(&key(2));
        assert!(rows.need_fence(), "removed");
        rows.fenced();
        rows.removed(&key(2));
        rows.written(key(2), row);
        assert!(!rows.need_fence(), "it was not there");
        rows.written(key(2), row);
        assert!(rows.need_fence(), "replaced, though it was new a moment ago");
    }
}
