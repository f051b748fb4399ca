//! What must be true of a frame after the engine has had it, whatever it is. etherparse says what the frame is.

use crate::{
    look::{self, Look},
    stage::{MTU, Stage},
};
use bg_common::Protocol;
use bg_ebpf::Action;
use bg_tests::twin::Outcome;
use std::net::SocketAddr;

/// The longest answer to a frame, its Ethernet header included: an ICMP error (RFC 1812, section 4.3.2.3; RFC 4443, section 2.4).
const LONGEST_ANSWER: [usize; 2] = [14 + 576, 14 + 1280];

/// Bytes that are inserted for an outer header: IPv4, IPv6, and the same with UDP and GUE.
const OUTER: [usize; 4] = [20, 40, 32, 52];

/// A frame before, and what is known of it.
pub(crate) struct Case<'a> {
    pub(crate) stage: &'a Stage,
    /// Whether it leaves this host.
    pub(crate) leaves: bool,
    pub(crate) frame: &'a [u8],
}

impl Case<'_> {
    /// Panics if the engine may not have made this of the frame.
    pub(crate) fn judge(&self, after: &Outcome) {
        if matches!(after.action, Action::Pass | Action::Defer) {
            assert!(after.frame == self.frame, "a frame that is passed on was changed: {after:02x?}");
        }
        if after.action == Action::Pass {
            return;
        }
        let look = Look::of(self.frame).expect("a frame without an IP header does not pass");
        assert!(self.concerns(&look), "{:?}, but it is for nobody that is known: {look:?}", after.action);
        match after.action {
            Action::Pass | Action::Defer | Action::Drop => {}
            Action::Icmp | Action::Direct => panic!("nothing was decided"),
            Action::Deliver | Action::Redirect | Action::Resolve | Action::ToSelf => self.sent(&look, after),
            Action::Reset => {
                self.is_reset(&look, &after.frame, false);
                self.is_reset(&look, &self.stage.host.answer(), true);
            }
            Action::Refuse => self.is_reset(&look, &after.frame, true),
            Action::Unreachable | Action::TooBig | Action::TimeExceeded => self.is_error(&look, &after.frame),
        }
    }

    fn is_vip(&self, end: SocketAddr, protocol: u8) -> bool {
        self.stage.vips.iter().any(|(vip, of)| (*vip, *of as u8) == (end, protocol))
    }

    fn is_backend(&self, end: SocketAddr, protocol: u8) -> bool {
        self.stage.backends.iter().any(|(backend, of)| (*backend, *of as u8) == (end, protocol))
    }

    /// Whether the packet is to a virtual address, or from a backend, or an error that quotes a packet of one of them.
    fn concerns(&self, look: &Look) -> bool {
        if !self.leaves && self.frame[..6] != [0; 6] {
            return false;
        }
        if look.is_icmp() {
            // A packet behind an Ethernet header of its own.
            let ether_type = if look.src.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
            let quoted = self.frame.get(look.l4 + 8..).unwrap_or_default();
            let quoted = [&[0; 12][..], &ether_type, quoted].concat();
            let Some(quoted) = Look::of(&quoted) else { return false };
            let Some([from, to]) = quoted.ends() else { return false };
            return from.ip() == look.dst
                && (self.is_vip(from, quoted.protocol) || self.is_backend(to, quoted.protocol));
        }
        let Some([from, to]) = look.ends().filter(|_| look.is_transport()) else { return false };
        (!self.leaves && self.is_vip(to, look.protocol)) || self.is_backend(from, look.protocol)
    }

    /// A packet on its way to a backend or a client.
    fn sent(&self, before: &Look, after: &Outcome) {
        let is_encapsulated = after.frame.len() != self.frame.len();
        if is_encapsulated {
            self.is_encapsulated(before, &after.frame);
        } else {
            self.is_rewritten(before, after);
        }
        let look = Look::of(&after.frame).expect("an IP header");
        assert!(look.l3 + look.len <= after.frame.len(), "the packet is longer than its frame");
        if after.action == Action::Redirect && self.stage.host.gso_size.get() == 0 {
            assert!(look.len <= MTU, "a packet of {} bytes leaves by an interface of {MTU}", look.len);
        }
    }

    /// Sums that were right are right.
    fn sums_stay(&self, before: &[u8], after: &[u8]) {
        if look::sums(before) == Some(true) {
            assert_eq!(look::sums(after), Some(true), "checksums were right, and are wrong now: {after:02x?}");
        }
    }

    fn is_rewritten(&self, before: &Look, after: &Outcome) {
        let look = Look::of(&after.frame).expect("an IP header");
        assert_eq!((look.l3, look.l4, look.protocol, look.len), (before.l3, before.l4, before.protocol, before.len));
        let is_forwarded = matches!(after.action, Action::Redirect | Action::Resolve);
        // An error that the egress program will translate has left this place as it came.
        if after.frame != self.frame {
            assert_eq!(look.hop_limit, before.hop_limit - u8::from(is_forwarded), "hops");
        }
        assert_eq!(after.frame[..12] != self.frame[..12], is_forwarded, "MAC addresses");
        self.sums_stay(&self.frame[before.l3..], &after.frame[before.l3..]);
        assert_eq!(self.frame[12..before.l3], after.frame[12..before.l3], "tags");
        if before.is_icmp() {
            let rest = |frame: &[u8]| frame.get(before.l4 + 8 + 60 + 20..).unwrap_or_default().to_vec();
            assert_eq!(rest(self.frame), rest(&after.frame), "the end of a quoted packet");
            return;
        }
        assert!(look::is_whole(&after.frame), "lengths do not fit each other: {:02x?}", after.frame);
        if before.protocol == look::UDP {
            // Zero is "none" (RFC 768).
            let is_none = |frame: &[u8]| frame[before.l4 + 6..before.l4 + 8] == [0, 0];
            assert_eq!(is_none(self.frame), is_none(&after.frame), "whether there is a checksum");
        }
        let ([from, to], [new_from, new_to]) = (before.ends().expect("ends"), look.ends().expect("ends"));
        // As it is, to a backend that has the virtual address itself.
        let is_same = new_to == to && self.is_vip(to, before.protocol);
        let is_for_backend = new_from == from && (is_same || self.is_backend(new_to, before.protocol));
        let is_for_client = new_to == to && self.is_vip(new_from, before.protocol);
        assert!(is_for_backend || is_for_client, "{from} to {to} has become {new_from} to {new_to}");
        let rest = |frame: &[u8]| {
            let mut bytes = frame[before.l3..].to_vec();
            let l4 = before.l4 - before.l3;
            let changed = if from.is_ipv4() { [8..9, 10..20] } else { [7..8, 8..40] };
            changed.into_iter().for_each(|range| bytes[range].fill(0));
            let checksum = if before.protocol == Protocol::Tcp as u8 { 16 } else { 6 };
            bytes[l4..l4 + 4].fill(0);
            bytes[l4 + checksum..l4 + checksum + 2].fill(0);
            bytes
        };
        assert_eq!(rest(self.frame), rest(&after.frame), "bytes that no address or checksum stands in");
    }

    fn is_encapsulated(&self, before: &Look, after: &[u8]) {
        let room = after.len().checked_sub(self.frame.len()).expect("no packet becomes shorter");
        assert!(OUTER.contains(&room), "{room} bytes were inserted");
        let outer = Look::of(after).expect("an outer header");
        assert_eq!((before.l3, outer.l3, outer.hop_limit), (14, 14, 64));
        assert!(self.stage.direct.contains(&outer.dst), "{} is no backend", outer.dst);
        assert_eq!(outer.len, room + before.len, "the outer length");
        let (old, new) = (&self.frame[14..], &after[14 + room..]);
        let rest = |packet: &[u8]| {
            let mut bytes = packet.to_vec();
            let changed = if before.src.is_ipv4() { [8..9, 10..12] } else { [7..8, 7..8] };
            changed.into_iter().for_each(|range| bytes[range].fill(0));
            bytes
        };
        assert_eq!(rest(old), rest(new), "what was encapsulated");
        self.sums_stay(old, new);
        let inner = Look::of(&[&self.frame[..14], new].concat()).expect("an inner header");
        assert_eq!(inner.hop_limit, before.hop_limit - 1, "inner hops");
        let header = outer.l4 - outer.l3;
        assert!(outer.dst.is_ipv6() || look::header_sum(&after[14..14 + header]), "the outer header's checksum");
        if matches!(room, 32 | 52) && look::sums(old) == Some(true) {
            assert_eq!(look::sums(&after[14..]), Some(true), "the outer UDP checksum");
        }
    }

    /// A reset, to the sender of the segment or to its receiver.
    fn is_reset(&self, before: &Look, after: &[u8], is_back: bool) {
        assert_eq!(after.len(), before.l4 + 20, "a reset has no more than its headers");
        assert!(after.len() <= self.frame.len(), "a reset is longer than the segment");
        let look = Look::of(after).expect("an IP header");
        assert_eq!(
            (look.l3, look.l4, look.protocol, look.len),
            (before.l3, before.l4, look::TCP, after.len() - look.l3)
        );
        assert_ne!(after[look.l4 + 13] & 4, 0, "no reset");
        let [from, to] = before.ends().expect("ends");
        assert_eq!(look.ends(), Some(if is_back { [to, from] } else { [from, to] }));
        if before.src.is_ipv6() || look::header_sum(&self.frame[before.l3..before.l4]) {
            assert_eq!(look::sums(&after[look.l3..]), Some(true), "checksums of a reset: {after:02x?}");
        }
    }

    /// An ICMP error to the sender of the packet.
    fn is_error(&self, before: &Look, after: &[u8]) {
        let [v4, v6] = LONGEST_ANSWER;
        assert!(after.len() <= if before.src.is_ipv4() { v4 } else { v6 }, "an error of {} bytes", after.len());
        let look = Look::of(after).expect("an IP header");
        assert!(look.is_icmp());
        assert_eq!((look.src, look.dst, look.l3 + look.len), (before.dst, before.src, after.len()));
        assert!(self.frame[before.l3..].starts_with(&after[look.l4 + 8..]), "it quotes the packet");
        assert_eq!(look::sums(&after[look.l3..]), Some(true), "checksums of an error: {after:02x?}");
    }
}
