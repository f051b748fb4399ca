//! Two or three at the table at once, in every order that they may come in, as far as few of them are interrupted.

use crate::{
    NOW, Name,
    memory::{At, MACHINES, Machine, Table},
};
use bg_common::{CachedHop, Flow, FlowState};
use bg_ebpf::flow_table::{Stored, find, find_slowly, insert, remove, store};
use loom::{model::Builder, sync::Arc, thread};

/// Tries all orders in which no more than so many threads are interrupted.
pub(crate) fn model(interruptions: usize, check: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(interruptions);
    builder.check(check);
}

fn on_all_machines(interruptions: usize, check: fn(Machine)) {
    for machine in MACHINES {
        model(interruptions, move || check(machine));
    }
}

/// Runs on a CPU of its own.
pub(crate) fn on_cpu<R: 'static>(table: &Arc<Table>, run: impl FnOnce(&Table) -> R + 'static) -> thread::JoinHandle<R> {
    let table = Arc::clone(table);
    thread::spawn(move || run(&table))
}

/// Each begins at the first place of the first bucket.
const A: Name = Name::tcp(1, 0);
const B: Name = Name::tcp(2, 0);

fn finds(table: &Table, key: &Name) -> Option<u32> {
    find(&table.view(), key).map(|found| key.value_of(found.flow()))
}

fn finds_slowly(table: &Table, key: &Name) -> Option<u32> {
    find_slowly(&table.view(), key).map(|found| key.value_of(found.flow()))
}

fn inserts(table: &Table, key: &Name, value: u32) -> Stored {
    insert(&table.view(), key, &key.flow(value), NOW)
}

/// The second CPU's clock may be a tick late.
fn both_open_one_tuple(machine: Machine, places: &[At], late: u32) {
    let table = Arc::new(Table::new(machine, places));
    let one = on_cpu(&table, |table| inserts(table, &A, 1));
    let two = insert(&table.view(), &A, &A.flow(2), NOW - late);
    let stored = [one.join().unwrap(), two];
    let of_yes: Vec<u32> =
        (1..).zip(stored).filter(|(_, stored)| *stored != Stored::No).map(|(value, _)| value).collect();
    assert!(table.count(&A) <= 1, "a duplicate, {stored:?}");
    assert!(of_yes.len() <= 1, "both were told that theirs is there");
    assert_eq!(table.flow(&A).map(|flow| A.value_of(&flow)), of_yes.first().copied());
}

/// Two places, of which one CPU takes the one and a CPU that is a tick late the other: a flow that has just been silent
/// for too long, and one that its client has not confirmed.
fn places_that_differ_by_the_tick() -> [At; 2] {
    let (silent, unconfirmed) = (Name::tcp(8, 0), Name::tcp(9, 0));
    let flow = silent.flow(1);
    [
        At::Held(silent, Flow { state: flow.state.with_limit(8), last_seen: NOW - 9, ..flow }),
        At::Held(unconfirmed, Flow { state: FlowState(0).with_limit(1000), ..unconfirmed.flow(1) }),
    ]
}

#[test]
fn a_tuple_that_two_cpus_open_at_once_has_one_entry() {
    on_all_machines(3, |machine| both_open_one_tuple(machine, &[At::Free, At::Free], 0));
}

#[test]
fn so_it_has_if_there_is_a_place_in_either_bucket() {
    on_all_machines(3, |machine| {
        both_open_one_tuple(machine, &[At::Free, At::Taken, At::Taken, At::Taken, At::Free], 0);
    });
}

#[test]
fn so_it_has_if_each_chooses_another_place() {
    on_all_machines(3, |machine| both_open_one_tuple(machine, &places_that_differ_by_the_tick(), 1));
}

#[test]
#[should_panic(expected = "a duplicate")]
fn it_takes_exchanges_that_order_what_comes_after() {
    model(3, || both_open_one_tuple(Machine::LooseExchange, &places_that_differ_by_the_tick(), 1));
}

#[test]
fn who_reads_a_tuple_that_two_cpus_open_finds_it_whole_or_not_at_all() {
    on_all_machines(2, |machine| {
        let table = Arc::new(Table::new(machine, &[At::Free, At::Free]));
        let one = on_cpu(&table, |table| inserts(table, &A, 1));
        let two = on_cpu(&table, |table| inserts(table, &A, 2));
        assert!(matches!(finds(&table, &A), None | Some(1 | 2)));
        one.join().unwrap();
        two.join().unwrap();
        assert!(table.count(&A) <= 1, "a duplicate");
    });
}

fn reads_the_victim(machine: Machine) {
    let table = Arc::new(Table::new(machine, &[At::Held(A, A.flow(1))]));
    let writer = on_cpu(&table, |table| assert_eq!(inserts(table, &B, 1), Stored::PushedOut));
    assert!(matches!(finds(&table, &A), None | Some(1)));
    assert!(matches!(finds(&table, &B), None | Some(1)));
    writer.join().unwrap();
    assert_eq!((finds(&table, &A), finds(&table, &B)), (None, Some(1)));
}

#[test]
fn who_reads_the_victim_finds_it_whole_or_not_at_all() {
    on_all_machines(3, reads_the_victim);
}

fn reads_a_victim_that_comes_back(machine: Machine, finds: fn(&Table, &Name) -> Option<u32>) {
    let table = Arc::new(Table::new(machine, &[At::Held(A, A.flow(1))]));
    let writer = on_cpu(&table, |table| {
        inserts(table, &B, 1);
        inserts(table, &A, 2);
    });
    assert!(matches!(finds(&table, &A), None | Some(1 | 2)));
    writer.join().unwrap();
    assert_eq!(finds(&table, &A), Some(2));
}

#[test]
fn who_reads_a_victim_that_comes_back_finds_either_whole() {
    on_all_machines(2, |machine| reads_a_victim_that_comes_back(machine, finds));
}

#[test]
fn so_does_who_reads_it_slowly() {
    on_all_machines(1, |machine| reads_a_victim_that_comes_back(machine, finds_slowly));
}

#[test]
#[should_panic(expected = "torn")]
fn a_weak_machine_that_is_taken_for_a_strong_one_tears_what_is_found() {
    model(3, || reads_a_victim_that_comes_back(Machine::Mistaken, finds));
}

#[test]
#[should_panic(expected = "torn")]
fn and_tears_what_is_found_slowly() {
    model(3, || reads_a_victim_that_comes_back(Machine::Mistaken, finds_slowly));
}

#[test]
fn of_two_tuples_opened_at_once_each_has_its_entry_if_there_is_room() {
    on_all_machines(3, |machine| {
        let table = Arc::new(Table::new(machine, &[At::Free, At::Free]));
        let other = on_cpu(&table, |table| inserts(table, &A, 1));
        let mine = inserts(&table, &B, 1);
        let stored = [other.join().unwrap(), mine];
        for (key, stored) in [A, B].iter().zip(stored) {
            assert_eq!(finds(&table, key).is_some(), stored == Stored::Yes, "{key:?} {stored:?}");
        }
    });
}

#[test]
fn a_flow_that_was_just_opened_is_not_taken_for_a_free_place() {
    on_all_machines(3, |machine| {
        let table = Arc::new(Table::new(machine, &[At::Free]));
        let other = on_cpu(&table, |table| inserts(table, &A, 1));
        let mine = inserts(&table, &B, 1);
        let others = other.join().unwrap();
        let told = [others, mine];
        assert!(told != [Stored::Yes; 2], "one of the two is gone, and nobody was told");
    });
}

#[test]
fn a_note_lands_in_the_entry_that_it_is_meant_for_or_nowhere() {
    on_all_machines(3, |machine| {
        let table = Arc::new(Table::new(machine, &[At::Held(A, A.flow(1))]));
        let writer = on_cpu(&table, |table| inserts(table, &B, 1));
        if let Some(mut found) = find(&table.view(), &A) {
            found.note(FlowState::CLIENT_FIN);
        }
        let stored = writer.join().unwrap();
        let flow = table.flow(&if stored == Stored::No { A } else { B }).expect("one of the two");
        assert_eq!(flow.state.has(FlowState::CLIENT_FIN), stored == Stored::No, "{flow:?}");
    });
}

#[test]
fn a_flow_that_is_replaced_is_found_whole_and_noted_in_the_right_one() {
    on_all_machines(2, |machine| {
        let table = Arc::new(Table::new(machine, &[At::Held(A, A.flow(1)), At::Free]));
        let writer = on_cpu(&table, |table| store(&table.view(), &A, &A.flow(2), true, NOW));
        let noter = on_cpu(&table, |table| {
            let mut found = find(&table.view(), &A)?;
            found.note(FlowState::CLIENT_FIN);
            Some(A.value_of(found.flow()))
        });
        assert!(matches!(finds(&table, &A), None | Some(1 | 2)));
        let (stored, noted_in) = (writer.join().unwrap(), noter.join().unwrap());
        let flow = table.flow(&A).expect("never removed");
        assert_eq!(A.value_of(&flow), if stored == Stored::Yes { 2 } else { 1 });
        assert_eq!(table.count(&A), 1);
        if flow.state.has(FlowState::CLIENT_FIN) {
            assert_eq!(noted_in, Some(A.value_of(&flow)));
        }
    });
}

#[test]
fn two_who_note_at_once_lose_nothing() {
    on_all_machines(4, |machine| {
        let table = Arc::new(Table::new(machine, &[At::Held(A, A.flow(1))]));
        let other = on_cpu(&table, |table| {
            find(&table.view(), &A).expect("there").note(FlowState::BACKEND_FIN);
        });
        let mut found = find(&table.view(), &A).expect("there");
        found.become_state(found.state().with(FlowState::CLIENT_FIN).with_limit(5000));
        other.join().unwrap();
        let state = table.flow(&A).expect("there").state;
        assert!(state.has(FlowState::CLIENT_FIN | FlowState::BACKEND_FIN) && state.limit() >= 5000, "{state:?}");
    });
}

/// An entry of the reply direction, which has cached no next hop yet.
fn reply(key: &Name) -> Flow {
    let flow = key.flow(1);
    Flow { state: flow.state.with(FlowState::REPLY), note: 0, ..flow }
}

#[test]
fn a_next_hop_is_cached_in_the_entry_that_it_is_meant_for_or_nowhere() {
    on_all_machines(3, |machine| {
        let ended = reply(&A);
        let ended = Flow { state: ended.state.with(FlowState::CLIENT_FIN | FlowState::BACKEND_FIN), ..ended };
        let table = Arc::new(Table::new(machine, &[At::Free]));
        insert(&table.view(), &A, &ended, NOW);
        let writer = on_cpu(&table, |table| insert(&table.view(), &B, &reply(&B), NOW));
        if let Some(mut found) = find(&table.view(), &A) {
            found.seen(NOW);
            found.set_note(CachedHop::new(7, NOW).0);
        }
        assert_eq!(writer.join().unwrap(), Stored::Yes);
        let cached = CachedHop(table.flow(&B).expect("stored").note);
        assert_eq!(cached.place(), 0, "the next hop of another client");
    });
}

#[test]
fn a_packet_that_was_seen_changes_nothing_else() {
    on_all_machines(3, |machine| {
        let table = Arc::new(Table::new(machine, &[At::Held(A, Flow { last_seen: NOW - 5, ..A.flow(1) })]));
        let writer = on_cpu(&table, |table| inserts(table, &B, 1));
        if let Some(mut found) = find(&table.view(), &A) {
            found.seen(NOW);
        }
        let key = if writer.join().unwrap() == Stored::No { A } else { B };
        let flow = table.flow(&key).expect("one of the two");
        assert_eq!((key.value_of(&flow), flow.last_seen), (1, NOW));
    });
}

#[test]
fn what_user_space_removes_is_gone_once_and_comes_back_whole() {
    on_all_machines(2, |machine| {
        let table = Arc::new(Table::new(machine, &[At::Held(A, A.flow(1)), At::Free]));
        let user = on_cpu(&table, |table| {
            let found = find_slowly(&table.view(), &A).filter(|found| A.value_of(found.flow()) == 1);
            found.is_some_and(remove)
        });
        let other = on_cpu(&table, |table| if finds(table, &A).is_some() { Stored::No } else { inserts(table, &A, 2) });
        let noted = find(&table.view(), &A).map(|mut found| {
            found.note(FlowState::CLIENT_FIN);
            A.value_of(found.flow())
        });
        let (removed, stored) = (user.join().unwrap(), other.join().unwrap());
        assert!(table.count(&A) <= 1, "a duplicate");
        match table.flow(&A) {
            None => assert!(removed && stored == Stored::No),
            Some(flow) => {
                let value = A.value_of(&flow);
                assert_eq!((value == 2, value == 1), (stored == Stored::Yes, !removed));
                assert!(!flow.state.has(FlowState::CLIENT_FIN) || noted == Some(value));
            }
        }
    });
}

#[test]
fn what_user_space_removes_is_not_what_has_taken_its_place() {
    on_all_machines(3, |machine| {
        let table = Arc::new(Table::new(machine, &[At::Held(A, A.flow(1))]));
        let writer = on_cpu(&table, |table| inserts(table, &B, 1));
        let removed = find(&table.view(), &A).is_some_and(remove);
        let stored = writer.join().unwrap();
        assert!(!removed || table.count(&A) == 0);
        assert_eq!(finds(&table, &B).is_some(), stored != Stored::No);
    });
}
