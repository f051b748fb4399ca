//! Asking the gates after a switch, while it waits for its confirmation.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    attempt::{Ask, attempt},
    report::{Confirmed, Failed, GateReport, Progress},
};
use crate::{
    Colour, Error, Instance, SwitchRequest, Switched,
    config::{Gate, When},
};

/// The most time that is left for the confirmation itself.
pub(super) const MARGIN: Duration = Duration::from_secs(1);
/// How often the live word is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How often at most while the switch has yet to take effect, which may be in days. So late it is noticed that somebody has cancelled it.
const FAR_LOOK: Duration = Duration::from_millis(500);

/// A switch that waits for its confirmation.
pub(crate) struct Watch<'a> {
    ask: Ask<'a>,
    index: u16,
    /// When the first gate is asked.
    begin: Instant,
    /// When the switch is confirmed. No attempt is begun that would take longer, but for the first of each gate.
    end: Instant,
    /// When the last attempt has to end.
    latest: Instant,
}

/// What has become of the switch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waits,
    Confirmed,
    /// It was taken back, or somebody has changed something else.
    Over,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(instance: &'a Instance, switched: &'a Switched, request: &SwitchRequest) -> Result<Self, Error> {
        let (index, _) = instance.deployment(&switched.deployment)?;
        // A ramp is watched from its beginning.
        let ahead = request.at.map_or(0, |at| at.duration_since(jiff::Timestamp::now()).as_millis().max(0));
        let begin = match request.at {
            Some(_) => Instant::now() + Duration::from_millis(ahead as u64),
            None => switched.stored,
        };
        let within = request.confirm_within.unwrap_or_default();
        let margin = (within / 10).min(MARGIN);
        let end = begin + request.ramp.unwrap_or_default() + within - margin;
        let to = request.to.unwrap_or(switched.to.live);
        let ask = Ask {
            instance,
            deployment: &switched.deployment,
            from: to.other(),
            to,
            generation: switched.to.generation,
        };
        Ok(Self { ask, index, begin, end, latest: end })
    }

    /// The same, but over at this time, or when each gate was asked once.
    pub(crate) fn until(self, end: Instant) -> Self {
        Self { end, ..self }
    }

    /// Asks all gates in turn, then each one again after its interval, until the end or the first that fails.
    pub(crate) fn run(
        &self,
        gates: &[Gate],
        reports: &mut Vec<GateReport>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Confirmed, Failed> {
        let first = reports.len();
        let after: Vec<_> = gates.iter().filter(|gate| gate.when == When::After).collect();
        let Some((begin, end)) = self.take_effect() else {
            return Ok(if self.state() == State::Confirmed { Confirmed::BySomebody } else { Confirmed::ByGates });
        };
        let latest = end + self.latest.saturating_duration_since(self.end);
        let mut due = vec![Some(begin); after.len()];
        loop {
            // Of those that are due at the same time, the first.
            let next = due.iter().enumerate().filter_map(|(nth, at)| at.map(|at| (at, nth))).min();
            match self.wait(next.map_or(end, |(at, _)| at)) {
                State::Waits => {}
                State::Confirmed => return Ok(Confirmed::BySomebody),
                // The confirmation says why.
                State::Over => break,
            }
            let Some((_, nth)) = next else { break };
            let gate = after[nth];
            let report = reports.get(first + nth);
            // One that is begun must end in time, since nobody knows then whether it would have passed.
            let needs = report.map_or(Duration::ZERO, |report| gate.timeout.min(report.longest * 2 + LEAST));
            if report.is_some() && Instant::now() + needs > end {
                due[nth] = None;
                continue;
            }
            if report.is_none() {
                progress(Progress::Asks(gate));
            }
            let left = latest.saturating_duration_since(Instant::now());
            let told = attempt(gate, &self.ask, gate.timeout.min(left), &|| self.state() != State::Waits);
            match self.state() {
                State::Waits => {}
                State::Confirmed => return Ok(Confirmed::BySomebody),
                State::Over => break,
            }
            let report = match reports.get_mut(first + nth) {
                Some(report) => {
                    report.add(&told);
                    &*report
                }
                None => {
                    reports.push(GateReport::of(gate, &told));
                    &reports[first + nth]
                }
            };
            if report.attempts == 1 || told.outcome.is_err() {
                progress(Progress::Told(report));
            }
            told.outcome.map_err(|why| Failed { gate: gate.to_string(), why })?;
            due[nth] = Some(Instant::now() + gate.interval);
        }
        Ok(Confirmed::ByGates)
    }

    /// Waits until the switch is in effect, or its ramp has begun, and returns when the first gate is asked and when the switch is confirmed. The clocks
    /// of this process do not tell when that is: somebody may have set the one by which packets go. `None`: nothing waits any more.
    fn take_effect(&self) -> Option<(Instant, Instant)> {
        let look = || {
            let reading = self.ask.instance.words.reading(self.index, 0);
            (self.state() == State::Waits).then(|| !reading.is_pending() || reading.is_ramping())
        };
        let begin = effect(self.begin, look)?;
        Some((begin, begin + self.end.saturating_duration_since(self.begin)))
    }

    /// Waits for a moment, as long as the switch waits.
    fn wait(&self, until: Instant) -> State {
        loop {
            let state = self.state();
            let left = until.saturating_duration_since(Instant::now());
            if state != State::Waits || left.is_zero() {
                return state;
            }
            thread::sleep(pause(left, self.begin.saturating_duration_since(Instant::now())));
        }
    }

    fn state(&self) -> State {
        let reading = self.ask.instance.words.reading(self.index, 0);
        if reading.generation != self.ask.generation {
            State::Over
        } else if reading.waits_for_confirmation() {
            State::Waits
        } else {
            State::Confirmed
        }
    }
}

/// Looks until the switch is in effect, which may be before `begin` or after it, and returns when that was seen; `begin`, if that has passed, if it was in effect from
/// the first look on. `look` says whether it is, and nothing if nobody waits for it any more.
fn effect(begin: Instant, mut look: impl FnMut() -> Option<bool>) -> Option<Instant> {
    let mut has_waited = false;
    while !look()? {
        let ahead = begin.saturating_duration_since(Instant::now()).max(LOOK);
        thread::sleep(pause(ahead, ahead));
        has_waited = true;
    }
    Some(if has_waited { Instant::now() } else { begin.min(Instant::now()) })
}

/// How long not to look, if so much time is left to wait, and until the first gate is asked.
fn pause(left: Duration, to_begin: Duration) -> Duration {
    left.min((to_begin / 2).clamp(LOOK, FAR_LOOK))
}

/// A gate that has always answered at once may take this long once.
const LEAST: Duration = Duration::from_millis(250);

/// The live colour, if the data path has taken the switch back.
pub(super) fn taken_back(instance: &Instance, switched: &Switched) -> Option<Colour> {
    let (index, _) = instance.deployment(&switched.deployment).ok()?;
    let reading = instance.words.reading(index, 0);
    let is_next = reading.generation == switched.to.generation.wrapping_add(1);
    (is_next && reading.is_taken_back()).then(|| reading.word.live())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_gate_is_asked_before_the_switch_is_in_effect_whatever_the_clock_says() {
        let begin = Instant::now();
        let answers = |answers: Vec<Option<bool>>| {
            let mut answers = answers.into_iter();
            move || answers.next().expect("it has been told")
        };
        assert_eq!(effect(begin, answers(vec![Some(true)])), Some(begin));
        let late = effect(begin, answers(vec![Some(false), Some(false), Some(true)])).expect("it waits");
        assert!(late >= begin + LOOK * 2, "{:?}", late - begin);
        assert_eq!(effect(begin, answers(vec![Some(false), None])), None, "somebody has cancelled it");
        // Somebody has set the clock forward: it is in effect an hour before it was expected.
        let hour = Duration::from_secs(3600);
        let early = effect(begin + hour, answers(vec![Some(false), Some(true)])).expect("it waits");
        assert!(early < begin + hour / 2, "{:?}", early - begin);
        let before_the_first_look = effect(begin + hour, answers(vec![Some(true)])).expect("it waits");
        assert!(before_the_first_look < begin + hour / 2, "{:?}", before_the_first_look - begin);
    }

    #[test]
    fn a_switch_that_is_far_away_is_looked_at_seldom_and_none_is_late() {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        assert_eq!(pause(DAY, DAY), FAR_LOOK);
        assert_eq!(pause(DAY, Duration::ZERO), LOOK, "it has taken effect");
        assert_eq!(pause(Duration::from_millis(3), Duration::from_millis(3)), Duration::from_millis(3));
        let (mut left, mut looks) = (Duration::from_secs(10), 0);
        while !left.is_zero() {
            left -= pause(left, left);
            looks += 1;
        }
        assert!(looks < 40, "{looks} looks in ten seconds");
    }
}
