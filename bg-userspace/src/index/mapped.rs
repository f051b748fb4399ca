//! Lists in the mapped memory of an instance.

use std::sync::atomic::Ordering;

use super::lists::{Listed, Lists};
use crate::sys::Mapped;

/// Heads in mapped memory, and the rows of their lists.
pub(crate) struct MappedLists<'a, T> {
    pub(super) heads: &'a Mapped<[u32; 2]>,
    pub(super) rows: &'a Mapped<T>,
}

impl<T: Listed> Lists for MappedLists<'_, T> {
    type Row = T;

    fn heads(&self) -> usize {
        self.heads.halves().len()
    }

    fn head(&self, head: usize) -> u32 {
        self.heads.halves()[head].load(Ordering::Relaxed)
    }

    fn set_head(&self, head: usize, link: u32) {
        self.heads.halves()[head].store(link, Ordering::Release);
    }

    fn rows(&self) -> usize {
        self.rows.rows()
    }

    fn row(&self, row: usize) -> T {
        self.rows.read(row)
    }

    fn set_next(&self, row: usize, link: u32) {
        // One word. Its other half does not change, because only user space writes it.
        self.rows.update(row, |row| *row.next_mut() = link);
    }
}
