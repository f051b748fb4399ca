//! What the engine decides, frame by frame, on the host build. The differential test says that the loaded
//! programs do the same.

//!
//! - `packets`: what happens to a packet's bytes, and which packets are none of ours.
//! - `exits`: how packets leave.
//! - `switches`: what a switch does to open flows.
//! - `resets`: what ended connections get.
//! - `second_chance`: connections without a row, while a drain or a share lasts.
//! - `freezes`: which packets wait while a deployment is frozen.
//! - `idle_only`: preview address and testers.
//! - `mirror`: copies of datagrams for the idle colour.
//! - `mirror_answers`: what the idle colour answers to copies.
//! - `mirror_ways`: both in any order of events.
//! - `all_down`: new flows while all backends of a colour are down.
//! - `direct`: backends that reply to clients directly.
//! - `connections`: which packets belong to one flow.
//! - `lookalikes`: flows that a backend could not tell apart, and clients that use one port for many services.
//! - `icmp`: errors about flows.
//! - `trips`: conditions that take a switch back.
//! - `unpack`: what backends unpack.
//! - `floods`: who stays in a full table.

mod all_down;
mod connections;
mod direct;
mod exits;
mod floods;
mod freezes;
mod icmp;
mod idle_only;
mod lookalikes;
mod mirror;
mod mirror_answers;
mod mirror_ways;
mod packets;
mod receipts;
mod relay;
mod resets;
mod second_chance;
mod switches;
mod timed;
mod trips;
mod unpack;

use bg_common::{Event, Identity, LiveFlags, LiveWord, Mode, Protocol, SwitchTerms};
use bg_ebpf::{Action, wire::checksum::Delta};
use bg_tests::{
    frames::{PacketSpec, assert_checksums, ends, tcp_flags::*},
    twin::{BackendAt, FlowOf, Host, Outcome, Scenario, ServiceAt},
};
use etherparse::{SlicedPacket, TcpHeader, TransportSlice};
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
fn switch(host: &Host, flags: LiveFlags, terms: SwitchTerms) {
    let word = host.word(0);
    let (previous, target) = (word.target_share(), word.live().other().full_share());
    host.set_live(0, LiveWord::new(word.generation() + 1, flags, previous, target), terms);
}

fn drain(host: &Host) {
    switch(host, LiveFlags::DRAINING, SwitchTerms::default());
}

fn drain_until(host: &Host, drain_deadline: u32) {
    switch(host, LiveFlags::DRAINING, SwitchTerms { drain_deadline, ..SwitchTerms::default() });
}

fn cut(host: &Host) {
    let word = host.word(0);
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

/// Asserts that a segment is turned into a reset for each end, which that end accepts. The one for the other end comes by the same hook.
#[track_caller]
fn is_reset(host: &Host, segment: &PacketSpec) {
    let Outcome { action, frame } = host.ingress(&segment.frame());
    assert_eq!(action, Action::Reset, "{segment:?}");
    let PacketSpec { from, to, sequence, acknowledgment, .. } = *segment;
    for (frame, from, to, sequence) in [(host.answer(), to, from, acknowledgment), (frame, from, to, sequence)] {
        assert_checksums(&frame);
        assert_eq!(ends(&frame), (from, to));
        let reset = SlicedPacket::from_ethernet(&frame).expect("a whole packet");
        let Some(TransportSlice::Tcp(tcp)) = reset.transport else { panic!("{reset:?}") };
        let expected = TcpHeader { rst: true, ..TcpHeader::new(from.port(), to.port(), sequence, 0) };
        assert_eq!(TcpHeader { checksum: 0, ..tcp.to_header() }, expected);
        assert!(tcp.payload().is_empty());
    }
}

/// Whom an answer that leaves this host seems to come from.
#[track_caller]
fn answers_as(host: &Host, packet: &PacketSpec) -> SocketAddr {
    let Outcome { action, frame } = host.egress(&packet.frame());
    assert_eq!(action, Action::Deliver, "{packet:?}");
    assert_checksums(&frame);
    ends(&frame).0
}

/// Asserts that a packet that leaves this host is left as it is.
#[track_caller]
fn passes(host: &Host, packet: &PacketSpec) {
    let frame = packet.frame();
    assert_eq!(host.egress(&frame), Outcome { action: Action::Pass, frame }, "{packet:?}");
}

/// The flow of a client and a row of `vips`: twice a service's number, and one more for its preview address.
fn flow_of(client: &str, vip: u16) -> FlowOf {
    FlowOf { client: at(client).ip(), port: at(client).port(), vip }
}

/// Opens a connection: both ends take part.
#[track_caller]
fn connect(host: &Host, client: &str, vip: &str) -> SocketAddr {
    let backend = sent_to(host, &tcp(client, vip, SYN));
    let answer = PacketSpec::tcp(backend, at(client), SYN | ACK);
    assert_eq!(answers_as(host, &answer), at(vip));
    assert_eq!(sent_to(host, &tcp(client, vip, ACK)), backend);
    backend
}
