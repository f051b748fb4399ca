//! Conditions that take a switch back.

use std::{fmt, str::FromStr, time::Duration};

use bg_common::{Conditions, FULL_SHARE, Limit, Trips};
use serde::{Serialize, Serializer};

/// A condition that takes a switch back. It is measured from the switch on, on new flows of the new colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// `resets > 5% of 200`: the first answer to more of them was a reset.
    Resets(Share),
    /// `unanswered > 5% of 200`: more of them had no answer after a second.
    Unanswered(Share),
    /// `silence 2s`: some were opened, and none was answered for this time.
    Silence(Duration),
}

/// A share of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The share that is not too much yet, in basis points.
    pub more_than: u16,
    /// The least number of flows that may judge.
    pub least: u32,
}

impl Condition {
    /// The bit of its kind.
    pub(crate) const fn kind(self) -> Conditions {
        match self {
            Self::Resets(_) => Conditions::RESETS,
            Self::Unanswered(_) => Conditions::UNANSWERED,
            Self::Silence(_) => Conditions::SILENCE,
        }
    }

    /// The conditions of a row.
    pub(crate) fn all_of(trips: &Trips) -> impl Iterator<Item = Self> {
        let share = |limit: Limit| Share { more_than: limit.share as u16, least: limit.least };
        [
            (trips.resets.least != 0).then(|| Self::Resets(share(trips.resets))),
            (trips.unanswered.least != 0).then(|| Self::Unanswered(share(trips.unanswered))),
            (trips.silence != 0).then(|| Self::Silence(Duration::from_nanos(trips.silence))),
        ]
        .into_iter()
        .flatten()
    }

    /// Adds it to a row.
    pub(crate) fn arm(self, trips: &mut Trips) {
        match self {
            Self::Resets(share) => trips.resets = share.into(),
            Self::Unanswered(share) => trips.unanswered = share.into(),
            Self::Silence(time) => trips.silence = time.as_nanos() as u64,
        }
    }
}

impl From<Share> for Limit {
    fn from(share: Share) -> Self {
        Self { share: share.more_than.into(), least: share.least }
    }
}

/// The names of kinds of conditions.
pub(crate) fn names(conditions: Conditions) -> Vec<String> {
    [("resets", Conditions::RESETS), ("unanswered", Conditions::UNANSWERED), ("silence", Conditions::SILENCE)]
        .into_iter()
        .filter(|(_, kind)| conditions.has(*kind))
        .map(|(name, _)| name.to_owned())
        .collect()
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resets(share) => write!(f, "resets > {share}"),
            Self::Unanswered(share) => write!(f, "unanswered > {share}"),
            Self::Silence(time) => write!(f, "silence {}", humantime::format_duration(*time)),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}% of {}", f64::from(self.more_than) / 100.0, self.least)
    }
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (kind, rest) = text.split_at(text.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(text.len()));
        let rest = rest.trim();
        match kind {
            "resets" => Ok(Self::Resets(share(rest)?)),
            "unanswered" => Ok(Self::Unanswered(share(rest)?)),
            "silence" => match humantime::parse_duration(rest) {
                Ok(time) if time.is_zero() => Err("a silence lasts for some time, such as \"silence 2s\"".to_owned()),
                Ok(time) => Ok(Self::Silence(time)),
                Err(error) => Err(format!("{error}, in \"silence {rest}\"; such as \"silence 2s\"")),
            },
            _ => Err("a condition is \"resets > 5% of 200\", \"unanswered > 5% of 200\" or \"silence 2s\"".to_owned()),
        }
    }
}

/// `> 5% of 200`.
fn share(text: &str) -> Result<Share, String> {
    let wrong = || format!("\"{text}\" is no share of flows, such as \"> 5% of 200\"");
    let (percent, least) = text.strip_prefix('>').and_then(|text| text.split_once('%')).ok_or_else(wrong)?;
    let least = least.trim().strip_prefix("of").ok_or_else(wrong)?;
    let least: u32 = least.trim().parse().map_err(|_| wrong())?;
    let percent: f64 = percent.trim().parse().map_err(|_| wrong())?;
    let basis_points = percent * 100.0;
    if (basis_points - basis_points.round()).abs() > 1e-6 {
        return Err(format!("\"{text}\": a percentage has at most two decimals"));
    }
    if !(0.0..f64::from(FULL_SHARE)).contains(&basis_points) {
        return Err(format!("\"{text}\": the share must be less than 100%, or it would never be greater"));
    }
    if least == 0 {
        return Err(format!("\"{text}\": at least one flow must have been opened"));
    }
    Ok(Share { more_than: basis_points.round() as u16, least })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_as_they_are_shown() {
        let share = |more_than, least| Share { more_than, least };
        for (text, condition) in [
            ("resets > 5% of 200", Condition::Resets(share(500, 200))),
            ("unanswered > 0.25% of 1000", Condition::Unanswered(share(25, 1000))),
            ("silence 2s", Condition::Silence(Duration::from_secs(2))),
            ("silence 1m 500ms", Condition::Silence(Duration::from_millis(60_500))),
            ("resets > 0% of 1", Condition::Resets(share(0, 1))),
        ] {
            assert_eq!(text.parse(), Ok(condition));
            assert_eq!(condition.to_string(), text);
        }
        assert_eq!("resets>5%of 200".parse(), Ok(Condition::Resets(share(500, 200))));
        assert_eq!(" unanswered  >  99.99 %  of  7 ".parse(), Ok(Condition::Unanswered(share(9999, 7))));
    }

    #[test]
    fn what_is_no_condition_is_refused() {
        for text in [
            "",
            "resets",
            "resets > 5",
            "resets > 5% of",
            "resets > 5% of 0",
            "resets > 100% of 5",
            "resets < 5% of 200",
            "resets > -1% of 5",
            "resets > 0.001% of 5",
            "resets > NaN% of 5",
            "silence",
            "silence 0s",
            "silence 2",
            "errors > 5% of 200",
            "resets > 5% of -1",
            "resets > 5% of 200 flows",
        ] {
            assert!(text.parse::<Condition>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_row_has_the_conditions_that_were_put_there() {
        let mut trips = Trips::default();
        assert_eq!(Condition::all_of(&trips).count(), 0);
        let conditions = ["resets > 1% of 2", "unanswered > 3% of 4", "silence 5s"].map(|text| text.parse().unwrap());
        conditions.iter().for_each(|condition: &Condition| condition.arm(&mut trips));
        assert_eq!(Condition::all_of(&trips).collect::<Vec<_>>(), conditions);
        let all = Conditions::RESETS.with(Conditions::UNANSWERED).with(Conditions::SILENCE);
        assert_eq!(trips.conditions(), all);
        assert_eq!(names(all), ["resets", "unanswered", "silence"]);
    }
}
