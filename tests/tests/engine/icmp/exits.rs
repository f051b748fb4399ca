//! The ways by which an ICMP error leaves the edge.

use super::{OWN, OWN_BLUE, OWN_FLOW, WEB_FLOW, edge, sent_on};
use crate::*;
use bg_common::NextHop;
use bg_tests::frames::ErrorSpec;

#[test]
fn an_error_on_its_last_hop_is_left_to_the_host_by_tc() {
    let host = edge();
    WEB_FLOW.open(&host);
    OWN_FLOW.open(&host);
    for (nth, [arrives, _]) in [WEB_FLOW.about_forwarded(), WEB_FLOW.about_reply()].into_iter().enumerate() {
        let frame = ErrorSpec { ttl: 1, ..arrives }.frame();
        assert_eq!(host.early(&frame), Outcome { action: Action::Defer, frame: frame.clone() });
        assert_eq!(host.ingress(&frame), Outcome { action: Action::Pass, frame });
        assert_eq!(host.events(Event::TtlExpired), nth as u64 + 1);
    }
    // This host is the last hop of an error for its own address.
    let [arrives, leaves] = OWN_FLOW.about_reply().map(|error| ErrorSpec { ttl: 1, ..error });
    assert_eq!(host.ingress(&arrives.frame()), Outcome { action: Action::Deliver, frame: leaves.frame() });
}

#[test]
fn an_error_for_a_backend_of_this_host_is_delivered_by_tc() {
    let host = edge();
    OWN_FLOW.open(&host);
    let [arrives, leaves] = OWN_FLOW.about_reply();
    let frame = arrives.frame();
    assert_eq!(host.early(&frame), Outcome { action: Action::Defer, frame: frame.clone() });
    assert_eq!(host.ingress(&frame), Outcome { action: Action::Deliver, frame: leaves.frame() });
    // What the backend says of a packet is translated on its way out.
    let [arrives, leaves] = OWN_FLOW.about_forwarded();
    let as_sent = |error: ErrorSpec, from: &str| ErrorSpec { from: at(from).ip(), ..error }.frame();
    let (arrives, leaves) = (as_sent(arrives, OWN_BLUE), as_sent(leaves, OWN));
    assert_eq!(host.egress(&arrives), Outcome { action: Action::Deliver, frame: leaves });
}

#[test]
fn an_error_without_a_next_hop_leaves_by_the_stack() {
    let host = edge();
    WEB_FLOW.open(&host);
    host.routes.borrow_mut().clear();
    for (nth, flow) in [WEB_FLOW.about_reply(), WEB_FLOW.about_forwarded()].into_iter().enumerate() {
        let [arrives, leaves] = flow;
        let frame = arrives.frame();
        assert_eq!(host.early(&frame), Outcome { action: Action::Defer, frame: frame.clone() });
        // The stack takes what is for a client as it is, and translates it on the way out.
        let expected =
            [Outcome { action: Action::Deliver, frame: leaves.frame() }, Outcome { action: Action::Pass, frame }];
        assert_eq!(host.ingress(&arrives.frame()), expected[nth]);
        assert_eq!(host.events(Event::NextHopByStack), nth as u64 + 1);
    }
}

#[test]
fn tc_sends_an_error_of_a_vlan_by_the_stack_and_one_that_xdp_cannot_redirect_itself() {
    let host = edge();
    WEB_FLOW.open(&host);
    let [arrives, leaves] = WEB_FLOW.about_reply();
    for tags in 1..=2 {
        let (arrives, leaves) =
            (ErrorSpec { tags, ..arrives.clone() }.frame(), ErrorSpec { tags, ..leaves.clone() }.frame());
        assert_eq!(host.early(&arrives).action, Action::Defer);
        assert_eq!(host.ingress(&arrives), Outcome { action: Action::Deliver, frame: leaves });
    }
    *host.egress.borrow_mut() = Some(vec![]);
    assert_eq!(host.early(&arrives.frame()), Outcome { action: Action::Defer, frame: arrives.frame() });
    assert_eq!(host.ingress(&arrives.frame()), Outcome { action: Action::Resolve, frame: sent_on(&leaves) });
    host.routes.borrow_mut().insert(at(BLUE).ip(), NextHop::pack(OUT, 1500, 0, 0, 0));
    *host.egress.borrow_mut() = None;
    assert_eq!(host.early(&arrives.frame()).action, Action::Defer, "a neighbour without a MAC address");
    assert_eq!(host.ingress(&arrives.frame()).action, Action::Resolve);
}

#[test]
fn an_error_for_a_client_of_this_host_comes_back_by_the_loopback_interface() {
    let host = edge();
    host.is_own.set(true);
    host.ingress(&tcp(CLIENT, WEB, SYN).frame());
    host.is_own.set(false);
    let [arrives, leaves] = WEB_FLOW.about_forwarded();
    assert_eq!(host.early(&arrives.frame()).action, Action::Defer);
    assert_eq!(host.ingress(&arrives.frame()), Outcome { action: Action::ToSelf, frame: leaves.frame() });
}
