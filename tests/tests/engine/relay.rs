//! Errors of routers between the edge and a backend, about packets in outer headers: the client hears what concerns it.

use crate::{direct::*, *};
use bg_common::NextHop;
use bg_tests::frames::{ErrorSpec, packet_in};
use std::net::IpAddr;

const FITS: u32 = 1400;
/// The interface on the clients' side.
const IN: u32 = 7;

fn tunnels() -> impl Iterator<Item = Case> {
    [Mode::Ipip, Mode::Gue].into_iter().flat_map(cases)
}

fn is_v4(address: &str) -> bool {
    at(address).is_ipv4()
}

/// A host with a flow, a packet of the flow, and the packet as it was sent on.
fn sent_on(case: Case) -> (Host, PacketSpec, Vec<u8>) {
    let host = direct(case);
    let client = at(case.client).ip();
    host.routes.borrow_mut().insert(client, NextHop::pack(IN, 1500, 0x55, 0x44, 0));
    host.ingress(&packet(case, SYN).frame());
    let headers = (if is_v4(case.vip) { 20 } else { 40 }) + if case.protocol == Protocol::Tcp { 20 } else { 8 };
    let payload = vec![0x5a; (1500 - room(case) - headers) as usize];
    let spec = PacketSpec { payload, ..packet(case, ACK) };
    let outcome = host.ingress(&spec.frame());
    assert_eq!(outcome.action, Action::Redirect, "{case:?}");
    (host, spec, outcome.frame)
}

/// An error of a router about a packet that was sent on.
fn error(case: Case, sent: &[u8], kind: [u8; 2], rest: u32) -> ErrorSpec {
    let is_v4 = is_v4(case.backends[0]);
    let router: IpAddr = if is_v4 { "198.51.100.1" } else { "2001:db8:9::1" }.parse().expect("an address");
    let most = if is_v4 { 576 - 28 } else { 1280 - 48 };
    let packet = packet_in(sent);
    let source: IpAddr = match packet {
        [0x45, ..] => <[u8; 4]>::try_from(&packet[12..16]).expect("four bytes").into(),
        _ => <[u8; 16]>::try_from(&packet[8..24]).expect("sixteen bytes").into(),
    };
    let quoted = packet[..most.min(packet.len())].to_vec();
    ErrorSpec { kind, rest: rest.to_be_bytes(), quoted, ..ErrorSpec::too_big(router, source, sent) }
}

fn too_big(case: Case) -> [u8; 2] {
    if is_v4(case.backends[0]) { [3, 4] } else { [2, 0] }
}

#[test]
fn a_client_hears_what_fits_behind_the_next_hop() {
    for case in tunnels() {
        let (host, spec, sent) = sent_on(case);
        let before = host.all_events();
        let error = error(case, &sent, too_big(case), FITS);
        let outcome = host.ingress(&error.frame());
        assert_eq!(outcome.action, Action::Resolve, "{case:?}");
        let (kind, mtu, quoted) = error_in(case, &outcome.frame);
        let expected = if is_v4(case.vip) { [3, 4] } else { [2, 0] };
        assert_eq!((kind, mtu), (expected, FITS - room(case)), "{case:?}");
        // As much as the router has quoted, or as an error has room for.
        let most = if is_v4(case.vip) { 576 - 28 } else { 1280 - 48 };
        let len = (error.quoted.len() - room(case) as usize).min(most);
        assert_eq!(quoted, packet_in(&forwarded(&spec))[..len], "{case:?}");
        assert_eq!(host.all_events(), before);
        // The hop is one of tc's: XDP leaves such errors alone, and so does the way out.
        for outcome in [host.early(&error.frame()), host.egress(&error.frame())] {
            assert_eq!(outcome, Outcome { action: Action::Pass, frame: error.frame() }, "{case:?}");
        }
        // Of IPv6 no client hears of less than every link has.
        let outcome = host.ingress(&ErrorSpec { rest: 1290_u32.to_be_bytes(), ..error.clone() }.frame());
        let least = if is_v4(case.vip) { 0 } else { 1280 };
        assert_eq!(error_in(case, &outcome.frame).1, least.max(1290 - room(case)), "{case:?}");
        // RFC 792 asks for eight bytes: of the packet inside, they are enough.
        let inner_header = if is_v4(case.vip) { 20 } else { 40 };
        let shortest = (room(case) + inner_header + 8) as usize;
        let short = ErrorSpec { quoted: error.quoted[..shortest].to_vec(), ..error.clone() };
        let (kind, _, quoted) = error_in(case, &host.ingress(&short.frame()).frame);
        assert_eq!((kind, quoted.len()), (expected, inner_header as usize + 8));
    }
}

#[test]
fn a_client_hears_that_its_backend_cannot_be_reached() {
    for case in tunnels() {
        let (host, _, sent) = sent_on(case);
        let kinds =
            if is_v4(case.backends[0]) { [[3, 0], [3, 1], [3, 3], [11, 0]] } else { [[1, 0], [1, 3], [1, 4], [3, 0]] };
        for kind in kinds {
            let outcome = host.ingress(&error(case, &sent, kind, 0).frame());
            assert_eq!(outcome.action, Action::Resolve, "{case:?}, {kind:?}");
            let (kind, rest, _) = error_in(case, &outcome.frame);
            assert_eq!((kind, rest), (if is_v4(case.vip) { [3, 1] } else { [1, 3] }, 0), "{case:?}");
        }
    }
}

/// What is left to the host's stack, as it has come.
#[test]
fn a_client_hears_nothing_that_is_not_shown_to_be_about_its_packet() {
    for case in tunnels() {
        let (host, _, sent) = sent_on(case);
        let good = error(case, &sent, too_big(case), FITS);
        let inner_header = if is_v4(case.vip) { 20 } else { 40 };
        let (outer_header, inner) =
            (room(case) as usize - if case.mode == Mode::Gue { 12 } else { 0 }, room(case) as usize);
        let with = |change: &dyn Fn(&mut ErrorSpec)| {
            let mut error = good.clone();
            change(&mut error);
            error
        };
        let flip = |at: usize| with(&|error: &mut ErrorSpec| error.quoted[at] ^= 1);
        let mut others = vec![
            ("another backend", flip(outer_header - 1)),
            ("another client", flip(inner + if is_v4(case.vip) { 15 } else { 23 })),
            ("another VIP", flip(inner + inner_header - 1)),
            ("another port of the client", flip(inner + inner_header + 1)),
            ("another port of the VIP", flip(inner + inner_header + 3)),
            ("another protocol", flip(inner + if is_v4(case.vip) { 9 } else { 6 })),
            ("another source", flip(if is_v4(case.backends[0]) { 15 } else { 23 })),
            ("too short", with(&|error| error.quoted.truncate(inner + inner_header + 7))),
            ("no size", with(&|error| error.rest = [0; 4])),
            ("a size that the packet has not exceeded", with(&|error| error.rest = 1500_u32.to_be_bytes())),
            ("a size below any", with(&|error| error.rest = (room(case) + 67).to_be_bytes())),
            ("an echo request", with(&|error| error.kind = if is_v4(case.backends[0]) { [8, 0] } else { [128, 0] })),
            ("a tag", with(&|error| error.tags = 1)),
        ];
        if is_v4(case.backends[0]) {
            others.push(("options", with(&|error| error.options = 1)));
        }
        if case.mode == Mode::Gue {
            others.push(("another port of GUE", flip(outer_header + 3)));
            others.push(("another version of GUE", flip(outer_header + 8)));
            others.push(("options of GUE", flip(outer_header + 11)));
        }
        for (what, error) in others {
            if what == "a size below any" && !is_v4(case.vip) {
                continue;
            }
            let frame = error.frame();
            assert_eq!(host.ingress(&frame), Outcome { action: Action::Pass, frame }, "{case:?}: {what}");
        }
        // The same backend by the other mode.
        let other = Case { mode: if case.mode == Mode::Gue { Mode::Ipip } else { Mode::Gue }, ..case };
        let frame = error(other, &sent_on(other).2, too_big(other), FITS).frame();
        assert_eq!(host.ingress(&frame), Outcome { action: Action::Pass, frame }, "{case:?}: another mode");
        let mut frame = good.frame();
        frame[0] |= 1;
        assert_eq!(host.ingress(&frame), Outcome { action: Action::Pass, frame }, "{case:?}: to a group");
        let frame = good.frame();
        let passed = Outcome { action: Action::Pass, frame: frame.clone() };
        host.may_send_errors.set([true, false]);
        assert_eq!(host.ingress(&frame), passed, "{case:?}: too many");
        host.may_send_errors.set([true; 2]);
        host.routes.borrow_mut().clear();
        assert_eq!(host.ingress(&frame), passed, "{case:?}: no route to the client");
        host.forget_flows();
        assert_eq!(host.ingress(&frame), passed, "{case:?}: no flow");
        // A flow that meanwhile is at another backend.
        let host = direct(case);
        host.routes.borrow_mut().insert(at(case.client).ip(), NextHop::pack(IN, 1500, 0x55, 0x44, 0));
        cut(&host);
        host.ingress(&packet(case, SYN).frame());
        assert_eq!(host.ingress(&frame), passed, "{case:?}: another backend's flow");
    }
}
