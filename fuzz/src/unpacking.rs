//! The program of `bgctl decap`: an input is a frame that comes to a backend.

use crate::look::{self, Look};
use bg_common::{Addr, Be16, Family, GUE_PORT};
use bg_ebpf::{
    unpack::{Count, DROP, PASS, Unpacking, unpack},
    wire::packet::Packet,
};
use bg_tests::guarded;
use std::{cell::Cell, net::IpAddr};

/// Addresses of the backend: its own, and virtual ones.
const OURS: [&str; 4] = ["10.0.1.11", "fd00:1::11", "203.0.113.20", "2001:db8::20"];

/// Who may send.
const SOURCES: [&str; 2] = ["10.255.0.1", "2001:db8:ff::1"];

fn is_one_of(all: &[&str], address: IpAddr) -> bool {
    all.iter().any(|one| one.parse() == Ok(address))
}

struct Backend {
    last: Cell<Option<Count>>,
}

impl Unpacking for Backend {
    fn is_ours(&self, family: Family, address: &Addr) -> bool {
        is_one_of(&OURS, address.to_ip(family))
    }

    fn may_send(&self, family: Family, address: &Addr) -> bool {
        is_one_of(&SOURCES, address.to_ip(family))
    }

    fn gue_port(&self) -> Be16 {
        Be16::new(GUE_PORT)
    }

    fn count(&self, what: Count) {
        self.last.set(Some(what));
    }
}

/// Unpacks a frame. What passes is as it came; what is unpacked is the packet inside, for an address of the backend, whose checksums are as right as they were.
pub fn unpacking(frame: &[u8]) -> u64 {
    let backend = Backend { last: Cell::new(None) };
    let mut bytes = frame.to_vec();
    let cut = guarded(&mut bytes, |start, end| {
        // SAFETY: the copy is used here alone, and nothing is read through the first once the second has written.
        let (packet, mut writer) = unsafe { (Packet::new(start, end), Packet::new(start, end)) };
        unpack(&packet, &mut writer, &backend)
    });
    match cut {
        PASS => assert!(bytes == frame, "a frame that passes was changed"),
        DROP => {
            assert_eq!(backend.last.get(), Some(Count::Congested), "a drop that was not counted");
            let outer = Look::of(frame).expect("an outer header");
            assert!(is_one_of(&OURS, outer.dst) && is_one_of(&SOURCES, outer.src));
        }
        cut => {
            assert_eq!(backend.last.get(), Some(Count::Unpacked));
            unpacked(frame, &bytes, cut as usize);
        }
    }
    1
}

fn unpacked(frame: &[u8], bytes: &[u8], cut: usize) {
    let outer = Look::of(frame).expect("an outer header");
    assert!(is_one_of(&OURS, outer.dst) && is_one_of(&SOURCES, outer.src), "{} to {}", outer.src, outer.dst);
    assert!(!outer.is_fragment && matches!(outer.protocol, 4 | 41 | look::UDP));
    assert!(cut + 14 <= frame.len(), "more is cut off than there is");
    let after = &bytes[cut..];
    assert_eq!(after[..12], frame[..12], "MAC addresses");
    let Some(inner) = Look::of(after) else {
        // Options that are cut off are for the host's stack to find.
        assert!(usize::from(after[14] & 0xf) * 4 > after.len() - 14, "no inner header");
        return;
    };
    assert!(is_one_of(&OURS, inner.dst), "{} is not the backend's", inner.dst);
    let (old, new) = (&frame[14 + cut..], &after[14..]);
    let rest = |packet: &[u8]| {
        let mut bytes = packet.to_vec();
        if inner.dst.is_ipv4() {
            bytes[1] &= !3;
            bytes[10..12].fill(0);
        } else {
            bytes[1] &= !0x30;
        }
        bytes
    };
    assert_eq!(rest(old), rest(new), "what was inside");
    if look::sums(old) == Some(true) {
        assert_eq!(look::sums(new), Some(true), "checksums");
    }
}
