//! When a failover may be tried.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// The pause after the first attempt that has failed. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long backends may be unknown to the configuration before that is said. After an apply, the controller reads its file.
const SETTLING: Duration = Duration::from_secs(5);

/// The attempts of all deployments.
#[derive(Debug)]
pub(super) struct Attempts {
    of: HashMap<String, Attempt>,
    /// Until when those are held off of which nothing else is known, counted from here.
    since: Option<Instant>,
}

#[derive(Debug, Default)]
struct Attempt {
    last: Option<Instant>,
    is_running: bool,
    failures: u32,
    not_before: Option<Instant>,
    problem: String,
    unchecked: Vec<String>,
    unchecked_since: Option<Instant>,
}

impl Attempt {
    /// It has come to nothing. Returns whether the reason is another one than before.
    fn ended(&mut self, problem: &str, not_before: Instant) -> bool {
        (self.is_running, self.not_before) = (false, Some(not_before));
        let is_news = self.problem != problem;
        problem.clone_into(&mut self.problem);
        is_news
    }
}

/// Whether a failover that is due may be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Now,
    At(Instant),
    /// One is being tried.
    Running,
}

impl Attempts {
    /// With the last failovers. `since` is given if these are not known.
    pub(super) fn new(last: HashMap<String, Instant>, since: Option<Instant>) -> Self {
        let of = last.into_iter().map(|(name, last)| (name, Attempt { last: Some(last), ..Attempt::default() }));
        Self { of: of.collect(), since }
    }

    /// Whether one of this deployment may be tried.
    pub(super) fn turn(&self, deployment: &str, hold_off: Duration, now: Instant) -> Turn {
        let own = self.of.get(deployment);
        if own.is_some_and(|own| own.is_running) {
            return Turn::Running;
        }
        let last = own.and_then(|own| own.last).max(self.since);
        let until = last.map(|last| last + hold_off).max(own.and_then(|own| own.not_before));
        until.filter(|until| *until > now).map_or(Turn::Now, Turn::At)
    }

    /// One is tried.
    pub(super) fn begin(&mut self, deployment: &str) {
        self.own(deployment).is_running = true;
    }

    /// It was made.
    pub(super) fn succeeded(&mut self, deployment: &str, now: Instant) {
        *self.own(deployment) = Attempt { last: Some(now), ..Attempt::default() };
    }

    /// It has failed. Returns whether that is news.
    pub(super) fn failed(&mut self, deployment: &str, problem: &str, now: Instant) -> bool {
        let own = self.own(deployment);
        let pause = FIRST_PAUSE.saturating_mul(1 << own.failures.min(6)).min(LONGEST_PAUSE);
        own.failures += 1;
        own.ended(problem, now + pause)
    }

    /// It was not due any more at the last moment. That is no failure, but the same may be so at once again. Returns whether that is news.
    pub(super) fn refused(&mut self, deployment: &str, why: &str, now: Instant) -> bool {
        self.own(deployment).ended(why, now + FIRST_PAUSE)
    }

    /// None is due any more.
    pub(super) fn calm(&mut self, deployment: &str) {
        if let Some(own) = self.of.get_mut(deployment).filter(|own| !own.is_running) {
            (own.failures, own.not_before) = (0, None);
            own.problem.clear();
        }
    }

    /// Notes which backends of it nothing checks. Returns whether that is to be said now, or when.
    pub(super) fn unchecked(&mut self, deployment: &str, backends: &[String], now: Instant) -> Option<Instant> {
        let own = self.own(deployment);
        if own.unchecked != backends {
            own.unchecked = backends.to_vec();
            own.unchecked_since = (!backends.is_empty()).then_some(now);
        }
        let due = own.unchecked_since? + SETTLING;
        if due <= now {
            own.unchecked_since = None;
        }
        Some(due)
    }

    fn own(&mut self, deployment: &str) -> &mut Attempt {
        self.of.entry(deployment.to_owned()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD_OFF: Duration = Duration::from_secs(300);

    #[test]
    fn one_that_fails_waits_longer_each_time_and_is_told_once_for_each_reason() {
        let mut attempts = Attempts::new(HashMap::new(), None);
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        let mut told = Vec::new();
        for attempt in 0..9 {
            assert_eq!(attempts.turn("shop", HOLD_OFF, now), Turn::Now);
            attempts.begin("shop");
            assert_eq!(attempts.turn("shop", HOLD_OFF, now), Turn::Running);
            assert_eq!(attempts.turn("other", HOLD_OFF, now), Turn::Now, "one does not hold up another");
            told.push(attempts.failed("shop", if attempt < 5 { "locked" } else { "detached" }, now));
            // Another deployment with another reason makes neither repeat itself.
            attempts.failed("other", "frozen", now);
            let Turn::At(next) = attempts.turn("shop", HOLD_OFF, now) else { panic!("it must wait") };
            pauses.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(told, [true, false, false, false, false, true, false, false, false]);
        attempts.calm("shop");
        attempts.failed("shop", "detached", now);
        assert_eq!(attempts.turn("shop", HOLD_OFF, now), Turn::At(now + FIRST_PAUSE), "it is another occasion");
        attempts.succeeded("shop", now);
        assert_eq!(attempts.turn("shop", HOLD_OFF, now), Turn::At(now + HOLD_OFF));
        assert_eq!(attempts.turn("shop", HOLD_OFF, now + HOLD_OFF), Turn::Now);
    }

    #[test]
    fn one_that_was_not_due_at_the_last_moment_is_no_failure() {
        let mut attempts = Attempts::new(HashMap::new(), None);
        let mut now = Instant::now();
        let mut told = Vec::new();
        for _ in 0..9 {
            assert_eq!(attempts.turn("shop", HOLD_OFF, now), Turn::Now);
            attempts.begin("shop");
            told.push(attempts.refused("shop", "green is down", now));
            assert_eq!(attempts.turn("shop", HOLD_OFF, now), Turn::At(now + FIRST_PAUSE));
            now += FIRST_PAUSE;
        }
        assert_eq!(told.iter().filter(|is_news| **is_news).count(), 1);
        // Nor does it make the next failure wait longer.
        attempts.failed("shop", "locked", now);
        assert_eq!(attempts.turn("shop", HOLD_OFF, now), Turn::At(now + FIRST_PAUSE));
    }

    #[test]
    fn an_unknown_past_holds_off_from_the_start() {
        let now = Instant::now();
        let attempts = Attempts::new(HashMap::new(), Some(now));
        assert_eq!(attempts.turn("shop", HOLD_OFF, now), Turn::At(now + HOLD_OFF));
        assert_eq!(attempts.turn("shop", HOLD_OFF, now + HOLD_OFF), Turn::Now);
    }

    #[test]
    fn backends_that_nothing_checks_are_told_once_and_not_before_the_file_could_be_read() {
        let mut attempts = Attempts::new(HashMap::new(), None);
        let (now, one) = (Instant::now(), ["10.0.0.1:80".to_owned()]);
        let later = now + SETTLING;
        assert_eq!(attempts.unchecked("shop", &[], now), None);
        assert_eq!(attempts.unchecked("shop", &one, now), Some(later));
        assert_eq!(attempts.unchecked("shop", &one, later), Some(later));
        assert_eq!(attempts.unchecked("shop", &one, later), None);
        assert_eq!(attempts.unchecked("shop", &[], later), None);
        assert_eq!(attempts.unchecked("shop", &one, later), Some(later + SETTLING));
    }
}
