//! Services with a mirror: which datagrams of backends are answers to copies, and which errors are about copies.

use crate::{
    mirror::{DNS_PREVIEW, copies, copy_sent_to, is_dropped, mirrored, mirroring, passes},
    *,
};
use bg_common::Colour;
use bg_tests::frames::ErrorSpec;

#[test]
fn answers_of_the_mirror_are_dropped_and_those_of_the_live_colour_reach_the_client() {
    let host = mirroring();
    sent_to(&host, &udp(CLIENT, DNS));
    is_dropped(&host, &udp(GREEN_DNS, CLIENT));
    assert_eq!(answers_as(&host, &udp(BLUE_DNS, CLIENT)), at(DNS));
    is_dropped(&host, &udp(GREEN_DNS, CLIENT));
    // Late ones, after a switch in which the flow stays, and after one in which it moves.
    drain(&host);
    is_dropped(&host, &udp(GREEN_DNS, CLIENT));
    let host = mirroring();
    sent_to(&host, &udp(CLIENT, DNS));
    cut(&host);
    is_dropped(&host, &udp(GREEN_DNS, CLIENT));
    sent_to(&host, &udp(CLIENT, DNS));
    assert_eq!(copies(&host), [Colour::Blue]);
    is_dropped(&host, &udp(BLUE_DNS, CLIENT));
    assert_eq!(answers_as(&host, &udp(GREEN_DNS, CLIENT)), at(DNS));
}

#[test]
fn what_the_idle_colour_answers_to_testers_and_by_the_preview_address_is_no_answer_to_a_copy() {
    let host = mirroring();
    sent_to(&host, &udp(TESTER, DNS));
    assert_eq!(answers_as(&host, &udp(GREEN_DNS, TESTER)), at(DNS));
    // From one port to both addresses: the flow by the preview address is at the backend.
    sent_to(&host, &udp(CLIENT, DNS));
    sent_to(&host, &udp(CLIENT, DNS_PREVIEW));
    assert_eq!(answers_as(&host, &udp(GREEN_DNS, CLIENT)), at(DNS_PREVIEW));
    assert_eq!(answers_as(&host, &udp(BLUE_DNS, CLIENT)), at(DNS));
    assert_eq!(host.events(Event::MirrorAnswer), 0);
}

#[test]
fn what_a_backend_sends_to_others_than_mirrored_clients_passes() {
    let host = mirroring();
    // To nobody that is known, to a client of another service, to another port of a mirrored client.
    passes(&host, &udp(GREEN_DNS, CLIENT));
    connect(&host, CLIENT, WEB);
    passes(&host, &udp(GREEN_DNS, CLIENT));
    sent_to(&host, &udp(CLIENT, DNS));
    passes(&host, &udp(GREEN_DNS, "192.0.2.1:40001"));
    passes(&host, &udp("10.0.2.11:5354", CLIENT));
    // A tester has no copies.
    sent_to(&host, &udp(TESTER, DNS));
    passes(&host, &udp(BLUE_DNS, TESTER));
}

#[test]
fn after_the_flow_has_timed_out_what_the_idle_colour_sends_passes() {
    let mut scenario = mirrored();
    scenario.deployments[0].0.udp_idle = 10;
    let mut host = Host::load(scenario, NOW);
    sent_to(&host, &udp(CLIENT, DNS));
    is_dropped(&host, &udp(GREEN_DNS, CLIENT));
    host.later(NOW + 12);
    let frame = udp(GREEN_DNS, CLIENT).frame();
    assert_eq!(host.ingress(&frame), Outcome { action: Action::Pass, frame });
}

#[test]
fn without_a_row_nothing_tells_an_answer_to_a_copy_from_another_datagram() {
    let host = mirroring();
    sent_to(&host, &udp(CLIENT, DNS));
    host.forget_flows();
    passes(&host, &udp(GREEN_DNS, CLIENT));
    // The client's next datagram gives it one.
    sent_to(&host, &udp(CLIENT, DNS));
    is_dropped(&host, &udp(GREEN_DNS, CLIENT));
}

#[test]
fn a_flow_to_the_preview_address_that_has_timed_out_does_not_let_an_answer_through() {
    let mut scenario = mirrored();
    scenario.deployments[0].0.udp_idle = 10;
    let mut host = Host::load(scenario, NOW);
    sent_to(&host, &udp(CLIENT, DNS_PREVIEW));
    host.later(NOW + 12);
    sent_to(&host, &udp(CLIENT, DNS));
    is_dropped(&host, &udp(GREEN_DNS, CLIENT));
}

#[test]
fn services_that_share_their_backends_hear_nothing_of_each_others_mirrors() {
    const SECOND: &str = "203.0.113.11:53";
    let mut scenario = mirrored();
    // Of the two rows of a backend, the index has the first one.
    let second = scenario.service(&service(SECOND, None, Protocol::Udp, BLUE_DNS, GREEN_DNS));
    scenario.mirror(second);
    let host = Host::load(scenario, NOW);
    sent_to(&host, &udp(CLIENT, SECOND));
    assert_eq!(copies(&host), [Colour::Green]);
    is_dropped(&host, &udp(GREEN_DNS, CLIENT));
    assert_eq!(answers_as(&host, &udp(BLUE_DNS, CLIENT)), at(SECOND));
}

#[test]
fn an_idle_backend_of_a_service_that_shares_the_live_one_alone_gets_no_copies() {
    const OTHER: &str = "10.0.2.12:5353";
    let mut scenario = mirrored();
    scenario.service(&service("203.0.113.11:53", None, Protocol::Udp, BLUE_DNS, OTHER));
    let host = Host::load(scenario, NOW);
    sent_to(&host, &udp(CLIENT, DNS));
    passes(&host, &udp(OTHER, CLIENT));
    is_dropped(&host, &udp(GREEN_DNS, CLIENT));
}

#[test]
fn nobody_hears_of_errors_about_copies() {
    const DNS6: &str = "[2001:db8::10]:53";
    const CLIENT6: &str = "[2001:db8:1::1]:40000";
    const BLUE6: &str = "[fd00:1::11]:5353";
    const GREEN6: &str = "[fd00:2::11]:5353";
    let mut scenario = mirrored();
    let six = scenario.service(&service(DNS6, None, Protocol::Udp, BLUE6, GREEN6));
    scenario.mirror(six);
    let host = Host::load(scenario, NOW);
    for (client, vip, green, blue) in [(CLIENT, DNS, GREEN_DNS, BLUE_DNS), (CLIENT6, DNS6, GREEN6, BLUE6)] {
        // Of a router, and of the host itself, whose port is closed.
        let error = |about: &str| ErrorSpec::too_big(at(green).ip(), at(client).ip(), &udp(client, about).frame());
        let frame = error(green).frame();
        for outcome in [host.early(&frame), host.ingress(&frame), host.egress(&frame)] {
            assert_eq!(outcome.action, Action::Pass, "the client talks to the backend itself");
        }
        sent_to(&host, &udp(client, vip));
        let before = host.events(Event::MirrorAnswer);
        for outcome in [host.early(&frame), host.ingress(&frame), host.egress(&frame)] {
            assert_eq!(outcome, Outcome { action: Action::Drop, frame: frame.clone() });
        }
        assert_eq!(host.events(Event::MirrorAnswer), before + 3);
        // One about the datagram itself.
        assert_eq!(host.egress(&error(blue).frame()).action, Action::Deliver);
        is_dropped(&host, &udp(green, client));
        assert_eq!(copy_sent_to(&host, &udp(client, vip), Colour::Green), at(green));
    }
}
