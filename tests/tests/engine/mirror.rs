//! Services with a mirror: which datagrams are copied, where the copies go, and whose answers are dropped.

use crate::*;
use bg_common::Colour;
use bg_tests::frames::ErrorSpec;

const DNS_PREVIEW: &str = "203.0.113.10:5353";
/// The service of [`DNS`].
const SERVICE: u16 = 1;

/// A shop whose UDP service has a mirror and a preview address.
fn mirrored() -> Scenario {
    let mut scenario = Scenario::default();
    scenario.deployment();
    scenario.service(&service(WEB, Some(WEB_PREVIEW), Protocol::Tcp, BLUE, GREEN));
    scenario.service(&service(DNS, Some(DNS_PREVIEW), Protocol::Udp, BLUE_DNS, GREEN_DNS));
    scenario.mirror(SERVICE);
    scenario.tester(0, "198.51.100.0".parse().unwrap(), 24);
    scenario
}

fn mirroring() -> Host {
    Host::load(mirrored(), NOW)
}

fn copies(host: &Host) -> Vec<Colour> {
    host.copies.borrow().iter().map(|colour| Colour::from_u8(*colour)).collect()
}

/// Where the copy of a packet is sent to.
#[track_caller]
fn copy_sent_to(host: &Host, packet: &PacketSpec, colour: Colour) -> SocketAddr {
    let Outcome { action, frame } = host.copied(&packet.frame(), colour);
    assert_eq!(action, Action::Redirect, "{packet:?}");
    assert_checksums(&frame);
    assert_eq!(copies(host), [], "a copy has no copy");
    ends(&frame).1
}

/// Asserts that a packet of a backend is dropped as an answer to a copy, at each hook.
#[track_caller]
fn is_dropped(host: &Host, packet: &PacketSpec) {
    let (frame, before) = (packet.frame(), host.events(Event::MirrorAnswer));
    for outcome in [host.early(&frame), host.ingress(&frame), host.egress(&frame)] {
        assert_eq!(outcome, Outcome { action: Action::Drop, frame: frame.clone() }, "{packet:?}");
    }
    assert_eq!(host.events(Event::MirrorAnswer), before + 3);
}

/// Asserts that a packet passes unmodified, at each hook.
#[track_caller]
fn passes(host: &Host, packet: &PacketSpec) {
    let frame = packet.frame();
    for outcome in [host.early(&frame), host.ingress(&frame), host.egress(&frame)] {
        assert_eq!(outcome, Outcome { action: Action::Pass, frame: frame.clone() }, "{packet:?}");
    }
    assert_eq!(host.events(Event::MirrorAnswer), 0);
}

#[test]
fn each_datagram_for_the_live_colour_is_copied_to_the_idle_one() {
    let host = mirroring();
    for nth in 1..=3 {
        assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS));
        assert_eq!(copies(&host), [Colour::Green]);
        assert_eq!(copy_sent_to(&host, &udp(CLIENT, DNS), Colour::Green), at(GREEN_DNS));
        let [blue, green] = [0, 1].map(|colour| host.traffic(SERVICE, colour));
        assert_eq!((blue.packets, blue.mirrored, blue.flows_opened), (nth, 0, 1));
        assert_eq!((green.packets, green.mirrored, green.flows_opened), (0, nth, 0));
    }
    assert_eq!(host.flows().len(), 1, "a copy opens no flow");
}

#[test]
fn xdp_leaves_datagrams_of_a_service_with_a_mirror_to_tc_and_no_others() {
    let host = mirroring();
    let frame = udp(CLIENT, DNS).frame();
    for _ in 0..2 {
        assert_eq!(host.early(&frame), Outcome { action: Action::Defer, frame: frame.clone() });
        assert_eq!((copies(&host), host.flows().len()), (vec![], 0));
    }
    assert_eq!(host.early(&tcp(CLIENT, WEB, SYN).frame()).action, Action::Redirect);
    assert_eq!(host.early(&udp(CLIENT, DNS_PREVIEW).frame()).action, Action::Redirect);
    // What the live colour answers.
    sent_to(&host, &udp("192.0.2.1:40001", DNS));
    assert_eq!(host.early(&udp(BLUE_DNS, "192.0.2.1:40001").frame()).action, Action::Defer, "its next hop is unknown");
    assert_eq!(answers_as(&host, &udp(BLUE_DNS, "192.0.2.1:40001")), at(DNS));
}

#[test]
fn a_service_without_a_mirror_has_no_copies() {
    let host = host();
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS));
    assert_eq!(copies(&host), []);
    passes(&host, &udp(GREEN_DNS, CLIENT));
}

#[test]
fn the_idle_colour_gets_no_datagram_twice() {
    let host = mirroring();
    for idle in [udp(TESTER, DNS), udp(CLIENT, DNS_PREVIEW)] {
        assert_eq!(sent_to(&host, &idle), at(GREEN_DNS));
        assert_eq!(copies(&host), []);
    }
    // A flow that a drain has left on the colour that is idle now.
    let host = mirroring();
    sent_to(&host, &udp(CLIENT, DNS));
    drain(&host);
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS));
    assert_eq!(copies(&host), []);
    assert_eq!(answers_as(&host, &udp(BLUE_DNS, CLIENT)), at(DNS));
    // The drained flow is still there once both ends have spoken.
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS));
    assert_eq!(copies(&host), []);
    let new = udp("192.0.2.1:40001", DNS);
    assert_eq!(sent_to(&host, &new), at(GREEN_DNS));
    assert_eq!(copies(&host), [Colour::Blue], "and the new idle colour is the mirror");
    assert_eq!(copy_sent_to(&host, &new, Colour::Blue), at(BLUE_DNS));
}

#[test]
fn with_a_share_the_smaller_colour_gets_the_rest_as_copies() {
    let host = mirroring();
    let word = host.word(0);
    host.set_live(0, LiveWord::new(word.generation() + 1, LiveFlags::NONE, 0, 3_000), host.terms(0)[0]);
    let mut seen = [0; 2];
    for port in 1024..1124 {
        let datagram = udp(&format!("192.0.2.1:{port}"), DNS);
        let is_green = sent_to(&host, &datagram) == at(GREEN_DNS);
        assert_eq!(copies(&host), if is_green { vec![] } else { vec![Colour::Green] });
        seen[usize::from(is_green)] += 1;
    }
    assert!(seen[0] > seen[1] && seen[1] > 0, "{seen:?}");
}

#[test]
fn a_copy_goes_to_the_colour_that_was_idle_when_the_datagram_was_decided() {
    let host = mirroring();
    sent_to(&host, &udp(CLIENT, DNS));
    cut(&host);
    assert_eq!(copy_sent_to(&host, &udp(CLIENT, DNS), Colour::Green), at(GREEN_DNS));
}

#[test]
fn copies_of_a_flow_go_to_one_backend_and_those_of_all_flows_to_all() {
    let mut scenario = Scenario::default();
    scenario.deployment();
    scenario.deployment();
    let backends = |colour: u8| {
        (1..=5).map(|host| BackendAt { address: at(&format!("10.0.{colour}.{host}:53")), out_of: Some(OUT) }).collect()
    };
    let index = scenario.service(&ServiceAt {
        deployment: 1,
        backends: [backends(1), backends(2)],
        ..service(DNS, None, Protocol::Udp, BLUE_DNS, GREEN_DNS)
    });
    scenario.mirror(index);
    let host = Host::load(scenario, NOW);
    let mut all = std::collections::HashSet::new();
    for port in 1024..1124 {
        let client = format!("192.0.2.1:{port}");
        let datagram = udp(&client, DNS);
        sent_to(&host, &datagram);
        let first = copy_sent_to(&host, &datagram, Colour::Green);
        assert_eq!(copy_sent_to(&host, &datagram, Colour::Green), first);
        all.insert(first);
        is_dropped(&host, &udp(&first.to_string(), &client));
    }
    assert_eq!(all.len(), 5);
}

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
fn a_copy_that_cannot_be_made_or_sent_is_counted_and_the_datagram_goes_on() {
    let host = mirroring();
    host.can_copy.set(false);
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS));
    assert_eq!(host.events(Event::MirrorLost), 1);
    // The idle colour has no backend.
    let mut scenario = mirrored();
    scenario.backends.iter_mut().filter(|backend| backend.colour == 1).for_each(|backend| backend.identity.in_use = 0);
    let host = Host::load(scenario, NOW);
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS));
    assert_eq!(host.copied(&udp(CLIENT, DNS).frame(), Colour::Green).action, Action::Drop);
    assert_eq!(host.events(Event::MirrorLost), 1);
    // The mirror has just been taken away.
    let host = Host::load(shop(), NOW);
    assert_eq!(host.copied(&udp(CLIENT, DNS).frame(), Colour::Green).action, Action::Drop);
    assert_eq!(host.events(Event::MirrorLost), 1);
}

#[test]
fn a_datagram_that_waits_is_copied_when_it_goes_on() {
    let host = mirroring();
    let word = host.word(0);
    host.set_timing(0, word, bg_common::Timing { hold_until: 5, ..host.timings(0)[word.terms_slot()] });
    host.set_live(0, word.with_flags(LiveFlags::HOLD), host.terms(0)[word.terms_slot()]);
    assert_eq!(host.ingress(&udp(CLIENT, DNS).frame()).action, Action::Drop);
    assert_eq!(copies(&host), []);
    host.holds.set(None);
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS));
    assert_eq!(copies(&host), [Colour::Green]);
}

#[test]
fn a_datagram_whose_hop_limit_is_spent_has_no_copy() {
    let host = mirroring();
    let spent = PacketSpec { ttl: 1, ..udp(CLIENT, DNS) };
    assert_eq!(host.ingress(&spent.frame()).action, Action::Deliver);
    assert_eq!((copies(&host), host.events(Event::TtlExpired)), (vec![], 1));
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
