//! The data path's clock: ticks of `jiffies >> TICK_SHIFT`, and their conversion to time.

use std::time::Duration;

use bg_common::{Clock, ClockId, Meta, TICK_SHIFT};
use bg_ebpf::policy::lifetime::is_past;

use crate::live::now;

/// The length of a tick on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TickLength {
    hz: u32,
}

impl TickLength {
    pub(crate) fn new(meta: Meta) -> Self {
        Self { hz: meta.hz.max(1) }
    }

    /// The smallest number of ticks that last at least this long. It is never zero.
    pub(crate) fn ticks(self, time: Duration) -> u32 {
        let jiffies = time.as_nanos() * u128::from(self.hz) / 1_000_000_000;
        u32::try_from((jiffies >> TICK_SHIFT) + 1).unwrap_or(u32::MAX / 2).min(u32::MAX / 2)
    }

    /// The time until a tick other than zero begins, exact to a jiffy; `None` if it has begun.
    pub(crate) fn until(self, at: u32, clock: Clock) -> Option<Duration> {
        if is_past(at, tick(clock)) {
            return None;
        }
        let jiffies = u64::from(at.wrapping_sub(tick(clock))) << TICK_SHIFT;
        let left = jiffies - (clock.jiffies & ((1 << TICK_SHIFT) - 1));
        Some(Duration::from_millis(left * 1000 / u64::from(self.hz)))
    }

    /// The duration of this many ticks.
    pub(crate) fn duration(self, ticks: u32) -> Duration {
        Duration::from_nanos((u64::from(ticks) << TICK_SHIFT) * 1_000_000_000 / u64::from(self.hz))
    }
}

/// The time of the wall clock at an instant of a clock, rounded to milliseconds, so that it is nearly the same each time.
pub(crate) fn moment_of(instant: u64, clock: ClockId) -> Option<jiff::Timestamp> {
    // Of several readings of both clocks, the one that was interrupted for the shortest time.
    let readings = (0..5).map(|_| {
        let (before, wall, after) = (now(clock), jiff::Timestamp::now(), now(clock));
        (after.saturating_sub(before), after, wall)
    });
    let (_, now, wall) = readings.min_by_key(|(took, ..)| *took)?;
    let ahead = jiff::SignedDuration::from_nanos_i128(i128::from(instant) - i128::from(now));
    let moment = wall.checked_add(ahead).ok()?;
    moment.round(jiff::Unit::Millisecond).ok()
}

/// The present tick.
pub(crate) fn tick(clock: Clock) -> u32 {
    (clock.jiffies >> TICK_SHIFT) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_is_never_shorter_than_asked_for() {
        for hz in [100, 250, 300, 1000] {
            let length = TickLength { hz };
            for millis in [0, 1, 500, 60_000, 7_200_000] {
                let asked = Duration::from_millis(millis);
                let ticks = length.ticks(asked);
                assert!(ticks > 0 && length.duration(ticks) >= asked, "{hz} {millis}");
                assert!(length.duration(ticks - 1) <= asked, "{hz} {millis}");
            }
        }
    }

    #[test]
    fn a_deadline_comes_nearer_jiffy_by_jiffy() {
        let length = TickLength { hz: 1000 };
        let clock = |jiffies| Clock { jiffies, ..bytemuck::Zeroable::zeroed() };
        let tick_at = |jiffies: u64| (jiffies >> TICK_SHIFT) as u32;
        for start in [1 << TICK_SHIFT, (1 << (32 + TICK_SHIFT)) - 640] {
            let at = tick_at(start + 1280);
            for passed in [0, 1, 63, 64, 1000, 1279] {
                let left = Some(Duration::from_millis(1280 - passed));
                assert_eq!(length.until(at, clock(start + passed)), left, "{start} {passed}");
            }
            assert_eq!(length.until(at, clock(start + 1280)), None);
        }
    }
}
