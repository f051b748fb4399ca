//! Which packets belong to one flow: SYNs, ports used again, silence, flows that look alike.

use crate::*;

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
fn a_client_that_comes_again_to_a_dead_backend_is_sent_elsewhere() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    sent_to(&host, &tcp(CLIENT, WEB, ACK));
    drain(&mut host);
    let again = PacketSpec { sequence: 77, ..tcp(CLIENT, WEB, SYN) };
    host.later(NOW + 5);
    assert_eq!(sent_to(&host, &again), at(BLUE), "it may be forged");
    host.later(NOW + 10);
    assert_eq!(sent_to(&host, &again), at(GREEN), "blue had the time to object");
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
