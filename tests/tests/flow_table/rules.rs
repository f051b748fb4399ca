//! One at a time: which flow is evicted, against the rule written down plainly; and the table beside a map.

use crate::{ASSURED, NOW, Name, cells::Cells, find_slowly, find_whole, store};
use bg_common::{Flow, FlowState};
use bg_ebpf::flow::{
    bucket::WAYS,
    key::Match,
    memory::Memory as _,
    table::{Stored, find, insert, remove, replace},
};
use proptest::prelude::*;
use std::collections::HashMap;

const PLACES: usize = 2 * WAYS as usize;

/// What is at a place.
#[derive(Clone, Copy, Debug)]
enum At {
    Empty,
    Claimed,
    Held { state: FlowState, silence: i32, same_generation: bool },
}

/// How much a place suits a new flow: a greater one is taken first.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
struct Rank {
    class: (bool, bool, bool, bool),
    /// Silence, as a part of the silence that the flow may keep.
    relative: f64,
}

impl Rank {
    /// Whether it may be taken for this one: the table calculates with integers.
    fn is_nearly(self, other: Self) -> bool {
        self.class == other.class && (self.relative - other.relative).abs() <= self.relative / 4096.0 + 1.0 / 16_384.0
    }
}

impl At {
    /// None takes the place of a flow that is being written.
    fn rank(self) -> Option<Rank> {
        match self {
            Self::Claimed => None,
            Self::Empty => Some(Rank { class: (true, false, false, false), relative: 0.0 }),
            Self::Held { state, same_generation, .. } => Some(Rank {
                class: (false, self.is_over(), !state.is_assured(), same_generation),
                relative: f64::from(self.silence()) / f64::from(state.limit()),
            }),
        }
    }

    fn is_over(self) -> bool {
        matches!(self, Self::Held { state, .. } if state.has_ended() || self.silence() > state.limit())
    }

    fn silence(self) -> u32 {
        if let Self::Held { silence, .. } = self { silence.max(0) as u32 } else { 0 }
    }

    fn limit(self) -> u32 {
        if let Self::Held { state, .. } = self { state.limit() } else { 0 }
    }

    /// Whether nobody misses it.
    fn is_free(self) -> bool {
        matches!(self, Self::Empty) || self.is_over()
    }

    fn is_assured(self) -> bool {
        matches!(self, Self::Held { state, .. } if state.is_assured())
    }
}

fn place() -> impl Strategy<Value = At> {
    let ends = [0, 0, 0, 0, FlowState::CLIENT_FIN, FlowState::BACKEND_FIN, FlowState::CLIENT_RESET];
    let ends = prop::sample::select([ends.to_vec(), vec![FlowState::BACKEND_RESET]].concat());
    let bits = (ends, any::<[bool; 5]>()).prop_map(|(end, [confirmed, answered, other_fin, idle_only, own])| {
        let fin = if other_fin && end != 0 { FlowState::BACKEND_FIN } else { 0 };
        let bit = |is_set, bit| if is_set { bit } else { 0 };
        let shown = bit(confirmed, FlowState::CONFIRMED) | bit(answered, FlowState::ANSWERED);
        end | fin | shown | bit(idle_only, FlowState::IDLE_ONLY) | bit(own, FlowState::OWN)
    });
    let limit = prop_oneof![Just(0), Just(8_u32), Just(1000), Just(1 << 20), 1..10_000_u32];
    let silence = prop_oneof![Just(0), Just(8), Just(9), -5..20_i32, 900..1300_i32, 0..900_000_i32];
    let held = (bits, limit, silence, any::<bool>()).prop_map(|(bits, limit, silence, same_generation)| At::Held {
        state: FlowState(bits).with_limit(limit),
        silence,
        same_generation,
    });
    prop_oneof![1 => Just(At::Empty), 1 => Just(At::Claimed), 20 => held]
}

/// Places: of all kinds, of open flows above all, of flows that are being written above all.
fn places() -> impl Strategy<Value = Vec<At>> {
    let open = place().prop_map(|at| match at {
        At::Held { state, silence, same_generation } => {
            let state = FlowState(state.0 & !FlowState::ENDS).with_limit(1 << 20);
            At::Held { state, silence, same_generation }
        }
        other => other,
    });
    let of = |place: BoxedStrategy<At>| prop::collection::vec(place, PLACES);
    let claimed = prop_oneof![40 => Just(At::Claimed), 1 => place()];
    let mostly_open = prop_oneof![8 => open_only(), 1 => place()];
    prop_oneof![of(place().boxed()), of(open.boxed()), of(mostly_open.boxed()), of(claimed.boxed())]
}

fn open_only() -> impl Strategy<Value = At> {
    (any::<[bool; 3]>(), 0..900_000_i32, 900_000..2_000_000_u32).prop_map(
        |([confirmed, answered, same_generation], silence, limit)| {
            let bit = |is_set, bit| if is_set { bit } else { 0 };
            let shown = bit(confirmed, FlowState::CONFIRMED) | bit(answered, FlowState::ANSWERED);
            At::Held { state: FlowState(shown).with_limit(limit), silence, same_generation }
        },
    )
}

/// The places at which a flow of this hash may be put, by the rule: one, unless two are nearly the same.
fn allowed(places: &[At], hash: u32) -> Vec<usize> {
    let ways = WAYS as usize;
    let in_turn = |bucket: usize| (0..ways).map(move |turn| bucket * ways + ((hash >> 29) as usize ^ turn));
    let first = hash as usize & 1;
    let second = first ^ 1;
    let free = |bucket: usize| in_turn(bucket).filter(|&index| places[index].is_free()).count();
    let empty = |bucket: usize| in_turn(bucket).filter(|&index| matches!(places[index], At::Empty)).count();
    // Of equals the one whose turn comes first.
    let best_of = |bucket: usize| {
        let mut best: Vec<(Rank, usize)> = Vec::new();
        for index in in_turn(bucket) {
            let Some(rank) = places[index].rank() else { continue };
            if best.iter().any(|(other, at)| *other == rank && places[*at].limit() == places[index].limit()) {
                continue;
            }
            best.push((rank, index));
        }
        let greatest = best.iter().map(|(rank, _)| *rank).reduce(|a, b| if b > a { b } else { a });
        best.retain(|(rank, _)| greatest.is_some_and(|greatest| rank.is_nearly(greatest)));
        best
    };
    let indexes = |best: Vec<(Rank, usize)>| best.into_iter().map(|(_, index)| index).collect::<Vec<_>>();
    let (of_first, of_second) = (best_of(first), best_of(second));
    if empty(first) >= 2 || free(first) >= 2 {
        return indexes(of_first);
    }
    if free(first) != free(second) {
        return indexes(if free(second) > free(first) { of_second } else { of_first });
    }
    if free(first) > 0 {
        return indexes(of_first);
    }
    match (of_first.first(), of_second.first()) {
        (None, _) => indexes(of_second),
        (_, None) => indexes(of_first),
        (Some((a, _)), Some((b, _))) if a.is_nearly(*b) => indexes([of_first, of_second].concat()),
        (Some((a, _)), Some((b, _))) => indexes(if b > a { of_second } else { of_first }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn evicted_is_who_is_over_then_who_has_one_end_then_who_is_of_this_generation_then_who_is_most_silent(
        places in places(),
        hash in any::<u32>(),
    ) {
        let table = Cells::new(2, [0; 7]);
        let key = Name::new(1, hash);
        let new = key.flow(1);
        for (index, at) in places.iter().enumerate() {
            let name = Name::new(100 + index as u32, 0);
            match *at {
                At::Empty => {}
                At::Claimed => {
                    // Of another hash: else it may be the same flow.
                    let note = !hash;
                    table.put(index, &name, &Flow { state: FlowState(FlowState::BUSY), note, ..Flow::default() });
                }
                At::Held { state, silence, same_generation } => {
                    let generation = if same_generation { new.generation } else { new.generation - 1 };
                    let last_seen = NOW.wrapping_sub(silence as u32);
                    let state = state.with(FlowState::LIVE);
                    table.put(index, &name, &Flow { state, last_seen, generation, ..name.flow(1) });
                }
            }
        }
        let before = table.all();
        let stored = insert(&&table, &key, hash, &new, NOW);
        let allowed = allowed(&places, hash);
        let words = |index: usize| index * 5..index * 5 + 5;
        let after = table.all();
        let written: Vec<_> = (0..PLACES).filter(|&index| after[words(index)] != before[words(index)]).collect();
        match written[..] {
            [] => prop_assert!(stored == Stored::No && allowed.is_empty(), "{:?}", allowed),
            [index] => {
                prop_assert!(allowed.contains(&index), "{} of {:?}", index, allowed);
                let is_missed = !places[index].is_free() && places[index].is_assured();
                prop_assert_eq!(stored, if is_missed { Stored::Evicted } else { Stored::Yes });
                prop_assert_eq!(key.value_of(&table.flow(index)), 1);
                prop_assert_eq!(find_whole(&&table, &key).map(|found| *found.flow()), Some(table.flow(index)));
                prop_assert_eq!(find_slowly(&&table, &key).map(|found| *found.flow()), Some(table.flow(index)));
            }
            _ => prop_assert!(false, "several places were written: {:?}", written),
        }
    }
}

#[test]
fn each_class_gives_way_before_the_next_however_silent_that_one_is() {
    let (confirmed, answered) = (FlowState::CONFIRMED, FlowState::ANSWERED);
    // From the first to be evicted to the last; each with another generation's half.
    let classes = [
        (FlowState::CLIENT_FIN | FlowState::BACKEND_FIN, true),
        (0, true),
        (answered, false),
        (ASSURED, true),
        (ASSURED, false),
    ];
    let alike = [(confirmed, true), (answered, true), (0, true)];
    for (nth, &(state, same_generation)) in classes.iter().enumerate() {
        for &(later, later_generation) in &classes[nth + 1..] {
            let victim = |bits: u32, same, silence| At::Held {
                state: FlowState(bits).with_limit(1 << 20),
                silence,
                same_generation: same,
            };
            let mut places = vec![victim(later, later_generation, 900_000); PLACES];
            places[5] = victim(state, same_generation, 0);
            assert_eq!(taken(&places), 5, "{state:#x} before {later:#x}");
        }
    }
    for (state, same_generation) in alike {
        let mut places =
            vec![At::Held { state: FlowState(ASSURED).with_limit(1 << 20), silence: 900_000, same_generation }; PLACES];
        places[3] = At::Held { state: FlowState(state).with_limit(1 << 20), silence: 0, same_generation };
        assert_eq!(taken(&places), 3, "{state:#x} before an assured one");
    }
}

#[test]
fn of_flows_alike_the_one_with_the_greatest_part_of_its_limit_gives_way() {
    let held =
        |silence, limit: u32| At::Held { state: FlowState(ASSURED).with_limit(limit), silence, same_generation: true };
    // A DNS flow that may be silent for 480 ticks, of which it has been for 300, among TCP connections that may be for
    // 100,000, and have been for 50,000.
    let mut places = vec![held(50_000, 100_000); PLACES];
    places[6] = held(300, 480);
    assert_eq!(taken(&places), 6);
    places[6] = held(200, 480);
    assert_ne!(taken(&places), 6);
}

/// The place that a flow of hash 0 takes.
fn taken(places: &[At]) -> usize {
    let table = Cells::new(2, [0; 7]);
    let key = Name::new(1, 0);
    for (index, at) in places.iter().enumerate() {
        let At::Held { state, silence, same_generation } = *at else { panic!("held places only") };
        let name = Name::new(100 + index as u32, 0);
        let generation = key.flow(1).generation - u32::from(!same_generation);
        let flow =
            Flow { state: state.with(FlowState::LIVE), last_seen: NOW - silence as u32, generation, ..name.flow(1) };
        table.put(index, &name, &flow);
    }
    assert_ne!(insert(&&table, &key, 0, &key.flow(1), NOW), Stored::No);
    (0..PLACES).find(|&index| table.flow(index).note == key.flow(1).note).expect("it was stored")
}

#[test]
fn a_client_is_found_without_its_virtual_address_and_a_flow_only_with_it() {
    let table = Cells::new(2, [0; 7]);
    let keys: Vec<Name> = (0..6).map(|vip| Name { vip, ..Name::new(1, 0) }).collect();
    for key in &keys {
        assert_eq!(insert(&&table, key, 0, &key.flow(key.vip.into()), NOW), Stored::Yes);
    }
    for key in &keys {
        let found = find_whole(&&table, key).expect("stored");
        assert_eq!((key.value_of(found.flow()), found.vip()), (key.vip.into(), key.vip));
    }
    assert!(find_whole(&&table, &Name { vip: 77, ..keys[0] }).is_none());
    let any = Name { vip: 0, ..keys[0] };
    let found = find(&&table, &any, 0, Match::Client).expect("one of them");
    assert_eq!(any.value_of(found.flow()), u32::from(found.vip()));
    let other = Name { port: 81, ..any };
    assert!(find(&&table, &other, 0, Match::Client).is_none(), "another port is another client");
}

#[test]
fn a_flow_is_replaced_whatever_has_been_noted_of_it_since() {
    let table = Cells::new(2, [0; 7]);
    let key = Name::new(1, 0);
    insert(&&table, &key, 0, &key.flow(1), NOW);
    let found = find_whole(&&table, &key).expect("stored");
    find_whole(&&table, &key).expect("stored").set(FlowState::CLIENT_FIN);
    assert_eq!(replace(&&table, found, &key.flow(2)), Stored::Yes);
    let flow = *find_whole(&&table, &key).expect("stored").flow();
    assert_eq!((key.value_of(&flow), flow.state.has_any(FlowState::ENDS), table.count()), (2, false, 1));
    assert_eq!(replace(&&table, found, &key.flow(3)), Stored::No, "that row is gone");
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Store { replaces: bool, value: u32 },
    Insert { value: u32 },
    Remove,
    Note { bits: u32 },
    See { later: u32 },
    Nothing,
}

fn operation() -> impl Strategy<Value = Operation> {
    let bits = prop::sample::select(vec![FlowState::CLIENT_FIN, FlowState::BACKEND_FIN, FlowState::IDLE_ONLY]);
    prop_oneof![
        3 => (any::<bool>(), 0..200_u32).prop_map(|(replaces, value)| Operation::Store { replaces, value }),
        2 => (0..200_u32).prop_map(|value| Operation::Insert { value }),
        1 => Just(Operation::Remove),
        1 => bits.prop_map(|bits| Operation::Note { bits }),
        1 => (0..5_u32).prop_map(|later| Operation::See { later }),
        1 => Just(Operation::Nothing),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// A key has sixteen places: one of fifteen keys always finds one.
    #[test]
    fn as_long_as_there_is_room_it_is_a_map(
        buckets in prop::sample::select(vec![2_usize, 4, 16]),
        hashes in prop::array::uniform15(any::<u32>()),
        operations in prop::collection::vec((0..15_usize, operation()), 1..300),
    ) {
        let table = Cells::new(buckets, [0; 7]);
        let mut map: HashMap<Name, (u32, u32, u32)> = HashMap::new();
        let key = |of: usize| Name { port: 80 + of as u16 / 4, vip: of as u16 % 3, ..Name::new(of as u32, hashes[of]) };
        for (of, operation) in operations {
            let key = key(of);
            let found = find_whole(&&table, &key);
            prop_assert_eq!(found.map(|found| key.value_of(found.flow())), map.get(&key).map(|(value, ..)| *value));
            let by_client = find(&&table, &Name { vip: 9, ..key }, key.hash, Match::Client);
            prop_assert_eq!(by_client.map(|found| (*found.flow(), found.vip())), found.map(|found| (*found.flow(), key.vip)));
            let is_there = found.is_some();
            match (operation, found) {
                (Operation::Store { replaces, value }, _) => {
                    let stored = store(&&table, &key, &key.flow(value), replaces);
                    prop_assert_eq!(stored == Stored::Yes, replaces || !is_there, "{:?}", stored);
                    if stored == Stored::Yes {
                        map.insert(key, (value, 0, NOW));
                    }
                }
                (Operation::Insert { value }, _) => {
                    let stored = insert(&&table, &key, key.hash, &key.flow(value), NOW);
                    prop_assert_eq!(stored, if is_there { Stored::No } else { Stored::Yes });
                    map.entry(key).or_insert((value, 0, NOW));
                }
                (Operation::Remove, Some(found)) => {
                    prop_assert!(remove(found) && !remove(found));
                    map.remove(&key);
                }
                // One end at most: a flow that has ended is evicted.
                (Operation::Note { bits }, Some(mut found)) if !found.state().with(bits).has_ended() => {
                    found.set(bits);
                    map.get_mut(&key).expect("found").1 |= bits;
                }
                (Operation::See { later }, Some(mut found)) => {
                    found.see(NOW + later);
                    map.get_mut(&key).expect("found").2 = NOW + later;
                }
                _ => {}
            }
            prop_assert_eq!(table.count(), map.len());
        }
        for (key, (value, bits, seen)) in &map {
            let flow = *find_slowly(&&table, key).expect("it is in the map").flow();
            prop_assert_eq!((key.value_of(&flow), flow.last_seen), (*value, *seen));
            prop_assert!(flow.state.has(*bits));
        }
        prop_assert_eq!((&&table).mask() + 1, (table.rows() / WAYS as usize) as u32);
    }
}
