//! The colour that is kept: it was live before anybody asked for gates, or a switch made it live, has taken effect and waits for nothing.
//!
//! The word alone does not tell: its share may be a tie, or that of a ramp that was cancelled, or of a switch that nobody has confirmed. So each generation notes what
//! was kept when it was made ([`Timing::kept`](bg_common::Timing::kept)), in the kernel's memory and together with the word.

use bg_common::{Cause, Colour};

#[cfg(any(feature = "serve", test))]
use super::request::SwitchRequest;
use crate::live::{Reading, colour_of};

/// The colour that is kept, if that is known.
pub(super) fn of(reading: &Reading) -> Option<Colour> {
    let before = before(reading);
    if reading.is_pending() || reading.is_guarded() {
        return before;
    }
    match reading.cause() {
        // It has not taken effect, or has, and was taken back.
        Cause::Cancelled | Cause::Expired | Cause::Tripped => before,
        // Those that may not make another colour live are refused.
        _ => colour_of(reading.word.target_share()).or(before),
    }
}

/// The colour that was kept when the last generation was made; if the data path has made it, to take a switch back, before that.
pub(super) fn before(reading: &Reading) -> Option<Colour> {
    match colour(reading.timing.kept[0]) {
        Some(noted) => noted,
        // An apply has made it, or an older program. Then the word has to do.
        None if reading.is_taken_back() => colour_of(reading.word.target_share()),
        None if reading.is_pending() && !reading.is_ramping() => colour_of(reading.timing.before.target_share()),
        None => colour_of(reading.stored.previous_share()),
    }
}

/// The colour that a rollback makes live. A schedule that was taken back before it took effect has changed nothing about it.
pub(super) fn behind(reading: &Reading) -> Option<Colour> {
    let noted = colour(reading.timing.kept[1]).filter(|_| reading.cause() == Cause::Cancelled);
    noted.unwrap_or_else(|| before(reading))
}

/// [`Timing::kept`](bg_common::Timing::kept) of a generation that follows this one. After a rollback, there is nothing to go back to.
pub(super) fn noted(reading: &Reading) -> [u8; 4] {
    let behind = behind(reading).filter(|_| !reading.is_rolled_back());
    [number(of(reading)), number(behind), 0, 0]
}

/// The same of one that takes this one back, which has not taken effect, or is on its way.
pub(super) fn noted_by_cancel(reading: &Reading, is_on_the_way: bool) -> [u8; 4] {
    [number(of(reading)), if is_on_the_way { 0 } else { reading.timing.kept[1] }, 0, 0]
}

fn number(colour: Option<Colour>) -> u8 {
    colour.map_or(3, |colour| colour as u8 + 1)
}

/// What such a number says, if it says anything.
fn colour(number: u8) -> Option<Option<Colour>> {
    match number {
        1 => Some(Some(Colour::Blue)),
        2 => Some(Some(Colour::Green)),
        3 => Some(None),
        _ => None,
    }
}

/// Whether a switch that replaces another one, which is not kept, would go back to that by itself.
#[cfg(any(feature = "serve", test))]
pub(crate) fn returns_to_unkept(request: &SwitchRequest, reading: &Reading) -> bool {
    let waits = reading.is_guarded() || reading.is_ramping();
    waits && request.is_timed() && request.to != of(reading).map(Colour::other)
}
