//! What can be asked of a switch, and what it answers.

use std::time::{Duration, Instant};

use bg_common::{Colour, FULL_SHARE};
use serde::{Serialize, Serializer};

use crate::{
    Error,
    condition::Condition,
    config::{DivideBy, OnSwitch},
    history::{Moment, Receipt},
};

/// The options of a switch. The default makes the idle colour live at once, as configured for the deployment.
#[derive(Clone, Debug, Default)]
pub struct SwitchRequest {
    /// The colour to make live; `None` is the idle one.
    pub to: Option<Colour>,
    /// What happens to open flows; `None` is as configured.
    pub on_switch: Option<OnSwitch>,
    /// Refuse if the deployment is at another generation.
    pub if_generation: Option<u32>,
    /// Switch even if no interface is attached.
    pub force: bool,
    /// The reason, for the journal.
    pub reason: Option<String>,
    /// The time for a confirmation, from the moment when the switch takes effect. Without one the data path goes back to the share before, and ends or drains
    /// open flows as this switch did.
    pub confirm_within: Option<Duration>,
    /// The share moves from the old colour to the new one in this time. The switch takes effect at the end of it.
    pub ramp: Option<Duration>,
    /// Conditions that take the switch back, one of each kind. They are judged once the switch has taken effect, until it is confirmed.
    pub revert_if: Vec<Condition>,
    /// When it takes effect, or when the ramp begins; `None` is at once.
    pub at: Option<jiff::Timestamp>,
    /// Whether a rollback may make a colour live without the deployment's gates; see [`without_gates`](Self::without_gates).
    pub skip_gates: bool,
    /// Refuse if the present generation does not wait for a confirmation: who rolls a switch back because it has failed must not undo one that somebody
    /// has kept meanwhile.
    pub only_if_waiting: bool,
    /// Refuse to go back by itself to a switch that is not kept: if the gates have judged this switch, nobody would judge that one.
    pub from_kept: bool,
    /// A rollback ends a rehearsal: the share before it comes back, and what was kept before it is kept as if nothing had happened.
    pub restores: bool,
}

impl SwitchRequest {
    /// The least time for a confirmation: a packet that takes a switch back must not meet one that still decides by the word before it.
    pub const LEAST_WINDOW: Duration = Duration::from_millis(10);
    /// The most for all durations.
    pub const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

    /// The same, with a reason that tells the history that nobody has asked the gates.
    pub fn without_gates(self) -> Self {
        Self { reason: Some(skipped(self.reason)), skip_gates: true, ..self }
    }

    /// Whether the switch is taken back, or takes effect, by itself.
    pub(crate) fn is_timed(&self) -> bool {
        let Self { confirm_within, ramp, revert_if, at, .. } = self;
        confirm_within.is_some() || ramp.is_some() || !revert_if.is_empty() || at.is_some()
    }

    /// Refuses times that make no sense.
    pub(super) fn check(&self) -> Result<(), Error> {
        let shown = |time: Duration| humantime::format_duration(time).to_string();
        let within = |option, time: Option<Duration>, least: Duration| match time {
            Some(time) if time < least || time > Self::LONGEST => Err(Error::Unrepresentable {
                what: format!("--{option} takes {} to {}, not {}", shown(least), shown(Self::LONGEST), shown(time)),
            }),
            _ => Ok(()),
        };
        within("confirm-within", self.confirm_within, Self::LEAST_WINDOW)?;
        within("ramp", self.ramp, Duration::from_millis(1))?;
        for (nth, condition) in self.revert_if.iter().enumerate() {
            if let Condition::Silence(time) = condition {
                within("revert-if silence", Some(*time), Self::LEAST_WINDOW)?;
            }
            if let Some(other) = self.revert_if[..nth].iter().find(|other| other.kind() == condition.kind()) {
                let what = format!("--revert-if takes one condition of a kind, not \"{other}\" and \"{condition}\"");
                return Err(Error::Unrepresentable { what });
            }
        }
        let Some(at) = self.at else { return Ok(()) };
        let ahead = at.duration_since(jiff::Timestamp::now());
        if ahead.is_negative() || ahead.unsigned_abs() > Self::LONGEST {
            let what = format!("--at takes a time in the next {}, not {at}", shown(Self::LONGEST));
            return Err(Error::Unrepresentable { what });
        }
        Ok(())
    }

    /// Refuses what makes no sense for a switch in a frozen window, which takes effect while no flow is open, and is confirmed by the window.
    pub(crate) fn check_for_window(&self) -> Result<(), Error> {
        let options = [
            ("at", self.at.is_some()),
            ("ramp", self.ramp.is_some()),
            ("confirm-within", self.confirm_within.is_some()),
            ("revert-if", !self.revert_if.is_empty()),
        ];
        match options.iter().find(|(_, is_given)| *is_given) {
            Some((option, _)) => {
                Err(Error::Unrepresentable { what: format!("--freeze and --{option} exclude each other") })
            }
            None => Ok(()),
        }
    }
}

/// The options of a split.
#[derive(Clone, Debug, Default)]
pub struct SplitRequest {
    /// The share of new flows that goes to green, in basis points.
    pub green: u16,
    /// What the share divides; `None` is as before if new flows are divided already, else as configured.
    pub by: Option<DivideBy>,
    /// As in [`SwitchRequest`].
    pub if_generation: Option<u32>,
    /// As in [`SwitchRequest`].
    pub force: bool,
    /// As in [`SwitchRequest`].
    pub reason: Option<String>,
    /// Whether another colour may become live without the deployment's gates; see [`without_gates`](Self::without_gates).
    pub skip_gates: bool,
}

/// The reason of a change that asks no gates.
fn skipped(reason: Option<String>) -> String {
    const SKIPPED: &str = "gates skipped";
    reason.map_or_else(|| SKIPPED.to_owned(), |reason| format!("{reason} ({SKIPPED})"))
}

impl SplitRequest {
    /// See [`SwitchRequest::without_gates`].
    pub fn without_gates(self) -> Self {
        Self { reason: Some(skipped(self.reason)), skip_gates: true, ..self }
    }

    pub(super) fn share(&self) -> u16 {
        self.green.min(FULL_SHARE)
    }

    /// The same as options of a switch. A share that leaves new flows to both colours ends no flow.
    pub(crate) fn as_switch(&self) -> SwitchRequest {
        let is_whole = self.share() == 0 || self.share() == FULL_SHARE;
        SwitchRequest {
            on_switch: (!is_whole).then_some(OnSwitch::Drain),
            if_generation: self.if_generation,
            force: self.force,
            reason: self.reason.clone(),
            skip_gates: self.skip_gates,
            ..SwitchRequest::default()
        }
    }
}

/// The options of a confirmation.
#[derive(Clone, Debug, Default)]
pub struct ConfirmRequest {
    /// As in [`SwitchRequest`].
    pub if_generation: Option<u32>,
    /// As in [`SwitchRequest`].
    pub reason: Option<String>,
}

/// The result of a switch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Switched {
    /// Name of the deployment.
    pub deployment: String,
    /// Whether anything was changed. `false` if the state was as requested already.
    pub changed: bool,
    /// The state before.
    pub from: Moment,
    /// The present state. A switch that has not taken effect yet has the old colour and a new generation.
    pub to: Moment,
    /// The part of new flows that goes to green, as soon as the change has taken effect.
    pub green_share: f64,
    /// What happens to open flows.
    pub on_switch: OnSwitch,
    /// When the switch takes effect, or the ramp begins, if that is not now.
    pub activate_at: Option<jiff::Timestamp>,
    /// When the ramp ends.
    pub ramp_until: Option<jiff::Timestamp>,
    /// When the switch is taken back, unless it is confirmed; `None` if it needs no confirmation, or has not taken effect yet.
    pub confirm_deadline: Option<jiff::Timestamp>,
    /// The conditions that take it back, unless it is confirmed before.
    pub revert_if: Vec<String>,
    /// Conditions that were asked for, but that the old colour meets itself: going back would not help.
    pub not_armed: Vec<String>,
    /// The moment before the store, or before the fence if there was no store.
    #[serde(skip)]
    pub stored: Instant,
    /// The time from then to the end of the fence. Afterwards, no packet is decided by the old word.
    #[serde(serialize_with = "micros", rename = "fence_us")]
    pub fence: Duration,
    /// What the data path saw until the switch was done; `None` if nothing was changed.
    pub receipt: Option<Receipt>,
}

impl AsRef<Self> for Switched {
    fn as_ref(&self) -> &Self {
        self
    }
}

fn micros<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_micros() as u64)
}
