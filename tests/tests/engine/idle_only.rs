//! Preview address and testers.

use crate::*;
use etherparse::{SlicedPacket, TcpHeader, TransportSlice};

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
const CLIENT6: &str = "[2001:db8:1::1]:40000";

/// No service has a backend of its green colour, which is idle. The user's packets go to blue.
fn without_green() -> Host {
    let mut scenario = Scenario::default();
    scenario.deployment();
    for (vip, preview, protocol, blue) in [
        (WEB, WEB_PREVIEW, Protocol::Tcp, BLUE),
        (WEB6, WEB6_PREVIEW, Protocol::Tcp, "[fd00:1::11]:8443"),
        (DNS, DNS_PREVIEW, Protocol::Udp, BLUE_DNS),
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
fn refused(host: &Host, segment: &PacketSpec) -> (u32, u32, bool) {
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
    for (from, to) in [(TESTER, DNS), (CLIENT, DNS_PREVIEW)] {
        assert_eq!(host.ingress(&udp(from, to).frame()).action, Action::Drop);
        assert_eq!(host.early(&udp(from, to).frame()).action, Action::Drop);
    }
    assert_eq!((host.events(Event::IdleNotReady), host.events(Event::MissingRow)), (16, 0));
    assert!(host.flow(flow_of(TESTER, 0)).is_none(), "nothing is remembered");
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, SYN)), at(BLUE));
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS));
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
