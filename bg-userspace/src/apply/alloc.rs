//! Allocation of indexes, backend slots, and pieces of the flat Maglev array.
//!
//! Callers free something only after a grace period, when no program can still use it.

use bg_common::TableSpan;

/// The free ones of numbered items.
#[derive(Debug)]
pub(super) struct Indexes {
    used: Vec<bool>,
    free: usize,
    /// No item below this one is free.
    next: usize,
}

impl Indexes {
    pub(super) fn new(used: Vec<bool>) -> Self {
        let free = used.iter().filter(|used| !**used).count();
        Self { used, free, next: 0 }
    }

    pub(super) fn free(&self) -> usize {
        self.free
    }

    /// Takes the lowest free item.
    pub(super) fn take(&mut self) -> Option<usize> {
        let index = self.next + self.used[self.next..].iter().position(|used| !used)?;
        self.used[index] = true;
        self.free -= 1;
        self.next = index + 1;
        Some(index)
    }

    /// Frees it again.
    pub(super) fn give(&mut self, index: usize) {
        if std::mem::replace(&mut self.used[index], false) {
            self.free += 1;
            self.next = self.next.min(index);
        }
    }
}

/// Free pieces of the Maglev array.
#[derive(Debug)]
pub(super) struct Spans {
    /// Ordered by base. No two pieces are adjacent.
    free: Vec<TableSpan>,
}

impl Spans {
    /// All of `capacity` except the used spans. Both rows of a service name the same spans.
    pub(super) fn new(mut used: Vec<TableSpan>, capacity: u32) -> Self {
        used.sort_by_key(|span| span.base);
        let mut free = Vec::new();
        let mut base = 0;
        for span in used {
            if span.base > base {
                free.push(TableSpan { base, len: span.base - base });
            }
            base = base.max(span.base.saturating_add(span.len));
        }
        if capacity > base {
            free.push(TableSpan { base, len: capacity - base });
        }
        Self { free }
    }

    /// The length of the longest free piece.
    pub(super) fn longest(&self) -> u32 {
        self.free.iter().map(|span| span.len).max().unwrap_or(0)
    }

    /// Takes the first piece that is long enough.
    pub(super) fn take(&mut self, len: u32) -> Option<TableSpan> {
        let position = self.free.iter().position(|span| span.len >= len)?;
        let piece = &mut self.free[position];
        let taken = TableSpan { base: piece.base, len };
        piece.base += len;
        piece.len -= len;
        if piece.len == 0 {
            self.free.remove(position);
        }
        Some(taken)
    }

    /// Frees it again.
    pub(super) fn give(&mut self, span: TableSpan) {
        let position = self.free.partition_point(|free| free.base < span.base);
        self.free.insert(position, span);
        let touches = |a: TableSpan, b: TableSpan| a.base + a.len == b.base;
        if position + 1 < self.free.len() && touches(self.free[position], self.free[position + 1]) {
            self.free[position].len += self.free.remove(position + 1).len;
        }
        if position > 0 && touches(self.free[position - 1], self.free[position]) {
            self.free[position - 1].len += self.free.remove(position).len;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn span(base: u32, len: u32) -> TableSpan {
        TableSpan { base, len }
    }

    #[test]
    fn what_no_row_names_is_free() {
        // The preview's row names the same span as the VIP's.
        let mut spans = Spans::new(vec![span(10, 5), span(0, 7), span(10, 5)], 20);
        assert_eq!(spans.free, [span(7, 3), span(15, 5)]);
        assert_eq!(spans.take(4), Some(span(15, 4)));
        assert_eq!(spans.take(4), None);
        assert_eq!(spans.longest(), 3);
        spans.give(span(10, 5));
        assert_eq!(spans.free, [span(7, 8), span(19, 1)]);
        spans.give(span(15, 4));
        assert_eq!(spans.free, [span(7, 13)]);
    }

    #[test]
    fn an_index_is_given_to_one_at_a_time() {
        let mut indexes = Indexes::new(vec![true, false, true, false]);
        assert_eq!((indexes.take(), indexes.take(), indexes.take()), (Some(1), Some(3), None));
        indexes.give(0);
        indexes.give(0);
        assert_eq!((indexes.free(), indexes.take(), indexes.take()), (1, Some(0), None));
    }

    proptest! {
        #[test]
        fn no_entry_is_given_twice(lengths in prop::collection::vec(1u32..40, 1..60), returned in prop::collection::vec(any::<bool>(), 60)) {
            let mut spans = Spans::new(Vec::new(), 500);
            let mut held: Vec<TableSpan> = Vec::new();
            for (len, give) in lengths.into_iter().zip(returned) {
                if let Some(span) = spans.take(len) {
                    prop_assert!(span.base + span.len <= 500);
                    prop_assert!(held.iter().all(|other| other.base + other.len <= span.base || span.base + span.len <= other.base));
                    held.push(span);
                }
                if give && !held.is_empty() {
                    spans.give(held.swap_remove(held.len() / 2));
                }
            }
            held.drain(..).for_each(|span| spans.give(span));
            prop_assert_eq!(spans.free, [span(0, 500)]);
        }
    }
}
