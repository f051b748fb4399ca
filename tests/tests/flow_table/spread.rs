//! How clients of all kinds spread over a table, and how seldom an open flow is evicted, whatever the clients have in
//! common and whatever the keys of the hash are:
//!
//! | load | open flows that are evicted, of 100,000 that are opened |
//! | --- | --- |
//! | filled to half once | at most 1 |
//! | half full all the time, while flows come and go | at most 10 |
//!
//! Keys are random, but the same each time: a failure can be had again.

use crate::{ASSURED, NOW, cells::Cells};
use bg_common::{Addr, Be16, Flow, FlowKey4, FlowKey6, FlowState};
use bg_ebpf::flow::{
    bucket::WAYS,
    key::{Key, Match},
    memory::Memory as _,
    table::{Stored, find, insert},
};

const ROWS: usize = 1 << 17;
const BUCKETS: usize = ROWS / WAYS as usize;
/// Draws of keys for each kind of clients.
const DRAWS: u64 = 2;

/// splitmix64.
pub(crate) fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

pub(crate) fn keys(draw: u64) -> [u64; 7] {
    let mut random = random(draw << 32 | 1);
    std::array::from_fn(|_| random())
}

/// A client's end and the virtual address that it talks to, with that address's salt.
#[derive(Clone, Copy)]
pub(crate) struct End {
    pub(crate) client: u32,
    pub(crate) port: u16,
    pub(crate) vip: u16,
    pub(crate) salt: u16,
}

/// An address as a number; it stands in network order in keys.
const CLIENT: u32 = 0xc000_0201;

/// A client of the only service. Address and port are numbers in the host's order.
fn end(client: u32, port: u32) -> End {
    End { client: client.to_be(), port: port as u16, vip: 0, salt: 0 }
}

/// Bits of a number at each `step`th bit of a larger one.
fn far_apart(n: u32, step: u32) -> u64 {
    (0..32).filter(|bit| bit * step < 64).map(|bit| u64::from(n >> bit & 1) << (bit * step)).sum()
}

/// The `n`th client of a kind.
type Kind = fn(u32) -> End;

/// Kinds of clients.
const KINDS: [(&str, Kind); 14] = [
    ("random", |n| {
        let random = random(n.into())();
        end(random as u32, (random >> 32) as u32)
    }),
    ("one client's ports in order, then the next one's", |n| end(CLIENT + (n >> 16), n)),
    ("clients in order, of one port", |n| end(CLIENT + n, 40_000)),
    ("two hundred and fifty-six clients, and their ports", |n| end(CLIENT + (n & 0xff), 30_000 + (n >> 8))),
    ("ports by sixteen", |n| end(CLIENT + (n >> 12), (n & 0xfff) << 4)),
    ("clients with the same low half", |n| End { client: n << 16 | 1, ..end(0, 40_000 + (n >> 16)) }),
    ("clients with the same high half, as little-endian words", |n| End {
        client: 0x0a0b_0000 | n & 0xffff,
        ..end(0, 40_000 + (n >> 16))
    }),
    ("bits of the client, all but two apart", |n| End { client: far_apart(n, 2) as u32, ..end(0, 40_000 + (n >> 16)) }),
    ("bits all over address and port", |n| {
        let bits = far_apart(n, 3);
        End { client: bits as u32, port: (bits >> 32) as u16, ..end(0, 0) }
    }),
    ("address and port alike", |n| End { client: n, ..end(0, n) }),
    ("two services, of different salts", |n| End {
        vip: (n & 1) as u16,
        salt: (n & 1) as u16,
        ..end(CLIENT + (n >> 1), 40_000)
    }),
    ("salts in order", |n| End { vip: n as u16, salt: n as u16, ..end(CLIENT + (n >> 16), 40_000) }),
    ("salt and port alike", |n| End { vip: n as u16, salt: n as u16, ..end(CLIENT + (n >> 16), n) }),
    ("networks of sixteen, a port each", |n| end(CLIENT + ((n & 0xfff) << 4), 50_000 + (n >> 12))),
];

pub(crate) fn v4(end: End) -> FlowKey4 {
    FlowKey4 { client: end.client, port: Be16::new(end.port), vip: end.vip }
}

/// The same in IPv6: clients differ in the lowest word of a prefix, or their prefixes differ.
fn v6(end: End, is_high: bool) -> FlowKey6 {
    let prefix = 0x2001_0db8_u32.to_be();
    let client = Addr(if is_high { [prefix, end.client, 0, 1] } else { [prefix, 0, 0, end.client] });
    FlowKey6 { client, reserved: 0, port: Be16::new(end.port), vip: end.vip }
}

/// A flow that is as hard to evict as any.
pub(crate) fn open_flow() -> Flow {
    Flow { state: FlowState(ASSURED).with_limit(1000), generation: 1, last_seen: NOW, ..Flow::default() }
}

/// Opens a flow; whether an open one was evicted for it.
pub(crate) fn evicts<K: Key>(table: &Cells<K>, key: &K, salt: u16) -> bool {
    match insert(&table, key, key.hash(salt, &table), &open_flow(), NOW) {
        Stored::Yes => false,
        Stored::Evicted => true,
        Stored::No => panic!("it is there already"),
    }
}

/// How many open flows are evicted until the table is half full of a kind.
fn evicted<K: Key>(draw: u64, nth: impl Fn(u32) -> (K, u16)) -> usize {
    let table = Cells::new(BUCKETS, keys(draw));
    let opens = |n| {
        let (key, salt) = nth(n);
        evicts(&table, &key, salt)
    };
    let evicted = (0..ROWS as u32 / 2).filter(|n| opens(*n)).count();
    assert_eq!(table.count(), ROWS / 2 - evicted);
    evicted
}

/// Of all kinds together at most 1 in 100,000, and of each no more than chance has at that rate.
fn all_kinds(of: &str, run: impl Fn(u64, Kind) -> usize) {
    let opened_each = ROWS / 2 * DRAWS as usize;
    let mut all = 0;
    for (kind, nth) in KINDS {
        let evicted: Vec<usize> = (0..DRAWS).map(|draw| run(draw, nth)).collect();
        println!("{of}, {kind}: {evicted:?} of {opened_each}");
        let sum: usize = evicted.iter().sum();
        assert!(sum <= 1 + opened_each / 50_000, "{of}, {kind}: {evicted:?}");
        all += sum;
    }
    let opened = opened_each * KINDS.len();
    println!("{of}: {all} of {opened}");
    assert!(all * 100_000 <= opened, "{of}: {all} of {opened}");
}

#[test]
fn filled_to_half_hardly_an_open_flow_is_evicted() {
    all_kinds("IPv4", |draw, nth| evicted(draw, |n| (v4(nth(n)), nth(n).salt)));
}

#[test]
fn nor_is_it_in_ipv6() {
    all_kinds("IPv6", |draw, nth| evicted(draw, |n| (v6(nth(n), false), nth(n).salt)));
    all_kinds("IPv6 prefixes", |draw, nth| evicted(draw, |n| (v6(nth(n), true), nth(n).salt)));
}

/// How many open flows are evicted while so many are open at any time, each ending sooner or later, and another one in
/// its place: those that have ended stay in the table until their places are wanted.
fn evicted_by_turnover<K: Key>(draw: u64, turns: u32, nth: impl Fn(u32) -> (K, u16)) -> usize {
    let table = Cells::new(BUCKETS, keys(draw));
    let mut choice = random(draw);
    let mut open: Vec<u32> = Vec::new();
    let mut evicted = 0;
    for n in 0..turns {
        if open.len() == ROWS / 2 {
            let (key, salt) = nth(open.swap_remove(choice() as usize % open.len()));
            if let Some(mut found) = find(&&table, &key, key.hash(salt, &&table), Match::Whole) {
                found.set(FlowState::CLIENT_FIN | FlowState::BACKEND_FIN);
            }
        }
        let (key, salt) = nth(n);
        evicted += usize::from(evicts(&table, &key, salt));
        open.push(n);
    }
    evicted
}

/// Flows that come and go leave buckets less even than flows that only come.
#[test]
fn half_full_all_the_time_few_open_flows_are_evicted() {
    const TURNS: u32 = 4 * ROWS as u32;
    for kind in [0, 1, 2, 10] {
        let (kind, nth) = KINDS[kind];
        let counts = [
            evicted_by_turnover(1, TURNS, |n| (v4(nth(n)), nth(n).salt)),
            evicted_by_turnover(2, TURNS, |n| (v6(nth(n), false), nth(n).salt)),
        ];
        println!("{kind}: {counts:?} of {TURNS} each, in IPv4 and IPv6");
        assert!(counts.iter().all(|evicted| *evicted <= TURNS as usize / 10_000), "{kind}: {counts:?}");
    }
}

/// Pairs of flows of a kind that have the same first bucket, against what chance would bring about, over many keys.
fn crowding<K: Key>(buckets: usize, draws: u64, nth: impl Fn(u32) -> (K, u16)) -> f64 {
    let flows = buckets as u32 * 4;
    let mut pairs = 0_u64;
    for draw in 0..draws {
        let table: Cells<K> = Cells::new(buckets, keys(1000 + draw));
        let mut counts = vec![0_u64; buckets];
        for n in 0..flows {
            let (key, salt) = nth(n);
            counts[(key.hash(salt, &&table) & (&&table).mask()) as usize] += 1;
        }
        pairs += counts.iter().map(|count| count * count.saturating_sub(1) / 2).sum::<u64>();
    }
    let all = f64::from(flows) * f64::from(flows - 1) / 2.0;
    pairs as f64 / draws as f64 / (all / buckets as f64)
}

#[test]
fn over_all_keys_two_flows_meet_no_more_often_than_by_chance() {
    for (kind, nth) in KINDS {
        let in_v4 = crowding(1 << 10, 30, |n| (v4(nth(n)), nth(n).salt));
        let in_v6 = crowding(1 << 10, 30, |n| (v6(nth(n), true), nth(n).salt));
        println!("{kind}: {in_v4:.3}, IPv6 {in_v6:.3}");
        assert!(in_v4 < 1.1 && in_v6 < 1.1, "{kind}: {in_v4:.3}, IPv6 {in_v6:.3}");
    }
}
