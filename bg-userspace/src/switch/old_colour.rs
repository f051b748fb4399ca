//! Whether the colour that a switch would go back to fails the same test. Its flows are in the flow table: what became of those that were open in
//! the last seconds is all that can be known of it, since conditions count from the switch on.

use std::{ops::AddAssign, time::Duration};

use bg_common::{Colour, Flow, FlowKey4, FlowKey6, FlowState, Protocol};
use bg_ebpf::{flow::row::idle, policy::trips::is_over};

use super::{
    SwitchRequest,
    decision::{Goal, Kind, goal_of},
};
use crate::{
    Error, Instance, Refusal,
    condition::Condition,
    flow_table::{FlowKey, FlowTable},
    flows::Scan,
    live::Reading,
    maps::{backends, flows4, flows6},
};

/// How long ago a flow may have had its last packet to count.
const RECENT: Duration = Duration::from_secs(10);

/// Flows of the old colour that had a packet a short time ago.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Recent {
    all: u64,
    reset: u64,
    /// With an answer, or for a second without.
    judged: u64,
    missing: u64,
    /// Without an answer, and with one, within the time of a silence.
    unheard: u64,
    heard: u64,
}

impl AddAssign for Recent {
    fn add_assign(&mut self, other: Self) {
        self.all += other.all;
        self.reset += other.reset;
        self.judged += other.judged;
        self.missing += other.missing;
        self.unheard += other.unheard;
        self.heard += other.heard;
    }
}

/// Times in ticks.
#[derive(Clone, Copy, Debug)]
struct Ticks {
    now: u32,
    recent: u32,
    second: u32,
    silence: u32,
}

impl Recent {
    fn of(flow: &Flow, protocol: Protocol, ticks: Ticks) -> Self {
        let idle = idle(flow.last_seen, ticks.now);
        // A connection that was picked up in mid-stream says nothing of new ones.
        if idle > ticks.recent || flow.state.has(FlowState::IDLE_ONLY) || (protocol == Protocol::Tcp && flow.note == 0)
        {
            return Self::default();
        }
        let is_answered = flow.state.has(FlowState::ANSWERED);
        // The client of a connection has confirmed it before anything else can be answered.
        let is_reset = flow.state.has(FlowState::BACKEND_RESET) && !flow.state.has(FlowState::CONFIRMED);
        let (is_late, is_silence) = (idle > ticks.second, idle <= ticks.silence);
        let one = u64::from;
        Self {
            all: 1,
            reset: one(is_reset),
            judged: one(is_answered || is_late),
            missing: one(!is_answered && is_late),
            unheard: one(!is_answered && is_silence),
            heard: one(is_answered && is_silence),
        }
    }

    fn fails(&self, condition: Condition) -> bool {
        match condition {
            Condition::Resets(share) => is_over(share.into(), self.reset, self.all),
            Condition::Unanswered(share) => is_over(share.into(), self.missing, self.judged),
            Condition::Silence(_) => self.unheard >= bg_common::Trips::LEAST_UNHEARD && self.heard == 0,
        }
    }
}

impl Instance {
    /// Takes the conditions out of a request that the old colour meets itself. Returns them.
    pub(super) fn disarm(
        &self,
        name: &str,
        index: u16,
        request: &mut SwitchRequest,
        goal: &impl Fn(&str, &Reading) -> Result<Goal, Refusal>,
    ) -> Result<Vec<Condition>, Error> {
        if request.revert_if.is_empty() {
            return Ok(Vec::new());
        }
        let Ok(goal) = goal(name, &self.words.reading(index, 0)) else { return Ok(Vec::new()) };
        let old = if goal.share == 0 { Colour::Green } else { Colour::Blue };
        let silence = request.revert_if.iter().find_map(|condition| match condition {
            Condition::Silence(time) => Some(*time),
            _ => None,
        });
        let recent = self.recent(index, old, silence.unwrap_or_default())?;
        let (failing, armed) = request.revert_if.iter().partition(|condition| recent.fails(**condition));
        request.revert_if = armed;
        Ok(failing)
    }

    /// The same for a change that is not made.
    pub(crate) fn not_armed(
        &self,
        name: &str,
        index: u16,
        request: &mut SwitchRequest,
        kind: Kind,
    ) -> Result<Vec<Condition>, Error> {
        let asked = request.clone();
        self.disarm(name, index, request, &goal_of(kind, &asked))
    }

    fn recent(&self, deployment: u16, old: Colour, silence: Duration) -> Result<Recent, Error> {
        let scan = Scan::new(self, &backends(&self.paths)?)?;
        let [recent, second, silence] =
            [RECENT, Duration::from_secs(1), silence].map(|time| self.tick_length.ticks(time));
        let sum = Sum { deployment, old, scan: &scan, ticks: Ticks { now: scan.now, recent, second, silence } };
        let mut recent = Recent::default();
        if scan.has_flows4() {
            recent += sum.of(&FlowTable::<FlowKey4>::new(flows4(&self.paths)?.all()));
        }
        if scan.has_flows6() {
            recent += sum.of(&FlowTable::<FlowKey6>::new(flows6(&self.paths)?.all()));
        }
        Ok(recent)
    }
}

struct Sum<'a> {
    deployment: u16,
    old: Colour,
    scan: &'a Scan,
    ticks: Ticks,
}

impl Sum<'_> {
    fn of<K: FlowKey + Sync>(&self, table: &FlowTable<'_, K>) -> Recent {
        let threads = table.fold(Recent::default, |sum, entry| {
            let Some(entry) = entry else { return };
            let Some(target) = self.scan.target(entry.flow.backend.slot()) else { return };
            if target.deployment == self.deployment && target.colour == self.old && target.is_of(&entry.flow) {
                *sum += Recent::of(&entry.flow, target.protocol, self.ticks);
            }
        });
        threads.into_iter().fold(Recent::default(), |mut sum, recent| {
            sum += recent;
            sum
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICKS: Ticks = Ticks { now: 1000, recent: 160, second: 16, silence: 32 };

    fn recent(flows: &[(u32, u32, u32)]) -> Recent {
        let mut sum = Recent::default();
        for (count, state, ago) in flows {
            let flow = Flow { state: FlowState(*state), note: 7, last_seen: 1000 - ago, ..Flow::default() };
            (0..*count).for_each(|_| sum += Recent::of(&flow, Protocol::Tcp, TICKS));
        }
        sum
    }

    fn fails(condition: &str, flows: &[(u32, u32, u32)]) -> bool {
        recent(flows).fails(condition.parse().unwrap())
    }

    #[test]
    fn a_colour_fails_by_its_own_flows() {
        const OPEN: u32 = FlowState::ANSWERED | FlowState::CONFIRMED;
        const REFUSED: u32 = FlowState::ANSWERED | FlowState::BACKEND_RESET;
        let resets = "resets > 5% of 20";
        assert!(fails(resets, &[(18, OPEN, 3), (2, REFUSED, 3)]));
        assert!(!fails(resets, &[(19, OPEN, 3), (1, REFUSED, 3)]), "not more than 5 %");
        assert!(!fails(resets, &[(17, OPEN, 3), (2, REFUSED, 3)]), "too few to judge");
        assert!(!fails(resets, &[(18, OPEN, 3), (2, OPEN | REFUSED, 3)]), "reset later");
        assert!(!fails(resets, &[(18, OPEN, 3), (20, REFUSED, 161)]), "long ago");
        assert!(!fails(resets, &[(18, OPEN, 3), (20, REFUSED | FlowState::IDLE_ONLY, 3)]), "testers");
        let unanswered = "unanswered > 5% of 20";
        assert!(fails(unanswered, &[(18, OPEN, 3), (2, 0, 17)]));
        assert!(!fails(unanswered, &[(18, OPEN, 3), (20, 0, 16)]), "they may be answered yet");
        assert!(fails("silence 2s", &[(3, 0, 1), (5, OPEN, 33)]));
        assert!(!fails("silence 2s", &[(9, 0, 1), (1, OPEN, 32)]));
        assert!(!fails("silence 2s", &[(2, 0, 1)]));
    }

    #[test]
    fn connections_that_were_picked_up_do_not_count() {
        let flow = Flow { state: FlowState(0), note: 0, last_seen: 1000, ..Flow::default() };
        assert_eq!(Recent::of(&flow, Protocol::Tcp, TICKS), Recent::default());
        assert_eq!(Recent::of(&flow, Protocol::Udp, TICKS).all, 1);
    }
}
