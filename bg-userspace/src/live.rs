//! Computing the next live word and its terms.

use bg_common::{Colour, DeploymentRow, LiveFlags, LiveWord, SwitchTerms};
use bg_ebpf::policy::lifetime::{after_drain, is_past};

use crate::{config::OnSwitch, history::Moment};

/// The request of a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// The colour that becomes live.
    pub(crate) to: Colour,
    /// What happens to open flows.
    pub(crate) on_switch: OnSwitch,
    /// Tick after which a drain ends the remaining flows; 0 is never.
    pub(crate) drain_deadline: u32,
    /// The present tick. It is needed only if [`needs_clock`].
    pub(crate) now: u32,
}

impl Order {
    /// A request to drain, which ends the remaining flows after `drain_timeout` ticks.
    pub(crate) fn drain(to: Colour, now: u32, drain_timeout: Option<u32>) -> Self {
        // Zero means never.
        let deadline = |ticks: u32| now.wrapping_add(ticks).max(1);
        Self { to, on_switch: OnSwitch::Drain, drain_deadline: drain_timeout.map_or(0, deadline), now }
    }

    /// A request to cut.
    pub(crate) fn cut(to: Colour, now: u32) -> Self {
        Self { to, on_switch: OnSwitch::Cut, drain_deadline: 0, now }
    }
}

/// The state of a deployment for the journal.
pub(crate) fn moment(word: LiveWord) -> Moment {
    Moment { generation: word.generation(), live: word.live() }
}

/// The value of [`DeploymentRow::rolled_back`] while the present generation is that of a rollback. It is never zero.
pub(crate) fn rollback_mark(generation: u32) -> u16 {
    generation as u16 | 0x8000
}

/// Whether the last change of the word was a rollback. Every switch sets or clears the mark before its exchange. A program that
/// does not know the mark leaves one of another generation.
pub(crate) fn is_rolled_back(row: &DeploymentRow, word: LiveWord) -> bool {
    row.rolled_back == rollback_mark(word.generation())
}

/// Whether [`next`] compares an earlier deadline with the present tick.
pub(crate) fn needs_clock(word: LiveWord, terms: &SwitchTerms) -> bool {
    word.flags().has(LiveFlags::DRAINING) && terms.drain_deadline != 0
}

/// The word and the terms of the next generation after `word`, which has the terms `terms`. `None` if there is no
/// next generation.
pub(crate) fn next(word: LiveWord, terms: &SwitchTerms, order: Order) -> Option<(LiveWord, SwitchTerms)> {
    let generation = word.generation().checked_add(1)?;
    let is_cut = word.flags().has(LiveFlags::CUT);
    let mut ended_before = if needs_clock(word, terms) && is_past(terms.drain_deadline, order.now) {
        // The flows that the drain has ended stay ended, although their colour may be live again.
        after_drain(word, terms).1
    } else if is_cut {
        terms.ended_before
    } else {
        [0; 2]
    };
    let mut flags = LiveFlags::NONE;
    match order.on_switch {
        OnSwitch::Cut => ended_before[order.to.other() as usize] = generation,
        OnSwitch::Drain => flags = flags.with(LiveFlags::DRAINING),
    }
    if ended_before != [0; 2] {
        flags = flags.with(LiveFlags::CUT);
    }
    let word = LiveWord::new(generation, flags, word.target_share(), order.to.full_share());
    // Zero stands for unknown.
    let drain_began = if order.on_switch == OnSwitch::Drain { order.now.max(1) } else { 0 };
    Some((word, SwitchTerms { ended_before, drain_deadline: order.drain_deadline, drain_began }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLUE: usize = Colour::Blue as usize;
    const GREEN: usize = Colour::Green as usize;

    fn first() -> (LiveWord, SwitchTerms) {
        (LiveWord::new(1, LiveFlags::NONE, 0, 0), SwitchTerms::default())
    }

    fn switch((word, terms): (LiveWord, SwitchTerms), to: Colour, on_switch: OnSwitch) -> (LiveWord, SwitchTerms) {
        let order = match on_switch {
            OnSwitch::Drain => Order::drain(to, 0, None),
            OnSwitch::Cut => Order::cut(to, 0),
        };
        next(word, &terms, order).unwrap()
    }

    #[test]
    fn a_drain_leaves_open_flows_alone() {
        let (word, terms) = switch(first(), Colour::Green, OnSwitch::Drain);
        assert_eq!((word.generation(), word.live(), word.previous()), (2, Colour::Green, Colour::Blue));
        assert_eq!(word.flags(), LiveFlags::DRAINING);
        assert_eq!(terms, SwitchTerms { drain_began: 1, ..SwitchTerms::default() });
    }

    #[test]
    fn a_cut_ends_the_flows_of_the_old_colour_only() {
        let (word, terms) = switch(first(), Colour::Green, OnSwitch::Cut);
        assert_eq!(word.flags(), LiveFlags::CUT);
        assert_eq!((terms.ended_before[BLUE], terms.ended_before[GREEN]), (2, 0));
    }

    #[test]
    fn a_cut_is_remembered_through_later_drains() {
        let cut = switch(first(), Colour::Green, OnSwitch::Cut);
        let (word, terms) = switch(cut, Colour::Blue, OnSwitch::Drain);
        assert!(word.flags().has(LiveFlags::CUT) && word.flags().has(LiveFlags::DRAINING));
        assert_eq!(terms.ended_before[BLUE], 2, "a flow of generation 1 does not come back");
        assert_eq!(terms.ended_before[GREEN], 0, "those of generation 2 drain");
    }

    #[test]
    fn what_a_deadline_has_ended_stays_ended() {
        let (word, terms) = first();
        let (word, terms) = next(word, &terms, Order::drain(Colour::Green, 50, Some(50))).unwrap();
        assert_eq!((terms.drain_began, terms.drain_deadline), (50, 100));
        let back = Order::drain(Colour::Blue, 99, None);
        assert_eq!(next(word, &terms, back).unwrap().1.ended_before, [0, 0]);
        let back = Order { now: 100, ..back };
        assert_eq!(next(word, &terms, back).unwrap().1.ended_before[BLUE], 2);
    }

    #[test]
    fn a_deadline_is_never_the_tick_that_means_never() {
        let deadline = |now, timeout| Order::drain(Colour::Green, now, timeout).drain_deadline;
        assert_eq!((deadline(5, None), deadline(5, Some(3000)), deadline(u32::MAX - 999, Some(1000))), (0, 3005, 1));
    }

    #[test]
    fn generations_do_not_wrap() {
        let order = Order::drain(Colour::Green, 0, None);
        assert_eq!(next(LiveWord::new(u32::MAX, LiveFlags::NONE, 0, 0), &SwitchTerms::default(), order), None);
    }

    proptest! {
        #[test]
        fn no_history_brings_an_ended_flow_back(
            steps in prop::collection::vec((any::<bool>(), any::<bool>()), 1..40),
        ) {
            let mut state = first();
            // Generation in which the flows of each colour that are open now were opened at the earliest.
            let mut floor = [0, 0];
            for (cut, drained) in steps {
                let to = state.0.live().other();
                state = switch(state, to, if cut { OnSwitch::Cut } else { OnSwitch::Drain });
                if cut {
                    floor[to.other() as usize] = state.0.generation();
                }
                prop_assert_eq!(state.1.ended_before, floor);
                prop_assert_eq!(state.0.flags().has(LiveFlags::CUT), floor != [0, 0]);
                prop_assert_eq!(state.0.previous(), to.other());
                if drained && !cut {
                    let (word, ended_before) = after_drain(state.0, &state.1);
                    state = (word, SwitchTerms { ended_before, ..state.1 });
                    floor[to.other() as usize] = word.generation();
                }
            }
        }
    }
}
