//! Lists that change while they are walked.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use bg_common::{Be16, Identity};
use proptest::prelude::*;

use super::*;
use crate::sys::Mapped;

fn backend(port: u16, salt: u16) -> Backend {
    Backend { port: Be16::new(port), salt, family: 4, protocol: 6, ..Backend::default() }
}

/// What a program finds: whether one of the first rows that it meets from here on is at this endpoint.
fn finds<L: Lists<Row = Backend>>(lists: &L, mut link: u32, wanted: Endpoint) -> bool {
    for _ in 0..MAX_CHAIN {
        let Some(row) = link.checked_sub(1) else { return false };
        let row = lists.row(row as usize);
        if endpoint(&row) == wanted {
            return true;
        }
        link = row.next;
    }
    false
}

/// Thrown by a store that is not made any more.
struct Killed;

/// Memory that looks after each store at all walks that may be under way.
struct Memory {
    heads: RefCell<Vec<u32>>,
    rows: RefCell<Vec<Backend>>,
    stores_left: Cell<usize>,
    /// Endpoints that must be found all the while.
    promised: RefCell<Vec<Endpoint>>,
    /// Walks under way: the link that is followed next, and what is looked for.
    walks: RefCell<Vec<(u32, Endpoint)>>,
}

impl Memory {
    fn new(heads: usize, rows: usize) -> Self {
        Self {
            heads: RefCell::new(vec![0; heads]),
            rows: RefCell::new(vec![Backend::default(); rows]),
            stores_left: Cell::new(usize::MAX),
            promised: RefCell::default(),
            walks: RefCell::default(),
        }
    }

    fn index(&self) -> Index<&Self> {
        Index(self)
    }

    fn before_a_store(&self) {
        match self.stores_left.get().checked_sub(1) {
            Some(left) => self.stores_left.set(left),
            None => std::panic::panic_any(Killed),
        }
    }

    /// All walks under way find what they look for; and others begin, and have come to any row of their list.
    fn look(&self) {
        for (link, wanted) in self.walks.borrow().iter() {
            assert!(finds(&self, *link, *wanted), "a walk at {link} misses {wanted:?}");
        }
        for wanted in self.promised.borrow().iter() {
            let mut link = self.head_link(*wanted);
            assert!(finds(&self, link, *wanted), "a new walk misses {wanted:?}");
            while let Some(row) = link.checked_sub(1) {
                self.walks.borrow_mut().push((link, *wanted));
                if endpoint(&self.row(row as usize)) == *wanted {
                    break;
                }
                link = self.row(row as usize).next;
            }
        }
    }

    fn head_link(&self, (addr, port, family, protocol, salt): Endpoint) -> u32 {
        let row = Backend { addr, port, family, protocol, salt, ..Backend::default() };
        self.head(self.index().head_of(&row))
    }

    /// All walks that were under way have ended.
    fn grace_period(&self) {
        self.walks.borrow_mut().clear();
    }

    fn in_use(&self) -> Vec<Endpoint> {
        self.rows.borrow().iter().filter(|row| row.identity.in_use == 1).map(endpoint).collect()
    }

    /// Makes lists of the rows that are in use, as an apply does.
    fn settle(&self) {
        let index = self.index();
        let wanted = index.wanted_backends();
        let linked = index.linked();
        let is_found = |row: &usize| linked[*row].is_some();
        let found: Vec<_> = (0..self.rows()).filter(is_found).map(|row| endpoint(&self.row(row))).collect();
        *self.promised.borrow_mut() = self.in_use().into_iter().filter(|used| found.contains(used)).collect();
        self.look();
        index.link_missing(&wanted).unwrap();
        index.unlink_others(&wanted);
        self.grace_period();
        self.promised.borrow_mut().clear();
    }
}

impl Lists for &Memory {
    type Row = Backend;

    fn heads(&self) -> usize {
        self.heads.borrow().len()
    }

    fn head(&self, head: usize) -> u32 {
        self.heads.borrow()[head]
    }

    fn set_head(&self, head: usize, link: u32) {
        self.before_a_store();
        self.heads.borrow_mut()[head] = link;
        self.look();
    }

    fn rows(&self) -> usize {
        self.rows.borrow().len()
    }

    fn row(&self, row: usize) -> Backend {
        self.rows.borrow()[row]
    }

    fn set_next(&self, row: usize, link: u32) {
        self.before_a_store();
        self.rows.borrow_mut()[row].next = link;
        self.look();
    }
}

/// A row that comes to be in use, or is no more.
#[derive(Clone, Copy, Debug)]
enum Change {
    Use { row: usize, port: u16, salt: u16 },
    End { row: usize },
}

const ROWS: usize = 8;

fn change() -> impl Strategy<Value = Change> {
    let used = (0..ROWS, 1..5_u16, 0..2_u16).prop_map(|(row, port, salt)| Change::Use { row, port, salt });
    prop_oneof![used, (0..ROWS).prop_map(|row| Change::End { row })]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_walk_misses_a_row_and_a_killed_call_is_completed_by_the_next(
        heads in prop::sample::select(vec![1_usize, 2, 4]),
        steps in prop::collection::vec((prop::collection::vec(change(), 1..6), prop::option::of(0..6_usize)), 1..8),
    ) {
        let memory = Memory::new(heads, ROWS);
        for (changes, kill_after) in steps {
            for change in changes {
                match change {
                    // One that is free, and was unlinked a grace period ago.
                    Change::Use { row, port, salt } if memory.row_is_free(row) => {
                        let identity = Identity { epoch: 1, in_use: 1 };
                        memory.rows.borrow_mut()[row] = Backend { identity, next: 77, ..backend(port, salt) };
                    }
                    Change::Use { .. } => {}
                    Change::End { row } => memory.rows.borrow_mut()[row].identity.in_use = 0,
                }
            }
            memory.stores_left.set(kill_after.unwrap_or(usize::MAX));
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| memory.settle())) {
                if !panic.is::<Killed>() {
                    resume_unwind(panic);
                }
                memory.grace_period();
                memory.stores_left.set(usize::MAX);
                memory.settle();
            }
            let wanted = memory.index().wanted_backends();
            prop_assert!(memory.index().is_settled(&wanted));
            let mut listed: BTreeMap<Endpoint, usize> = BTreeMap::new();
            for (row, _) in memory.index().linked().iter().enumerate().filter(|(_, linked)| linked.is_some()) {
                *listed.entry(endpoint(&(&memory).row(row))).or_default() += 1;
            }
            let used: BTreeMap<Endpoint, usize> = memory.in_use().into_iter().map(|endpoint| (endpoint, 1)).collect();
            prop_assert_eq!(listed, used, "each endpoint in use once, and no other");
        }
    }
}

impl Memory {
    fn row_is_free(&self, row: usize) -> bool {
        self.row(row).identity.in_use == 0 && self.index().linked()[row].is_none()
    }
}

#[test]
fn the_row_that_is_linked_stays_as_long_as_it_is_in_use() {
    let memory = Memory::new(2, 4);
    let set = |row: usize, in_use| {
        memory.rows.borrow_mut()[row] = Backend { identity: Identity { epoch: 1, in_use }, ..backend(80, 0) };
    };
    let linked = || (0..4).filter(|row| memory.index().linked()[*row].is_some()).collect::<Vec<_>>();
    set(2, 1);
    set(3, 1);
    memory.settle();
    assert_eq!(linked(), [2], "the first");
    set(0, 1);
    memory.settle();
    assert_eq!(linked(), [2]);
    memory.rows.borrow_mut()[2].identity.in_use = 0;
    memory.settle();
    assert_eq!(linked(), [0]);
}

#[test]
fn a_list_has_no_more_rows_than_programs_walk() {
    let rows = MAX_CHAIN as usize + 4;
    let memory = Memory::new(1, rows);
    for row in 0..rows {
        memory.rows.borrow_mut()[row] =
            Backend { identity: Identity { epoch: 1, in_use: 1 }, ..backend(row as u16, 0) };
    }
    let index = memory.index();
    assert_eq!(index.link_missing(&index.wanted_backends()), Err(Full { row: MAX_CHAIN as usize }));
    assert_eq!(index.linked().iter().flatten().count(), MAX_CHAIN as usize);
}

#[test]
fn a_row_of_a_full_list_is_replaced_in_its_place() {
    let rows = MAX_CHAIN as usize + 1;
    for replaced in 0..MAX_CHAIN as usize {
        let memory = Memory::new(1, rows);
        let set = |row: usize, port: usize, in_use| {
            memory.rows.borrow_mut()[row] =
                Backend { identity: Identity { epoch: 1, in_use }, ..backend(port as u16, 0) };
        };
        (0..rows - 1).for_each(|row| set(row, row, 1));
        memory.settle();
        set(rows - 1, replaced, 1);
        memory.settle();
        assert!(memory.index().linked()[replaced].is_some(), "it stays as long as it is in use");
        memory.rows.borrow_mut()[replaced].identity.in_use = 0;
        memory.settle();
        let linked = memory.index().linked();
        assert!((0..rows).all(|row| linked[row].is_some() == (row != replaced)), "{replaced}: {linked:?}");
    }
}

#[test]
fn a_damaged_list_has_an_end() {
    let memory = Memory::new(1, 4);
    memory.rows.borrow_mut()[0].next = 2;
    memory.rows.borrow_mut()[1].next = 1;
    memory.heads.borrow_mut()[0] = 1;
    assert_eq!(memory.index().linked().iter().flatten().count(), 2);
    memory.rows.borrow_mut()[1].next = 5;
    assert_eq!(memory.index().linked().iter().flatten().count(), 2);
}

/// One thread walks, the other links and unlinks the rows before and behind the one that is looked for, and makes other
/// rows of them in between.
#[test]
fn a_thread_that_walks_meanwhile_misses_nothing() {
    const ROUNDS: u64 = 5_000;
    let (heads, rows) = (Mapped::<[u32; 2]>::anonymous(1), Mapped::<Backend>::anonymous(6));
    let lists = || MappedLists { heads: &heads, rows: &rows };
    // All in one list.
    let ports: Vec<u16> = (1..).filter(|port| Index(lists()).head_of(&backend(*port, 0)) == 0).take(8).collect();
    let at = |row: usize, port: u16| {
        rows.write(row, &Backend { identity: Identity { epoch: 1, in_use: 1 }, ..backend(port, 0) });
    };
    let stays = endpoint(&backend(ports[0], 0));
    at(0, ports[0]);
    at(1, ports[1]);
    let index = Index(lists());
    index.link_missing(&index.wanted_backends()).unwrap();

    let (walks, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let lists = lists();
            let mut missed = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                missed += u64::from(!finds(&lists, lists.head(0), stays));
                walks.fetch_add(1, Ordering::SeqCst);
            }
            missed
        });
        let grace_period = || {
            let seen = walks.load(Ordering::SeqCst);
            while walks.load(Ordering::SeqCst) < seen + 2 {
                std::thread::yield_now();
            }
        };
        for round in 0..ROUNDS {
            // Another row takes the place of the one that is looked for, and others come and go around it.
            let (now, next) = (if round % 2 == 0 { 0 } else { 5 }, if round % 2 == 0 { 5 } else { 0 });
            at(next, ports[0]);
            for row in 2..5 {
                at(row, ports[1 + (round as usize + row) % 7]);
            }
            let mut wanted = vec![false, true, true, true, true, false];
            wanted[next] = true;
            index.link_missing(&wanted).unwrap();
            index.unlink_others(&wanted);
            let mut wanted = vec![false, true, false, false, false, false];
            wanted[next] = true;
            index.unlink_others(&wanted);
            grace_period();
            rows.update(now, |row| row.identity.in_use = 0);
        }
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(reader.join().unwrap(), 0, "of {walks:?} walks");
    });
}
