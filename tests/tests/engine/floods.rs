//! Who stays in a full table: floods of flows in which not both ends take part evict each other.

use crate::*;

/// A table for 4,096 flows, of which one in two rows is to be free.
const ROWS: u32 = 2 * 4096;

/// Ticks of the limits, about those of an instance by default at 250 timer ticks a second: two hours, half a minute.
const TCP_IDLE: u32 = 28_125;
const SHORT: u32 = 117;

const CONNECTIONS: u16 = 1000;

/// Ten times as many as the table is made for.
const FLOOD: u32 = 40_960;

fn client(nth: u16) -> String {
    format!("192.0.2.{}:{}", nth % 200, 10_000 + nth)
}

/// Anybody.
fn stranger(nth: u32) -> String {
    format!("100.{}.{}.{}:{}", 64 + nth % 60, nth / 60 % 250, nth % 251, 1024 + nth % 60_001)
}

/// A host with connections that were silent for most of their limit.
fn with_silent_connections() -> Host {
    let mut scenario = shop();
    let (row, ..) = &mut scenario.deployments[0];
    (row.tcp_idle, row.tcp_opening, row.udp_idle) = (TCP_IDLE, SHORT, SHORT);
    let mut host = Host::load_with_rows(scenario, NOW, ROWS);
    for nth in 0..CONNECTIONS {
        assert_eq!(connect(&host, &client(nth), WEB), at(BLUE));
    }
    host.later(NOW + TCP_IDLE * 99 / 100);
    host
}

/// Asserts that all connections are where they were, though new ones would be elsewhere.
fn all_are_there(mut host: Host) {
    assert_eq!(host.events(Event::PushedOut), 0);
    let opened = host.traffic(0, 0).flows_opened;
    drain(&host);
    host.later(host.tick.get() + 1);
    for nth in 0..CONNECTIONS {
        assert_eq!(sent_to(&host, &tcp(&client(nth), WEB, ACK)), at(BLUE), "{nth}");
    }
    assert_eq!(host.traffic(0, 0).flows_opened, opened, "none was opened anew");
}

#[test]
fn a_silent_connection_survives_a_flood_of_dns() {
    let host = with_silent_connections();
    for nth in 0..FLOOD {
        sent_to(&host, &udp(&stranger(nth), DNS));
        answers_as(&host, &udp(BLUE_DNS, &stranger(nth)));
    }
    all_are_there(host);
}

#[test]
fn a_silent_connection_survives_a_flood_of_syns() {
    let host = with_silent_connections();
    for nth in 0..FLOOD {
        sent_to(&host, &tcp(&stranger(nth), WEB, SYN));
        // Half of them are answered, though nobody has sent them.
        if nth % 2 == 0 {
            answers_as(&host, &tcp(BLUE, &stranger(nth), SYN | ACK));
        }
    }
    all_are_there(host);
}

#[test]
fn a_silent_connection_survives_a_flood_of_forged_segments() {
    let host = with_silent_connections();
    for nth in 0..FLOOD {
        sent_to(&host, &tcp(&stranger(nth), WEB, ACK));
        if nth % 2 == 0 {
            answers_as(&host, &tcp(BLUE, &stranger(nth), RST));
        }
    }
    all_are_there(host);
}
