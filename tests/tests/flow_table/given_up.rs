//! A claim that is given up: the flow that had the place is there again, and nobody has opened it twice meanwhile.

use crate::{
    NOW, Name,
    cells::Cells,
    find_slowly, find_whole,
    memory::{At, MACHINES, Machine, Table},
    races::{finds, inserts, inserts_late, model, on_all_machines, on_cpu, victims_by_the_tick},
};
use bg_common::{CachedHop, Flow, FlowState};
use bg_ebpf::flow::{
    bucket::WAYS,
    table::{Stored, insert, remove},
};

/// The victim. All have hashes of their own and the same buckets: no claim can be taken for one of another flow.
const A: Name = Name::new(1, 4);
/// The flow that is opened.
const B: Name = Name::new(2, 0);
/// Another victim: of a CPU that is a tick late, or of a flow that comes second.
const C: Name = Name::new(3, 6);
/// Another flow that is opened.
const OTHER: Name = Name::new(4, 2);

#[test]
fn a_flow_that_is_there_already_leaves_each_victim_as_it_was() {
    // B stands at each place in turn, and all others are held by flows that are open, over, or of a client alone.
    for of_b in 0..2 * WAYS as usize {
        for state in [FlowState(0), FlowState(FlowState::CLIENT_RESET), FlowState(crate::ASSURED)] {
            let table = Cells::new(2, [0; 7]);
            for index in 0..2 * WAYS as usize {
                let victim = Name::new(100 + index as u32, 0);
                let state = FlowState(state.0 | FlowState::LIVE | 77 << 21).with_limit(100);
                table.put(index, &victim, &Flow { state, last_seen: NOW - 1 - index as u32, ..victim.flow(1) });
            }
            table.put(of_b, &B, &Flow { state: B.flow(1).state.with(FlowState::LIVE), ..B.flow(1) });
            let before = table.all();
            assert_eq!(insert(&&table, &B, B.hash, &B.flow(2), NOW), Stored::No);
            assert_eq!(table.all(), before);
        }
    }
}

/// Two CPUs open a flow at once, and each has another victim.
fn both_have_a_victim(machine: Machine) {
    let table = Table::new(machine, &victims_by_the_tick(A, C));
    let one = on_cpu(&table, 1, |table| inserts(table, &B, 1));
    let two = inserts_late(&table, &B, 2, 1);
    let stored = [one.join().unwrap(), two];
    let opened = stored.iter().filter(|stored| **stored != Stored::No).count();
    assert!(opened <= 1 && table.count(&B) == opened, "a duplicate, {stored:?}");
    assert_eq!(table.count(&A) + table.count(&C) + opened, 2, "a victim is lost, {stored:?}");
    if stored[0] == Stored::No {
        assert_eq!(finds(&table, &A), Some(1));
    }
}

#[test]
fn of_two_victims_one_stays() {
    on_all_machines(3, both_have_a_victim);
}

/// A table with a row of B that nobody sees when it looks for a place: whoever opens B takes the place of A, and gives it
/// up. C is the next victim.
fn where_b_is_there_already(machine: Machine) -> Table {
    let [a, c] = victims_by_the_tick(A, C);
    Table::new(machine, &[a, c, At::Kept(B, B.flow(1))])
}

/// What another CPU does while one opens B, and gives it up.
fn meanwhile<R: 'static>(what: fn(&Table) -> R, check: fn(&Table, R)) {
    for machine in MACHINES {
        model(3, move || {
            let table = where_b_is_there_already(machine);
            let opens = on_cpu(&table, 1, |table| inserts(table, &B, 2));
            let done = what(&table);
            assert_eq!(opens.join().unwrap(), Stored::No);
            assert_eq!((table.count(&B), finds(&table, &B)), (1, Some(1)));
            check(&table, done);
        });
    }
}

#[test]
fn a_victims_flow_that_another_cpu_opens_meanwhile_has_one_row() {
    let opens = |table: &Table| if finds(table, &A).is_some() { Stored::No } else { inserts(table, &A, 2) };
    meanwhile(opens, |table, stored| {
        assert_eq!(table.count(&A), 1, "a duplicate of the victim, or none");
        // If the claim was given up before, its own place is the best one.
        let value = if stored == Stored::No { 1 } else { 2 };
        assert_eq!(finds(table, &A), Some(value));
        assert_eq!(table.count(&C), 1, "evicted for nothing");
    });
}

#[test]
fn another_flow_that_is_opened_meanwhile_has_a_row_of_its_own() {
    meanwhile(
        |table| inserts(table, &OTHER, 1),
        |table, stored| {
            let opened = usize::from(stored != Stored::No);
            assert_eq!(finds(table, &OTHER).is_some(), stored != Stored::No);
            assert_eq!(table.count(&A) + table.count(&C) + opened, 2, "a victim is lost, {stored:?}");
        },
    );
}

#[test]
fn who_reads_the_victim_finds_it_whole_or_not_at_all() {
    let reads = |table: &Table| {
        let slowly = find_slowly(&table.view(), &A).map(|found| A.value_of(found.flow()));
        [slowly, finds(table, &A)]
    };
    meanwhile(reads, |table, found| {
        assert!(found.iter().all(|found| matches!(found, None | Some(1))));
        assert_eq!(finds(table, &A), Some(1), "it is there again");
    });
}

#[test]
fn what_is_noted_in_the_victim_lands_there_or_nowhere() {
    let notes = |table: &Table| {
        let Some(mut found) = find_whole(&table.view(), &A) else { return };
        found.set(FlowState::IDLE_ONLY);
        found.cache_hop(CachedHop::new(7, NOW));
    };
    meanwhile(notes, |table, ()| {
        let flow = table.flow(&A).expect("it is there again");
        assert_eq!(A.value_of(&flow), 1);
        assert!(matches!(flow.hop.number(), 0 | 7), "{flow:?}");
        let other = table.flow(&B).expect("always there");
        assert!(!other.state.has(FlowState::IDLE_ONLY) && other.hop.number() == 0, "{other:?}");
    });
}

#[test]
fn a_victim_that_is_seen_meanwhile_was_seen() {
    let sees = |table: &Table| find_whole(&table.view(), &A).map(|mut found| found.see(NOW)).is_some();
    meanwhile(sees, |table, seen| {
        let flow = table.flow(&A).expect("it is there again");
        assert_eq!((A.value_of(&flow), flow.last_seen == NOW), (1, seen));
    });
}

#[test]
fn a_victim_that_user_space_removes_does_not_come_back() {
    let removes = |table: &Table| find_whole(&table.view(), &A).is_some_and(remove);
    meanwhile(removes, |table, removed| {
        assert_eq!(finds(table, &A), if removed { None } else { Some(1) });
        assert_eq!(table.count(&C), 1);
    });
}
