//! Access to entries that other CPUs and user space share.
//!
//! Rows of the flow tables and of `backends` are read and written in place, without a lock, while
//! others do the same. So they are never borrowed. A flow's entry is read once, as a whole, and changed by
//! compare-exchange; see [`crate::flow_table`]. Each field of a backend's row is read or written by one volatile
//! access, and each is one of which any mixture of old and new is harmless (argued where it is declared, in
//! `bg-common`).

use crate::{flow_table::Words, headers::IpVersion};
use bg_common::{Backend, Be16, CachedHop, Flow, FlowBackend, FlowState, Identity, NextHop};

macro_rules! read {
    ($row:expr, $($field:tt)+) => {
        // SAFETY: the tables hand out pointers to whole rows that live as long as the program runs;
        // the type of each field is valid for any bytes.
        unsafe { (&raw const (*$row).$($field)+).read_volatile() }
    };
}

/// Words of shared memory by their address: map memory in the kernel, any memory on the host.
#[derive(Clone, Copy, Debug)]
pub struct RawWords(*mut u64);

impl RawWords {
    /// Nowhere.
    pub const NONE: Self = Self(core::ptr::null_mut());

    /// Whether it is [`Self::NONE`].
    #[inline(always)]
    pub fn is_none(self) -> bool {
        self.0.is_null()
    }

    /// # Safety
    ///
    /// As many words as will be asked for must be there, aligned, for as long as this is used, and be accessed in no
    /// other way meanwhile.
    #[inline(always)]
    pub const unsafe fn new(words: *mut u64) -> Self {
        Self(words)
    }

    /// The address.
    #[inline(always)]
    pub fn as_ptr(self) -> *mut u64 {
        self.0
    }
}

#[cfg(target_arch = "bpf")]
impl Words for RawWords {
    #[inline(always)]
    fn from(self, word: usize) -> Self {
        Self(self.0.wrapping_add(word))
    }

    #[inline(always)]
    fn before(self, words: usize) -> Self {
        Self(self.0.wrapping_sub(words))
    }

    #[inline(always)]
    fn load(self, word: usize) -> u64 {
        // SAFETY: see `new`.
        unsafe { self.0.wrapping_add(word).read_volatile() }
    }

    #[inline(always)]
    fn store(self, word: usize, value: u64) {
        // SAFETY: see `new`.
        unsafe { self.0.wrapping_add(word).write_volatile(value) }
    }

    #[inline(always)]
    fn store_low(self, word: usize, value: u32) {
        // SAFETY: see `new`.
        unsafe { self.0.wrapping_add(word).cast::<u32>().write_volatile(value) }
    }

    #[inline(always)]
    fn exchange(self, word: usize, old: u64, new: u64) -> bool {
        use core::intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg};
        // SAFETY: see `new`.
        unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(self.0.wrapping_add(word), old, new).1 }
    }
}

#[cfg(not(target_arch = "bpf"))]
impl RawWords {
    #[inline(always)]
    fn atomic<'a>(self, word: usize) -> &'a core::sync::atomic::AtomicU64 {
        // SAFETY: see `new`.
        unsafe { core::sync::atomic::AtomicU64::from_ptr(self.0.add(word)) }
    }
}

#[cfg(not(target_arch = "bpf"))]
impl Words for RawWords {
    #[inline(always)]
    fn from(self, word: usize) -> Self {
        // SAFETY: see `new`.
        Self(unsafe { self.0.add(word) })
    }

    #[inline(always)]
    fn before(self, words: usize) -> Self {
        // SAFETY: see `new`.
        Self(unsafe { self.0.sub(words) })
    }

    #[inline(always)]
    fn load(self, word: usize) -> u64 {
        self.atomic(word).load(core::sync::atomic::Ordering::Relaxed)
    }

    #[inline(always)]
    fn store(self, word: usize, value: u64) {
        self.atomic(word).store(value, core::sync::atomic::Ordering::Relaxed);
    }

    #[inline(always)]
    fn store_low(self, word: usize, value: u32) {
        // SAFETY: see `new`. Mixed sizes, as in the kernel; on one thread at a time.
        unsafe { self.0.add(word).cast::<u32>().write_volatile(value) }
    }

    #[inline(always)]
    fn exchange(self, word: usize, old: u64, new: u64) -> bool {
        use core::sync::atomic::Ordering::SeqCst;
        self.atomic(word).compare_exchange(old, new, SeqCst, SeqCst).is_ok()
    }
}

/// An entry of a flow table: as it was found, and where.
#[derive(Clone, Copy, Debug)]
pub struct FlowRef<W = RawWords> {
    flow: Flow,
    words: W,
}

impl<W: Words> FlowRef<W> {
    /// What was found at `words`.
    #[inline(always)]
    pub fn new(words: W, flow: Flow) -> Self {
        Self { flow, words }
    }

    /// As it was found.
    #[inline(always)]
    pub fn flow(&self) -> &Flow {
        &self.flow
    }

    /// Where it is: head, origin, times.
    #[inline(always)]
    pub fn words(&self) -> W {
        self.words
    }

    /// Its state, as it was found.
    #[inline(always)]
    pub fn state(&self) -> FlowState {
        self.flow.state
    }

    /// Whether it is the entry of the reply direction.
    #[inline(always)]
    pub fn is_reply(&self) -> bool {
        self.flow.state.has(FlowState::REPLY)
    }

    /// Whether the sender of this direction has sent something beyond its SYN.
    #[inline(always)]
    pub fn is_established(&self) -> bool {
        self.flow.state.has(FlowState::ESTABLISHED)
    }

    /// Backend of the flow.
    #[inline(always)]
    pub fn backend(&self) -> FlowBackend {
        self.flow.backend
    }

    /// Whether this is the reply entry of the flow with this forward entry: the same backend, in the same life of its
    /// slot, and the same address of its service.
    #[inline(always)]
    pub fn is_reply_of(&self, forward: &Self) -> bool {
        const SAME: u32 = FlowState::REPLY | FlowState::PREVIEW;
        (self.flow.state.0 ^ forward.flow.state.0) & SAME == FlowState::REPLY
            && self.is_reply()
            && self.flow.backend == forward.flow.backend
    }

    /// What the entry of the other direction would hold, had it not been lost.
    #[inline(always)]
    pub fn other_direction(&self) -> Flow {
        // Whether that direction's sender has confirmed the connection is not known here.
        let state = FlowState((self.flow.state.0 ^ FlowState::REPLY) & !FlowState::ESTABLISHED);
        // A connection that lasts is known by the client's end alone.
        let state =
            if self.is_reply() { FlowState(state.0 | self.flow.state.0 & FlowState::ESTABLISHED) } else { state };
        Flow { state, note: 0, ..self.flow }
    }

    /// Notes bits of the state. Writes only news, and only into the entry that was found.
    #[inline(always)]
    pub fn note(&mut self, bits: u32) {
        self.become_state(self.flow.state.with(bits));
    }

    /// Changes the state, from what was found.
    #[inline(always)]
    pub fn become_state(&mut self, state: FlowState) {
        if state == self.flow.state {
            return;
        }
        let head = |state: FlowState| u64::from(self.flow.ports) | u64::from(state.0) << 32;
        let old = head(self.flow.state);
        if !self.words.exchange(0, old, head(state)) {
            // The other direction, on another CPU, has noted something at the same time; or the entry is gone.
            let now = self.words.load(0);
            let found = FlowState((now >> 32) as u32);
            let is_gone = (now ^ old) & (u64::from(FlowState::IDENTITY) << 32 | 0xffff_ffff) != 0;
            if is_gone || !self.words.exchange(0, now, head(found.merged(self.flow.state, state))) {
                return;
            }
        }
        self.flow.state = state;
    }

    /// Ticks since the last packet in this direction.
    #[inline(always)]
    pub fn idle(&self, now: u32) -> u32 {
        let idle = now.wrapping_sub(self.flow.last_seen);
        // Another CPU may have seen a later tick than this one had read: that is no idleness.
        if idle > u32::MAX / 2 { 0 } else { idle }
    }

    /// Whether a packet in this direction was seen in this tick already.
    #[inline(always)]
    pub fn was_seen_at(&self, now: u32) -> bool {
        self.flow.last_seen == now
    }

    /// Notes a packet. Writes once a tick, so that a busy flow's line is not passed about. Should the entry have become
    /// another's meanwhile, that one was written in this tick too.
    #[inline(always)]
    pub fn seen(&mut self, now: u32) {
        if !self.was_seen_at(now) {
            self.words.store_low(2, now);
            self.flow.last_seen = now;
        }
    }

    /// Whether this is the flow's first packet in this direction for a span of sixteen ticks, one to ten
    /// seconds by the kernel's tick rate: the occasion to look after the other direction's entry.
    #[inline(always)]
    pub fn is_first_in_span(&self, now: u32) -> bool {
        (self.flow.last_seen ^ now) >> 4 != 0
    }

    /// The SYN of a forward entry: its sequence number as on the wire; see [`crate::lifetime`] for one of an established
    /// connection.
    #[inline(always)]
    pub fn syn(&self) -> u32 {
        self.flow.note
    }

    /// The next hop that a reply entry has cached.
    #[inline(always)]
    pub fn cached_hop(&self) -> CachedHop {
        CachedHop(self.flow.note)
    }

    /// Notes a SYN that came inside of an established connection in a forward entry, or a cached hop in a reply entry.
    #[inline(always)]
    pub fn set_note(&mut self, note: u32) {
        let times = |note: u32| u64::from(self.flow.last_seen) | u64::from(note) << 32;
        // Should the entry have become another's, or a packet on another CPU have come first, it is not noted.
        if self.words.exchange(2, times(self.flow.note), times(note)) {
            self.flow.note = note;
        }
    }
}

/// A row of `backends`.
#[derive(Clone, Copy)]
pub struct BackendRef(pub *mut Backend);

impl BackendRef {
    /// Whose slot it is. One load: both halves change at once.
    #[inline(always)]
    pub fn identity(self) -> Identity {
        // SAFETY: an aligned field of eight octets, of a row that lives as long as the program runs.
        let word = unsafe { (&raw const (*self.0).identity).cast::<u64>().read_volatile() };
        Identity { epoch: word as u32, in_use: (word >> 32) as u32 }
    }

    /// Whether the slot still holds this backend.
    #[inline(always)]
    pub fn is(self, backend: FlowBackend) -> bool {
        backend.is(self.identity())
    }

    /// Address.
    #[inline(always)]
    pub fn address<V: IpVersion>(self) -> V::Address {
        // SAFETY: a field of a row that lives as long as the program runs. No such field changes while a flow refers
        // to the row, and a flow that does not would be over.
        V::narrow(unsafe { &(*self.0).addr })
    }

    /// Port.
    #[inline(always)]
    pub fn port(self) -> Be16 {
        read!(self.0, port)
    }

    /// [`bg_common::Mode`], as a number.
    #[inline(always)]
    pub fn mode(self) -> u8 {
        read!(self.0, mode)
    }

    /// Index of the service that it serves.
    #[inline(always)]
    pub fn service(self) -> u16 {
        read!(self.0, service)
    }

    /// Index of that service's deployment.
    #[inline(always)]
    pub fn deployment(self) -> u16 {
        read!(self.0, deployment)
    }

    /// Colour that it belongs to, as a number.
    #[inline(always)]
    pub fn colour(self) -> u8 {
        read!(self.0, colour)
    }

    /// Next hop towards it.
    #[inline(always)]
    pub fn next_hop(self) -> HopCache {
        // SAFETY: three words of a row that lives as long as the program runs.
        HopCache(unsafe { RawWords::new((&raw mut (*self.0).next_hop).cast()) })
    }
}

/// A cached next hop, in a backend's row or in `next_hops`; see [`NextHop`] for why it needs no lock.
#[derive(Clone, Copy)]
pub struct HopCache(pub RawWords);

impl HopCache {
    /// What is cached.
    #[inline(always)]
    pub fn read(self) -> NextHop {
        let times = self.0.load(2);
        NextHop {
            ifindex_and_dmac: self.0.load(0),
            mtu_and_smac: self.0.load(1),
            learned: times as u32,
            asked: (times >> 32) as u32,
        }
    }

    /// Keeps a look-up.
    #[inline(always)]
    pub fn write(self, hop: NextHop) {
        self.0.store(0, hop.ifindex_and_dmac);
        self.0.store(1, hop.mtu_and_smac);
        self.write_times(hop);
    }

    /// Keeps when it was looked up and asked. Another CPU may do the same at the same time: then one of two recent
    /// ticks is lost, and the next packet looks again.
    #[inline(always)]
    pub fn write_times(self, hop: NextHop) {
        self.0.store(2, u64::from(hop.learned) | u64::from(hop.asked) << 32);
    }
}
