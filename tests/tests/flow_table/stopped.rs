//! A writer that is stopped after any of its writes, for ever: it costs a place, and nobody waits for it.

use crate::{
    NOW, Name, find_slowly, find_whole,
    memory::{At, MACHINES, Machine, Table},
    races::{inserts, model, on_cpu},
    store,
};
use bg_common::{Flow, FlowState};
use bg_ebpf::flow::{
    row::FlowRef,
    table::{Stored, insert},
};
use std::cell::Cell;

const A: Name = Name::new(1, 0);
const B: Name = Name::new(2, 0);
/// Of another hash: a claim for this one can be told from one for the others.
const OTHER: Name = Name::new(3, 2);
/// Exchange, two words of key, origin, times, head.
const WRITES: u32 = 6;

fn value_of(table: &Table, key: &Name) -> Option<u32> {
    let (found, slowly) = (find_whole(&table.view(), key), find_slowly(&table.view(), key));
    let value = |found: FlowRef<_>| key.value_of(found.flow());
    let (found, slowly) = (found.map(value), slowly.map(value));
    assert_eq!(found, slowly);
    found
}

/// Lets a CPU insert, but stops it after so many writes. How far it came.
fn stops(table: &Table, key: &Name, writes: u32) -> u32 {
    let left = Cell::new(writes);
    insert(&table.view_until(&left), key, key.hash, &key.flow(1), NOW);
    writes - left.get()
}

fn while_one_is_stopped(machine: Machine, writes: u32) {
    let table = Table::new(machine, &[At::Free, At::Free, At::Free]);
    let stopped = on_cpu(&table, 1, move |table| stops(table, &A, writes));
    let again = inserts(&table, &A, 2);
    let other = inserts(&table, &OTHER, 1);
    let wrote = stopped.join().unwrap();
    assert!(table.count(&A) <= 1, "a duplicate");
    assert!(again == Stored::No || value_of(&table, &A) == Some(2));
    assert_eq!(value_of(&table, &OTHER).is_some(), other == Stored::Yes);
    // When it has been stopped, nobody is hindered but those who would write the same.
    assert_ne!(inserts(&table, &OTHER, 2) == Stored::Yes, other == Stored::Yes);
    assert_eq!(table.count(&OTHER), 1);
    if again == Stored::No && wrote < WRITES {
        assert_eq!(value_of(&table, &A), None, "after {wrote} writes");
    }
}

#[test]
fn a_writer_that_is_stopped_hinders_nobody_and_leaves_nothing_half() {
    for machine in MACHINES {
        for writes in 0..=WRITES {
            model(1, move || while_one_is_stopped(machine, writes));
        }
    }
}

#[test]
fn its_key_and_those_of_the_same_hash_stay_closed_and_others_do_not() {
    for writes in 1..WRITES {
        model(1, move || {
            let table = Table::new(Machine::Weak, &[At::Held(A, A.flow(1)), At::Free, At::Free, At::Free]);
            assert_eq!(stops(&table, &B, writes), writes);
            assert_eq!((value_of(&table, &A), value_of(&table, &B)), (Some(1), None));
            assert_eq!(inserts(&table, &B, 2), Stored::No, "it may be the same");
            assert_eq!(inserts(&table, &OTHER, 2), Stored::Yes);
            assert_eq!(value_of(&table, &OTHER), Some(2));
            assert_eq!((table.count(&A), table.count(&B), table.count(&OTHER)), (1, 0, 1));
        });
    }
}

#[test]
fn a_flow_whose_replacement_was_stopped_is_not_found_and_not_opened_twice() {
    for writes in 1..4 {
        model(1, move || {
            let table = Table::new(Machine::Weak, &[At::Held(A, A.flow(1)), At::Free]);
            let left = Cell::new(writes);
            store(&table.view_until(&left), &A, &A.flow(2), true);
            assert_eq!((left.get(), value_of(&table, &A)), (0, None));
            assert_eq!(store(&table.view(), &A, &A.flow(3), true), Stored::No);
            assert_eq!(table.count(&A), 0);
        });
    }
}

#[test]
fn a_victim_is_gone_as_soon_as_its_place_is_claimed() {
    for writes in 1..WRITES {
        model(1, move || {
            let ended = A.flow(1).state.with(FlowState::CLIENT_RESET);
            let table = Table::new(Machine::Weak, &[At::Held(A, Flow { state: ended, ..A.flow(1) })]);
            stops(&table, &OTHER, writes);
            assert_eq!((value_of(&table, &A), value_of(&table, &OTHER)), (None, None));
            // Both buckets are full of claims now.
            assert_eq!(inserts(&table, &A, 2), Stored::No);
        });
    }
}
