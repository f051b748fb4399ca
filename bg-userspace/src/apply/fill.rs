//! Writing Maglev tables into free pieces of the flat array, on all CPUs: for large configurations this is
//! most of an apply.

use std::sync::atomic::{AtomicUsize, Ordering};

use bg_common::TableSpan;

use crate::{maglev, sys::Mapped};

/// A table to be written.
#[derive(Debug)]
pub(super) struct Fill {
    /// Where; nothing refers to it yet.
    pub(super) span: TableSpan,
    /// Identities of the backends.
    pub(super) ids: Vec<u64>,
    /// Their weights.
    pub(super) weights: Vec<u32>,
    /// Their slots.
    pub(super) slots: Vec<u32>,
}

impl Fill {
    fn write(&self, maglev: &Mapped<[u32; 2]>) {
        let mut table = vec![0; self.span.len as usize];
        maglev::fill(&self.ids, &self.weights, &mut table);
        // By halves of a row: the other half may be another table's, which another thread writes.
        for (entry, backend) in maglev.halves()[self.span.base as usize..].iter().zip(table) {
            entry.store(self.slots[backend as usize], Ordering::Release);
        }
    }
}

/// Writes all of them.
pub(super) fn fill(fills: &[&Fill], maglev: &Mapped<[u32; 2]>) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(fills.len());
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(fill) = fills.get(next.fetch_add(1, Ordering::Relaxed)) {
            fill.write(maglev);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Where no more threads can be made, those that are there do all of it.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
}
