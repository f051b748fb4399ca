//! Changes that ask no gates: a split and a rollback.
//!
//! While a deployment has gates, no split makes another colour live than the one that is [kept](crate::kept), in however many steps, and a rollback that names a colour
//! only that one, or the one that was kept before. A rollback that names none goes nowhere else, so it asks nothing and reads no disk: going back must be as
//! fast as the switch.

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
        let present = self.words.reading(index, 0);
        let must_ask = match goal(name, &present) {
            _ if request.skip_gates => false,
            Ok(goal) if goal.cause == Cause::Switch => false,
            // It ends what waits, as the data path would, or goes back to what was kept.
            Ok(goal) if goal.cause == Cause::Rollback && request.to.is_none() && request.if_generation.is_none() => {
                false
            }
            Ok(goal) if passes_by(&goal, &present) => !self.gates(name)?.is_empty(),
            _ => kept_gates::are_there(&self.paths),
        };
        Ok(move |name: &str, reading: &Reading| {
            let goal = goal(name, reading)?;
            if must_ask && passes_by(&goal, reading) {
                let to = if goal.share > FULL_SHARE / 2 { Colour::Green } else { Colour::Blue };
                let command = if goal.cause == Cause::Split { "split" } else { "rollback" };
                return Err(Refusal::GatesNotAsked { deployment: name.to_owned(), command, to: to.name() });
            }
            Ok(goal)
        })
    }
}

/// Whether a change makes a colour live that it would need the gates for.
fn passes_by(goal: &Goal, reading: &Reading) -> bool {
    let kept = reading.kept();
    // A share that is in force already changes nothing, unless nothing waits there: then a split would keep it.
    let changes = goal.share != reading.word.target_share() || !reading.waits();
    let was_kept = goal.cause == Cause::Rollback && kept.other_was;
    goal.cause != Cause::Switch && changes && kept.is_other(goal.share) && !was_kept
}

#[cfg(test)]
#[path = "kept_tests.rs"]
mod tests;
