//! One at a time: who gives way to whom, against the rule written down plainly; and the table beside a map.

use crate::{NOW, Name, cells::Cells};
use bg_common::{Flow, FlowState};
use bg_ebpf::flow_table::{Memory as _, Stored, WAYS, find, find_slowly, insert, remove, store};
use proptest::prelude::*;
use std::{cmp::Reverse, collections::HashMap};

/// What is at a place.
#[derive(Clone, Copy, Debug)]
enum At {
    Empty,
    Claimed,
    Held { state: FlowState, silence: i32, udp: bool },
}

impl At {
    /// A place with a greater one is taken before. None is taken that somebody else has claimed.
    fn rank(self) -> Option<(bool, bool, bool, u32)> {
        match self {
            Self::Claimed => None,
            Self::Empty => Some((true, false, false, 0)),
            Self::Held { state, udp, .. } => {
                let silence = self.silence();
                let is_over = state.has_ended() || silence > state.limit();
                Some((false, is_over, !udp && !state.has(FlowState::ESTABLISHED), silence))
            }
        }
    }

    fn silence(self) -> u32 {
        if let Self::Held { silence, .. } = self { silence.max(0) as u32 } else { 0 }
    }

    /// Whether nobody misses it.
    fn is_free(self) -> bool {
        self.rank().is_some_and(|(is_empty, is_over, ..)| is_empty || is_over)
    }
}

fn place() -> impl Strategy<Value = At> {
    let ends = [0, 0, 0, 0, FlowState::CLIENT_FIN, FlowState::BACKEND_FIN, FlowState::CLIENT_RESET, FlowState::GONE];
    let ends = prop::sample::select(ends.to_vec());
    let bits = (ends, any::<[bool; 3]>()).prop_map(|(end, [established, other_fin, reply])| {
        let fin = if other_fin && end != 0 { FlowState::BACKEND_FIN } else { 0 };
        let bit = |is_set, bit| if is_set { bit } else { 0 };
        end | fin | bit(established, FlowState::ESTABLISHED) | bit(reply, FlowState::REPLY)
    });
    let limit = prop_oneof![Just(8_u32), Just(1000), Just(1 << 20)];
    let silence = prop_oneof![Just(0), Just(8), Just(9), -5..20_i32, 900..1300_i32, 0..900_000_i32];
    let held = (bits, limit, silence, any::<bool>()).prop_map(|(bits, limit, silence, udp)| At::Held {
        state: FlowState(bits).with_limit(limit),
        silence,
        udp,
    });
    prop_oneof![1 => Just(At::Empty), 1 => Just(At::Claimed), 10 => held]
}

/// The place that a tuple of this hash is put at, by the rule.
fn chosen(places: &[At; 8], hash: u32) -> Option<usize> {
    let in_turn = |bucket: usize| (0..4).map(move |nth| bucket * 4 + ((hash >> 30) as usize ^ nth));
    let first = hash as usize & 1;
    let free = |bucket: usize| in_turn(bucket).filter(|&index| places[index].is_free()).count();
    // Of equals the one whose turn comes first.
    let best = |bucket: usize| {
        let ranked =
            in_turn(bucket).enumerate().filter_map(|(nth, index)| Some((places[index].rank()?, Reverse(nth), index)));
        ranked.max().map(|(rank, _, index)| (rank, index))
    };
    let rank = |bucket: usize| best(bucket).map(|(rank, _)| rank);
    let second = first ^ 1;
    let empty = |bucket: usize| in_turn(bucket).filter(|&index| matches!(places[index], At::Empty)).count();
    let takes_second = if empty(first) + empty(second) > 0 {
        empty(second) > empty(first)
    } else {
        free(second) > free(first) || free(first) == 0 && rank(second) > rank(first)
    };
    best(if takes_second { second } else { first }).map(|(_, index)| index)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn who_gives_way_is_who_ended_then_who_is_unconfirmed_then_who_is_silent_longest(
        places in prop::array::uniform8(place()),
        hash in any::<u32>(),
    ) {
        let table = Cells::new(2, [0; 11]);
        for (index, at) in places.iter().enumerate() {
            let name = |udp| Name { udp, ..Name::tcp(100 + index as u32, 0) };
            match *at {
                At::Empty => {}
                At::Claimed => {
                    let flow = Flow { state: FlowState(FlowState::BUSY), ..Flow::default() };
                    table.put(index, &Name { ports: 7, ..name(false) }, &flow);
                }
                At::Held { state, silence, udp } => {
                    let last_seen = NOW.wrapping_sub(silence as u32);
                    table.put(index, &name(udp), &Flow { state: state.with(FlowState::LIVE), last_seen, ..name(udp).flow(1) });
                }
            }
        }
        let before = table.all();
        let key = Name::tcp(1, hash);
        let stored = insert(&&table, &key, &key.flow(1), NOW);
        match chosen(&places, hash) {
            None => {
                prop_assert_eq!(stored, Stored::No);
                prop_assert_eq!(table.all(), before);
            }
            Some(index) => {
                let expected = if places[index].is_free() { Stored::Yes } else { Stored::PushedOut };
                prop_assert_eq!(stored, expected);
                prop_assert_eq!(key.value_of(&table.flow(index)), 1);
                prop_assert_eq!(find(&&table, &key).map(|found| *found.flow()), Some(table.flow(index)));
                let words = index * 5..index * 5 + 5;
                let (mut others, mut after) = (before, table.all());
                others.drain(words.clone());
                after.drain(words);
                prop_assert_eq!(after, others, "another place was written");
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Store { replaces: bool, value: u32 },
    Insert { value: u32 },
    Remove,
    Note { bits: u32 },
    Seen { later: u32 },
    Nothing,
}

fn operation() -> impl Strategy<Value = Operation> {
    let bits = prop::sample::select(vec![FlowState::CLIENT_FIN, FlowState::BACKEND_FIN, FlowState::IDLE_ONLY]);
    prop_oneof![
        3 => (any::<bool>(), 0..200_u32).prop_map(|(replaces, value)| Operation::Store { replaces, value }),
        2 => (0..200_u32).prop_map(|value| Operation::Insert { value }),
        1 => Just(Operation::Remove),
        1 => bits.prop_map(|bits| Operation::Note { bits }),
        1 => (0..5_u32).prop_map(|later| Operation::Seen { later }),
        1 => Just(Operation::Nothing),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A tuple has eight places: one of seven tuples always finds one.
    #[test]
    fn as_long_as_there_is_room_it_is_a_map(
        buckets in prop::sample::select(vec![2_usize, 4, 16]),
        hashes in prop::array::uniform7(any::<u32>()),
        operations in prop::collection::vec((0..7_usize, operation()), 1..200),
    ) {
        let table = Cells::new(buckets, [0; 11]);
        let mut map: HashMap<Name, (u32, u32, u32)> = HashMap::new();
        // Flows of the same ports, of others, of the other protocol.
        let key = |of: usize| Name { ports: 80 + of as u32 / 4, udp: of.is_multiple_of(3), ..Name::tcp(of as u32, hashes[of]) };
        for (of, operation) in operations {
            let key = key(of);
            let found = find(&&table, &key);
            prop_assert_eq!(found.map(|found| key.value_of(found.flow())), map.get(&key).map(|(value, ..)| *value));
            let is_there = found.is_some();
            match (operation, found) {
                (Operation::Store { replaces, value }, _) => {
                    let stored = store(&&table, &key, &key.flow(value), replaces, NOW);
                    prop_assert_eq!(stored == Stored::Yes, replaces || !is_there, "{:?}", stored);
                    if stored == Stored::Yes {
                        map.insert(key, (value, 0, NOW));
                    }
                }
                (Operation::Insert { value }, _) => {
                    let stored = insert(&&table, &key, &key.flow(value), NOW);
                    prop_assert_eq!(stored, if is_there { Stored::No } else { Stored::Yes });
                    map.entry(key).or_insert((value, 0, NOW));
                }
                (Operation::Remove, Some(found)) => {
                    prop_assert!(remove(found) && !remove(found));
                    map.remove(&key);
                }
                // One end at most: a flow that has ended gives way.
                (Operation::Note { bits }, Some(mut found)) if !found.state().with(bits).has_ended() => {
                    found.note(bits);
                    map.get_mut(&key).expect("found").1 |= bits;
                }
                (Operation::Seen { later }, Some(mut found)) => {
                    found.seen(NOW + later);
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
        prop_assert_eq!((&&table).mask() + 1, (table.room() / WAYS as usize) as u32);
    }
}
