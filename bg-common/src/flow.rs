//! Flows: the rows of the flow tables. Packets of both directions find the same row.

use crate::{Addr, Be16, Identity};
use bytemuck::{Pod, Zeroable};

/// The key of a row of `flows4`: the client's address and port, and the virtual address to which it sends. One word.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowKey4 {
    /// The client's address, in network order.
    pub client: u32,
    /// The client's port.
    pub port: Be16,
    /// Row of the `vips` map.
    pub vip: u16,
}

/// The key of a row of `flows6`; see [`FlowKey4`]. Three words.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowKey6 {
    /// The client's address.
    pub client: Addr,
    /// Always zero.
    pub reserved: u32,
    /// The client's port.
    pub port: Be16,
    /// Row of the `vips` map.
    pub vip: u16,
}

/// The status and state of a row: the lower half of its *head*.
///
/// ```text
/// bit  31      21 20     14 13       12      11       10      9    8    7    6    5        4         3   2         1      0
///     | version:11 | limit:7 | doubtful, queued | foreign | reused | retried | bRST | bFIN | cRST | cFIN | answered | confirmed | own | idle_only | status:2 |
/// ```
///
/// The head changes only by compare-exchange. So a CPU that has found a row cannot change the state of another flow that
/// has taken over the row meanwhile, because the version differs.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowState(pub u32);

impl FlowState {
    /// No flow.
    pub const EMPTY: u32 = 0;
    /// A CPU is writing a flow to this row. The upper half of the head is the flow's hash.
    pub const BUSY: u32 = 1;
    /// A flow.
    pub const LIVE: u32 = 2;
    /// The mask of the three values above.
    pub const STATUS: u32 = 3;
    /// The flow belongs to a tester or goes to a preview address. It may only be on the idle colour.
    pub const IDLE_ONLY: u32 = 1 << 2;
    /// The client is this host itself. Its packets arrive on the loopback interface.
    pub const OWN: u32 = 1 << 3;
    /// The client has sent more than its first packet: in TCP a segment that is not a SYN, in UDP a datagram after
    /// the backend's first one.
    pub const CONFIRMED: u32 = 1 << 4;
    /// The backend has replied.
    pub const ANSWERED: u32 = 1 << 5;
    /// The client has sent FIN.
    pub const CLIENT_FIN: u32 = 1 << 6;
    /// The client has sent RST.
    pub const CLIENT_RESET: u32 = 1 << 7;
    /// The backend has sent FIN.
    pub const BACKEND_FIN: u32 = 1 << 8;
    /// The backend has sent RST.
    pub const BACKEND_RESET: u32 = 1 << 9;
    /// One colour has refused this connection, which was picked up in mid-stream. It is on the other colour now.
    pub const RETRIED: u32 = 1 << 10;
    /// An earlier connection or flow from the same client port went to the same virtual address.
    pub const REUSED: u32 = 1 << 11;
    /// The backend's packets to this client port belong to a connection that does not use the virtual address.
    pub const FOREIGN: u32 = 1 << 12;
    /// With [`Self::CLIENT_FIN`], of a backend that replies to the client directly: the client has sent FIN, and nobody here hears whether the backend has.
    /// Packets of such a backend never show that they are foreign. The note is then what the client has acknowledged last, and the limit depends on it.
    pub const UNHEARD: u32 = Self::FOREIGN;
    /// TCP: a SYN has arrived inside the established connection. [`Flow::note`] identifies it.
    pub const DOUBTFUL: u32 = 1 << 13;
    /// UDP: the datagram that opened the flow was held. While the deployment is still frozen, later ones may have to wait for others that are
    /// held too.
    pub const QUEUED: u32 = Self::DOUBTFUL;

    /// TCP: a command has ended the connection, and an end that speaks is answered by a reset. Of themselves, these bits meet only in a
    /// connection that has ended. A backend or client that has been reset is noted as usual.
    pub const ENDED: u32 = Self::CLIENT_FIN | Self::BACKEND_FIN | Self::DOUBTFUL;

    const LIMIT_SHIFT: u32 = 14;
    const LIMIT_MASK: u32 = 0x7f << Self::LIMIT_SHIFT;
    const VERSION_SHIFT: u32 = 21;
    /// The version. It grows by one whenever the row gets a new flow.
    pub const VERSION: u32 = 0x7ff << Self::VERSION_SHIFT;

    /// The bits that do not change as long as the row belongs to the same flow.
    pub const IDENTITY: u32 = Self::VERSION | Self::STATUS;

    /// The bits of FIN and RST, from either end.
    pub const ENDS: u32 = Self::CLIENT_FIN | Self::CLIENT_RESET | Self::BACKEND_FIN | Self::BACKEND_RESET;

    /// Whether all these bits are set.
    #[inline(always)]
    pub const fn has(self, bits: u32) -> bool {
        self.0 & bits == bits
    }

    /// Whether any of these bits is set.
    #[inline(always)]
    pub const fn has_any(self, bits: u32) -> bool {
        self.0 & bits != 0
    }

    /// The state with these bits set.
    #[inline(always)]
    pub const fn with(self, bits: u32) -> Self {
        Self(self.0 | bits)
    }

    /// The state with these bits cleared.
    #[inline(always)]
    pub const fn without(self, bits: u32) -> Self {
        Self(self.0 & !bits)
    }

    /// Whether either end has reset the connection, or both have sent FIN.
    #[inline(always)]
    pub const fn has_ended(self) -> bool {
        self.has_any(Self::CLIENT_RESET | Self::BACKEND_RESET) || self.has(Self::CLIENT_FIN | Self::BACKEND_FIN)
    }

    /// Whether the client has sent FIN to a backend that is not heard here, so that the connection may have ended or not.
    #[inline(always)]
    pub const fn may_have_ended(self) -> bool {
        self.has(Self::CLIENT_FIN | Self::UNHEARD)
    }

    /// Whether a command has ended the connection.
    #[inline(always)]
    pub const fn is_ended_by_command(self) -> bool {
        self.has(Self::ENDED)
    }

    /// Whether an end of the connection has been reset.
    #[inline(always)]
    pub const fn is_reset(self) -> bool {
        self.has_any(Self::CLIENT_RESET | Self::BACKEND_RESET)
    }

    /// Whether both ends have taken part. A flood of first packets cannot achieve that.
    #[inline(always)]
    pub const fn is_assured(self) -> bool {
        self.has(Self::CONFIRMED | Self::ANSWERED)
    }

    /// The state of the next flow in this row: the next version, with only these bits set.
    #[inline(always)]
    pub const fn next(self, bits: u32) -> Self {
        Self(self.0.wrapping_add(1 << Self::VERSION_SHIFT) & Self::VERSION | bits)
    }

    /// The state with the flow's time-out, in ticks, rounded up by at most a quarter. This value ranks rows when a bucket is
    /// full. Whether a flow has timed out is decided by its deployment's settings.
    #[inline(always)]
    pub const fn with_limit(self, ticks: u32) -> Self {
        Self(self.0 & !Self::LIMIT_MASK | limit_code(ticks) << Self::LIMIT_SHIFT)
    }

    /// The result when a CPU changes `old` to `new` while the present state is `self`.
    #[inline(always)]
    pub const fn merged(self, old: Self, new: Self) -> Self {
        let set = new.0 & !old.0 & !Self::LIMIT_MASK;
        let cleared = old.0 & !new.0 & !Self::LIMIT_MASK;
        let limited = if (old.0 ^ new.0) & Self::LIMIT_MASK != 0 { new.0 } else { self.0 };
        Self((self.0 | set) & !cleared & !Self::LIMIT_MASK | limited & Self::LIMIT_MASK)
    }

    /// The flow's time-out as a float: `(4 + mantissa) << exponent` ticks.
    #[inline(always)]
    pub const fn limit_code(self) -> u32 {
        (self.0 & Self::LIMIT_MASK) >> Self::LIMIT_SHIFT
    }

    /// The flow's time-out in ticks.
    #[inline(always)]
    pub const fn limit(self) -> u32 {
        let code = self.limit_code();
        // The mask is for invalid codes.
        (4 + (code & 3)) << (code >> 2 & 0x1f)
    }
}

/// The least code of a float of two mantissa bits, `(4 + m) << e`, that is no less than `ticks`.
const fn limit_code(ticks: u32) -> u32 {
    // All values from 2^31 on are equal, because the clock cannot measure longer times.
    let ticks = if ticks > 0x7000_0000 { 0x7000_0000 } else { ticks };
    let mut exponent = 0;
    let mut rest = ticks;
    // A binary search for the highest bit, because BPF has no instruction for it.
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

/// The backend of a flow: its slot, and the low 14 bits of the slot's epoch when the flow was opened.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowBackend(pub u32);

impl FlowBackend {
    const SLOT_BITS: u32 = crate::MAX_BACKENDS.ilog2();
    const SLOT_MASK: u32 = crate::MAX_BACKENDS - 1;

    /// The backend of a slot in an epoch.
    #[inline(always)]
    pub const fn new(slot: u32, epoch: u32) -> Self {
        Self(slot & Self::SLOT_MASK | epoch << Self::SLOT_BITS)
    }

    /// The slot in `backends`.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        self.0 & Self::SLOT_MASK
    }

    /// Whether the slot, which has this identity now, still holds the flow's backend. Only 14 bits of the epoch are
    /// compared, so a wrong result would require that the slot is reused 16,384 times while one flow is silent.
    #[inline(always)]
    pub const fn is(self, identity: Identity) -> bool {
        identity.in_use == 1 && identity.epoch << Self::SLOT_BITS == self.0 & !Self::SLOT_MASK
    }
}

/// A row of a flow table without its key. It has three words: the head, which has status, state and version; the origin, which is written once; and
/// the times, which change with packets.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Flow {
    /// Status and state.
    pub state: FlowState,
    /// For TCP, the sequence number of the SYN that opened the connection, in network order; zero if the connection was picked up in
    /// mid-stream. It distinguishes a retransmission from a new connection. With [`FlowState::DOUBTFUL`], a part of another SYN's
    /// sequence number, and when that SYN arrived. With [`FlowState::UNHEARD`], what the client has acknowledged last. For UDP, zero.
    pub note: u32,
    /// Backend.
    pub backend: FlowBackend,
    /// Generation of the live word under which the flow was opened.
    pub generation: u32,
    /// Tick of the last packet in either direction.
    pub last_seen: u32,
    /// Next hop towards the client.
    pub hop: CachedHop,
}

impl Flow {
    /// The three words.
    #[inline(always)]
    pub const fn words(self) -> [u64; 3] {
        [
            self.state.0 as u64 | (self.note as u64) << 32,
            self.backend.0 as u64 | (self.generation as u64) << 32,
            self.last_seen as u64 | (self.hop.0 as u64) << 32,
        ]
    }

    /// The row in these three words.
    #[inline(always)]
    pub const fn from_words([head, origin, times]: [u64; 3]) -> Self {
        Self {
            state: FlowState(head as u32),
            note: (head >> 32) as u32,
            backend: FlowBackend(origin as u32),
            generation: (origin >> 32) as u32,
            last_seen: times as u32,
            hop: CachedHop((times >> 32) as u32),
        }
    }
}

/// The next hop towards a flow's client: a row of `next_hops`, and when it was learned.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CachedHop(pub u32);

impl CachedHop {
    /// The next hop with this number, learned at this tick. Number zero is none.
    #[inline(always)]
    pub const fn new(number: u32, tick: u32) -> Self {
        Self(number & 0xffff | tick << 16)
    }

    /// The number.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0 & 0xffff
    }

    /// Ticks since it was learned, modulo 65,536.
    #[inline(always)]
    pub const fn age(self, now: u32) -> u32 {
        now.wrapping_sub(self.0 >> 16) & 0xffff
    }
}

/// The sizes and keys of the tables: read-only data of the object, set before the programs are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct TableSizes {
    /// Keys of the flow tables' hash. They are random for each instance, so that nobody can direct many flows to one bucket.
    pub flow_hash: FlowHash,
    /// Number of buckets of `flows4` and of `flows6`, less one. The numbers are powers of two, and at least 2.
    pub flow_masks: [u32; 2],
    /// Number of heads of `vip_index`, less one. The number is a power of two.
    pub vip_mask: u32,
    /// Number of heads of `backend_index`, less one. The number is a power of two.
    pub backend_mask: u32,
    /// Not zero if the machine is weakly ordered, so that its CPUs may see each other's loads and stores in another order.
    pub weakly_ordered: u32,
    /// Not zero if the kernel lets programs read `CLOCK_TAI`.
    pub has_tai: u32,
}

/// Keys of the hash of flows. The hash is multilinear, with half as many multiplications as words (Lemire and Kaser, "Strongly universal
/// string hashing is fast", 2014). With random keys, the upper half of the sum is the same for any two clients with a probability
/// of 2⁻³². It is mixed once more, because consecutive ports give an arithmetic progression.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowHash(pub [u64; 7]);

impl FlowHash {
    /// Public keys (the first digits of pi's fraction), for a loader that sets none.
    pub const PUBLIC: Self = Self([
        0x243f_6a88_85a3_08d3,
        0x1319_8a2e_0370_7344,
        0xa409_3822_299f_31d0,
        0x082e_fa98_ec4e_6c89,
        0x4528_21e6_38d0_1377,
        0xbe54_66cf_34e9_0c6c,
        0xc0ac_29b7_c97c_50dd,
    ]);
}

crate::assert_layout!(FlowKey4, size 8, align 8, client at 0, port at 4, vip at 6);
crate::assert_layout!(FlowKey6, size 24, align 8, client at 0, reserved at 16, port at 20, vip at 22);
crate::assert_layout!(
    Flow, size 24, align 8,
    state at 0, note at 4, backend at 8, generation at 12, last_seen at 16, hop at 20
);
crate::assert_layout!(
    TableSizes, size 80, align 8,
    flow_hash at 0, flow_masks at 56, vip_mask at 64, backend_mask at 68, weakly_ordered at 72,
    has_tai at 76
);

#[cfg(test)]
mod tests {
    use super::*;
    use FlowState as S;

    #[test]
    fn a_connection_ends_by_two_fins_or_one_reset() {
        assert!(!S(S::CONFIRMED).has_ended());
        assert!(!S(S::CONFIRMED | S::CLIENT_FIN).has_ended() && !S(S::BACKEND_FIN).has_ended());
        assert!(S(S::CLIENT_FIN | S::BACKEND_FIN | S::CONFIRMED).has_ended());
        assert!(S(S::CLIENT_RESET).has_ended() && S(S::BACKEND_RESET).has_ended());
    }

    #[test]
    fn a_limit_is_rounded_up_by_a_quarter_at_most() {
        let state = S(S::LIVE | S::VERSION | S::FOREIGN | S::DOUBTFUL);
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
        let old = S(S::LIVE | S::DOUBTFUL).with_limit(10);
        let (mine, other) = (old.with(S::CONFIRMED).with_limit(1000), old.with(S::BACKEND_FIN).without(S::DOUBTFUL));
        let both = S(S::LIVE | S::CONFIRMED | S::BACKEND_FIN).with_limit(1000);
        assert_eq!((other.merged(old, mine), mine.merged(old, other)), (both, both));
    }

    #[test]
    fn versions_follow_each_other_and_wrap() {
        let old = S(S::LIVE | S::OWN | S::CLIENT_FIN).with_limit(77);
        let next = old.next(S::BUSY);
        assert_eq!((next.0 & !S::VERSION, next.0 >> 21), (S::BUSY, 1));
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
    fn words_and_fields_are_the_same_bytes() {
        let flow =
            Flow { state: S(2), note: 1, backend: FlowBackend(3), generation: 4, last_seen: 5, hop: CachedHop(6) };
        assert_eq!(Flow::from_words(flow.words()), flow);
        assert_eq!(bytemuck::bytes_of(&flow), bytemuck::bytes_of(&flow.words()));
    }
}
