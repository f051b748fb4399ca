//! Which packets belong to one flow: SYNs, ports used again, silence, connections without the virtual address.

use crate::*;
use bg_common::{Flow, FlowState};

#[test]
fn a_syn_that_is_sent_again_keeps_its_backend() {
    let host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    drain(&host);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, SYN)), at(BLUE));
}

#[test]
fn another_syn_on_a_tuple_that_never_got_an_answer_chooses_anew() {
    let host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    drain(&host);
    assert_eq!(sent_to(&host, &PacketSpec { sequence: 2, ..tcp(CLIENT, WEB, SYN) }), at(GREEN));
}

#[test]
fn a_port_used_again_after_the_connection_ended_chooses_anew() {
    let endings: [&[(&str, &str, u8)]; 3] =
        [&[(CLIENT, WEB, FIN | ACK), (BLUE, CLIENT, FIN | ACK)], &[(CLIENT, WEB, RST)], &[(BLUE, CLIENT, RST | ACK)]];
    for ending in endings {
        let host = host();
        sent_to(&host, &tcp(CLIENT, WEB, SYN));
        sent_to(&host, &tcp(CLIENT, WEB, ACK));
        for (from, to, flags) in ending {
            let _ = host.egress(&tcp(from, to, *flags).frame());
            let _ = host.ingress(&tcp(from, to, *flags).frame());
        }
        drain(&host);
        assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE), "{ending:?}: the last segments of the old one");
        assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, SYN)), at(GREEN), "{ending:?}");
    }
}

#[test]
fn the_end_of_a_connection_is_known_from_either_end() {
    let endings: [&[(&str, &str, u8)]; 3] =
        [&[(CLIENT, WEB, FIN | ACK), (BLUE, CLIENT, FIN | ACK)], &[(CLIENT, WEB, RST)], &[(BLUE, CLIENT, RST | ACK)]];
    for ending in endings {
        let host = host();
        for (from, to, flags) in [(CLIENT, WEB, SYN), (BLUE, CLIENT, SYN | ACK), (CLIENT, WEB, ACK)] {
            let _ = host.ingress(&tcp(from, to, flags).frame());
        }
        assert!(host.flows().values().all(|flow| !flow.state.has_ended()), "{ending:?}");
        for (from, to, flags) in ending {
            let _ = host.ingress(&tcp(from, to, *flags).frame());
        }
        let ended = host.flows().values().filter(|flow| flow.state.has_ended()).count();
        assert_eq!((host.flows().len(), ended), (1, 1), "{ending:?}");
    }
}

#[test]
fn a_forged_syn_does_not_move_an_established_connection() {
    let host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    sent_to(&host, &tcp(CLIENT, WEB, ACK));
    drain(&host);
    assert_eq!(sent_to(&host, &PacketSpec { sequence: 99, ..tcp(CLIENT, WEB, SYN) }), at(BLUE));
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
}

#[test]
fn a_client_that_talks_to_a_backend_itself_is_not_answered_by_the_vip() {
    let mut host = host();
    for flags in [SYN, ACK, RST] {
        sent_to(&host, &tcp(CLIENT, WEB, flags));
    }
    for flags in [SYN | ACK, ACK, FIN | ACK] {
        passes(&host, &tcp(BLUE, CLIENT, flags));
    }
    host.scenario.deployments[0].0.udp_idle = 100;
    sent_to(&host, &udp(CLIENT, DNS));
    host.later(NOW + 300);
    passes(&host, &udp(BLUE_DNS, CLIENT));
}

#[test]
fn a_connection_with_a_backend_itself_is_told_from_one_by_the_vip() {
    let of_vip = tcp(CLIENT, WEB, SYN);
    let direct = |flags| PacketSpec { acknowledgment: 0x1234_5678, ..tcp(BLUE, CLIENT, flags) };

    // The client's connection with the backend was there first. Its backend objects to the SYN, and goes on.
    let host = host();
    sent_to(&host, &of_vip);
    for _ in 0..2 {
        passes(&host, &direct(ACK));
        sent_to(&host, &of_vip);
    }
    passes(&host, &direct(FIN | ACK));
    // When it has ended, the one by the VIP is answered.
    sent_to(&host, &of_vip);
    for flags in [SYN | ACK, ACK, FIN | ACK] {
        assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, flags)), at(WEB), "{flags:#x}");
        sent_to(&host, &tcp(CLIENT, WEB, ACK));
    }

    // A backend that has lost the connection by the VIP takes one with itself.
    let host = crate::host();
    for flags in [SYN, ACK] {
        sent_to(&host, &tcp(CLIENT, WEB, flags));
        answers_as(&host, &tcp(BLUE, CLIENT, flags | ACK));
    }
    for flags in [SYN | ACK, ACK, RST | ACK] {
        passes(&host, &direct(flags));
    }
}

#[test]
fn an_answer_with_data_may_come_before_the_client_has_confirmed() {
    let host = host();
    sent_to(&host, &PacketSpec { payload: vec![1; 400], ..tcp(CLIENT, WEB, SYN) });
    for flags in [SYN | ACK, ACK] {
        let answer = PacketSpec { acknowledgment: 402, payload: vec![1; 400], ..tcp(BLUE, CLIENT, flags) };
        assert_eq!(answers_as(&host, &answer), at(WEB), "TCP Fast Open");
    }
    let refused = host;
    sent_to(&refused, &PacketSpec { sequence: 9, ..tcp("192.0.2.1:40001", WEB, SYN) });
    let refusal = PacketSpec { acknowledgment: 10, ..tcp(BLUE, "192.0.2.1:40001", RST | ACK) };
    assert_eq!(answers_as(&refused, &refusal), at(WEB));
}

#[test]
fn what_a_packet_says_of_a_flow_is_no_news_of_the_one_that_has_taken_its_row() {
    // Between the packet's look-up and the closer look another CPU opens another connection of the same port.
    type Process = fn(&Host, &PacketSpec);
    let packets: [(Process, PacketSpec); 4] = [
        (|host, packet| drop(host.egress(&packet.frame())), tcp(BLUE, CLIENT, FIN | ACK)),
        (|host, packet| drop(host.egress(&packet.frame())), tcp(BLUE, CLIENT, RST | ACK)),
        (|host, packet| drop(host.ingress(&packet.frame())), tcp(CLIENT, WEB, RST)),
        // The backend has a connection with the client without the virtual address.
        (
            |host, packet| drop(host.egress(&packet.frame())),
            PacketSpec { acknowledgment: 0x1234_5678, ..tcp(BLUE, CLIENT, SYN | ACK) },
        ),
    ];
    for (process, packet) in packets {
        let host = host();
        connect(&host, CLIENT, WEB);
        let of = flow_of(CLIENT, 0);
        let old = host.flow(of).expect("it is open");
        let new = Flow { state: FlowState(0).with_limit(1000), note: 77, generation: 1, ..old };
        let is_looked_at = std::rc::Rc::new(std::cell::Cell::new(false));
        let tells = is_looked_at.clone();
        host.meanwhile(move |host| {
            tells.set(true);
            host.store(of, &new);
        });
        process(&host, &packet);
        assert!(is_looked_at.get(), "{packet:?}");
        let found = host.flow(of).expect("stored");
        let said = FlowState::ENDS | FlowState::ANSWERED | FlowState::FOREIGN;
        assert!(found.note == 77 && !found.state.has_any(said), "{packet:?}: {found:?}");
    }
}

#[test]
fn a_backend_that_still_has_the_connection_before_is_heard() {
    // The client begins anew before anybody has answered, with another sequence number: the backend has the first SYN.
    let host = host();
    sent_to(&host, &PacketSpec { sequence: 1000, ..tcp(CLIENT, WEB, SYN) });
    sent_to(&host, &PacketSpec { sequence: 900_000, ..tcp(CLIENT, WEB, SYN) });
    for flags in [SYN | ACK, ACK] {
        let of_the_first = PacketSpec { acknowledgment: 1001, ..tcp(BLUE, CLIENT, flags) };
        assert_eq!(answers_as(&host, &of_the_first), at(WEB), "{flags:#x}");
    }
    // The client resets what it does not know, and begins anew.
    sent_to(&host, &PacketSpec { sequence: 1001, ..tcp(CLIENT, WEB, RST) });
    sent_to(&host, &PacketSpec { sequence: 900_000, ..tcp(CLIENT, WEB, SYN) });
    assert_eq!(answers_as(&host, &PacketSpec { acknowledgment: 900_001, ..tcp(BLUE, CLIENT, SYN | ACK) }), at(WEB));

    // The port is used again, while the backend still has the last connection: it challenges the SYN (RFC 5961).
    let host = crate::host();
    connect(&host, CLIENT, WEB);
    sent_to(&host, &tcp(CLIENT, WEB, RST));
    sent_to(&host, &PacketSpec { sequence: 5_000_000, ..tcp(CLIENT, WEB, SYN) });
    let challenge = PacketSpec { acknowledgment: 4711, ..tcp(BLUE, CLIENT, ACK) };
    assert_eq!(answers_as(&host, &challenge), at(WEB));

    // Of a port that is used for the first time it would be of a connection without the virtual address.
    let host = crate::host();
    sent_to(&host, &PacketSpec { sequence: 5_000_000, ..tcp(CLIENT, WEB, SYN) });
    passes(&host, &challenge);
}

#[test]
fn a_client_that_comes_again_to_a_dead_backend_is_sent_elsewhere() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    sent_to(&host, &tcp(CLIENT, WEB, ACK));
    drain(&host);
    let again = PacketSpec { sequence: 77, ..tcp(CLIENT, WEB, SYN) };
    // As Linux sends them: after one second more, two, and four.
    for ticks in [0, 15, 30] {
        host.later(NOW + 5 + ticks);
        assert_eq!(sent_to(&host, &again), at(BLUE), "it may be forged");
    }
    host.later(NOW + 5 + 46);
    assert_eq!(sent_to(&host, &again), at(GREEN), "blue had the time to object");
}

#[test]
fn a_backend_that_is_slow_to_object_keeps_its_connection() {
    // What Linux answers: the first of each half second, which is eight ticks at 1,000 timer ticks a second.
    for (syns, answered) in [
        (vec![0, 3, 6], vec![0]),
        (vec![0, 1, 2, 3, 4, 5, 6, 7, 8, 9], vec![0, 8]),
        // The answer to the first one went to somebody else's SYN.
        (vec![0, 40], vec![40]),
        (vec![0, 5, 40], vec![40]),
        (vec![0, 12, 40, 80], vec![12, 40, 80]),
    ] {
        let mut host = host();
        sent_to(&host, &tcp(CLIENT, WEB, SYN));
        answers_as(&host, &tcp(BLUE, CLIENT, SYN | ACK));
        sent_to(&host, &tcp(CLIENT, WEB, ACK));
        drain(&host);
        let forged = PacketSpec { sequence: 77, ..tcp(CLIENT, WEB, SYN) };
        for tick in 0..100 {
            host.later(NOW + 1000 + tick);
            if syns.contains(&tick) {
                assert_eq!(sent_to(&host, &forged), at(BLUE), "{syns:?}: at {tick}");
            }
            if answered.contains(&tick) {
                answers_as(&host, &tcp(BLUE, CLIENT, ACK));
            }
        }
        assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE), "{syns:?}");
    }
}

#[test]
fn a_backend_that_objects_to_a_forged_syn_keeps_its_connection() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    sent_to(&host, &tcp(CLIENT, WEB, ACK));
    drain(&host);
    let forged = PacketSpec { sequence: 77, ..tcp(CLIENT, WEB, SYN) };
    for second in 1..5 {
        host.later(NOW + 5 * second);
        assert_eq!(sent_to(&host, &forged), at(BLUE));
        answers_as(&host, &tcp(BLUE, CLIENT, ACK));
    }
}

#[test]
fn a_silent_udp_flow_is_over_unless_its_backend_still_talks() {
    for (backend_talks, expected) in [(false, GREEN_DNS), (true, BLUE_DNS)] {
        let mut host = host();
        host.scenario.deployments[0].0.udp_idle = 100;
        sent_to(&host, &udp(CLIENT, DNS));
        drain(&host);
        host.tick.set(NOW + 99);
        if backend_talks {
            answers_as(&host, &udp(BLUE_DNS, CLIENT));
        }
        host.later(NOW + 150);
        assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(expected));
    }
}

#[test]
fn a_flow_stays_open_for_as_long_as_its_client_talks() {
    let mut host = host();
    host.scenario.deployments[0].0.udp_idle = 100;
    sent_to(&host, &udp(CLIENT, DNS));
    drain(&host);
    for round in 1..5 {
        host.later(NOW + 90 * round);
        assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS), "{round}");
    }
    host.later(NOW + 90 * 4 + 101);
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(GREEN_DNS));
}

#[test]
fn a_datagram_that_is_no_late_reply_and_opens_a_flow_reads_the_live_word_once() {
    // The backend talks to a virtual address that was a client of its own service, a long time ago.
    const OTHER: &str = "203.0.113.11:53";
    let mut scenario = shop();
    scenario.service(&service(OTHER, None, Protocol::Udp, "10.0.1.21:5353", "10.0.2.21:5353"));
    let mut host = Host::load(scenario, NOW);
    host.scenario.deployments[0].0.udp_idle = 100;
    assert_eq!(sent_to(&host, &udp(OTHER, DNS)), at(BLUE_DNS));
    host.later(NOW + 101);
    // The host asserts that.
    assert_eq!(sent_to(&host, &udp(BLUE_DNS, OTHER)), at("10.0.1.21:5353"));
}
