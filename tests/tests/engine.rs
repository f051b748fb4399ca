//! What the engine decides, frame by frame, on the host build. The differential test says that the loaded
//! programs do the same.

use bg_common::{Event, Identity, LiveFlags, LiveWord, Mode, Protocol, SwitchTerms};
use bg_ebpf::{Action, checksum::Delta};
use bg_tests::{
    frames::{PacketSpec, assert_checksums, ends, tcp_flags::*},
    twin::{BackendAt, Host, Outcome, Scenario, ServiceAt},
};
use proptest::prelude::*;
use std::net::SocketAddr;

const OUT: u32 = 9;
/// A moment that is not the beginning of time.
const NOW: u32 = 1_000_000;

const WEB: &str = "203.0.113.10:443";
const WEB_PREVIEW: &str = "203.0.113.10:9443";
const DNS: &str = "203.0.113.10:53";
const CLIENT: &str = "192.0.2.1:40000";
const TESTER: &str = "198.51.100.5:40000";

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

fn service(vip: &str, preview: Option<&str>, protocol: Protocol, blue: &str, green: &str) -> ServiceAt {
    let backends = |address| vec![BackendAt { address: at(address), out_of: Some(OUT) }];
    ServiceAt {
        deployment: 0,
        vip: at(vip),
        preview: preview.map(at),
        protocol,
        mode: Mode::Nat,
        backends: [backends(blue), backends(green)],
    }
}

const BLUE: &str = "10.0.1.11:8443";
const GREEN: &str = "10.0.2.11:8443";
const BLUE_DNS: &str = "10.0.1.11:5353";
const GREEN_DNS: &str = "10.0.2.11:5353";

/// One deployment, blue live, with a TCP and a UDP service of one backend a colour.
fn shop() -> Scenario {
    let mut scenario = Scenario::default();
    scenario.deployment();
    scenario.service(&service(WEB, Some(WEB_PREVIEW), Protocol::Tcp, BLUE, GREEN));
    scenario.service(&service(DNS, None, Protocol::Udp, BLUE_DNS, GREEN_DNS));
    scenario
}

fn host() -> Host {
    Host::load(shop(), NOW)
}

/// Changes the live state as a switch does.
fn switch(host: &mut Host, flags: LiveFlags, terms: SwitchTerms) {
    let (_, word, slots) = &mut host.scenario.deployments[0];
    *word = LiveWord::new(word.generation() + 1, flags, word.target_share(), word.live().other().full_share());
    slots[word.terms_slot()] = terms;
}

fn drain(host: &mut Host) {
    switch(host, LiveFlags::DRAINING, SwitchTerms::default());
}

fn cut(host: &mut Host) {
    let (_, word, _) = host.scenario.deployments[0];
    let mut terms = SwitchTerms::default();
    terms.ended_before[word.live() as usize] = word.generation() + 1;
    switch(host, LiveFlags::CUT, terms);
}

fn tcp(from: &str, to: &str, flags: u8) -> PacketSpec {
    PacketSpec::tcp(at(from), at(to), flags)
}

fn udp(from: &str, to: &str) -> PacketSpec {
    PacketSpec::udp(at(from), at(to))
}

/// Where a packet from outside is sent to.
#[track_caller]
fn sent_to(host: &Host, packet: &PacketSpec) -> SocketAddr {
    let Outcome { action, frame } = host.ingress(&packet.frame());
    assert_eq!(action, Action::Redirect, "{packet:?}");
    assert_checksums(&frame);
    ends(&frame).1
}

/// Whom an answer that leaves this host seems to come from.
#[track_caller]
fn answers_as(host: &Host, packet: &PacketSpec) -> SocketAddr {
    let Outcome { action, frame } = host.egress(&packet.frame());
    assert_eq!(action, Action::Deliver, "{packet:?}");
    assert_checksums(&frame);
    ends(&frame).0
}

#[test]
fn a_new_flow_goes_to_the_live_colour_and_its_answer_comes_from_the_vip() {
    let host = host();
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, SYN)), at(BLUE));
    assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, SYN | ACK)), at(WEB));
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS));
    assert_eq!(answers_as(&host, &udp(BLUE_DNS, CLIENT)), at(DNS));
}

#[test]
fn a_forwarded_frame_gets_the_next_hops_macs_and_one_hop_less() {
    let Outcome { frame, .. } = host().ingress(&tcp(CLIENT, WEB, SYN).frame());
    assert_eq!(frame[..6], [0, 0, 0, 0, 0, 2], "the scenario's MAC of slot 0 is 0x0200_0000_0000, lowest octet first");
    assert_eq!(frame[6..12], [1, 0, 0, 0, 0, 6]);
    assert_eq!(frame[14 + 8], 63);
}

#[test]
fn an_open_flow_stays_through_a_drain_and_a_new_one_does_not() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    drain(&mut host);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
    assert_eq!(sent_to(&host, &tcp("192.0.2.1:40001", WEB, SYN)), at(GREEN));
    drain(&mut host);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
    assert_eq!(sent_to(&host, &tcp("192.0.2.1:40001", WEB, ACK)), at(GREEN));
}

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
fn a_forged_syn_does_not_move_an_established_connection() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    sent_to(&host, &tcp(CLIENT, WEB, ACK));
    drain(&mut host);
    assert_eq!(sent_to(&host, &PacketSpec { sequence: 99, ..tcp(CLIENT, WEB, SYN) }), at(BLUE));
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
}

#[test]
fn a_connection_whose_entry_was_lost_gets_a_second_chance_while_the_drain_lasts() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    drain(&mut host);
    host.forget_flows();
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
    assert_eq!(host.events(Event::SecondChance), 1);
    assert_eq!(sent_to(&host, &tcp("192.0.2.1:40001", WEB, SYN)), at(GREEN));
}

#[test]
fn without_a_drain_a_lost_connection_follows_the_live_colour() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    cut(&mut host);
    host.forget_flows();
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(GREEN));
    assert_eq!(host.events(Event::SecondChance), 0);
}

#[test]
fn a_cut_moves_udp_with_the_first_packet_and_silences_the_old_colour() {
    let mut host = host();
    sent_to(&host, &udp(CLIENT, DNS));
    cut(&mut host);
    assert_eq!(host.egress(&udp(BLUE_DNS, CLIENT).frame()).action, Action::Drop);
    assert_eq!(host.events(Event::EndedFlow), 1);
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(GREEN_DNS));
    assert_eq!(answers_as(&host, &udp(GREEN_DNS, CLIENT)), at(DNS));
}

#[test]
fn a_cut_sends_tcp_to_the_new_colour_whose_reset_comes_from_the_vip() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    sent_to(&host, &tcp(CLIENT, WEB, ACK));
    cut(&mut host);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(GREEN));
    assert_eq!(answers_as(&host, &tcp(GREEN, CLIENT, RST)), at(WEB));
}

#[test]
fn what_a_cut_has_ended_stays_ended_in_later_generations() {
    let mut host = host();
    sent_to(&host, &udp(CLIENT, DNS));
    cut(&mut host);
    // A drain back carries the cut on: green is cut from nothing, blue's flow of generation 1 is over.
    let carried = host.scenario.deployments[0].2[0];
    switch(&mut host, LiveFlags::DRAINING.with(LiveFlags::CUT), carried);
    drain_with_terms(&mut host, carried);
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(GREEN_DNS));
}

fn drain_with_terms(host: &mut Host, terms: SwitchTerms) {
    switch(host, LiveFlags::DRAINING.with(LiveFlags::CUT), terms);
}

#[test]
fn a_drain_ends_what_is_left_at_its_deadline() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    sent_to(&host, &tcp(CLIENT, WEB, ACK));
    let terms = SwitchTerms { drain_deadline: NOW + 10, second_chance_until: NOW + 10, ..SwitchTerms::default() };
    switch(&mut host, LiveFlags::DRAINING, terms);
    host.later(NOW + 9);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
    host.later(NOW + 10);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(GREEN));
    host.forget_flows();
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(GREEN), "no second chance after the deadline");
}

#[test]
fn a_connection_that_had_a_second_chance_ends_at_the_deadline_too() {
    let mut host = host();
    let terms = SwitchTerms { drain_deadline: NOW + 10, second_chance_until: NOW + 10, ..SwitchTerms::default() };
    switch(&mut host, LiveFlags::DRAINING, terms);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
    host.later(NOW + 10);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(GREEN));
}

#[test]
fn an_entry_lost_in_one_direction_is_restored_from_the_other() {
    for replies in [true, false] {
        let mut host = host();
        sent_to(&host, &tcp(CLIENT, WEB, SYN));
        sent_to(&host, &tcp(CLIENT, WEB, ACK));
        answers_as(&host, &tcp(BLUE, CLIENT, ACK));
        host.forget_direction(replies);
        cut_of_nothing(&mut host);
        host.later(NOW + 16);
        if replies {
            sent_to(&host, &tcp(CLIENT, WEB, ACK));
            assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, ACK)), at(WEB));
        } else {
            answers_as(&host, &tcp(BLUE, CLIENT, ACK));
            assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE), "though green is live and nothing drains");
        }
    }
}

/// Makes the other colour live and lets every open flow stay, for as long as it is known.
fn cut_of_nothing(host: &mut Host) {
    switch(host, LiveFlags::NONE, SwitchTerms::default());
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
fn flows_of_a_preview_address_end_when_it_becomes_something_else() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB_PREVIEW, SYN));
    host.scenario.vips.iter_mut().filter(|(row, _)| *row == 1).for_each(|(_, key)| *key = Default::default());
    host.scenario.services.retain(|(key, _)| key.port.host() != 9443);
    let packet = tcp(CLIENT, WEB_PREVIEW, ACK).frame();
    assert_eq!(host.ingress(&packet), Outcome { action: Action::Pass, frame: packet });
}

#[test]
fn preview_and_testers_reach_the_idle_colour_and_nobody_else_does() {
    let mut host = host();
    host.scenario.tester(0, "198.51.100.0".parse().expect("an address"), 24);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, SYN)), at(BLUE));
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB_PREVIEW, SYN)), at(GREEN));
    assert_eq!(answers_as(&host, &tcp(GREEN, CLIENT, SYN | ACK)), at(WEB_PREVIEW));
    assert_eq!(sent_to(&host, &tcp(TESTER, WEB, SYN)), at(GREEN));
    assert_eq!(sent_to(&host, &tcp("198.51.101.5:40000", WEB, SYN)), at(BLUE));
}

#[test]
fn a_testers_open_connection_leaves_the_colour_that_becomes_live() {
    let mut host = host();
    host.scenario.tester(0, "198.51.100.0".parse().expect("an address"), 24);
    for (from, to) in [(TESTER, WEB), (CLIENT, WEB_PREVIEW)] {
        sent_to(&host, &tcp(from, to, SYN));
        assert_eq!(sent_to(&host, &tcp(from, to, ACK)), at(GREEN));
    }
    drain(&mut host);
    for (from, to) in [(TESTER, WEB), (CLIENT, WEB_PREVIEW)] {
        assert_eq!(sent_to(&host, &tcp(from, to, ACK)), at(BLUE), "{from} {to}");
    }
}

#[test]
fn a_flow_whose_backend_was_removed_is_decided_anew_though_its_slot_was_given_away() {
    for identity in [Identity { epoch: 7, in_use: 0 }, Identity { epoch: 8, in_use: 1 }] {
        let mut host = host();
        sent_to(&host, &tcp(CLIENT, WEB, SYN));
        drain(&mut host);
        host.change_backend(0, |blue| {
            assert_eq!(blue.identity, Identity { epoch: 7, in_use: 1 });
            blue.identity = identity;
            blue.addr = at("10.9.9.9:1").ip().into();
        });
        // Cleared: no second chance on a colour without its backend.
        switch(&mut host, LiveFlags::NONE, SwitchTerms::default());
        switch(&mut host, LiveFlags::NONE, SwitchTerms::default());
        assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(GREEN));
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

#[test]
fn a_packet_on_its_last_hop_is_left_to_the_host_but_delivered_on_this_one() {
    let mut scenario = shop();
    scenario.service(&ServiceAt {
        mode: Mode::Local,
        ..service("203.0.113.20:80", None, Protocol::Tcp, "10.0.1.20:80", "10.0.2.20:80")
    });
    let host = Host::load(scenario, NOW);
    let last_hop = PacketSpec { ttl: 1, ..tcp(CLIENT, WEB, SYN) }.frame();
    assert_eq!(host.ingress(&last_hop), Outcome { action: Action::Pass, frame: last_hop });
    assert_eq!(host.events(Event::TtlExpired), 1);
    let Outcome { action, frame } = host.ingress(&PacketSpec { ttl: 1, ..tcp(CLIENT, "203.0.113.20:80", SYN) }.frame());
    assert_eq!((action, ends(&frame).1, frame[14 + 8]), (Action::Deliver, at("10.0.1.20:80"), 1));
}

#[test]
fn lengths_that_lie_are_dropped_for_a_vip_and_left_alone_for_others() {
    let cut_short = |spec: &PacketSpec, by: usize| {
        let mut frame = spec.frame();
        frame.truncate(frame.len() - by);
        frame
    };
    let with_octet = |spec: &PacketSpec, at: usize, octet: u8| {
        let mut frame = spec.frame();
        frame[at] = octet;
        frame
    };
    let host = host();
    for (vip, other) in [(WEB, "203.0.113.99:443")] {
        let damaged = |to: &str| {
            [
                cut_short(&tcp(CLIENT, to, ACK), 1),
                cut_short(&tcp(CLIENT, to, ACK), 12),
                with_octet(&tcp(CLIENT, to, ACK), 14 + 20 + 12, 0x40),
                with_octet(&tcp(CLIENT, to, ACK), 14 + 20 + 12, 0xf0),
                with_octet(&tcp(CLIENT, to, ACK), 14 + 3, 30),
            ]
        };
        for frame in damaged(vip) {
            assert_eq!(host.ingress(&frame).action, Action::Drop, "{frame:02x?}");
        }
        for frame in damaged(other) {
            assert_eq!(host.ingress(&frame), Outcome { action: Action::Pass, frame });
        }
    }
    let mut lying = udp(CLIENT, DNS).frame();
    lying[14 + 20 + 5] = 200;
    assert_eq!(host.ingress(&lying).action, Action::Drop);
    assert_eq!(host.events(Event::Malformed), 6);
}

#[test]
fn vlan_tags_and_padding_are_kept_and_a_missing_udp_checksum_stays_missing() {
    let host = host();
    for tags in 1..=2 {
        let mut frame = PacketSpec { tags, ..tcp(CLIENT, WEB, SYN) }.frame();
        frame.extend([0xaa; 6]);
        let Outcome { action, frame: out } = host.ingress(&frame);
        assert_eq!(action, Action::Deliver, "only the stack knows which interface its VLAN leaves by");
        assert_eq!(out[12..12 + 4 * usize::from(tags)], frame[12..12 + 4 * usize::from(tags)]);
        assert_eq!(out[out.len() - 6..], [0xaa; 6]);
        assert_eq!(ends(&out).1, at(BLUE));
    }
    let out = host.ingress(&PacketSpec { without_udp_checksum: true, ..udp(CLIENT, DNS) }.frame()).frame;
    assert_eq!(out[14 + 20 + 6..14 + 20 + 8], [0, 0]);
}

#[test]
fn a_udp_checksum_that_comes_out_as_zero_is_sent_as_its_twin() {
    let host = host();
    let mut met = false;
    for word in 0..=u16::MAX {
        let packet = PacketSpec { payload: word.to_be_bytes().to_vec(), ..udp(CLIENT, DNS) };
        let out = host.ingress(&packet.frame()).frame;
        assert_checksums(&out);
        met |= out[14 + 20 + 6..14 + 20 + 8] == [0xff, 0xff];
    }
    assert!(met, "one word in 65,536 makes the sum zero");
}

#[test]
fn packets_are_counted_by_service_and_colour() {
    let mut host = host();
    let bytes = tcp(CLIENT, WEB, SYN).frame().len() as u64;
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    sent_to(&host, &tcp(CLIENT, WEB, ACK));
    drain(&mut host);
    sent_to(&host, &udp(CLIENT, DNS));
    let (blue, green) = (host.traffic(0, 0), host.traffic(1, 1));
    assert_eq!((blue.packets, blue.bytes, blue.flows_opened), (2, 2 * bytes, 1));
    assert_eq!((green.packets, green.flows_opened), (1, 1));
    assert_eq!(host.traffic(0, 1).packets + host.traffic(1, 0).packets, 0);
}

#[test]
fn a_backend_without_a_known_next_hop_is_left_to_the_stack_with_its_address_rewritten() {
    let mut scenario = shop();
    scenario.backends.iter_mut().for_each(|backend| backend.next_hop = bg_common::NextHop::NONE);
    let host = Host::load(scenario, NOW);
    let Outcome { action, frame } = host.ingress(&tcp(CLIENT, WEB, SYN).frame());
    assert_eq!((action, ends(&frame).1), (Action::Deliver, at(BLUE)));
    assert_eq!(frame[14 + 8], 64, "the stack counts the hop");
    assert_eq!(host.events(Event::NextHopByStack), 1);
}

#[test]
fn a_packet_over_the_egress_mtu_is_left_to_the_stack() {
    let host = host();
    let fits = PacketSpec { payload: vec![0; 1500 - 40], ..tcp(CLIENT, WEB, ACK) };
    let too_big = PacketSpec { payload: vec![0; 1501 - 40], ..tcp(CLIENT, WEB, ACK) };
    assert_eq!(host.ingress(&fits.frame()).action, Action::Redirect);
    assert_eq!(host.ingress(&too_big.frame()).action, Action::Deliver);
    assert_eq!(host.events(Event::TooBig), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_of_any_kind_are_left_alone_unless_they_are_for_a_vip(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        // No VIP at all: whatever it is, it is not ours.
        let host = Host::load(Scenario::default(), NOW);
        let outcome = host.ingress(&bytes);
        prop_assert_eq!(&outcome.frame, &bytes);
        prop_assert_eq!(outcome.action, Action::Pass);
    }

    #[test]
    fn an_updated_checksum_is_the_one_computed_anew(
        mut words in proptest::collection::vec(any::<u16>(), 4..40), at in 0usize..3, new in any::<u32>(),
    ) {
        let before = compute(&words);
        let at = at & !1;
        let old = u32::from(words[at]) | u32::from(words[at + 1]) << 16;
        words[at] = new as u16;
        words[at + 1] = (new >> 16) as u16;
        let (updated, anew) = (Delta::NONE.double_word(old, new).apply(before), compute(&words));
        // Ones' complement has two zeros (RFC 1624, section 3).
        prop_assert!(updated == anew || (updated, anew) == (0xffff, 0) || (updated, anew) == (0, 0xffff));
    }
}

/// RFC 1071, word by word.
fn compute(words: &[u16]) -> u16 {
    let sum = words.iter().fold(0u32, |sum, word| {
        let sum = sum + u32::from(*word);
        (sum & 0xffff) + (sum >> 16)
    });
    !(sum as u16)
}
