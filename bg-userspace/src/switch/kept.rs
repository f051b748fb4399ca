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
    match reading.timing.kept[0] {
        1 => Some(Colour::Blue),
        2 => Some(Colour::Green),
        3 => None,
        // An apply has made it, or an older program. Then the word has to do.
        _ if reading.is_taken_back() => colour_of(reading.word.target_share()),
        _ if reading.is_pending() && !reading.is_ramping() => colour_of(reading.timing.before.target_share()),
        _ => colour_of(reading.stored.previous_share()),
    }
}

/// [`Timing::kept`](bg_common::Timing::kept).
pub(super) fn noted(kept: Option<Colour>) -> [u8; 4] {
    [kept.map_or(3, |colour| colour as u8 + 1), 0, 0, 0]
}

/// Whether a switch that replaces another one, which is not kept, would go back to that by itself.
#[cfg(any(feature = "serve", test))]
pub(crate) fn returns_to_unkept(request: &SwitchRequest, reading: &Reading) -> bool {
    let waits = reading.is_guarded() || reading.is_ramping();
    waits && request.is_timed() && request.to != of(reading).map(Colour::other)
}
