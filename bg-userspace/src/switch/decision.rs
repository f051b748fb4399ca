//! What a request comes to: whether its preconditions hold, and the next word. Nothing is changed here.

use std::time::Duration;

use bg_common::{Cause, DeploymentRow, FULL_SHARE, LiveFlags, LiveWord, SwitchTerms};
use bg_ebpf::policy::switch::{Order, drain_deadline, next};

use super::request::SwitchRequest;
use crate::{
    Error, Instance, Refusal,
    attach::is_attached,
    config::{DivideBy, OnSwitch},
    live::Reading,
    maps::clock,
    running::text,
    time::tick,
};

/// What a change is to lead to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goal {
    /// The share of new flows that goes to green, in basis points.
    pub(super) share: u16,
    /// What makes the generation.
    pub(super) cause: Cause,
    /// What the share divides, if that is to change.
    pub(super) divide_by: Option<DivideBy>,
    /// When the switch is taken back at the latest, however late it is made, in nanoseconds of `CLOCK_BOOTTIME`.
    pub(super) revert_by: Option<u64>,
}

impl Goal {
    /// The goal of a switch.
    pub(super) fn of_switch(request: &SwitchRequest, reading: &Reading) -> Self {
        let to = request.to.unwrap_or(reading.word.live().other());
        Self { share: to.full_share(), cause: Cause::Switch, divide_by: None, revert_by: None }
    }

    /// The goal of a rollback.
    pub(super) fn of_rollback(name: &str, request: &SwitchRequest, reading: &Reading) -> Result<Self, Refusal> {
        let word = reading.word;
        let (deployment, live) = (name.to_owned(), word.live());
        let goal = |share| Self { share, cause: Cause::Rollback, divide_by: None, revert_by: None };
        if let Some(colour) = request.to {
            return Ok(goal(colour.full_share()));
        }
        if reading.is_pending() {
            return Ok(goal(reading.timing.before.target_share()));
        }
        let back = if word.previous() == live { word.previous_share() } else { word.previous().full_share() };
        if back == word.target_share() {
            return Err(Refusal::NothingToRollBackTo { deployment, live: live.name() });
        }
        if reading.is_rolled_back() && request.if_generation.is_none() {
            let (live, previous) = (live.name(), word.previous().name());
            return Err(Refusal::RolledBackAlready { deployment, live, previous, generation: word.generation() });
        }
        Ok(goal(back))
    }

    /// Whether one colour gets all new flows. A share that leaves new flows to both ends no flow of either.
    pub(super) fn is_whole(&self) -> bool {
        self.share == 0 || self.share == FULL_SHARE
    }
}

/// What a request comes to, if nothing is in its way.
pub(super) struct Decision {
    pub(super) row: DeploymentRow,
    pub(super) goal: Goal,
    pub(super) on_switch: OnSwitch,
    /// Whether what is in force is what the request asks for.
    pub(super) is_there: bool,
}

/// The next generation.
pub(super) struct Next {
    pub(super) word: LiveWord,
    pub(super) terms: SwitchTerms,
    /// In ticks; zero is without end.
    pub(super) drain_timeout: u32,
}

/// What a request would lead to now.
pub(crate) struct Outlook {
    pub(crate) row: DeploymentRow,
    /// What is in force.
    pub(crate) from: Reading,
    /// The word and its terms once the change has taken effect; those in force if nothing would be changed.
    pub(crate) then: (LiveWord, SwitchTerms),
    /// The word that the request asks for.
    pub(crate) asked: LiveWord,
    pub(crate) on_switch: OnSwitch,
    /// Whether anything would be changed, or the error.
    pub(crate) changes: Result<bool, Error>,
}

impl Instance {
    /// Refuses a request whose preconditions do not hold. The generation that it expects, and what it asks for, are judged by the first reading, and what
    /// it has to change by the second.
    pub(super) fn decide(
        &self,
        name: &str,
        index: u16,
        request: &SwitchRequest,
        goal: impl Fn(&str, &Reading) -> Result<Goal, Refusal>,
        [from, reading]: [&Reading; 2],
    ) -> Result<Decision, Error> {
        let row = self.words.deployments.read(index.into());
        if row.in_use == 0 || text(&row.name) != name || reading.generation == 0 {
            return Err(Refusal::NotRunning { deployment: name.to_owned() }.into());
        }
        if let Some(expected) = request.if_generation.filter(|expected| *expected != from.generation) {
            let (deployment, got) = (name.to_owned(), from.generation);
            return Err(Refusal::OtherGeneration { deployment, expected, got }.into());
        }
        let goal = goal(name, from)?;
        let is_there = reading.word.target_share() == goal.share && !divides_otherwise(&row, &goal);
        if !is_there {
            if !request.force && !is_attached(&self.paths)? {
                return Err(Refusal::NoInterface.into());
            }
            self.check_colours(name, &self.services_of(index)?, goal.share)?;
        }
        Ok(Decision { row, goal, on_switch: on_switch(&row, request), is_there })
    }

    /// The generation after `word`, which has these terms.
    pub(super) fn next(
        &self,
        name: &str,
        row: &DeploymentRow,
        (word, terms): (LiveWord, &SwitchTerms),
        goal: &Goal,
        on_switch: OnSwitch,
    ) -> Result<Next, Error> {
        let is_cut = on_switch == OnSwitch::Cut;
        let needs_clock = !is_cut || (word.flags().has(LiveFlags::DRAINING) && terms.drain_deadline != 0);
        let tick = if needs_clock { tick(clock(&self.paths)?) } else { 0 };
        let timeout = (row.drain_timeout_ms != 0 && !is_cut && goal.is_whole())
            .then(|| self.tick_length.ticks(Duration::from_millis(row.drain_timeout_ms)));
        let drain_timeout = timeout.unwrap_or(0);
        let order = Order { share: goal.share, is_cut, drain_deadline: drain_deadline(tick, drain_timeout), now: tick };
        let Some((word, terms)) = next(word, terms, order) else {
            return Err(Refusal::GenerationsExhausted { deployment: name.to_owned() }.into());
        };
        Ok(Next { word, terms, drain_timeout })
    }

    /// What a switch would lead to now, or a rollback.
    pub(crate) fn outlook(
        &self,
        name: &str,
        index: u16,
        request: &SwitchRequest,
        is_rollback: bool,
    ) -> Result<Outlook, Error> {
        request.check()?;
        let row = self.words.deployments.read(index.into());
        let from = self.words.reading(index, tick(clock(&self.paths)?));
        let goal = |name: &str, reading: &Reading| match is_rollback {
            true => Goal::of_rollback(name, request, reading),
            false => Ok(Goal::of_switch(request, reading)),
        };
        // Also if it is refused.
        let usual = if is_rollback { from.word.previous() } else { from.word.live().other() };
        let share = goal(name, &from).map_or_else(|_| request.to.unwrap_or(usual).full_share(), |goal| goal.share);
        // A change that has not taken effect is cancelled first, which is a generation too.
        let present = from.shown();
        let cancelled = u32::from(from.is_pending());
        let numbered = |word: LiveWord, more: u32| {
            let generation = word.generation().saturating_add(more);
            LiveWord::new(generation, word.flags(), word.previous_share(), word.target_share())
        };
        let base = numbered(present, cancelled);
        let base = base.with_flags(base.flags().without(LiveFlags::TIMED));
        let mut outlook = Outlook {
            row,
            from,
            then: (from.word, from.terms),
            asked: numbered(present, u32::from(share != present.target_share())).with_target_share(share),
            on_switch: on_switch(&row, request),
            changes: Ok(false),
        };
        let next = self.decide(name, index, request, goal, [&from, &from]).and_then(|decision| {
            let next = || self.next(name, &row, (base, &from.terms), &decision.goal, decision.on_switch);
            (!decision.is_there).then(next).transpose()
        });
        match next {
            Ok(Some(next)) => {
                (outlook.asked, outlook.then) = (next.word, (next.word, next.terms));
                outlook.changes = Ok(true);
            }
            Ok(None) => {
                outlook.asked = base;
                outlook.changes = Ok(from.is_pending());
            }
            Err(error) => outlook.changes = Err(error),
        }
        Ok(outlook)
    }
}

/// What happens to open flows: as the request says, or as configured.
fn on_switch(row: &DeploymentRow, request: &SwitchRequest) -> OnSwitch {
    let configured = if row.on_switch == 0 { OnSwitch::Drain } else { OnSwitch::Cut };
    request.on_switch.unwrap_or(configured)
}

fn divides_otherwise(row: &DeploymentRow, goal: &Goal) -> bool {
    let by = goal.divide_by.map(|by| by == DivideBy::Client);
    !goal.is_whole() && by.unwrap_or(row.sticky == 1) != row.divides_clients()
}
