//! The generation that a switch makes, from the word before it and its terms. User space switches by it, and so does a packet that
//! takes an unconfirmed switch back.

use crate::{
    hint::unlikely,
    policy::lifetime::{after_drain, is_past},
};
use bg_common::{Colour, LiveFlags, LiveWord, SwitchTerms};

/// What is asked of a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// The share of new flows that goes to green, in basis points.
    pub share: u16,
    /// Whether the open flows of the colour that is idle afterwards end. Otherwise they drain.
    pub is_cut: bool,
    /// Tick after which a drain ends the remaining flows; 0 is never.
    pub drain_deadline: u32,
    /// The present tick.
    pub now: u32,
}

/// The tick that is `ticks` after another one. It is never the tick that means never.
#[inline(always)]
pub const fn tick_after(now: u32, ticks: u32) -> u32 {
    let tick = now.wrapping_add(ticks);
    if tick == 0 { 1 } else { tick }
}

/// When a drain that begins now ends the remaining flows, if it may last for `timeout` ticks; zero is without end.
#[inline(always)]
pub const fn drain_deadline(now: u32, timeout: u32) -> u32 {
    if timeout == 0 { 0 } else { tick_after(now, timeout) }
}

/// The word and the terms of the next generation after `word`, which has the terms `terms`. `None` if there is no
/// next generation.
#[inline(always)]
pub fn next(word: LiveWord, terms: &SwitchTerms, order: Order) -> Option<(LiveWord, SwitchTerms)> {
    let generation = word.generation().wrapping_add(1);
    if unlikely(generation == 0) {
        return None;
    }
    let is_draining = word.flags().has(LiveFlags::DRAINING);
    let [mut blue, mut green] = if is_draining && is_past(terms.drain_deadline, order.now) {
        // The flows that the drain has ended stay ended, although their colour may be live again.
        after_drain(word, terms).1
    } else if word.flags().has(LiveFlags::CUT) {
        terms.ended_before
    } else {
        [0; 2]
    };
    let mut flags = LiveFlags(word.flags().0 & LiveFlags::HOLD.0);
    if order.is_cut {
        match LiveWord::new(0, LiveFlags::NONE, 0, order.share).live() {
            Colour::Blue => green = generation,
            Colour::Green => blue = generation,
        }
    } else {
        flags = flags.with(LiveFlags::DRAINING);
    }
    if blue | green != 0 {
        flags = flags.with(LiveFlags::CUT);
    }
    // Zero stands for unknown.
    let drain_began = if order.is_cut { 0 } else { tick_after(order.now, 0) };
    let word = LiveWord::new(generation, flags, word.target_share(), order.share);
    Some((word, SwitchTerms { ended_before: [blue, green], drain_deadline: order.drain_deadline, drain_began }))
}
