//! Changes that ask no gates: a split and a rollback.
//!
//! While a deployment has gates, no split makes another colour live than the one that is [kept](super::kept), in however many steps, and a rollback
//! only the one that was kept before. Going back must be as fast as the switch, so a rollback without a colour asks nothing and reads no disk, unless
//! a split has taken new flows away from a switch that was still waiting: then what was before is that switch.

use bg_common::{Cause, Colour, FULL_SHARE};

use super::{decision::Goal, kept, request::SwitchRequest};
use crate::{
    Error, Instance, Refusal, kept_gates,
    live::{Reading, colour_of},
};

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
    let Some(to) = colour_of(goal.share).filter(|to| changes && kept::of(reading) != Some(*to)) else { return false };
    match goal.cause {
        Cause::Split => true,
        Cause::Rollback => !is_behind(name, to, reading),
        _ => false,
    }
}

/// Whether a rollback that names no colour makes this one live, and may. What was taken back already was not kept: its gates may have failed.
fn is_behind(name: &str, to: Colour, reading: &Reading) -> bool {
    let back = Goal::of_rollback(name, &SwitchRequest::default(), reading);
    if back.ok().and_then(|back| colour_of(back.share)) != Some(to) {
        return false;
    }
    // The data path would take back what still waits, to the same share.
    reading.is_pending() || reading.is_guarded() || kept::behind(reading) == Some(to)
}

#[cfg(test)]
#[path = "ungated_tests.rs"]
mod tests;
