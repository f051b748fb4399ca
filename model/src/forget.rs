//! States that differ only in what makes no difference any more are made equal, so that each is visited once.

use crate::memory::{Shared, instant};

/// An instant that has passed. Zero is none.
const PASSED: u64 = 1;

pub(crate) fn forget(shared: &mut Shared) {
    let now = shared.clock();
    // No packet that goes on, or that begins from now on, has begun before.
    let first = shared.packets.iter().flatten().map(|packet| instant(packet.began)).min().unwrap_or(now);
    let has_passed = |at: &&mut u64| **at != 0 && **at <= now;
    for slot in 0..2 {
        shared.memory.update(slot, |timing| {
            [&mut timing.revert_at, &mut timing.hold_until].into_iter().filter(has_passed).for_each(|at| *at = PASSED);
        });
        Some(&mut shared.memory.trips[slot].paused_until).filter(has_passed).into_iter().for_each(|at| *at = 0);
    }
    let before_all = |at: &&mut u64| **at != 0 && **at <= first;
    for known in &mut shared.known {
        [&mut known.deadline, &mut known.active_at].into_iter().filter(before_all).for_each(|at| *at = PASSED);
    }
    for watch in &mut shared.watches {
        [&mut watch.begins, &mut watch.judged_from].into_iter().filter(before_all).for_each(|at| *at = 0);
    }
    let fenced = shared.fenced;
    shared.floor = shared.floor.max(fenced);
    // No packet decides by a word before that of the ramp.
    let is_over = |ramped: (u32, u16)| fenced > ramped.0;
    if is_over(shared.ramped) {
        shared.ramped = (0, 0);
    }
    Some(&mut shared.frozen_until).filter(has_passed).into_iter().for_each(|at| *at = 0);
    for packet in shared.packets.iter_mut().flatten() {
        packet.floor = packet.floor.max(fenced);
        packet.frozen_until = packet.frozen_until.min(shared.frozen_until);
        if is_over(packet.ramped) {
            packet.ramped = (0, 0);
        }
    }
}
