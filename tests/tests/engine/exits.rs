//! How packets leave: XDP sends what it can send at once and leaves everything else to tc as it was.

use crate::*;
use bg_common::NextHop;

const SMAC: u64 = 0x0600_0000_0001;
const DMAC: u64 = 0x0200_0000_0077;
const CLIENTS_SIDE: u32 = 4;

/// A host whose routes lead to the client by a router, and to backends by their cached hops.
fn routed() -> Host {
    let host = host();
    host.routes.borrow_mut().insert(at(CLIENT).ip(), NextHop::pack(CLIENTS_SIDE, 1500, DMAC, SMAC, 0));
    host
}

fn deferred(frame: &[u8]) -> Outcome {
    Outcome { action: Action::Defer, frame: frame.to_vec() }
}

/// Lets XDP and then, if it is left to it, tc process a frame.
fn by_both(host: &Host, frame: &[u8]) -> Outcome {
    let outcome = host.early(frame);
    if outcome.action != Action::Defer {
        return outcome;
    }
    assert_eq!(outcome.frame, frame, "what is left to tc is untouched");
    host.ingress(frame)
}

#[test]
fn xdp_leaves_a_packet_untouched_that_it_cannot_redirect() {
    let host = routed();
    let (syn, answer) = (tcp(CLIENT, WEB, SYN).frame(), tcp(BLUE, CLIENT, SYN | ACK).frame());
    assert_eq!(host.early(&syn).action, Action::Redirect);
    assert_eq!(by_both(&host, &answer).action, Action::Resolve, "XDP leaves the first packet of a hop to tc");
    host.tick.set(NOW + 2);
    assert_eq!(host.early(&answer).action, Action::Redirect);

    // The hop is cached, and its interface is not in `egress` any more.
    *host.egress.borrow_mut() = Some(vec![]);
    assert_eq!(host.early(&syn), deferred(&syn));
    assert_eq!(host.early(&answer), deferred(&answer));
    assert_eq!(host.ingress(&syn).action, Action::Redirect, "tc can redirect to every interface");
    assert_eq!(host.ingress(&answer).action, Action::Redirect);
    assert_eq!(host.all_events(), [0; Event::COUNT as usize]);
}

#[test]
fn tc_resolves_a_neighbour_that_nobody_has_talked_to() {
    let mut scenario = shop();
    scenario.backends.iter_mut().for_each(|backend| backend.next_hop = NextHop::NONE);
    let mut host = Host::load(scenario, NOW);
    host.change_backend(0, |backend| backend.next_hop.learned = NOW - 100);
    host.routes.borrow_mut().insert(at(BLUE).ip(), NextHop::pack(OUT, 1500, 0, 0, 0));
    let syn = tcp(CLIENT, WEB, SYN).frame();
    for _ in 0..2 {
        let Outcome { action, frame } = by_both(&host, &syn);
        assert_eq!((action, ends(&frame).1, frame[14 + 8]), (Action::Resolve, at(BLUE), 63));
    }
    // As soon as it is resolved, XDP sends by itself.
    host.routes.borrow_mut().insert(at(BLUE).ip(), NextHop::pack(OUT, 1500, DMAC, SMAC, 0));
    assert_eq!(host.early(&syn).action, Action::Redirect);
    assert_eq!(host.events(Event::NextHopByStack), 0);
}

#[test]
fn a_packet_that_xdp_and_tc_both_see_is_counted_once() {
    let host = host();
    *host.egress.borrow_mut() = Some(vec![]);
    let bytes = tcp(CLIENT, WEB, SYN).frame().len() as u64;
    for flags in [SYN, ACK, SYN] {
        assert_eq!(by_both(&host, &tcp(CLIENT, WEB, flags).frame()).action, Action::Redirect);
    }
    let counted = host.traffic(0, 0);
    assert_eq!((counted.packets, counted.bytes, counted.flows_opened), (3, 3 * bytes, 1));
    by_both(&host, &PacketSpec { ttl: 1, ..tcp(CLIENT, WEB, ACK) }.frame());
    by_both(&host, &PacketSpec { payload: vec![0; 1500], ..tcp(CLIENT, WEB, ACK) }.frame());
    by_both(&host, &PacketSpec { tags: 1, ..tcp(CLIENT, WEB, ACK) }.frame());
    assert_eq!(
        [Event::TtlExpired, Event::TooBig, Event::NextHopByStack].map(|event| host.events(event)),
        [1, 1, 1],
        "each by tc alone"
    );
}

#[test]
fn a_flow_that_the_table_refuses_is_counted_once() {
    for interfaces in [Some(vec![]), None] {
        let host = host();
        *host.egress.borrow_mut() = interfaces;
        host.refuse_flows();
        assert_eq!(by_both(&host, &tcp(CLIENT, WEB, SYN).frame()).action, Action::Redirect);
        assert_eq!((host.traffic(0, 0).flows_opened, host.events(Event::Unpinned)), (1, 1));
        assert_eq!((host.traffic(0, 0).packets, host.flows().len()), (1, 0));
        // Its last hop: tc leaves it to the host.
        assert_eq!(by_both(&host, &PacketSpec { ttl: 1, ..tcp(CLIENT, WEB, SYN) }.frame()).action, Action::Deliver);
        assert_eq!((host.traffic(0, 0).flows_opened, host.events(Event::Unpinned)), (2, 2));
    }
}

#[test]
fn one_syn_that_xdp_leaves_to_tc_is_not_taken_for_two() {
    let host = routed();
    *host.egress.borrow_mut() = Some(vec![]);
    by_both(&host, &tcp(CLIENT, WEB, SYN).frame());
    by_both(&host, &tcp(BLUE, CLIENT, SYN | ACK).frame());
    by_both(&host, &tcp(CLIENT, WEB, ACK).frame());
    // The live colour changes: a SYN that opened a flow anew would go to the other one.
    drain(&host);
    let other = PacketSpec { sequence: 77, ..tcp(CLIENT, WEB, SYN) };
    assert_eq!(ends(&by_both(&host, &other.frame()).frame).1, at(BLUE), "it may be forged: the backend answers it");
    // One that opens a flow in XDP is the same flow's in tc.
    let another = "192.0.2.1:40001";
    assert_eq!(ends(&by_both(&host, &tcp(another, WEB, SYN).frame()).frame).1, at(GREEN));
    assert_eq!(host.traffic(0, 1).flows_opened, 1);
    assert_eq!(host.flows().len(), 2);
}

#[test]
fn one_packet_of_each_hop_goes_to_tc_from_time_to_time() {
    let host = routed();
    let ack = tcp(CLIENT, WEB, ACK).frame();
    by_both(&host, &tcp(CLIENT, WEB, SYN).frame());
    by_both(&host, &tcp(BLUE, CLIENT, SYN | ACK).frame());
    host.routes.borrow_mut().insert(at(BLUE).ip(), NextHop::pack(OUT, 1500, DMAC, SMAC, 0));
    let answer = tcp(BLUE, CLIENT, ACK).frame();
    for packet in [&ack, &answer] {
        let mut left = 0;
        for tick in 2..42 {
            host.tick.set(NOW + tick);
            for _ in 0..5 {
                let outcome = host.early(packet);
                if outcome.action == Action::Defer {
                    left += 1;
                    assert_eq!(host.ingress(packet).action, Action::Resolve, "the kernel sees the neighbour used");
                } else {
                    assert_eq!(outcome.action, Action::Redirect);
                }
            }
        }
        assert_eq!(left, 10, "one of 20");
    }
}

#[test]
fn a_frame_for_another_machine_is_left_alone() {
    let host = host();
    let mut frame = tcp(CLIENT, WEB, SYN).frame();
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x99]);
    let outcome = Outcome { action: Action::Pass, frame: frame.clone() };
    assert_eq!(host.early(&frame), outcome);
    assert_eq!(host.ingress(&frame), outcome);
    assert!(host.flows().is_empty());
    host.mac.set(0x9900_0000_0002);
    assert_eq!(host.early(&frame).action, Action::Redirect);
}

#[test]
fn routes_with_another_mtu_or_source_address_are_other_hops() {
    let host = routed();
    let other = "192.0.2.2:40000";
    host.routes.borrow_mut().insert(at(other).ip(), NextHop::pack(CLIENTS_SIDE, 1300, DMAC, SMAC, 0));
    let answer = |client, payload| PacketSpec { payload: vec![0; payload], ..tcp(BLUE, client, ACK) }.frame();
    for client in [CLIENT, other, CLIENT] {
        by_both(&host, &tcp(client, WEB, SYN).frame());
        by_both(&host, &answer(client, 0));
    }
    host.tick.set(NOW + 2);
    assert_eq!(host.early(&answer(CLIENT, 1400)).action, Action::Redirect);
    assert_eq!(host.early(&answer(other, 1400)).action, Action::Defer);
    assert_eq!(host.early(&answer(other, 1200)).action, Action::Redirect);
}

#[test]
fn answers_to_this_host_itself_come_back_by_its_loopback_interface() {
    let host = host();
    host.is_own.set(true);
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    host.is_own.set(false);
    let answer = PacketSpec { ttl: 1, ..tcp(BLUE, CLIENT, SYN | ACK) };
    let frame = answer.frame();
    assert_eq!(host.early(&frame), Outcome { action: Action::Defer, frame }, "XDP cannot send it there");
    let Outcome { action, frame } = host.ingress(&answer.frame());
    assert_eq!(action, Action::ToSelf);
    assert_checksums(&frame);
    assert_eq!(ends(&frame), (at(WEB), at(CLIENT)));
}
