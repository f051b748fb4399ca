//! The colour that is kept, and what a rollback leads to.
//!
//! One colour is kept: a change has given it more than half of new flows, has taken effect and waits for nothing, and nothing has taken it back. The word alone does
//! not tell which one that is: its share may be one half, or that of a ramp that was stopped, or of a switch that nobody has confirmed. So each generation notes
//! what was kept when it was made ([`Timing::kept`](bg_common::Timing::kept)), in the kernel's memory and together with the word. [`Reading::kept`] derives from it, and
//! from what has become of the generation, what is kept now, and all others ask that.

use bg_common::{Cause, ClockId, Colour, LiveWord, Timing};

use crate::{
    history::Moment,
    live::{Reading, colour_of},
};

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) colour: Colour,
    /// Whether the other colour was kept before, and nothing has gone back from it since.
    pub(crate) other_was: bool,
    pub(crate) last: Last,
}

/// What the last change was, not counting those that were cancelled before they took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    /// It left the colour that is kept, and set a share at most.
    Share = 1,
    /// It has made the colour kept that is.
    Colour = 2,
    /// It went back, or away from what was not kept. Another one in the same incident must not undo it.
    Back = 3,
}

impl Kept {
    /// Whether more than half of new flows go to the colour that is not kept.
    pub(crate) fn is_other(self, share: u16) -> bool {
        colour_of(share) == Some(self.colour.other())
    }

    /// After a schedule or a ramp is cancelled. If that has moved the share before, it was a change.
    pub(crate) fn cancelled(self, has_moved: bool, by: Cause) -> Self {
        let last = match by {
            _ if has_moved => Last::Share,
            Cause::Rollback => Last::Back,
            _ => self.last,
        };
        Self { last, ..self }
    }

    /// [`Timing::kept`](bg_common::Timing::kept) of a generation that is made now.
    pub(crate) fn noted(self) -> [u8; 4] {
        [self.colour as u8 + 1, self.last as u8, self.other_was.into(), 0]
    }

    /// The same of a generation that changes nothing about it.
    pub(crate) fn that_holds(self) -> [u8; 4] {
        let [colour, last, other_was, _] = self.noted();
        [colour, last, other_was, 1]
    }

    fn read([colour, last, other_was, _]: [u8; 4]) -> Option<Self> {
        let colour = Colour::from_u8(colour.checked_sub(1).filter(|colour| *colour < 2)?);
        let last = match last {
            2 => Last::Colour,
            3 => Last::Back,
            _ => Last::Share,
        };
        Some(Self { colour, other_was: other_was != 0, last })
    }
}

impl Reading {
    /// What is kept now.
    pub(crate) fn kept(&self) -> Kept {
        let before = self.kept_before();
        if self.timing.kept[3] != 0 {
            return before;
        }
        let back = Kept { last: Last::Back, ..before };
        let gone_back = Kept { other_was: false, ..back };
        if self.is_pending() {
            // It has changed nothing yet, but who ends a ramp to the other colour goes back from that.
            return if self.is_ramping() && before.is_other(self.stored.target_share()) { gone_back } else { before };
        }
        let (left, is_new) = (self.word.previous_share(), before.is_other(self.word.target_share()));
        match self.cause() {
            // It notes what is kept after it.
            Cause::Cancelled => before,
            Cause::Expired | Cause::Tripped if before.is_other(left) => gone_back,
            Cause::Expired | Cause::Tripped => back,
            // Nobody has to confirm what conditions alone would take back.
            _ if is_new && self.waits() => gone_back,
            Cause::Rollback if is_new => Kept { colour: before.colour.other(), ..gone_back },
            _ if is_new => Kept { colour: before.colour.other(), other_was: true, last: Last::Colour },
            cause if cause == Cause::Rollback || before.is_other(left) => back,
            _ => Kept { last: Last::Share, ..before },
        }
    }

    /// What was kept when the last generation was made. If the data path has made it, to take a switch back: when that was made.
    pub(crate) fn kept_before(&self) -> Kept {
        Kept::read(self.timing.kept).unwrap_or_else(|| {
            // An apply has made it, or a program that notes nothing. Then the word has to do, and a share of one half counts as blue, as in the word.
            let is_cancelled = self.cause() == Cause::Cancelled;
            let stays = self.is_taken_back() || (is_cancelled && self.timing.before == LiveWord::default());
            let share = if stays { self.word.target_share() } else { self.stored.previous_share() };
            Kept { colour: colour_of(share).unwrap_or(Colour::Blue), other_was: is_cancelled, last: Last::Share }
        })
    }

    /// The state that outlives a reboot.
    pub(crate) fn lasting(&self) -> Moment {
        Moment { live: self.kept().colour, ..self.moment() }
    }

    /// Whether what is in force is taken back unless somebody confirms it.
    pub(crate) fn waits(&self) -> bool {
        !self.is_pending() && self.confirm_by().is_some()
    }

    /// Whether a reboot makes the other colour live. That colour is kept then, also if both get the same share.
    pub(crate) fn is_unconfirmed(&self) -> bool {
        self.kept().colour != self.word.live()
    }

    /// The state that outlives a reboot once the last generation has taken effect, and when that is. `None` if it has, or if it will need a
    /// confirmation.
    pub(crate) fn scheduled(&self) -> Option<(Moment, u64, ClockId)> {
        let Timing { activate_at, ramp, window, clock, .. } = self.timing;
        let then = Moment { live: self.stored.live(), ..self.moment() };
        (self.is_pending() && window == 0).then_some((then, activate_at + ramp, ClockId::from_u8(clock)))
    }

    /// Whether a rollback that names no colour leaves [what lasts](Self::lasting) as it is, although there was a change.
    pub(crate) fn is_rolled_back(&self) -> bool {
        let kept = self.kept();
        self.generation > 1 && (kept.last == Last::Back || !kept.other_was)
    }
}
