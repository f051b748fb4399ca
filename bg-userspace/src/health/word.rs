//! What is known of one backend, as a word of `backend_info`.

use bg_common::FULL_SHARE;

/// What is known of a backend's health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Nothing. It is treated as if it were up.
    #[default]
    Unknown,
    /// It is well.
    Up,
    /// It is not, and gets no new flows.
    Down,
}

impl Health {
    /// Its name in a status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }

    /// The health with this name in a status.
    #[cfg(feature = "serve")]
    pub(crate) fn of_name(name: &str) -> Self {
        [Self::Up, Self::Down].into_iter().find(|health| health.name() == name).unwrap_or_default()
    }
}

/// See [`bg_common::BackendInfo::health`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HealthWord(pub(crate) u32);

impl HealthWord {
    pub(crate) const UNKNOWN: Self = Self(0);
    const REFUSES: u32 = 1 << 8;
    const MISSING: u32 = 16;

    /// `share` is the part of its weight that it has, from 0 to 1, if it is up.
    pub(crate) fn new(health: Health, share: f64, refuses: bool) -> Self {
        let missing = match health {
            Health::Up => f64::from(FULL_SHARE) * (1.0 - share.clamp(0.0, 1.0)),
            _ => 0.0,
        };
        // One that is up gets a little at least: otherwise nobody would see whether it copes.
        let missing = (missing as u32).min(u32::from(FULL_SHARE) - 1);
        let refuses = if refuses { Self::REFUSES } else { 0 };
        Self(health as u32 | refuses | missing << Self::MISSING)
    }

    pub(crate) const fn health(self) -> Health {
        match self.0 & 3 {
            1 => Health::Up,
            2 => Health::Down,
            _ => Health::Unknown,
        }
    }

    /// Whether it gets no new flow even if no other backend of its colour gets one.
    pub(crate) const fn is_refused(self) -> bool {
        self.0 & Self::REFUSES != 0 && matches!(self.health(), Health::Down)
    }

    /// The part of its weight that it has, in basis points.
    pub(crate) const fn share(self) -> u16 {
        let missing = (self.0 >> Self::MISSING) as u16;
        match self.health() {
            Health::Down => 0,
            _ => FULL_SHARE.saturating_sub(missing),
        }
    }

    /// The same from 0 to 1, while it starts slowly.
    pub(crate) fn slow_start(self) -> Option<f64> {
        let is_starting = self.health() == Health::Up && self.share() < FULL_SHARE;
        is_starting.then(|| f64::from(self.share()) / f64::from(FULL_SHARE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_tells_what_it_was_made_of() {
        let told = |health, share| {
            let word = HealthWord::new(health, share, false);
            (word.health(), word.share(), word.slow_start())
        };
        assert_eq!(told(Health::Unknown, 0.5), (Health::Unknown, FULL_SHARE, None));
        assert_eq!(told(Health::Up, 1.0), (Health::Up, FULL_SHARE, None));
        assert_eq!(told(Health::Up, 0.25), (Health::Up, 2500, Some(0.25)));
        assert_eq!(told(Health::Up, 0.0), (Health::Up, 1, Some(0.0001)));
        assert_eq!(told(Health::Down, 1.0), (Health::Down, 0, None));
        assert_eq!(HealthWord::new(Health::Unknown, 1.0, false), HealthWord::UNKNOWN, "as an apply leaves it");
    }
}
