//! Rows of the `services` map on their way in and out, and when a fence must come between two of them.
//!
//! A program reads a row field by field where it stands. The map is preallocated: the element of a row that was
//! replaced or removed is used by the next update at once, though a program on another CPU may still be
//! reading it. So a fence comes after a row that goes, before the next one is written. A row that
//! is only added frees no element.

use std::collections::HashMap;

use bg_common::{ServiceKey, ServiceRow};

/// The rows, and whether elements have been freed that a program may still read.
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

    /// Whether a fence must come before the next row is written.
    pub(super) fn need_fence(&self) -> bool {
        self.freed
    }

    /// A fence has come.
    pub(super) fn fenced(&mut self) {
        self.freed = false;
    }

    /// A row has been written.
    pub(super) fn written(&mut self, key: ServiceKey, row: ServiceRow) {
        let replaced = self.published.insert(key, row).is_some();
        self.freed |= replaced;
    }

    /// A row has been removed.
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
