//! How often something may be told: whoever is refused a thousand times a second must not fill the log.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

const WINDOW: Duration = Duration::from_secs(10);
const MOST: u32 = 20;

/// Counts what is told in a window of time.
#[derive(Debug, Default)]
pub(super) struct Meter(Mutex<Option<Window>>);

#[derive(Debug)]
struct Window {
    began: Instant,
    told: u32,
    left_out: u64,
}

impl Meter {
    /// Whether to tell it. If so, with how many were left out before.
    pub(super) fn tell(&self) -> Option<u64> {
        self.tell_at(Instant::now())
    }

    fn tell_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let present = window.as_mut().filter(|window| now.duration_since(window.began) < WINDOW);
        let Some(present) = present else {
            let left_out = window.as_ref().map_or(0, |window| window.left_out);
            *window = Some(Window { began: now, told: 1, left_out: 0 });
            return Some(left_out);
        };
        if present.told < MOST {
            present.told += 1;
            return Some(0);
        }
        present.left_out += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_some_are_told_and_the_others_are_counted() {
        let (meter, now) = (Meter::default(), Instant::now());
        let told = (0..1000).filter(|_| meter.tell_at(now).is_some()).count();
        assert_eq!(told, MOST as usize);
        assert_eq!(meter.tell_at(now + WINDOW), Some(1000 - u64::from(MOST)));
        assert_eq!(meter.tell_at(now + WINDOW), Some(0));
    }
}
