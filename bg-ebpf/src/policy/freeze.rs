//! Whether a deployment is frozen, so that packets which would open a flow have to wait.

use crate::world::World;
use bg_common::{LiveFlags, LiveWord};

/// Whether a deployment is frozen. Clears the flag of a freeze whose end has passed: whoever sees it first does.
#[inline(always)]
pub fn is_frozen(deployment: u16, word: LiveWord, world: &impl World) -> bool {
    if !word.flags().has(LiveFlags::HOLD) {
        return false;
    }
    world.order();
    if world.boot_ns() < world.hold_until(deployment, word.terms_slot()) {
        return true;
    }
    world.end_hold(deployment, word, word.with_flags(word.flags().without(LiveFlags::HOLD)));
    false
}
