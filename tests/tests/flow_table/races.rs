//! Two or three at the table at once, in every order that they may come in, as far as few of them are interrupted.

use crate::{
    ASSURED, NOW, Name, find_slowly, find_whole,
    memory::{At, MACHINES, Machine, Table},
    store,
};
use bg_common::{CachedHop, Flow, FlowState};
use bg_ebpf::flow::{
    bucket::WAYS,
    table::{Stored, insert, remove, replace},
};
use loom::{model::Builder, thread};

/// Tries all orders in which no more than so many threads are interrupted.
pub(crate) fn model(interruptions: usize, check: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(interruptions);
    builder.check(check);
}

pub(crate) fn on_all_machines(interruptions: usize, check: fn(Machine)) {
    for machine in MACHINES {
        model(interruptions, move || check(machine));
    }
}

/// Runs on this CPU. The first one is the test's own.
pub(crate) fn on_cpu<R: 'static>(
    table: &Table,
    cpu: usize,
    run: impl FnOnce(&Table) -> R + 'static,
) -> thread::JoinHandle<R> {
    let table = table.on(cpu);
    thread::spawn(move || run(&table))
}

/// Each begins at the first place of the first bucket.
const A: Name = Name::new(1, 0);
const B: Name = Name::new(2, 0);

pub(crate) fn finds(table: &Table, key: &Name) -> Option<u32> {
    find_whole(&table.view(), key).map(|found| key.value_of(found.flow()))
}

fn finds_by_slow_path(table: &Table, key: &Name) -> Option<u32> {
    find_slowly(&table.view(), key).map(|found| key.value_of(found.flow()))
}

pub(crate) fn inserts(table: &Table, key: &Name, value: u32) -> Stored {
    inserts_late(table, key, value, 0)
}

/// On a CPU whose clock is late.
pub(crate) fn inserts_late(table: &Table, key: &Name, value: u32, late: u32) -> Stored {
    insert(&table.view(), key, key.hash, &key.flow(value), NOW - late)
}

/// The second CPU's clock may be a tick late.
fn both_open_one_flow(machine: Machine, places: &[At], late: u32) {
    let table = Table::new(machine, places);
    let one = on_cpu(&table, 1, |table| inserts(table, &A, 1));
    let two = inserts_late(&table, &A, 2, late);
    let stored = [one.join().unwrap(), two];
    let of_yes: Vec<u32> =
        (1..).zip(stored).filter(|(_, stored)| *stored != Stored::No).map(|(value, _)| value).collect();
    assert!(table.count(&A) <= 1, "a duplicate, {stored:?}");
    assert!(of_yes.len() <= 1, "both were told that theirs is there");
    assert_eq!(table.flow(&A).map(|flow| A.value_of(&flow)), of_yes.first().copied());
}

/// Two flows, of which one CPU evicts the one and a CPU that is a tick late the other: one that has just been silent
/// for too long, and one that its client has not confirmed.
pub(crate) fn victims_by_the_tick(silent: Name, unconfirmed: Name) -> [At; 2] {
    let flow = silent.flow(1);
    [
        At::Held(silent, Flow { state: flow.state.with_limit(8), last_seen: NOW - 9, ..flow }),
        At::Held(unconfirmed, Flow { state: FlowState(0).with_limit(1000), ..unconfirmed.flow(1) }),
    ]
}

fn places_that_differ_by_the_tick() -> [At; 2] {
    victims_by_the_tick(Name::new(8, 0), Name::new(9, 0))
}

#[test]
fn a_flow_that_two_cpus_open_at_once_has_one_row() {
    on_all_machines(3, |machine| both_open_one_flow(machine, &[At::Free, At::Free], 0));
}

/// One place in each bucket: who comes second goes to the other one.
fn one_in_each_bucket() -> [At; WAYS as usize + 1] {
    std::array::from_fn(|index| if index % WAYS as usize == 0 { At::Free } else { At::Taken })
}

#[test]
fn so_it_has_if_there_is_a_place_in_either_bucket() {
    on_all_machines(3, |machine| {
        both_open_one_flow(machine, &one_in_each_bucket(), 0);
    });
}

#[test]
fn so_it_has_if_each_chooses_another_place() {
    on_all_machines(3, |machine| both_open_one_flow(machine, &places_that_differ_by_the_tick(), 1));
}

#[test]
#[should_panic(expected = "a duplicate")]
fn it_takes_exchanges_that_order_what_comes_after() {
    model(3, || both_open_one_flow(Machine::LooseExchange, &places_that_differ_by_the_tick(), 1));
}

#[test]
fn who_reads_a_flow_that_two_cpus_open_finds_it_whole_or_not_at_all() {
    on_all_machines(2, |machine| {
        let table = Table::new(machine, &[At::Free, At::Free]);
        let one = on_cpu(&table, 1, |table| inserts(table, &A, 1));
        let two = on_cpu(&table, 2, |table| inserts(table, &A, 2));
        assert!(matches!(finds(&table, &A), None | Some(1 | 2)));
        one.join().unwrap();
        two.join().unwrap();
        assert!(table.count(&A) <= 1, "a duplicate");
    });
}

fn reads_the_victim(machine: Machine) {
    let table = Table::new(machine, &[At::Held(A, A.flow(1))]);
    let writer = on_cpu(&table, 1, |table| assert_eq!(inserts(table, &B, 1), Stored::Evicted));
    assert!(matches!(finds(&table, &A), None | Some(1)));
    assert!(matches!(finds(&table, &B), None | Some(1)));
    writer.join().unwrap();
    assert_eq!((finds(&table, &A), finds(&table, &B)), (None, Some(1)));
}

#[test]
fn who_reads_the_victim_finds_it_whole_or_not_at_all() {
    on_all_machines(2, reads_the_victim);
}

fn reads_a_victim_that_comes_back(machine: Machine, finds: fn(&Table, &Name) -> Option<u32>) {
    let table = Table::new(machine, &[At::Held(A, A.flow(1))]);
    let writer = on_cpu(&table, 1, |table| {
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
    on_all_machines(1, |machine| reads_a_victim_that_comes_back(machine, finds_by_slow_path));
}

#[test]
#[should_panic(expected = "torn")]
fn a_weak_machine_that_is_taken_for_a_strong_one_tears_what_is_found() {
    model(3, || reads_a_victim_that_comes_back(Machine::Mistaken, finds));
}

#[test]
#[should_panic(expected = "torn")]
fn and_tears_what_is_found_slowly() {
    model(3, || reads_a_victim_that_comes_back(Machine::Mistaken, finds_by_slow_path));
}

#[test]
fn of_two_flows_opened_at_once_each_has_its_row_if_there_is_room() {
    on_all_machines(3, |machine| {
        let table = Table::new(machine, &[At::Free, At::Free]);
        let other = on_cpu(&table, 1, |table| inserts(table, &A, 1));
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
        let table = Table::new(machine, &[At::Free]);
        let other = on_cpu(&table, 1, |table| inserts(table, &A, 1));
        let mine = inserts(&table, &B, 1);
        let others = other.join().unwrap();
        let told = [others, mine];
        assert!(told != [Stored::Yes; 2], "one of the two is gone, and nobody was told");
    });
}

#[test]
fn a_note_lands_in_the_row_that_it_is_meant_for_or_nowhere() {
    on_all_machines(3, |machine| {
        let table = Table::new(machine, &[At::Held(A, A.flow(1))]);
        let writer = on_cpu(&table, 1, |table| inserts(table, &B, 1));
        if let Some(mut found) = find_whole(&table.view(), &A) {
            found.set(FlowState::CLIENT_FIN);
        }
        let stored = writer.join().unwrap();
        let flow = table.flow(&if stored == Stored::No { A } else { B }).expect("one of the two");
        assert_eq!(flow.state.has(FlowState::CLIENT_FIN), stored == Stored::No, "{flow:?}");
    });
}

#[test]
fn a_flow_that_is_replaced_is_found_whole_and_noted_in_the_right_one() {
    on_all_machines(2, |machine| {
        let table = Table::new(machine, &[At::Held(A, A.flow(1)), At::Free]);
        let writer = on_cpu(&table, 1, |table| store(&table.view(), &A, &A.flow(2), true));
        let noter = on_cpu(&table, 2, |table| {
            let mut found = find_whole(&table.view(), &A)?;
            found.set(FlowState::CLIENT_FIN);
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
fn a_flow_is_replaced_whatever_has_been_noted_of_it_but_no_other_one_is() {
    on_all_machines(3, |machine| {
        let table = Table::new(machine, &[At::Held(A, A.flow(1))]);
        let found = find_whole(&table.view(), &A).expect("there");
        find_whole(&table.view(), &A).expect("there").set(FlowState::CLIENT_FIN | FlowState::BACKEND_FIN);
        let evicts = on_cpu(&table, 1, |table| inserts(table, &B, 1));
        let replaced = replace(&table.view(), found, &A.flow(2));
        let evicted = evicts.join().unwrap();
        match (finds(&table, &A), finds(&table, &B)) {
            (Some(2), None) => assert_eq!((replaced, evicted), (Stored::Yes, Stored::No)),
            (None, Some(1)) => assert_ne!(evicted, Stored::No),
            other => panic!("{other:?}: {replaced:?}, {evicted:?}"),
        }
        assert!(replaced == Stored::Yes || evicted != Stored::No, "only another flow is in its way");
    });
}

#[test]
fn two_who_note_at_once_lose_nothing() {
    on_all_machines(4, |machine| {
        let table = Table::new(machine, &[At::Held(A, A.flow(1))]);
        let other = on_cpu(&table, 1, |table| {
            find_whole(&table.view(), &A).expect("there").set(FlowState::BACKEND_FIN);
        });
        let mut found = find_whole(&table.view(), &A).expect("there");
        let state = found.state().with(FlowState::CLIENT_FIN).with_limit(5000);
        found.change(state, found.flow().note);
        other.join().unwrap();
        let state = table.flow(&A).expect("there").state;
        assert!(state.has(FlowState::CLIENT_FIN | FlowState::BACKEND_FIN) && state.limit() >= 5000, "{state:?}");
    });
}

/// A doubtful SYN is noted with a flag. The backend's answer, which clears it up, takes both back.
#[test]
fn a_doubtful_syn_is_noted_with_its_flag_or_not_at_all() {
    on_all_machines(4, |machine| {
        let flow = A.flow(1);
        let doubtful = Flow { state: flow.state.with(FlowState::DOUBTFUL), note: 4711, ..flow };
        let table = Table::new(machine, &[At::Held(A, doubtful)]);
        let another = on_cpu(&table, 1, |table| {
            let mut found = find_whole(&table.view(), &A).expect("there");
            found.change(found.state().with(FlowState::DOUBTFUL), 4712);
        });
        let mut found = find_whole(&table.view(), &A).expect("there");
        found.change(found.state().without(FlowState::DOUBTFUL), 0);
        another.join().unwrap();
        let Flow { state, note, .. } = table.flow(&A).expect("there");
        let expected = if state.has(FlowState::DOUBTFUL) { 4712 } else { 0 };
        assert_eq!(note, expected, "{state:?}");
    });
}

#[test]
fn a_next_hop_is_cached_in_the_row_that_it_is_meant_for_or_nowhere() {
    on_all_machines(3, |machine| {
        let ended = FlowState(ASSURED | FlowState::CLIENT_FIN | FlowState::BACKEND_FIN).with_limit(1000);
        let table = Table::new(machine, &[At::Free]);
        insert(&table.view(), &A, A.hash, &Flow { state: ended, ..A.flow(1) }, NOW);
        let writer = on_cpu(&table, 1, |table| inserts(table, &B, 1));
        if let Some(mut found) = find_whole(&table.view(), &A) {
            found.see(NOW);
            found.cache_hop(CachedHop::new(7, NOW));
        }
        assert_eq!(writer.join().unwrap(), Stored::Yes);
        let cached = table.flow(&B).expect("stored").hop;
        assert_eq!(cached.number(), 0, "the next hop of another client");
    });
}

#[test]
fn a_next_hop_that_is_cached_while_another_cpu_sees_a_packet_is_whole() {
    on_all_machines(3, |machine| {
        let flow = Flow { last_seen: NOW - 5, hop: CachedHop::new(3, NOW - 20), ..A.flow(1) };
        let table = Table::new(machine, &[At::Held(A, flow)]);
        let other = on_cpu(&table, 1, |table| find_whole(&table.view(), &A).expect("there").see(NOW));
        find_whole(&table.view(), &A).expect("there").cache_hop(CachedHop::new(7, NOW));
        other.join().unwrap();
        let flow = table.flow(&A).expect("there");
        assert!(
            [flow.hop, CachedHop::new(7, NOW)] == [CachedHop::new(7, NOW); 2] || flow.hop.number() == 3,
            "{flow:?}"
        );
        assert_eq!((A.value_of(&flow), flow.last_seen), (1, NOW), "what was seen is not taken back");
    });
}

#[test]
fn a_packet_that_was_seen_changes_nothing_else() {
    on_all_machines(3, |machine| {
        let flow = Flow { last_seen: NOW - 5, hop: CachedHop::new(3, NOW - 5), ..A.flow(1) };
        let table = Table::new(machine, &[At::Held(A, flow)]);
        let writer = on_cpu(&table, 1, |table| inserts(table, &B, 1));
        if let Some(mut found) = find_whole(&table.view(), &A) {
            found.see(NOW);
        }
        let (key, hop) = if writer.join().unwrap() == Stored::No { (A, 3) } else { (B, 0) };
        let flow = table.flow(&key).expect("one of the two");
        assert_eq!((key.value_of(&flow), flow.last_seen, flow.hop.number()), (1, NOW, hop));
    });
}

#[test]
fn what_user_space_removes_is_gone_once_and_comes_back_whole() {
    on_all_machines(2, |machine| {
        let table = Table::new(machine, &[At::Held(A, A.flow(1)), At::Free]);
        let user = on_cpu(&table, 1, |table| {
            let found = find_slowly(&table.view(), &A).filter(|found| A.value_of(found.flow()) == 1);
            found.is_some_and(remove)
        });
        let other =
            on_cpu(&table, 2, |table| if finds(table, &A).is_some() { Stored::No } else { inserts(table, &A, 2) });
        let noted = find_whole(&table.view(), &A).map(|mut found| {
            found.set(FlowState::CLIENT_FIN);
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
        let table = Table::new(machine, &[At::Held(A, A.flow(1))]);
        let writer = on_cpu(&table, 1, |table| inserts(table, &B, 1));
        let removed = find_whole(&table.view(), &A).is_some_and(remove);
        let stored = writer.join().unwrap();
        assert!(!removed || table.count(&A) == 0);
        assert_eq!(finds(&table, &B).is_some(), stored != Stored::No);
    });
}
