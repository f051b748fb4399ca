//! Flows: the table entry of each direction.

use crate::{Addr, Identity, Protocol};
use bytemuck::{Pod, Zeroable};

/// Five-tuple of an IPv4 packet as it arrives: client to VIP in the forward direction, backend to
/// client in the reply direction. Words only, so that hashing and comparing never see padding.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowKey4 {
    /// Source address, network order.
    pub src: u32,
    /// Destination address, network order.
    pub dst: u32,
    /// Source port and destination port, as the four octets stand on the wire.
    pub ports: u32,
    /// [`crate::Protocol`].
    pub protocol: u32,
}

/// Five-tuple of an IPv6 packet as it arrives; see [`FlowKey4`].
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowKey6 {
    /// Source address, network order.
    pub src: Addr,
    /// Destination address, network order.
    pub dst: Addr,
    /// Source port and destination port, as the four octets stand on the wire.
    pub ports: u32,
    /// [`crate::Protocol`].
    pub protocol: u32,
}

/// Status, role and state of an entry: the upper half of its head, the word that says whose entry it is.
///
/// ```text
/// bit  31      20 19     13 12   11     10     9      8      7          6        5      4        3      2    1       0
///     | version:12 | limit:7 | own | gone | bRST | bFIN | cRST | cFIN | established | idle | preview | reply | udp | status:2 |
/// ```
///
/// All of it changes by compare-exchange of the whole head, so that a CPU that has found an entry cannot note
/// anything in the one that has taken its place meanwhile: that one has another version.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowState(pub u32);

impl FlowState {
    /// Nothing here.
    pub const EMPTY: u32 = 0;
    /// Somebody is about to publish an entry here. Its ports and protocol stand already.
    pub const BUSY: u32 = 1;
    /// An entry.
    pub const LIVE: u32 = 2;
    /// Where the three above stand.
    pub const STATUS: u32 = 3;
    /// The protocol is UDP, else TCP.
    pub const UDP: u32 = 1 << 2;
    /// The entry of the reply direction, backend to client.
    pub const REPLY: u32 = 1 << 3;
    /// The client sent to the preview address, which its replies must bear.
    pub const PREVIEW: u32 = 1 << 4;
    /// The flow belongs to a tester or came by the preview address: idle colour only.
    pub const IDLE_ONLY: u32 = 1 << 5;
    /// The sender of this direction has sent something beyond its SYN.
    pub const ESTABLISHED: u32 = 1 << 6;
    /// The client has sent FIN.
    pub const CLIENT_FIN: u32 = 1 << 7;
    /// The client has sent RST.
    pub const CLIENT_RESET: u32 = 1 << 8;
    /// The backend has sent FIN.
    pub const BACKEND_FIN: u32 = 1 << 9;
    /// The backend has sent RST.
    pub const BACKEND_RESET: u32 = 1 << 10;
    /// In a reply entry: its flow is over, and it rewrites nothing any more.
    pub const GONE: u32 = 1 << 11;
    /// The client is this host itself: its packets come by the loopback interface.
    pub const OWN: u32 = 1 << 12;

    const LIMIT_SHIFT: u32 = 13;
    const LIMIT_MASK: u32 = 0x7f << Self::LIMIT_SHIFT;
    const VERSION_SHIFT: u32 = 20;
    /// Where the version stands.
    pub const VERSION: u32 = 0xfff << Self::VERSION_SHIFT;

    /// What stays the same as long as an entry is the same one.
    pub const IDENTITY: u32 = Self::VERSION | Self::STATUS;

    /// Whether all these bits are set.
    #[inline(always)]
    pub const fn has(self, bits: u32) -> bool {
        self.0 & bits == bits
    }

    /// These and more bits.
    #[inline(always)]
    pub const fn with(self, bits: u32) -> Self {
        Self(self.0 | bits)
    }

    /// The transport protocol.
    #[inline(always)]
    pub const fn protocol(self) -> Protocol {
        if self.has(Self::UDP) { Protocol::Udp } else { Protocol::Tcp }
    }

    /// The bit of a protocol.
    #[inline(always)]
    pub const fn of_protocol(protocol: Protocol) -> u32 {
        match protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => Self::UDP,
        }
    }

    /// Whether either end has reset the connection, or both have finished it, or the entry is gone.
    #[inline(always)]
    pub const fn has_ended(self) -> bool {
        self.0 & (Self::CLIENT_RESET | Self::BACKEND_RESET | Self::GONE) != 0
            || self.has(Self::CLIENT_FIN | Self::BACKEND_FIN)
    }

    /// The head of the next entry in this place: the next version, of this status and nothing else.
    #[inline(always)]
    pub const fn next(self, status: u32) -> Self {
        Self(self.0.wrapping_add(1 << Self::VERSION_SHIFT) & Self::VERSION | status)
    }

    /// With the silence that it may keep, in ticks, rounded up by a quarter at most: a place is given away by it when
    /// places are short. Whether a flow is over is decided by the deployment's row.
    #[inline(always)]
    pub const fn with_limit(self, ticks: u32) -> Self {
        Self(self.0 & !Self::LIMIT_MASK | limit_code(ticks) << Self::LIMIT_SHIFT)
    }

    /// What has become of `self` when somebody who knew it as `old` makes it `new`.
    #[inline(always)]
    pub const fn merged(self, old: Self, new: Self) -> Self {
        let bits = self.0 | new.0 & !old.0 & !Self::LIMIT_MASK;
        let limited = if (old.0 ^ new.0) & Self::LIMIT_MASK != 0 { new.0 } else { self.0 };
        Self(bits & !Self::LIMIT_MASK | limited & Self::LIMIT_MASK)
    }

    /// That silence, in ticks.
    #[inline(always)]
    pub const fn limit(self) -> u32 {
        let code = (self.0 & Self::LIMIT_MASK) >> Self::LIMIT_SHIFT;
        // The mask is for codes that nothing has made.
        (4 + (code & 3)) << (code >> 2 & 0x1f)
    }
}

/// The least code of a float of two mantissa bits, `(4 + m) << e`, that is no less than `ticks`.
const fn limit_code(ticks: u32) -> u32 {
    // 2^31 and more are the same: longer than the clock tells.
    let ticks = if ticks > 0x7000_0000 { 0x7000_0000 } else { ticks };
    let mut exponent = 0;
    let mut rest = ticks;
    // A binary search for the highest bit: BPF has no instruction for it.
    if rest >= 1 << 18 {
        exponent += 16;
        rest >>= 16;
    }
    if rest >= 1 << 10 {
        exponent += 8;
        rest >>= 8;
    }
    if rest >= 1 << 6 {
        exponent += 4;
        rest >>= 4;
    }
    if rest >= 1 << 4 {
        exponent += 2;
        rest >>= 2;
    }
    if rest >= 1 << 3 {
        exponent += 1;
        rest >>= 1;
    }
    if rest < 4 {
        return 0;
    }
    let code = exponent << 2 | (rest & 3);
    if rest << exponent < ticks { code + 1 } else { code }
}

/// Backend of a flow: its slot, and the epoch that the slot had when the flow was opened, as far as it is kept.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowBackend(pub u32);

impl FlowBackend {
    const SLOT_BITS: u32 = crate::MAX_BACKENDS.ilog2();
    const SLOT_MASK: u32 = crate::MAX_BACKENDS - 1;

    /// Of a slot in an epoch.
    #[inline(always)]
    pub const fn new(slot: u32, epoch: u32) -> Self {
        Self(slot & Self::SLOT_MASK | epoch << Self::SLOT_BITS)
    }

    /// Slot in `backends`.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        self.0 & Self::SLOT_MASK
    }

    /// Whether the slot, which has this identity now, still holds the flow's backend. Fourteen bits of the epoch are
    /// compared: a slot would have to be given away 16,384 times in the silence of one flow.
    #[inline(always)]
    pub const fn is(self, identity: Identity) -> bool {
        identity.in_use == 1 && identity.epoch << Self::SLOT_BITS == self.0 & !Self::SLOT_MASK
    }
}

/// An entry of the flow tables without its addresses, for both directions.
///
/// Three words: the head, which says whose entry it is; the origin, written once; and what changes with packets.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Flow {
    /// Source port and destination port, as the four octets stand on the wire.
    pub ports: u32,
    /// Status, role and state.
    pub state: FlowState,
    /// Backend.
    pub backend: FlowBackend,
    /// Generation of the live word that the flow was opened by.
    pub generation: u32,
    /// Tick of the last packet in this direction, coarse.
    pub last_seen: u32,
    /// In a forward entry the sequence number of the SYN that opened it, as on the wire: it tells a retransmission
    /// from a new connection; zero for UDP, and for a connection that was picked up in its middle. Once a SYN has come inside of
    /// an established connection: a part of that one's sequence number, and when it came. In a reply entry a
    /// [`CachedHop`].
    pub note: u32,
}

impl Flow {
    /// The three words.
    #[inline(always)]
    pub const fn words(self) -> [u64; 3] {
        [
            self.ports as u64 | (self.state.0 as u64) << 32,
            self.backend.0 as u64 | (self.generation as u64) << 32,
            self.last_seen as u64 | (self.note as u64) << 32,
        ]
    }

    /// From the three words.
    #[inline(always)]
    pub const fn from_words([head, origin, times]: [u64; 3]) -> Self {
        Self {
            ports: head as u32,
            state: FlowState((head >> 32) as u32),
            backend: FlowBackend(origin as u32),
            generation: (origin >> 32) as u32,
            last_seen: times as u32,
            note: (times >> 32) as u32,
        }
    }
}

/// Next hop towards the client, as a reply entry keeps it: a place in `next_hops`, and when it was learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CachedHop(pub u32);

impl CachedHop {
    /// Of a place and a tick. Place zero is none.
    #[inline(always)]
    pub const fn new(place: u32, tick: u32) -> Self {
        Self(place & 0xffff | tick << 16)
    }

    /// The place.
    #[inline(always)]
    pub const fn place(self) -> u32 {
        self.0 & 0xffff
    }

    /// Ticks since it was learned, modulo 65,536.
    #[inline(always)]
    pub const fn age(self, now: u32) -> u32 {
        now.wrapping_sub(self.0 >> 16) & 0xffff
    }
}

/// What the flow tables are made of, told to the programs when they are loaded: read-only data of the object.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowTables {
    /// Keys of the hash, drawn anew for each instance: nobody shall aim flows at a bucket.
    pub hash: FlowHash,
    /// Buckets of `flows4` and of `flows6`, less one: powers of two less one, and at least two buckets.
    pub masks: [u32; 2],
    /// Not zero if this machine's CPUs may show each other loads and stores in another order.
    pub weakly_ordered: u64,
}

/// Keys of the hash of five-tuples: multilinear, half as many multiplications as words (Lemire and Kaser,
/// "Strongly universal string hashing is fast", 2014). With random keys the upper half of the sum is the same for two
/// tuples with a chance of 2⁻³², whatever the tuples. It is mixed once more, since ports in order make it a progression.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowHash(pub [u64; 11]);

impl FlowHash {
    /// Keys of nobody's choice (the first digits of pi's fraction), for whoever loads the object without drawing
    /// some.
    pub const PUBLIC: Self = Self([
        0x243f_6a88_85a3_08d3,
        0x1319_8a2e_0370_7344,
        0xa409_3822_299f_31d0,
        0x082e_fa98_ec4e_6c89,
        0x4528_21e6_38d0_1377,
        0xbe54_66cf_34e9_0c6c,
        0xc0ac_29b7_c97c_50dd,
        0x3f84_d5b5_b547_0917,
        0x9216_d5d9_8979_fb1b,
        0xd131_0ba6_98df_b5ac,
        0x2ffd_72db_d01a_dfb7,
    ]);
}

crate::assert_layout!(FlowKey4, size 16, align 8, src at 0, dst at 4, ports at 8, protocol at 12);
crate::assert_layout!(FlowKey6, size 40, align 8, src at 0, dst at 16, ports at 32, protocol at 36);
crate::assert_layout!(
    Flow, size 24, align 8,
    ports at 0, state at 4, backend at 8, generation at 12, last_seen at 16, note at 20
);
crate::assert_layout!(FlowTables, size 104, align 8, hash at 0, masks at 88, weakly_ordered at 96);

#[cfg(test)]
mod tests {
    use super::*;
    use FlowState as S;

    #[test]
    fn a_connection_ends_by_two_fins_or_one_reset() {
        assert!(!S(S::ESTABLISHED).has_ended());
        assert!(!S(S::ESTABLISHED | S::CLIENT_FIN).has_ended() && !S(S::BACKEND_FIN).has_ended());
        assert!(S(S::CLIENT_FIN | S::BACKEND_FIN | S::ESTABLISHED).has_ended());
        assert!(S(S::CLIENT_RESET).has_ended() && S(S::BACKEND_RESET).has_ended() && S(S::GONE).has_ended());
    }

    #[test]
    fn a_limit_is_rounded_up_by_a_quarter_at_most() {
        let state = S(S::LIVE | S::VERSION | S::GONE);
        for ticks in (0..5000).chain((0..28).map(|bit| (1 << bit) + 1)).chain([0x6fff_ffff]) {
            let with = state.with_limit(ticks);
            let limit = with.limit();
            assert!(limit >= ticks && u64::from(limit) <= u64::from(ticks) * 5 / 4 + 4, "{ticks}: {limit}");
            assert_eq!(with.0 & !S::LIMIT_MASK, state.0);
        }
        assert!(state.with_limit(u32::MAX).limit() >= 0x7000_0000);
    }

    #[test]
    fn two_who_note_at_once_lose_nothing() {
        let old = S(S::LIVE).with_limit(10);
        let (mine, other) = (old.with(S::ESTABLISHED).with_limit(1000), old.with(S::BACKEND_FIN));
        let both = S(S::LIVE | S::ESTABLISHED | S::BACKEND_FIN).with_limit(1000);
        assert_eq!((other.merged(old, mine), mine.merged(old, other)), (both, both));
    }

    #[test]
    fn versions_follow_each_other_and_wrap() {
        let old = S(S::LIVE | S::REPLY | S::CLIENT_FIN).with_limit(77);
        let next = old.next(S::BUSY);
        assert_eq!((next.0 & !S::VERSION, next.0 >> 20), (S::BUSY, 1));
        assert_eq!(S(S::VERSION | S::LIVE).next(S::EMPTY), S(0));
    }

    #[test]
    fn a_backend_is_its_slot_and_epoch() {
        let backend = FlowBackend::new(200_000, 16_384 + 5);
        assert_eq!(backend.slot(), 200_000);
        let is = |epoch, in_use| backend.is(Identity { epoch, in_use });
        assert!(is(16_384 + 5, 1) && !is(16_384 + 5, 0) && !is(6, 1) && !is(4, 1));
    }

    #[test]
    fn words_and_fields_are_the_same_octets() {
        let flow = Flow { ports: 1, state: S(2), backend: FlowBackend(3), generation: 4, last_seen: 5, note: 6 };
        assert_eq!(Flow::from_words(flow.words()), flow);
        assert_eq!(bytemuck::bytes_of(&flow), bytemuck::bytes_of(&flow.words()));
    }
}
