//! A client that uses one port for many services: a proxy in front, with one address, 50 services, and 10,000
//! connections to each.
//!
//! | the services | open flows that are evicted, of 500,000 in a table that they fill to half |
//! | --- | --- |
//! | have salts of their own | none to speak of |
//! | have one salt, since they share their backends | all that do not find room in the sixteen rows of a port; of the others up to 1 in 12 |
//!
//! In the second case the backends limit a proxy in the same way: to each of them, a port is one connection.

use crate::{
    cells::Cells,
    spread::{End, evicts, keys, random, v4},
};
use bg_ebpf::flow::bucket::WAYS;
use std::collections::HashMap;

const SERVICES: u32 = 50;
const CONNECTIONS: u32 = 10_000;
/// The connections fill half of the table.
const ROWS: usize = 1 << 20;

/// The port of a service's `nth` connection.
type Port = fn(u32, u32) -> u16;

/// The first of `count` ports for a service.
fn first(service: u32, count: u32) -> u32 {
    random(service.into())() as u32 % count
}

/// As Linux chooses ports: for each destination from another one on, every second one of its range.
fn linux(service: u32, nth: u32) -> u16 {
    const COUNT: u32 = (61_000 - 32_768) / 2;
    (32_768 + 2 * ((first(service, COUNT) + nth) % COUNT)) as u16
}

/// As a proxy may that binds its own.
fn any(service: u32, nth: u32) -> u16 {
    const COUNT: u32 = 65_536 - 1024;
    (1024 + (first(service, COUNT) + nth) % COUNT) as u16
}

/// Open flows that are evicted.
fn evicted(salt: fn(u32) -> u16, port: Port) -> usize {
    let table = Cells::new(ROWS / WAYS as usize, keys(7));
    let mut evicted = 0;
    for nth in 0..CONNECTIONS {
        for service in 0..SERVICES {
            let end = End {
                client: u32::from_ne_bytes([192, 0, 2, 1]),
                port: port(service, nth),
                vip: 2 * service as u16,
                salt: salt(service),
            };
            evicted += usize::from(evicts(&table, &v4(end), end.salt));
        }
    }
    evicted
}

/// Flows that do not find room in the rows that a port has.
fn beyond_sixteen_of_a_port(port: Port) -> usize {
    let mut flows: HashMap<u16, usize> = HashMap::new();
    (0..SERVICES)
        .for_each(|service| (0..CONNECTIONS).for_each(|nth| *flows.entry(port(service, nth)).or_default() += 1));
    flows.values().map(|flows| flows.saturating_sub(2 * WAYS as usize)).sum()
}

const FLOWS: usize = (SERVICES * CONNECTIONS) as usize;

#[test]
fn services_with_salts_of_their_own_evict_nobody() {
    for (ports, port) in [("Linux", linux as Port), ("any", any)] {
        let evicted = evicted(|service| service as u16, port);
        println!("{ports}: {evicted} of {FLOWS}");
        assert!(evicted * 100_000 <= FLOWS, "{ports}: {evicted}");
    }
}

#[test]
fn services_with_one_salt_evict_what_a_port_has_no_rows_for_and_few_more() {
    for (ports, port) in [("Linux", linux as Port), ("any", any)] {
        let (evicted, beyond) = (evicted(|_| 0, port), beyond_sixteen_of_a_port(port));
        println!("{ports}: {evicted} of {FLOWS}, of which {beyond} had no room in the sixteen rows of a port");
        assert!(evicted - beyond <= FLOWS / 12, "{ports}: {evicted}, {beyond}");
    }
}

#[test]
fn users_of_two_services_with_one_salt_evict_a_few() {
    // One port of each client, for both.
    const CLIENTS: u32 = 1 << 18;
    let table = Cells::new(1 << 17, keys(8));
    let mut evicted = 0;
    for client in 0..CLIENTS {
        for vip in [0, 2] {
            let end = End { client: (0xc000_0201_u32 + client).to_be(), port: 40_000, vip, salt: 0 };
            evicted += usize::from(evicts(&table, &v4(end), 0));
        }
    }
    println!("{evicted} of {}", 2 * CLIENTS);
    assert!(evicted * 1000 <= 2 * CLIENTS as usize, "{evicted}");
}
