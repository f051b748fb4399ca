//! Measuring the instant of bgctl's switch, packet by packet.

use super::{
    super::edge::{DEPLOYMENT, Edge},
    load::Load,
};
use anyhow::{Context, Result, ensure};
use bg_common::{Colour, ColourSeen};
use bg_tests::monotonic_ns;
use bg_userspace::{Instance, SwitchRequest, Switched};
use std::time::{Duration, Instant};

/// Switches by the library, under load. Unless stated otherwise, times are nanoseconds since the store.
#[derive(Default)]
pub(super) struct Rounds {
    /// The first packet that was decided by the new word. Negative if it was being processed during the store.
    pub(super) decided: Vec<f64>,
    /// Its arrival at the backend's interface.
    pub(super) arrived: Vec<f64>,
    /// The last packet that was decided by the old word, when it was passed to the program.
    pub(super) overlap: Vec<f64>,
    /// The end of the fence.
    pub(super) fence: Vec<f64>,
    /// The duration of the whole call.
    pub(super) call: Vec<f64>,
    /// Rounds that were not evaluated, because the generator was between two of its calls.
    pub(super) discarded: u64,
}

/// Switches by the command, with or without load. Times are nanoseconds.
#[derive(Default)]
pub(super) struct Commands {
    /// The time from before the process is started until after its end.
    pub(super) wall: Vec<f64>,
    /// The time from before the process is started until the first packet that was decided by the new word.
    pub(super) decided: Vec<f64>,
}

/// The live colour, as long as only this process switches.
pub(super) struct Live {
    pub(super) colour: Colour,
    round: u64,
}

impl Live {
    pub(super) fn first() -> Self {
        Self { colour: Colour::Blue, round: 0 }
    }

    /// The number of switches so far.
    pub(super) fn switches(&self) -> u64 {
        self.round
    }

    fn next(&mut self) -> (u64, Colour) {
        self.round += 1;
        self.colour = self.colour.other();
        (self.round, self.colour)
    }
}

/// Switches by the library until `count` switches have been evaluated.
pub(super) fn by_library(instance: &Instance, load: &Load, count: u32, live: &mut Live) -> Result<Rounds> {
    let mut rounds = Rounds::default();
    while rounds.decided.len() < count as usize {
        let old = live.colour as usize;
        let (round, colour) = live.next();
        load.begin(round, old)?;
        let started = Instant::now();
        let switched = instance.switch(DEPLOYMENT, &SwitchRequest::default())?;
        let call = started.elapsed();
        ensure!(switched.changed && switched.to.live == colour, "expected {colour:?} live, got {switched:?}");
        let stored_ns = on_monotonic_clock(switched.stored);
        match load.finish(colour as usize)? {
            Some(seen) => rounds.judge(&seen, colour as usize, stored_ns, &switched, call)?,
            None => rounds.discarded += 1,
        }
    }
    Ok(rounds)
}

impl Rounds {
    fn judge(
        &mut self,
        seen: &[[ColourSeen; 2]],
        colour: usize,
        stored_ns: u64,
        switched: &Switched,
        call: Duration,
    ) -> Result<()> {
        let first = seen.iter().map(|seen| seen[colour]).min_by_key(|seen| seen.first_decided);
        let first = first.context("no generator")?;
        let overlap = seen.iter().map(|seen| seen[1 - colour].last_decided).max().unwrap_or_default();
        let since = |ns: u64| ns as f64 - stored_ns as f64;
        let fence = switched.fence.as_nanos() as f64;
        ensure!(
            since(overlap) < fence,
            "a packet that was handed to the program {} ns after the store was decided by the old word, and the fence \
             had returned after {fence} ns",
            since(overlap)
        );
        self.decided.push(since(first.first_decided));
        self.arrived.push(since(first.first_arrived));
        self.overlap.push(since(overlap));
        self.fence.push(fence);
        self.call.push(call.as_nanos() as f64);
        Ok(())
    }
}

/// Switches by the command until `count` switches have been evaluated.
pub(super) fn by_command(edge: &Edge, load: &Load, count: u32, live: &mut Live) -> Result<Commands> {
    let mut commands = Commands::default();
    while commands.wall.len() < count as usize {
        let old = live.colour as usize;
        let (round, colour) = live.next();
        load.begin(round, old)?;
        let issued_ns = monotonic_ns();
        let wall = edge.timed(&["switch", DEPLOYMENT, colour.name()])?;
        let returned_ns = monotonic_ns();
        let Some(seen) = load.finish(colour as usize)? else { continue };
        let last_old = seen.iter().map(|seen| seen[old].last_decided).max().unwrap_or_default();
        ensure!(last_old < returned_ns, "a packet went by the old word after the command had returned");
        let first = seen.iter().map(|seen| seen[colour as usize].first_decided).min().context("no generator")?;
        commands.wall.push(wall.as_nanos() as f64);
        commands.decided.push(first as f64 - issued_ns as f64);
    }
    Ok(commands)
}

/// The durations of the call and of the command without load, measured in turns, in nanoseconds.
pub(super) fn idle(edge: &Edge, instance: &Instance, count: u32, live: &mut Live) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut calls, mut commands) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let (_, colour) = live.next();
        let started = Instant::now();
        let request = SwitchRequest { to: Some(colour), ..SwitchRequest::default() };
        ensure!(instance.switch(DEPLOYMENT, &request)?.changed, "{colour:?} was live already");
        calls.push(started.elapsed().as_nanos() as f64);
        let (_, colour) = live.next();
        commands.push(edge.timed(&["switch", DEPLOYMENT, colour.name()])?.as_nanos() as f64);
    }
    Ok((calls, commands))
}

/// An [`Instant`] in the clock of the programs in the kernel. The clock is read a second time for the conversion,
/// just before the instant is compared, so the result may be some nanoseconds early, but not late.
fn on_monotonic_clock(instant: Instant) -> u64 {
    let now_ns = monotonic_ns();
    now_ns - Instant::now().saturating_duration_since(instant).as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use bg_userspace::{config::OnSwitch, history::Moment};

    /// A switch to green that was stored at 1,000,000 ns; its fence returned 50,000 ns later.
    fn judge(last_old: u64, first_new: u64) -> Result<Rounds> {
        let moment = |generation, live| Moment { generation, live };
        let switched = Switched {
            green_share: 0.0,
            activate_at: None,
            ramp_until: None,
            confirm_deadline: None,
            receipt: None,
            revert_if: Vec::new(),
            not_armed: Vec::new(),
            deployment: DEPLOYMENT.into(),
            changed: true,
            from: moment(1, Colour::Blue),
            to: moment(2, Colour::Green),
            on_switch: OnSwitch::Drain,
            stored: Instant::now(),
            fence: Duration::from_micros(50),
        };
        let blue = ColourSeen { last_decided: last_old, ..ColourSeen::default() };
        let green = ColourSeen { first_decided: first_new, first_arrived: first_new + 900, ..ColourSeen::default() };
        let mut rounds = Rounds::default();
        rounds.judge(&[[blue, green]], Colour::Green as usize, 1_000_000, &switched, Duration::from_millis(1))?;
        Ok(rounds)
    }

    #[test]
    fn times_are_since_the_store() {
        let rounds = judge(1_000_200, 1_000_700).unwrap();
        assert_eq!((rounds.overlap[0], rounds.decided[0], rounds.arrived[0]), (200.0, 700.0, 1600.0));
        assert_eq!(judge(999_000, 1_000_700).unwrap().overlap, [-1000.0]);
    }

    #[test]
    fn a_packet_by_the_old_word_after_the_fence_fails_the_benchmark() {
        assert!(judge(1_049_999, 1_000_700).is_ok());
        let error = judge(1_050_000, 1_000_700).err().unwrap();
        assert!(error.to_string().contains("the fence had returned"), "{error}");
    }

    #[test]
    fn an_instant_is_where_the_clock_was() {
        let before = monotonic_ns();
        let instant = Instant::now();
        let after = monotonic_ns();
        let found = on_monotonic_clock(instant);
        // Early by what lies between two readings of the clock, unless the thread was preempted there.
        assert!(found <= after && found + 100_000_000 > before, "{before} {found} {after}");
    }
}
