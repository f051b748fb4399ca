//! What ended connections get: a reset at each end, made by the data path.

use crate::*;
use bg_common::{Flow, FlowState, NextHop};

const WEB6: &str = "[2001:db8::10]:443";
const BLUE6: &str = "[fd00:1::11]:8443";
const GREEN6: &str = "[fd00:2::11]:8443";
const CLIENT6: &str = "[2001:db8:1::1]:40000";

/// The connection of a client, in one family, and what comes next.
struct Connection {
    client: &'static str,
    /// Row of `vips`.
    row: u16,
    vip: &'static str,
    blue: &'static str,
    green: &'static str,
}

const CONNECTIONS: [Connection; 2] = [
    Connection { client: CLIENT, row: 0, vip: WEB, blue: BLUE, green: GREEN },
    Connection { client: CLIENT6, row: 4, vip: WEB6, blue: BLUE6, green: GREEN6 },
];

fn host() -> Host {
    let mut scenario = shop();
    scenario.service(&service(WEB6, None, Protocol::Tcp, BLUE6, GREEN6));
    Host::load(scenario, NOW)
}

/// The flow of a client, in the table.
fn flow(host: &Host, Connection { client, row, .. }: &Connection) -> Flow {
    host.flow(flow_of(client, *row)).expect("a row")
}

#[test]
fn the_next_segment_of_either_end_resets_both_and_frees_the_row() {
    let ways = CONNECTIONS.iter().flat_map(|of| [true, false].map(|is_cut| (of, is_cut)));
    for (of @ Connection { client, vip, blue, green, .. }, is_cut) in ways {
        for is_of_backend in [false, true] {
            let mut host = host();
            assert_eq!(connect(&host, client, vip), at(blue));
            if is_cut {
                cut(&host)
            } else {
                drain_until(&host, NOW + 10)
            }
            host.later(NOW + 10);
            let segment = if is_of_backend {
                PacketSpec { acknowledgment: 0xffff_fffe, sequence: 77, tags: 2, ..tcp(blue, client, FIN | ACK) }
            } else {
                PacketSpec { acknowledgment: 0xfeed_0001, payload: vec![7; 99], ..tcp(client, vip, ACK | 0x08) }
            };
            is_reset(&host, &segment);
            assert!(!flow(&host, of).state.has_ended());
            // What has taken the place of the segment comes by the same hook.
            if is_of_backend {
                host.routes.borrow_mut().insert(at(client).ip(), NextHop::pack(OUT, 1500, 1, 2, 0));
                let onward = host.ingress(&tcp(blue, client, RST).frame());
                assert_eq!((onward.action, ends(&onward.frame)), (Action::Resolve, (at(vip), at(client))));
            } else {
                assert_eq!(sent_to(&host, &tcp(client, vip, RST)), at(blue));
            }
            assert!(flow(&host, of).state.has_ended(), "the row is free");
            // As long as it is there, segments that were on the way are answered.
            is_reset(&host, &segment);
            assert_eq!(host.events(Event::EndedReset), 2);
            assert_eq!(sent_to(&host, &tcp(client, vip, SYN)), at(green));
        }
    }
}

#[test]
fn data_of_the_backend_reaches_the_client_whose_answer_ends_the_connection() {
    for Connection { client, vip, blue, .. } in &CONNECTIONS {
        let host = host();
        connect(&host, client, vip);
        cut(&host);
        assert_eq!(answers_as(&host, &tcp(blue, client, ACK)), at(vip));
        is_reset(&host, &tcp(client, vip, ACK));
    }
}

#[test]
fn a_backend_whose_client_says_nothing_more_is_reset_at_its_next_segment() {
    for Connection { client, vip, blue, .. } in &CONNECTIONS {
        let host = host();
        connect(&host, client, vip);
        assert_eq!(sent_to(&host, &tcp(client, vip, FIN | ACK)), at(blue));
        assert_eq!(answers_as(&host, &tcp(blue, client, ACK)), at(vip));
        cut(&host);
        is_reset(&host, &tcp(blue, client, ACK));
    }
}

#[test]
fn a_connection_that_a_command_has_ended_is_reset_by_the_next_segment_of_either_end() {
    let flow_of_client = || flow_of(CLIENT, 0);
    for segment in
        [tcp(CLIENT, WEB, ACK), tcp(CLIENT, WEB, FIN | ACK), tcp(BLUE, CLIENT, ACK), tcp(BLUE, CLIENT, FIN | ACK)]
    {
        let host = host();
        connect(&host, CLIENT, WEB);
        connect(&host, "192.0.2.1:40001", WEB);
        let flow = host.flow(flow_of_client()).expect("a row");
        assert!(!flow.state.has_ended());
        host.store(flow_of_client(), &Flow { state: flow.state.with(FlowState::ENDED), ..flow });
        is_reset(&host, &segment);
        assert_eq!(host.early(&segment.frame()), Outcome { action: Action::Defer, frame: segment.frame() });
        let state = || host.flow(flow_of_client()).expect("a row").state;
        assert!(state().is_ended_by_command() && !state().is_reset(), "nobody has been told yet");
        // What has taken the place of the segment comes by the same hook, and the row says that it did.
        if segment.from == at(BLUE) {
            assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, RST)), at(WEB));
        } else {
            assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, RST)), at(BLUE));
        }
        assert!(state().is_ended_by_command() && state().is_reset());
        is_reset(&host, &segment);
        // Another connection of the port is one like any other, and so is that of another client.
        assert_eq!(connect(&host, CLIENT, WEB), at(BLUE));
        assert!(!state().has_ended());
        assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
        assert_eq!(sent_to(&host, &tcp("192.0.2.1:40001", WEB, ACK)), at(BLUE));
    }
}

#[test]
fn xdp_leaves_a_reset_to_tc_unmodified_and_uncounted() {
    let host = host();
    connect(&host, CLIENT, WEB);
    cut(&host);
    for packet in [tcp(CLIENT, WEB, ACK), tcp(BLUE, CLIENT, FIN | ACK)] {
        let frame = packet.frame();
        assert_eq!(host.early(&frame), Outcome { action: Action::Defer, frame });
    }
    assert_eq!(host.events(Event::EndedReset), 0);
}

#[test]
fn a_reset_is_not_answered_and_reaches_the_end_that_it_is_for() {
    let host = host();
    connect(&host, CLIENT, WEB);
    cut(&host);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, RST)), at(BLUE));
    assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, RST | ACK)), at(WEB));
    assert!(host.flow(flow_of(CLIENT, 0)).expect("a row").state.has_ended());
}

#[test]
fn a_connection_of_the_live_colour_or_of_no_row_is_not_reset() {
    let host = host();
    connect(&host, CLIENT, WEB);
    cut(&host);
    connect(&host, "192.0.2.1:40001", WEB);
    assert_eq!(sent_to(&host, &tcp("192.0.2.1:40001", WEB, ACK)), at(GREEN));
    assert_eq!(sent_to(&host, &tcp("192.0.2.1:40002", WEB, ACK)), at(GREEN), "without a row");
    passes(&host, &tcp(BLUE, "192.0.2.1:40003", ACK));
}

#[test]
fn a_connection_that_the_backend_has_with_the_client_itself_is_not_reset() {
    let host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    let foreign = PacketSpec { acknowledgment: 0x7000_0000, ..tcp(BLUE, CLIENT, ACK) };
    passes(&host, &foreign);
    cut(&host);
    passes(&host, &foreign);
}

#[test]
fn options_of_the_ip_header_stay_and_those_of_tcp_do_not() {
    let host = host();
    connect(&host, CLIENT, WEB);
    cut(&host);
    let segment = PacketSpec { options: 3, tags: 1, ..tcp(CLIENT, WEB, ACK) };
    is_reset(&host, &segment);
    assert_eq!(host.answer().len(), 14 + 4 + 20 + 12 + 20);
}
