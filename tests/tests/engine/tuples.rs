//! Which packets belong to one flow: SYNs, ports used again, silence, flows that look alike.

use crate::*;
use bg_common::{Flow, FlowKey4, FlowState};

#[test]
fn a_syn_that_is_sent_again_keeps_its_backend() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    drain(&mut host);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, SYN)), at(BLUE));
}

#[test]
fn another_syn_on_a_tuple_that_never_got_an_answer_chooses_anew() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    drain(&mut host);
    assert_eq!(sent_to(&host, &PacketSpec { sequence: 2, ..tcp(CLIENT, WEB, SYN) }), at(GREEN));
}

#[test]
fn a_port_used_again_after_the_connection_ended_chooses_anew() {
    let endings: [&[(&str, &str, u8)]; 3] =
        [&[(CLIENT, WEB, FIN | ACK), (BLUE, CLIENT, FIN | ACK)], &[(CLIENT, WEB, RST)], &[(BLUE, CLIENT, RST | ACK)]];
    for ending in endings {
        let mut host = host();
        sent_to(&host, &tcp(CLIENT, WEB, SYN));
        sent_to(&host, &tcp(CLIENT, WEB, ACK));
        for (from, to, flags) in ending {
            let _ = host.egress(&tcp(from, to, *flags).frame());
            let _ = host.ingress(&tcp(from, to, *flags).frame());
        }
        drain(&mut host);
        assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE), "{ending:?}: the last segments of the old one");
        assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, SYN)), at(GREEN), "{ending:?}");
    }
}

#[test]
fn the_end_of_a_connection_is_known_in_both_its_entries() {
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
        // Either entry may be asked for its place when places are short.
        let ended = host.flows().values().filter(|flow| flow.state.has_ended()).count();
        assert_eq!((host.flows().len(), ended), (2, 2), "{ending:?}");
    }
}

#[test]
fn a_forged_syn_does_not_move_an_established_connection() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    sent_to(&host, &tcp(CLIENT, WEB, ACK));
    drain(&mut host);
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
        let answer = tcp(BLUE, CLIENT, flags).frame();
        assert_eq!(host.egress(&answer), Outcome { action: Action::Pass, frame: answer }, "{flags:#x}");
    }
    host.scenario.deployments[0].0.udp_idle = 100;
    sent_to(&host, &udp(CLIENT, DNS));
    host.later(NOW + 300);
    let answer = udp(BLUE_DNS, CLIENT).frame();
    assert_eq!(host.egress(&answer), Outcome { action: Action::Pass, frame: answer });
}

#[test]
fn a_connection_with_a_backend_itself_is_told_from_one_by_the_vip() {
    let of_vip = tcp(CLIENT, WEB, SYN);
    let untouched = |host: &Host, packet: &PacketSpec| {
        let frame = packet.frame();
        assert_eq!(host.egress(&frame), Outcome { action: Action::Pass, frame }, "{packet:?}");
    };
    let direct = |flags| PacketSpec { acknowledgment: 0x1234_5678, ..tcp(BLUE, CLIENT, flags) };

    // The client's connection with the backend was there first. Its backend objects to the SYN, and goes on.
    let host = host();
    sent_to(&host, &of_vip);
    for _ in 0..2 {
        untouched(&host, &direct(ACK));
        sent_to(&host, &of_vip);
    }
    untouched(&host, &direct(FIN | ACK));
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
        untouched(&host, &direct(flags));
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
fn the_last_segments_of_a_flow_are_no_news_of_the_one_that_took_its_reply_entry() {
    let mut scenario = shop();
    scenario.service(&service("203.0.113.11:443", None, Protocol::Tcp, BLUE, GREEN));
    let host = Host::load(scenario, NOW);
    for flags in [SYN, ACK, FIN | ACK] {
        sent_to(&host, &tcp(CLIENT, WEB, flags));
    }
    host.egress(&tcp(BLUE, CLIENT, FIN | ACK).frame());
    sent_to(&host, &tcp(CLIENT, "203.0.113.11:443", SYN));
    sent_to(&host, &tcp(CLIENT, WEB, RST));
    assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, SYN | ACK)), at("203.0.113.11:443"));
    let replies = host.flows().into_values().filter(|flow| flow.state.has(FlowState::REPLY));
    assert_eq!(replies.filter(|flow| flow.state.has(FlowState::CLIENT_RESET)).count(), 0, "the first flow's reset");
}

/// Keys and entries of a flow that another CPU opens, the reply's first.
fn opened(packet: &PacketSpec) -> Vec<(FlowKey4, Flow)> {
    let other = host();
    sent_to(&other, packet);
    let flows = other.flows().into_iter().map(|(key, flow)| (bytemuck::pod_read_unaligned(&key), flow));
    let mut flows: Vec<_> = flows.map(|(key, flow)| (key, Flow { last_seen: NOW + 300, ..flow })).collect();
    flows.sort_by_key(|(_, flow)| !flow.state.has(FlowState::REPLY));
    flows
}

#[test]
fn an_answer_between_the_two_stores_of_a_new_flow_does_not_end_it() {
    let tcp_syn = (tcp(CLIENT, WEB, SYN), tcp(BLUE, CLIENT, SYN | ACK), WEB);
    for (packet, answer, vip) in [(udp(CLIENT, DNS), udp(BLUE_DNS, CLIENT), DNS), tcp_syn] {
        let flows = opened(&packet);
        let (reply, forward) = (flows[0], flows[1]);
        // Before the first store the answer has found the entry of a flow that was silent for long, or has found the new
        // one.
        for has_found_the_old_one in [true, false] {
            let mut host = host();
            host.scenario.deployments[0].0.udp_idle = 100;
            sent_to(&host, &packet);
            host.forget_direction(false);
            host.later(NOW + 300);
            if has_found_the_old_one {
                host.meanwhile(move |host| host.store(&reply.0, &reply.1));
            } else {
                host.store(&reply.0, &reply.1);
            }
            host.egress(&answer.frame());
            host.store(&forward.0, &forward.1);
            assert_eq!(answers_as(&host, &answer), at(vip), "{has_found_the_old_one}");
        }
    }
}

#[test]
fn a_client_that_comes_again_to_a_dead_backend_is_sent_elsewhere() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    sent_to(&host, &tcp(CLIENT, WEB, ACK));
    drain(&mut host);
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
        drain(&mut host);
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
    drain(&mut host);
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
        drain(&mut host);
        host.tick.set(NOW + 99);
        if backend_talks {
            answers_as(&host, &udp(BLUE_DNS, CLIENT));
        }
        host.later(NOW + 150);
        assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(expected));
    }
}

#[test]
fn two_flows_that_would_look_alike_to_a_backend_are_told_apart_or_refused() {
    let mut scenario = shop();
    let one = BackendAt { address: at(BLUE), out_of: Some(OUT) };
    let two = BackendAt { address: at("10.0.1.12:8443"), out_of: Some(OUT) };
    let other = service("203.0.113.11:443", None, Protocol::Tcp, BLUE, GREEN);
    scenario.service(&ServiceAt { backends: [vec![one, two, two], vec![one]], ..other.clone() });
    scenario.service(&ServiceAt { vip: at("203.0.113.12:443"), ..other });
    let host = Host::load(scenario, NOW);
    for port in 40_000..40_050 {
        let client = format!("192.0.2.1:{port}");
        assert_eq!(sent_to(&host, &tcp(&client, WEB, SYN)), at(BLUE));
        assert_eq!(sent_to(&host, &tcp(&client, "203.0.113.11:443", SYN)), two.address, "{client}");
        let alike = host.ingress(&tcp(&client, "203.0.113.12:443", SYN).frame());
        assert_eq!(alike.action, Action::Drop, "{client}");
        assert_eq!(answers_as(&host, &tcp(BLUE, &client, SYN | ACK)), at(WEB));
        // The first one ends: its backend is free for the tuple.
        sent_to(&host, &tcp(&client, WEB, RST));
        assert_eq!(sent_to(&host, &tcp(&client, "203.0.113.12:443", SYN)), at(BLUE), "{client}");
    }
    assert_eq!(host.events(Event::ReplyCollision), 50);
}
