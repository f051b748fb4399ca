//! When the checks of a backend begin.
//!
//! The first one begins at a random time of the first interval, so that the checks of all backends are spread over it. From one to
//! the next it is an interval, or up to a tenth less, so that checks that began together do not stay together. It is never
//! more, because the time to detect a failure is counted in intervals.

use std::time::Duration;

use tokio::time::Instant;

/// The most that is taken off an interval.
const JITTER: f64 = 0.1;

/// The times of one backend's checks.
#[derive(Debug)]
pub(super) struct Schedule {
    interval: Duration,
    next: Instant,
    random: Random,
}

impl Schedule {
    pub(super) fn new(interval: Duration, seed: u64, now: Instant) -> Self {
        let mut random = Random(seed);
        let next = now + interval.mul_f64(random.next());
        Self { interval, next, random }
    }

    /// When the next check begins.
    pub(super) const fn next(&self) -> Instant {
        self.next
    }

    /// A check has begun, and it is `now`. Times that have passed meanwhile are left out, not made up for.
    pub(super) fn advance(&mut self, now: Instant) {
        self.next += self.interval.mul_f64(1.0 - JITTER * self.random.next());
        if self.next < now {
            self.next = now;
        }
    }
}

/// Random numbers from 0 to 1 (SplitMix64).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_spread_at_the_start_and_never_more_than_an_interval_apart() {
        let (now, interval) = (Instant::now(), Duration::from_secs(1));
        let mut tenths = [0; 10];
        for seed in 0..10_000 {
            let mut schedule = Schedule::new(interval, seed, now);
            let first = schedule.next() - now;
            tenths[(first.as_secs_f64() * 10.0) as usize] += 1;
            schedule.advance(now);
            let between = schedule.next() - now - first;
            assert!(between <= interval && between >= interval.mul_f64(0.9), "{between:?}");
        }
        assert!(tenths.iter().all(|count| (800..1200).contains(count)), "{tenths:?}");
    }

    #[test]
    fn what_was_missed_is_not_made_up_for() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Duration::from_secs(1), 7, now);
        let later = now + Duration::from_secs(60);
        schedule.advance(later);
        assert_eq!(schedule.next(), later);
        schedule.advance(later);
        assert!(schedule.next() > later);
    }
}
