//! ICMP errors about flows, byte for byte: each has to become the error that a router would have sent about the packet as
//! its sender has sent it. etherparse builds both.

mod exits;

use crate::*;
use bg_common::{FlowState, NextHop};
use bg_tests::frames::{ErrorSpec, packet_in};
use std::net::IpAddr;

const WEB6: &str = "[2001:db8::10]:443";
const DNS6: &str = "[2001:db8::10]:53";
const BLUE6: &str = "[fd00:1::11]:8443";
const BLUE_DNS6: &str = "[fd00:1::11]:5353";
const CLIENT6: &str = "[2001:db8:1::1]:40000";
const ROUTER: &str = "198.18.0.1";
const ROUTER6: &str = "2001:db8:18::1";
/// Two services whose backends are this host.
const OWN: &str = "203.0.113.20:443";
const OWN_BLUE: &str = "10.0.1.20:8443";

const DMAC: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
const SMAC: [u8; 6] = [6, 0, 0, 0, 0, 1];

fn ip(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

/// A host with routes to clients and backends.
fn edge() -> Host {
    let mut scenario = shop();
    scenario.service(&service(WEB6, None, Protocol::Tcp, BLUE6, "[fd00:2::11]:8443"));
    scenario.service(&service(DNS6, None, Protocol::Udp, BLUE_DNS6, "[fd00:2::11]:5353"));
    scenario.service(&ServiceAt { mode: Mode::Local, ..service(OWN, None, Protocol::Tcp, OWN_BLUE, "10.0.2.20:8443") });
    let host = Host::load(scenario, NOW);
    let mac = |[a, b, c, d, e, f]: [u8; 6]| u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
    let hop = NextHop::pack(OUT, 1500, mac(DMAC), mac(SMAC), 0);
    for address in [CLIENT, CLIENT6, BLUE, BLUE_DNS, BLUE6, BLUE_DNS6] {
        host.routes.borrow_mut().insert(at(address).ip(), hop);
    }
    host
}

/// A flow, and what its two sides know of it.
#[derive(Clone, Copy, Debug)]
struct Sides {
    client: &'static str,
    vip: &'static str,
    backend: &'static str,
    router: &'static str,
    protocol: Protocol,
}

const WEB_FLOW: Sides = Sides { client: CLIENT, vip: WEB, backend: BLUE, router: ROUTER, protocol: Protocol::Tcp };
const OWN_FLOW: Sides = Sides { vip: OWN, backend: OWN_BLUE, ..WEB_FLOW };
const FLOWS: [Sides; 4] = [
    WEB_FLOW,
    Sides { vip: DNS, backend: BLUE_DNS, protocol: Protocol::Udp, ..WEB_FLOW },
    Sides { client: CLIENT6, vip: WEB6, backend: BLUE6, router: ROUTER6, protocol: Protocol::Tcp },
    Sides { client: CLIENT6, vip: DNS6, backend: BLUE_DNS6, router: ROUTER6, protocol: Protocol::Udp },
];

impl Sides {
    fn packet(&self, from: &str, to: &str) -> PacketSpec {
        match self.protocol {
            Protocol::Tcp => tcp(from, to, ACK),
            Protocol::Udp => udp(from, to),
        }
    }

    /// Opens the flow: both ends take part.
    fn open(&self, host: &Host) {
        for flags in [SYN, ACK] {
            let opened = host.ingress(&PacketSpec { flags, ..self.packet(self.client, self.vip) }.frame());
            assert!(matches!(opened.action, Action::Redirect | Action::Deliver), "{opened:?}");
            let answer = PacketSpec { flags: flags | ACK, ..self.packet(self.backend, self.client) };
            assert_eq!(answers_as(host, &answer), at(self.vip));
        }
    }

    /// "Too big" by a router behind the edge about a packet of the client, and what the client has to hear.
    fn about_forwarded(&self) -> [ErrorSpec; 2] {
        let (router, client) = (ip(self.router), at(self.client).ip());
        [self.backend, self.vip].map(|to| ErrorSpec::too_big(router, client, &self.packet(self.client, to).frame()))
    }

    /// "Too big" by a router before the edge about a reply, and what the backend has to hear.
    fn about_reply(&self) -> [ErrorSpec; 2] {
        [self.vip, self.backend]
            .map(|from| ErrorSpec::too_big(ip(self.router), at(from).ip(), &self.packet(from, self.client).frame()))
    }
}

/// The error as the edge sends it on by a next hop.
fn sent_on(error: &ErrorSpec) -> Vec<u8> {
    let mut frame = ErrorSpec { ttl: error.ttl - 1, ..error.clone() }.frame();
    frame[..12].copy_from_slice(&[DMAC, SMAC].concat());
    frame
}

/// Asserts that a frame stays as it is at each hook.
#[track_caller]
fn passes_everywhere(host: &Host, frame: &[u8], why: &str) {
    let unmodified = Outcome { action: Action::Pass, frame: frame.to_vec() };
    assert_eq!(
        [host.early(frame), host.ingress(frame), host.egress(frame)],
        [(); 3].map(|()| unmodified.clone()),
        "{why}"
    );
}

/// What an error may look like.
#[derive(Clone, Debug)]
struct Shape {
    flow: Sides,
    is_about_reply: bool,
    /// Whether the destination of the quoted packet complains itself.
    is_from_end: bool,
    kind: u8,
    code: u8,
    payload: Vec<u8>,
    /// Bytes of the transport header and payload that are quoted.
    quoted: usize,
    options: u8,
    quoted_options: u8,
    without_udp_checksum: bool,
    ttl: u8,
}

fn shape() -> impl Strategy<Value = Shape> {
    (
        (proptest::sample::select(FLOWS.to_vec()), any::<bool>(), any::<bool>()),
        (0usize..4, any::<u8>()),
        proptest::collection::vec(any::<u8>(), 0..48),
        prop_oneof![3 => 8usize..30, 1 => Just(8), 1 => Just(17), 1 => Just(18), 1 => Just(100)],
        (0u8..=10, 0u8..=10),
        any::<bool>(),
        2u8..=255,
    )
        .prop_map(
            |(
                (flow, is_about_reply, is_from_end),
                (kind, code),
                payload,
                quoted,
                (options, quoted_options),
                without_udp_checksum,
                ttl,
            )| {
                let kinds = if at(flow.client).is_ipv4() { [3, 11, 12, 3] } else { [1, 2, 3, 4] };
                Shape {
                    flow,
                    is_about_reply,
                    is_from_end,
                    kind: kinds[kind],
                    code,
                    payload,
                    quoted,
                    options,
                    quoted_options,
                    without_udp_checksum,
                    ttl,
                }
            },
        )
}

impl Shape {
    /// The error as it reaches the edge, and as it must leave it.
    fn errors(&self) -> [ErrorSpec; 2] {
        let Sides { client, vip, backend, router, .. } = self.flow;
        let error = |from: &str, to: &str| {
            let quoted = PacketSpec {
                payload: self.payload.clone(),
                options: self.quoted_options,
                without_udp_checksum: self.without_udp_checksum,
                ..self.flow.packet(from, to)
            };
            let sender = if self.is_from_end { at(to).ip() } else { ip(router) };
            let mut error = ErrorSpec::too_big(sender, at(from).ip(), &quoted.frame());
            let header = if at(from).is_ipv4() { 20 + 4 * usize::from(self.quoted_options) } else { 40 };
            error.quoted.truncate(header + self.quoted);
            ErrorSpec { kind: [self.kind, self.code], ttl: self.ttl, options: self.options, ..error }
        };
        let [arrives, mut leaves] = if self.is_about_reply {
            [error(vip, client), error(backend, client)]
        } else {
            [error(client, backend), error(client, vip)]
        };
        // Half a checksum says nothing, and stays.
        if self.flow.protocol == Protocol::Tcp && self.quoted == 17 {
            *leaves.quoted.last_mut().expect("17 bytes") = arrives.quoted[arrives.quoted.len() - 1];
        }
        [arrives, leaves]
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn an_error_becomes_what_a_router_would_have_sent_about_the_packet_as_it_was_sent(shape in shape()) {
        let host = edge();
        shape.flow.open(&host);
        let [arrives, leaves] = shape.errors();
        prop_assert_eq!(host.early(&arrives.frame()), Outcome { action: Action::Redirect, frame: sent_on(&leaves) });
        prop_assert_eq!(host.ingress(&arrives.frame()), Outcome { action: Action::Resolve, frame: sent_on(&leaves) });
        let on_the_way_out = if shape.is_about_reply {
            Outcome { action: Action::Pass, frame: arrives.frame() }
        } else {
            Outcome { action: Action::Deliver, frame: leaves.frame() }
        };
        prop_assert_eq!(host.egress(&arrives.frame()), on_the_way_out);
        prop_assert_eq!(host.all_events(), [0; Event::COUNT as usize]);
    }
}

#[test]
fn a_quoted_udp_checksum_of_zero_becomes_its_twin() {
    let [_, _, _, flow] = FLOWS;
    let host = edge();
    flow.open(&host);
    let errors = |word: u16| {
        let quoted = |to| PacketSpec { payload: word.to_be_bytes().to_vec(), ..flow.packet(flow.client, to) };
        [flow.backend, flow.vip].map(|to| ErrorSpec::too_big(ip(ROUTER6), at(CLIENT6).ip(), &quoted(to).frame()))
    };
    // Where the sum of the datagram as it was sent is zero.
    let is_zero = |error: &ErrorSpec| error.quoted[40 + 6..40 + 8] == [0xff, 0xff];
    let [arrives, leaves] = (0..=u16::MAX).map(errors).find(|[_, leaves]| is_zero(leaves)).expect("one of all sums");
    assert_eq!(host.egress(&arrives.frame()), Outcome { action: Action::Deliver, frame: leaves.frame() });
}

#[test]
fn an_error_changes_nothing_of_its_flow() {
    let host = edge();
    WEB_FLOW.open(&host);
    let before = host.flow(flow_of(CLIENT, 0));
    host.tick.set(NOW + 100);
    for [arrives, _] in [WEB_FLOW.about_forwarded(), WEB_FLOW.about_reply()] {
        assert_eq!(host.ingress(&arrives.frame()).action, Action::Resolve);
        assert_eq!(host.flow(flow_of(CLIENT, 0)), before);
    }
    assert_eq!(host.traffic(0, 0).packets, 2, "the client's own");
}

#[test]
fn an_error_about_a_flow_that_a_switch_or_its_ends_have_ended_is_still_heard() {
    let ended_by_switch = |host: &Host| cut(host);
    let ended_by_its_ends = |host: &Host| {
        sent_to(host, &tcp(CLIENT, WEB, FIN | ACK));
        answers_as(host, &tcp(BLUE, CLIENT, FIN | ACK));
    };
    for end in [ended_by_switch, ended_by_its_ends] {
        let host = edge();
        WEB_FLOW.open(&host);
        end(&host);
        for [arrives, leaves] in [WEB_FLOW.about_forwarded(), WEB_FLOW.about_reply()] {
            assert_eq!(host.early(&arrives.frame()), Outcome { action: Action::Redirect, frame: sent_on(&leaves) });
        }
    }
}

#[test]
fn an_error_goes_by_the_open_flow_of_two_that_look_the_same_to_their_backend() {
    const OTHER: &str = "203.0.113.30:443";
    let mut scenario = shop();
    scenario.service(&service(OTHER, None, Protocol::Tcp, BLUE, GREEN));
    let host = Host::load(scenario, NOW);
    let [first, second] = [WEB, OTHER].map(|vip| Sides { vip, ..WEB_FLOW });
    first.open(&host);
    sent_to(&host, &tcp(CLIENT, WEB, RST));
    second.open(&host);
    let [arrives, leaves] = second.about_forwarded();
    assert_eq!(host.egress(&arrives.frame()), Outcome { action: Action::Deliver, frame: leaves.frame() });
}

#[test]
fn errors_that_are_about_no_flow_pass_unmodified() {
    let host = edge();
    WEB_FLOW.open(&host);
    let ([forwarded, _], [reply, _]) = (WEB_FLOW.about_forwarded(), WEB_FLOW.about_reply());
    for error in [&forwarded, &reply] {
        let with = |change: &dyn Fn(&mut ErrorSpec)| {
            let mut error = error.clone();
            change(&mut error);
            error.frame()
        };
        let cut_to = |len: usize| with(&|error| error.quoted.truncate(len));
        passes_everywhere(&host, &cut_to(27), "seven bytes behind the quoted IP header");
        passes_everywhere(&host, &cut_to(19), "no quoted IP header");
        passes_everywhere(&host, &with(&|error| error.kind = [0, 0]), "an echo reply");
        passes_everywhere(&host, &with(&|error| error.kind = [5, 0]), "a redirect");
        passes_everywhere(
            &host,
            &with(&|error| error.to = ip("192.0.2.9")),
            "for another than the quoted packet's source",
        );
        passes_everywhere(&host, &with(&|error| error.quoted[9] = 1), "about ICMP");
        passes_everywhere(&host, &with(&|error| error.quoted[9] = 17), "about the other protocol");
        passes_everywhere(&host, &with(&|error| error.quoted[0] = 0x44), "a header that is too short");
        passes_everywhere(&host, &with(&|error| error.quoted[7] = 1), "about a later fragment");
        passes_everywhere(&host, &with(&|error| error.quoted[21] ^= 1), "another source port");
        passes_everywhere(&host, &with(&|error| error.quoted[23] ^= 1), "another destination port");
        let mut lying = error.frame();
        lying[14 + 3] += 1;
        passes_everywhere(&host, &lying, "longer than the frame");
        let mut fragment = error.frame();
        fragment[14 + 6] = 0x20;
        passes_everywhere(&host, &fragment, "a fragment itself");
    }
    // The first fragment of a quoted packet has its ports.
    let [mut arrives, mut leaves] = WEB_FLOW.about_forwarded();
    for error in [&mut arrives, &mut leaves] {
        error.quoted[6] = 0x20;
        error.kind = [11, 1];
    }
    assert_eq!(host.early(&arrives.frame()).action, Action::Redirect);
}

#[test]
fn errors_about_flows_that_are_none_any_more_pass_unmodified() {
    let ([forwarded, _], [reply, _]) = (WEB_FLOW.about_forwarded(), WEB_FLOW.about_reply());
    let opened = || {
        let host = edge();
        WEB_FLOW.open(&host);
        host
    };
    let mut host = opened();
    host.change_backend(0, |backend| backend.identity.in_use = 0);
    passes_everywhere(&host, &forwarded.frame(), "the backend is gone");
    passes_everywhere(&host, &reply.frame(), "the backend is gone");

    let mut host = opened();
    host.remove_vip(0);
    passes_everywhere(&host, &forwarded.frame(), "the virtual address is gone");
    passes_everywhere(&host, &reply.frame(), "the virtual address is gone");

    let host = opened();
    host.tick.set(NOW + bg_tests::twin::TICKS_LONG + 1);
    passes_everywhere(&host, &forwarded.frame(), "the flow has timed out: the client talks to the backend itself");

    let host = opened();
    let of = flow_of(CLIENT, 0);
    let flow = host.flow(of).expect("a flow");
    host.store(of, &bg_common::Flow { state: flow.state.with(FlowState::FOREIGN), ..flow });
    passes_everywhere(&host, &forwarded.frame(), "the client has a connection to the backend itself");
}

#[test]
fn packet_in_skips_tags() {
    let spec = tcp(CLIENT, WEB, SYN);
    for tags in 0..=2 {
        assert_eq!(packet_in(&PacketSpec { tags, ..spec.clone() }.frame()), packet_in(&spec.frame()));
    }
}
