//! Judging a backend by its checks.
//!
//! - A backend that was up is down after `fall` failed checks in a row, and one that was down is up after `rise` passed checks in a row.
//!   One of which nothing is known is up after the first passed check.
//! - Flapping is damped: each time that a backend goes down soon after it has come back, it needs twice as many passed checks to come back
//!   the next time, up to sixteen times `rise`. *Soon* is within [`STEADY`] intervals. One that has been up for longer starts anew.
//! - One that comes back starts slowly, if configured: its share grows from a tenth to all of its weight.
//! - What the instance says of a backend stays until enough checks say something else. The backend counts as judged
//!   when a check agrees with it, or enough have not.

use std::time::Duration;

use tokio::time::Instant;

use crate::{Health, config::model::HealthCheck};

/// How many intervals a backend has to stay up until its return counts as lasting.
const STEADY: u32 = 60;
/// How often the number of checks that it takes to come back may double.
const MOST_DOUBLINGS: u32 = 4;
/// The share with which a slow start begins.
const FIRST_SHARE: f64 = 0.1;
/// The steps in which a share grows. Each one is written to the instance.
const STEPS: f64 = 20.0;

/// What is known of a backend, and what it takes to change that.
#[derive(Clone, Debug)]
pub(super) struct Judge {
    rise: u32,
    fall: u32,
    steady: Duration,
    slow_start: Duration,
    health: Health,
    is_judged: bool,
    /// How many checks in a row have said something else than `health`.
    against: u32,
    /// When it came back; `None` if it was up all the time, as far as known.
    back_since: Option<Instant>,
    /// When its slow start began.
    starting_since: Option<Instant>,
    doublings: u32,
}

impl Judge {
    /// Begins with what the instance says of the backend.
    pub(super) fn new(check: &HealthCheck, health: Health, share: f64, now: Instant) -> Self {
        let slow_start = check.slow_start.unwrap_or_default();
        // As if this had seen it begin.
        let is_starting = health == Health::Up && share < 1.0;
        let starting_since = is_starting.then(|| now.checked_sub(slow_start.mul_f64(share.clamp(0.0, 1.0)))).flatten();
        Self {
            rise: check.rise.max(1),
            fall: check.fall.max(1),
            steady: check.interval.saturating_mul(STEADY),
            slow_start,
            health,
            is_judged: false,
            against: 0,
            back_since: starting_since,
            starting_since,
            doublings: 0,
        }
    }

    /// Takes in a check. Returns whether the backend has gone up or down.
    pub(super) fn take(&mut self, passed: bool, now: Instant) -> bool {
        let says = if passed { Health::Up } else { Health::Down };
        if says == self.health {
            self.against = 0;
            self.is_judged = true;
            return false;
        }
        self.against += 1;
        let needed = match (self.health, says) {
            (Health::Unknown, Health::Up) => 1,
            (_, Health::Up) => self.rise << self.doublings,
            _ => self.fall,
        };
        if self.against < needed {
            return false;
        }
        let before = std::mem::replace(&mut self.health, says);
        (self.against, self.is_judged) = (0, true);
        match (before, says) {
            (Health::Down, Health::Up) => {
                self.back_since = Some(now);
                self.starting_since = (!self.slow_start.is_zero()).then_some(now);
            }
            (Health::Up, Health::Down) => {
                let was_back = self.back_since.take().map(|since| now.duration_since(since));
                self.doublings = match was_back {
                    Some(up) if up < self.steady => (self.doublings + 1).min(MOST_DOUBLINGS),
                    _ => 0,
                };
                self.starting_since = None;
            }
            _ => {}
        }
        true
    }

    /// What it is.
    pub(super) const fn health(&self) -> Health {
        self.health
    }

    /// Whether the checks have confirmed that.
    pub(super) const fn is_judged(&self) -> bool {
        self.is_judged
    }

    /// The part of its weight that it gets now, from 0 to 1.
    pub(super) fn share(&mut self, now: Instant) -> f64 {
        let Some(since) = self.starting_since else { return 1.0 };
        let share = now.duration_since(since).as_secs_f64() / self.slow_start.as_secs_f64().max(1e-9);
        if share >= 1.0 {
            self.starting_since = None;
        }
        ((share * STEPS).floor() / STEPS).clamp(FIRST_SHARE, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::CheckKind;

    fn check() -> HealthCheck {
        HealthCheck { rise: 2, fall: 3, ..HealthCheck::new(CheckKind::Tcp) }
    }

    fn judge(health: Health) -> Judge {
        Judge::new(&check(), health, 1.0, Instant::now())
    }

    /// The health after each of these checks, one each second: `+` has passed, `-` has failed.
    fn story(judge: &mut Judge, begin: Instant, checks: &str) -> String {
        let letter = |health| match health {
            Health::Unknown => '?',
            Health::Up => 'u',
            Health::Down => 'd',
        };
        let at = |nth: usize| begin + Duration::from_secs(nth as u64);
        let judged = checks.chars().enumerate().map(|(nth, check)| {
            judge.take(check == '+', at(nth));
            letter(judge.health())
        });
        judged.collect()
    }

    #[test]
    fn it_takes_fall_failures_and_rise_passes_in_a_row() {
        let begin = Instant::now();
        assert_eq!(story(&mut judge(Health::Unknown), begin, "--+--+---+-++++"), "??uuuuuudddduuu");
        assert_eq!(story(&mut judge(Health::Unknown), begin, "---"), "??d");
        assert_eq!(story(&mut judge(Health::Down), begin, "+-+-++"), "dddddu");
        assert_eq!(story(&mut judge(Health::Up), begin, "--+--+"), "uuuuuu");
    }

    #[test]
    fn what_the_instance_says_is_not_judged_before_a_check_agrees_or_enough_do_not() {
        let judged_after = |health, checks: &str| {
            let mut judge = judge(health);
            let nth = checks.chars().position(|check| {
                judge.take(check == '+', Instant::now());
                judge.is_judged()
            });
            nth.map(|nth| nth + 1)
        };
        assert_eq!(judged_after(Health::Up, "+"), Some(1));
        assert_eq!(judged_after(Health::Up, "--"), None);
        assert_eq!(judged_after(Health::Up, "---"), Some(3));
        assert_eq!(judged_after(Health::Down, "-"), Some(1));
        assert_eq!(judged_after(Health::Down, "++"), Some(2));
        assert_eq!(judged_after(Health::Unknown, "--"), None);
        assert_eq!(judged_after(Health::Unknown, "+"), Some(1));
    }

    #[test]
    fn one_that_flaps_needs_more_and_more_passes_to_come_back() {
        let (mut judge, mut now) = (judge(Health::Up), Instant::now());
        let mut needed = Vec::new();
        for _ in 0..7 {
            while judge.health() != Health::Down {
                judge.take(false, now);
            }
            let mut passes = 0;
            while judge.health() != Health::Up {
                judge.take(true, now);
                passes += 1;
                now += Duration::from_secs(1);
            }
            needed.push(passes);
        }
        assert_eq!(needed, [2, 4, 8, 16, 32, 32, 32]);
        now += Duration::from_secs(61);
        assert!((0..3).any(|_| judge.take(false, now)));
        let passes = (1..).find(|_| judge.take(true, now));
        assert_eq!(passes, Some(2), "it has been up for long enough");
    }

    #[test]
    fn one_that_comes_back_starts_slowly_and_one_that_was_there_does_not() {
        let check = HealthCheck { slow_start: Some(Duration::from_secs(10)), ..check() };
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut fresh = Judge::new(&check, Health::Unknown, 1.0, begin);
        fresh.take(true, begin);
        assert_eq!(fresh.share(begin), 1.0);
        let mut back = Judge::new(&check, Health::Down, 1.0, begin);
        back.take(true, begin);
        back.take(true, begin);
        assert_eq!([0, 1, 4, 10, 11].map(|seconds| back.share(at(seconds))), [0.1, 0.1, 0.4, 1.0, 1.0]);
        let mut restarted = Judge::new(&check, Health::Up, 0.5, at(100));
        let share = restarted.share(at(102));
        assert!((share - 0.7).abs() < 0.01, "it goes on where the controller before has left it: {share}");
    }
}
