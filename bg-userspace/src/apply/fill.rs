//! Writing Maglev tables into free pieces of the flat array, on all CPUs. For large configurations this is
//! most of an apply.

use std::sync::atomic::{AtomicUsize, Ordering};

use bg_common::{NO_BACKEND, TableSpan};

use crate::{maglev, sys::Mapped};

/// A table that is to be written.
#[derive(Debug)]
pub(super) struct Fill {
    /// Its place, to which nothing refers yet.
    pub(super) span: TableSpan,
    /// Identities of the backends.
    pub(super) ids: Vec<u64>,
    /// The weights of the backends.
    pub(super) weights: Vec<u32>,
    /// The parts of their weights that their health leaves them, in basis points.
    pub(super) shares: Vec<u16>,
    /// Whether new flows are refused, because all backends are down.
    pub(super) is_refused: bool,
    /// The slots of the backends.
    pub(super) slots: Vec<u32>,
}

impl Fill {
    fn write(&self, maglev: &Mapped<[u32; 2]>) {
        let mut table = vec![0; self.span.len as usize];
        maglev::fill(&self.ids, &self.weights, &mut table);
        maglev::thin(&self.ids, &self.shares, &mut table);
        // Half a row at a time, because the other half may belong to another table, which another thread writes.
        for (entry, backend) in maglev.halves()[self.span.base as usize..].iter().zip(table) {
            let slot = if self.is_refused { NO_BACKEND } else { self.slots[backend as usize] };
            entry.store(slot, Ordering::Release);
        }
    }
}

/// Writes all tables.
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
            // If no more threads can be created, the present ones do all the work.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
}
