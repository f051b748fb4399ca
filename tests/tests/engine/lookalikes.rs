//! Clients that use one port for many services, and flows that a backend could not tell apart.

use crate::*;

/// One more service.
fn other(vip: &str, blue: &str) -> ServiceAt {
    service(vip, None, Protocol::Tcp, blue, GREEN)
}

const SECOND: &str = "203.0.113.11:443";
const THIRD: &str = "203.0.113.12:443";
/// Row of `vips` of the second service that a test adds to the shop's two.
const THIRD_ROW: u16 = 6;

#[test]
fn a_client_that_uses_one_port_for_many_services_is_answered_by_each() {
    for salts in [[0; 7], [0, 1, 2, 3, 4, 5, 6]] {
        let mut scenario = shop();
        let vip = |nth: usize| format!("203.0.113.{}:443", 20 + nth);
        let backend = |nth: usize| format!("10.0.1.{}:8443", 20 + nth);
        for (nth, salt) in salts.into_iter().enumerate() {
            let index = scenario.service(&other(&vip(nth), &backend(nth)));
            scenario.salt(index, salt);
        }
        let host = Host::load(scenario, NOW);
        for nth in 0..salts.len() {
            assert_eq!(connect(&host, CLIENT, &vip(nth)), at(&backend(nth)));
        }
        for nth in (0..salts.len()).rev() {
            assert_eq!(answers_as(&host, &tcp(&backend(nth), CLIENT, ACK)), at(&vip(nth)), "{salts:?}");
            assert_eq!(sent_to(&host, &tcp(CLIENT, &vip(nth), ACK)), at(&backend(nth)), "{salts:?}");
        }
        assert_eq!(host.flows().len(), salts.len());
    }
}

#[test]
fn so_it_is_in_ipv6_and_in_udp() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut scenario = shop();
        let vip = |nth: usize| format!("[2001:db8::{}]:443", 20 + nth);
        let backend = |nth: usize| format!("[fd00:1::{}]:8443", 20 + nth);
        for nth in 0..7 {
            let index = scenario.service(&service(&vip(nth), None, protocol, &backend(nth), "[fd00:2::1]:8443"));
            scenario.salt(index, nth as u16 / 2);
        }
        let host = Host::load(scenario, NOW);
        let client = "[2001:db8:1::1]:40000";
        let packet = |from: &str, to: &str, flags| PacketSpec { protocol, ..tcp(from, to, flags) };
        for nth in 0..7 {
            assert_eq!(sent_to(&host, &packet(client, &vip(nth), SYN)), at(&backend(nth)));
        }
        for nth in 0..7 {
            assert_eq!(answers_as(&host, &packet(&backend(nth), client, SYN | ACK)), at(&vip(nth)), "{protocol:?}");
        }
    }
}

#[test]
fn services_that_share_a_backend_answer_whatever_their_salts() {
    for salts in [[0, 0], [5, 5], [5, 0], [0, 5], [5, 6]] {
        let mut scenario = shop();
        let second = scenario.service(&other(SECOND, BLUE));
        scenario.salt(0, salts[0]);
        scenario.salt(second, salts[1]);
        let host = Host::load(scenario, NOW);
        let of_first = "192.0.2.1:40001";
        let of_second = "192.0.2.1:40002";
        assert_eq!(connect(&host, of_first, WEB), at(BLUE));
        assert_eq!(connect(&host, of_second, SECOND), at(BLUE));
        for (client, vip) in [(of_first, WEB), (of_second, SECOND)] {
            assert_eq!(answers_as(&host, &tcp(BLUE, client, ACK)), at(vip), "{salts:?}");
            assert!(salts[0] != salts[1] || host.steps() == 0, "{salts:?}: found at once");
        }
        passes(&host, &tcp(BLUE, "192.0.2.1:40003", ACK));
    }
}

#[test]
fn two_flows_that_would_look_alike_to_a_backend_are_told_apart_or_refused() {
    for salts in [[0, 0, 0], [0, 7, 0], [1, 2, 3]] {
        let mut scenario = shop();
        let one = BackendAt { address: at(BLUE), out_of: Some(OUT) };
        let two = BackendAt { address: at("10.0.1.12:8443"), out_of: Some(OUT) };
        let second = scenario.service(&ServiceAt { backends: [vec![one, two, two], vec![one]], ..other(SECOND, BLUE) });
        let third = scenario.service(&other(THIRD, BLUE));
        for (index, salt) in [0, second, third].into_iter().zip(salts) {
            scenario.salt(index, salt);
        }
        let host = Host::load(scenario, NOW);
        for port in 40_000..40_050 {
            let client = format!("192.0.2.1:{port}");
            assert_eq!(sent_to(&host, &tcp(&client, WEB, SYN)), at(BLUE));
            assert_eq!(sent_to(&host, &tcp(&client, SECOND, SYN)), two.address, "{client}");
            let alike = host.ingress(&tcp(&client, THIRD, SYN).frame());
            assert_eq!(alike.action, Action::Drop, "{client}");
            assert_eq!(answers_as(&host, &tcp(BLUE, &client, SYN | ACK)), at(WEB));
            // The first one ends: its backend is free for the client's port.
            sent_to(&host, &tcp(&client, WEB, RST));
            assert_eq!(sent_to(&host, &tcp(&client, THIRD, SYN)), at(BLUE), "{client}");
            assert_eq!(answers_as(&host, &tcp(BLUE, &client, SYN | ACK)), at(THIRD), "{client}, {salts:?}");
            assert_eq!(sent_to(&host, &tcp(&client, THIRD, ACK)), at(BLUE));
            assert_eq!(answers_as(&host, &tcp(BLUE, &client, ACK)), at(THIRD), "{client}, {salts:?}");
        }
        assert_eq!(host.events(Event::ReplyCollision), 50);
    }
}

#[test]
fn a_flow_that_was_silent_too_long_makes_room_at_its_backend() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut scenario = Scenario::default();
        scenario.deployment();
        for vip in [WEB, SECOND] {
            scenario.service(&service(vip, None, protocol, BLUE, GREEN));
        }
        let (row, ..) = &mut scenario.deployments[0];
        (row.tcp_opening, row.tcp_idle, row.udp_idle) = (100, 100, 100);
        let mut host = Host::load(scenario, NOW);
        let packet = |from: &str, to: &str, flags| PacketSpec { protocol, ..tcp(from, to, flags) };
        sent_to(&host, &packet(CLIENT, WEB, SYN));
        host.later(NOW + 100);
        assert_eq!(host.ingress(&packet(CLIENT, SECOND, SYN).frame()).action, Action::Drop);
        host.later(NOW + 101);
        assert_eq!(sent_to(&host, &packet(CLIENT, SECOND, SYN)), at(BLUE));
        for _ in 0..2 {
            assert_eq!(answers_as(&host, &packet(BLUE, CLIENT, SYN | ACK)), at(SECOND), "{protocol:?}");
        }
    }
}

#[test]
fn the_last_segments_of_a_flow_are_no_news_of_the_one_that_has_its_backend_now() {
    let mut scenario = shop();
    scenario.service(&other(SECOND, BLUE));
    scenario.service(&other(THIRD, BLUE));
    let host = Host::load(scenario, NOW);
    for flags in [SYN, ACK, FIN | ACK] {
        sent_to(&host, &tcp(CLIENT, WEB, flags));
    }
    host.egress(&tcp(BLUE, CLIENT, FIN | ACK).frame());
    sent_to(&host, &tcp(CLIENT, THIRD, SYN));
    sent_to(&host, &tcp(CLIENT, WEB, RST));
    assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, SYN | ACK)), at(THIRD));
    let second = host.flow(flow_of(CLIENT, THIRD_ROW)).expect("it is open");
    assert!(!second.state.has_ended(), "the first flow's reset: {second:?}");
}

#[test]
fn the_same_flow_is_no_other_one() {
    // A flow that is decided anew is not kept from its backend by its own row.
    let host = host();
    connect(&host, CLIENT, WEB);
    drain(&host);
    cut(&host);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE), "open all the time");
    drain(&host);
    cut(&host);
    sent_to(&host, &tcp(CLIENT, WEB, RST));
    assert_eq!(sent_to(&host, &PacketSpec { sequence: 9, ..tcp(CLIENT, WEB, SYN) }), at(BLUE));
    assert_eq!(host.events(Event::ReplyCollision), 0);
}

#[test]
fn a_backend_may_be_a_client() {
    let mut scenario = shop();
    scenario.service(&service(SECOND, None, Protocol::Tcp, "10.0.1.21:443", GREEN));
    let host = Host::load(scenario, NOW);
    // Of another service, and of its own.
    assert_eq!(connect(&host, BLUE, SECOND), at("10.0.1.21:443"));
    assert_eq!(connect(&host, BLUE, WEB), at(BLUE));
    assert_eq!(sent_to(&host, &udp(BLUE_DNS, DNS)), at(BLUE_DNS));
    assert_eq!(answers_as(&host, &udp(BLUE_DNS, BLUE_DNS)), at(DNS));
    // While it serves others.
    assert_eq!(connect(&host, CLIENT, WEB), at(BLUE));
}

#[test]
fn a_virtual_address_that_passes_to_another_service_takes_its_flows_along() {
    let mut scenario = shop();
    scenario.service(&other(SECOND, BLUE));
    let mut host = Host::load(scenario, NOW);
    connect(&host, CLIENT, WEB);
    // The second service, which has the same backend, has the address of the first one from now on.
    host.pass_vip(0, 4);
    for _ in 0..2 {
        assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
        assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, ACK)), at(WEB));
    }
    assert_eq!((host.traffic(0, 0).packets, host.traffic(2, 0).packets), (2, 2), "it is counted for the second one");
    assert_eq!(host.events(Event::ReplyCollision), 0);
}

#[test]
fn a_flow_that_looks_alike_is_found_behind_the_row_of_an_address_that_was_passed_on() {
    let mut scenario = shop();
    scenario.service(&other(SECOND, BLUE));
    scenario.service(&other(THIRD, BLUE));
    let mut host = Host::load(scenario, NOW);
    connect(&host, CLIENT, WEB);
    let flow = host.flow(flow_of(CLIENT, 0)).expect("it is open");
    host.store(flow_of(CLIENT, THIRD_ROW), &flow);
    host.pass_vip(0, 4);
    assert_eq!(host.ingress(&tcp(CLIENT, WEB, ACK).frame()).action, Action::Drop);
    assert_eq!(host.events(Event::ReplyCollision), 1);
}

#[test]
fn the_reset_of_an_unknown_connection_is_passed_on_beside_a_flow_that_looks_alike() {
    let mut scenario = shop();
    scenario.service(&other(SECOND, BLUE));
    let host = Host::load(scenario, NOW);
    connect(&host, CLIENT, WEB);
    let before = host.flows();
    assert_eq!(sent_to(&host, &tcp(CLIENT, SECOND, RST)), at(BLUE));
    assert_eq!((host.flows(), host.events(Event::ReplyCollision)), (before, 0));
}
