//! Changes that ask no gates: a split and a rollback.
//!
//! While a deployment has gates, a split does not make another colour live, not even in two steps, and a rollback only the one that was live
//! before. Going back must be as fast as the switch, so a rollback without a colour asks nothing and reads no disk.

use bg_common::{Cause, Colour, FULL_SHARE};

use super::{decision::Goal, request::SwitchRequest};
use crate::{Error, Instance, Refusal, kept_gates, live::Reading};

impl Instance {
    /// The same goal, but refused if it makes a colour live that the gates of the deployment have not judged.
    ///
    /// The gates are read before the switch lock is taken, and only if the request needs that at present. If the state has changed by the time of
    /// the lock, a link in the pins has to do, which says that there are gates of some deployment.
    pub(super) fn mind_gates(
        &self,
        name: &str,
        index: u16,
        request: &SwitchRequest,
        goal: impl Fn(&str, &Reading) -> Result<Goal, Refusal>,
    ) -> Result<impl Fn(&str, &Reading) -> Result<Goal, Refusal>, Error> {
        let skips = request.skip_gates;
        let present = self.words.reading(index, 0);
        let must_ask = match goal(name, &present) {
            _ if skips => false,
            Ok(goal) if goal.cause == Cause::Switch => false,
            Ok(goal) if passes_by(name, &goal, &present) => !self.gates(name)?.is_empty(),
            _ => kept_gates::are_there(&self.paths),
        };
        Ok(move |name: &str, reading: &Reading| {
            let goal = goal(name, reading)?;
            if must_ask && passes_by(name, &goal, reading) {
                let to = if goal.share > FULL_SHARE / 2 { Colour::Green } else { Colour::Blue };
                let command = if goal.cause == Cause::Split { "split" } else { "rollback" };
                return Err(Refusal::GatesNotAsked { deployment: name.to_owned(), command, to: to.name() });
            }
            Ok(goal)
        })
    }
}

/// Whether a change makes a colour live that it would need the gates for.
fn passes_by(name: &str, goal: &Goal, reading: &Reading) -> bool {
    let changes = goal.share != reading.word.target_share() || reading.is_pending();
    let Some(to) = colour_of(goal.share).filter(|to| changes && *to != kept(reading)) else { return false };
    match goal.cause {
        Cause::Split => true,
        Cause::Rollback => {
            // What was taken back is not what was live before: the gates may have failed.
            let back = Goal::of_rollback(name, &SwitchRequest::default(), reading);
            back.ok().and_then(|back| colour_of(back.share)) != Some(to)
        }
        _ => false,
    }
}

/// The live colour, without a switch that has not taken effect or waits for its confirmation.
fn kept(reading: &Reading) -> Colour {
    let word = reading.word;
    let before =
        if reading.is_ramping() { reading.stored.previous_share() } else { reading.timing.before.target_share() };
    if reading.is_pending() {
        return if before > FULL_SHARE / 2 { Colour::Green } else { Colour::Blue };
    }
    if reading.is_guarded() { word.previous() } else { colour_of(word.target_share()).unwrap_or(word.previous()) }
}

/// The colour that gets most new flows; none if both get the same.
fn colour_of(share: u16) -> Option<Colour> {
    match share.cmp(&(FULL_SHARE / 2)) {
        std::cmp::Ordering::Less => Some(Colour::Blue),
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Greater => Some(Colour::Green),
    }
}
