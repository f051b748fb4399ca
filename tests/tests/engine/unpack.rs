//! What a backend unpacks: packets that the engine has encapsulated, and those of a builder that shares no code with it.

use crate::{
    direct::{Case, cases, direct, forwarded, packet},
    *,
};
use bg_common::{Addr, Be16, Family};
use bg_ebpf::{
    unpack::{Count, DROP, PASS, Unpacking, unpack},
    wire::packet::Packet,
};
use bg_tests::{
    frames::packet_in,
    twin::{OUTER_V4, OUTER_V6},
};
use etherparse::{Ipv4Header, Ipv6Header};
use std::{cell::RefCell, net::IpAddr};

/// A backend with these addresses, which takes packets from these sources.
struct Backend {
    ours: Vec<IpAddr>,
    sources: Vec<IpAddr>,
    counts: RefCell<Vec<Count>>,
}

impl Unpacking for Backend {
    fn is_ours(&self, family: Family, address: &Addr) -> bool {
        self.ours.contains(&address.to_ip(family))
    }

    fn may_send(&self, family: Family, address: &Addr) -> bool {
        self.sources.contains(&address.to_ip(family))
    }

    fn gue_port(&self) -> Be16 {
        Be16::new(6080)
    }

    fn count(&self, what: Count) {
        self.counts.borrow_mut().push(what);
    }
}

/// The blue backend of a case.
fn backend_of(case: Case) -> Backend {
    let sources = [OUTER_V4, OUTER_V6].map(|source| source.parse().expect("an address"));
    Backend {
        ours: vec![at(case.backends[0]).ip(), at(case.vip).ip()],
        sources: sources.to_vec(),
        counts: RefCell::default(),
    }
}

/// Unpacks a frame: what the host's stack gets. `None`: it is dropped.
fn unpacked(backend: &Backend, frame: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = frame.to_vec();
    let range = bytes.as_mut_ptr_range();
    // SAFETY: the buffer outlives both, and nothing is read through the first once the second has written.
    let (packet, mut writer) = unsafe { (Packet::new(range.start, range.end), Packet::new(range.start, range.end)) };
    match unpack(&packet, &mut writer, backend) {
        DROP => None,
        cut => Some(bytes.split_off(cut as usize)),
    }
}

/// The frame as the edge sends it.
fn sent(case: Case) -> Vec<u8> {
    direct(case).ingress(&packet(case, SYN).frame()).frame
}

fn all() -> impl Iterator<Item = Case> {
    [Mode::Ipip, Mode::Gue].into_iter().flat_map(cases)
}

#[test]
fn a_backend_gets_back_what_the_client_has_sent() {
    for case in all() {
        let (backend, frame) = (backend_of(case), sent(case));
        let inner = unpacked(&backend, &frame).expect("it is unpacked");
        assert_eq!((&inner[..12], packet_in(&inner)), (&frame[..12], packet_in(&forwarded(&packet(case, SYN)))));
        assert_checksums(&inner);
        assert_eq!(*backend.counts.borrow(), [Count::Unpacked]);
    }
}

#[test]
fn gue_is_unpacked_in_both_of_its_forms() {
    for case in cases(Mode::Gue) {
        let mut frame = sent(case);
        let gue = if at(case.backends[0]).is_ipv4() { 14 + 20 + 8 } else { 14 + 40 + 8 };
        // Version 1 has no header. Nobody looks at the outer lengths.
        frame.drain(gue..gue + 4);
        let inner = unpacked(&backend_of(case), &frame).expect("it is unpacked");
        assert_eq!(packet_in(&inner), packet_in(&forwarded(&packet(case, SYN))));
        for header in [[0x20, 4, 0, 0], [0, 4, 0, 1], [1, 4, 0, 0], [0, 17, 0, 0]] {
            let mut frame = sent(case);
            frame[gue..gue + 4].copy_from_slice(&header);
            assert_eq!(unpacked(&backend_of(case), &frame), Some(frame), "{case:?}, {header:?}");
        }
    }
}

#[test]
fn what_is_not_for_this_host_or_not_from_the_edge_passes() {
    for case in all() {
        let frame = sent(case);
        let of = |change: &dyn Fn(&mut Backend)| {
            let mut backend = backend_of(case);
            change(&mut backend);
            assert_eq!(unpacked(&backend, &frame).as_ref(), Some(&frame), "{case:?}");
            backend.counts.into_inner()
        };
        assert_eq!(of(&|backend| backend.sources.clear()), [Count::OtherSource]);
        assert_eq!(of(&|backend| _ = backend.ours.remove(0)), []);
        assert_eq!(of(&|backend| _ = backend.ours.pop()), [Count::OtherDestination]);
        for len in 14..frame.len().min(14 + 40 + 12 + 40) {
            let short = &frame[..len];
            let backend = backend_of(case);
            if let Some(out) = unpacked(&backend, short) {
                assert!(out == short || *backend.counts.borrow() == [Count::Unpacked], "{case:?}, {len}");
            }
        }
        // Of a fragment only the first one has what is inside.
        if at(case.backends[0]).is_ipv4() {
            let mut fragment = frame.clone();
            fragment[20] |= 0x20;
            assert_eq!(unpacked(&backend_of(case), &fragment), Some(fragment));
        }
    }
}

/// Sets ECN in the header of a frame at this offset.
fn set_ecn(frame: &mut [u8], at: usize, ecn: u8) {
    if frame[at] >> 4 == 4 {
        let (mut ip, _) = Ipv4Header::from_slice(&frame[at..]).expect("IPv4");
        ip.ecn = ecn.try_into().expect("two bits");
        ip.header_checksum = ip.calc_header_checksum();
        frame[at..at + 20].copy_from_slice(&ip.to_bytes());
    } else {
        let (mut ip, _) = Ipv6Header::from_slice(&frame[at..]).expect("IPv6");
        ip.traffic_class = ip.traffic_class & !3 | ecn;
        frame[at..at + 40].copy_from_slice(&ip.to_bytes());
    }
}

/// The table of RFC 6040, section 4.2: by the inner field, then the outer one. `None`: dropped.
const DECAPSULATED: [[Option<u8>; 4]; 4] = [
    [Some(0), Some(0), Some(0), None],
    [Some(1), Some(1), Some(1), Some(3)],
    [Some(2), Some(1), Some(2), Some(3)],
    [Some(3), Some(3), Some(3), Some(3)],
];

#[test]
fn congestion_on_the_way_is_told_to_the_packet() {
    for case in all() {
        let frame = sent(case);
        let outer = if at(case.backends[0]).is_ipv4() { 20 } else { 40 } + if case.mode == Mode::Gue { 12 } else { 0 };
        for (inner_ecn, row) in DECAPSULATED.into_iter().enumerate() {
            for (outer_ecn, expected) in row.into_iter().enumerate() {
                let mut frame = frame.clone();
                set_ecn(&mut frame, 14, outer_ecn as u8);
                set_ecn(&mut frame, 14 + outer, inner_ecn as u8);
                let backend = backend_of(case);
                let found = unpacked(&backend, &frame);
                assert_eq!(found.is_some(), expected.is_some(), "{case:?}, {inner_ecn}, {outer_ecn}");
                let Some((inner, expected)) = found.zip(expected) else {
                    assert_eq!(*backend.counts.borrow(), [Count::Congested]);
                    continue;
                };
                let mut wanted = forwarded(&packet(case, SYN));
                set_ecn(&mut wanted, 14, expected);
                assert_eq!(packet_in(&inner), packet_in(&wanted), "{case:?}, {inner_ecn}, {outer_ecn}");
                assert_checksums(&inner);
            }
        }
    }
    assert_ne!(PASS, DROP);
}
