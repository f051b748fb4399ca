//! The data path's clock: ticks of `jiffies >> TICK_SHIFT`, and what they are in time.

use std::time::Duration;

use bg_common::{Clock, Meta, TICK_SHIFT};

/// Length of a tick on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TickLength {
    hz: u32,
}

impl TickLength {
    pub(crate) fn new(meta: Meta) -> Self {
        Self { hz: meta.hz.max(1) }
    }

    /// The fewest ticks that last at least so long; never zero.
    pub(crate) fn ticks(self, time: Duration) -> u32 {
        let jiffies = time.as_nanos() * u128::from(self.hz) / 1_000_000_000;
        u32::try_from((jiffies >> TICK_SHIFT) + 1).unwrap_or(u32::MAX / 2).min(u32::MAX / 2)
    }

    /// How long so many ticks last.
    pub(crate) fn duration(self, ticks: u32) -> Duration {
        Duration::from_nanos((u64::from(ticks) << TICK_SHIFT) * 1_000_000_000 / u64::from(self.hz))
    }
}

/// The tick of this moment.
pub(crate) fn tick(clock: Clock) -> u32 {
    (clock.jiffies >> TICK_SHIFT) as u32
}

/// Whether `now` is at or behind `tick`; ticks wrap around.
pub(crate) fn is_past(tick: u32, now: u32) -> bool {
    now.wrapping_sub(tick) < u32::MAX / 2
}

/// Ticks since `tick`; zero if another CPU has written a later one meanwhile.
pub(crate) fn since(tick: u32, now: u32) -> u32 {
    if is_past(tick, now) { now.wrapping_sub(tick) } else { 0 }
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
    fn ticks_wrap_around() {
        assert!(is_past(u32::MAX, 3) && !is_past(3, u32::MAX));
        assert_eq!(since(u32::MAX, 3), 4);
        assert_eq!(since(5, 4), 0);
    }
}
