//! What a switch does to open flows.

use std::ops::AddAssign;

use bg_common::{Flow, FlowState, LiveWord, Protocol, SwitchTerms};
use bg_ebpf::policy::lifetime::ended_by;
use serde::Serialize;

use crate::flows::Target;

/// What happens to open flows, or to their clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fates {
    /// The number of those that stay on their backends.
    pub stay: u64,
    /// The number of those that go on at a backend of the other colour.
    #[serde(rename = "move")]
    pub moved: u64,
    /// The number of those that end: TCP connections cannot go on elsewhere.
    pub reset: u64,
}

impl AddAssign for Fates {
    fn add_assign(&mut self, other: Self) {
        self.stay += other.stay;
        self.moved += other.moved;
        self.reset += other.reset;
    }
}

impl Fates {
    pub(crate) const STAY: Self = Self { stay: 1, moved: 0, reset: 0 };
    pub(crate) const MOVE: Self = Self { stay: 0, moved: 1, reset: 0 };
    pub(crate) const RESET: Self = Self { stay: 0, moved: 0, reset: 1 };

    /// The fate of one flow once `word` is in force.
    pub(crate) fn of(flow: &Flow, target: &Target, word: LiveWord, terms: &SwitchTerms, now: u32) -> Self {
        if !ended_by(flow, target.colour, word, terms, now) {
            return Self::STAY;
        }
        // A client that has got no answer yet sends its SYN again, and that goes to the other colour.
        let is_connection = flow.state.has_any(FlowState::CONFIRMED | FlowState::ANSWERED);
        if target.protocol == Protocol::Tcp && is_connection { Self::RESET } else { Self::MOVE }
    }

    /// The worst that happens to one of these flows.
    pub(crate) fn worst(self) -> Self {
        match self {
            Self { reset: 1.., .. } => Self::RESET,
            Self { moved: 1.., .. } => Self::MOVE,
            _ => Self::STAY,
        }
    }

    pub(crate) fn sum(self) -> u64 {
        self.stay + self.moved + self.reset
    }
}
