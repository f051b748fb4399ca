//! Preview address and testers.

use crate::*;
use bg_common::{Cause, Colour, FULL_SHARE, Timing};
use bg_ebpf::{
    policy::error_rate,
    wire::{ethernet, packet::Packet},
};
use bg_tests::frames::packet_in;
use etherparse::{NetSlice, SlicedPacket, TcpHeader, TransportSlice};

#[test]
fn flows_of_a_preview_address_end_when_it_becomes_something_else() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB_PREVIEW, SYN));
    host.remove_vip(1);
    passes(&host, &tcp(GREEN, CLIENT, ACK));
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
    drain(&host);
    for (from, to) in [(TESTER, WEB), (CLIENT, WEB_PREVIEW)] {
        let segment = tcp(from, to, ACK);
        is_reset(&host, &segment);
        assert_eq!(sent_to(&host, &tcp(from, to, SYN)), at(BLUE), "{from} {to}");
    }
}

const WEB6: &str = "[2001:db8::10]:443";
const WEB6_PREVIEW: &str = "[2001:db8::10]:9443";
const DNS_PREVIEW: &str = "203.0.113.10:9053";
const DNS6: &str = "[2001:db8::10]:53";
const DNS6_PREVIEW: &str = "[2001:db8::10]:9053";
const CLIENT6: &str = "[2001:db8:1::1]:40000";

/// No service has a backend of its green colour, which is idle. The user's packets go to blue.
fn without_green() -> Host {
    let mut scenario = Scenario::default();
    scenario.deployment();
    for (vip, preview, protocol, blue) in [
        (WEB, WEB_PREVIEW, Protocol::Tcp, BLUE),
        (WEB6, WEB6_PREVIEW, Protocol::Tcp, "[fd00:1::11]:8443"),
        (DNS, DNS_PREVIEW, Protocol::Udp, BLUE_DNS),
        (DNS6, DNS6_PREVIEW, Protocol::Udp, "[fd00:1::11]:5353"),
    ] {
        let mut service = service(vip, Some(preview), protocol, blue, blue);
        service.backends[1].clear();
        scenario.service(&service);
    }
    scenario.tester(0, "198.51.100.0".parse().expect("an address"), 24);
    Host::load(scenario, NOW)
}

/// The answer to a segment that is refused: sequence number, acknowledgment, whether it acknowledges.
#[track_caller]
pub(crate) fn refused(host: &Host, segment: &PacketSpec) -> (u32, u32, bool) {
    let Outcome { action, frame } = host.ingress(&segment.frame());
    assert_eq!(action, Action::Refuse, "{segment:?}");
    assert_checksums(&frame);
    assert_eq!(ends(&frame), (segment.to, segment.from));
    let reset = SlicedPacket::from_ethernet(&frame).expect("a whole packet");
    let Some(TransportSlice::Tcp(tcp)) = reset.transport else { panic!("{reset:?}") };
    let header = tcp.to_header();
    let TcpHeader { sequence_number, acknowledgment_number, rst, ack, .. } = header;
    let plain = TcpHeader::new(segment.to.port(), segment.from.port(), sequence_number, 0);
    let checksum = header.checksum;
    assert_eq!(header, TcpHeader { rst: true, ack, acknowledgment_number, checksum, ..plain });
    assert!(rst && tcp.payload().is_empty());
    (sequence_number, acknowledgment_number, ack)
}

#[test]
fn who_would_reach_an_idle_colour_that_is_not_ready_is_refused_and_never_reaches_the_live_one() {
    let host = without_green();
    for (from, to) in [(TESTER, WEB), (CLIENT, WEB_PREVIEW), (CLIENT6, WEB6_PREVIEW)] {
        let syn = PacketSpec { sequence: u32::MAX, options: 3, tags: 1, ..tcp(from, to, SYN) };
        assert_eq!(refused(&host, &syn), (0, 0, true), "it acknowledges the SYN");
        let segment = PacketSpec { acknowledgment: 77, payload: vec![1; 9], ..tcp(from, to, ACK) };
        assert_eq!(refused(&host, &segment), (77, 0, false));
        // A reset is not answered by another one.
        assert_eq!(host.ingress(&tcp(from, to, RST).frame()).action, Action::Drop);
        // XDP leaves to tc what it cannot send back by itself.
        assert_eq!(host.early(&syn.frame()), Outcome { action: Action::Defer, frame: syn.frame() });
        assert_eq!(host.early(&tcp(from, to, RST).frame()).action, Action::Drop);
    }
    assert_eq!((host.events(Event::IdleNotReady), host.events(Event::MissingRow)), (12, 0));
    for (from, to) in [(TESTER, DNS), (CLIENT, DNS_PREVIEW), (CLIENT6, DNS6_PREVIEW)] {
        let datagram = udp(from, to);
        unreachable(&host, &datagram);
        assert_eq!(host.early(&datagram.frame()), Outcome { action: Action::Defer, frame: datagram.frame() });
    }
    assert_eq!((host.events(Event::IdleNotReady), host.events(Event::MissingRow)), (15, 0));
    assert!(host.flow(flow_of(TESTER, 0)).is_none(), "nothing is remembered");
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, SYN)), at(BLUE));
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS));
}

/// Asserts that a datagram is answered with an ICMP error, as a host sends it that has no such service. Returns the bytes that it quotes.
#[track_caller]
pub(crate) fn unreachable(host: &Host, datagram: &PacketSpec) -> usize {
    let sent = datagram.frame();
    let Outcome { action, frame } = host.ingress(&sent);
    assert_eq!(action, Action::Unreachable, "{datagram:?}");
    assert_checksums(&frame);
    assert_eq!([&frame[..6], &frame[6..12]], [&sent[6..12], &sent[..6]], "it goes back");
    let error = SlicedPacket::from_ethernet(&frame).expect("a whole packet");
    let (from, to, len, most): (std::net::IpAddr, std::net::IpAddr, usize, usize) = match error.net {
        Some(NetSlice::Ipv4(ip)) => {
            let ip = ip.header();
            assert_eq!((ip.dcp().value() >> 3, ip.dont_fragment(), ip.ttl()), (6, true, 64));
            (ip.source_addr().into(), ip.destination_addr().into(), ip.total_len().into(), 576)
        }
        Some(NetSlice::Ipv6(ip)) => {
            let ip = ip.header();
            assert_eq!(ip.hop_limit(), 64);
            let len = 40 + usize::from(ip.payload_length());
            (ip.source_addr().into(), ip.destination_addr().into(), len, 1280)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!((from, to), (datagram.to.ip(), datagram.from.ip()));
    let (kind, rest, quoted) = match error.transport {
        Some(TransportSlice::Icmpv4(icmp)) => ([icmp.type_u8(), icmp.code_u8()], icmp.bytes5to8(), icmp.payload()),
        Some(TransportSlice::Icmpv6(icmp)) => ([icmp.type_u8(), icmp.code_u8()], icmp.bytes5to8(), icmp.payload()),
        other => panic!("{other:?}"),
    };
    assert_eq!((kind, rest), (if from.is_ipv4() { [3, 3] } else { [1, 4] }, [0; 4]));
    let packet = packet_in(&sent);
    let headers = if from.is_ipv4() { 28 } else { 48 };
    assert_eq!(quoted, &packet[..packet.len().min(most - headers)]);
    assert_eq!((len, frame.len()), (headers + quoted.len(), 14 + len));
    quoted.len()
}

#[test]
fn the_error_quotes_as_much_of_the_datagram_as_it_has_room_for() {
    let host = without_green();
    for (from, to, most) in [(TESTER, DNS, 548), (CLIENT6, DNS6_PREVIEW, 1232)] {
        for len in (0..9).chain([519, 520, 521, 1183, 1184, 1185, 1400]) {
            for (without_udp_checksum, options) in [(false, 0), (false, 3), (true, 10)] {
                let options = if to == DNS { options } else { 0 };
                let payload = (0..len).map(|at| (at * 7) as u8).collect();
                let datagram = PacketSpec { payload, without_udp_checksum, options, ..udp(from, to) };
                let whole = packet_in(&datagram.frame()).len();
                assert_eq!(unreachable(&host, &datagram), whole.min(most));
            }
        }
    }
    // Bytes behind the packet, to which Ethernet fills up a short frame, are not quoted.
    let datagram = udp(TESTER, DNS);
    let padded = [datagram.frame(), vec![0xee; 14]].concat();
    assert_eq!(host.ingress(&padded), host.ingress(&datagram.frame()));
}

#[test]
fn nothing_is_answered_that_comes_from_no_single_host_or_goes_to_a_group() {
    let host = without_green();
    let is_dropped = |frame: &[u8]| {
        assert_eq!(host.ingress(frame).action, Action::Drop);
        assert_eq!(host.early(frame).action, Action::Drop);
    };
    for from in ["0.0.0.0:1", "0.1.2.3:1", "224.0.0.1:1", "239.9.9.9:1", "240.0.0.1:1", "255.255.255.255:1"] {
        is_dropped(&udp(from, DNS_PREVIEW).frame());
        is_dropped(&tcp(from, WEB_PREVIEW, SYN).frame());
    }
    for from in ["[::]:1", "[ff02::1]:1", "[ff0e::9]:1"] {
        is_dropped(&udp(from, DNS6_PREVIEW).frame());
        is_dropped(&tcp(from, WEB6_PREVIEW, SYN).frame());
    }
    for from in ["1.0.0.1:1", "223.255.255.254:1"] {
        unreachable(&host, &udp(from, DNS_PREVIEW));
    }
    for from in ["[::2]:1", "[fe80::1]:1"] {
        unreachable(&host, &udp(from, DNS6_PREVIEW));
    }
    let group = [1, 0, 0x5e, 0, 0, 1];
    for packet in [udp(CLIENT, DNS_PREVIEW), tcp(CLIENT, WEB_PREVIEW, SYN)] {
        let mut frame = packet.frame();
        frame[..6].copy_from_slice(&group);
        let packet = Packet::from_slice(&mut frame);
        assert_eq!(ethernet::swapped_macs(&packet), None);
    }
}

#[test]
fn datagrams_beyond_the_rate_of_errors_are_dropped_and_so_are_those_with_a_tag_among_their_bytes() {
    let host = without_green();
    host.may_send_errors.set([false, true]);
    assert_eq!(host.ingress(&udp(TESTER, DNS).frame()).action, Action::Drop);
    assert_eq!(host.early(&udp(TESTER, DNS).frame()).action, Action::Defer, "tc counts");
    refused(&host, &tcp(TESTER, WEB, SYN));
    host.may_send_errors.set([true; 2]);
    let tagged = PacketSpec { tags: 1, ..udp(TESTER, DNS) }.frame();
    assert_eq!(host.ingress(&tagged).action, Action::Drop);
    assert_eq!(host.early(&tagged).action, Action::Defer, "tc finds the tag elsewhere");
    unreachable(&host, &udp(TESTER, DNS));
    assert_eq!(host.events(Event::IdleNotReady), 4);
}

#[test]
fn a_thousand_errors_are_sent_in_a_second_and_fifty_at_once() {
    const SECOND: u64 = 1_000_000_000;
    let (mut word, mut sent) = (0, 0);
    let mut send = |now: u64| {
        let next = error_rate::next(word, now);
        word = next.unwrap_or(word);
        sent += u32::from(next.is_some());
        sent
    };
    for _ in 0..100 {
        send(7 * SECOND);
    }
    assert_eq!(send(7 * SECOND), 50);
    // Ten a millisecond, of which one goes.
    for micros in 1..=20_000 {
        send(7 * SECOND + micros * 100_000);
    }
    assert_eq!(send(9 * SECOND), 2050);
    for _ in 0..100 {
        send(100 * SECOND);
    }
    assert_eq!(send(100 * SECOND), 2100);
}

/// A switch that nobody's command makes, from one live colour to the other.
#[derive(Clone, Copy, Debug)]
enum ByItself {
    Schedule,
    Ramp,
    Expiry,
}

const SECOND: u64 = 1_000_000_000;

impl ByItself {
    /// Prepares it. It happens a second later.
    fn prepare(self, host: &Host) {
        let (word, now) = (host.word(0), host.clocks()[0]);
        let (from, to) = (word.target_share(), FULL_SHARE - word.target_share());
        let timing = match self {
            Self::Schedule => Timing { activate_at: now + SECOND, before: word, ..Timing::default() },
            // At half of the way the colours change places.
            Self::Ramp => {
                Timing { activate_at: now, ramp: 2 * SECOND - SECOND / 10, before: word, ..Timing::default() }
            }
            Self::Expiry => Timing { window: SECOND, revert_at: now + SECOND, ..Timing::default() },
        };
        let new = LiveWord::new(word.generation() + 1, LiveFlags::TIMED.with(LiveFlags::DRAINING), from, to);
        let timing = Timing { generation: new.generation(), cause: Cause::Switch as u8, ..timing };
        host.set_timing(0, new, timing);
        host.set_live(0, new, SwitchTerms::default());
    }
}

#[test]
fn a_testers_connection_is_reset_by_the_next_segment_of_either_end_after_a_switch_that_no_command_has_made() {
    for how in [ByItself::Schedule, ByItself::Ramp, ByItself::Expiry] {
        for is_of_backend in [false, true] {
            let mut scenario = shop();
            scenario.service(&service(
                WEB6,
                Some(WEB6_PREVIEW),
                Protocol::Tcp,
                "[fd00:1::11]:8443",
                "[fd00:2::11]:8443",
            ));
            scenario.tester(0, "198.51.100.0".parse().expect("an address"), 24);
            let host = Host::load(scenario, NOW);
            host.set_clocks([9 * SECOND; 2]);
            how.prepare(&host);
            let all = [(TESTER, WEB), (CLIENT, WEB_PREVIEW), (CLIENT6, WEB6_PREVIEW)];
            let backends = all.map(|(client, vip)| connect(&host, client, vip));
            let user = connect(&host, "192.0.2.1:40009", WEB);
            for (backend, (client, vip)) in backends.iter().zip(all) {
                assert_eq!(answers_as(&host, &PacketSpec::tcp(*backend, at(client), ACK)), at(vip));
            }
            let before = host.word(0);
            host.set_clocks([10 * SECOND; 2]);
            for (backend, (client, vip)) in backends.iter().zip(all) {
                match is_of_backend {
                    true => is_reset(&host, &PacketSpec::tcp(*backend, at(client), ACK)),
                    false => is_reset(&host, &tcp(client, vip, ACK)),
                }
                assert_ne!(
                    connect(&host, client, vip),
                    *backend,
                    "{how:?}: the next connection is on the other colour"
                );
            }
            assert_eq!(sent_to(&host, &tcp("192.0.2.1:40009", WEB, ACK)), user, "{how:?}: users drain");
            assert_eq!(host.word(0) == before, matches!(how, ByItself::Ramp), "{how:?}");
        }
    }
}

#[test]
fn a_testers_datagrams_go_to_the_other_colour_after_a_switch_that_no_command_has_made_or_are_refused() {
    for how in [ByItself::Schedule, ByItself::Ramp, ByItself::Expiry] {
        let mut scenario = shop();
        scenario.tester(0, "198.51.100.0".parse().expect("an address"), 24);
        let mut host = Host::load(scenario, NOW);
        host.set_clocks([9 * SECOND; 2]);
        how.prepare(&host);
        let [idle, live] = match how {
            ByItself::Expiry => [BLUE_DNS, GREEN_DNS],
            _ => [GREEN_DNS, BLUE_DNS],
        };
        assert_eq!(sent_to(&host, &udp(TESTER, DNS)), at(idle));
        assert_eq!(answers_as(&host, &udp(idle, TESTER)), at(DNS));
        host.set_clocks([10 * SECOND; 2]);
        assert_eq!(
            host.egress(&udp(idle, TESTER).frame()).action,
            Action::Drop,
            "{how:?}: nothing from the live colour"
        );
        let of_live = host.word(0).live();
        let colour = if live == BLUE_DNS { Colour::Blue } else { Colour::Green };
        host.scenario.services.iter_mut().for_each(|(_, row)| row.tables[colour as usize].len = 0);
        unreachable(&host, &udp(TESTER, DNS));
        assert_eq!(host.events(Event::IdleNotReady), 1, "{how:?}, live is {of_live:?}");
    }
}

#[test]
fn a_testers_connection_that_a_switch_puts_on_the_live_colour_is_reset_though_no_backend_could_take_it() {
    let mut host = host();
    host.scenario.tester(0, "198.51.100.0".parse().expect("an address"), 24);
    assert_eq!(connect(&host, TESTER, WEB), at(GREEN));
    let green = host.scenario.services.iter().map(|(_, row)| row.tables[0]).collect::<Vec<_>>();
    host.scenario.services.iter_mut().for_each(|(_, row)| row.tables[0].len = 0);
    drain(&host);
    is_reset(&host, &tcp(TESTER, WEB, ACK));
    refused(&host, &tcp(TESTER, WEB, SYN));
    std::iter::zip(&mut host.scenario.services, green).for_each(|((_, row), table)| row.tables[0] = table);
    assert_eq!(sent_to(&host, &tcp(TESTER, WEB, SYN)), at(BLUE));
}
