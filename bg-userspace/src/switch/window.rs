//! Switching in a frozen window: no new flow is opened from before the old colour has come to rest until the new one is ready.
//!
//! The freeze and the switch have one deadline: [`Timing::hold_until`](bg_common::Timing::hold_until) and, a moment earlier, the deadline for the confirmation of the
//! switch. So if this process is killed, or a command takes too long, the data path itself goes back to the old colour and lets new
//! flows go on, and no new flow has met the new colour.
//!
//! Other than a plain switch, this one needs the state directory: each of its steps is recorded before the next one, and new flows should not wait
//! for a disk. If it cannot be written, the old colour stays live.

use std::time::{Duration, Instant};

use bg_common::{Cause, ClockId, Colour};
use serde::Serialize;

use super::{
    decision::{Goal, Kind},
    hook::{self, HookError},
    request::{ConfirmRequest, SwitchRequest, Switched},
};
use crate::{
    Error, FreezeRequest, Instance, Refusal,
    config::OnSwitch,
    flows::OpenFlow,
    history::Action,
    live::{Reading, now},
    maps::backends,
};

/// How long before the end of the freeze an unconfirmed switch is taken back.
const MARGIN: Duration = Duration::from_millis(50);

/// A datagram is in flight for so long: UDP does not tell when an exchange is over.
const DATAGRAM_IN_FLIGHT: Duration = Duration::from_secs(1);

/// A handshake is in flight for so long. Then the client has to send its SYN again, or it never had the intention to go on.
const HANDSHAKE_IN_FLIGHT: Duration = Duration::from_secs(1);

/// The options of the window.
#[derive(Clone, Debug)]
pub struct FreezeWindow {
    /// The longest time of the freeze. If the switch is not complete by then, the old colour stays live.
    pub max: Duration,
    /// A shell command that runs first, when no new flow is opened any more.
    pub before: Option<String>,
    /// A shell command that runs after the switch, before new flows go on.
    pub after: Option<String>,
}

/// The result of a switch in a frozen window.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WindowSwitched {
    /// The switch.
    #[serde(flatten)]
    pub switched: Switched,
    /// For how long no new flow was opened.
    #[serde(serialize_with = "millis", rename = "frozen_ms")]
    pub frozen: Duration,
    /// How many held packets went on then.
    pub played_back: u64,
}

impl AsRef<Switched> for WindowSwitched {
    fn as_ref(&self) -> &Switched {
        &self.switched
    }
}

impl Instance {
    /// Freezes a deployment, runs a command, waits until the old colour has come to rest, switches, runs another command, and thaws. If
    /// anything fails, or the window ends before, new flows go where they went before, and the deployment is not frozen. So it is if the state directory
    /// cannot be written. If another command has ended the freeze or set its end, the switch is not made, and the freeze is left to that command.
    ///
    /// The old colour is the one that gets no new flows any more. It has come to rest when it has no open TCP connection and no UDP flow with a packet in the last second. Connections whose client has
    /// not completed the handshake a second after the freeze are ended: otherwise a port scan would keep it from that. A
    /// switch that cuts does not wait for all this: it ends the flows.
    pub fn switch_in_window(
        &self,
        deployment: &str,
        request: &SwitchRequest,
        window: &FreezeWindow,
    ) -> Result<WindowSwitched, Error> {
        request.check_for_window()?;
        let unchanged = |switched| WindowSwitched { switched, frozen: Duration::ZERO, played_back: 0 };
        let (index, _) = self.deployment(deployment)?;
        let outlook = self.outlook(deployment, index, request, Kind::Switch)?;
        let to = outlook.asked.live();
        let Some(from) = outlook.left_colour() else {
            // It is refused, or leaves new flows where they are.
            return self.switch(deployment, &SwitchRequest { to: Some(to), ..request.clone() }).map(unchanged);
        };
        let live = outlook.from.word.live();
        let unrecorded = |source| Error::WindowNotRecorded { live: live.name(), source: Box::new(source) };
        // Before new flows wait: a directory that does not respond takes seconds.
        self.state.record(Some(&self.words), None, &[]).map_err(unrecorded)?;
        let begin = Instant::now();
        let freeze = FreezeRequest { max: Some(window.max), drop: false, reason: request.reason.clone() };
        let (frozen, recorded) = self.freeze_now(deployment, &freeze)?;
        let course = Course {
            index,
            deployment,
            from,
            to,
            live,
            share: outlook.from.word.target_share(),
            generation: outlook.from.generation,
            on_switch: outlook.on_switch,
            begin,
            until: frozen.until,
            window,
        };
        let switched = recorded.map_err(unrecorded).and_then(|()| self.run_course(&course, request));
        // Whatever has happened.
        let is_ours = |end: Option<u64>| end.is_none_or(|end| end == frozen.until);
        let thawed = self.thaw_if(deployment, request.reason.as_deref(), is_ours);
        let switched = switched.map_err(|error| match error {
            Error::NotRecorded { source, .. } => unrecorded(*source),
            error => error,
        })?;
        let thawed = thawed?;
        let frozen = thawed.at.saturating_duration_since(course.begin);
        Ok(WindowSwitched { switched, frozen, played_back: thawed.played_back })
    }

    /// What happens while the deployment is frozen. A moment before the end, the switch is taken back unless it is
    /// confirmed, however long it has waited for a lock: no new flow may meet the new colour before.
    fn run_course(&self, course: &Course<'_>, request: &SwitchRequest) -> Result<Switched, Error> {
        let (generation, revert_by) = (course.generation, course.until.saturating_sub(MARGIN.as_nanos() as u64));
        course.run("before", course.window.before.as_deref(), generation)?;
        if course.on_switch == OnSwitch::Drain {
            self.wait_for_rest(course)?;
        }
        // If nobody confirms it, it is taken back before new flows go on.
        let request = SwitchRequest {
            to: Some(course.to),
            on_switch: Some(course.on_switch),
            if_generation: Some(generation),
            confirm_within: Some(course.left().max(SwitchRequest::LEAST_WINDOW)),
            ..request.clone()
        };
        let goal = |_: &str, reading: &Reading| {
            self.check_frozen(course)?;
            Ok(Goal { revert_by: Some(revert_by), ..Goal::of_switch(&request, reading) })
        };
        let switched = match self.change(course.deployment, &request, Action::Switch, goal) {
            // It is done.
            Err(error) if error.is_made() => return self.go_back(course, error),
            switched => switched?,
        };
        let generation = switched.to.generation;
        let confirm = ConfirmRequest { if_generation: Some(generation), reason: request.reason.clone() };
        let too_late = || Error::WindowOver { what: "it was too late to keep the switch".to_owned() };
        let kept = course.run("after", course.window.after.as_deref(), generation).and_then(|()| {
            self.confirm(course.deployment, &confirm).map_err(|error| match error {
                Error::Refused(Refusal::TooLateToConfirm { .. }) => too_late(),
                error => error,
            })
        });
        match kept {
            Ok(_) => Ok(Switched { confirm_deadline: None, ..switched }),
            Err(error) => self.go_back(course, error),
        }
    }

    /// Sends new flows where they went before the switch, since this error keeps it from being kept. Returns the error.
    fn go_back<T>(&self, course: &Course<'_>, error: Error) -> Result<T, Error> {
        // The flows of the old colour are still there, unless the switch has cut them.
        let back = SwitchRequest {
            on_switch: Some(OnSwitch::Drain),
            force: true,
            reason: Some(format!("{error}")),
            ..SwitchRequest::default()
        };
        let share = course.share;
        let before =
            |_: &str, _: &Reading| Ok(Goal { share, cause: Cause::Rollback, divide_by: None, revert_by: None });
        match self.change(course.deployment, &back, Action::Rollback, before) {
            // The next command records it.
            Ok(_) | Err(Error::NotRecorded { .. }) => Err(error),
            Err(failed) => Err(failed),
        }
    }

    /// Refuses to go on if another command has ended the freeze, or has set its end.
    fn check_frozen(&self, course: &Course<'_>) -> Result<(), Refusal> {
        if self.holds_until(course.index) == Some(course.until) || now(ClockId::Boot) >= course.until {
            return Ok(());
        }
        Err(Refusal::FreezeTakenOver { deployment: course.deployment.to_owned(), live: course.live.name() })
    }

    /// After so many ticks without a packet, nothing of a UDP flow is in flight.
    pub(crate) fn quiet_ticks(&self) -> u32 {
        self.tick_length.ticks(DATAGRAM_IN_FLIGHT)
    }

    /// Waits until nothing is in flight on the old colour.
    fn wait_for_rest(&self, course: &Course<'_>) -> Result<(), Error> {
        const LOOK: Duration = Duration::from_millis(5);
        let backends = backends(&self.paths)?;
        let quiet = self.quiet_ticks();
        loop {
            self.check_frozen(course)?;
            let ends_handshakes = course.begin.elapsed() >= HANDSHAKE_IN_FLIGHT;
            let count = |count: &mut u64, open: &OpenFlow<'_>| {
                let is_in_flight = open.keeps_from_rest(course.index, course.from, quiet);
                *count += u64::from(is_in_flight && !(ends_handshakes && open.end_handshake()));
            };
            let left: u64 = self.fold_open_flows(&backends, || 0, count)?.into_iter().sum();
            if left == 0 {
                return Ok(());
            }
            if course.left().is_zero() {
                return Err(Error::WindowOver {
                    what: format!("{left} flows were still open on {}", course.from.name()),
                });
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// A switch in a window.
struct Course<'a> {
    index: u16,
    deployment: &'a str,
    from: Colour,
    to: Colour,
    /// What was live before the switch, and the share of green then.
    live: Colour,
    share: u16,
    generation: u32,
    on_switch: OnSwitch,
    /// When the freeze began.
    begin: Instant,
    /// When the freeze ends, in nanoseconds of `CLOCK_BOOTTIME`.
    until: u64,
    window: &'a FreezeWindow,
}

impl Course<'_> {
    /// When the switch has to be complete.
    fn end(&self) -> Instant {
        self.begin + self.window.max.saturating_sub(MARGIN)
    }

    fn left(&self) -> Duration {
        self.end().saturating_duration_since(Instant::now())
    }

    /// Runs one of the commands, if it is given.
    fn run(&self, name: &'static str, line: Option<&str>, generation: u32) -> Result<(), Error> {
        let Some(line) = line else { return Ok(()) };
        let variables = [
            ("BGCTL_DEPLOYMENT", self.deployment.to_owned()),
            ("BGCTL_FROM", self.from.name().to_owned()),
            ("BGCTL_TO", self.to.name().to_owned()),
            ("BGCTL_GENERATION", generation.to_string()),
        ];
        let (deployment, command) = (self.deployment.to_owned(), line.to_owned());
        hook::run(line, &variables, self.end()).map_err(|error| match error {
            HookError::NotRun(source) => Error::HookNotRun { name, command, source },
            HookError::Failed(status) => {
                Refusal::HookFailed { deployment, name, command, status: status.to_string(), live: self.live.name() }
                    .into()
            }
            HookError::TimedOut => {
                Error::WindowOver { what: format!("the command --{name} had not ended, and was killed") }
            }
        })
    }
}

fn millis<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_millis() as u64)
}
