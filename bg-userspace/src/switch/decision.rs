//! What a request comes to: whether its preconditions hold, and the next word. Nothing is changed here.

use std::time::Duration;

use bg_common::{Cause, Colour, DeploymentRow, FULL_SHARE, LiveFlags, LiveWord, SwitchTerms};
use bg_ebpf::policy::switch::{Order, drain_deadline, next};

use super::request::{SplitRequest, SwitchRequest};
use crate::{
    Error, Instance, Refusal,
    attach::is_attached,
    config::{DivideBy, OnSwitch},
    kept::Last,
    live::Reading,
    maps::clock,
    running::text,
    time::tick,
};

/// The kinds of change that can be asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// The colour that the request names becomes live, by default the idle one.
    Switch,
    /// What was before the last change, or the colour that the request names.
    Rollback,
    /// A share of new flows goes to green.
    Split {
        /// In basis points.
        green: u16,
        /// What the share divides; `None` is as before, or as configured.
        by: Option<DivideBy>,
    },
}

impl Kind {
    /// What such a change leads to.
    pub(super) fn goal(self, name: &str, request: &SwitchRequest, reading: &Reading) -> Result<Goal, Refusal> {
        match self {
            Self::Switch => Ok(Goal::of_switch(request, reading)),
            Self::Rollback => Goal::of_rollback(name, request, reading),
            Self::Split { green, by } => Ok(Goal { share: green, cause: Cause::Split, divide_by: by, revert_by: None }),
        }
    }
}

/// The goal of a change, by what is in force.
pub(super) fn goal_of(kind: Kind, request: &SwitchRequest) -> impl Fn(&str, &Reading) -> Result<Goal, Refusal> {
    move |name, reading| kind.goal(name, request, reading)
}

impl SplitRequest {
    pub(crate) fn kind(&self) -> Kind {
        Kind::Split { green: self.share(), by: self.by }
    }
}

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
        let goal = |share| Goal { share, cause: Cause::Rollback, divide_by: None, revert_by: None };
        if let Some(colour) = request.to {
            return Ok(goal(colour.full_share()));
        }
        let (kept, word) = (reading.kept(), reading.word);
        let previous = reading.stored.previous_share();
        // Nobody goes back to what was not kept.
        let before = if kept.is_other(previous) { kept.colour.full_share() } else { previous };
        if request.restores {
            return Ok(goal(before));
        }
        let is_on_its_way = reading.is_ramping();
        // Where new flows go, or are about to.
        let aim = if is_on_its_way { reading.stored } else { word };
        if kept.is_other(aim.target_share()) {
            return Ok(goal(kept.colour.full_share()));
        }
        if reading.is_pending() && !is_on_its_way {
            return Ok(goal(word.target_share()));
        }
        let waits = is_on_its_way || reading.waits();
        let undoes = request.if_generation.is_some() && kept.is_other(previous);
        let is_whole = !waits && (kept.last == Last::Colour || undoes);
        let share = if is_whole { kept.colour.other().full_share() } else { before };
        let (deployment, live) = (name.to_owned(), kept.colour.name());
        if kept.last == Last::Back && !waits && request.if_generation.is_none() {
            let (previous, generation) = (kept.colour.other().name(), reading.generation);
            return Err(Refusal::RolledBackAlready { deployment, live, previous, generation });
        }
        if share == word.target_share() && !waits {
            return Err(Refusal::NothingToRollBackTo { deployment, live });
        }
        Ok(goal(share))
    }

    /// Whether one colour gets all new flows. A share that leaves new flows to both ends no flow of either.
    pub(super) fn is_whole(&self) -> bool {
        self.share == 0 || self.share == FULL_SHARE
    }

    /// Whether what is in force is what it asks for. A switch and a split also keep a colour that is in force without being kept, and a
    /// rollback also ends the wait for a confirmation.
    pub(super) fn is_reached(&self, reading: &Reading) -> bool {
        let (is_other, waits) = (reading.kept().is_other(self.share), reading.waits());
        let does_more = match self.cause {
            Cause::Switch | Cause::Split => is_other && !waits && !reading.is_pending(),
            Cause::Rollback => !is_other && waits,
            _ => false,
        };
        self.share == reading.word.target_share() && !does_more
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
    /// What a share divides then.
    pub(crate) divide_by: DivideBy,
    pub(crate) on_switch: OnSwitch,
    /// Whether anything would be changed, or the error.
    pub(crate) changes: Result<bool, Error>,
}

impl Outlook {
    /// The colour that would get no new flows any more, if the other one would get all of them. `None` also if nothing would be changed.
    pub(crate) fn left_colour(&self) -> Option<Colour> {
        let to = self.asked.live();
        let is_left = matches!(self.changes, Ok(true))
            && self.asked.target_share() == to.full_share()
            && self.from.word.target_share() != to.full_share();
        is_left.then_some(to.other())
    }
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
        if request.only_if_waiting && !from.waits_for_confirmation() {
            let (deployment, generation) = (name.to_owned(), from.generation);
            return Err(Refusal::NothingToConfirm { deployment, generation }.into());
        }
        if !request.revert_if.is_empty() {
            self.check_conditions(name, index)?;
        }
        let goal = goal(name, from)?;
        let is_there = goal.is_reached(reading) && !divides_otherwise(&row, &goal);
        if !is_there {
            if goes_back_to_unkept(request, [from, reading]) {
                return Err(Refusal::NotKeptYet { deployment: name.to_owned() }.into());
            }
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

    /// What a change would lead to now.
    pub(crate) fn outlook(
        &self,
        name: &str,
        index: u16,
        request: &SwitchRequest,
        kind: Kind,
    ) -> Result<Outlook, Error> {
        request.check()?;
        let row = self.words.deployments.read(index.into());
        let from = self.words.reading(index, tick(clock(&self.paths)?));
        let goal = self.mind_gates(name, index, request, goal_of(kind, request))?;
        // Also if it is refused.
        let usual = if matches!(kind, Kind::Rollback) { from.word.previous() } else { from.word.live().other() };
        let aimed = goal(name, &from);
        let share = aimed.as_ref().map_or_else(|_| request.to.unwrap_or(usual).full_share(), |goal| goal.share);
        let split_by = aimed.as_ref().map_or(row.split_by, |goal| split_by(&row, goal, &from));
        let by_client = DeploymentRow { split_by, ..row }.divides_clients();
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
            divide_by: if by_client { DivideBy::Client } else { DivideBy::Flow },
            on_switch: on_switch(&row, request),
            changes: Ok(false),
        };
        let next = self.decide(name, index, request, &goal, [&from, &from]).and_then(|decision| {
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

/// Whether a switch that the gates have judged would go back by itself to one that they have not, as it was seen first, or since.
pub(super) fn goes_back_to_unkept(request: &SwitchRequest, seen: [&Reading; 2]) -> bool {
    request.from_kept && seen.into_iter().any(|reading| returns_to_unkept(request, reading))
}

/// Whether a switch would go back by itself to one that is not kept, or leave new flows there until its time.
fn returns_to_unkept(request: &SwitchRequest, reading: &Reading) -> bool {
    let waits = reading.is_guarded() || reading.is_ramping();
    let goes_on = request.at.is_none() && request.to == Some(reading.kept().colour.other());
    waits && request.is_timed() && !goes_on
}

/// What happens to open flows: as the request says, or as configured.
fn on_switch(row: &DeploymentRow, request: &SwitchRequest) -> OnSwitch {
    let configured = if row.on_switch == 0 { OnSwitch::Drain } else { OnSwitch::Cut };
    request.on_switch.unwrap_or(configured)
}

/// [`DeploymentRow::split_by`] after a change.
pub(super) fn split_by(row: &DeploymentRow, goal: &Goal, reading: &Reading) -> u8 {
    let is_divided = !matches!(reading.word.target_share(), 0 | FULL_SHARE);
    match goal.divide_by {
        Some(DivideBy::Flow) => 1,
        Some(DivideBy::Client) => 2,
        // A share that changes divides the same as before. So does one that comes back, by a rollback or because a switch is taken back.
        None if is_divided || goal.cause == Cause::Rollback => row.split_by,
        None => 0,
    }
}

fn divides_otherwise(row: &DeploymentRow, goal: &Goal) -> bool {
    let is_other = |by| (by == DivideBy::Client) != row.divides_clients();
    !goal.is_whole() && goal.divide_by.is_some_and(is_other)
}
