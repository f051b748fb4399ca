//! A flow's row: as it was found, and where it stands.
//!
//! Rows are read and written in place while other CPUs and user space do the same, so they are never borrowed. A row is
//! read once, as a whole. Its head changes by compare-exchange alone, and the version in it keeps notes out of
//! the row of another flow.

use super::memory::{RawWords, Words};
use bg_common::{CachedHop, Flow, FlowBackend, FlowState};

/// A row that was found.
#[derive(Clone, Copy, Debug)]
pub struct FlowRef<W = RawWords> {
    flow: Flow,
    vip: u16,
    words: W,
}

impl<W: Words> FlowRef<W> {
    /// The row whose head stands at `words`, and whose key names the row `vip` of `vips`.
    #[inline(always)]
    pub const fn new(words: W, vip: u16, flow: Flow) -> Self {
        Self { flow, vip, words }
    }

    /// The row as it was found.
    #[inline(always)]
    pub const fn flow(&self) -> &Flow {
        &self.flow
    }

    /// Row of `vips` that the client sends to.
    #[inline(always)]
    pub const fn vip(&self) -> u16 {
        self.vip
    }

    /// Where its head stands.
    #[inline(always)]
    pub const fn words(&self) -> W {
        self.words
    }

    /// Its state as it was found.
    #[inline(always)]
    pub const fn state(&self) -> FlowState {
        self.flow.state
    }

    /// Its backend.
    #[inline(always)]
    pub const fn backend(&self) -> FlowBackend {
        self.flow.backend
    }

    /// Sets bits of the state. Writes only if one is new, and only into the row that was found.
    #[inline(always)]
    pub fn set(&mut self, bits: u32) {
        self.change(self.flow.state.with(bits), self.flow.note);
    }

    /// Changes state and note.
    #[inline(always)]
    pub fn change(&mut self, state: FlowState, note: u32) {
        if state.0 == self.flow.state.0 && note == self.flow.note {
            return;
        }
        let head = |state: FlowState, note: u32| u64::from(state.0) | u64::from(note) << 32;
        let old = head(self.flow.state, self.flow.note);
        if !self.words.exchange(0, old, head(state, note)) {
            // Another CPU has changed it at the same time, or the row is another flow's.
            let now = self.words.load(0);
            let is_gone = (now ^ old) & u64::from(FlowState::IDENTITY) != 0;
            let merged = FlowState(now as u32).merged(self.flow.state, state);
            // A doubtful SYN that the backend's answer has cleared up meanwhile is not to be noted without its flag.
            let is_note_ours = note != self.flow.note && merged.has(state.0 & FlowState::DOUBTFUL);
            let note = if is_note_ours { note } else { (now >> 32) as u32 };
            if is_gone || !self.words.exchange(0, now, head(merged, note)) {
                return;
            }
        }
        (self.flow.state, self.flow.note) = (state, note);
    }

    /// Ticks since the last packet.
    #[inline(always)]
    pub const fn idle(&self, now: u32) -> u32 {
        idle(self.flow.last_seen, now)
    }

    /// Whether a packet was seen in this tick already.
    #[inline(always)]
    pub const fn was_seen_at(&self, now: u32) -> bool {
        self.flow.last_seen == now
    }

    /// Notes a packet. Writes once a tick, so that CPUs do not pass a busy flow's cache line to and fro. If the row has
    /// become another flow's meanwhile, that one was opened in this tick.
    #[inline(always)]
    pub fn see(&mut self, now: u32) {
        if !self.was_seen_at(now) {
            self.words.store_low(2, now);
            self.flow.last_seen = now;
        }
    }

    /// Notes the next hop towards the client.
    #[inline(always)]
    pub fn cache_hop(&mut self, hop: CachedHop) {
        let times = |hop: CachedHop| u64::from(self.flow.last_seen) | u64::from(hop.0) << 32;
        // If the row has become another flow's, or another CPU was first, it is not noted.
        if self.words.exchange(2, times(self.flow.hop), times(hop)) {
            self.flow.hop = hop;
        }
    }
}

/// Ticks since `last_seen`. Another CPU may have seen a later tick than this one had read: that is none.
#[inline(always)]
pub const fn idle(last_seen: u32, now: u32) -> u32 {
    let idle = now.wrapping_sub(last_seen);
    if idle > u32::MAX / 2 { 0 } else { idle }
}
