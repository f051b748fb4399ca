//! Services with a mirror: which datagrams are copied, and where the copies go.

use crate::*;
use bg_common::{Colour, FULL_SHARE, Timing};

pub(crate) const DNS_PREVIEW: &str = "203.0.113.10:5353";
/// The service of [`DNS`].
pub(crate) const SERVICE: u16 = 1;

/// A shop whose UDP service has a mirror and a preview address.
pub(crate) fn mirrored() -> Scenario {
    let mut scenario = Scenario::default();
    scenario.deployment();
    scenario.service(&service(WEB, Some(WEB_PREVIEW), Protocol::Tcp, BLUE, GREEN));
    scenario.service(&service(DNS, Some(DNS_PREVIEW), Protocol::Udp, BLUE_DNS, GREEN_DNS));
    scenario.mirror(SERVICE);
    scenario.tester(0, "198.51.100.0".parse().unwrap(), 24);
    scenario
}

pub(crate) fn mirroring() -> Host {
    Host::load(mirrored(), NOW)
}

pub(crate) fn copies(host: &Host) -> Vec<Colour> {
    host.copies.borrow().iter().map(|colour| Colour::from_u8(*colour)).collect()
}

/// Where the copy of a packet is sent to.
#[track_caller]
pub(crate) fn copy_sent_to(host: &Host, packet: &PacketSpec, colour: Colour) -> SocketAddr {
    let Outcome { action, frame } = host.copied(&packet.frame(), colour);
    assert_eq!(action, Action::Redirect, "{packet:?}");
    assert_checksums(&frame);
    assert_eq!(copies(host), [], "a copy has no copy");
    ends(&frame).1
}

/// Asserts that a packet of a backend is dropped as an answer to a copy, at each hook.
#[track_caller]
pub(crate) fn is_dropped(host: &Host, packet: &PacketSpec) {
    let (frame, before) = (packet.frame(), host.events(Event::MirrorAnswer));
    for outcome in [host.early(&frame), host.ingress(&frame), host.egress(&frame)] {
        assert_eq!(outcome, Outcome { action: Action::Drop, frame: frame.clone() }, "{packet:?}");
    }
    assert_eq!(host.events(Event::MirrorAnswer), before + 3);
}

/// Asserts that a packet passes unmodified, at each hook.
#[track_caller]
pub(crate) fn passes(host: &Host, packet: &PacketSpec) {
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
fn during_a_ramp_the_copies_go_to_the_colour_with_the_smaller_share() {
    const RAMP: u64 = 100;
    let host = mirroring();
    let (word, now) = (host.word(0), 1 << 40);
    let new = LiveWord::new(word.generation() + 1, LiveFlags::TIMED.with(LiveFlags::DRAINING), 0, FULL_SHARE);
    let timing =
        Timing { activate_at: now, ramp: RAMP << 30, generation: new.generation(), before: word, ..Timing::default() };
    host.set_timing(0, new, timing);
    host.set_live(0, new, SwitchTerms::default());
    for percent in [0, 20, 45, 60, 95] {
        host.set_clocks([now + (percent << 30), 0]);
        host.forget_flows();
        let (live, live_at) = if percent <= 50 { (Colour::Blue, BLUE_DNS) } else { (Colour::Green, GREEN_DNS) };
        for port in 1024..1124 {
            let is_to_live = sent_to(&host, &udp(&format!("192.0.2.1:{port}"), DNS)) == at(live_at);
            assert_eq!(copies(&host), if is_to_live { vec![live.other()] } else { vec![] }, "{percent} %");
        }
    }
}

#[test]
fn the_live_word_of_its_own_deployment_says_which_colour_is_the_mirror() {
    const OTHER: &str = "203.0.113.11:53";
    let mut scenario = mirrored();
    let other = scenario.deployment();
    // The same backends, and the colours the other way round.
    let service = ServiceAt { deployment: other, ..service(OTHER, None, Protocol::Udp, GREEN_DNS, BLUE_DNS) };
    let service = scenario.service(&service);
    scenario.mirror(service);
    let host = Host::load(scenario, NOW);
    let cut = |deployment: u16| {
        let word = host.word(deployment);
        let share = word.live().other().full_share();
        let mut terms = SwitchTerms::default();
        terms.ended_before[word.live() as usize] = word.generation() + 1;
        host.set_live(deployment, LiveWord::new(word.generation() + 1, LiveFlags::CUT, 0, share), terms);
    };
    let [mut first, mut second] = [Colour::Blue; 2];
    for (turn, switched) in [0, other, other, 0].into_iter().enumerate() {
        cut(switched);
        let live = if switched == other { &mut second } else { &mut first };
        *live = live.other();
        // Clients of their own: the services share their backends.
        for (vip, live, host_number, deployed_at) in
            [(DNS, first, 1, [BLUE_DNS, GREEN_DNS]), (OTHER, second, 2, [GREEN_DNS, BLUE_DNS])]
        {
            let client = format!("192.0.2.{host_number}:40000");
            let datagram = udp(&client, vip);
            assert_eq!(sent_to(&host, &datagram), at(deployed_at[live as usize]), "turn {turn}");
            assert_eq!(copies(&host), [live.other()], "turn {turn}");
            let idle = deployed_at[live.other() as usize];
            assert_eq!(copy_sent_to(&host, &datagram, live.other()), at(idle), "turn {turn}");
            is_dropped(&host, &udp(idle, &client));
            assert_eq!(answers_as(&host, &udp(deployed_at[live as usize], &client)), at(vip));
        }
    }
}

#[test]
fn a_copy_is_the_datagram_but_for_its_address() {
    let host = mirroring();
    for spec in [
        udp(CLIENT, DNS),
        PacketSpec { without_udp_checksum: true, ..udp(CLIENT, DNS) },
        PacketSpec { options: 3, ..udp(CLIENT, DNS) },
        PacketSpec { tags: 1, ..udp(CLIENT, DNS) },
        PacketSpec { tags: 2, payload: vec![7; 1400], ..udp(CLIENT, DNS) },
        PacketSpec { payload: Vec::new(), ..udp(CLIENT, DNS) },
        // Larger than fits on the way to the backend.
        PacketSpec { payload: vec![7; 1600], ..udp(CLIENT, DNS) },
    ] {
        let datagram = host.ingress(&spec.frame());
        assert_eq!(copies(&host), [Colour::Green]);
        let copy = host.copied(&spec.frame(), Colour::Green);
        assert_eq!(copy.action, datagram.action);
        let expected = PacketSpec { to: at(GREEN_DNS), ttl: copy.frame[spec_ttl(&spec)], ..spec.clone() }.frame();
        // Both MAC addresses are those of the next hop.
        assert_eq!(copy.frame[12..], expected[12..], "{spec:?}");
    }
}

/// Where the TTL stands.
fn spec_ttl(spec: &PacketSpec) -> usize {
    14 + 4 * usize::from(spec.tags) + 8
}

#[test]
fn a_flow_for_which_the_table_has_no_row_is_copied() {
    let host = mirroring();
    host.refuse_flows();
    for _ in 0..2 {
        assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS));
        assert_eq!(copies(&host), [Colour::Green]);
    }
}

#[test]
fn there_is_no_copy_to_a_backend_at_which_the_client_has_a_flow() {
    const OTHER: &str = "203.0.113.11:53";
    let mut scenario = mirrored();
    scenario.deployments[0].0.udp_idle = 10;
    // Without a mirror, and live where the other service is idle.
    scenario.service(&service(OTHER, None, Protocol::Udp, GREEN_DNS, BLUE_DNS));
    let mut host = Host::load(scenario, NOW);
    for (nth, address) in [DNS_PREVIEW, OTHER].into_iter().enumerate() {
        let client = format!("192.0.2.1:4000{nth}");
        assert_eq!(sent_to(&host, &udp(&client, address)), at(GREEN_DNS));
        assert_eq!(sent_to(&host, &udp(&client, DNS)), at(BLUE_DNS));
        assert_eq!(copies(&host), [Colour::Green]);
        assert_eq!(host.copied(&udp(&client, DNS).frame(), Colour::Green).action, Action::Drop);
        assert_eq!(host.events(Event::MirrorLost), 1 + nth as u64);
        // So what the backend says is about the other flow.
        assert_eq!(answers_as(&host, &udp(GREEN_DNS, &client)), at(address));
        let other_port = udp("192.0.2.1:50000", DNS);
        sent_to(&host, &other_port);
        assert_eq!(copy_sent_to(&host, &other_port, Colour::Green), at(GREEN_DNS));
    }
    host.later(NOW + 12);
    sent_to(&host, &udp(CLIENT, DNS));
    assert_eq!(copy_sent_to(&host, &udp(CLIENT, DNS), Colour::Green), at(GREEN_DNS), "that flow has timed out");
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
