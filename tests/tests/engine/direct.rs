//! Backends that reply to clients directly: what packets to them look like, by etherparse, and what becomes of their flows.

use crate::*;
use bg_common::{Backend, Flow, FlowState, NextHop, Tunnel};
use bg_ebpf::policy::lifetime::is_open;
use bg_tests::{
    frames::{ErrorSpec, packet_in},
    twin::{OUTER_V4, OUTER_V6},
};
use etherparse::{IpNumber, Ipv4Header, Ipv6Header, UdpHeader};
use std::net::IpAddr;

const WEB6: &str = "[2001:db8::10]:443";
const CLIENT6: &str = "[2001:db8:1::1]:40000";
const BLUE4: &str = "10.0.1.11:443";
const GREEN4: &str = "10.0.2.11:443";
const BLUE6: &str = "[2001:db8:b::11]:443";
const GREEN6: &str = "[2001:db8:b::21]:443";
const DMAC: [u8; 6] = [0, 0, 0, 0, 0, 2];
const SMAC: [u8; 6] = [1, 0, 0, 0, 0, 6];

/// A client, the VIP, and a backend of each colour.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) mode: Mode,
    pub(crate) protocol: Protocol,
    pub(crate) client: &'static str,
    pub(crate) vip: &'static str,
    pub(crate) backends: [&'static str; 2],
}

/// All families and protocols of a mode.
pub(crate) fn cases(mode: Mode) -> Vec<Case> {
    let inner = [(CLIENT, WEB, true), (CLIENT6, WEB6, false)];
    let backends = [([BLUE4, GREEN4], true), ([BLUE6, GREEN6], false)];
    let mut cases = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (client, vip, is_v4) in inner {
            for (backends, is_of_v4) in backends {
                if mode.is_tunnel() || is_v4 == is_of_v4 {
                    cases.push(Case { mode, protocol, client, vip, backends });
                }
            }
        }
    }
    cases
}

pub(crate) fn direct(case: Case) -> Host {
    Host::load(scenario(case), NOW)
}

fn scenario(Case { mode, protocol, vip, backends: [blue, green], .. }: Case) -> Scenario {
    let mut scenario = Scenario::default();
    scenario.deployment();
    scenario.service(&ServiceAt { mode, ..service(vip, None, protocol, blue, green) });
    scenario
}

/// A packet of the client: a segment with these flags, or a datagram.
pub(crate) fn packet(case: Case, flags: u8) -> PacketSpec {
    let spec = match case.protocol {
        Protocol::Tcp => tcp(case.client, case.vip, flags),
        Protocol::Udp => udp(case.client, case.vip),
    };
    PacketSpec { payload: b"seven b".to_vec(), ..spec }
}

/// The frame as a router sends it on: one hop less.
pub(crate) fn forwarded(spec: &PacketSpec) -> Vec<u8> {
    PacketSpec { ttl: spec.ttl - 1, ..spec.clone() }.frame()
}

/// An outer header, read.
#[derive(Debug, PartialEq, Eq)]
struct OuterHeader {
    from: IpAddr,
    to: IpAddr,
    hop_limit: u8,
    tos: u8,
    protocol: IpNumber,
    /// IPv4: "do not fragment". IPv6: the flow label.
    is_whole: bool,
    label: u32,
}

/// The outer header of a frame whose lengths and checksum are right, and what is in it.
#[track_caller]
fn outer(frame: &[u8]) -> (OuterHeader, Vec<u8>) {
    match frame[12..14] {
        [0x08, 0x00] => {
            let (ip, rest) = Ipv4Header::from_slice(&frame[14..]).expect("IPv4");
            assert_eq!(usize::from(ip.total_len), frame.len() - 14);
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert!(!ip.more_fragments && ip.options.is_empty());
            let header = OuterHeader {
                from: ip.source.into(),
                to: ip.destination.into(),
                hop_limit: ip.time_to_live,
                tos: ip.dscp.value() << 2 | ip.ecn.value(),
                protocol: ip.protocol,
                is_whole: ip.dont_fragment,
                label: 0,
            };
            (header, rest.to_vec())
        }
        [0x86, 0xdd] => {
            let (ip, rest) = Ipv6Header::from_slice(&frame[14..]).expect("IPv6");
            assert_eq!(usize::from(ip.payload_length), frame.len() - 54);
            let header = OuterHeader {
                from: ip.source.into(),
                to: ip.destination.into(),
                hop_limit: ip.hop_limit,
                tos: ip.traffic_class,
                protocol: ip.next_header,
                is_whole: true,
                label: ip.flow_label.value(),
            };
            (header, rest.to_vec())
        }
        ref other => panic!("{other:?}"),
    }
}

/// What GUE bears, in a datagram whose length and checksum are right. The source port, and whether there is a checksum.
#[track_caller]
fn in_gue(header: &OuterHeader, rest: &[u8], port: u16) -> (Vec<u8>, u16, bool) {
    let (udp, payload) = UdpHeader::from_slice(rest).expect("UDP");
    assert_eq!((udp.destination_port, usize::from(udp.length)), (port, rest.len()));
    let has_checksum = udp.checksum != 0;
    let expected = match (header.from, header.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => udp.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload),
        (IpAddr::V6(from), IpAddr::V6(to)) => udp.calc_checksum_ipv6_raw(from.octets(), to.octets(), payload),
        other => panic!("{other:?}"),
    };
    assert!(!has_checksum || udp.checksum == expected.expect("length"), "{udp:?}");
    let next = if payload[4] >> 4 == 4 { 4 } else { 41 };
    assert_eq!(payload[..4], [0, next, 0, 0], "version 0, no options");
    (payload[4..].to_vec(), udp.source_port, has_checksum)
}

/// The packet that a backend gets out of a frame, with its link layer: what `outer` and `in_gue` find in it.
#[track_caller]
fn unpacked(case: Case, frame: &[u8]) -> Vec<u8> {
    let mut inner = frame[..14].to_vec();
    if case.mode == Mode::L2dsr {
        return frame.to_vec();
    }
    let (header, rest) = outer(frame);
    let rest = if case.mode == Mode::Gue { in_gue(&header, &rest, 6080).0 } else { rest };
    inner[12..14].copy_from_slice(if rest[0] >> 4 == 4 { &[0x08, 0x00] } else { &[0x86, 0xdd] });
    inner.extend(rest);
    inner
}

const MODES: [Mode; 3] = [Mode::L2dsr, Mode::Ipip, Mode::Gue];

#[test]
fn a_backend_gets_the_packet_as_the_client_has_sent_it() {
    for case in MODES.into_iter().flat_map(cases) {
        let host = direct(case);
        let spec = packet(case, SYN);
        let expected = forwarded(&spec);
        for outcome in [host.early(&spec.frame()), host.ingress(&spec.frame())] {
            assert_eq!(outcome.action, Action::Redirect, "{case:?}");
            assert_eq!((&outcome.frame[..6], &outcome.frame[6..12]), (&DMAC[..], &SMAC[..]), "{case:?}");
            let inner = unpacked(case, &outcome.frame);
            assert_checksums(&inner);
            assert_eq!(packet_in(&inner), packet_in(&expected), "{case:?}");
        }
        let counted = host.traffic(0, 0);
        assert_eq!((counted.packets, counted.bytes), (2, 2 * spec.frame().len() as u64), "{case:?}");
        assert_eq!((counted.flows_opened, host.flows().len()), (1, 1));
        assert_eq!(host.all_events(), [0; Event::COUNT as usize], "{case:?}");
    }
}

#[test]
fn outer_headers_say_what_their_rfcs_ask_for() {
    for case in [Mode::Ipip, Mode::Gue].into_iter().flat_map(cases) {
        let host = direct(case);
        let mut frame = packet(case, SYN).frame();
        // DSCP 46, and a congestion that somebody has experienced (RFC 6040: the outer header says so too).
        let tos = 46 << 2 | 3;
        let is_v4 = case.client == CLIENT;
        if is_v4 {
            let delta = Delta::NONE.word(u16::from_ne_bytes([0x45, frame[15]]), u16::from_ne_bytes([0x45, tos]));
            frame[15] = tos;
            let check = delta.apply(u16::from_ne_bytes([frame[24], frame[25]]));
            frame[24..26].copy_from_slice(&check.to_ne_bytes());
        } else {
            (frame[14], frame[15]) = (0x60 | tos >> 4, tos << 4);
        }
        let (header, rest) = outer(&host.ingress(&frame).frame);
        let inner_protocol = IpNumber(if is_v4 { 4 } else { 41 });
        let to = at(case.backends[0]).ip();
        let label = header.label;
        let expected = OuterHeader {
            from: if to.is_ipv4() { OUTER_V4 } else { OUTER_V6 }.parse().expect("an address"),
            to,
            hop_limit: 64,
            tos,
            protocol: if case.mode == Mode::Gue { IpNumber::UDP } else { inner_protocol },
            is_whole: true,
            label,
        };
        assert_eq!(header, expected, "{case:?}");
        assert_eq!(to.is_ipv6(), label != 0, "{case:?}: a flow label for IPv6");
        if case.mode == Mode::Gue {
            let (_, port, has_checksum) = in_gue(&header, &rest, 6080);
            assert!(port >= 49_152, "{port}");
            assert_eq!(has_checksum, to.is_ipv6(), "{case:?}");
        }
    }
}

#[test]
fn what_may_be_fragmented_inside_may_be_outside() {
    for mode in [Mode::Ipip, Mode::Gue] {
        let case = cases(mode)[0];
        let mut frame = packet(case, SYN).frame();
        let (mut ip, _) = Ipv4Header::from_slice(&frame[14..]).expect("IPv4");
        (ip.dont_fragment, ip.identification) = (false, 0x1234);
        ip.header_checksum = ip.calc_header_checksum();
        frame[14..34].copy_from_slice(&ip.to_bytes());
        let sent = direct(case).ingress(&frame).frame;
        let (header, _) = outer(&sent);
        assert!(!header.is_whole);
        assert_eq!(sent[18..20], [0x12, 0x34], "the identification of the packet");
    }
}

#[test]
fn flows_are_spread_by_source_port_label_and_source_address() {
    for case in [Mode::Ipip, Mode::Gue].into_iter().flat_map(cases) {
        let mut scenario = scenario(case);
        let is_v6 = at(case.backends[0]).is_ipv6();
        for tunnel in &mut scenario.tunnels {
            let source: IpAddr = if is_v6 { "2001:db8:5::" } else { "10.7.0.0" }.parse().expect("an address");
            *tunnel = Tunnel { source: source.into(), spread: 0xffff_u32.to_be(), ..*tunnel };
        }
        let host = Host::load(scenario, NOW);
        let mut seen = [(); 4].map(|()| std::collections::BTreeSet::new());
        for port in 1000..1100 {
            let mut spec = packet(case, SYN);
            spec.from.set_port(port);
            let first = host.ingress(&spec.frame()).frame;
            assert_eq!(first, host.ingress(&spec.frame()).frame, "a flow has one way");
            let (header, rest) = outer(&first);
            seen[0].insert(u64::from(u16::from_be_bytes([rest[0], rest[1]])));
            seen[1].insert(u64::from(header.label));
            seen[2].insert(match header.from {
                IpAddr::V4(from) => u64::from(from.to_bits()),
                IpAddr::V6(from) => from.to_bits() as u64,
            });
            let prefix = if is_v6 { "2001:db8:5::" } else { "10.7." };
            assert!(header.from.to_string().starts_with(prefix), "{header:?}");
        }
        let [ports, labels, sources, _] = seen.map(|values| values.len());
        assert!(sources > 90, "{sources}");
        assert!(case.mode == Mode::Ipip || ports > 90, "{ports}");
        assert!(!is_v6 || labels > 90, "{labels}");
    }
}

/// RFC 6936 allows a tunnel to leave the checksum out, where the inner packet has none by which it is known.
#[test]
fn a_datagram_without_a_checksum_has_none_outside() {
    let case = cases(Mode::Gue)
        .into_iter()
        .find(|case| case.protocol == Protocol::Udp && case.client == CLIENT && case.backends == [BLUE6, GREEN6]);
    let case = case.expect("a case");
    let spec = PacketSpec { without_udp_checksum: true, ..packet(case, 0) };
    let sent = direct(case).ingress(&spec.frame()).frame;
    let (header, rest) = outer(&sent);
    let (inner, _, has_checksum) = in_gue(&header, &rest, 6080);
    assert_eq!((inner.as_slice(), has_checksum), (packet_in(&forwarded(&spec)), false));
}

/// The inner checksum does not cover what stands behind the datagram, so it does not tell the outer one.
#[test]
fn a_datagram_that_does_not_fill_its_packet_has_no_outer_checksum() {
    for case in cases(Mode::Gue).into_iter().filter(|case| case.protocol == Protocol::Udp) {
        let (spec, host) = (packet(case, 0), direct(case));
        let (full, mut frame) = (spec.frame(), spec.frame());
        let (l4, is_outer_v6) = (frame.len() - 8 - spec.payload.len(), at(case.backends[0]).is_ipv6());
        frame[l4 + 5] -= 2;
        for (frame, has_checksum) in [(full, is_outer_v6), (frame, false)] {
            let (header, rest) = outer(&host.ingress(&frame).frame);
            assert_eq!(in_gue(&header, &rest, 6080).2, has_checksum, "{case:?}");
        }
    }
}

/// Linux does not write the checksum of each segment.
#[test]
fn a_packet_that_is_yet_to_be_segmented_has_no_outer_checksum_and_may_be_long() {
    for case in MODES.into_iter().flat_map(cases) {
        let host = direct(case);
        host.gso_size.set(1000);
        let spec = PacketSpec { payload: vec![7; 9000], ..packet(case, ACK) };
        let outcome = host.ingress(&spec.frame());
        assert_eq!(outcome.action, Action::Redirect, "{case:?}");
        assert_eq!(packet_in(&unpacked(case, &outcome.frame)), packet_in(&forwarded(&spec)));
        if case.mode == Mode::Gue {
            let (header, rest) = outer(&outcome.frame);
            assert!(!in_gue(&header, &rest, 6080).2);
        }
        host.gso_size.set(1490);
        assert_eq!(host.ingress(&spec.frame()).action, Action::TooBig, "{case:?}");
    }
}

/// Options count: each segment has them.
#[test]
fn segments_fit_with_their_options_and_outer_headers() {
    for case in MODES.into_iter().flat_map(cases).filter(|case| case.protocol == Protocol::Tcp) {
        let host = direct(case);
        let (ip, outer) = (if case.client == CLIENT { 20 } else { 40 }, room(case));
        for options in [0, 12, 40] {
            let mut frame = PacketSpec { payload: vec![1; 9000], ..packet(case, ACK) }.frame();
            // No-operation options.
            frame[14 + ip + 12] = (((20 + options) / 4) << 4) as u8;
            let fits = 1500 - outer - (ip + 20 + options) as u32;
            for (size, expected) in [(fits, Action::Redirect), (fits + 1, Action::TooBig)] {
                host.gso_size.set(size);
                assert_eq!(host.ingress(&frame).action, expected, "{case:?}: {options}");
            }
        }
    }
}

/// The ICMP error in a frame: type and code, the word behind, and the packet that it quotes.
#[track_caller]
pub(crate) fn error_in(case: Case, frame: &[u8]) -> ([u8; 2], u32, Vec<u8>) {
    assert_checksums(frame);
    let packet = packet_in(frame);
    let (header, from, to): (usize, IpAddr, IpAddr) = if packet[0] >> 4 == 4 {
        let (ip, _) = Ipv4Header::from_slice(packet).expect("IPv4");
        (20, ip.source.into(), ip.destination.into())
    } else {
        let (ip, _) = Ipv6Header::from_slice(packet).expect("IPv6");
        (40, ip.source.into(), ip.destination.into())
    };
    assert_eq!((from, to), (at(case.vip).ip(), at(case.client).ip()));
    let icmp = &packet[header..];
    ([icmp[0], icmp[1]], u32::from_be_bytes([icmp[4], icmp[5], icmp[6], icmp[7]]), icmp[8..].to_vec())
}

/// Bytes of the outer headers.
pub(crate) fn room(case: Case) -> u32 {
    let ip = if at(case.backends[0]).is_ipv4() { 20 } else { 40 };
    match case.mode {
        Mode::Gue => ip + 12,
        Mode::Ipip => ip,
        _ => 0,
    }
}

#[test]
fn a_client_hears_what_fits() {
    for case in MODES.into_iter().flat_map(cases) {
        let host = direct(case);
        let (is_v4, room) = (case.client == CLIENT, room(case));
        let headers = (if is_v4 { 20 } else { 40 }) + if case.protocol == Protocol::Tcp { 20 } else { 8 };
        let of_length = |len: u32| PacketSpec { payload: vec![5; (len - headers) as usize], ..packet(case, ACK) };
        let fits = 1500 - room;
        assert_eq!(host.ingress(&of_length(fits).frame()).action, Action::Redirect, "{case:?}");
        let frame = of_length(fits + 1).frame();
        assert_eq!(host.early(&frame), Outcome { action: Action::Defer, frame: frame.clone() });
        let outcome = host.ingress(&frame);
        assert_eq!(outcome.action, Action::TooBig, "{case:?}");
        let (kind, mtu, quoted) = error_in(case, &outcome.frame);
        assert_eq!((kind, mtu), (if is_v4 { [3, 4] } else { [2, 0] }, fits), "{case:?}");
        let most = if is_v4 { 576 - 28 } else { 1280 - 48 };
        assert_eq!(quoted, packet_in(&frame)[..most]);
        assert_eq!(host.events(Event::DirectTooBig), 1);

        host.may_send_errors.set([true, false]);
        assert_eq!(host.ingress(&frame).action, Action::Drop);
        assert_eq!(host.events(Event::DirectTooBig), 2);
    }
}

#[test]
fn no_ipv6_client_hears_of_less_than_1280_bytes() {
    for case in [Mode::Ipip, Mode::Gue].into_iter().flat_map(cases).filter(|case| case.client == CLIENT6) {
        let mut host = direct(case);
        host.change_backend(0, |backend| {
            let hop = backend.next_hop;
            backend.next_hop =
                NextHop { learned: NOW, asked: NOW - 2, ..NextHop::pack(OUT, 1290, hop.dmac(), hop.smac(), 0) };
        });
        let outcome = host.ingress(&PacketSpec { payload: vec![5; 1240], ..packet(case, ACK) }.frame());
        assert_eq!((outcome.action, error_in(case, &outcome.frame).1), (Action::TooBig, 1280), "{case:?}");
    }
}

#[test]
fn a_client_hears_of_a_spent_hop_limit() {
    for case in MODES.into_iter().flat_map(cases) {
        let host = direct(case);
        let frame = PacketSpec { ttl: 1, ..packet(case, SYN) }.frame();
        assert_eq!(host.early(&frame).action, Action::Defer);
        let outcome = host.ingress(&frame);
        assert_eq!(outcome.action, Action::TimeExceeded, "{case:?}");
        let (kind, rest, quoted) = error_in(case, &outcome.frame);
        assert_eq!((kind, rest), (if case.client == CLIENT { [11, 0] } else { [3, 0] }, 0));
        assert_eq!(quoted, packet_in(&frame));
        assert_eq!(host.events(Event::DirectExpired), 1);

        host.may_send_errors.set([false, true]);
        assert_eq!(host.ingress(&frame).action, Action::Drop);
        assert_eq!(host.events(Event::DirectExpired), 2);
    }
}

/// Makes the host look up the way to the blue backend.
fn forget_hop(host: &mut Host) {
    host.change_backend(0, |backend| backend.next_hop = NextHop { learned: NOW - 100, ..NextHop::NONE });
}

#[test]
fn what_has_no_way_is_dropped_and_counted() {
    for case in MODES.into_iter().flat_map(cases) {
        let (mut host, frame) = (direct(case), packet(case, SYN).frame());
        forget_hop(&mut host);
        assert_eq!(host.early(&frame), Outcome { action: Action::Defer, frame: frame.clone() }, "{case:?}");
        assert_eq!(host.ingress(&frame).action, Action::Drop, "{case:?}");
        assert_eq!(host.events(Event::NoWay), 1);

        // By a gateway.
        let backend = at(case.backends[0]).ip();
        let gateway: IpAddr =
            if backend.is_ipv4() { "10.0.0.254" } else { "2001:db8:b::fe" }.parse().expect("an address");
        let mut host = direct(case);
        forget_hop(&mut host);
        host.routes.borrow_mut().insert(backend, NextHop::pack(OUT, 1500, 0x77, 0x66, 0));
        host.gateways.borrow_mut().insert(backend, gateway);
        let expected = if case.mode == Mode::L2dsr { Action::Drop } else { Action::Resolve };
        assert_eq!(host.ingress(&frame).action, expected, "{case:?}");
        assert_eq!(host.ingress(&frame).action == Action::Drop, case.mode == Mode::L2dsr, "{case:?}: and remembered");

        if case.mode.is_tunnel() {
            let mut scenario = scenario(case);
            scenario.tunnels.iter_mut().for_each(|tunnel| tunnel.source = bg_common::Addr([0; 4]));
            let host = Host::load(scenario, NOW);
            assert_eq!(host.ingress(&frame).action, Action::Drop, "{case:?}: no source");
            assert_eq!(host.events(Event::NoWay), 1);
        }
    }
}

#[test]
fn a_frame_with_a_tag_is_left_to_its_vlan_interface() {
    for case in MODES.into_iter().flat_map(cases) {
        let (host, frame) = (direct(case), PacketSpec { tags: 1, ..packet(case, SYN) }.frame());
        assert_eq!(host.early(&frame).action, Action::Defer);
        assert_eq!(host.ingress(&frame), Outcome { action: Action::Pass, frame: frame.clone() });
        assert_eq!(host.events(Event::NextHopByStack), 1);
        assert!(host.flows().is_empty() && host.traffic(0, 0).flows_opened == 0, "{case:?}");
        // Nor does one of a flow that came by the VLAN's interface.
        sent(&host, case, SYN);
        assert_eq!(host.ingress(&frame), Outcome { action: Action::Pass, frame });
        assert_eq!((host.traffic(0, 0).flows_opened, host.traffic(0, 0).packets), (1, 1), "{case:?}");
    }
}

/// Where a packet of the case goes: the backend's address.
#[track_caller]
fn sent(host: &Host, case: Case, flags: u8) -> IpAddr {
    sent_by(host, case, &packet(case, flags))
}

#[track_caller]
fn sent_by(host: &Host, case: Case, spec: &PacketSpec) -> IpAddr {
    let outcome = host.ingress(&spec.frame());
    assert_eq!(outcome.action, Action::Redirect, "{case:?}");
    if case.mode == Mode::L2dsr {
        // By the MAC address, which ends in the slot.
        return at(case.backends[usize::from(outcome.frame[0])]).ip();
    }
    outer(&outcome.frame).0.to
}

#[test]
fn a_drain_keeps_flows_and_a_cut_moves_or_resets_them() {
    for case in MODES.into_iter().flat_map(cases) {
        let [blue, green] = case.backends.map(|backend| at(backend).ip());
        let host = direct(case);
        assert_eq!(sent(&host, case, SYN), blue);
        assert_eq!(sent(&host, case, ACK), blue);
        drain(&host);
        assert_eq!(sent(&host, case, ACK), blue, "{case:?}");
        let other =
            Case { client: if case.client == CLIENT { "192.0.2.1:40001" } else { "[2001:db8:1::1]:40001" }, ..case };
        assert_eq!(sent(&host, other, SYN), green, "{case:?}");
        cut(&host);
        match case.protocol {
            Protocol::Udp => assert_eq!(sent(&host, other, 0), blue, "{case:?}"),
            Protocol::Tcp => {
                assert_eq!(host.ingress(&packet(other, ACK).frame()).action, Action::Reset, "{case:?}");
                // The reset to the backend, which comes by the same hook, goes there as the segment would have.
                let reset = PacketSpec { payload: Vec::new(), ..packet(other, RST) };
                let outcome = host.ingress(&reset.frame());
                assert_eq!(packet_in(&unpacked(other, &outcome.frame)), packet_in(&forwarded(&reset)));
                assert_eq!(sent(&host, other, SYN), blue, "{case:?}: a new connection");
            }
        }
    }
}

/// How long a handshake may take, and what follows from that for connections whose client has sent FIN: a quarter of it, and a 32nd.
const OPENING: u32 = 1024;
const HALF_CLOSED: u32 = OPENING / 4;
const CLOSED: u32 = OPENING / 32;

/// A connection whose client has acknowledged this, and a drain.
fn before_fin(case: Case, acknowledged: u32) -> Host {
    let mut scenario = scenario(case);
    scenario.deployments[0].0.tcp_opening = OPENING;
    let host = Host::load(scenario, NOW);
    sent(&host, case, SYN);
    assert!(!flow_in(&host, case).state.is_assured());
    acknowledge(&host, case, ACK, acknowledged);
    assert!(flow_in(&host, case).state.is_assured(), "{case:?}: it has acknowledged the backend's SYN");
    drain(&host);
    host
}

fn flow_in(host: &Host, case: Case) -> Flow {
    host.flow(flow_of(case.client, 0)).expect("a flow")
}

/// Sends a segment with this acknowledgment, which goes to the first backend.
#[track_caller]
fn acknowledge(host: &Host, case: Case, flags: u8, acknowledgment: u32) {
    let spec = PacketSpec { acknowledgment, ..packet(case, flags) };
    assert_eq!(sent_by(host, case, &spec), at(case.backends[0]).ip(), "{case:?}");
}

/// For how long the flow is open yet, if nothing more comes.
fn stays(host: &Host, case: Case) -> u32 {
    let (flow, row) = (flow_in(host, case), host.scenario.deployments[0].0);
    let is_open = |ticks: &u32| is_open(&flow, Protocol::Tcp, &row, flow.last_seen + ticks);
    let stays = (0..=2 * OPENING).take_while(is_open).last().expect("an open flow");
    assert_eq!(flow.state.limit(), stays, "{case:?}: for whoever wants its row");
    stays
}

#[test]
fn a_connection_whose_client_has_sent_fin_is_open_while_it_goes_on() {
    for case in MODES.into_iter().flat_map(cases).filter(|case| case.protocol == Protocol::Tcp) {
        // Numbers wrap, too.
        let start = 0xffff_fff0_u32;
        let mut host = before_fin(case, start);
        acknowledge(&host, case, FIN | ACK, start);
        let (mut now, mut acknowledged) = (NOW, start);
        // One byte alone may be the backend's FIN. If more follows, it was not.
        for (more, expected) in [(0, 8), (1448, 8), (1, 1), (1, 1), (0, 1), (1448, 8), (7, 8), (1, 1), (2, 8), (1, 1)] {
            now += stays(&host, case);
            host.later(now);
            acknowledged = acknowledged.wrapping_add(more);
            acknowledge(&host, case, ACK, acknowledged);
            // XDP may have left it to tc. Older ones come late.
            acknowledge(&host, case, ACK, acknowledged);
            acknowledge(&host, case, ACK, acknowledged.wrapping_sub(1));
            assert_eq!(stays(&host, case), expected * CLOSED, "{case:?}: {more}");
        }
        host.later(now + OPENING);
        acknowledge(&host, case, ACK, acknowledged);
        assert_eq!(sent(&host, case, SYN), at(case.backends[1]).ip(), "{case:?}: a new connection");
        assert!(!flow_in(&host, case).state.may_have_ended());
    }
    assert_eq!(HALF_CLOSED, 8 * CLOSED);
}

#[test]
fn a_fin_ends_a_connection_by_and_by_wherever_it_comes() {
    let case = cases(Mode::Ipip)[0];
    let mut scenario = scenario(case);
    scenario.deployments[0].0.tcp_opening = OPENING;
    let host = Host::load(scenario, NOW);
    acknowledge(&host, case, FIN | ACK, 7);
    assert!(!flow_in(&host, case).state.is_assured(), "picked up in mid-stream");
    assert_eq!(stays(&host, case), HALF_CLOSED);
    acknowledge(&host, case, ACK, 8);
    assert_eq!(stays(&host, case), CLOSED);
    assert!(!flow_in(&host, case).state.is_assured(), "nobody has acknowledged a SYN");
    // The handshake's last segment has been lost.
    sent(&host, case, SYN);
    acknowledge(&host, case, FIN | ACK, 7);
    assert!(flow_in(&host, case).state.is_assured());
    assert_eq!(stays(&host, case), HALF_CLOSED);
}

#[test]
fn forged_syns_do_not_move_an_established_connection() {
    for case in MODES.into_iter().flat_map(cases).filter(|case| case.protocol == Protocol::Tcp) {
        let [blue, green] = case.backends.map(|backend| at(backend).ip());
        let mut host = direct(case);
        let (mut now, forged) = (NOW, PacketSpec { sequence: 0x0bad_cafe, ..packet(case, SYN) });
        let forge = |host: &mut Host, now: &mut u32, times| {
            for _ in 0..times {
                *now += 50;
                host.later(*now);
                assert_eq!(host.ingress(&forged.frame()).action, Action::Redirect, "{case:?}");
            }
        };
        let state = |host: &Host| host.flow(flow_of(case.client, 0)).expect("a flow").state;
        sent(&host, case, SYN);
        sent(&host, case, ACK);
        // A client that goes on has sent no SYN. Its flow is as before, and pays nothing for it.
        for _ in 0..5 {
            forge(&mut host, &mut now, 1);
            assert!(state(&host).has(FlowState::DOUBTFUL), "{case:?}");
            assert_eq!(sent(&host, case, ACK), blue, "{case:?}");
            assert!(!state(&host).has(FlowState::DOUBTFUL), "{case:?}");
        }
        assert_eq!(host.traffic(0, 0).flows_opened, 1, "{case:?}");
        // Of one that says nothing, nobody hears what the backend thinks.
        drain(&host);
        forge(&mut host, &mut now, 5);
        assert_eq!((host.traffic(0, 0).flows_opened, host.traffic(0, 1).flows_opened), (1, 0), "{case:?}");
        assert_eq!(sent(&host, case, ACK), blue, "{case:?}");
        // The client resets the connection if the backend has challenged its own SYN.
        sent(&host, case, RST);
        assert_eq!(sent(&host, case, SYN), green, "{case:?}");
    }
}

/// New flows go the same way, but not to a backend that is down.
#[test]
fn a_syn_that_nobody_answers_opens_another_connection_at_the_live_colour() {
    for case in MODES.into_iter().flat_map(cases).filter(|case| case.protocol == Protocol::Tcp) {
        let mut host = direct(case);
        sent(&host, case, SYN);
        sent(&host, case, ACK);
        let again = PacketSpec { sequence: 0x0bad_cafe, ..packet(case, SYN) };
        for (tick, opened) in [(100, 1), (116, 1), (148, 2)] {
            host.later(NOW + tick);
            assert_eq!(host.ingress(&again.frame()).action, Action::Redirect, "{case:?}");
            assert_eq!(host.traffic(0, 0).flows_opened, opened, "{case:?}: {tick}");
        }
    }
}

/// Routers on the way from the backend to the client tell the VIP, that is here, what does not fit.
#[test]
fn an_error_about_a_reply_goes_to_the_backend_as_it_is() {
    for case in MODES.into_iter().flat_map(cases) {
        let host = direct(case);
        sent(&host, case, SYN);
        let reply = PacketSpec { from: at(case.vip), to: at(case.client), ..packet(case, ACK) };
        let router = if case.client == CLIENT { "198.51.100.1" } else { "2001:db8:9::1" }.parse().expect("an address");
        let error = ErrorSpec::too_big(router, at(case.vip).ip(), &reply.frame());
        let expected = ErrorSpec { ttl: error.ttl - 1, ..error.clone() }.frame();
        for outcome in [host.early(&error.frame()), host.ingress(&error.frame())] {
            assert_eq!(outcome.action, Action::Redirect, "{case:?}");
            assert_eq!(packet_in(&unpacked(case, &outcome.frame)), packet_in(&expected), "{case:?}");
        }
        assert_eq!(host.traffic(0, 0).packets, 1, "it is no packet of the client");
    }
}

/// Another edge may have the flow, or this one has lost it.
#[test]
fn an_error_about_a_reply_without_a_row_goes_where_the_flow_would_go() {
    for case in MODES.into_iter().flat_map(cases) {
        let host = direct(case);
        let router = if case.client == CLIENT { "198.51.100.1" } else { "2001:db8:9::1" }.parse().expect("an address");
        let about = |host: &Host, vip: &str| {
            let reply = PacketSpec { from: at(vip), to: at(case.client), ..packet(case, ACK) };
            host.ingress(&ErrorSpec::too_big(router, at(vip).ip(), &reply.frame()).frame())
        };
        let to = |outcome: Outcome| {
            assert_eq!(outcome.action, Action::Redirect, "{case:?}");
            // By the MAC address, which ends in the slot.
            outcome.frame[0]
        };
        assert_eq!(to(about(&host, case.vip)), 0, "{case:?}");
        drain(&host);
        assert_eq!(to(about(&host, case.vip)), 1, "{case:?}: the live colour");
        assert!(host.flows().is_empty(), "{case:?}");
        // A word that changes by itself is asked by packets that can tell what comes of it.
        let word = host.word(0);
        host.set_live(0, word.with_flags(word.flags().with(LiveFlags::TIMED)), SwitchTerms::default());
        assert_eq!(about(&host, case.vip).action, Action::Pass, "{case:?}");
        if (case.client == CLIENT) != at(case.backends[0]).is_ipv4() {
            continue;
        }
        let nat = direct(Case { mode: Mode::Nat, ..case });
        assert_eq!(about(&nat, case.vip).action, Action::Pass, "{case:?}");
    }
}

/// What a backend sends from its own address is no reply, whatever else it serves.
#[test]
fn no_packet_of_a_backend_is_taken_for_a_reply() {
    for case in MODES.into_iter().flat_map(cases).filter(|case| case.client == CLIENT && case.backends[0] == BLUE4) {
        let mut scenario = scenario(case);
        scenario.service(&service("203.0.113.77:443", None, case.protocol, BLUE4, GREEN4));
        let host = Host::load(scenario, NOW);
        sent(&host, case, SYN);
        sent(&host, case, ACK);
        let own = PacketSpec { from: at(BLUE4), to: at(CLIENT), ..packet(case, ACK) }.frame();
        for outcome in [host.early(&own), host.ingress(&own), host.egress(&own)] {
            assert_eq!(outcome, Outcome { action: Action::Pass, frame: own.clone() }, "{case:?}");
        }
        // A flow of the same port by `nat` to the same backend: neither stands in the other's way.
        let nat = Case { vip: "203.0.113.77:443", mode: Mode::Nat, ..case };
        assert_eq!(host.ingress(&packet(nat, SYN).frame()).action, Action::Redirect, "{case:?}");
        assert_eq!(host.flows().len(), 2, "{case:?}");
        // Nor the other way round.
        let [nat, later] = [nat, case].map(|case| Case { client: "192.0.2.1:40009", ..case });
        assert_eq!(host.ingress(&packet(nat, SYN).frame()).action, Action::Redirect, "{case:?}");
        assert_eq!(sent(&host, later, SYN), at(BLUE4).ip(), "{case:?}");
        assert_eq!(host.flows().len(), 4, "{case:?}");
        assert_eq!(sent(&host, case, ACK), at(BLUE4).ip());
    }
}

#[test]
fn rows_of_direct_backends_say_so() {
    let scenario = scenario(cases(Mode::Gue)[0]);
    let indexed = scenario.indexed(16);
    assert!(indexed.backend_heads.iter().all(|head| *head == 0), "none is found by its source");
    assert_eq!(indexed.backends.iter().map(|row| row.next).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(indexed.backends[0].protocol(), Some(Protocol::Tcp));
    assert!(indexed.backends[0].is_direct() && !Backend::default().is_direct());
}
